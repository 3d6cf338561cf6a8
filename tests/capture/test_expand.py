"""Graphs are the same as `run_decompositions` makes them, or they are left to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, default_decompositions
from torch.utils import _pytree as pytree

from spacetime.capture import export
from spacetime.capture.expand import NotExpandable, expand
from spacetime.capture.program import build_program
from spacetime.capture.rows import prove
from spacetime.ir import Kernel, Program
from spacetime.zoo import STANDARD, build, example
from tests.capture.sketches import Part, draw, sketch

TABLE = export._decompositions()
SLOW = pytest.mark.slow
Inputs = tuple[Any, ...]
VECTORS = draw(((6, 8),), 3, seed=0)
LINEAR: dict[str, Part] = {"l": lambda: nn.Linear(8, 8)}
IMAGES = draw(((4, 8, 8),), 3, seed=0)


def traced(module: nn.Module, inputs: Inputs) -> ExportedProgram:
    """As torch.export leaves it."""
    rows = Dim("rows", min=1, max=export.MAX_ROWS)
    dynamic = pytree.tree_map(lambda _: {0: rows}, export._by_parameter(module, inputs))
    with torch.no_grad(), export._quiet():
        return torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic, strict=False)


def program_of(traced: ExportedProgram, inputs: Inputs) -> Program:
    exported = export._normalise(traced, pytree.tree_flatten(inputs)[1])
    return build_program(exported, prove(exported)).program


def of_torch() -> dict[Any, Any]:
    """What torch makes of the operations that we decompose; but of LSTMs, which 2.11 gets wrong."""
    table = default_decompositions()
    return {op: ours if op is torch.ops.aten.lstm.input else table[op] for op, ours in TABLE.items()}


def of_modules(kernels: tuple[Kernel, ...], module: nn.Module) -> list[Kernel]:
    """Without the names of those that no module has called: torch numbers them by what it has thrown away."""
    paths = dict(module.named_modules())
    return [kernel if kernel.name in paths else replace(kernel, name="") for kernel in kernels]


def compare(module: nn.Module, inputs: Inputs, *, by_name: bool = True) -> None:
    """What we make of a graph with what torch makes of it."""
    before = traced(module, inputs)
    with torch.no_grad(), export._quiet():
        theirs = program_of(before.run_decompositions(of_torch()), inputs)
        expand(before.graph, TABLE)
    ours = program_of(before, inputs)
    assert of_modules(ours.kernels, module) == of_modules(theirs.kernels, module)
    assert (ours.inputs, ours.outputs, ours.weights) == (theirs.inputs, theirs.outputs, theirs.weights)
    assert not by_name or ours.signature == theirs.signature


QUICK = ("bert", "gru_cell", "lstm_cell", "recommender", "tied_lm")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in STANDARD])
def test_the_zoo_s_programs_are_those_of_torch(name: str) -> None:
    if name == "lstm" and torch.__version__ < (2, 12):
        pytest.skip("this torch notes a wrong shape of its final states: left to run_decompositions")
    compare(build(name), example(name))


def without_gradients(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = module.l(x)
    return found


SKETCHES: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, Part], Inputs]] = {
    "reshape of rows": (lambda m, x: m.l(x.flatten(0, 1)).view(-1, 6, 8), LINEAR, VECTORS),
    "no operation": (lambda m, x: x.contiguous().to(torch.float32).reshape(-1, 6, 8) + 1, {}, VECTORS),
    "its input": (lambda m, x: (x.contiguous(), x.float()), {}, VECTORS),
    "einsum": (lambda m, x: torch.einsum("bij,bkj->bik", x, x), {}, VECTORS),
    "repeated": (lambda m, x: x.repeat_interleave(2, dim=1), {}, VECTORS),
    "constants": (lambda m, x: x + torch.arange(6).reshape(-1, 1).to(x.dtype), {}, VECTORS),
    "twice": (lambda m, x: torch.cat([x.flatten(1), x.flatten(1)], 1), {}, VECTORS),
    "unread": (lambda m, x: (x.flatten(1), x + 1)[1], {}, VECTORS),
    "attention": (lambda m, x: m.a(x, x, x)[0], {"a": lambda: nn.MultiheadAttention(8, 2, batch_first=True)}, VECTORS),
    "norm": (lambda m, x: m.n(x).flatten(1), {"n": lambda: nn.BatchNorm2d(4)}, IMAGES),
    "recurrent": (lambda m, x: m.r(x)[0], {"r": lambda: nn.RNN(8, 5, 2, batch_first=True)}, VECTORS),
    "cell": (lambda m, x: m.r(x[:, 0], x[:, 1]), {"r": lambda: nn.RNNCell(8, 8, nonlinearity="relu")}, VECTORS),
    "cell of no states": (lambda m, x: m.r(x[:, 0]), {"r": lambda: nn.LSTMCell(8, 5)}, VECTORS),
    "gradients off": (without_gradients, LINEAR, VECTORS),
    "nearest": (lambda m, x: F.interpolate(x, scale_factor=2.0), {}, IMAGES),
    "bilinear": (lambda m, x: F.interpolate(x, size=(5, 5), mode="bilinear"), {}, IMAGES),
}


@pytest.mark.parametrize("name", SKETCHES)
def test_programs_are_those_of_torch(name: str) -> None:
    function, parts, inputs = SKETCHES[name]
    compare(sketch(function, parts), inputs)


def test_sizes_are_multiplied_once() -> None:
    """The kernels are those of torch; it keeps products on the way to a size, and some that nobody reads."""

    def windows(module: Any, x: Tensor) -> Tensor:
        apart = x.view(x.shape[0], 4, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5)
        merged: Tensor = module.l(apart.flatten(0, 2)).flatten(1)
        return merged.view(x.shape[0], -1)

    compare(sketch(windows, {"l": lambda: nn.Linear(4, 4)}), IMAGES, by_name=False)


def residual(module: Any, x: Tensor) -> Tensor:
    y = module.l(x)
    y += x
    z = F.relu(y, inplace=True)
    return y * z


def gated(module: Any, x: Tensor) -> Tensor:
    y: Tensor = module.l(x)
    return y.mul_(y.sigmoid()).masked_fill_(x > 1, 0.5)


@pytest.mark.parametrize(
    "function",
    [residual, gated, lambda m, x: m.l(x) * torch.tensor([1.0, 2.0]).repeat(4)],
    ids="residual gated literal".split(),
)
def test_writes_to_memory_of_no_other_name_are_answers(function: Callable[[Any, Tensor], Tensor]) -> None:
    compare(sketch(function, LINEAR), VECTORS)


def written_under_a_view(module: Any, x: Tensor) -> Tensor:
    y = module.l(x)
    first = y[:, 0]
    y.add_(1)
    return y * 2 + first.unsqueeze(1)


def written_through_a_transposition(module: Any, x: Tensor) -> Tensor:
    y = module.l(x)
    turned = torch.einsum("bij->bji", y)
    turned.add_(1)
    return y * 2 + turned.transpose(1, 2)


def written_when_cast(module: Any, x: Tensor) -> Tensor:
    y: Tensor = module.l(x)
    return y.add_(x.double())


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (written_under_a_view, "writes to what has other readers"),
        (written_through_a_transposition, "writes to what has other readers"),
        (written_when_cast, "of another kind"),
        (lambda m, x: m.l(x).view(-1).relu_().view(-1, 6, 8), "writes to what has other readers"),
        (lambda m, x: F.cosine_similarity(x, x + 1, dim=-1), "writes in place"),
    ],
    ids="under_a_view transposed cast view composite".split(),
)
def test_what_takes_more_is_left_as_it_is(function: Callable[[Any, Tensor], Tensor], reason: str) -> None:
    before = traced(sketch(function, LINEAR), VECTORS).graph
    text = str(before)
    with pytest.raises(NotExpandable, match=reason):
        expand(before, TABLE)
    assert str(before) == text


def test_a_module_that_takes_more_is_exported_all_the_same() -> None:
    module = sketch(lambda m, x: F.cosine_similarity(m.l(x).flatten(2), x, dim=-1), LINEAR)
    exported = export.export(module, VECTORS)
    names = {str(node.target) for node in exported.graph.nodes}
    assert "aten.clamp_min.Tensor" in names and "aten.flatten.using_ints" not in names
