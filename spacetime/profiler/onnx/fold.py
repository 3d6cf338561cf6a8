"""Partial evaluation: what does not depend on the inputs is computed once. Used by profiler/onnx/ only.

The graph is run on tensors without data whose first dimension is a symbol. What comes out as a known number, and
what only reads constants, becomes a constant; a node that cannot be run is reported with its name. A file that
fixes the number of rows shows it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from spacetime.errors import CaptureError
from spacetime.profiler.onnx.graph import Graph, Node, Numbers, Unsupported, Value, constant
from spacetime.profiler.onnx.registry import evaluate, find

ROWS = 97  # an example for the symbol; a size that occurs elsewhere too would be taken for the rows
MAX_CONSTANT_BYTES = 64 * 2**20  # a computed constant may be larger than what it is computed from only up to here


class Folded:
    """A folded graph, and the shapes of its values for a symbolic number of rows."""

    def __init__(self, graph: Graph, values: Mapping[str, Value]) -> None:
        self.graph = graph
        self.values = values

    def shape(self, name: str) -> tuple[Any, ...] | None:
        value = self.values.get(name)
        return tuple(value.shape) if isinstance(value, Tensor) else None


def fold(graph: Graph) -> Folded:
    return _Folder(graph).run()


class _Folder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.shapes = ShapeEnv()
        self.fake = FakeTensorMode(shape_env=self.shapes, allow_non_fake_inputs=True)
        self.constants: dict[str, Value] = dict(graph.constants)
        self.values: dict[str, Value] = dict(graph.constants)
        self.expanded: dict[str, Node] = {}
        self.nodes: list[Node] = []

    def run(self) -> Folded:
        rows = self._symbolic(torch.empty(ROWS)).shape[0]
        with self.fake:  # a row may be as large as the memory
            self.values |= {each.name: torch.empty((rows, *each.shape), dtype=each.dtype) for each in self.graph.inputs}
        with torch.no_grad():
            for node in self.graph.nodes:
                try:
                    self._node(self._with_plain_numbers(self._before_expanding(node)))
                except CaptureError:
                    raise
                except Exception as error:
                    raise _cannot_run(node, self._described(node), error) from error
        self._check_rows()
        graph = replace(self.graph, nodes=tuple(self.nodes), constants=self.constants)
        return Folded(graph.pruned(), self.values)

    def _symbolic(self, tensor: Tensor) -> Tensor:
        sizes = [DimDynamic.DUCK, *[DimDynamic.STATIC] * (tensor.ndim - 1)]
        context = StatelessSymbolicContext(dynamic_sizes=sizes)  # type: ignore[var-annotated]
        return self.fake.from_tensor(tensor, symbolic_context=context)

    def _node(self, node: Node) -> None:
        args = [self.values[name] if name else None for name in node.inputs]
        is_constant = all(not name or name in self.constants for name in node.inputs)
        if node.op == "Identity" and is_constant:
            self._keep(node, (self.constants[node.inputs[0]],))
            return
        # Without torch's Python rules some functions take the example's sizes for fixed ones.
        with self.fake, enable_python_dispatcher():
            results = evaluate(node, args)
        if is_constant and self._may_be_constant(results):
            self._keep(node, tuple(_plain(result) for result in evaluate(node, args, as_tensors=True)))
        elif all(isinstance(result, Numbers) and result.are_known for result in results):
            self._keep(node, results)
        else:
            self.values.update(zip(node.outputs, results, strict=False))
            self.nodes.append(node)
            if node.op == "Expand":
                self.expanded[node.outputs[0]] = node

    def _keep(self, node: Node, results: tuple[Value, ...]) -> None:
        found = dict(zip(node.outputs, results, strict=False))
        self.constants.update(found)
        self.values.update(found)

    def _may_be_constant(self, results: tuple[Value, ...]) -> bool:
        tensors = [result for result in results if isinstance(result, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= MAX_CONSTANT_BYTES

    def _with_plain_numbers(self, node: Node) -> Node:
        """Lists of floats are tensors, unless a node wants to know them."""
        operator = find(node)
        assert operator is not None, node
        inputs = list(node.inputs)
        for index, name in enumerate(node.inputs):
            value = self.constants.get(name)
            if index in operator.plain and isinstance(value, Tensor) and value.ndim <= 1:
                inputs[index] = f"{name} in numbers"
                self.constants[inputs[index]] = Numbers(tuple(value.tolist()), value.dtype)
                self.values[inputs[index]] = self.constants[inputs[index]]
        return replace(node, inputs=tuple(inputs))

    def _before_expanding(self, node: Node) -> Node:
        """GatherElements(Expand(constant)) reads the constant itself where the indices do not reach what is new.

        Exports of BERT expand a row of segment ids over the rows, only to take the entries of the first.
        """
        expand = self.expanded.get(node.inputs[0]) if node.op == "GatherElements" else None
        if expand is None:
            return node
        table, indices = self.constants.get(expand.inputs[0]), self.values[node.inputs[1]]
        if not isinstance(table, Tensor) or not isinstance(indices, Tensor) or table.ndim != indices.ndim:
            return node
        axis = node.attribute("axis", 0) % table.ndim
        whole = self.values[node.inputs[0]]
        assert isinstance(whole, Tensor)
        reached = all(
            table.shape[dim] == whole.shape[dim] if dim == axis else _known_at_most(size, table.shape[dim])
            for dim, size in enumerate(indices.shape)
        )
        return replace(node, inputs=(expand.inputs[0], node.inputs[1])) if reached else node

    def _described(self, node: Node) -> str:
        def one(name: str) -> str:
            value = self.values.get(name)
            if isinstance(value, Tensor):
                return str([str(size) for size in value.shape]).replace("'", "")
            return "-" if value is None else str(list(value.values))

        return f"inputs {', '.join(one(name) for name in node.inputs)}"

    def _check_rows(self) -> None:
        first = self.values[self.graph.inputs[0].name]
        assert isinstance(first, Tensor)
        symbol = first.shape[0]
        expression = self.shapes.replace(symbol.node.expr) if isinstance(symbol, torch.SymInt) else symbol
        if not expression.free_symbols if hasattr(expression, "free_symbols") else True:
            raise fixes_rows(f"an operation fixes them to {expression}")
        if self.graph.fixed_rows is None:
            return
        for name in self.graph.outputs:
            value = self.values[name]
            carries = isinstance(value, Tensor) and any(
                isinstance(size, torch.SymInt) and size.node.expr == expression for size in value.shape
            )
            if not carries:
                raise fixes_rows(f"the file states {self.graph.fixed_rows}; the output {name!r} does not follow others")


def fixes_rows(facts: str) -> CaptureError:
    return CaptureError(
        "the ONNX model fixes the number of rows",
        facts,
        "export it with a dynamic batch: dynamic_axes={'x': {0: 'rows'}}, or dynamic_shapes with dynamo=True",
    )


def _cannot_run(node: Node, facts: str, error: Exception) -> CaptureError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0][:200] if lines else type(error).__name__
    reason = reason if isinstance(error, Unsupported) else f"{type(error).__name__}: {reason}"
    return CaptureError(
        f"{node} cannot be run",
        f"{reason}; {facts}",
        "export the model again with a dynamic batch and a recent opset, or give the PyTorch module instead",
    )


def _plain(result: Value) -> Value:
    if isinstance(result, FakeTensor):
        raise Unsupported("a constant that is no tensor")
    return constant(result.detach()) if isinstance(result, Tensor) else result


def _known_at_most(size: Any, limit: Any) -> bool:
    return isinstance(size, int) and size <= limit
