"""Every function that whole programs may have, beside PyTorch's, over all of its domain and what lies outside."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spacetime.kernels.vector.host import Host, host
from spacetime.kernels.whole.compiled import _compile, compiled
from spacetime.kernels.whole.functions import FUNCTIONS
from spacetime.kernels.whole.script import Along, Buffer, Operation, Place, Pointwise, Script, Stage, View
from tests.kernels.hosts import on_every_host

pytestmark = pytest.mark.skipif(host() is None, reason="the processor has no fused multiply-add")

REFERENCES: dict[str, Callable[..., Tensor]] = {
    "copy": torch.clone,
    "add": torch.add,
    "sub": torch.sub,
    "rsub": torch.rsub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "abs": torch.abs,
    "square": torch.square,
    "pow": lambda *x: x[0] ** len(x),
    "reciprocal": torch.reciprocal,
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
ABSOLUTE = {"gelu": 1e-7}  # 1 + erf(x) cancels far below zero, in PyTorch as well
TWO = ("add", "sub", "rsub", "mul", "div", "maximum", "minimum")
REPEATED = {"pow": 3}
INFINITY, NAN = float("inf"), float("nan")


def everywhere() -> Tensor:
    """Dense near zero, sparse far away, and everything special; no multiple of a register."""
    powers = torch.logspace(-30, 30, 401, base=2.0)
    steps = torch.linspace(-105, 105, 1009)
    return torch.cat([powers, -powers, steps, torch.tensor([0.0, -0.0, 3e38, -3e38, INFINITY, -INFINITY, NAN])])


def run(on: Host, stage: Callable[[View, View], Stage], *inputs: Tensor) -> Tensor:
    """A program of one stage, on one row."""
    size = inputs[0].numel()
    views = [View(Buffer(Place.INPUT, index, size), 0, (size,), (1,)) for index in range(len(inputs))]
    result = torch.full((size,), NAN)
    to = View(Buffer(Place.OUTPUT, 0, size), 0, (size,), (1,))
    script = Script((size,) * len(inputs), ((size,),), (), (stage(*views, to),), 0)
    table = torch.tensor([1, 0, 0, *[each.data_ptr() for each in inputs], result.data_ptr()])
    compiled(on, script)(1, 1, 0, table.data_ptr(), 0)
    return result


def operation(name: str, *views: View) -> Pointwise:
    *given, to = views
    arguments = tuple(given) if name != "hardtanh" else (*given, -1.0, 1.0)
    return Pointwise(to.shape, (Operation(name, arguments),), ((0, to),))


def test_every_function_has_a_reference() -> None:
    assert REFERENCES.keys() == FUNCTIONS.keys()


@on_every_host
@pytest.mark.parametrize("name", REFERENCES)
def test_pointwise(on: Host, name: str) -> None:
    x = everywhere()
    inputs = (x, x.flip(0).roll(17)) if name in TWO else (x,) * REPEATED.get(name, 1)
    found = run(on, partial(operation, name), *inputs)
    expected = REFERENCES[name](*[each.double() for each in inputs]).float()
    torch.testing.assert_close(found, expected, rtol=4e-6, atol=ABSOLUTE.get(name, 1e-36), equal_nan=True)


@on_every_host
@pytest.mark.parametrize("size", [1, 3, 16, 50, 257])
def test_along(on: Host, size: int) -> None:
    for seed, scale in enumerate((1.0, 30.0, 1e-3)):
        x = scale * torch.randn(size, generator=torch.Generator().manual_seed(seed)) + scale
        norm = run(on, lambda view, to: Along("layer_norm", view, to, 1, 0, size, 1e-5), x)
        torch.testing.assert_close(norm, F.layer_norm(x.double(), (size,)).float(), rtol=1e-5, atol=1e-5)
        share = run(on, lambda view, to: Along("softmax", view, to, 1, 0, size), x)
        torch.testing.assert_close(share, torch.softmax(x.double(), 0).float(), rtol=4e-6, atol=1e-30)


@on_every_host
def test_softmax_of_what_is_no_number(on: Host) -> None:
    for x in (torch.tensor([1.0, NAN, 2.0]), torch.tensor([1.0, INFINITY]), torch.tensor([-INFINITY] * 20)):
        share = run(on, lambda view, to: Along("softmax", view, to, 1, 0, view.numel), x)
        torch.testing.assert_close(share, torch.softmax(x, 0), equal_nan=True)
    x = torch.tensor([-INFINITY, 1.0, 2.0])
    share = run(on, lambda view, to: Along("softmax", view, to, 1, 0, view.numel), x)
    torch.testing.assert_close(share, torch.softmax(x, 0))


def test_functions_that_nobody_uses_are_not_kept_for_ever() -> None:
    on = host()
    assert on is not None
    place = View(Buffer(Place.INPUT, 0, 77), 0, (77,), (1,)), View(Buffer(Place.OUTPUT, 0, 77), 0, (77,), (1,))
    script = Script((77,), ((77,),), (), (operation("relu", *place),), 0)
    function: Any = compiled(on, script)
    code = weakref.ref(function.engine)
    assert compiled(on, script) is function and 0 < (_compile.cache_info().maxsize or 0) < 1000
    _compile.cache_clear()
    assert code() is not None, "who has the function may call it"
    del function
    gc.collect()
    assert code() is None


@pytest.mark.parametrize("backwards", [0, 1])
def test_a_thread_takes_its_requests_in_order_or_the_last_one_first(backwards: int) -> None:
    on = host()
    assert on is not None
    place = View(Buffer(Place.INPUT, 0, 7), 0, (7,), (1,)), View(Buffer(Place.OUTPUT, 0, 7), 0, (7,), (1,))
    requests = [torch.full((7,), number) for number in (1.0, 2.0, 3.0)]
    result = torch.full((7,), NAN)  # of all of them: the one that comes last is found
    table = torch.tensor([[1, 0, 0, each.data_ptr(), result.data_ptr()] for each in requests])
    compiled(on, Script((7,), ((7,),), (), (operation("relu", *place),), 0))(3, 1, backwards, table.data_ptr(), 0)
    torch.testing.assert_close(result, requests[0 if backwards else -1])
