"""The seams of the scheduler: what it needs from a backend, an executable, a cost model, a policy.

Everything here is a Protocol or a frozen value; the package imports no torch. Implementations live in
backends/ (cpu, null, ...), capture/ (cohorts) and scheduler/ (costs, policies).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from spacetime.device import Capabilities, Device
from spacetime.plan import Lane, Load, Plan, Snapshot
from spacetime.scheduler.tables import KernelTimes
from spacetime.values import quickly_made


@quickly_made
@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended on the device: a value, or an error of its own."""

    value: Any = None
    error: BaseException | None = None


@quickly_made
@dataclass(frozen=True, slots=True)
class LaneResult:
    """How a lane ended: one outcome per request, in the lane's order."""

    outcomes: tuple[Outcome, ...]
    start_us: int
    end_us: int


class Executable(Protocol):
    """What a lane runs: a cohort, or one opaque module. Called on the lane's partition."""

    def run(self, lane: Lane, payloads: Sequence[Any]) -> Sequence[Outcome]:
        """One outcome per request. Errors of single requests are outcomes; it raises only when it is broken."""


class Backend(Protocol):
    """A device with a clock."""

    @property
    def device(self) -> Device: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def now_us(self) -> int:
        """Microseconds of this backend's clock; never goes back."""

    def start(
        self, lane: Lane, executable: Executable, payloads: Sequence[Any], done: Callable[[LaneResult], None]
    ) -> None:
        """Begin the lane and return; `done` is called exactly once, from any thread, whatever happens."""

    def prepare(self, cohort: str, executable: Executable, units: int, ready: Callable[[], None]) -> None:
        """Make the executable fit to run on so many units, off the hot path, while others go on serving.

        `ready` is called exactly once, from any thread; at once where nothing needs to be made.
        """

    def assist(self, pump: Callable[[], None], most_us: int | None = None) -> bool:
        """The calling thread is about to wait: call `pump`, then run on this thread a lane that it has started,

        if this device runs lanes on threads and this one will do. True if a lane was run. `most_us`: the thread has
        other things to do; a lane that may take longer is left to others.
        """

    def close(self) -> None:
        """Release the device. No lane is running when the loop calls this."""


class CostModel(Protocol):
    """Predicts; never measures. All that a policy may ask."""

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        """Predicted duration of a lane: `rows` in all, of `tenants` different tenants, on `units`."""

    def kernel_times(self, cohort: str, *, tenants: int, rows: int, fused: bool = True) -> KernelTimes:
        """The same lane kernel by kernel, for every number of atoms. Its columns sum up to lane_us()."""


class LearningCostModel(CostModel, Protocol):
    """A cost model that the loop feeds with what lanes really took."""

    def observe(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool, duration_us: int) -> None:
        """A lane of this kind ran undisturbed and took `duration_us`."""

    def retire(self, cohort: str) -> None:
        """Its last tenant has left. A lane of it may still be running; the cohort may come back."""


@runtime_checkable
class MergedCostModel(Protocol):
    """What a cost model has beside the rest where Snapshot.merged is not empty. `loads` are by member: 0 rows, none."""

    def merged_us(self, merged: str, loads: tuple[Load, ...], *, units: int) -> float:
        """Predicted duration of a lane of this merged execution."""

    def observe_merged(self, merged: str, loads: tuple[Load, ...], *, units: int, duration_us: int) -> None:
        """Such a lane ran undisturbed and took `duration_us`."""

    def forget_merged(self, merged: str) -> None:
        """It is no more."""


Policy = Callable[[Snapshot, CostModel], Plan]
