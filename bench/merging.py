"""Case `merging`: launches that merged programs save, and what it takes to align, restrict and judge them.

Launches are counted, not timed: the programs are those that capture/ finds in the zoo's modules, and those of
sim/architectures at their usual sizes. A kernel of a program is a launch; a step of a merged program is one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

from torch import Tensor, nn

import spacetime as st
from bench.cases import Scale
from bench.results import Figure, Measurement
from spacetime import zoo
from spacetime.device import Device
from spacetime.ir import Kernel, Program, Rows, TensorSpec
from spacetime.merged import MergedProgram, is_product
from spacetime.merging import Launches, Load, align, fewest_launches, worth
from spacetime.sim.architectures import program as architecture
from spacetime.sim.architectures.transformers import bert
from spacetime.sim.devices import find
from spacetime.zoo.transformers import BertEncoder

NUM_TENANTS = 64
NUM_PROGRAMS, NUM_KERNELS = 64, 200
COUNTED = "counted; alone: every kernel of every member is a launch; merged: every step is one"
PRODUCTS = f"{COUNTED}; of these, matrix products, convolutions and attention"
CPU = Device("2 cores of assumed peaks", "cpu", 2, flops_per_unit_us=5e4, bytes_per_us=2e4, launch_us=5.0)

# The part of the zoo in which models have relatives.
FAMILIES = ("resnet18", "resnet34", "resnet50", "vgg16", "vgg19", "alexnet", "bert", "vit", "mlp")

# Share of the product launches that must be saved.
GOALS = {
    "resnet18 + resnet34": 36,
    "bert, heads of 2 + 5 classes": 60,
    "bert of 4 + of 8 layers": 50,
    "vgg16 + vgg19": 46,
}


def run(scale: Scale) -> Iterator[Measurement]:
    if not scale.smoke:
        yield from _saved("captured", _captured_pairs())
        yield from _saved_by_tenants("captured", _tenants(_captured(*(zoo.SMALL if scale.quick else zoo.ZOO))))
        yield from _saved_by_tenants("captured", _tenants(_captured(*FAMILIES)))
    modelled = _modelled_pairs()
    yield from _saved("modelled", modelled)
    yield from _judged(modelled)
    yield from _timed(2 if scale.quick else 10)


class Headed(nn.Module):
    """A classifier on the zoo's BERT."""

    def __init__(self, classes: int = 2, depth: int = 4) -> None:
        super().__init__()
        self.encoder = BertEncoder(depth=depth)
        self.head = nn.Linear(256, classes)

    def forward(self, token_ids: Tensor, segment_ids: Tensor, mask: Tensor) -> Tensor:
        _, pooled = self.encoder(token_ids, segment_ids, mask)
        logits: Tensor = self.head(pooled)
        return logits


# -- what is aligned ----------------------------------------------------------------------------------------


def _captured_pairs() -> dict[str, list[Program]]:
    inputs = zoo.example("bert")
    heads = [st.capture(Headed(classes).eval(), example=inputs) for classes in (2, 5)]
    deep = st.capture(Headed(depth=8).eval(), example=inputs)
    return {
        "resnet18 + resnet34": _captured("resnet18", "resnet34"),
        "bert, heads of 2 + 5 classes": heads,
        "bert of 4 + of 8 layers": [heads[0], deep],
        "vgg16 + vgg19": _captured("vgg16", "vgg19"),
        "resnet18 + resnet50": _captured("resnet18", "resnet50"),
        "resnet18 + vgg16": _captured("resnet18", "vgg16"),
        "bert + vit": _captured("bert", "vit"),
    }


def _modelled_pairs() -> dict[str, list[Program]]:
    return {
        "resnet18 + resnet34": [architecture("resnet18"), architecture("resnet34")],
        "bert of 4 + of 8 layers": [bert(depth=4), bert(depth=8)],
        "vgg16 + vgg19": [architecture("vgg16"), architecture("vgg19")],
        "resnet18 + resnet34, folded": [architecture(name, folded=True) for name in ("resnet18", "resnet34")],
        "vgg16 + vgg19, folded": [architecture(name, folded=True) for name in ("vgg16", "vgg19")],
        "bert + distilbert": [architecture("bert"), architecture("distilbert")],
    }


def _captured(*names: str) -> list[Program]:
    return [st.capture(zoo.build(name), example=zoo.example(name)) for name in names]


def _tenants(programs: Sequence[Program]) -> list[Program]:
    """As many as there are, model after model."""
    return [programs[tenant % len(programs)] for tenant in range(NUM_TENANTS)]


def random_programs(seed: int = 0) -> list[Program]:
    """Chains of linears: stages, in which a few widths alternate in short runs. Every program its own."""
    rnd = random.Random(seed)
    return [_chain(f"random{index}", _widths(rnd)) for index in range(NUM_PROGRAMS)]


def _widths(rnd: random.Random) -> list[int]:
    widths: list[int] = []
    stage = 0
    while len(widths) < NUM_KERNELS:
        widths += [8 + rnd.randrange(max(0, stage - 1), stage + 2)] * rnd.randint(1, 6)
        stage = min(40, stage + 1) if rnd.random() < 0.5 else stage
    return widths[:NUM_KERNELS]


def _chain(name: str, widths: Sequence[int]) -> Program:
    kernels = []
    for index, width in enumerate(widths):
        moving, weight = TensorSpec((Rows(1), width), "float32", 0), TensorSpec((width, width), "float32")
        deps = (index - 1,) if index else ()
        costs = {"flops_per_row": 2 * width * width, "bytes_per_row": 8 * width, "weight_bytes": 4 * width * width}
        kernels.append(
            Kernel(index, f"{index}", "linear", "gemm", (moving, weight), (moving,), (index,), deps, "", **costs)
        )
    return Program(name, (), (), (), tuple(kernels))


# -- what is measured ---------------------------------------------------------------------------------------


def _saved(source: str, pairs: dict[str, list[Program]]) -> Iterator[Measurement]:
    for name, programs in pairs.items():
        for suffix, weights in (("", Launches()), (", groups", Launches(grouped=True))):
            merged = align(programs, weights)
            counts = f"{merged.num_alone} launches in {merged.num_launches}"
            goal = f">= {GOALS[name]}" if name in GOALS and not suffix else ""
            axes: dict[str, str | int | float] = {"mix": name, "source": source, "groups": int(bool(suffix))}
            subject = f"{name}, {source}{suffix}"
            note = "" if suffix else _possible(programs, _products(programs))
            yield Figure("merging", "product launches saved", "%", PRODUCTS, goal).of(
                subject, [100 * merged.products_saved], note, axes
            )
            yield Figure("merging", "launches saved", "%", COUNTED).of(subject, [100 * merged.saved], counts, axes)


def _saved_by_tenants(source: str, tenants: Sequence[Program]) -> Iterator[Measurement]:
    """Tenants of one program share its launches as a cohort; merging adds what unlike programs share."""
    cohorts = {program.signature: program for program in tenants}
    for suffix, weights in (("", Launches()), (", groups", Launches(grouped=True))):
        merged = align(list(cohorts.values()), weights)
        subject = f"{len(tenants)} tenants of {len(cohorts)} zoo models, {source}{suffix}"
        steps = [merged.kernel(step.parts[0]) for step in merged.steps]
        for metric, method, counts, goal in (
            ("product launches saved", PRODUCTS, is_product, ">= 85"),
            ("launches saved", COUNTED, _is_launch, ""),
        ):
            alone = sum(counts(kernel) for program in tenants for kernel in program.kernels)
            in_cohorts = sum(counts(kernel) for program in cohorts.values() for kernel in program.kernels)
            left = sum(counts(kernel) for kernel in steps)
            note = f"{alone} alone, {in_cohorts} in cohorts, {left} merged"
            if not suffix:
                note = f"{note}; {_possible(list(cohorts.values()), alone, counts)}"
            yield Figure("merging", metric, "%", method, goal).of(subject, [100 * (1 - left / alone)], note)
        if not suffix:
            yield _restricted(merged, subject)


def _products(programs: Sequence[Program]) -> int:
    return sum(is_product(kernel) for program in programs for kernel in program.kernels)


def _possible(programs: Sequence[Program], alone: int, counts: Callable[[Kernel], bool] = is_product) -> str:
    """What no alignment can surpass, whatever the goal says: what nobody can share is launched all the same."""
    fewest = fewest_launches(programs, counts)
    return f"without groups no alignment saves more than {100 * (1 - fewest / alone):.1f}% ({fewest} launches)"


def _is_launch(kernel: Kernel) -> bool:
    """Every kernel of a program is one: capture/ leaves out what only relabels memory."""
    return True


def _restricted(merged: MergedProgram, subject: str) -> Measurement:
    """Every other member is active."""
    subset = merged.restrict(range(0, len(merged.programs), 2))
    fresh = align(subset.programs)
    loss = 100 * (subset.num_launches / fresh.num_launches - 1)
    figure = Figure("merging", "launches that restricting costs", "%", "restricted over aligned afresh, less 1")
    return figure.of(subject, [loss], f"{_counts(subset)} restricted, {_counts(fresh)} afresh")


def _judged(pairs: dict[str, list[Program]]) -> Iterator[Measurement]:
    """Predictions only: which way of running the pair the model prefers."""
    method = "modelled: (in turn or side by side, whichever is faster) / merged; one tenant of one row each"
    figure = Figure("merging", "separate over merged, modelled", "x", method)
    for name, programs in pairs.items():
        merged = align(programs)
        for device in (find("h200"), CPU):
            answer = worth(merged, [Load(1, 1)] * len(programs), device)
            yield figure.of(f"{name}, {device.name}", [answer.separate_us / answer.merged_us], str(answer))


def _timed(repeats: int) -> Iterator[Measurement]:
    programs = random_programs()
    what = f"{NUM_PROGRAMS} random programs of {NUM_KERNELS} kernels"
    aligning = Figure("merging", "time of aligning", "ms", "encoding, aligning, verifying; by counting", "<= 300")
    merged: list[MergedProgram] = []
    yield aligning.of(what, _milliseconds(lambda: merged.append(align(programs)), repeats), _counts(merged[-1]))
    active = list(range(0, NUM_PROGRAMS, 8))
    restricting = Figure("merging", "time of restricting", "ms", "8 of the members, verified")
    yield restricting.of(what, _milliseconds(lambda: merged[-1].restrict(active), repeats))
    yield _restricted(merged[-1], what)


def _counts(merged: MergedProgram) -> str:
    return f"{merged.num_alone} launches in {merged.num_launches}"


def _milliseconds(call: Callable[[], object], repeats: int) -> list[float]:
    """After one call that is not counted."""
    call()
    samples = []
    for _ in range(repeats):
        start_s = perf_counter()
        call()
        samples.append(1e3 * (perf_counter() - start_s))
    return samples
