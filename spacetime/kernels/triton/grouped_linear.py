"""Linear layers of different shapes in one launch, on at most `num_units` units. Needs triton to run only.

The tiles of all layers lie in one table; `num_units` programs work them off. That right-sizes a launch where the
device cannot be partitioned. The tables hold addresses and are written once: slabs and buffers must stay where they
are; who a row belongs to is still read from device memory at every launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from spacetime.errors import InputError
from spacetime.kernels.triton import slot_linear
from spacetime.kernels.triton.blocks import power_of_two, stages_that_fit
from spacetime.kernels.triton.launch import ACTIVATIONS, ITEM_BYTES, Launch, Slotted, product_precision
from spacetime.kernels.triton.target import Target
from spacetime.values import Value

NAME = "grouped_linear"
FIELDS = (
    *("x", "weight", "bias", "residual", "out", "weight_entries", "bias_entries", "num_active"),  # addresses
    *("m", "n", "k"),
    *("x_row", "weight_slot", "bias_slot", "residual_row", "out_row"),  # strides in elements
    "activation",  # its index in ACTIVATIONS
    "weight_places",  # an address, or 0: then entries count in `weight`
)
_PROBLEM_WORDS = 24  # FIELDS, padded
_NOBODY = 1 << 30  # a row that no batch has


@dataclass(frozen=True, slots=True)
class Shape(Value):
    """The layers of one launch: of one type and one precision."""

    layers: tuple[slot_linear.Shape, ...]
    num_units: int


@dataclass(frozen=True, slots=True)
class Config(Value):
    block_m: int
    block_n: int
    block_k: int
    swapped: bool
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """int64[layers, 24] and int32[tiles, 4] in device memory."""

    problems: Tensor
    tiles: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """One for each layer; `tables` is what `prepare` has made of them."""

    layers: tuple[slot_linear.Operands, ...]
    tables: Tables | None = None


def describe(operands: Operands, activations: Sequence[str], num_units: int, precision: str = "ieee") -> Shape:
    """The descriptor of a launch; refuses operands that break the contract."""
    pairs = zip(operands.layers, activations, strict=True)
    shape = Shape(tuple(slot_linear.describe(layer, name, precision) for layer, name in pairs), num_units)
    _check(shape, operands)
    return shape


def default(shape: Shape, target: Target) -> Config:
    """Tiles for the greatest of the layers: the others share them."""
    greatest = max(shape.layers, key=lambda layer: layer.rows * layer.m * layer.n * layer.k)
    m, k = max(layer.m for layer in shape.layers), max(layer.k for layer in shape.layers)
    on_tensor_cores = greatest.dtype != "fp32" or (greatest.precision != "ieee" and target.has_tf32)
    block_m = power_of_two(m, low=16, high=64)
    block_k = power_of_two(k, low=16, high=64 if greatest.dtype != "fp32" else 32 if on_tensor_cores else 16)
    return _fitted(Config(block_m, 64, block_k, block_m <= 32, 4, 3), shape, target)


def candidates(shape: Shape, target: Target) -> Iterator[Config]:
    """What tuning tries."""
    m = max(layer.m for layer in shape.layers)
    for block_m, block_n, block_k in product((16, 32, 64, 128), (32, 64, 128), (16, 32, 64, 128)):
        if block_m >= 2 * m and block_m > 16:
            continue
        for num_warps, num_stages in product((4, 8), (2, 3, 4)):
            config = Config(block_m, block_n, block_k, block_m <= 32, num_warps, num_stages)
            if _fitted(config, shape, target) == config:
                yield config


def _fitted(config: Config, shape: Shape, target: Target) -> Config:
    stage_bytes = (config.block_m + config.block_n) * config.block_k * ITEM_BYTES[shape.layers[0].dtype]
    most = config.num_stages if target.kind == "cuda" else 2
    num_stages = stages_that_fit(stage_bytes, target.shared_bytes, most)
    return Config(config.block_m, config.block_n, config.block_k, config.swapped, config.num_warps, num_stages)


def workspace_words(shape: Shape, config: Config) -> int:
    return 0


def prepare(shape: Shape, config: Config, operands: Operands) -> Operands:
    """With their tables. Copies to the device, so it belongs off the hot path."""
    device = operands.layers[0].x.device
    tables = Tables(problem_table(shape, operands).to(device), tile_table(shape, config).to(device))
    return Operands(operands.layers, tables)


def problem_table(shape: Shape, operands: Operands) -> Tensor:
    """int64[layers, 24] on the host: where everything lies."""
    pairs = zip(shape.layers, operands.layers, strict=True)
    return torch.tensor([_problem(layer, of_layer) for layer, of_layer in pairs], dtype=torch.int64)


def tile_table(shape: Shape, config: Config, multiple: int = 1) -> Tensor:
    """int32[tiles, 4] on the host. Of shapes alone, and perhaps of more rows than a launch has: those idle.

    Idle tiles make their number a multiple: Triton compiles anew for numbers that 16 does not divide.
    """
    tiles = sorted(_tiles(shape, config), key=lambda tile: -shape.layers[tile[0]].k)  # the longest first
    tiles += [(0, _NOBODY, 0, 0)] * (-len(tiles) % multiple)
    return torch.tensor(tiles, dtype=torch.int32)


def _tiles(shape: Shape, config: Config) -> Iterator[tuple[int, int, int, int]]:
    for problem, layer in enumerate(shape.layers):
        firsts = product(range(0, layer.m, config.block_m), range(0, layer.n, config.block_n))
        yield from ((problem, row, m, n) for m, n in firsts for row in range(layer.rows))


def _problem(shape: slot_linear.Shape, operands: slot_linear.Operands) -> list[int]:
    bias, residual = operands.bias, operands.residual
    words = {
        **{"x": operands.x.data_ptr(), "weight": operands.weight.stack.data_ptr(), "out": operands.out.data_ptr()},
        **{"bias": _address(bias), "residual": 0 if residual is None else residual.data_ptr()},
        "weight_entries": operands.weight.entries.data_ptr(),
        "bias_entries": (bias or operands.weight).entries.data_ptr(),
        "num_active": operands.num_active.data_ptr(),
        **{"m": shape.m, "n": shape.n, "k": shape.k},
        **{"x_row": operands.x.stride(0), "weight_slot": operands.weight.stride, "out_row": operands.out.stride(0)},
        **{"bias_slot": 0 if bias is None else bias.stride},
        **{"residual_row": 0 if residual is None else residual.stride(0)},
        "activation": ACTIVATIONS.index(shape.activation),
        "weight_places": 0 if operands.weight.places is None else operands.weight.places.data_ptr(),
    }
    return [words[field] for field in FIELDS] + [0] * (_PROBLEM_WORDS - len(FIELDS))


def _address(bias: Slotted | None) -> int:
    return 0 if bias is None else bias.stack.data_ptr()


def _check(shape: Shape, operands: Operands) -> None:
    """Every load is 16 bytes wide, and one type serves all layers."""
    where = f"{NAME} of {len(shape.layers)} layers"
    kinds = {(layer.dtype, layer.precision) for layer in shape.layers}
    bias_types = {layer.bias.stack.dtype for layer in operands.layers if layer.bias is not None}
    if len(kinds) != 1 or len(bias_types) > 1:
        raise InputError(where, f"types {sorted(kinds)}, biases {bias_types}", "one launch for each type")
    for layer, tensors in zip(shape.layers, operands.layers, strict=True):
        strides = (layer.k, tensors.x.stride(0), tensors.weight.stride)
        if any(stride * ITEM_BYTES[layer.dtype] % 16 for stride in strides):
            facts = f"K, row and slot strides are {strides} elements of {layer.dtype}, not multiples of 16 bytes"
            raise InputError(where, facts, "pad K, or launch slot_linear")
        if any(tensor.data_ptr() % 16 for tensor in (tensors.x, tensors.weight.stack)):
            raise InputError(where, "x or weights do not start at 16 bytes", "launch slot_linear")


def launch(shape: Shape, config: Config, operands: Operands, target: Target) -> Launch:
    assert operands.tables is not None, "prepare() comes first"
    problems, tiles = operands.tables.problems, operands.tables.tiles
    like = operands.layers[0].x
    biases = [layer.bias.stack for layer in operands.layers if layer.bias is not None]
    arguments: dict[str, Any] = {"problems": problems, "tiles": tiles, "num_tiles": tiles.shape[0]}
    return Launch(
        NAME,
        (max(1, min(shape.num_units, tiles.shape[0])),),
        {**arguments, "like": like, "bias_like": biases[0] if biases else like},
        {
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "UNIT": 16 // ITEM_BYTES[shape.layers[0].dtype],
            "SWAPPED": config.swapped,
            "PRECISION": product_precision(shape.layers[0].precision, target.has_tf32),
        },
        config.num_warps,
        config.num_stages,
    )


def reference(shape: Shape, operands: Operands) -> tuple[Tensor, ...]:
    """What `launch` leaves in `out` of every layer."""
    pairs = zip(shape.layers, operands.layers, strict=True)
    return tuple(slot_linear.reference(layer, tensors) for layer, tensors in pairs)


def sample(shape: Shape, device: str, *, slots: int, seed: int = 0, words: int = 0) -> Operands:
    """Random operands of all layers, without tables."""
    layers = enumerate(shape.layers)
    return Operands(tuple(slot_linear.sample(layer, device, slots=slots, seed=seed + i) for i, layer in layers))
