"""Convolution on weights that oneDNN has packed once, BatchNorm and activation inside: fast on a CPU, twice the memory.

oneDNN otherwise reorders plain weights at every call, which costs in proportion to their size. A second, packed
copy per entry is kept where that pays; `SlotConv` serves everything else, and defines what is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_conv import SlotConv

WORTH_PACKING_BYTES = 1 << 18  # below it, the fused entry point costs more per call than the reorder


@dataclass(frozen=True, slots=True)
class _Packed:
    """The weights of one entry as oneDNN wants them, and of which content they were made."""

    weight: Tensor
    bias: Tensor | None
    serials: tuple[int, ...]


class PrepackedConv:
    """Wraps a SlotConv; answers the same, faster, for two-dimensional float32 convolutions with large weights."""

    def __init__(self, plain: SlotConv) -> None:
        self._plain = plain
        self._layers = [layer for layer in (plain.weight, plain.bias, plain.scale, plain.shift) if layer is not None]
        self._packed: dict[int, _Packed] = {}  # by entry

    @property
    def packed_bytes(self) -> int:
        return len(self._packed) * self._plain.weight.slab.entry_bytes if self._packed else 0

    @property
    def packed_entries(self) -> tuple[tuple[Layer, int], ...]:
        """The weights that it has copies of: entries of a layer."""
        return tuple([(self._plain.weight, entry) for entry in list(self._packed)])  # lanes may pack meanwhile

    def __call__(self, rows: RowMap, x: Tensor) -> Tensor:
        # Layers of equal sharing have equal entries, so one number finds the weight, its bias, scale and shift.
        if not self._pays(x) or len({layer.sharing for layer in self._layers}) != 1:
            return self._plain(rows, x)
        x = x.contiguous(memory_format=torch.channels_last)
        runs = rows.layout(self._plain.weight).runs
        if len(runs) == 1:
            return self._one(x, runs[0].entry)
        parts = x.split([run.count * (x.shape[0] // rows.total) for run in runs])
        return torch.cat([self._one(part, run.entry) for part, run in zip(parts, runs, strict=True)])

    def _pays(self, x: Tensor) -> bool:
        plain = self._plain
        return (
            plain.channels_last
            and x.dtype == torch.float32
            and isinstance(plain.padding, (list, tuple))
            and plain.weight.slab.entry_bytes >= WORTH_PACKING_BYTES
        )

    def _one(self, x: Tensor, entry: int) -> Tensor:
        serials = tuple([layer.slab.serial(entry) for layer in self._layers])
        packed = self._packed.get(entry)
        if packed is None or packed.serials != serials:
            packed = self._packed[entry] = self._pack(x, entry, serials)
        plain = self._plain
        y: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
            x,
            packed.weight,
            packed.bias,
            plain.padding,
            plain.stride,
            plain.dilation,
            plain.groups,
            *_activation(plain.bounds),
        )
        return y

    def _pack(self, x: Tensor, entry: int, serials: tuple[int, ...]) -> _Packed:
        plain = self._plain
        weight, bias = plain.weight.entry(entry), None if plain.bias is None else plain.bias.entry(entry)
        if plain.scale is not None and plain.shift is not None:
            weight = weight * plain.scale.entry(entry).view(-1, 1, 1, 1)
            bias = plain.shift.entry(entry)
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        geometry = (list(plain.padding), plain.stride, plain.dilation, plain.groups, list(x.shape))
        return _Packed(reorder(weight, *geometry), bias, serials)


def _activation(bounds: tuple[float, float] | None) -> tuple[str, list[float], str]:
    if bounds is None:
        return "none", [], ""
    return ("relu", [], "") if bounds == (0.0, float("inf")) else ("hardtanh", list(bounds), "")


def available() -> bool:
    """Does this build of torch have oneDNN's packed convolutions?"""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
