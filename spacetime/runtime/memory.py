"""How much memory models take, and how much there is. Only the runtime imports it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from torch import nn

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Of parameters and buffers; memory that several of them share counts once."""
    sizes: dict[int, int] = {}
    for module in modules:
        for tensor in chain(module.parameters(), module.buffers()):
            sizes[tensor.data_ptr()] = max(sizes.get(tensor.data_ptr(), 0), tensor.nbytes)
    return sum(sizes.values())


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Main memory that can be had without swapping, in a container as well; None where the system does not say."""
    known = [free for free in (_system_bytes(meminfo), _container_bytes(cgroup)) if free is not None]
    return min(known, default=None)


def _system_bytes(meminfo: Path) -> int | None:
    """Linux counts what its caches would give back; elsewhere only free pages are known."""
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _container_bytes(cgroup: Path) -> int | None:
    """What a control group (version 2) leaves; file caches that it would give back count as used by nobody."""
    limit, used, stat = cgroup / "memory.max", cgroup / "memory.current", cgroup / "memory.stat"
    if not (limit.exists() and used.exists()) or limit.read_text().strip() == "max":
        return None
    caches = 0
    if stat.exists():
        caches = sum(
            [int(line.split()[1]) for line in stat.read_text().splitlines() if line.startswith("inactive_file ")]
        )
    return max(0, int(limit.read_text()) - int(used.read_text()) + caches)
