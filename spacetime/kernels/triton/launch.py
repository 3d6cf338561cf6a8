"""A launch as data: which device code on which operands. Also what all wrappers check. The only door to triton.

`Launch.run` is what tests, tuning and executables call; a test can compile the same launch for any target instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from spacetime.errors import InputError, OptionError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
ACTIVATIONS = ("none", "relu", "relu6", "gelu", "gelu_tanh", "silu")  # the order is that of grouped_linear's codes
# What may become of fp32 inside a product: nothing, one rounded term, three terms (about as exact as fp32).
PRECISIONS = ("ieee", "tf32", "tf32x3")
CONTRACT = "see spacetime/kernels/triton/__init__.py for the contract"  # the next step of who broke it
_INT32_LIMIT = 2**31


@dataclass(frozen=True, slots=True, eq=False)
class Slotted:
    """The entries of a slab, and for every row the one that it uses: int32[rows], -1 for an idle row.

    `places`: where each row's entry lies, int64[rows], for entries that may lie in other memory than `stack`; device
    code then reads these addresses, and of `stack` it takes types and strides only.
    """

    stack: Tensor
    entries: Tensor
    places: Tensor | None = None

    @property
    def stride(self) -> int:
        return self.stack.stride(0)

    @property
    def table(self) -> Tensor:
        """What device code finds a row's entry by."""
        return self.entries if self.places is None else self.places

    def __str__(self) -> str:
        return f"{self.stack.dtype}{tuple(self.stack.shape)} for {self.entries.numel()} rows"


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """Device code `sources/<kernel>.py`, its grid, what it gets at run time and what it is compiled for."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int

    def run(self) -> None:
        """On the current stream. Reads no host memory, so it can be captured; compiles on the first call."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        source(self.kernel)[self.grid](**self.arguments, **self.constants, **options)

    def warm(self) -> None:
        """Compile for the current device and run nothing; tensors may be on "meta"."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        source(self.kernel).warmup(grid=self.grid, **self.arguments, **self.constants, **options)

    def __str__(self) -> str:
        return f"{self.kernel}{self.grid} {self.constants} warps={self.num_warps} stages={self.num_stages}"


def source(kernel: str) -> Any:
    """The device code of a kernel. Needs triton."""
    return getattr(import_module(f"spacetime.kernels.triton.sources.{kernel}"), f"{kernel}_kernel")


def table_arguments(**operands: Slotted | None) -> dict[str, Any]:
    """What device code takes of each operand: <name>, <name>_entry and <name>_slot."""
    arguments: dict[str, Any] = {}
    for name, operand in operands.items():
        arguments[name] = None if operand is None else operand.stack
        arguments[f"{name}_entry"] = None if operand is None else operand.table
        arguments[f"{name}_slot"] = 0 if operand is None else operand.stride
    return arguments


def live_rows(entries: Tensor, num_active: Tensor) -> Iterator[tuple[int, int]]:
    """(row, entry) of the rows that count; for references."""
    for row, entry in enumerate(entries[: int(num_active)].tolist()):
        if entry >= 0:
            yield row, entry


def activated(value: Tensor, activation: str) -> Tensor:
    """The activation in plain torch; for references."""
    functions = torch.nn.functional
    calls: dict[str, Any] = {
        "none": lambda v: v,
        "relu": functions.relu,
        "relu6": functions.relu6,
        "gelu": functions.gelu,
        "gelu_tanh": lambda v: functions.gelu(v, approximate="tanh"),
        "silu": functions.silu,
    }
    result: Tensor = calls[activation](value)
    return result


def dtype_name(tensor: Tensor, where: str) -> str:
    if tensor.dtype not in NAMES:
        raise InputError(f"{where}: {tensor.dtype}", f"kernels take {', '.join(DTYPES)}", "use another kernel")
    return NAMES[tensor.dtype]


def check_options(where: str, dtype: str, activation: str, precision: str = "ieee") -> None:
    if activation not in ACTIVATIONS:
        raise OptionError(
            f"{where}: activation {activation!r} does not exist", f"known: {', '.join(ACTIVATIONS)}", "name one"
        )
    if precision not in PRECISIONS:
        raise OptionError(
            f"{where}: precision {precision!r} does not exist", f"known: {', '.join(PRECISIONS)}", "name one"
        )
    if dtype != "fp32" and precision != "ieee":
        raise OptionError(
            f"{where}: precision {precision!r} of {dtype}", "only fp32 can be rounded on its way", "pass 'ieee'"
        )


def check(where: str, rows: int, num_active: Tensor, operands: list[Slotted], *problems: tuple[bool, str]) -> None:
    """The part of the contract that all kernels share, then `problems`: (is it wrong, the facts)."""
    shared = [(num_active.dtype != torch.int32 or num_active.numel() != 1, f"num_active is {num_active.dtype}[]")]
    for operand in operands:
        table, stack = operand.table, operand.stack
        dtype = torch.int32 if operand.places is None else torch.int64
        wrong_table = table.dtype != dtype or table.numel() < rows or not table.is_contiguous()
        shared += [
            (wrong_table, f"a table is {table.dtype}[{table.numel()}] for {rows} rows"),
            (not _is_dense(stack), f"an entry of {tuple(stack.shape)} is not contiguous: strides {stack.stride()}"),
            (_entry_size(stack) >= _INT32_LIMIT, f"an entry has {_entry_size(stack)} elements"),
        ]
    for is_wrong, facts in (*shared, *problems):
        if is_wrong:
            raise InputError(where, facts, CONTRACT)


def check_rows(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[bool, str]]:
    """Problems of a tensor with rows first: its shape, its type, and that a row is contiguous."""
    if tensor is None:
        return []
    return [
        (tuple(tensor.shape) != shape, f"{name} is {tuple(tensor.shape)}, not {shape}"),
        (tensor.dtype != dtype, f"{name} is {tensor.dtype}, not {dtype}"),
        (not _is_dense(tensor), f"a row of {name} is not contiguous: strides {tensor.stride()}"),
        (_entry_size(tensor) >= _INT32_LIMIT, f"a row of {name} has {_entry_size(tensor)} elements"),
    ]


def _is_dense(tensor: Tensor) -> bool:
    return tensor.shape[0] == 0 or tensor[0].is_contiguous()


def _entry_size(tensor: Tensor) -> int:
    return tensor[0].numel() if tensor.shape[0] else 0


def product_precision(precision: str, has_tf32: bool) -> str:
    """Rounding is allowed, never demanded: where the hardware cannot, products are exact."""
    return precision if has_tf32 else "ieee"
