"""Composite operations of an exported graph, replaced where they stand. Used by capture/export.py only.

`ExportedProgram.run_decompositions` traces the whole graph again, more than once, which takes longer than the export
did, and changes a few of its operations. Here those alone are called once more, on the shapes that the export has
noted, and what torch calls in turn takes their place. A graph with anything that takes more than that (writes in
place that others may see, regions, operations of others) is left as it is, for `run_decompositions`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spacetime.capture.in_place import answering, is_composite

Table = Mapping[Any, Callable[..., Any]]

_LITERALS = (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.detach_.default)  # torch.tensor([1, 2])
_SIZE = torch.ops.aten.sym_size.int
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_SCALARS = (*_SYMBOLS, int, float, bool)


class NotExpandable(Exception):
    """The graph takes more than to have single operations replaced. Nothing has been done to it."""


@dataclass(frozen=True)
class _Step:
    """One operation that torch calls in the place of a composite one."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


class _Steps(TorchDispatchMode):
    """Notes the operations that are called while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[_Step] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            raise NotExpandable(f"{func} writes in place")
        result = func(*args, **(kwargs or {}))
        self.found.append(_Step(func, args, dict(kwargs or {}), result))
        return result


@dataclass(frozen=True)
class _Expansion:
    """What takes the place of a node: the steps that its result needs, in order, and the result.

    Values are the fake tensors that the steps have read and answered with; `sources` are those of other nodes.
    """

    steps: tuple[_Step, ...]
    result: Any
    sources: dict[int, fx.Node]


def expand(graph: fx.Graph, table: Table) -> None:
    """Replaces the operations of the table and whatever else `run_decompositions` would; or `NotExpandable`."""
    sizes = _Sizes(graph)
    expansions = {node: _expansion(node, table, sizes) for node in graph.nodes if _is_replaced(node, table)}
    replaced: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node in expansions:
            _Splice(graph, node, sizes, replaced).apply(expansions[node])
        else:
            sizes.note(node)
    graph.eliminate_dead_code()


# -- which operations ---------------------------------------------------------------------------------------


def _is_replaced(node: fx.Node, table: Table) -> bool:
    if node.op in ("placeholder", "output"):
        return False
    target = node.target
    if node.op == "call_function" and (target is operator.getitem or isinstance(node.meta.get("val"), _SCALARS)):
        return False
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        raise NotExpandable(f"{node.name}: {node.op} of {target}")
    return target in table or target in _LITERALS or target._schema.is_mutable or is_composite(target)


def _is_in_python(target: Any, table: Table) -> bool:
    """Not what torch puts into its table for operations that C++ makes others of: that would call them again."""
    return target in table and not isinstance(table[target], partial)


# -- what they become ---------------------------------------------------------------------------------------


def _expansion(node: fx.Node, table: Table, sizes: _Sizes) -> _Expansion:
    """Checked: whatever it reads is there when it is put in the node's place."""
    sources = {id(_value(source)): source for source in node.all_input_nodes}
    if len(sources) != len(node.all_input_nodes):
        raise NotExpandable(f"{node.name}: two of its operands are one value")
    args, kwargs = fx.map_arg((node.args, node.kwargs), _value)
    try:
        with _fake_mode(node):
            if _is_in_python(node.target, table):
                steps, result = _traced(table[node.target], args, kwargs, sources, table)
            else:
                steps, result = _called(_named(node), args, kwargs)
    except Exception as error:  # torch may know what to do about it when it has the whole graph
        raise NotExpandable(f"{node.name}: {type(error).__name__}: {error}") from error
    expansion = _Expansion(_needed(steps, result), result, sources)
    _check(node, expansion, sizes)
    return expansion


def _named(node: fx.Node) -> Any:
    """What to call in its place."""
    assert isinstance(node.target, OpOverload)
    if node.target is _LITERALS[0]:
        return torch.ops.aten.clone.default
    if node.target is _LITERALS[1] and _is_literal(node.args[0]):
        return _itself
    if not node.target._schema.is_mutable:
        return node.target
    answer = answering(node)
    if answer is None:
        raise NotExpandable(f"{node.name}: {node.target} writes to what has other readers")
    return answer


def _is_literal(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is _LITERALS[0] and len(node.users) == 1


def _itself(value: Tensor) -> Tensor:
    return value


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def _fake_mode(node: fx.Node) -> Any:
    for source in node.all_input_nodes:
        if isinstance(_value(source), Tensor):
            return _value(source).fake_mode
    raise NotExpandable(f"{node.name}: reads no tensor")


def _called(target: Any, args: Any, kwargs: Any) -> tuple[list[_Step], Any]:
    with enable_python_dispatcher(), _Steps() as steps:
        return steps.found, target(*args, **kwargs)


def _traced(
    function: Callable[..., Any], args: Any, kwargs: Any, sources: dict[int, fx.Node], table: Table
) -> tuple[list[_Step], Any]:
    """What a function of the table calls: among it are composite operations that are kept, like linear."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def call(*given: Tensor) -> Any:
        left = iter(given)
        args, kwargs = pytree.tree_unflatten([next(left) if isinstance(x, Tensor) else x for x in leaves], spec)
        return function(*args, **kwargs)

    graph = make_fx(call, pre_dispatch=True)(*tensors).graph
    expand(graph, table)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    sources.update({id(_value(node)): sources[id(tensor)] for node, tensor in zip(inputs, tensors, strict=True)})
    values: dict[fx.Node, Any] = {}
    steps = []
    for node in graph.nodes:
        values[node] = values[node.args[0]][node.args[1]] if node.target is operator.getitem else _value(node)
        if node.op == "call_function" and node.target is not operator.getitem:
            steps.append(_Step(node.target, *fx.map_arg((node.args, node.kwargs), values.__getitem__), values[node]))
    (output,) = graph.find_nodes(op="output")
    return steps, fx.map_arg(output.args[0], values.__getitem__)


def _needed(steps: list[_Step], result: Any) -> tuple[_Step, ...]:
    wanted = _ids(result)
    kept: list[_Step] = []
    for step in reversed(steps):
        if wanted & _ids(step.result):
            wanted |= _ids((step.args, step.kwargs))
            kept.append(step)
    return tuple(reversed(kept))


def _ids(values: Any) -> set[int]:
    return {id(leaf) for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)}


def _layout(values: Any) -> list[Any]:
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return [(tensor.dtype, [str(size) for size in (*tensor.shape, *tensor.stride())]) for tensor in tensors]


def _check(node: fx.Node, expansion: _Expansion, sizes: _Sizes) -> None:
    known = set(expansion.sources)
    for step in expansion.steps:
        operands = pytree.tree_leaves((step.args, step.kwargs))
        if not known >= _ids(operands):
            raise NotExpandable(f"{node.name}: {step.target} reads what is not in the graph")
        if not all(sizes.has(leaf) for leaf in operands if isinstance(leaf, _SYMBOLS)):
            raise NotExpandable(f"{node.name}: {step.target} reads a size that is not a multiple of an input's")
        known |= _ids(step.result)
    result = expansion.result
    if _layout(result) != _layout(_value(node)):
        raise NotExpandable(f"{node.name}: its result is of another kind")
    if not known >= _ids(result):
        raise NotExpandable(f"{node.name}: its result is not in the graph")
    if not isinstance(result, Tensor) and not all(reader.target is operator.getitem for reader in node.users):
        raise NotExpandable(f"{node.name}: its results are read as one")


# -- putting it in their place ------------------------------------------------------------------------------


class _Sizes:
    """The nodes that hold numbers of rows, by expression."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.nodes: dict[Any, fx.Node] = {}
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self.of_inputs: dict[Any, tuple[fx.Node, int]] = {}
        for node in self.inputs:
            for dim, size in enumerate(getattr(_value(node), "shape", ())):
                if isinstance(size, torch.SymInt):
                    self.of_inputs.setdefault(size.node.expr, (node, dim))

    def has(self, size: torch.SymInt | torch.SymFloat | torch.SymBool) -> bool:
        if not isinstance(size, torch.SymInt):
            return False
        factor, rest = size.node.expr.as_coeff_Mul()
        return bool(factor.is_Integer and (rest.is_Integer or rest in self.of_inputs))

    def note(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            self.nodes.setdefault(value.node.expr, node)

    def node(self, size: torch.SymInt) -> fx.Node | int:
        """Made where the graph has none yet: before the node that is replaced, an input's own size at the top."""
        expression = size.node.expr
        if expression.is_Integer:
            return int(expression)
        if expression not in self.nodes:
            factor, rest = expression.as_coeff_Mul()
            source = self.nodes.get(rest) or self._of_input(rest)
            if rest == expression:
                return source
            self.nodes[expression] = self.graph.call_function(operator.mul, (source, int(factor)))
            self.nodes[expression].meta["val"] = size
        return self.nodes[expression]

    def _of_input(self, expression: Any) -> fx.Node:
        source, dim = self.of_inputs[expression]
        with self.graph.inserting_after(self.inputs[-1]):
            made = self.nodes[expression] = self.graph.call_function(_SIZE, (source, dim))
        made.meta["val"] = _value(source).shape[dim]
        return made


class _Splice:
    """The nodes of an expansion, before the node that they replace."""

    def __init__(self, graph: fx.Graph, node: fx.Node, sizes: _Sizes, replaced: dict[fx.Node, fx.Node]) -> None:
        self.graph = graph
        self.node = node
        self.sizes = sizes
        self.replaced = replaced
        self.known: dict[int, fx.Node] = {}

    def apply(self, expansion: _Expansion) -> None:
        self.known = {key: self.replaced.get(source, source) for key, source in expansion.sources.items()}
        with self.graph.inserting_before(self.node):
            for step in expansion.steps:
                self._add(step)
        if isinstance(expansion.result, Tensor):
            self._replace(self.node, expansion.result)
        else:
            for reader in list(self.node.users):
                self._replace(reader, expansion.result[reader.args[1]])
                self.graph.erase_node(reader)
        self.graph.erase_node(self.node)

    def _replace(self, node: fx.Node, result: Tensor) -> None:
        self.replaced[node] = self.known[id(result)]
        node.replace_all_uses_with(self.replaced[node])

    def _add(self, step: _Step) -> None:
        args, kwargs = pytree.tree_map(self._operand, (step.args, step.kwargs))
        made = self._call(step.target, args, kwargs, step.result)
        if isinstance(step.result, Tensor):
            self.known[id(step.result)] = made
            return
        for index, item in enumerate(step.result):
            if isinstance(item, Tensor):
                self.known[id(item)] = self._call(operator.getitem, (made, index), {}, item)

    def _call(self, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
        made = self.graph.call_function(target, args, kwargs)
        made.meta = {**self.node.meta, "val": value}
        return made

    def _operand(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.known[id(value)]
        return self.sizes.node(value) if isinstance(value, torch.SymInt) else value
