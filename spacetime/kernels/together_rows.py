"""Everything but products, for rows of several programs in one launch: norms, affines, lookups, plain operations.

The rows of all programs are put one behind another, the operation is called once, and everybody gets its own rows
back. Small weights are gathered by row. Plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spacetime.capture.fuse import Ref, RowCount, Step
from spacetime.capture.layer import Layer
from spacetime.capture.merge_contents import Contents
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_broadcast import gather, spread
from spacetime.kernels.together import Group, Parts, Spans, Weighted, by_group

Operands = Sequence[Sequence[Layer | None]]
Results = dict[int, Any]


class TogetherNorm:
    """One normalisation; each program's affine on its own rows."""

    def __init__(self, steps: Sequence[Step], operands: Operands, alike: Sequence[int], contents: Contents) -> None:
        self._operands = operands
        a = steps[0].attributes
        self._shape, self._epsilon, self._row_dim = a["shape"], a["eps"], a["row_dim"]

    def __call__(self, spans: Spans, parts: Parts, values: dict[int, Sequence[Any]]) -> Results:
        xs = [values[part][0] for part in parts]
        y = F.layer_norm(torch.cat(xs, self._row_dim), self._shape, None, None, self._epsilon)
        own = y.split([x.shape[self._row_dim] for x in xs], self._row_dim)
        return {part: self._scaled(part, parts[part], z) for part, z in zip(parts, own, strict=True)}

    def _scaled(self, part: int, rows: RowMap, y: Tensor) -> Tensor:
        weight, bias = self._operands[part]
        multiple = y.shape[self._row_dim] // rows.total
        if weight is not None:
            y.mul_(gather(rows, weight, y.ndim, self._row_dim, multiple))
        if bias is not None:
            y.add_(gather(rows, bias, y.ndim, self._row_dim, multiple))
        return y


class TogetherAffine:
    """x * scale + shift over channels, both gathered by row."""

    def __init__(self, steps: Sequence[Step], operands: Operands, alike: Sequence[int], contents: Contents) -> None:
        self._operands = operands

    def __call__(self, spans: Spans, parts: Parts, values: dict[int, Sequence[Any]]) -> Results:
        xs = [values[part][0] for part in parts]
        multiple = xs[0].shape[0] // next(iter(parts.values())).total
        scale, shift = (
            torch.cat([_by_row(rows, self._operands[part][index], multiple) for part, rows in parts.items()])
            for index in range(2)
        )
        apart = (scale.shape[0], -1, *(1,) * (xs[0].ndim - 2))
        y = torch.addcmul(shift.view(apart), torch.cat(xs), scale.view(apart))
        return dict(zip(parts, y.split([x.shape[0] for x in xs]), strict=True))


class TogetherEmbedding(Weighted):
    """Lookups, one for every table: an index out of range must not read a neighbour's."""

    def __init__(self, steps: Sequence[Step], operands: Operands, alike: Sequence[int], contents: Contents) -> None:
        super().__init__(operands, alike, contents)
        self._row_dim = steps[0].attributes["row_dim"]

    def __call__(self, spans: Spans, parts: Parts, values: dict[int, Sequence[Any]]) -> Results:
        indices = {part: values[part][0] for part in parts}
        return dict(by_group(spans.table(self, parts), parts, indices, self._row_dim, self._one))

    def _one(self, group: Group, indices: Tensor) -> Tensor:
        (table,) = self.weights(group)
        assert table is not None
        return F.embedding(indices, table)


class TogetherPlain:
    """An operation without weights, or with small ones that are laid out by row: the same call, on everybody's rows."""

    def __init__(
        self,
        steps: Sequence[Step],
        reads: Sequence[Sequence[str]],
        gathers: Sequence[dict[str, tuple[Layer, dict[str, Any]]]],
        row_dims: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> None:
        self._step = steps[0]
        self._call = steps[0].target
        self._reads = reads
        self._gathers = gathers
        self._row_dims, self._out_dims = row_dims
        self._refs = [_refs((step.args, step.kwargs)) for step in steps]

    def __call__(self, spans: Spans, parts: Parts, values: dict[int, Sequence[Any]]) -> Results:
        own = {part: dict(zip(self._reads[part], values[part], strict=True)) for part in parts}
        joined = [self._joined(index, row_dim, parts, own) for index, row_dim in enumerate(self._row_dims)]
        total = sum(rows.total for rows in parts.values())
        feed = iter(joined)
        result = self._call(
            *_filled(self._step.args, feed, total),
            **{key: _filled(value, feed, total) for key, value in self._step.kwargs.items()},
        )
        if isinstance(result, Tensor):
            return dict(zip(parts, _divided(result, self._out_dims[0], parts, total), strict=True))
        columns = [_divided(r, dim, parts, total) for r, dim in zip(result, self._out_dims, strict=True)]
        return dict(zip(parts, zip(*columns, strict=True), strict=True))

    def _joined(self, index: int, row_dim: int, parts: Parts, own: dict[int, dict[str, Tensor]]) -> Tensor:
        found = []
        for part, rows in parts.items():
            name = self._refs[part][index]
            laid_out = self._gathers[part].get(name)
            if laid_out is None:
                found.append(own[part][name])
                continue
            layer, a = laid_out
            found.append(spread(_by_row(rows, layer, a["multiple"]), a["rank"], a["row_dim"]))
            row_dim = a["row_dim"] - a["rank"]  # from the right: leading dimensions of size 1 are not there
        return torch.cat(found, row_dim)


def _by_row(rows: RowMap, layer: Layer | None, multiple: int) -> Tensor:
    """[rows, ...], even where all rows have the same weights."""
    assert layer is not None
    return layer.stack.index_select(0, rows.entry_per_row(layer, multiple))


def _divided(value: Tensor, row_dim: int, parts: Parts, total: int) -> Sequence[Tensor]:
    per_row = value.shape[row_dim] // total
    pieces: Sequence[Tensor] = value.split([rows.total * per_row for rows in parts.values()], row_dim)
    return pieces


def _refs(value: Any) -> list[str]:
    if isinstance(value, Ref):
        return [value.name]
    if isinstance(value, dict):
        return _refs(tuple(value.values()))
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in _refs(item)]
    return []


def _filled(value: Any, feed: Any, total: int) -> Any:
    """The arguments, with the joined values in the order of `_refs`."""
    if isinstance(value, Ref):
        return next(feed)
    if isinstance(value, RowCount):
        return value.multiple * total
    if isinstance(value, (list, tuple)):
        return [_filled(item, feed, total) for item in value]
    return value
