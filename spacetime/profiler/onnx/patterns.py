"""How older opsets spell LayerNorm, GELU, SiLU and Hardswish. Used by profiler/onnx/ only.

Every function looks at a graph from one node and answers with the last node of its chain, what to put there, the
inputs and the attributes; None where the chain is another. Values inside the chain have no other reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from spacetime.profiler.onnx.graph import Graph, Node, Numbers

Found = tuple[Node, str, tuple[str, ...], Mapping[str, Any]] | None
Find = Callable[[Graph, Node], Found]


class Look:
    """A graph with its readers and producers at hand."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.readers = graph.readers()
        self.producers = graph.producers()

    def only_reader(self, node: Node) -> Node | None:
        """The node behind, if it alone reads what this one writes."""
        after = self.readers.get(node.outputs[0], [])
        same = len(after) == 1 and node.outputs[0] not in self.graph.outputs
        return after[0] if same else None

    def next(self, node: Node | None, op: str) -> Node | None:
        after = None if node is None else self.only_reader(node)
        return after if after is not None and after.op == op else None

    def is_number(self, name: str, wanted: float) -> bool:
        number = self.number(name)
        return number is not None and math.isclose(number, wanted, rel_tol=1e-5)

    def number(self, name: str) -> float | None:
        value = self.graph.constants.get(name)
        return value.values[0] if isinstance(value, Numbers) and len(value.values) == 1 else None

    def other(self, node: Node, name: str) -> str:
        """The other operand."""
        return node.inputs[1] if node.inputs[0] == name else node.inputs[0]


def _gated(graph: Graph, start: Node) -> Found:
    """x * sigmoid(x), x * hardsigmoid(x)."""
    if start.op not in ("Sigmoid", "HardSigmoid"):
        return None
    look = Look(graph)
    times = look.next(start, "Mul")
    if times is None or set(times.inputs) != {start.inputs[0], start.outputs[0]}:
        return None
    if start.op == "Sigmoid":
        return times, "Silu", start.inputs, {}
    usual = math.isclose(start.attribute("alpha", 0.2), 1 / 6, rel_tol=1e-5) and start.attribute("beta", 0.5) == 0.5
    return (times, "HardSwish", start.inputs, {}) if usual else None


def _gelu(graph: Graph, start: Node) -> Found:
    """x * (1 + erf(x / sqrt(2))) * 0.5, the factors in any order."""
    if start.op != "Erf":
        return None
    look = Look(graph)
    inner = look.producers.get(start.inputs[0])
    if inner is None or look.only_reader(inner) is not start:
        return None
    x, scale = inner.inputs
    fits = inner.op == "Div" and look.is_number(scale, math.sqrt(2))
    if inner.op == "Mul":
        x, scale = (x, scale) if look.number(scale) is not None else (scale, x)
        fits = look.is_number(scale, math.sqrt(0.5))
    plus = look.next(start, "Add")
    if not fits or plus is None or not look.is_number(look.other(plus, start.outputs[0]), 1.0):
        return None
    first = look.next(plus, "Mul")
    last = look.next(first, "Mul")
    if first is None or last is None:
        return None
    factors = [look.other(first, plus.outputs[0]), look.other(last, first.outputs[0])]
    halves = [name for name in factors if look.is_number(name, 0.5)]
    return (last, "Gelu", (x,), {}) if len(halves) == 1 and x in factors else None


def _layer_norm(graph: Graph, start: Node) -> Found:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon), and the affine behind it if there is one."""
    if start.op != "Sub":
        return None
    look = Look(graph)
    x, centre = start.inputs
    mean = look.producers.get(centre)
    after = look.readers.get(start.outputs[0], [])
    power = next((node for node in after if node.op == "Pow"), None)
    divide = next((node for node in after if node.op == "Div"), None)
    if mean is None or not _is_last_mean(look, mean) or mean.inputs[0] != x or len(after) != 2:
        return None
    if power is None or divide is None or not look.is_number(power.inputs[1], 2.0):
        return None
    variance = look.next(power, "ReduceMean")
    plus = look.next(variance, "Add")
    root = look.next(plus, "Sqrt")
    if variance is None or plus is None or root is None or not _is_last_mean(look, variance):
        return None
    epsilon = look.number(look.other(plus, variance.outputs[0]))
    if look.only_reader(root) is not divide or divide.inputs != (start.outputs[0], root.outputs[0]) or epsilon is None:
        return None
    return _with_affine(look, divide, x, epsilon)


def _with_affine(look: Look, divide: Node, x: str, epsilon: float) -> Found:
    times = look.next(divide, "Mul")
    scale = "" if times is None else look.other(times, divide.outputs[0])
    plus = look.next(times, "Add") if _is_row(look, scale) else None
    shift = "" if plus is None or times is None else look.other(plus, times.outputs[0])
    if times is None or plus is None or not _is_row(look, shift):
        return None
    same = look.graph.constants[scale].shape == look.graph.constants[shift].shape  # type: ignore[union-attr]
    attributes = {"axis": -1, "epsilon": epsilon}
    return (plus, "LayerNormalization", (x, scale, shift), attributes) if same else None


def _is_row(look: Look, name: str) -> bool:
    value = look.graph.constants.get(name)
    return isinstance(value, Tensor) and value.ndim == 1


def _is_last_mean(look: Look, node: Node) -> bool:
    axes: Any = node.attribute("axes")
    if len(node.inputs) > 1:
        value = look.graph.constants.get(node.inputs[1])
        axes = list(value.values) if isinstance(value, Numbers) else None
    return node.op == "ReduceMean" and axes == [-1] and bool(node.attribute("keepdims", 1))


FIND: tuple[Find, ...] = (_layer_norm, _gelu, _gated)
