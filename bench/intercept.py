"""Case `intercept`: modules that cannot be captured, their calls launched together, against one after another."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from bench.cases import Scale
from bench.results import Figure, Measurement
from bench.timing import Action, duration_us, interleaved_us
from spacetime.backends.executables import Call
from spacetime.backends.intercepted import InterceptedExecutable
from spacetime.device import Partition
from spacetime.plan import Lane, RequestView, Segment

WIDTH = 256
SPEEDUP = Figure(
    "intercept",
    "speed-up of calls that meet",
    "ratio",
    "one row for each of R modules of 3 to 8 layers, as many as their input asks for: greenlets whose linears are "
    "launched together, against the same modules one after another; same thread, all cores; turns interleaved",
)


class AsDeepAsNeeded(nn.Module):
    """What it does depends on its input, so that it cannot be exported."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.again = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        depth = 0
        while depth < 8 and (depth < 3 or float(x.abs().mean()) > 0.05):
            x, depth = torch.tanh(self.again(x)), depth + 1
        return self.out(x)


def run(scale: Scale) -> Iterator[Measurement]:
    for tenants in (2, 8, 32):
        together, apart = _lanes(tenants)
        sides = [partial(duration_us, side) for side in (apart, together)]
        theirs_us, ours_us = interleaved_us(sides, 20 if scale.quick else 200)
        ratios = [their / our for their, our in zip(theirs_us, ours_us, strict=True)]
        yield SPEEDUP.of(f"{tenants} tenants", ratios, axes={"tenants": tenants})


def _lanes(tenants: int) -> tuple[Action, Action]:
    modules = {f"t{index}": AsDeepAsNeeded(index).eval() for index in range(tenants)}
    executable = InterceptedExecutable(modules)
    for name, module in modules.items():
        executable.join(name, module)
    inputs = [torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in range(tenants)]
    calls = [Call((x,), (x,)) for x in inputs]
    views = tuple(RequestView(index, name, 1, 0) for index, name in enumerate(modules))
    whole = (Segment(Partition(1, 1, 1)),)

    def lane(fused: bool) -> Action:
        return lambda: executable.run(Lane("alike", views, whole, fused), calls)

    return lane(True), lane(False)
