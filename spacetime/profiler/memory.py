"""How much memory a process may still take. Used by profiler/onnx/ and profiler/run.py."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """What the system has left without swapping, within the limit of the control group (a container's)."""
    return min(_of_the_system(), _of_the_group())


def _of_the_system() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_the_group() -> int:
    limit, used = _GROUP / "memory.max", _GROUP / "memory.current"
    try:
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):  # another version of control groups, none, or no limit ("max")
        return 2**63 - 1
