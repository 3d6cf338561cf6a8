"""Cases one by one, each with a finding of its own. A case that breaks the CUDA context ends the process's use of the
device, so the process starts again behind it: in place, so that the driver still sees one stage with one time-out.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.device.findings import INFO, PASS, Notes
from bench.device.shards import command_of

FROM = "SPACETIME_DEVICE_FROM"  # the case to go on with
Case = tuple[str, Callable[[], dict[str, Any] | None]]


def each(notes: Notes, stage: str, cases: Sequence[Case], *, status: str = PASS) -> None:
    """Run all cases; what a case returns are its figures."""
    for index in range(int(os.environ.pop(FROM, "0")), len(cases)):
        name, run = cases[index]
        start_s = time.monotonic()
        with notes.trying(name):
            figures = run() or {}
            torch.cuda.synchronize()
            notes.note(name, status, **figures, took_s=round(time.monotonic() - start_s, 2))
        trouble = broken()
        if trouble is not None:
            notes.note(f"{name}: the context is broken", INFO, f"{trouble}; starting again behind it")
            start_again(stage, index + 1)


def broken() -> str | None:
    """Why nothing runs on this context any more."""
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def start_again(stage: str, index: int) -> None:
    """This process becomes a new one of the same stage."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command_of(stage), os.environ | {FROM: str(index)})
