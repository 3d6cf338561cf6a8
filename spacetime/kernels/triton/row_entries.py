"""out[layer, r] = entries[layer, slot of r] in one launch: the tables that slot kernels read. Needs triton to run only.

What changes with the mix of tenants is only the slot of each row, a few hundred bytes. Sharing makes every layer map
slots to entries in its own way; those tables change when a tenant joins or leaves, and stay on the device meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spacetime.errors import InputError
from spacetime.kernels.triton.blocks import cdiv, power_of_two
from spacetime.kernels.triton.launch import Launch
from spacetime.kernels.triton.target import Target
from spacetime.values import Value

NAME = "row_entries"


@dataclass(frozen=True, slots=True)
class Shape(Value):
    rows: int
    num_layers: int
    num_slots: int


@dataclass(frozen=True, slots=True)
class Config(Value):
    block_l: int
    block_r: int
    num_warps: int


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """entries[layers, slots], slots[rows], num_active[1] and out[layers, rows]: int32, contiguous.

    `entries` and `out` may be int64: addresses of entries. Only the first num_active words of `slots` are looked at;
    -1 is written for the other rows, and for a slot that is no column of `entries`.
    """

    entries: Tensor
    slots: Tensor
    num_active: Tensor
    out: Tensor


def describe(operands: Operands) -> Shape:
    """The descriptor of a launch; refuses operands that break the contract."""
    tensors = (operands.entries, operands.slots, operands.num_active, operands.out)
    where = f"{NAME} of entries{tuple(operands.entries.shape)} and slots{tuple(operands.slots.shape)}"
    for tensor in tensors:
        is_place = operands.entries.dtype == torch.int64 and (tensor is operands.entries or tensor is operands.out)
        if tensor.dtype != (torch.int64 if is_place else torch.int32) or not tensor.is_contiguous():
            raise InputError(where, f"{tensor.dtype}, strides {tensor.stride()}", "int32 and contiguous")
    (layers, slots), (rows,) = operands.entries.shape, operands.slots.shape
    if operands.out.shape != (layers, rows) or operands.num_active.numel() != 1:
        raise InputError(where, f"out is {tuple(operands.out.shape)}", f"it must be ({layers}, {rows})")
    return Shape(rows, layers, slots)


def default(shape: Shape, target: Target) -> Config:
    return Config(8, min(128, power_of_two(shape.rows, low=16)), 4)


def candidates(shape: Shape, target: Target) -> Iterator[Config]:
    """It takes a microsecond or two whatever it is configured to."""
    yield default(shape, target)


def workspace_words(shape: Shape, config: Config) -> int:
    return 0


def launch(shape: Shape, config: Config, operands: Operands, target: Target) -> Launch:
    return Launch(
        NAME,
        (cdiv(shape.num_layers, config.block_l), cdiv(shape.rows, config.block_r)),
        {
            **{"entries": operands.entries, "slots": operands.slots, "num_active": operands.num_active},
            **{"y": operands.out, "LAYERS": shape.num_layers, "SLOTS": shape.num_slots, "ROWS": shape.rows},
        },
        {"BLOCK_L": config.block_l, "BLOCK_R": config.block_r},
        config.num_warps,
        num_stages=1,
    )


def reference(shape: Shape, operands: Operands) -> Tensor:
    """What `launch` leaves in `out`."""
    result = torch.full_like(operands.out, -1)
    for row, slot in enumerate(operands.slots[: int(operands.num_active)].tolist()):
        if 0 <= slot < shape.num_slots:
            result[:, row] = operands.entries[:, slot]
    return result


def sample(shape: Shape, device: str, *, slots: int, seed: int = 0, words: int = 0) -> Operands:
    """Random operands of a shape."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)
    options = {"dtype": torch.int32, "device": device}
    return Operands(
        torch.randint(-1, slots, (shape.num_layers, shape.num_slots), generator=generator, **options),  # type: ignore[call-overload]
        torch.randint(-1, shape.num_slots, (shape.rows,), generator=generator, **options),  # type: ignore[call-overload]
        torch.tensor([shape.rows], **options),  # type: ignore[arg-type]
        torch.full((shape.num_layers, shape.rows), 10**6, **options),  # type: ignore[call-overload]
    )
