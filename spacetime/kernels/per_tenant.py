"""The fallback for operations without a slot form: one call per tenant on its own rows, inside the lane.

Tenants whose weights for the operation are the same (an index buffer, a shared layer) need only one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from spacetime.capture.fuse import OperandRef, Ref, RowCount
from spacetime.capture.layer import Layer
from spacetime.kernels.rowmap import RowMap


class PerTenant:
    """Splits the row-carrying inputs by tenant, calls, and joins the results along their rows."""

    def __init__(
        self,
        call: Callable[..., Any],
        args: Any,
        kwargs: Any,
        inputs: Mapping[str, int],
        row_dims: int | list[int | None],
        layers: list[Layer],
    ) -> None:
        self.call, self.args, self.kwargs = call, args, kwargs
        self.inputs, self.row_dims, self.layers = inputs, row_dims, layers
        self._read = [layers[index] for index in sorted(_operands(args) | _operands(kwargs))]

    def __call__(self, rows: RowMap, *values: Tensor) -> Any:
        if all(len(rows.layout(layer).runs) == 1 for layer in self._read):
            return self._call(dict(zip(self.inputs, values, strict=True)), rows.slots[0], rows.total)
        parts = {
            name: value.split([count * (value.shape[row_dim] // rows.total) for count in rows.rows], row_dim)
            for (name, row_dim), value in zip(self.inputs.items(), values, strict=True)
        }
        results = []
        for index, (slot, count) in enumerate(zip(rows.slots, rows.rows, strict=True)):
            own = {name: split[index] for name, split in parts.items()}
            results.append(self._call(own, slot, count))
        return self._join(results)

    def _call(self, own: dict[str, Tensor], slot: int, count: int) -> Any:
        return self.call(*self._fill(self.args, own, slot, count), **self._fill(self.kwargs, own, slot, count))

    def _fill(self, value: Any, own: dict[str, Tensor], slot: int, count: int) -> Any:
        if isinstance(value, Ref):
            return own[value.name]
        if isinstance(value, OperandRef):
            return self.layers[value.index].of_slot(slot)
        if isinstance(value, RowCount):
            return value.multiple * count
        if isinstance(value, (list, tuple)):
            return [self._fill(item, own, slot, count) for item in value]
        if isinstance(value, dict):
            return {key: self._fill(item, own, slot, count) for key, item in value.items()}
        return value

    def _join(self, results: list[Any]) -> Any:
        if not isinstance(self.row_dims, list):
            return torch.cat(results, self.row_dims)
        return tuple(
            None if row_dim is None else torch.cat([result[i] for result in results], row_dim)
            for i, row_dim in enumerate(self.row_dims)
        )


def _operands(value: Any) -> set[int]:
    if isinstance(value, OperandRef):
        return {value.index}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return {index for item in items for index in _operands(item)}
