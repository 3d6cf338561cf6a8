"""What policies see and what they answer: frozen values that are executed, simulated, verified and drawn.

Bottom layer, no torch. Times are integer microseconds of the backend's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from spacetime.device import PARTITIONS_ONLY, Capabilities, Device, Partition
from spacetime.values import Value, quickly_made


@quickly_made
@dataclass(frozen=True, slots=True)
class RequestView(Value):
    """A waiting request, as a policy sees it."""

    id: int
    tenant: str
    rows: int
    arrival_us: int
    deadline_us: int | None = None


@quickly_made
@dataclass(frozen=True, slots=True)
class TenantView(Value):
    """A tenant, as a policy sees it: who it can share a launch with, and what it waits for."""

    name: str
    cohort: str  # tenants of one cohort may share a lane; an opaque tenant is a cohort of its own
    fusible: bool  # False: its lanes run the plain module and hold one tenant only
    weight: float
    priority: int
    slo_us: int | None
    served_us: int  # device time it has used, idle time made up for; the measure of fairness
    max_concurrency: int  # lanes of it that may run at once; 1 for modules that may hold state
    running: int  # its lanes that are running now
    waiting: tuple[RequestView, ...]  # oldest first; of a long queue only the head is shown
    active_peers: int = 0  # other tenants of its cohort that submitted recently, and may join a lane soon
    min_units: int = 1  # a lane of it is no smaller
    share_units: int | None = None  # what a policy last gave it by a Resize that is in force
    resizing: bool = False  # a Resize is being prepared; the old size serves meanwhile
    arrivals_per_s: float = 0.0  # recent averages: requests that came, ...
    completions_per_s: float = 0.0  # ... requests that ended well ...
    latency_us: float = 0.0  # ... and how long they took from arrival to end
    apart: bool = False  # a straggler: its lanes hold no other tenant until it keeps up again
    share_since_us: int = 0  # when `share_units` came in force


@quickly_made
@dataclass(frozen=True, slots=True)
class Load(Value):
    """What a launch or a lane is given of one program: rows in all, and the sets of weights that they meet."""

    tenants: int
    rows: int

    def __add__(self, other: Load) -> Load:
        """Together in one launch."""
        return Load(self.tenants + other.tenants, self.rows + other.rows)


@dataclass(frozen=True, slots=True)
class MergedView(Value):
    """A merged execution: lanes with its `id` as their cohort hold tenants of any of these cohorts."""

    id: str
    cohorts: tuple[str, ...]


@quickly_made
@dataclass(frozen=True, slots=True)
class Segment(Value):
    """A run of consecutive kernels on one partition; `last_kernel` is exclusive, -1 means to the end."""

    partition: Partition
    first_kernel: int = 0
    last_kernel: int = -1


@dataclass(frozen=True, slots=True)
class Placement(Value):
    """How the device puts a floating lane's kernels on units: the command processor's part of a plan."""

    order: str = "conserved"  # "conserved": fewest groups, evenly; "packed": one after another; "distributed": all
    max_overlap: int = 0  # how many other kernels a unit may be shared with; 0: isolated, with fewer units if need be
    min_units: int = 1  # with fewer than these, or than it wants if that is less, a kernel waits


@dataclass(frozen=True, slots=True)
class Resize(Value):
    """From now on the tenant's lanes are to have so many units; in force once executables for them are ready."""

    tenant: str
    units: int


@quickly_made
@dataclass(frozen=True, slots=True)
class Lane(Value):
    """One batch on its way through the device. `fused` False: the plain modules, one request after another."""

    cohort: str  # or the id of a merged execution
    requests: tuple[RequestView, ...]
    segments: tuple[Segment, ...]
    fused: bool = True
    placement: Placement | None = None  # for floating partitions

    @property
    def num_rows(self) -> int:
        return sum([request.rows for request in self.requests])

    @property
    def tenants(self) -> tuple[str, ...]:
        """Distinct tenants, in order of first appearance."""
        return tuple(dict.fromkeys([request.tenant for request in self.requests]))

    @property
    def atoms(self) -> int:
        if len(self.segments) == 1:
            return self.segments[0].partition.atoms
        mask = 0
        for segment in self.segments:
            mask |= segment.partition.atoms
        return mask

    @property
    def units(self) -> int:
        if len(self.segments) == 1:
            return self.segments[0].partition.granted_units
        return max([segment.partition.granted_units for segment in self.segments])


@quickly_made
@dataclass(frozen=True, slots=True)
class Plan(Value):
    """The lanes to start now. `wake_at_us`: ask again then, even if nothing happens before."""

    lanes: tuple[Lane, ...] = ()
    wake_at_us: int | None = None
    isolated: bool = True  # False: lanes may overlap with each other and with running ones (uncontrolled sharing)
    resizes: tuple[Resize, ...] = ()


@quickly_made
@dataclass(frozen=True, slots=True)
class Snapshot(Value):
    """Everything a policy may base a decision on. Tenants without waiting requests are left out."""

    now_us: int
    device: Device
    free_atoms: int
    tenants: tuple[TenantView, ...]
    running: tuple[Lane, ...] = ()
    capabilities: Capabilities = PARTITIONS_ONLY
    roster: tuple[str, ...] = ()  # all tenants, waiting or not, as they were added; empty: `tenants` are all
    running_since_us: tuple[int, ...] = ()  # when each lane of `running` started; empty: not known
    freed_at_us: int = 0  # when a lane last ended
    promised_us: int | None = None  # the tightest objective of those that were active recently and do not wait now
    merged: tuple[MergedView, ...] = ()  # what tenants of unlike cohorts may share a lane by
    held_in_vain: tuple[str, ...] = ()  # cohorts that were lately held back for their peers, and none came
    load: float = 0.0  # the part of its unit-time that is asked of the device of late, as far as others wait for it
    load_parts: tuple[tuple[str, float], ...] = ()  # of that, by cohort: those that ask for most
