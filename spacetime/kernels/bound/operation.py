"""What bound operations share: their operands, the choice they make, the engine of a device. Used by bound/ only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spacetime.capture.fuse import Step
from spacetime.capture.layer import Layer
from spacetime.kernels.rowmap import MixError, RowMap
from spacetime.kernels.triton import missing, products
from spacetime.kernels.triton.launch import NAMES
from spacetime.kernels.triton.table import Table, shipped
from spacetime.kernels.triton.target import Target
from spacetime.values import Value

PLAIN = "plain torch"
ONE_FOR_ALL = "all rows use the same weights: one plain call is the fastest"
_LEAST_CAPABILITY = (8, 0)  # bf16 and asynchronous copies; what the kernels are compiled and tested for


@dataclass(frozen=True, slots=True)
class Choice(Value):
    """What a step ran as the last time."""

    node: str
    kernel: str  # a kernel of triton/, a way of triton/products.py, or "plain torch"; "" before the first run
    reason: str  # why not a Triton kernel, or what was measured


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A layer, and which row of the lane's table is its own."""

    index: int
    layer: Layer


class Engine:
    """What Triton kernels need to know of a device. One per device."""

    def __init__(self, target: Target, table: Table) -> None:
        self.target = target
        self.table = table
        self.has_products = products.is_in(table)
        self.workspace_words = 0  # the most that a launch has needed so far


def engine_of(device: torch.device) -> Engine | str:
    """The engine of a device, or why it has none."""
    return _engine(device)


@cache
def _engine(device: torch.device) -> Engine | str:
    if os.environ.get("TRITON_INTERPRET") == "1":  # kernels then run on the CPU, for tests
        return Engine(Target("interpreter", "cuda", "90", 1, 232448), {})
    if device.type != "cuda":
        return f"Triton has no kernels for {device.type}"
    reason = missing()
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < _LEAST_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]}: the kernels need 8.0"
    return Engine(Target.of(device), shipped())


class Bound:
    """An operation with a Triton form and a plain one. Subclasses say when, and how."""

    def __init__(self, step: Step, operands: Sequence[Operand | None]) -> None:
        self.node = step.node
        self.choice = Choice(step.node, "", "")
        self.whole_rows: set[int] = set()  # of lanes that multiplied the slab as it lies
        self._layers = [operand.layer for operand in operands if operand is not None]

    def _chose(self, kernel: str, reason: str = "") -> None:
        if self.choice.kernel != kernel or self.choice.reason != reason:
            self.choice = Choice(self.node, kernel, reason)

    def _chose_plain(self, rows: RowMap, reason: str) -> None:
        """Raises where only a kernel will do."""
        if rows.any_mix:
            raise MixError(f"step {self.node!r} has no kernel for any mix of tenants", reason, "capture each mix alone")
        self._chose(PLAIN, reason)

    def _is_one_for_all(self, rows: RowMap) -> bool:
        return not rows.any_mix and all(len(rows.layout(layer).runs) == 1 for layer in self._layers)


def refusal(x: Tensor, *stacks: Tensor | None) -> str | None:
    """Why no kernel takes these types; `stacks` are multiplied with x."""
    if x.dtype not in NAMES:
        return f"{x.dtype}: kernels take {', '.join(NAMES.values())}"
    others = {stack.dtype for stack in stacks if stack is not None} - {x.dtype}
    if others:
        return f"{x.dtype} with weights of {', '.join(map(str, others))}"
    return "there is nothing to compute" if x.numel() == 0 else None


def rows_first(x: Tensor, row_dim: int) -> Tensor:
    return x.movedim(row_dim, 0) if row_dim else x


def operands_of(step: Step, layers: list[Layer]) -> list[Operand | None]:
    return [None if ref is None else Operand(ref.index, layers[ref.index]) for ref in step.operands]


def attributes_of(step: Step, *names: str) -> list[Any]:
    return [step.attributes[name] for name in names]
