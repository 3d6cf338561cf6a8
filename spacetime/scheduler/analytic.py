"""How long every kernel of a program takes on a device, by arithmetic alone. Cost models and the simulator import it.

A kernel takes the longer of its arithmetic and its traffic, plus the launch. A matrix product is cut into the output
tiles of `Device.tiles`; a unit computes one tile at a time, so work comes in whole waves, and a tile that is only
partly needed costs as much as a full one. Rows with different weights never share a tile. That is why some row counts
are bad, why a lane of one row gains nothing, and why one small product leaves most of a device idle.

What it ignores: caches (all traffic goes to memory), products split along the contracted dimension, several
tiles at once on one unit, launches that overlap, data types faster than fp32, weights shared between tenants, and
operations that a fused lane must still run tenant by tenant. What is measured corrects for these (see costs.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spacetime.device import Device
from spacetime.ir import Dim, Kernel, Program, Rows, TensorSpec
from spacetime.scheduler.tables import KernelTimes

SATURATED_BY = 0.5  # this part of the units draws all the bandwidth there is
HALF_SPEED_TILE = 16.0  # multiply-adds per operand read at which a tile runs at half the peak: 32 x 32

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class KernelWork:
    """What kernels ask of a device. `compute_us[k, a - 1]` is for a atoms and unlimited bandwidth."""

    compute_us: Floats
    traffic_bytes: Floats
    serial_us: Floats  # launches: the same on any number of units

    def times(self, device: Device) -> KernelTimes:
        """Alone on the device."""
        traffic_us = self.traffic_bytes[:, None] / (device.bytes_per_us * bandwidth_share(device))
        return KernelTimes(np.maximum(self.compute_us, traffic_us) + self.serial_us[:, None])

    def take(self, index: NDArray[np.intp]) -> KernelWork:
        return KernelWork(self.compute_us[index], self.traffic_bytes[index], self.serial_us[index])


def kernel_work(program: Program, device: Device, *, tenants: int, rows: int, fused: bool = True) -> KernelWork:
    """The work of one lane: `rows` in all, spread evenly over the tenants.

    Fused: one launch per kernel for all rows. Plain: the tenants' own launches one after another, added up. Who asks
    often keeps an `Analytic` instead.
    """
    model = Analytic(program, device)
    return model.work(tenants, rows, fused).take(model.index)


def lane_sizes(device: Device) -> Floats:
    """Units of 1, 2, ... atoms; the last is the whole device with its remainder."""
    sizes = np.arange(1, device.num_atoms + 1, dtype=np.float64) * device.units_per_atom
    sizes[-1] = device.num_units
    return sizes


def bandwidth_share(device: Device) -> Floats:
    """The part of the memory bandwidth that so many atoms can draw."""
    share: Floats = np.minimum(1.0, lane_sizes(device) / device.num_units / SATURATED_BY)
    return share


class Analytic:
    """The model of one program on one device. Its arrays hold every distinct kernel once.

    `index[k]` is the row of kernel k, `kernels[i]` a kernel of row i, `counts[i]` how many kernels it stands for.
    """

    def __init__(self, program: Program, device: Device) -> None:
        self.device = device
        rows: dict[tuple[object, ...], int] = {}
        self.kernels: list[Kernel] = []
        index = []
        for kernel in program.kernels:
            row = rows.setdefault(_identity(kernel), len(rows))
            if row == len(self.kernels):
                self.kernels.append(kernel)
            index.append(row)
        self.index = np.array(index, dtype=np.intp)
        self.counts = np.bincount(self.index, minlength=len(self.kernels)).astype(np.float64)
        self._sizes = lane_sizes(device)
        self._flops = _column([kernel.flops_per_row for kernel in self.kernels])
        self._bytes = _column([kernel.bytes_per_row for kernel in self.kernels])
        self._weight_bytes = _column([kernel.weight_bytes for kernel in self.kernels])
        self._has_weights = self._weight_bytes > 0
        self._reads_all_weights = np.array([kernel.kind != "other" for kernel in self.kernels])
        self._tiled, self._products = _products(self.kernels if device.tiles else [])

    def work(self, tenants: int, rows: int, fused: bool) -> KernelWork:
        """Of the distinct kernels; see `kernel_work`."""
        sets = weight_sets(tenants, rows)
        num_sets = sum(count for count, _ in sets)
        weights = self._weight_bytes * num_sets
        # An operation that is no product reads no more of its weights than it has entries to meet them: a lookup.
        weights = np.where(self._reads_all_weights, weights, np.minimum(weights, self._bytes * rows))
        compute_us = self._flops[:, None] * rows / (self.device.flops_per_unit_us * self._sizes)
        if len(self._tiled):
            compute_us[self._tiled] = self._fused_us(sets, rows) if fused else self._plain_us(sets)
        launches = 1 if fused else num_sets
        serial_us = np.full(len(self.kernels), launches * self.device.launch_us)
        return KernelWork(compute_us, self._bytes * rows + weights, serial_us)

    def _fused_us(self, sets: list[tuple[int, int]], rows: int) -> Floats:
        """Every weight set fills tiles of its own; without weights all rows fill them together."""
        apart = sum(count * self._num_blocks(own_rows) for count, own_rows in sets)
        return self._waves_us(np.where(self._has_weights[self._tiled], apart, self._num_blocks(rows)))

    def _plain_us(self, sets: list[tuple[int, int]]) -> Floats:
        total = np.zeros((len(self._tiled), len(self._sizes)))
        for count, own_rows in sets:
            total += count * self._waves_us(self._num_blocks(own_rows))
        return total

    def _num_blocks(self, rows: int) -> Floats:
        """[tile, product]: the tiles that cover so many rows of one weight set."""
        batch, high, wide = (size * np.where(grows, rows, 1) for size, grows in self._products.sides)
        tile_rows, tile_columns = np.array(self.device.tiles, dtype=np.float64).T[:, :, None]
        blocks: Floats = batch * np.ceil(high / tile_rows) * np.ceil(wide / tile_columns)
        return blocks

    def _waves_us(self, blocks: Floats) -> Floats:
        """[product, size]: whole waves of the tile that does best on so many units."""
        best = np.full((blocks.shape[1], len(self._sizes)), np.inf)
        for (tile_rows, tile_columns), needed in zip(self.device.tiles, blocks, strict=True):
            reuse = tile_rows * tile_columns / (tile_rows + tile_columns)
            speed = self.device.flops_per_unit_us * reuse / (reuse + HALF_SPEED_TILE)
            tile_us = 2 * tile_rows * tile_columns * self._products.depth / speed
            np.minimum(best, np.ceil(needed[:, None] / self._sizes) * tile_us[:, None], out=best)
        return best


class _Products(NamedTuple):
    """Matrix products as arrays: how many, how high, how wide, each with whether the rows multiply it; and depth."""

    sides: tuple[tuple[Floats, NDArray[np.bool_]], ...]
    depth: Floats


class Product(NamedTuple):
    """`batch` products of (high x depth) and (depth x wide) matrices for one row; rows multiply one of them."""

    batch: int
    high: int
    wide: int
    rows_in: str  # "batch" | "high" | "wide"

    def depth(self, kernel: Kernel) -> float:
        return kernel.flops_per_row / (2 * self.batch * self.high * self.wide)


def product_of(kernel: Kernel) -> Product | None:
    """The matrix product behind a kernel; None: it is none, or its shapes do not tell."""
    if kernel.kind == "other" or len(kernel.inputs) < 2 or not kernel.outputs or not kernel.flops_per_row:
        return None
    if kernel.outputs[0].row_dim is None:
        return None
    return _convolution(kernel) if kernel.kind == "conv" else _matrix_product(kernel)


def _convolution(kernel: Kernel) -> Product:
    """Pixels by output channels, group by group. Transposed: input pixels by everything that one of them touches."""
    image, weight, output = kernel.inputs[0], kernel.inputs[1], kernel.outputs[0]
    if "transpose" in kernel.op:
        groups = _entries(output.shape[1]) // _entries(weight.shape[1])
        return Product(groups, _count(image.shape[2:]), _count(weight.shape[1:]), "high")
    groups = _entries(image.shape[1]) // _entries(weight.shape[1])
    return Product(groups, _count(output.shape[2:]), _entries(output.shape[1]) // groups, "high")


def _matrix_product(kernel: Kernel) -> Product:
    """The last two dimensions of the output; those before them join the first where the right side has only two."""
    output = kernel.outputs[0]
    shape, row_dim = (1, *output.shape), _row_dim(output) + 1
    folds = kernel.op == "linear" or (kernel.op == "matmul" and len(kernel.inputs[-1].shape) <= 2)
    batch, high, wide = _count(shape[:-2]), _entries(shape[-2]), _entries(shape[-1])
    if row_dim == len(shape) - 1:
        return Product(batch, high, wide, "wide")
    if folds:
        return Product(1, batch * high, wide, "high")
    return Product(batch, high, wide, "high" if row_dim == len(shape) - 2 else "batch")


def _products(kernels: list[Kernel]) -> tuple[NDArray[np.intp], _Products]:
    """Which of the kernels are products, and these as arrays."""
    found = [(row, kernel, product) for row, kernel in enumerate(kernels) if (product := product_of(kernel))]
    sides = tuple(
        (
            _column([int(getattr(product, side)) for _, _, product in found]),
            np.array([product.rows_in == side for _, _, product in found], dtype=np.bool_),
        )
        for side in ("batch", "high", "wide")
    )
    depth = _column([product.depth(kernel) for _, kernel, product in found])
    return np.array([row for row, _, _ in found], dtype=np.intp), _Products(sides, depth)


def weight_sets(tenants: int, rows: int) -> list[tuple[int, int]]:
    """(how many tenants, rows of each): as even as whole rows allow; nobody has none."""
    tenants = min(tenants, rows)
    fewer, more = divmod(rows, tenants)
    return [(count, own) for count, own in ((more, fewer + 1), (tenants - more, fewer)) if count]


def _identity(kernel: Kernel) -> tuple[object, ...]:
    costs = (kernel.flops_per_row, kernel.bytes_per_row, kernel.weight_bytes)
    return (kernel.op, kernel.inputs, kernel.outputs, kernel.attributes, *costs)


def _row_dim(spec: TensorSpec) -> int:
    assert spec.row_dim is not None
    return spec.row_dim


def _count(shape: tuple[Dim, ...]) -> int:
    return prod(_entries(dim) for dim in shape)


def _entries(dim: Dim) -> int:
    """For one row."""
    return dim.multiple if isinstance(dim, Rows) else dim


def _column(values: list[int] | list[float]) -> Floats:
    return np.array(values, dtype=np.float64)
