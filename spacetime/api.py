"""The functions of the public namespace that belong to no class. `import spacetime as st` re-exports them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from spacetime.capture.export import Unfusible, export
from spacetime.capture.named import Example, positional
from spacetime.capture.program import build_program
from spacetime.capture.rows import prove
from spacetime.errors import CaptureError
from spacetime.ir import Program
from spacetime.profiler.campaign import Progress
from spacetime.profiler.profile import Profile
from spacetime.profiler.run import Asked, profile_program
from spacetime.profiler.source import remember
from spacetime.scheduler.tables import TOLERANCE


def capture(module: nn.Module, example: Example) -> Program:
    """The kernels of a module and its signature; `CaptureError` says why a module has none. `example`: as of add().

    The program is data without torch. What `profile` needs to run it, the weights above all, stays in this process as
    long as the program does.
    """
    name = type(module).__name__
    called, inputs = positional(name, module, example)
    try:
        exported = export(called, inputs)
        captured = build_program(exported, prove(exported))
    except Unfusible as why:
        raise CaptureError(
            f"{name} cannot be captured", str(why), "as a tenant it would run whole, in its own lane"
        ) from why
    remember(captured, inputs, called)
    return captured.program


def profile(
    program: Program,
    device: str = "cpu",
    *,
    rows: Sequence[int] = (1,),
    units: Sequence[int] | None = None,
    tolerance: float = TOLERANCE,
    store: str | Path | None = None,
    cache: str = "run",
    budget_s: float = 1.0,
    refresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Profile:
    """The latency of every kernel over units, and the knees.

    `device` "cpu" is measured, and takes a program that was captured in this process; "model:h200" and its like are
    modelled. `units` None is all sizes, or as many as it takes where there are many. `cache` "run" times kernels in
    whole runs of the program, which is how they are used; "warm" repeats each on its own, "cold" sweeps the caches
    before every sample. What is measured goes to the `store`, a folder (None: spacetime/profiles in the user's cache
    folder), kernel by kernel, about `budget_s` for each at most: kernels known there are not measured again, unless
    `refresh`, and what was interrupted is resumed.
    """
    asked = Asked(device, rows, units, tolerance, store, cache, budget_s, refresh)
    return profile_program(program, asked, progress)
