"""Programs and kernels: what a captured tenant does, without torch. Bottom layer.

A dimension is an `int`, or a `Rows(k)`: k times the number of rows in the batch. Kernels are keyed by
operation, shapes, dtype and attributes, never by their position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from spacetime.values import Value


@dataclass(frozen=True, slots=True)
class Rows(Value):
    """A dimension that grows with the batch: `multiple` entries for every row."""

    multiple: int = 1

    def __str__(self) -> str:
        return "rows" if self.multiple == 1 else f"{self.multiple}*rows"


Dim = int | Rows


@dataclass(frozen=True, slots=True)
class TensorSpec(Value):
    """Shape and dtype of a value; `row_dim` tells which dimension carries the rows (None: no rows)."""

    shape: tuple[Dim, ...]
    dtype: str
    row_dim: int | None = None

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def size(self, rows: int) -> int:
        """Number of elements for a batch of `rows`."""
        total = 1
        for dim in self.shape:
            total *= dim.multiple * rows if isinstance(dim, Rows) else dim
        return total


@dataclass(frozen=True, slots=True)
class Kernel(Value):
    """One operation of a program. Costs are those of a batch of `rows`: fixed + rows x per_row."""

    index: int
    name: str  # for people: the module path, or the node's name
    op: str  # "linear", "conv2d", "relu", ...
    kind: str  # "gemm" | "conv" | "other"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[int, ...]  # indices into Program.weights
    deps: tuple[int, ...]  # indices of the kernels whose outputs this one reads
    attributes: str  # everything else that changes what is computed, canonically printed
    flops_per_row: int
    bytes_per_row: int
    weight_bytes: int  # that a launch reads, per set of weights

    @property
    def key(self) -> str:
        """What makes two kernels the same work, whoever they belong to."""
        shapes = ",".join(map(str, self.inputs))
        return f"{self.op}({shapes}){self.attributes}"

    def flops(self, rows: int) -> int:
        return self.flops_per_row * rows

    def bytes(self, rows: int, num_weight_sets: int = 1) -> int:
        return self.bytes_per_row * rows + self.weight_bytes * num_weight_sets


@dataclass(frozen=True)
class Program(Value):
    """The kernels of one architecture in execution order. Tenants with equal signatures form a cohort."""

    signature: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[TensorSpec, ...]
    kernels: tuple[Kernel, ...]

    def flops(self, rows: int) -> int:
        return self._flops_per_row * rows

    def bytes(self, rows: int, num_weight_sets: int = 1) -> int:
        return self._bytes_per_row * rows + self._weight_bytes * num_weight_sets

    @cached_property
    def _flops_per_row(self) -> int:
        return sum(kernel.flops_per_row for kernel in self.kernels)

    @cached_property
    def _bytes_per_row(self) -> int:
        return sum(kernel.bytes_per_row for kernel in self.kernels)

    @cached_property
    def _weight_bytes(self) -> int:
        return sum(kernel.weight_bytes for kernel in self.kernels)

    def __str__(self) -> str:
        lines = [f"program {self.signature}: {len(self.kernels)} kernels, {len(self.weights)} weights"]
        for kernel in self.kernels:
            outs = ", ".join(map(str, kernel.outputs))
            lines.append(f"  {kernel.index:4d} {kernel.op:<24} {kernel.name:<40} -> {outs}")
        return "\n".join(lines)
