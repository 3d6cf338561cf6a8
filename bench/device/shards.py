"""A stage in several processes at a time: where most of the time goes into compiling kernels, one after another.

For stages that time nothing: their processes share the device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

from bench.device.findings import FAIL, Notes
from bench.provenance import REPOSITORY

SHARD = "SPACETIME_DEVICE_SHARD"  # "2/8": the third of eight parts
Case = TypeVar("Case")


def command_of(stage: str) -> list[str]:
    """One stage, in a process of its own."""
    return [sys.executable, "-X", "faulthandler", "-m", "bench.device", "--stage", stage]


def is_shard() -> bool:
    return SHARD in os.environ


def own_part(cases: Sequence[Case]) -> list[Case]:
    """Of this process; all of them where it is the only one. Neighbours are much alike, so they go to others."""
    index, number = map(int, os.environ.get(SHARD, "0/1").split("/"))
    return list(cases[index::number])


def in_shards(notes: Notes, command: Sequence[str], number: int) -> None:
    """Their findings go where this process's go: a line is one write."""
    sys.stdout.flush()
    running = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | {SHARD: f"{index}/{number}"}, stdin=subprocess.DEVNULL
        )
        for index in range(number)
    ]
    for index, process in enumerate(running):
        code = process.wait()
        if code:
            notes.note(f"part {index} of {number}", FAIL, f"exit code {code}; its other cases have no finding")
