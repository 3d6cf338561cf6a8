"""Runs a launch on operands in which everything that must not be read is NaN, and compares with float64.

Also what must not be written is NaN, and has to stay so: idle rows, rows beyond num_active, memory between rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from spacetime.kernels.triton.launch import Slotted
from spacetime.kernels.triton.target import Target

HOPPER = Target("H200", "cuda", "90", 132, 232448)
ON_CPU = ("cpu", HOPPER)  # in the interpreter; bench/device runs the same cases on a GPU
ROWS, SLOTS = 4, 5
MIXES = ((3,), (1, 4), (4, 0, 2), (2, -1, 3), (0, 1, 1, 3), (-1, -1))  # by row, whose weights it uses
TOLERANCE = {"fp32": 2e-6, "bf16": 8e-3, "fp16": 2e-3}
GAP = 32  # elements between two rows; a multiple of 16 bytes


def arrange(operands: Any, mix: Sequence[int]) -> Any:
    """The operands for a mix of tenants, with poison wherever nobody may look."""
    changed = {}
    for order, field in enumerate(fields(operands)):
        value = getattr(operands, field.name)
        if isinstance(value, Slotted):
            changed[field.name] = _slotted(value, mix, order)
        elif field.name == "entries":
            changed[field.name] = _table(mix, 0, value.device)
        elif field.name == "num_active":
            changed[field.name] = torch.tensor([len(mix)], dtype=torch.int32, device=value.device)
        elif field.name in ("x", "residual"):
            changed[field.name] = _rows(value)
        elif field.name in ("out", "total") and value is not None:
            changed[field.name] = _rows(torch.full_like(value, torch.nan))
    return replace(operands, **changed)


def _table(mix: Sequence[int], turn: int, device: torch.device) -> Tensor:
    """Sharing differs from operand to operand, so the tables do; garbage follows behind the last active row."""
    entries = [-1 if entry < 0 and turn == 0 else (entry + turn) % SLOTS for entry in mix]
    return torch.tensor(entries + [1] * (ROWS - len(mix)), dtype=torch.int32, device=device)


def _slotted(operand: Slotted, mix: Sequence[int], order: int) -> Slotted:
    turn = 0 if order == 1 else order  # the weight comes second and tells which rows are idle
    stack = operand.stack
    entries = _table(mix, turn, stack.device)
    around = stack.new_zeros(stack.shape[0] + 1, *stack.shape[1:])  # a wild read finds plain zeros
    around[1:] = stack
    for entry in set(range(SLOTS)) - set(entries.tolist()):
        around[1 + entry] = float("nan")
    return Slotted(around[1:], entries)


def _rows(tensor: Tensor | None) -> Tensor | None:
    """The same rows further apart, NaN between them. Idle rows keep their values: a kernel that runs them must show."""
    if tensor is None:
        return None
    size = tensor[0].numel()
    spread = tensor.new_full((ROWS, size + GAP), float("nan"))
    spread[:, :size] = tensor.reshape(ROWS, size)
    return spread.as_strided(tensor.shape, (size + GAP, *tensor.stride()[1:]))


def compare(out: Tensor, expected: Tensor, dtype: str) -> None:
    """`out` was spread by `arrange`; `expected` has NaN where nothing may be written."""
    unwritten = torch.isnan(expected)
    assert torch.equal(torch.isnan(out), unwritten), "an idle row was written, or an active one was not"
    gaps = out.as_strided((ROWS, GAP), (out.stride(0), 1), out.storage_offset() + out[0].numel())
    assert torch.isnan(gaps).all(), "something was written behind a row"
    if not bool(unwritten.all()):
        wanted, found = expected[~unwritten], out[~unwritten].double()
        deviation = float((found - wanted).norm() / wanted.norm())
        assert deviation < TOLERANCE[dtype], f"deviates by {deviation:.1e}"


def verify(
    kernel: Any,
    shape: Any,
    config: Any = None,
    *,
    mix: Sequence[int] = (4, 0, 2),
    again: bool = False,
    on: tuple[str, Target] = ON_CPU,
) -> Any:
    """Launches a kernel on a mix of tenants; `again`: twice, as a replayed graph does."""
    device, target = on
    config = kernel.default(shape, target) if config is None else config
    words = kernel.workspace_words(shape, config)
    operands = arrange(kernel.sample(shape, device, slots=SLOTS, words=words), mix)
    launch = kernel.launch(shape, config, operands, target)
    for _ in range(2 if again else 1):
        launch.run()
    blank = replace(operands, out=torch.full_like(operands.out, torch.nan))
    compare(operands.out, kernel.reference(shape, blank), shape.dtype)
    return operands
