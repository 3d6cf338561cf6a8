"""Tenants of whole programs, without a runtime; random modules that are one native call."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spacetime.backends.executables import CohortExecutable
from spacetime.kernels.vector.host import Host
from spacetime.kernels.whole.program import WholeProgram
from spacetime.runtime.prepare import Preparer

Modules = Sequence[nn.Module]


def executable_of(modules: Modules, example: tuple[Tensor, ...]) -> CohortExecutable:
    """A cohort of them, in slots of their order."""
    preparer = Preparer()
    for index, module in enumerate(modules):
        prepared = preparer.prepare(str(index), module.eval(), example, exact=False)
        assert isinstance(prepared.executable, CohortExecutable), prepared.reason
    return prepared.executable


def whole_of(executable: CohortExecutable, on: Host) -> WholeProgram:
    """Its program for this processor."""
    cohort = executable.cohort
    like = [node.meta["val"] for node in cohort.captured.exported.inputs]
    whole = WholeProgram.of(cohort.fused, cohort.layers, like, on)
    assert isinstance(whole, WholeProgram), whole
    return whole


POINTWISE = (
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    torch.abs,
    nn.functional.gelu,
    nn.functional.silu,
    nn.functional.relu6,
    nn.functional.hardtanh,
    lambda x: torch.softmax(x, -1),
    lambda x: 0.5 * x - 1,
    lambda x: x * x + x,
    lambda x: torch.maximum(x, -x),
    lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1] if x.shape[-1] % 2 == 0 else x,
    lambda x: torch.cat([x, x[..., :1]], -1),
    lambda x: x[..., 1:] if x.shape[-1] > 3 else x,
)


class Random(nn.Module):
    """Linear layers, norms and pointwise operations in a random order, over one vector per row or several."""

    def __init__(self, structure: int, seed: int, width: int, depth: int) -> None:
        super().__init__()
        rng = random.Random(structure)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self.functions: list[Any] = []
        x = torch.zeros(1, width)
        for _ in range(depth):
            kind = rng.choice(("linear", "linear", "norm", "function", "function", "scale"))
            layer: nn.Module = nn.Identity()
            function = None
            if kind == "linear":
                layer = nn.Linear(x.shape[-1], rng.randint(1, 40), bias=rng.random() < 0.7)
            elif kind == "norm":
                layer = nn.LayerNorm(x.shape[-1], elementwise_affine=rng.random() < 0.7)
            elif kind == "scale":
                layer = _Scale(x.shape[-1])
            else:
                function = rng.choice(POINTWISE)
            self.layers.append(layer)
            self.functions.append(function)
            with torch.no_grad():
                x = layer(x) if function is None else function(x)
        for parameter in self.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))

    def forward(self, x: Tensor) -> Any:
        first = x
        for layer, function in zip(self.layers, self.functions, strict=True):
            x = layer(x) if function is None else function(x)
        return x, {"other": first - x[..., :1]}


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor
