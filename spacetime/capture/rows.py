"""The proof that rows are independent: no row of any result depends on its neighbours. Used by capture/ only.

Every value of an exported graph is either a constant (it depends on weights only), a size (a multiple of
the number of rows), or carries rows in exactly one dimension. Each operation must belong to a family for
which keeping rows apart can be checked from its arguments; an operation of no family is not proven, and
an unproven module is not fused.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from spacetime.capture.export import Exported, Unfusible
from spacetime.capture.families import FAMILIES, FILLS, SIZED, Call, bind_arguments, is_random, is_unwritten, op_name
from spacetime.ir import Dim, Rows, TensorSpec

SCALARS = (torch.SymInt, torch.SymBool, int, float, bool)
READS = ("item", "_local_scalar_dense")

Values = TensorSpec | tuple[TensorSpec | None, ...] | None


@dataclass(frozen=True)
class RowProof:
    """What is known of every node: its spec(s), and which nodes depend on weights and literals only."""

    specs: dict[fx.Node, Values]
    constants: frozenset[fx.Node]

    def spec(self, node: fx.Node) -> TensorSpec:
        spec = self.specs[node]
        assert isinstance(spec, TensorSpec), node
        return spec


def prove(exported: Exported) -> RowProof:
    """The proof, or `Unfusible` with the operation that has none."""
    return _Prover(exported).run()


class _Prover:
    def __init__(self, exported: Exported) -> None:
        self.exported = exported
        self.specs: dict[fx.Node, Values] = {}
        self.constants: set[fx.Node] = set()
        self.row_indices: set[fx.Node] = set()  # arange(rows): each entry is the number of its own row

    def run(self) -> RowProof:
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op != "output":
                raise Unfusible(f"{node.name}: a {node.op} node cannot be shared")
        self._check_outputs()
        return RowProof(self.specs, frozenset(self.constants))

    def _placeholder(self, node: fx.Node) -> None:
        self.specs[node] = self._specs_of(node)
        if node in self.exported.weights:
            self.constants.add(node)

    def _check_outputs(self) -> None:
        for index, output in enumerate(self.exported.outputs):
            if not isinstance(output, fx.Node):
                if isinstance(output, (int, float, str, bool, type(None))):
                    continue
                raise Unfusible(f"output {index} is a {type(output).__name__}")
            spec = self.specs.get(output)
            if not isinstance(spec, TensorSpec) or spec.row_dim is None:
                raise Unfusible(f"output {index} does not carry the rows of the inputs")
            if spec.shape[spec.row_dim] != Rows(1):
                raise Unfusible(f"output {index} merges its rows with another dimension: {spec}")
            if output in self.row_indices:
                raise Unfusible(f"output {index} is the position of a row in its batch")

    # -- values ---------------------------------------------------------------------------------------

    def _specs_of(self, node: fx.Node) -> Values:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            return self._tensor_spec(node, value)
        if isinstance(value, (list, tuple)):
            return tuple(self._tensor_spec(node, item) if isinstance(item, Tensor) else None for item in value)
        return None

    def _tensor_spec(self, node: fx.Node, value: Tensor) -> TensorSpec:
        dims = tuple(self._dim(node, dim) for dim in value.shape)
        row_dims = [index for index, dim in enumerate(dims) if isinstance(dim, Rows)]
        if len(row_dims) > 1:
            raise Unfusible(f"{node.name} relates rows to each other: shape {[str(dim) for dim in dims]}")
        return TensorSpec(dims, str(value.dtype).removeprefix("torch."), row_dims[0] if row_dims else None)

    def _dim(self, node: fx.Node, dim: int | torch.SymInt) -> Dim:
        if isinstance(dim, int):
            return dim
        expression = dim.node.expr
        multiple = expression / self.exported.rows
        if expression.is_Integer:
            return int(expression)
        if multiple.is_Integer and multiple > 0:
            return Rows(int(multiple))
        raise Unfusible(f"{node.name}: a dimension of {expression} is not a multiple of the rows")

    # -- operations -----------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> None:
        name = op_name(node.target)
        if name.startswith(("_assert", "sym_constrain")):
            return
        if name in READS:
            raise Unfusible(f"{name} ({node.name}): takes a number out of a tensor, which every tenant has its own of")
        if isinstance(node.meta.get("val"), SCALARS):
            self._size(node)
            return
        if is_unwritten(node):
            raise Unfusible(f"{name} ({node.name}): takes memory as it is, before anything is written to it")
        if is_random(node):
            raise Unfusible(f"{name} ({node.name}): draws random numbers")
        self.specs[node] = self._specs_of(node)
        sources = [source for source in node.all_input_nodes if source in self.specs]
        sizes = [source for source in node.all_input_nodes if source not in self.specs]
        if not sizes and all(source in self.constants for source in sources):
            self.constants.add(node)
            return
        if sizes and name not in SIZED:
            raise Unfusible(f"{name} ({node.name}): computes with the number of rows")
        self._check(node, name, sources)

    def _size(self, node: fx.Node) -> None:
        """Multiples of the row count may shape tensors; anything else computed from it fails in `_dim`."""
        value = node.meta["val"]
        if isinstance(value, torch.SymInt):
            self._dim(node, value)
        elif not isinstance(value, torch.SymBool):
            self.specs[node] = None
            self.constants.add(node)

    def _check(self, node: fx.Node, name: str, sources: list[fx.Node]) -> None:
        call = self._bind(node, name, sources)
        if name == "arange" or any(source in self.row_indices for source in sources):
            self._row_index(node, call, sources)
            return
        if node.target is operator.getitem:
            if call.output is None:
                raise call.fail("a result that depends on the rows does not carry them")
            return
        check = FAMILIES.get(name)
        if check is None:
            raise call.fail("not known to keep rows apart")
        if call.output is None:
            raise call.fail("a result that depends on the rows does not carry them")
        if not call.carriers and name not in FILLS:
            raise call.fail("spreads a constant over the rows")
        check(call)

    def _bind(self, node: fx.Node, name: str, sources: list[fx.Node]) -> Call:
        args = bind_arguments(node)
        carriers = {}
        for key, value in args.items():
            for index, item in enumerate(value if isinstance(value, (list, tuple)) else (value,)):
                spec = self.specs.get(item) if isinstance(item, fx.Node) else None
                if isinstance(spec, TensorSpec) and spec.row_dim is not None:
                    carriers[f"{key}.{index}" if index else key] = spec
        outputs = self.specs[node]
        written = outputs if isinstance(outputs, tuple) else (outputs,)
        output = next((spec for spec in written if spec is not None and spec.row_dim is not None), None)
        return Call(node, name, args, carriers, output)

    def _row_index(self, node: fx.Node, call: Call, sources: list[fx.Node]) -> None:
        """arange(rows) may only be reshaped and used to pick every row's own entry, as BERT's masks do."""
        if call.name == "arange":
            numbered = call.args.get("start", 0) == 0 and call.args.get("step", 1) == 1
            if not numbered or call.output is None or call.output.shape != (Rows(1),):
                raise call.fail("numbers the rows of a batch")
            self.row_indices.add(node)
        elif call.name in ("unsqueeze", "view", "reshape", "expand", "alias", "detach"):
            FAMILIES[call.name](call)
            self.row_indices.add(node)
        elif call.name == "index" and self._picks_own_rows(call):
            return
        else:
            raise call.fail("computes with the position of a row in its batch")

    def _picks_own_rows(self, call: Call) -> bool:
        indexed = self.specs.get(call.args["self"])
        if not isinstance(indexed, TensorSpec) or indexed.row_dim != 0 or indexed.shape[0] != Rows(1):
            return False
        first, *others = call.args["indices"]
        if first not in self.row_indices or any(other in self.row_indices for other in others):
            return False
        rows = self.specs[first]
        return all(other is None or self._is_code(other) or _aligned(self.specs[other], rows) for other in others)

    def _is_code(self, node: fx.Node) -> bool:
        """A constant that no tenant has another version of: where it differs, rows are numbered tenant by tenant."""
        weight = self.exported.weights.get(node)
        if weight is not None:
            return weight.is_constant
        return node in self.constants and all(map(self._is_code, node.all_input_nodes))


def _aligned(one: Values, other: Values) -> bool:
    """Two broadcast tensors have their rows in the same dimension."""
    specs = [spec for spec in (one, other) if isinstance(spec, TensorSpec) and spec.row_dim is not None]
    return len(specs) == 2 and len({len(spec.shape) - (spec.row_dim or 0) for spec in specs}) == 1
