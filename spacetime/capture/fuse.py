"""Captured module -> fused program: steps that take rows of many tenants at once. Used by backends/ and above.

Operations without weights run unchanged on all rows. Operations with weights become *slot operations*:
they read, for every row, the weights of the tenant that the row belongs to. A slot operation is only
named here; kernels/ implements it for a device. What depends on weights alone is folded: computed once per
tenant, when it joins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from spacetime.capture.families import bind_arguments, is_pointwise, op_name
from spacetime.capture.program import Captured
from spacetime.ir import Rows


@dataclass(frozen=True, slots=True)
class Ref:
    """A value that an earlier step, or an input, has produced."""

    name: str


@dataclass(frozen=True, slots=True)
class RowCount:
    """`multiple` times the number of rows of the batch, known when it runs."""

    multiple: int


@dataclass(frozen=True, slots=True)
class OperandRef:
    """A tensor that differs from tenant to tenant, by its index in FusedProgram.operands."""

    index: int


@dataclass(frozen=True)
class Operand:
    """A tensor every tenant has its own version of: a weight, or something computed from weights alone."""

    name: str
    compute: Callable[[TenantValues], Tensor]
    weight: int | None = None  # the weight it is; its memory then moves into the slab
    channels_last: bool = False  # the memory order that its kernel is fast with


@dataclass(frozen=True)
class Step:
    """One call. `target` is an operator to call as it is, or the name of a slot operation."""

    out: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    operands: tuple[OperandRef | None, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    node: str = ""

    @property
    def is_slot(self) -> bool:
        return isinstance(self.target, str)


@dataclass(frozen=True)
class FusedProgram:
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]  # Ref, or a constant
    output_row_dims: tuple[int | None, ...]
    operands: tuple[Operand, ...]


class TenantValues:
    """Values that follow from one tenant's weights alone, computed on demand."""

    def __init__(self, captured: Captured, weights: list[Tensor]) -> None:
        self._captured = captured
        self.weights = weights
        self._values: dict[fx.Node, Any] = {}

    def __getitem__(self, node: fx.Node) -> Any:
        index = self._captured.weight_index.get(node)
        if index is not None:
            return self.weights[index]
        if node not in self._values:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self[source])
            self._values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self._values[node]


# Nothing is written in place, so a copy may be its original.
IDENTITIES = frozenset(["clone", "alias", "detach", "dropout", "feature_dropout", "lift_fresh_copy"])


Lowering = Callable[["Fuser", fx.Node, dict[str, Any]], bool]


class Fuser:
    """Walks the graph once; `lowerings` are the slot forms by operation."""

    def __init__(self, captured: Captured, lowerings: dict[str, Lowering]) -> None:
        self.captured = captured
        self.lowerings = lowerings
        self.proof = captured.proof
        self.steps: list[Step] = []
        self.operands: list[Operand] = []
        self._operand_index: dict[Any, int] = {}
        self._absorbed: set[fx.Node] = set()  # computed inside the step of an earlier node
        self._alias: dict[fx.Node, fx.Node] = {}
        self._tenant_dependent: dict[fx.Node, bool] = {}
        self._shared = TenantValues(captured, [weight.tensor for weight in captured.weights])

    def run(self) -> FusedProgram:
        for node in self.captured.exported.graph.nodes:
            if node.op == "call_function" and self._is_row_value(node):
                self._lower(node)
        outputs = self.captured.exported.outputs
        return FusedProgram(
            inputs=tuple(node.name for node in self.captured.exported.inputs),
            steps=tuple(self.steps),
            outputs=tuple(self.ref(out) if isinstance(out, fx.Node) else out for out in outputs),
            output_row_dims=tuple(
                self.proof.spec(out).row_dim if isinstance(out, fx.Node) else None for out in outputs
            ),
            operands=tuple(self.operands),
        )

    def _is_row_value(self, node: fx.Node) -> bool:
        return node in self.proof.specs and node not in self.proof.constants

    # -- arguments ------------------------------------------------------------------------------------

    def ref(self, node: fx.Node) -> Ref:
        while node in self._alias:
            node = self._alias[node]
        return Ref(node.name)

    def _argument(self, value: Any) -> Any:
        """An argument as a step holds it: references, sizes, shared constants, literals."""
        if isinstance(value, (list, tuple)):
            return [self._argument(item) for item in value]
        if not isinstance(value, fx.Node):
            return value
        if value in self.proof.constants:
            return self.operand(value) if self.differs(value) else self._shared[value]
        if value not in self.proof.specs:
            return self._row_count(value)
        return self.ref(value)

    def _row_count(self, node: fx.Node) -> RowCount:
        multiple = node.meta["val"].node.expr / self.captured.exported.rows
        return RowCount(int(multiple))

    def differs(self, node: fx.Node) -> bool:
        """Does this constant depend on weights of the tenant (and not just on the code)?"""
        known = self._tenant_dependent.get(node)
        if known is None:
            index = self.captured.weight_index.get(node)
            if index is not None:
                known = not self.captured.weights[index].is_constant
            else:
                known = any(self.differs(source) for source in node.all_input_nodes)
            self._tenant_dependent[node] = known
        return known

    def is_operand(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and value in self.proof.constants and self.differs(value)

    def operand(self, node: fx.Node, *, transposed: bool = False, channels_last: bool = False) -> OperandRef:
        """The operand for a constant; transpositions of a weight are undone to find the weight itself."""
        source, flipped = node, transposed
        while op_name(source.target) in ("t", "permute", "transpose") and len(self.proof.spec(source).shape) == 2:
            source, flipped = source.all_input_nodes[0], not flipped
        index = self.captured.weight_index.get(node if not transposed else source)
        if index is not None and (not transposed or not flipped):
            name = self.captured.weights[index].name
            operand = Operand(name, lambda values: values.weights[index], index, channels_last)
            return self.add_operand(("weight", index), operand)
        if transposed:
            return self.add_operand((node, "t"), Operand(f"{node.name}.t", lambda values: values[node].t()))
        return self.add_operand(node, Operand(node.name, lambda values: values[node]))

    def add_operand(self, key: Any, operand: Operand) -> OperandRef:
        index = self._operand_index.setdefault(key, len(self.operands))
        if index == len(self.operands):
            self.operands.append(operand)
        return OperandRef(index)

    def optional_operand(self, node: Any) -> OperandRef | None:
        return None if node is None else self.operand(node)

    # -- lowering -------------------------------------------------------------------------------------

    def emit(self, node: fx.Node, target: Any, *args: Any, out: str = "", **rest: Any) -> Ref:
        self.steps.append(Step(out or node.name, target, args, node=node.name, **rest))
        return Ref(out or node.name)

    def absorb(self, node: fx.Node, into: fx.Node) -> None:
        """`node` is computed by the step of `into`."""
        self._absorbed.add(node)
        self._alias[node] = into

    def _lower(self, node: fx.Node) -> None:
        if node in self._absorbed:
            return
        name = op_name(node.target)
        if name in IDENTITIES and node.kwargs.get("memory_format") is None:
            self._alias[node] = node.args[0]  # type: ignore[assignment]
            return
        reads_weights = any(self.is_operand(source) for source in node.all_input_nodes)
        lowering = self.lowerings.get(name)
        if reads_weights and lowering is not None and lowering(self, node, bind_arguments(node)):
            return
        if reads_weights and (name == "expand" or self._broadcasts(node)):
            self._broadcast(node)
        elif reads_weights:
            self._per_tenant(node)
        else:
            self.emit(node, node.target, *self._argument(node.args), kwargs=self._kwargs(node))

    def _kwargs(self, node: fx.Node) -> dict[str, Any]:
        return {key: self._argument(value) for key, value in node.kwargs.items()}

    def _broadcasts(self, node: fx.Node) -> bool:
        """Scalars of another type have a say in the result's type that they would lose laid out row by row."""
        if not is_pointwise(op_name(node.target)) or op_name(node.target) in ("prelu", "masked_fill", "fill"):
            return False
        specs = [self.proof.spec(source) for source in node.all_input_nodes]
        return len({spec.dtype for spec in specs}) == 1 or all(spec.shape for spec in specs)

    def _broadcast(self, node: fx.Node) -> None:
        """Weights that broadcast against rows are laid out row by row first; they are small."""
        args = [self._laid_out(node, arg) for arg in node.args]
        self.emit(node, node.target, *args, kwargs=self._kwargs(node))

    def _laid_out(self, node: fx.Node, arg: Any) -> Any:
        if not self.is_operand(arg):
            return self._argument(arg)
        return self.gather(node, self.operand(arg), self.proof.spec(node).row_dim or 0, arg.name)

    def gather(self, node: fx.Node, operand: OperandRef, row_dim: int, label: str) -> Ref:
        spec = self.proof.spec(node)
        rows = spec.shape[row_dim]
        assert isinstance(rows, Rows)
        attributes = {"rank": len(spec.shape), "row_dim": row_dim, "multiple": rows.multiple}
        out = f"{node.name}__{label}"
        return self.emit(node, "gather", out=out, operands=(operand,), attributes=attributes)

    def _per_tenant(self, node: fx.Node) -> None:
        """No slot form: the operation is called once per tenant on its rows, inside the lane."""
        inputs = [source for source in node.all_input_nodes if self._is_row_value(source)]
        attributes = {
            "call": node.target,
            "args": self._argument(node.args),
            "kwargs": self._kwargs(node),
            "inputs": {self.ref(source).name: self.proof.spec(source).row_dim for source in inputs},
            "row_dims": _row_dims(self.proof.specs[node]),
        }
        refs = dict.fromkeys(self.ref(source) for source in inputs)
        self.emit(node, "per_tenant", *refs, attributes=attributes)


def _row_dims(specs: Any) -> Any:
    if isinstance(specs, tuple):
        return [None if spec is None else spec.row_dim for spec in specs]
    return specs.row_dim
