"""Which calls of different programs may be made as one: equal keys. Used by capture/merge.py.

Equal kernels (`ir.Kernel.key`) are not enough. A key names shapes and literals; it does not tell constants of the code
apart, nor how an operation was lowered. And an operation that numbers rows, or makes something of their number alone,
gives other results for rows that stand behind other rows.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spacetime.capture.cohort import Cohort
from spacetime.capture.fuse import Ref, RowCount, Step
from spacetime.capture.program import content_hash, tensor_spec
from spacetime.ir import TensorSpec

Values = tuple[Any, ...]  # hashable

# The attributes that calls must have in common. A convolution's epilogue may differ: it follows the launch.
_ATTRIBUTES = {
    "linear": ("row_dim",),
    "conv": ("name", "stride", "padding", "dilation", "groups"),
    "layer_norm": ("shape", "eps", "row_dim"),
    "affine": (),
    "embedding": ("row_dim",),
}
_GROUPED = {"linear": (), "conv": ("name",)}


class Likeness:
    """Of the steps of one member."""

    def __init__(self, cohort: Cohort) -> None:
        self._specs = {node.name: spec for node, spec in cohort.captured.proof.specs.items()}
        self._gathers = {step.out: step for step in cohort.fused.steps if step.target == "gather"}

    def of(self, step: Step, *, grouped: bool = False) -> Values | str:
        """A key that steps which may be called together have in common, or why this one is always called apart."""
        if step.is_slot:
            names = (_GROUPED if grouped else _ATTRIBUTES).get(step.target)
            if names is None:
                return f"{step.target} has no {'grouped' if grouped else 'shared'} form"
            shapes = () if grouped else tuple(str(self._spec(name)) for name in step.args)
            return (step.target, shapes, *(_hashable(step.attributes[name]) for name in names))
        if grouped:
            return "only products with weights are grouped"
        return self._plain(step)

    def _plain(self, step: Step) -> Values | str:
        name = str(step.target)
        specs = [self._spec(ref) for ref in refs_in((step.args, step.kwargs))]
        if not specs:
            return f"{name} depends on the number of rows alone"
        if name.startswith("aten.index."):
            return "rows may be picked by their position"
        written = self._written(step)
        if not all(spec is not None and spec.row_dim is not None for spec in (*specs, *written)):
            return f"{name} has a value without rows"
        outputs = tuple((str(spec), spec.row_dim) for spec in written if spec is not None)
        return ("plain", name, self._skeleton(step.args), self._skeleton(step.kwargs), outputs)

    def _written(self, step: Step) -> list[TensorSpec | None]:
        outputs = self._specs.get(step.node)
        items = outputs if isinstance(outputs, tuple) else (outputs,)
        return [item if isinstance(item, TensorSpec) else None for item in items]

    def _spec(self, ref: Ref) -> TensorSpec | None:
        """What is laid out by row has the rank of what it meets."""
        gather = self._gathers.get(ref.name)
        if gather is not None:
            a = gather.attributes
            return TensorSpec((a["rank"], a["multiple"]), "gathered", a["row_dim"])
        spec = self._specs.get(ref.name)
        return spec if isinstance(spec, TensorSpec) else None

    def _skeleton(self, value: Any) -> Any:
        if isinstance(value, Ref):
            spec = self._spec(value)
            return ("rows", str(spec), None if spec is None else spec.row_dim)
        if isinstance(value, RowCount):
            return ("count", value.multiple)
        if isinstance(value, Tensor):
            return ("constant", str(tensor_spec(value)), content_hash(value))
        if isinstance(value, dict):
            return tuple((key, self._skeleton(value[key])) for key in sorted(value))
        if isinstance(value, (list, tuple)):
            return tuple(self._skeleton(item) for item in value)
        return (type(value).__name__, str(value))

    def row_dims(self, step: Step) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of a plain step that has a key: where the rows are in what it reads, and in what it writes."""
        if step.is_slot:
            return (), ()
        read = [self._spec(ref) for ref in refs_in((step.args, step.kwargs))]
        found = [[spec.row_dim or 0 for spec in specs if spec is not None] for specs in (read, self._written(step))]
        return tuple(found[0]), tuple(found[1])


def refs_in(value: Any) -> list[Ref]:
    """The values that arguments name, in order, with repetitions."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, dict):
        return refs_in(tuple(value.values()))
    if isinstance(value, (list, tuple)):
        return [ref for item in value for ref in refs_in(item)]
    return []


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value
