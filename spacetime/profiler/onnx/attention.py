"""How files before opset 23 spell attention: two products around a softmax. Used by profiler/onnx/rewrite.py only.

    (query * a) @ (keys * b) * c + mask -> softmax over the last axis -> @ values

Exporters put the scale on the query and the keys, half of it each, or behind the first product; they have the keys
transposed in one step with the heads, or in one of their own. torch gives rows that are wholly masked zeros where a
softmax gives NaN; newer files spell that out (Where of IsNaN), and files that do not are attention only where the mask
cannot hold -inf. Values inside the chain have no other reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from spacetime.profiler.onnx.graph import Graph, Node, Numbers, Value
from spacetime.profiler.onnx.patterns import Found, Look

OP = "ScaledDotProduct"

# Of finite inputs these make finite values. Add does not: two masks of the lowest number add up to -inf.
_KEEP_FIRST = frozenset("Cast Concat Expand Gather Identity Reshape Slice Squeeze Transpose Unsqueeze".split())
_KEEP_ALL = frozenset(("Mul", "Neg", "Sub"))


def attention(graph: Graph, start: Node, values: Mapping[str, Value]) -> Found:
    """From its softmax; `values` are what the graph's names stand for, without data where it depends on inputs."""
    if start.op != "Softmax" or start.domain:
        return None
    look = _Typed(graph, values)
    last, is_guarded = _second_product(look, start)
    scores = _scores(look, start)
    if last is None or scores is None or not look.is_last_axis(start):
        return None
    product, scale, mask = scores
    query, scale_of_query = _unscaled(look, product, product.inputs[0])
    keys, scale_of_keys = _unscaled(look, product, product.inputs[1])
    scale *= scale_of_query * scale_of_keys
    inputs = (query, keys, last.inputs[1], *([mask] if mask else []))
    if scale <= 0 or not _fit(look, *inputs) or not (is_guarded or look.always_shows(mask)):
        return None
    return last, OP, inputs, {"scale": scale}


class _Typed(Look):
    """A look at a graph whose shapes and types are known."""

    def __init__(self, graph: Graph, values: Mapping[str, Value]) -> None:
        super().__init__(graph)
        self.values = values

    def tensor(self, name: str) -> Tensor | None:
        value = self.values.get(name)
        return value if isinstance(value, Tensor) else None

    def single(self, name: str) -> float | None:
        """One number, whether it is a scalar or a tensor of one element."""
        value = self.graph.constants.get(name)
        if isinstance(value, Tensor) and value.numel() == 1 and value.ndim <= 1:
            return float(value)
        return self.number(name)

    def is_last_axis(self, node: Node) -> bool:
        x = self.tensor(node.inputs[0])
        axis: int = node.attribute("axis", -1)
        return axis == -1 or (x is not None and axis == x.ndim - 1)

    def always_shows(self, mask: str) -> bool:
        """Does every row keep a key, whatever the inputs are?"""
        constant = self.graph.constants.get(mask)
        if isinstance(constant, Tensor) and constant.ndim:
            return bool((constant < torch.inf).all()) and bool((constant > -torch.inf).any(dim=-1).all())
        return not mask or self.is_finite(mask)

    def is_finite(self, name: str) -> bool:
        """Can it never be -inf? Overflows of what no mask has are not thought of."""
        constant = self.graph.constants.get(name)
        if isinstance(constant, Numbers):
            return constant.are_known and bool(torch.isfinite(constant.tensor()).all())
        if isinstance(constant, Tensor):
            return bool(torch.isfinite(constant).all())
        value = self.tensor(name)
        if value is not None and not value.is_floating_point():
            return True
        node = self.producers.get(name)
        if node is None:
            return False
        if node.op == "Where":
            return self.is_finite(node.inputs[1]) and self.is_finite(node.inputs[2])
        if node.op in _KEEP_FIRST:
            return all(map(self.is_finite, node.inputs if node.op == "Concat" else node.inputs[:1]))
        return node.op in _KEEP_ALL and all(map(self.is_finite, node.inputs))


def _second_product(look: _Typed, softmax: Node) -> tuple[Node | None, bool]:
    """The product of the weights with the values, and whether NaN among them become zeros before it."""
    weights, is_guarded = softmax, False
    after = look.readers.get(softmax.outputs[0], [])
    test = next((node for node in after if node.op == "IsNaN"), None)
    if test is not None and len(after) == 2 and softmax.outputs[0] not in look.graph.outputs:
        where = look.next(test, "Where")
        expected = (test.outputs[0], softmax.outputs[0])
        if where is None or where not in after or (where.inputs[0], where.inputs[2]) != expected:
            return None, False
        if look.single(where.inputs[1]) != 0.0:
            return None, False
        weights, is_guarded = where, True
    cast = look.next(weights, "Cast")
    if cast is not None and _same_type(look, weights.outputs[0], cast.outputs[0]):
        weights = cast
    last = look.next(weights, "MatMul")
    is_left = last is not None and last.inputs[0] == weights.outputs[0] and last.inputs[1] != weights.outputs[0]
    return (last if is_left else None), is_guarded


def _scores(look: _Typed, softmax: Node) -> tuple[Node, float, str] | None:
    """The product behind the scores, what it is scaled by, and the mask that is added ("": none)."""
    (name,) = softmax.inputs
    plus = look.producers.get(name)
    if plus is None or plus.op != "Add" or look.only_reader(plus) is not softmax:
        found = _product(look, softmax, name)
        return None if found is None else (*found, "")
    sides = [(_product(look, plus, name), look.other(plus, name)) for name in plus.inputs]
    products = [(*found, mask) for found, mask in sides if found is not None]
    return products[0] if len(products) == 1 else None


def _product(look: _Typed, reader: Node, name: str) -> tuple[Node, float] | None:
    """The product that only the reader has, and its scale if there is one."""
    inner, scale = _unscaled(look, reader, name)
    node = look.producers.get(inner)
    behind = reader if inner == name else look.producers[name]
    if node is None or node.op != "MatMul" or node.domain or look.only_reader(node) is not behind:
        return None
    return node, scale


def _unscaled(look: _Typed, reader: Node, name: str) -> tuple[str, float]:
    """What stands before a scale by one number that only the reader has, and that number."""
    node = look.producers.get(name)
    if node is None or node.op not in ("Mul", "Div") or look.only_reader(node) is not reader:
        return name, 1.0
    x, factor = node.inputs
    if node.op == "Mul" and look.single(factor) is None:
        x, factor = factor, x
    number = look.single(factor)
    if number is None or not _same_type(look, x, name):
        return name, 1.0
    if node.op == "Mul":
        return x, number
    return (x, 1 / number) if number else (name, 1.0)


def _same_type(look: _Typed, one: str, other: str) -> bool:
    first, second = look.tensor(one), look.tensor(other)
    return first is not None and second is not None and first.dtype == second.dtype


def _fit(look: _Typed, query: str, keys: str, value: str, mask: str = "") -> bool:
    """One type; the same rows and heads for all; a mask that does not make the scores larger."""
    tensors = [look.tensor(name) for name in (query, keys, value)]
    q, k, v = tensors
    if q is None or k is None or v is None or not (q.ndim == k.ndim == v.ndim >= 3):
        return False
    alike = q.is_floating_point() and q.dtype == k.dtype == v.dtype
    if not alike or not all(map(_are_equal, (*q.shape[:-2], *q.shape[:-2]), (*k.shape[:-2], *v.shape[:-2]))):
        return False
    added = look.tensor(mask)
    if not mask or added is None:
        return not mask
    scores = (*q.shape[:-1], k.shape[-1])
    inner = zip(reversed(added.shape), reversed(scores), strict=False)
    fits = all(_are_equal(size, 1) or _are_equal(size, wanted) for size, wanted in inner)
    return fits and added.dtype == q.dtype and added.ndim <= q.ndim


def _are_equal(one: Any, other: Any) -> bool:
    return bool(statically_known_true(one == other))
