"""Modules in one line, for tests that need many of them: a function, parts with random weights, the shape of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.capture.tenants import Inputs, named_tensors

Part = tuple[int, ...] | Callable[[], nn.Module]
RowShape = tuple[int, ...]


class Sketch(nn.Module):
    """A module given as a function of (self, *inputs), with parameters by shape and submodules by factory."""

    def __init__(self, function: Callable[..., Any], parts: Mapping[str, Part]) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(torch.empty(part)) if isinstance(part, tuple) else part())

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.function(self, x) if y is None else self.function(self, x, y)


def sketch(function: Callable[..., Any], parts: Mapping[str, Part], seed: int = 0) -> nn.Module:
    """A sketch in eval mode with random weights everywhere: no norm is the identity, no bias is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Sketch(function, parts).eval()
        with torch.no_grad():
            for name, tensor in named_tensors(module).items():
                if name.endswith(("running_var", "original0")):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.is_floating_point():
                    tensor.normal_()
    return module


def draw(row_shapes: Sequence[RowShape | int], rows: int, seed: int) -> Inputs:
    """Normal floats for each shape of a row; an integer n stands for four indices below n."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randint(shape, (rows, 4), generator=generator)
        if isinstance(shape, int)
        else torch.randn(rows, *shape, generator=generator)
        for shape in row_shapes
    )


SEQUENCE: tuple[RowShape | int, ...] = ((6, 8),)  # a row: six steps of eight features
VECTOR: tuple[RowShape | int, ...] = ((8,),)
TOKENS: tuple[RowShape | int, ...] = (5,)


@dataclass(frozen=True)
class Case:
    name: str
    function: Callable[..., Any]
    rows: tuple[RowShape | int, ...] = SEQUENCE
    parts: dict[str, Part] = field(default_factory=dict)
    reason: str = ""  # for modules that are to be refused

    def __str__(self) -> str:
        return self.name


def count(x: Tensor) -> int:
    return x.shape[0]
