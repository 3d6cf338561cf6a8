"""The values an ONNX file is read into: inputs, nodes and constants. Used by profiler/onnx/ only.

A value of a graph is a tensor, or `Numbers`: what shape arithmetic works with, Python numbers of which some may
be symbolic. Constants that are no weights (integers of rank 0 or 1, any scalar) are numbers from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

MAX_NUMBERS = 64  # longer constants are tensors: no shape has so many dimensions


class Unsupported(Exception):
    """What a node asks for that the importer does not do. The caller names the node."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A scalar or a list of numbers; `torch.SymInt`s among them depend on the number of rows."""

    values: tuple[Any, ...]
    dtype: torch.dtype = torch.int64
    is_scalar: bool = False

    @property
    def are_known(self) -> bool:
        return not any(isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) for value in self.values)

    def scalar(self) -> Any:
        if len(self.values) != 1:
            raise Unsupported(f"expected one number, found {len(self.values)}")
        return self.values[0]

    def tensor(self, device: torch.device | None = None) -> Tensor:
        if self.are_known:
            content = self.values[0] if self.is_scalar else list(self.values)
            return torch.tensor(content, dtype=self.dtype, device=device)
        entries = [torch.scalar_tensor(value, dtype=self.dtype, device=device) for value in self.values]
        return entries[0] if self.is_scalar else torch.stack(entries)


Value = Tensor | Numbers


def constant(tensor: Tensor) -> Value:
    """A constant as numbers if it can be no weight: scalars, and lists of integers or booleans."""
    if tensor.ndim == 0 or (tensor.ndim == 1 and tensor.numel() <= MAX_NUMBERS and not tensor.is_floating_point()):
        return Numbers(tuple(tensor.reshape(-1).tolist()), tensor.dtype, tensor.ndim == 0)
    return tensor


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. `version`: the opset in which ONNX defined it as it is meant here; "" is no input."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    version: int
    domain: str = ""

    def __str__(self) -> str:
        return f"{self.op} {self.name!r} (opset {self.opset})"

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def refuse_all_but(self, **allowed: Any) -> None:
        """Raise `Unsupported` for an attribute that has a value other than the only one that is implemented."""
        for name, only in allowed.items():
            if self.attributes.get(name, only) != only:
                raise Unsupported(f"{name}={self.attributes[name]!r} is not implemented, only {only!r}")


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the graph: rows first. `shape` leaves the rows out."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]  # every one behind those it reads
    constants: Mapping[str, Value]
    fixed_rows: int | None = None  # the number of rows if the file states one

    def readers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def pruned(self) -> Graph:
        """Without nodes and constants that no output depends on."""
        wanted = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                kept.append(node)
                wanted.update(node.inputs)
        constants = {name: value for name, value in self.constants.items() if name in wanted}
        return replace(self, nodes=tuple(reversed(kept)), constants=constants)

    def producers(self) -> dict[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs}


@dataclass(frozen=True)
class Operator:
    """How an ONNX operation is done with torch.

    `versions`: the definitions of ONNX that `run` implements. Inputs at `plain` positions arrive as Numbers (sizes,
    axes), those at `scalars` as Python numbers where they are known scalars, those at `either` as they are, all others
    as tensors. One that `makes` tensors out of numbers is told the device as well.
    """

    run: Callable[..., Any]
    versions: frozenset[int]
    plain: frozenset[int] = frozenset()
    scalars: frozenset[int] = frozenset()
    either: frozenset[int] = frozenset()
    makes: bool = False
