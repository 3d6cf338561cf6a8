"""Stage: merged lanes on the GPU. Programs of unlike cohorts in one graph, whose products are common launches.

What it proves, pair by pair: the common launches answer like the plain modules, eagerly and from one graph, for any mix
of both cohorts' tenants. What it measures, for one row of every tenant: the merged graph against the cohorts' own
graphs, one after another and side by side on two streams, and against every tenant's own graph, all at once on streams
of their own. Device time by events; the host's part of a replay by the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bench.device.findings import Notes
from bench.device.gpu import time_us
from bench.device.kernels import is_missing, tests_module
from bench.device.programs import LIMITS
from bench.device.restart import Case, each
from spacetime.backends.cuda.anymerged import MergedGraph, MergedMix, MergedRecipe, capture_merged
from spacetime.backends.cuda.anymix import AnyGraph, AnyRecipe, bucket_of, capture_any
from spacetime.backends.cuda.captured import Mix
from spacetime.backends.cuda.gpu import Gpu, TorchGpu
from spacetime.backends.cuda.green import Grant
from spacetime.backends.executables import Call, CohortExecutable
from spacetime.backends.merged import MergedExecutable
from spacetime.capture.cohort import Cohort
from spacetime.capture.selfcheck import deviation
from spacetime.capture.store import Store
from spacetime.device import Partition
from spacetime.kernels.bound import choices
from spacetime.merging.align import align
from spacetime.merging.gains import Launches
from spacetime.plan import Lane, RequestView, Segment
from spacetime.zoo import build, example
from spacetime.zoo.mlp import Mlp
from spacetime.zoo.transformers import BertEncoder

EACH = 8  # tenants of a cohort
FEWER = {"vgg16 and vgg19": 2}  # 0.6 GB each, which the host has to draw
SHARING = ("heads on one mlp", "heads on one bert")  # of these, equal weights of both programs are stored once
WHOLE = (Segment(Partition(1, 1, 1)),)

Make = Callable[[int], nn.Module]  # of a seed
Inputs = Callable[[int, int], tuple[Tensor, ...]]
Request = tuple[str, tuple[Tensor, ...]]


def _features(rows: int, seed: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 256, generator=torch.Generator().manual_seed(seed)),)


def _seeded(make: Callable[..., nn.Module], **options: int) -> Make:
    def made(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return make(**options).eval()

    return made


class Headed(nn.Module):
    """A frozen trunk under a head of its own, which reads the last of the trunk's outputs."""

    def __init__(self, trunk: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, classes)

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.trunk(*inputs)
        logits: Tensor = self.head(found[-1] if isinstance(found, tuple) else found)
        return logits


def _headed(trunk: Make, width: int, classes: int) -> Make:
    """The classes make the architecture, the seed the head."""
    return _seeded(lambda: Headed(trunk(0), width, classes))


# Two modules of unlike architecture, inputs of both, and whether unlike shapes are put into one launch.
PAIRS: dict[str, tuple[Make, Make, Inputs, bool]] = {
    "bert of 4 and of 8 layers": (_seeded(BertEncoder), _seeded(BertEncoder, depth=8), partial(example, "bert"), False),
    "resnet18 and resnet34": (*(partial(build, f"resnet{n}") for n in (18, 34)), partial(example, "resnet18"), False),  # type: ignore[dict-item]
    "mlps of 4 and of 6 layers": (_seeded(Mlp), _seeded(Mlp, depth=6), _features, False),
    "mlps of unlike heads": (_seeded(Mlp), _seeded(Mlp, depth=5, classes=100), _features, True),
    "heads on one mlp": (*(_headed(_seeded(Mlp, classes=256), 256, n) for n in (10, 100)), _features, False),  # type: ignore[dict-item]
    "heads on one bert": (*(_headed(_seeded(BertEncoder), 256, n) for n in (2, 9)), partial(example, "bert"), False),  # type: ignore[dict-item]
    "vgg16 and vgg19": (*(partial(build, f"vgg{n}") for n in (16, 19)), partial(example, "vgg16"), False),  # type: ignore[dict-item]
}


def merged_lanes(notes: Notes) -> None:
    """One finding per pair and type."""
    if is_missing(notes, "merged lanes"):
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    cases: list[Case] = [
        (f"{name} {str(dtype).removeprefix('torch.')}", partial(_case, name, dtype))
        for name in PAIRS
        for dtype in LIMITS
    ]
    each(notes, "merged_lanes", cases)


class Pair:
    """Two cohorts, tenants "a0" to "a7" and "b0" to "b7", and what merges them."""

    def __init__(self, name: str, dtype: torch.dtype, device: str, num_each: int = EACH) -> None:
        *makes, self._inputs, is_grouped = PAIRS[name]
        self._dtype, self._device = dtype, device
        self.modules: dict[str, nn.Module] = {}
        self._store = Store() if name in SHARING else None
        self.members = [self._member(make, letter, num_each) for make, letter in zip(makes, "ab", strict=True)]
        by_signature = {member.cohort.program.signature: member for member in self.members}
        program = align([member.cohort.program for member in self.members], Launches(grouped=is_grouped))
        self.merged = MergedExecutable(program, [by_signature[own.signature] for own in program.programs])

    def _member(self, make: Any, letter: str, num_each: int) -> CohortExecutable:
        helper = tests_module("capture.tenants")
        modules = {f"{letter}{seed}": make(seed).to(self._device, self._dtype) for seed in range(num_each)}
        captured = helper.capture(modules[f"{letter}0"], self.inputs(2, 0))
        member = CohortExecutable(Cohort(captured, store=self._store), modules)
        for name, module in modules.items():
            member.join(name, helper.weights_of(captured, module))
        self.modules |= modules
        return member

    def inputs(self, rows: int, seed: int) -> tuple[Tensor, ...]:
        tensors = (tensor.to(self._device) for tensor in self._inputs(rows, seed))
        return tuple(tensor.to(self._dtype) if tensor.is_floating_point() else tensor for tensor in tensors)

    def requests(self, rows: dict[str, int]) -> list[Request]:
        return [(name, self.inputs(count, seed)) for seed, (name, count) in enumerate(rows.items())]

    def mixes(self) -> list[list[Request]]:
        """Ragged ones, then a row of everybody; all fit the graph of the last."""
        last = len(self.modules) // 2 - 1
        ragged = [{"a0": 1, "b1": 2}, {"b0": 1, f"a{last}": 1, "a1": 1}]
        return [self.requests(rows) for rows in (*ragged, dict.fromkeys(self.modules, 1))]

    def worst(self, requests: Sequence[Request], outcomes: Sequence[Any]) -> float:
        """Deviation from the plain modules, by the numerics contract's measure."""
        found = 0.0
        for (name, args), outcome in zip(requests, outcomes, strict=True):
            if outcome.error is not None:
                raise outcome.error
            with torch.no_grad():
                plain = pytree.tree_leaves(self.modules[name](*args))
            pairs = zip(pytree.tree_leaves(outcome.value), plain, strict=True)
            found = max(found, *(deviation(mine, own) for mine, own in pairs))
        return found

    def eagerly(self, requests: Sequence[Request]) -> float:
        worst = self.worst(requests, self.merged.run(lane_of(requests), [Call(args, args) for _, args in requests]))
        if self.merged.fault:  # the members have answered one by one
            raise AssertionError(f"the merged program is at fault: {self.merged.fault}")
        return worst

    def graph(self, gpu: Gpu, stream: int) -> MergedGraph:
        """Of a row of everybody."""
        mix, calls = self.mix(self.mixes()[-1])
        return capture_merged(gpu, Grant(stream, 1, 1), self.merged, MergedRecipe.of(mix, calls))

    def mix(self, requests: Sequence[Request]) -> tuple[MergedMix, list[Call]]:
        calls = [Call(args, args) for _, args in requests]
        mix = MergedMix.of(self.merged, lane_of(requests), calls)
        assert mix is not None, "rows of both"
        return mix, calls

    def own_graph(self, member: CohortExecutable, gpu: Gpu, stream: int) -> AnyGraph:
        """Of a row of everybody in one cohort."""
        requests = self.requests(dict.fromkeys(member.cohort.members, 1))
        calls = [Call(args, args) for _, args in requests]
        recipe = AnyRecipe.of(Mix.of(member, lane_of(requests), calls), calls, bucket_of(len(requests)))
        return capture_any(gpu, Grant(stream, 1, 1), member, recipe)

    @property
    def launched(self) -> dict[str, Any]:
        """What the last lane launched together, and what apart and why."""
        schedule, commons = self.merged.schedule, self.merged.common_kernels
        alone = [choice for m in range(len(self.members)) for choice in choices(self.merged.kernels_of(m))]
        return {
            "launches": f"{schedule.num_alone} in {schedule.num_launches}",
            "together": [getattr(kernel, "num_together", 0) for kernel in commons],
            "apart": sorted({line.partition(": ")[2] for line in self.merged.apart}),
            "kernels_of_members": sorted({choice.kernel for choice in alone}),
            "stored_mb": round(sum(member.cohort.resident_bytes() for member in self.members) / 1e6, 2),
            "shared_mb": round(sum(sum(m.cohort.guest_bytes().values()) for m in self.members) / 1e6, 2),
        }


def lane_of(requests: Sequence[Request]) -> Lane:
    views = [RequestView(index, name, args[0].shape[0], 0) for index, (name, args) in enumerate(requests)]
    return Lane("merged", tuple(views), WHOLE, fused=True)


def _case(name: str, dtype: torch.dtype) -> dict[str, Any]:
    pair, limit = Pair(name, dtype, "cuda", FEWER.get(name, EACH)), LIMITS[dtype]
    eagerly = [pair.eagerly(requests) for requests in pair.mixes()]
    figures: dict[str, Any] = {"eagerly": eagerly, **pair.launched}
    if not max(eagerly) <= limit:
        raise AssertionError(f"eagerly: {limit} is allowed; {figures}")
    gpu, streams = TorchGpu(0), [torch.cuda.Stream() for _ in range(3)]
    graph = pair.graph(gpu, streams[0].cuda_stream)
    replayed, host_us = [], 0.0
    for requests in pair.mixes():
        mix, calls = pair.mix(requests)
        torch.cuda.synchronize()  # inputs were made on another stream
        with torch.cuda.stream(streams[0]):
            replayed.append(pair.worst(requests, graph.serve(mix, calls)))
            host_us = _host_us(lambda mix=mix, calls=calls: graph.serve(mix, calls))  # type: ignore[misc]
    if not max(replayed) <= limit:
        raise AssertionError(f"from one graph: {replayed}, {limit} is allowed; {figures}")
    own = [
        pair.own_graph(member, gpu, stream.cuda_stream)
        for member, stream in zip(pair.members, streams[1:], strict=True)
    ]
    return {**figures, "replayed": replayed, "host_us": host_us, **_times_us(pair, graph, own)}


def _host_us(serve: Callable[[], Any]) -> float:
    """Of inputs, words, replay and results of a row of everybody."""
    samples = []
    for _ in range(50):
        start_s = time.perf_counter()
        serve()
        samples.append(1e6 * (time.perf_counter() - start_s))
        torch.cuda.synchronize()
    return round(median(samples), 1)


def _times_us(pair: Pair, graph: MergedGraph, own: Sequence[AnyGraph]) -> dict[str, float]:
    """All replay what their last lane left: a row of every tenant."""
    for member, each_own in zip(pair.members, own, strict=True):
        requests = pair.requests(dict.fromkeys(member.cohort.members, 1))
        calls = [Call(args, args) for _, args in requests]
        each_own.serve(Mix.of(member, lane_of(requests), calls), calls)
    torch.cuda.synchronize()
    replays = [_replay(each_own) for each_own in own]
    modules = _own_graphs(pair)
    found = {
        "merged_us": time_us(_replay(graph)),
        "in_turn_us": time_us(lambda: [replay() for replay in replays]),
        "side_by_side_us": time_us(lambda: _at_once(replays)),
        "streams_us": time_us(lambda: _at_once(modules)),
    }
    return {name: round(value, 1) for name, value in found.items()}


def _replay(graph: MergedGraph | AnyGraph) -> Callable[[], None]:
    assert graph.replayable is not None
    return graph.replayable.replay


def _own_graphs(pair: Pair) -> list[Callable[[], None]]:
    """Every tenant's plain module, a row each."""
    stream, found = torch.cuda.Stream(), []
    with torch.no_grad():
        for module in pair.modules.values():
            inputs = pair.inputs(1, 0)
            with torch.cuda.stream(stream):
                module(*inputs)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                module(*inputs)
            found.append((graph, inputs))
    return [partial(_replay_held, *each) for each in found]


def _replay_held(graph: torch.cuda.CUDAGraph, inputs: tuple[Tensor, ...]) -> None:
    """The graph reads the inputs."""
    graph.replay()


_streams: list[torch.cuda.Stream] = []


def _at_once(replays: Sequence[Callable[[], None]]) -> None:
    """Each on a stream of its own, between two points of the current one."""
    current = torch.cuda.current_stream()
    while len(_streams) < len(replays):
        _streams.append(torch.cuda.Stream())
    used = list(zip(_streams, replays, strict=False))
    for stream, replay in used:
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            replay()
    for stream, _ in used:
        current.wait_stream(stream)


__all__ = ["merged_lanes"]
