"""Nodes that PyTorch writes as one call become that call again. Used by profiler/onnx/ only.

MatMul + Add is nn.Linear, a chain of nine nodes is LayerNorm, two products around a softmax are attention, GatherND of
joined columns is indexing. A model then launches the kernels that its module did, and its rows can be followed. Every
rewrite keeps the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from spacetime.profiler.onnx.attention import attention
from spacetime.profiler.onnx.fold import Folded
from spacetime.profiler.onnx.graph import Graph, Node, Numbers, Value
from spacetime.profiler.onnx.operators.recurrent import is_torch_like, torch_weights
from spacetime.profiler.onnx.patterns import FIND, Find
from spacetime.profiler.onnx.registry import INTERNAL


def rewrite(folded: Folded) -> Graph:
    graph = _flat_indices(folded).pruned()
    for change in (_products, _biases, _recurrences, _columns, _chains):
        graph = change(graph).pruned()
    return _chains(graph, (partial(attention, values=folded.values),))


def internal(node: Node, op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attributes: Any) -> Node:
    """`op` of the importer's own in place of `node`, under its name."""
    return replace(node, op=op, domain=INTERNAL, version=0, inputs=inputs, outputs=outputs, attributes=attributes)


def _each(graph: Graph, change: Callable[[Node, dict[str, Value]], Node]) -> Graph:
    constants = dict(graph.constants)
    nodes = tuple(change(node, constants) for node in graph.nodes)
    return replace(graph, nodes=nodes, constants=constants)


# -- linear layers ----------------------------------------------------------------------------------------------------


def _products(graph: Graph) -> Graph:
    """MatMul and Gemm with a constant matrix -> Linear, its weight stored as nn.Linear stores it."""

    def change(node: Node, constants: dict[str, Value]) -> Node:
        if node.op == "MatMul" and not node.domain:
            return _product(node, constants, transposed=False)
        if node.op == "Gemm" and not node.domain and not node.attribute("transA", 0):
            return _gemm(node, constants)
        return node

    return _each(graph, change)


def _matrix(constants: dict[str, Value], name: str) -> Tensor | None:
    value = constants.get(name)
    is_weight = isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()
    return value if is_weight and isinstance(value, Tensor) else None


def _product(node: Node, constants: dict[str, Value], transposed: bool, bias: str = "") -> Node:
    matrix = _matrix(constants, node.inputs[1])
    if matrix is None or node.inputs[0] in constants:
        return node
    name = node.inputs[1]
    if not transposed:
        name = f"{name} transposed"
        # A view of a transposed tensor is the tensor itself: tied weights stay tied.
        constants.setdefault(name, matrix.t().contiguous())
    return internal(node, "Linear", (node.inputs[0], name, bias) if bias else (node.inputs[0], name), node.outputs)


def _gemm(node: Node, constants: dict[str, Value]) -> Node:
    matrix = _matrix(constants, node.inputs[1])
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    transposed = bool(node.attribute("transB", 0))
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if matrix is None or alpha != 1.0:
        return node
    if bias:
        value = constants.get(bias)
        size = matrix.shape[0 if transposed else 1]
        if beta != 1.0 or not isinstance(value, Tensor) or value.shape not in ((size,), (1, size)):
            return node
        if value.ndim == 2:
            bias = f"{bias} in one row"
            constants[bias] = value.reshape(-1)
    return _product(node, constants, transposed, bias)


def _biases(graph: Graph) -> Graph:
    """Linear + Add of a constant row -> Linear with a bias."""
    readers = graph.readers()
    joined: dict[int, Node] = {}
    gone: set[int] = set()
    for node in graph.nodes:
        if node.op != "Linear" or len(node.inputs) > 2 or node.outputs[0] in graph.outputs:
            continue
        after = readers.get(node.outputs[0], [])
        weight = graph.constants[node.inputs[1]]
        if len(after) != 1 or after[0].op != "Add" or not isinstance(weight, Tensor):
            continue
        (bias,) = [name for name in after[0].inputs if name != node.outputs[0]] or [""]
        value = graph.constants.get(bias)
        if isinstance(value, Tensor) and value.shape == (weight.shape[0],):
            joined[id(node)] = internal(node, "Linear", (*node.inputs, bias), after[0].outputs)
            gone.add(id(after[0]))
    nodes = tuple(joined.get(id(node), node) for node in graph.nodes if id(node) not in gone)
    return replace(graph, nodes=nodes)


# -- recurrences ------------------------------------------------------------------------------------------------------


def _recurrences(graph: Graph) -> Graph:
    """LSTM, GRU, RNN with constant weights -> torch's own, the gates in its order."""

    def change(node: Node, constants: dict[str, Value]) -> Node:
        if node.op not in ("LSTM", "GRU", "RNN") or node.domain:
            return node
        inputs = (*node.inputs, *[""] * (8 - len(node.inputs)))
        x, weight, recurrence, bias, _, hidden, memory, peepholes = inputs
        values = [constants.get(name) for name in (weight, recurrence, bias) if name]
        if not is_torch_like(node, bool(peepholes)) or not all(isinstance(value, Tensor) for value in values):
            return node
        tensors: list[Any] = values if bias else [*values, None]
        names = []
        for index, tensor in enumerate(torch_weights(node, *tensors)):
            names.append(f"{weight} for torch {index}")
            constants.setdefault(names[-1], tensor)
        attributes = {**node.attributes, "kind": node.op}
        return internal(node, "TorchRecurrence", (x, hidden, memory, *names), node.outputs, **attributes)

    return _each(graph, change)


# -- indexing ---------------------------------------------------------------------------------------------------------


def _columns(graph: Graph) -> Graph:
    """GatherND whose indices are columns joined at the end -> Index, which takes them apart."""
    producers = graph.producers()

    def change(node: Node, constants: dict[str, Value]) -> Node:
        joined = producers.get(node.inputs[1]) if node.op == "GatherND" else None
        if joined is None or node.attribute("batch_dims", 0) or joined.op != "Concat":
            return node
        columns = [_column(producers, constants, name) for name in joined.inputs]
        if joined.attributes["axis"] != -1 or not all(columns):
            return node
        return internal(node, "Index", (node.inputs[0], *[column for column in columns if column]), node.outputs)

    return _each(graph, change)


def _flat_indices(folded: Folded) -> Graph:
    """Gather from a tensor whose first two dimensions are merged, at i * size + j -> Index at i, j.

    So the older exporter writes x[i, j]. In the merged dimension rows could not be followed.
    """
    producers = folded.graph.producers()

    def change(node: Node, constants: dict[str, Value]) -> Node:
        flat = producers.get(node.inputs[0]) if node.op == "Gather" and not node.attribute("axis", 0) else None
        total = producers.get(node.inputs[1]) if flat is not None and flat.op == "Flatten" else None
        shape = folded.shape(flat.inputs[0]) if flat is not None else None
        if flat is None or total is None or total.op != "Add" or shape is None or flat.attribute("axis", 1) != 2:
            return node
        for column, scaled in (total.inputs, total.inputs[::-1]):
            times = producers.get(scaled)
            offsets = constants.get(column)
            if times is None or times.op != "Mul" or not _are_within(offsets, shape[1]):
                continue
            for row, size in (times.inputs, times.inputs[::-1]):
                factor = constants.get(size)
                if isinstance(factor, Numbers) and factor.values == (shape[1],):
                    return internal(node, "Index", (flat.inputs[0], row, column), node.outputs, merged=True)
        return node

    return _each(folded.graph, change)


def _are_within(indices: Value | None, size: Any) -> bool:
    if isinstance(indices, Numbers):
        indices = indices.tensor()
    if indices is None or not isinstance(size, int) or indices.numel() == 0:
        return False
    return bool(indices.min() >= 0) and bool(indices.max() < size)


def _column(producers: dict[str, Node], constants: dict[str, Value], name: str) -> str | None:
    value = constants.get(name)
    if isinstance(value, Tensor) and value.shape[-1] == 1:
        constants[f"{name} as a column"] = value.squeeze(-1)
        return f"{name} as a column"
    unsqueeze = producers.get(name)
    if unsqueeze is None or unsqueeze.op != "Unsqueeze":
        return None
    axes = constants.get(unsqueeze.inputs[1])
    return unsqueeze.inputs[0] if isinstance(axes, Numbers) and axes.values == (-1,) else None


# -- chains -----------------------------------------------------------------------------------------------------------


def _chains(graph: Graph, finders: Iterable[Find] = FIND) -> Graph:
    """Chains of nodes between one value and another -> the one call that computes the same."""
    for find in finders:
        for start in graph.nodes:
            found = find(graph, start)
            if found is None:
                continue
            last, op, inputs, attributes = found
            new = replace(
                last,
                op=op,
                domain="" if op in _VERSIONS else INTERNAL,
                version=_VERSIONS.get(op, 0),
                inputs=inputs,
                attributes=attributes,
            )
            graph = replace(graph, nodes=tuple(new if node is last else node for node in graph.nodes)).pruned()
    return graph


_VERSIONS = {"LayerNormalization": 17, "Gelu": 20, "HardSwish": 14}
