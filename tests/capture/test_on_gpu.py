"""The form of programs for GPUs: what is taken in by whom, and that it computes the same, here in plain torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spacetime.backends.compiler import compile_program
from spacetime.capture.cohort import Cohort
from spacetime.capture.fuse import FusedProgram, Step
from spacetime.capture.lowerings import fuse
from spacetime.capture.on_gpu import on_gpu
from spacetime.capture.program import Captured
from spacetime.kernels import AnyRows, MixError, RowMap
from spacetime.kernels.bound import choices
from spacetime.kernels.rowmap import num_words
from spacetime.zoo import build, example
from tests.capture.sketches import Part, draw, sketch
from tests.capture.tenants import Tenants, capture, largest_deviation, leaves_of, zoo_capture

LINEAR: dict[str, Part] = {"first": lambda: nn.Linear(8, 8), "second": lambda: nn.Linear(8, 8)}
CONV: dict[str, Part] = {"first": lambda: nn.Conv2d(3, 3, 1), "norm": lambda: nn.BatchNorm2d(3)}
Taken = tuple[int, str, tuple[float, float] | None]  # operands that carry rows, epilogue, bounds


def form_of(captured: Captured) -> FusedProgram:
    return on_gpu(fuse(captured), captured.proof)


def taken(program: FusedProgram) -> list[Taken]:
    """What every linear layer and convolution has taken in."""
    hosts = [step for step in program.steps if step.target in ("gpu_linear", "gpu_conv")]
    return [(len(step.args) - 1, step.attributes["epilogue"], step.attributes["bounds"]) for step in hosts]


CASES: dict[str, tuple[Any, dict[str, Part], tuple[int, ...], list[Taken]]] = {
    "two": (lambda m, x: F.gelu(m.second(F.relu(m.first(x)))), LINEAR, (8,), [(1, "relu", None), (1, "gelu", None)]),
    "tanh gelu": (lambda m, x: F.gelu(m.first(x), approximate="tanh"), LINEAR, (8,), [(1, "gelu_tanh", None)]),
    "residual": (lambda m, x: F.silu(x + m.first(x)), LINEAR, (8,), [(2, "silu", None)]),
    "the later of two": (lambda m, x: m.first(x) + m.second(x), LINEAR, (8,), [(1, "none", None), (2, "none", None)]),
    "one residual only": (lambda m, x: m.first(x) + x + x.abs(), LINEAR, (8,), [(2, "none", None)]),
    "nothing behind an activation": (lambda m, x: F.relu(m.first(x)) + x, LINEAR, (8,), [(1, "relu", None)]),
    "another reader": (lambda m, x: (y := m.first(x)).relu() + y.abs(), LINEAR, (8,), [(1, "none", None)]),
    "an output": (lambda m, x: ((y := m.first(x)), y.relu()), LINEAR, (8,), [(1, "none", None)]),
    "itself": (lambda m, x: (y := m.first(x)) + y, LINEAR, (8,), [(1, "none", None)]),
    "a broadcast": (lambda m, x: m.first(x) + x[:, :1], LINEAR, (6, 8), [(1, "none", None)]),
    "a factor": (lambda m, x: torch.add(m.first(x), x, alpha=2), LINEAR, (8,), [(1, "none", None)]),
    "a scalar": (lambda m, x: m.first(x) + 1.0, LINEAR, (8,), [(1, "none", None)]),
    "relu6": (lambda m, x: F.relu6(m.first(x)), LINEAR, (8,), [(1, "relu6", None)]),
    "another clamp": (lambda m, x: F.hardtanh(m.first(x)), LINEAR, (8,), [(1, "none", None)]),
    "a block": (lambda m, x: F.relu(m.norm(m.first(x)) + x), CONV, (3, 4, 4), [(2, "relu", None)]),
    "a clamp closes": (lambda m, x: F.hardtanh(m.first(x)) + x, CONV, (3, 4, 4), [(1, "none", (-1.0, 1.0))]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_follows_is_taken_in_and_nothing_else_changes(name: str) -> None:
    function, parts, row, expected = CASES[name]
    captured = capture(sketch(function, parts), draw((row,), 2, seed=0))
    assert taken(form_of(captured)) == expected
    check(captured, [sketch(function, parts, seed) for seed in range(3)], [draw((row,), n, n) for n in (1, 3, 2)])


@pytest.mark.parametrize("name", ["mlp", "resnet18", "vit", "bert", "lstm_cell", "recommender"])
def test_models_compute_the_same(name: str) -> None:
    captured = zoo_capture(name)
    program = form_of(captured)
    modules = [build(name, seed) for seed in (0, 1)]
    check(captured, modules, [example(name, rows, rows) for rows in (2, 1)])
    plain, own = (Counter(map(kind, form.steps)) for form in (fuse(captured), program))
    extra = own["gpu_owners"] + own["gpu_faults"]
    assert own["gpu_owners"] == 1 and sum(own.values()) - extra <= sum(plain.values())
    assert all(own[f"gpu_{slot}"] == plain[slot] for slot in ("linear", "conv", "embedding", "layer_norm", "gather"))
    assert bool(own["gpu_faults"]) == bool(plain["embedding"])


def kind(step: Step) -> str:
    return str(step.target)


def check(captured: Captured, modules: list[nn.Module], inputs: list[tuple[Tensor, ...]]) -> None:
    """The form for GPUs, run without one, against the plain modules."""
    plain = [leaves_of(module, own) for module, own in zip(modules, inputs, strict=True)]
    tenants = Tenants(captured, modules)
    compiled = compile_program(form_of(captured), tenants.cohort.layers)
    tenants._run = compiled.run
    for order in (tuple(range(len(modules))), (len(modules) - 1, 0), (1,)):
        fused = tenants.fused(order, [inputs[slot] for slot in order])
        assert largest_deviation(fused, [plain[slot] for slot in order]) <= 1e-5
    assert {choice.kernel for choice in choices(compiled.kernels)} == {"plain torch"}
    assert all("no kernels for cpu" in choice.reason for choice in choices(compiled.kernels))


def test_programs_without_weights_stay_as_they_are() -> None:
    captured = capture(sketch(lambda m, x: x.relu() + 1, {}), draw(((8,),), 2, seed=0))
    program = fuse(captured)
    assert on_gpu(program, captured.proof) == program


def test_on_a_cpu_nothing_changes() -> None:
    assert not any(kind(step).startswith("gpu_") for step in fuse(zoo_capture("resnet18")).steps)


def test_any_mix_needs_kernels_and_says_so() -> None:
    captured = zoo_capture("mlp")
    cohort = Tenants(captured, [build("mlp")]).cohort
    run = compile_program(form_of(captured), cohort.layers).run
    words = torch.zeros(num_words(4), dtype=torch.int32)
    with pytest.raises(MixError, match="no kernels for cpu"):
        run(AnyRows(4, words), *example("mlp", 4))


def test_steps_for_single_tenants_say_that_they_cannot_serve_any_mix() -> None:
    captured = capture(sketch(lambda m, x: m.prelu(x), {"prelu": lambda: nn.PReLU(6)}), draw(((6, 8),), 2, seed=0))
    cohort: Cohort = Tenants(captured, [sketch(lambda m, x: m.prelu(x), {"prelu": lambda: nn.PReLU(6)})]).cohort
    run = compile_program(form_of(captured), cohort.layers).run
    with pytest.raises(MixError, match="must know whose rows"):
        run(AnyRows(2, torch.zeros(num_words(2), dtype=torch.int32)), *draw(((6, 8),), 2, seed=0))


def test_rows_are_the_same_in_both_forms() -> None:
    """The same row map serves both: words are made of it on demand."""
    rows = RowMap((2, 0), (1, 3))
    assert rows.words(torch.device("cpu"))[:8].tolist() == [4, 0, 0, 0, 2, 0, 0, 0]
