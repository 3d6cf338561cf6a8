"""Signatures: equal for equal architectures whatever the weights, different for everything that changes the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spacetime.ir import Program, Rows
from spacetime.zoo import STANDARD, build, example
from tests.capture.sketches import draw, sketch
from tests.capture.tenants import capture, zoo_capture
from tests.slow import LONG_EXPORTS, mostly

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "leakier": lambda: nn.LeakyReLU(0.2),
}


class Named(nn.Module):
    """An MLP whose layers carry the names they are given: names must not matter."""

    def __init__(self, widths: tuple[int, ...], kinds: tuple[str, ...], bias: bool, prefix: str) -> None:
        super().__init__()
        self.order: list[str] = []
        for index, kind in enumerate(kinds):
            for name, layer in (
                ("linear", nn.Linear(widths[index], widths[index + 1], bias)),
                ("f", ACTIVATIONS[kind]()),
            ):
                self.order.append(f"{prefix}_{name}{index}")
                self.add_module(self.order[-1], layer)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x


Architecture = tuple[tuple[int, ...], tuple[str, ...], bool]


@st.composite
def architectures(draw_from: st.DrawFn) -> Architecture:
    depth = draw_from(st.integers(1, 2))
    widths = draw_from(st.tuples(*[st.sampled_from([3, 4])] * (depth + 1)))
    kinds = draw_from(st.tuples(*[st.sampled_from(sorted(ACTIVATIONS))] * depth))
    return widths, kinds, draw_from(st.booleans())


def program_of(module: nn.Module, *inputs: Tensor) -> Program:
    return capture(module.eval(), inputs).program


@settings(max_examples=8)
@given(architectures(), architectures(), st.booleans())
def test_signatures_are_equal_exactly_for_equal_architectures(
    one: Architecture, other: Architecture, same: bool
) -> None:
    other = one if same else other
    first = program_of(Named(*one, prefix="a"), torch.randn(2, one[0][0]))
    second = program_of(Named(*other, prefix="b"), torch.randn(3, other[0][0]))
    assert (first.signature == second.signature) == (one == other)
    assert [kernel.key for kernel in first.kernels] == [kernel.key for kernel in second.kernels] or one != other


def tied(m: Any, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, m.one), m.one)


def untied(m: Any, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, m.one), m.two)


def transposed_weight(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.one)


SQUARE: dict[str, Any] = {"one": (8, 8), "two": (8, 8)}


def with_strided_weight() -> nn.Module:
    module = sketch(transposed_weight, {"one": (8, 8)})
    module.one = nn.Parameter(torch.randn(8, 8).t())
    return module


def variants() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Pairwise different work on [rows, 8]."""
    x = draw(((8,),), 2, seed=0)
    return {
        "tied": (sketch(tied, SQUARE), x),
        "untied": (sketch(untied, SQUARE), x),
        "linear": (sketch(transposed_weight, {"one": (8, 8)}), x),
        "linear, strided weight": (with_strided_weight(), x),
        "linear, two steps": (sketch(transposed_weight, {"one": (8, 8)}), draw(((2, 8),), 2, seed=0)),
        "linear in bfloat16": (sketch(transposed_weight, {"one": (8, 8)}).bfloat16(), (x[0].bfloat16(),)),
        "times 2": (sketch(lambda m, x: x * 2.0, {}), x),
        "times almost 2": (sketch(lambda m, x: x * (2.0 + 2**-50), {}), x),
        "slope 0.1": (nn.LeakyReLU(0.1), x),
        "slope 0.2": (nn.LeakyReLU(0.2), x),
        "constant 1 2": (sketch(lambda m, x: x[:, :2] * torch.tensor([1.0, 2.0]), {}), x),
        "constant 1 3": (sketch(lambda m, x: x[:, :2] * torch.tensor([1.0, 3.0]), {}), x),
        "tuple": (sketch(lambda m, x: (x * 3, x), {}), x),
        "swapped tuple": (sketch(lambda m, x: (x, x * 3), {}), x),
        "list": (sketch(lambda m, x: [x * 3, x], {}), x),
        "dict": (sketch(lambda m, x: {"a": x * 3, "b": x}, {}), x),
        "dict, other keys": (sketch(lambda m, x: {"a": x * 3, "c": x}, {}), x),
        "constant output": (sketch(lambda m, x: {"a": x * 3, "b": 4}, {}), x),
        "other constant output": (sketch(lambda m, x: {"a": x * 3, "b": 5}, {}), x),
    }


def test_whatever_changes_the_work_changes_the_signature() -> None:
    signatures = {name: capture(*variant).program.signature for name, variant in variants().items()}
    assert len(set(signatures.values())) == len(signatures), signatures


@pytest.mark.parametrize(
    "names",
    [[name for name in STANDARD if name not in LONG_EXPORTS], pytest.param(STANDARD, marks=pytest.mark.slow)],
    ids=["most", "all"],
)
def test_the_architectures_of_the_zoo_differ(names: Sequence[str]) -> None:
    assert len({zoo_capture(name).program.signature for name in names}) == len(names)


@pytest.mark.parametrize("name", ["mlp", "gru_cell", "recommender", "tied_lm"])
def test_another_seed_and_another_example_give_the_same_signature(name: str) -> None:
    other = capture(build(name, seed=1), example(name, rows=3, seed=2))
    assert other.program == zoo_capture(name).program


@pytest.mark.parametrize("name", mostly(STANDARD, slow=LONG_EXPORTS))
def test_programs_of_the_zoo_are_in_order_and_survive_json(name: str) -> None:
    captured = zoo_capture(name)
    program = captured.program
    assert Program.from_json(program.to_json()) == program
    assert [kernel.index for kernel in program.kernels] == list(range(len(program.kernels)))
    assert len(captured.kernel_nodes) == len(program.kernels)
    for kernel in program.kernels:
        assert all(dep < kernel.index for dep in kernel.deps)
        assert set(kernel.weights) <= set(range(len(program.weights)))
    read = {dep for kernel in program.kernels for dep in kernel.deps}
    outputs = {index for node in captured.exported.outputs for index in _producers(captured, node)}
    assert read | outputs == set(range(len(program.kernels))), "a kernel that nobody reads"


def _producers(captured: Any, output: Any) -> set[int]:
    """Kernels behind an output, looking through views."""
    if output.name in captured.kernel_nodes:
        return {captured.kernel_nodes.index(output.name)}
    return {index for source in output.all_input_nodes for index in _producers(captured, source)}


def test_equal_layers_have_equal_keys() -> None:
    program = zoo_capture("mlp").program
    linears = [kernel for kernel in program.kernels if kernel.op == "linear"]
    by_shape: dict[Any, set[str]] = {}
    for kernel in linears:
        by_shape.setdefault((kernel.inputs, kernel.outputs), set()).add(kernel.key)
    assert len(by_shape) < len(linears)
    assert all(len(keys) == 1 for keys in by_shape.values())


@pytest.mark.parametrize(
    ("module", "row", "op", "flops_per_row", "weight_bytes"),
    [
        (nn.Linear(8, 5), (8,), "linear", 2 * 8 * 5, 4 * (8 * 5 + 5)),
        (nn.Linear(8, 5, bias=False), (6, 8), "linear", 6 * 2 * 8 * 5, 4 * 8 * 5),
        (nn.Conv2d(4, 6, 3, padding=1), (4, 5, 5), "conv2d", 2 * (6 * 5 * 5) * (4 * 3 * 3), 4 * (6 * 4 * 9 + 6)),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5), "conv2d", 2 * (6 * 3 * 3) * (2 * 3 * 3), 4 * (6 * 2 * 9 + 6)),
        (nn.Conv1d(4, 6, 3, stride=2), (4, 9), "conv1d", 2 * (6 * 4) * (4 * 3), 4 * (6 * 4 * 3 + 6)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), "conv_transpose2d", 2 * 100 * (6 * 4), 4 * (4 * 6 * 4 + 6)),
        (nn.ReLU(), (7, 3), "relu", 21, 0),
    ],
    ids=str,
)  # fmt: skip
def test_costs_of_known_layers_are_exact(
    module: nn.Module, row: tuple[int, ...], op: str, flops_per_row: int, weight_bytes: int
) -> None:
    program = program_of(module, *draw((row,), 2, seed=0))
    (kernel,) = program.kernels
    assert (kernel.op, kernel.flops_per_row, kernel.weight_bytes) == (op, flops_per_row, weight_bytes)
    assert kernel.kind == {"linear": "gemm", "relu": "other"}.get(op, "conv")
    moved = 4 * sum(spec.size(1) for spec in (*program.inputs, *program.outputs))
    assert kernel.bytes_per_row == moved
    assert kernel.inputs[0].shape == (Rows(1), *row)
    assert program.flops(3) == 3 * flops_per_row


def test_attention_counts_both_products() -> None:
    module = sketch(lambda m, x: F.scaled_dot_product_attention(x, x, x), {})
    (kernel,) = program_of(module, *draw(((2, 6, 8),), 2, seed=0)).kernels
    assert kernel.flops_per_row == 2 * (2 * 6 * 6 * 8) * 2
