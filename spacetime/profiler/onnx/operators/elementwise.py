"""Operations on every entry by itself: arithmetic, comparisons, activations. Used by profiler/onnx/ only."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spacetime.profiler.onnx.graph import Node, Numbers, Unsupported, Value
from spacetime.profiler.onnx.registry import op

FIRST_AND_SECOND = (0, 1)


Function = Callable[..., Any]
Table = tuple[tuple[str, tuple[int, ...], Function], ...]


def _register(table: Table, scalars: tuple[int, ...] = ()) -> None:
    for name, versions, function in table:
        op(name, *versions, scalars=scalars)(_ignoring_node(function))


def _ignoring_node(function: Function) -> Function:
    return lambda node, *inputs: function(*inputs)


_UNARY: Table = (
    ("Abs", (13,), torch.abs),
    ("Neg", (13,), torch.neg),
    ("Sqrt", (13,), torch.sqrt),
    ("Exp", (13,), torch.exp),
    ("Log", (13,), torch.log),
    ("Reciprocal", (13,), torch.reciprocal),
    ("Floor", (13,), torch.floor),
    ("Ceil", (13,), torch.ceil),
    ("Round", (11, 22), torch.round),  # both round halves to even
    ("Sign", (13,), torch.sign),
    ("Erf", (13,), torch.erf),
    ("Sin", (7, 22), torch.sin),
    ("Cos", (7, 22), torch.cos),
    ("Tan", (7, 22), torch.tan),
    ("Asin", (7, 22), torch.asin),
    ("Acos", (7, 22), torch.acos),
    ("Atan", (7, 22), torch.atan),
    ("Sinh", (9, 22), torch.sinh),
    ("Cosh", (9, 22), torch.cosh),
    ("Asinh", (9, 22), torch.asinh),
    ("Acosh", (9, 22), torch.acosh),
    ("Atanh", (9, 22), torch.atanh),
    ("IsNaN", (13, 20), torch.isnan),
    ("Not", (1,), torch.logical_not),
    ("BitwiseNot", (18,), torch.bitwise_not),
    ("Relu", (13, 14), functional.relu),
    ("Sigmoid", (13,), torch.sigmoid),
    ("Tanh", (13,), torch.tanh),
    ("HardSwish", (14, 22), functional.hardswish),
    ("Mish", (18, 22), functional.mish),
    ("Softplus", (1, 22), functional.softplus),
    ("Softsign", (1, 22), functional.softsign),
)


def _divide(x: Any, y: Any) -> Any:
    """Integers are divided towards zero."""
    if _is_floating(x) or _is_floating(y):
        return x / y
    return torch.div(_tensor(x), _tensor(y), rounding_mode="trunc")


def _is_floating(x: Any) -> bool:
    return x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, float)


def _tensor(x: Any) -> Any:
    return x if isinstance(x, Tensor) else torch.tensor(x)


_BINARY: Table = (
    ("Add", (13, 14), operator.add),
    ("Sub", (13, 14), operator.sub),
    ("Mul", (13, 14), operator.mul),
    ("Div", (13, 14), _divide),
    ("Equal", (13, 19), operator.eq),
    ("Greater", (13,), operator.gt),
    ("Less", (13,), operator.lt),
    ("GreaterOrEqual", (12, 16), operator.ge),
    ("LessOrEqual", (12, 16), operator.le),
)

_LOGICAL: Table = (
    ("And", (7,), torch.logical_and),
    ("Or", (7,), torch.logical_or),
    ("Xor", (7,), torch.logical_xor),
    ("BitwiseAnd", (18,), torch.bitwise_and),
    ("BitwiseOr", (18,), torch.bitwise_or),
    ("BitwiseXor", (18,), torch.bitwise_xor),
)

_register(_UNARY)
_register(_BINARY, scalars=FIRST_AND_SECOND)
_register(_LOGICAL)


@op("Pow", 13, 15, scalars=FIRST_AND_SECOND)
def _pow(node: Node, x: Any, exponent: Any) -> Tensor:
    """The result has the type of the base."""
    result = torch.pow(x, exponent)
    return result.to(x.dtype) if isinstance(x, Tensor) and result.dtype != x.dtype else result


@op("Mod", 13, 28, scalars=(1,))
def _mod(node: Node, x: Tensor, y: Any) -> Tensor:
    return torch.fmod(x, y) if node.attribute("fmod", 0) else torch.remainder(x, y)


def _larger(x: Any, y: Any) -> Any:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return torch.maximum(x, y)
    return torch.clamp(x, min=y) if isinstance(x, Tensor) else torch.clamp(y, min=x)


def _smaller(x: Any, y: Any) -> Any:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return torch.minimum(x, y)
    return torch.clamp(x, max=y) if isinstance(x, Tensor) else torch.clamp(y, max=x)


@op("Max", 13)
def _max(node: Node, *inputs: Tensor) -> Any:
    return reduce(_larger, inputs)


@op("Min", 13)
def _min(node: Node, *inputs: Tensor) -> Any:
    return reduce(_smaller, inputs)


@op("Sum", 13)
def _sum(node: Node, *inputs: Tensor) -> Any:
    return reduce(operator.add, inputs)


@op("Mean", 13)
def _mean(node: Node, *inputs: Tensor) -> Any:
    return reduce(operator.add, inputs) / len(inputs)


@op("IsInf", 10, 20)
def _is_inf(node: Node, x: Tensor) -> Tensor:
    positive, negative = node.attribute("detect_positive", 1), node.attribute("detect_negative", 1)
    if positive and negative:
        return torch.isinf(x)
    if not positive and not negative:
        return torch.zeros_like(x, dtype=torch.bool)
    return x == (math.inf if positive else -math.inf)


@op("Where", 9, 16, either=(1, 2))
def _where(node: Node, condition: Tensor, x: Value, y: Value) -> Tensor:
    """A number beside a tensor takes its type; of two numbers, one has to bring it."""
    if isinstance(x, Numbers) and isinstance(y, Numbers):
        return torch.where(condition, x.tensor(condition.device), y.tensor(condition.device))
    return torch.where(condition, _number(x, condition), _number(y, condition))


def _number(value: Value, condition: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value
    return value.scalar() if value.is_scalar and value.are_known else value.tensor(condition.device)


@op("Clip", 13, scalars=(1, 2))
def _clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """The forms that torch modules have: relu6 and hardtanh."""
    if isinstance(low, float) and isinstance(high, float) and low <= high:
        return functional.relu6(x) if (low, high) == (0.0, 6.0) else functional.hardtanh(x, low, high)
    if low is None and high is None:
        return x
    if isinstance(low, Tensor) != isinstance(high, Tensor) and low is not None and high is not None:
        return torch.clamp(torch.clamp(x, min=low), max=high)
    return torch.clamp(x, low, high)


@op("Shrink", 9)
def _shrink(node: Node, x: Tensor) -> Tensor:
    bound, bias = node.attribute("lambd", 0.5), node.attribute("bias", 0.0)
    outside = torch.where(x > bound, x - bias, torch.zeros_like(x))
    return torch.where(x < -bound, x + bias, outside)


@op("LeakyRelu", 6, 16)
def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.attribute("alpha", 0.01))


@op("PRelu", 9, 16)
def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """ONNX broadcasts the slope as in arithmetic; torch has one entry for each channel."""
    if x.ndim >= 2 and slope.numel() in (1, x.shape[1]) and (slope.numel() == 1 or slope.ndim == x.ndim - 1):
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, x * slope)


@op("Elu", 6, 22)
def _elu(node: Node, x: Tensor) -> Tensor:
    return functional.elu(x, node.attribute("alpha", 1.0))


@op("Selu", 6, 22)
def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.attribute("alpha", 1.6732632423543772), node.attribute("gamma", 1.0507009873554805)
    return torch.where(x > 0, gamma * x, gamma * alpha * torch.expm1(x))


@op("Celu", 12, 28)
def _celu(node: Node, x: Tensor) -> Tensor:
    return functional.celu(x, node.attribute("alpha", 1.0))


@op("Gelu", 20)
def _gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.attribute("approximate", "none"))


@op("Swish", 24)
def _swish(node: Node, x: Tensor) -> Tensor:
    alpha = node.attribute("alpha", 1.0)
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@op("HardSigmoid", 6, 22)
def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@op("ThresholdedRelu", 10, 22)
def _thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return functional.threshold(x, node.attribute("alpha", 1.0), 0.0)


@op("Softmax", 13)
def _softmax(node: Node, x: Tensor) -> Tensor:
    return torch.softmax(x, node.attribute("axis", -1))


@op("LogSoftmax", 13)
def _log_softmax(node: Node, x: Tensor) -> Tensor:
    return torch.log_softmax(x, node.attribute("axis", -1))


@op("Dropout", 13, 22, plain=(1, 2))
def _dropout(node: Node, x: Tensor, ratio: Any = None, training: Any = None) -> tuple[Tensor, ...]:
    if training is not None and training.scalar():
        raise Unsupported("training_mode is on; export the module in eval mode")
    return (x, torch.ones_like(x, dtype=torch.bool)) if any(node.outputs[1:]) else (x,)


@op("Silu", domain="spacetime")
def _silu(node: Node, x: Tensor) -> Tensor:
    return functional.silu(x)
