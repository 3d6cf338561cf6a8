"""How much memory tenants take, and how much there is. Only the runtime imports it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from spacetime.backends.executables import CohortExecutable
from spacetime.backends.families import LengthsExecutable
from spacetime.errors import AdmissionError
from spacetime.ir import Program, TensorSpec
from spacetime.values import Value

if TYPE_CHECKING:
    from spacetime.capture.cohort import Cohort

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class TenantMemory(Value):
    """Where a tenant's bytes are. Shared ones are counted in full for everybody who has them."""

    tenant: str
    weight_bytes: int  # that nobody else has
    shared_weight_bytes: int  # entries of slabs, or tensors, that other tenants have as well, of any cohort
    buffer_bytes: int  # registered buffers that are not among the weights of its lanes
    graph_bytes: int  # of CUDA graphs; its part of those of several tenants
    lane_bytes: int  # predicted for the values of a lane of its example's rows; 0: opaque, not known
    packed_bytes: int = 0  # copies of its weights that `prepack=True` has made so far; of shared ones in full

    @property
    def peak_bytes(self) -> int:
        """What it may take at most, by itself, while a lane of its example runs."""
        weights = self.weight_bytes + self.shared_weight_bytes + self.packed_bytes
        return weights + self.buffer_bytes + self.graph_bytes + self.lane_bytes

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in FIGURES}


FIGURES = (
    "weight_bytes",
    "shared_weight_bytes",
    "packed_bytes",
    "buffer_bytes",
    "graph_bytes",
    "lane_bytes",
    "peak_bytes",
)


@dataclass(frozen=True, slots=True)
class MemoryReport(Value):
    """All tenants, and the device: what is there counts once, whoever shares it."""

    tenants: tuple[TenantMemory, ...]
    resident_bytes: int  # of all tenants: weights, packed copies of them, buffers, graphs
    reserve_bytes: int  # room in slabs that nobody uses; on a CPU it costs nothing until it is written to
    peak_bytes: int  # the most that was resident at a time when somebody came, left or looked
    packed_bytes: int = 0  # of `resident_bytes`, copies of weights; of a tenant that has left they wait for the next


NO_MEMORY = MemoryReport((), 0, 0, 0)


@dataclass(frozen=True)
class Holding:
    """A tenant as the ledger sees it."""

    module: nn.Module
    cohort: Cohort | None
    rows: int  # of its example
    executable: object = None  # what runs its lanes

    @property
    def programs(self) -> tuple[CohortExecutable, ...]:
        """Those with kernels that may keep copies of weights: one, or one per length."""
        if isinstance(self.executable, LengthsExecutable):
            return tuple(self.executable.programs.values())
        return (self.executable,) if isinstance(self.executable, CohortExecutable) else ()


class Ledger:
    """Who holds what. `update` after every change of tenants, by one thread at a time; `report` by anyone, any time."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, int], int] = {}
        self._tenants: tuple[TenantMemory, ...] = ()
        self._programs: dict[str, tuple[CohortExecutable, ...]] = {}  # by tenant
        self._resident_bytes = self._reserve_bytes = self._peak_bytes = 0

    def update(self, holdings: Mapping[str, Holding]) -> None:
        held = {name: dict(_memories(name, holding)) for name, holding in holdings.items()}
        users = Counter(address for memories in held.values() for address in memories)
        once = {address: num_bytes for memories in held.values() for address, (num_bytes, _) in memories.items()}
        tenants = []
        for name, memories in held.items():
            own = shared = buffers = 0
            for address, (num_bytes, is_buffer) in memories.items():
                if users[address] > 1:
                    shared += num_bytes
                elif is_buffer:
                    buffers += num_bytes
                else:
                    own += num_bytes
            tenants.append(TenantMemory(name, own, shared, buffers, 0, self._lane_bytes(holdings[name])))
        signatures = {holding.cohort.program.signature for holding in holdings.values() if holding.cohort is not None}
        self._lanes = {key: num_bytes for key, num_bytes in self._lanes.items() if key[0] in signatures}
        cohorts = {id(holding.cohort): holding.cohort for holding in holdings.values() if holding.cohort is not None}
        self._tenants = tuple(tenants)
        self._programs = {name: holding.programs for name, holding in holdings.items()}
        self._resident_bytes = sum(once.values())
        self._reserve_bytes = sum(map(reserve_bytes, cohorts.values()))
        self._peak_bytes = max(self._peak_bytes, self._resident_bytes + sum(_packed(self._programs)[0].values()))

    def report(self, graph_bytes: Mapping[str, int]) -> MemoryReport:
        by_program, by_tenant = _packed(self._programs)
        tenants = tuple(
            [
                replace(memory, graph_bytes=graph_bytes.get(memory.tenant, 0), packed_bytes=by_tenant[memory.tenant])
                for memory in self._tenants
            ]
        )
        packed = sum(by_program.values())
        resident = self._resident_bytes + packed + sum(graph_bytes.values())
        self._peak_bytes = max(self._peak_bytes, resident)
        return MemoryReport(tenants, resident, self._reserve_bytes, self._peak_bytes, packed)

    def _lane_bytes(self, holding: Holding) -> int:
        if holding.cohort is None:
            return 0
        program = holding.cohort.program
        key = (program.signature, holding.rows)
        if key not in self._lanes:
            self._lanes[key] = lane_bytes(program, holding.rows)
        return self._lanes[key]


def _memories(name: str, holding: Holding) -> Iterator[tuple[int, tuple[int, bool]]]:
    """(address, (bytes, is it a mere buffer?)): entries of slabs first, which the module's parameters are views of."""
    seen = set()
    if holding.cohort is not None:
        slot = holding.cohort.members[name].slot
        for layer in holding.cohort.layers:
            view = layer.of_slot(slot)
            seen.add(view.data_ptr())
            yield view.data_ptr(), (view.nbytes, False)
    buffers = ((tensor, True) for tensor in holding.module.buffers())
    for tensor, is_buffer in chain(((tensor, False) for tensor in holding.module.parameters()), buffers):
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield tensor.data_ptr(), (tensor.nbytes, is_buffer)


def _packed(programs: Mapping[str, tuple[CohortExecutable, ...]]) -> tuple[dict[int, int], Counter[str]]:
    """Bytes of packed copies of weights: of every program, and of what each tenant uses of them.

    Looked up at every report, since kernels pack weights when they first need them.
    """
    by_program, by_tenant = dict[int, int](), Counter[str]()
    for name, own in programs.items():
        for program in own:
            member = program.cohort.members.get(name)
            packed = program.packed
            by_program[id(program)] = sum([layer.slab.entry_bytes for layer, _ in packed])
            if member is not None:
                by_tenant[name] += sum(
                    [layer.slab.entry_bytes for layer, entry in packed if layer.entries[member.slot] == entry]
                )
    return by_program, by_tenant


def reserve_bytes(cohort: Cohort) -> int:
    """Of slabs, without the entries that are in use. Places of what lies in another cohort's slab are room, too."""
    slabs = [layer.slab for layer in cohort.layers]
    return sum(slab.stack.nbytes - slab.num_stored * slab.entry_bytes for slab in slabs)


def lane_bytes(program: Program, rows: int) -> int:
    """The most that inputs and values of a lane take at one time, if every value lives until its last reader ends.

    Workspaces of libraries come on top; what a kernel overwrites in place is counted twice.
    """
    last_reader = {dep: kernel.index for kernel in program.kernels for dep in kernel.deps}
    ends: dict[int, list[int]] = {}
    for index, reader in last_reader.items():
        ends.setdefault(reader, []).append(index)
    sizes = {kernel.index: _spec_bytes(kernel.outputs, rows) for kernel in program.kernels}
    living = most = _spec_bytes(program.inputs, rows)
    for kernel in program.kernels:
        living += sizes[kernel.index]
        most = max(most, living)
        living -= sum(sizes[index] for index in ends.get(kernel.index, ()))
    return most


def _spec_bytes(specs: Iterable[TensorSpec], rows: int) -> int:
    return sum(spec.size(rows) * getattr(torch, spec.dtype).itemsize for spec in specs)


def memory_lines(report: MemoryReport) -> list[str]:
    """A table for explain()."""
    headings = ("weights", "shared", "packed", "buffers", "graphs", "lane", "at most")
    lines = [
        f"memory: {_megabytes(report.resident_bytes)} MB are held, {_megabytes(report.peak_bytes)} MB at most so far, "
        f"{_megabytes(report.reserve_bytes)} MB are reserved for tenants to come",
        "  MB" + "".join(f"{heading:>10}" for heading in headings) + "  tenant",
    ]
    for memory in report.tenants:
        cells = "".join(f"{_megabytes(num_bytes):>10}" for num_bytes in memory.as_dict().values())
        lines.append(f"    {cells}  {memory.tenant}")
    return lines


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f}"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Did memory run out, here or in what led to it?"""
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error):
            return True
        error = error.__cause__
    return False


def out_of_memory(tenant: str, device: str, error: BaseException) -> AdmissionError:
    """Instead of the error that add() ended with."""
    what = f"tenant {tenant!r} does not fit into the memory of {device}"
    facts = f"{type(error).__name__}: {error}".replace("\n", " ")
    return AdmissionError(what, facts, "remove a tenant, or use a smaller dtype; the tenants that are there go on")


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
