"""Convolution of few pixels with the weights where they are: one call for all tenants, by the kernels of vector/.

oneDNN reorders plain weights at every call, which costs more than the convolution itself where they are large and the
images small. `SlotConv` serves everything else, and defines what is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.kernels.prepacked_conv import PrepackedConv
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_conv import SlotConv
from spacetime.kernels.vector import library
from spacetime.kernels.vector.geometry import Geometry
from spacetime.kernels.vector.host import Host, has_threads
from spacetime.kernels.vector.panel import MOST_FLOATS

_MANY_PIXELS = 256  # of an output image: with more, weights are little of the traffic, and oneDNN's tiles are better
_MOST_PIXELS = 4096  # even for small windows: such outputs do not stay in the cache, and writing them is all there is
_CHUNK_PIXELS = 512  # whose windows stay in the cache while the weights go by
_ALL_PIXELS = 1 << 40


@dataclass(frozen=True, slots=True)
class _Plan:
    """How images of one shape are served. `kernel` None: by PyTorch. A program has fixed shapes, so add() makes it."""

    kernel: library.Kernel | None
    geometry: NDArray[np.int64]  # kept: the address is of its memory
    address: int
    shape: tuple[int, ...]  # of an output image
    strides: tuple[int, ...]
    scratch: int  # floats of the padded copy of an image; 0: none is needed


_PYTORCH = _Plan(None, np.empty(0, np.int64), 0, (), (), 0)


class VectorConv:
    """Wraps a SlotConv; answers the same, faster, for two-dimensional float32 convolutions of small images.

    `others` serves the rest.
    """

    def __init__(self, plain: SlotConv, others: SlotConv | PrepackedConv, on: Host) -> None:
        self._plain, self._others, self._host = plain, others, on
        self._layers = [layer for layer in (plain.weight, plain.bias, plain.scale, plain.shift) if layer is not None]
        self._plans: dict[tuple[torch.Size, int], _Plan] = {}  # by shape of an image, and images per row

    @property
    def packed_bytes(self) -> int:
        return self._others.packed_bytes if isinstance(self._others, PrepackedConv) else 0

    @property
    def packed_entries(self) -> tuple[tuple[Layer, int], ...]:
        return self._others.packed_entries if isinstance(self._others, PrepackedConv) else ()

    def __call__(self, rows: RowMap, x: Tensor) -> Tensor:
        kind = x.shape[1:], x.shape[0] // rows.total
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = self._plan(x, kind[1]) if self._fits(x) else _PYTORCH
        threads = torch.get_num_threads()
        if plan.kernel is None or self._is_mixed() or (threads > 1 and not has_threads()):
            return self._others(rows, x)
        plain = self._plain
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty_strided((x.shape[0], *plan.shape), plan.strides)
        runs = rows.run_words(plain.weight)
        # Names for all memory that the kernel reads: a tenant that joins meanwhile may move the weights.
        weight, scale, shift = plain.weight.stack, _stack(plain.scale), _stack(plain.shift or plain.bias)
        guests = [] if plain.weight.is_stacked() else [plain.weight.entry(entry) for entry in runs[:, 0].tolist()]
        places = torch.tensor([guest.data_ptr() for guest in guests]) if guests else None
        scratch = torch.empty(x.shape[0] * plan.scratch) if plan.scratch else None
        plan.kernel(
            x.data_ptr(),
            y.data_ptr(),
            weight.data_ptr(),
            _address(places),
            _address(scale),
            _address(shift),
            plan.address,
            runs.data_ptr(),
            runs.shape[0],
            _address(scratch),
            threads,
        )
        return y

    def _is_mixed(self) -> bool:
        """Layers of equal sharing have equal entries, so one number finds the weight, its bias, scale and shift."""
        sharing = self._plain.weight.sharing
        return any(layer.sharing != sharing for layer in self._layers)

    def _fits(self, x: Tensor) -> bool:
        plain = self._plain
        weight = plain.weight.stack
        return (
            plain.channels_last
            and x.dtype == weight.dtype == torch.float32
            and x.device.type == weight.device.type == "cpu"
            and weight[0].is_contiguous(memory_format=torch.channels_last)
            and isinstance(plain.padding, (list, tuple))
            and all(step == 1 for step in plain.dilation)
            and (plain.groups == 1 or plain.groups == x.shape[1] == weight.shape[1])
            and not (plain.bias is not None and plain.shift is not None)
        )

    def _plan(self, x: Tensor, images: int) -> _Plan:
        """For so many images per row."""
        plain = self._plain
        _, depth, height, width = x.shape
        channels, _, window_height, window_width = plain.weight.stack.shape[1:]
        (above, left), (down, right) = _pair(plain.padding), _pair(plain.stride)
        padded_height, padded_width = height + 2 * above, width + 2 * left
        lines, columns = (padded_height - window_height) // down + 1, (padded_width - window_width) // right + 1
        pixels = lines * columns
        kernel = self._kernel(pixels * images, window_height * window_width * depth)
        if kernel is None:
            return _PYTORCH
        padded = above > 0 or left > 0
        geometry = Geometry(
            channels=channels,
            weights=plain.weight.stack[0, 0].numel(),
            segments=window_height,
            segment_floats=window_width * depth,
            pixels=pixels,
            width=columns,
            image_floats=padded_height * padded_width * depth,
            line_step=down * padded_width * depth,
            pixel_step=right * depth,
            segment_step=padded_width * depth,
            images=images,
            chunk=_CHUNK_PIXELS if pixels <= _MANY_PIXELS else _ALL_PIXELS,
            lines=height,
            line_floats=width * depth,
            lines_above=above,
            floats_left=left * depth,
            padded_lines=padded_height,
            padded_line_floats=padded_width * depth,
        ).words(plain.bounds)
        return _Plan(
            kernel=kernel,
            geometry=geometry,
            address=geometry.ctypes.data,
            shape=(channels, lines, columns),
            strides=(pixels * channels, 1, columns * channels, channels),
            scratch=padded_height * padded_width * depth if padded else 0,
        )

    def _kernel(self, pixels: int, window: int) -> library.Kernel | None:
        """For so many output pixels per row, and floats per window. None where PyTorch's is better."""
        channels, _, height, width = self._plain.weight.stack.shape[1:]
        if pixels > _MOST_PIXELS:
            return None
        if self._plain.groups > 1:
            return library.one_per_channel(self._host, height, width)
        if window <= min(MOST_FLOATS, pixels):
            return library.small_windows(self._host, channels)
        if pixels > _MANY_PIXELS:
            return None
        return (library.few_pixels if pixels <= 2 else library.many_pixels)(self._host)


def _pair(numbers: list[int] | tuple[int, ...]) -> tuple[int, int]:
    return (numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _stack(layer: Layer | None) -> Tensor | None:
    return None if layer is None else layer.stack


def _address(memory: Tensor | None) -> int:
    return 0 if memory is None else memory.data_ptr()
