"""Recorded decisions, and their replay. The runtime, the simulator and tests import it; recorder.py writes journals.

A Scheduler is deterministic, given its calls, what the clock said, how lanes ended and which requests were cancelled.
A `Journal` holds just that, and the plans that were made. `replay` gives it to a fresh Scheduler without a device:
the same policy must make the same plans, and of another one the first plan that differs is shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spacetime.device import Capabilities, Device
from spacetime.errors import RejectedError, SpacetimeError
from spacetime.ir import Program
from spacetime.merged import MergedProgram
from spacetime.plan import Lane, MergedView, Plan, RequestView, Snapshot
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.loop import Scheduler
from spacetime.scheduler.protocols import CostModel, Executable, LaneResult, Outcome, Policy
from spacetime.scheduler.registry import get_policy, policy_name
from spacetime.scheduler.request import Request, TenantSpec
from spacetime.scheduler.tables import LatencyTable
from spacetime.values import Value

REPEATED = "there is nothing to do: a replay repeats what was recorded"

Option = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Measured(Value):
    """A latency of the profile that the cost model was given."""

    key: str
    rows: int
    units: int
    us: float


@dataclass(frozen=True, slots=True)
class Registration(Value):
    """A cohort that the cost model was told about; `table` holds what was measured of its kernels."""

    cohort: str
    program: Program | None
    table: tuple[Measured, ...] | None

    @classmethod
    def of(cls, cohort: str, program: Program | None, table: LatencyTable | None) -> Registration:
        if table is None or program is None:
            return cls(cohort, program, None)
        measured = []
        for key in dict.fromkeys(kernel.key for kernel in program.kernels):
            for rows, units in table.measured(key):
                us = table.kernel_us(key, rows, units)
                if us is not None:
                    measured.append(Measured(key, int(rows), int(units), float(us)))
        return cls(cohort, program, tuple(measured))

    def register(self, costs: OnlineCosts, device: Device) -> None:
        """Tell a cost model the same."""
        table = None if self.table is None else _Table(self.table)
        costs.register(self.cohort, self.program, device, table)


@dataclass(frozen=True, slots=True)
class MergedRegistration(Value):
    """A merged execution that the cost model was told about."""

    merged: MergedView  # its cohorts in the order of the program's members
    program: MergedProgram

    def register(self, costs: OnlineCosts, device: Device) -> None:
        """Tell a cost model the same."""
        costs.register_merged(self.merged.id, self.program, self.merged.cohorts, device)


@dataclass(frozen=True, slots=True)
class LaneEnd(Value):
    """How a lane ended. Jobs are what the backend was given, lanes and preparations alike, in order."""

    job: int
    ok: tuple[bool, ...]
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class Entry(Value):
    """One call of the scheduler: what it was given, what it found while it ran, and the plans that it made.

    `call` is a method of Scheduler; or "register"; or, of functions that went through `post`, "lane" for one that the
    end of a lane caused, "ready" for a preparation (the argument is its job), "post" for the n-th without such a cause.
    """

    call: str
    argument: Registration | MergedRegistration | TenantSpec | MergedView | RequestView | LaneEnd | Option = None
    clock_us: tuple[int, ...] = ()  # readings
    cancelled: tuple[tuple[str, int], ...] = ()  # tenants and ids of requests that turned out to be cancelled
    refused: tuple[int, ...] = ()  # jobs that the backend raised an exception for
    plans: tuple[Plan | None, ...] = ()  # None: the policy raised an exception, or returned something else
    error: str | None = None  # the type of the exception that left the call


@dataclass(frozen=True, slots=True)
class Journal(Value):
    """All calls of one scheduler, in order. Larger than a trace: it grows with every request."""

    policy: str
    device: Device
    capabilities: Capabilities
    options: tuple[tuple[str, Option], ...]  # of the Scheduler
    entries: tuple[Entry, ...]
    interrupted: bool = False  # something like Ctrl-C broke into a call; what came after it is not recorded
    is_full: bool = False  # it has as many entries as it may have; what came after them is not recorded

    @property
    def plans(self) -> tuple[Plan, ...]:
        return tuple(plan for entry in self.entries for plan in entry.plans if plan is not None)


@dataclass(frozen=True, slots=True)
class Difference(Value):
    """Where a replay first left the journal."""

    entry: int  # index
    decision: int  # how many plans were equal before
    now_us: int  # the last reading of the clock
    problem: str
    recorded: Plan | None = None
    replayed: Plan | None = None

    def __str__(self) -> str:
        lines = [f"decision {self.decision} (entry {self.entry}, {self.now_us} us): {self.problem}"]
        if self.recorded != self.replayed:
            lines += [f"recorded: {_describe(self.recorded)}", f"replayed: {_describe(self.replayed)}"]
        return "\n  ".join(lines)


@dataclass(frozen=True, slots=True)
class Replay(Value):
    """The plans that were made; the last one is the one that differs, if any does."""

    plans: tuple[Plan, ...]
    difference: Difference | None = None


def replay(journal: Journal, policy: str | Policy | None = None) -> Replay:
    """Make the decisions of a journal again, until one differs. The policy is the recorded one, or another."""
    return _Replayer(journal, get_policy(policy or journal.policy)).run()


def _describe(plan: Plan | None) -> str:
    if plan is None:
        return "no plan"
    lanes = [
        f"{lane.cohort} of {'+'.join(lane.tenants)}, {lane.num_rows} rows, atoms {lane.atoms:#x}, "
        f"{'fused' if lane.fused else 'plain'}"
        for lane in plan.lanes
    ]
    wake = [] if plan.wake_at_us is None else [f"wake at {plan.wake_at_us}"]
    resizes = [f"{resize.tenant} to {resize.units} units" for resize in plan.resizes]
    return "; ".join([*lanes, *resizes, *wake]) or "nothing"


class _Left(BaseException):
    """The replay left the journal. No Exception: the loop, which outlives those, must not catch it."""

    def __init__(self, problem: str, recorded: Plan | None = None, replayed: Plan | None = None) -> None:
        super().__init__(problem)
        self.problem, self.recorded, self.replayed = problem, recorded, replayed


class _Table:
    """A LatencyTable of what was recorded."""

    def __init__(self, measured: Sequence[Measured]) -> None:
        self._us: dict[str, dict[tuple[int, int], float]] = {}
        for each in measured:
            self._us.setdefault(each.key, {})[each.rows, each.units] = each.us

    def kernel_us(self, key: str, rows: int, units: int) -> float | None:
        return self._us.get(key, {}).get((rows, units))

    def measured(self, key: str) -> Sequence[tuple[int, int]]:
        return tuple(self._us.get(key, {}))


class _Script:
    """A Backend that plays its part of the present entry."""

    def __init__(self, journal: Journal) -> None:
        self.device = journal.device
        self.capabilities = journal.capabilities
        self.jobs: dict[int, Callable[..., None]] = {}
        self.last_us = 0
        self._num_jobs = 0
        self.begin(Entry("nothing"))

    def begin(self, entry: Entry) -> None:
        self.clock = deque(entry.clock_us)
        self.cancelled = frozenset(entry.cancelled)
        self._refused = frozenset(entry.refused)

    def now_us(self) -> int:
        if not self.clock:
            raise _Left("the clock was read more often than recorded")
        self.last_us = self.clock.popleft()
        return self.last_us

    def start(
        self, lane: Lane, executable: Executable, payloads: Sequence[Any], done: Callable[[LaneResult], None]
    ) -> None:
        self._accept(done)

    def prepare(self, cohort: str, executable: Executable, units: int, ready: Callable[[], None]) -> None:
        self._accept(ready)

    def _accept(self, callback: Callable[..., None]) -> None:
        job = self._num_jobs
        self._num_jobs += 1
        if job in self._refused:
            facts = f"the backend refused job {job} when it was recorded"
            raise SpacetimeError("a job is refused", facts, REPEATED)
        self.jobs[job] = callback

    def assist(self, pump: Callable[[], None], most_us: int | None = None) -> bool:
        pump()
        return False

    def close(self) -> None:
        pass


class _ScriptedRequest(Request):
    """Is cancelled at the moment at which it turned out to be."""

    __slots__ = ("script",)
    script: _Script

    @property
    def is_cancelled(self) -> bool:
        return (self.view.tenant, self.view.id) in self.script.cancelled

    def begin(self) -> bool:
        if self.is_cancelled:
            self.future.cancel()
        return super().begin()


class _NoExecutable:
    """Nothing runs in a replay."""

    def run(self, lane: Lane, payloads: Sequence[Any]) -> Sequence[Outcome]:
        raise AssertionError("a replay has no device")


class _Replayer:
    def __init__(self, journal: Journal, policy: Policy) -> None:
        self._journal = journal
        self._policy = policy
        self._costs = OnlineCosts()
        self._script = _Script(journal)
        self._expected: deque[Plan | None] = deque()
        self._plans: list[Plan] = []
        self._delivered: Callable[[], None] | None = None  # what the job that is being ended has posted
        self._delivering = False
        self._posts: list[Callable[[], None]] = []
        options: dict[str, Any] = dict(journal.options)
        self._scheduler = Scheduler(self._script, self._decide, self._costs, self._post, **options)

    def run(self) -> Replay:
        for index, entry in enumerate(self._journal.entries):
            self._script.begin(entry)
            self._expected = deque(entry.plans)
            decision = len(self._plans)
            try:
                self._repeat(entry)
            except _Left as left:
                differs = left.recorded != left.replayed
                decision = len(self._plans) - (differs and left.replayed is not None)
                now_us = self._script.last_us
                found = Difference(index, decision, now_us, left.problem, left.recorded, left.replayed)
                return Replay(tuple(self._plans), found)
        return Replay(tuple(self._plans))

    def _repeat(self, entry: Entry) -> None:
        error = None
        try:
            self._call(entry)
        except Exception as raised:
            error = type(raised).__name__
        if error != entry.error:
            raise _Left(f"{entry.call} ended with {error or 'no error'}, recorded was {entry.error or 'no error'}")
        if self._expected:
            raise _Left(f"{entry.call} made fewer decisions than recorded", self._expected[0])
        if self._script.clock:
            raise _Left(f"{entry.call} read the clock less often than recorded")

    def _call(self, entry: Entry) -> None:
        argument: Any = entry.argument
        match entry.call:
            case "register":
                argument.register(self._costs, self._journal.device)
            case "add_tenant" | "replace_tenant" | "add_merged":
                getattr(self._scheduler, entry.call)(argument, _NoExecutable())
            case "submit":
                request = _ScriptedRequest(argument, None)
                request.script = self._script
                self._scheduler.submit(request)
            case "reject_waiting" | "abandon":
                getattr(self._scheduler, entry.call)(RejectedError(argument, "as recorded", REPEATED))
            case "step" | "snapshot":
                getattr(self._scheduler, entry.call)()
            case "close" | "remove_tenant" | "remove_merged":
                getattr(self._scheduler, entry.call)(argument)
            case "lane":
                outcomes = tuple(
                    Outcome() if ok else Outcome(error=SpacetimeError("a request failed", "as recorded", REPEATED))
                    for ok in argument.ok
                )
                self._deliver(argument.job, LaneResult(outcomes, argument.start_us, argument.end_us))
            case "ready":
                self._deliver(argument)
            case "post":
                if argument >= len(self._posts):
                    raise _Left(f"function {argument} was never posted")
                self._posts[argument]()
            case unknown:
                raise _Left(f"this version knows no call {unknown!r}")

    def _deliver(self, job: int, *result: LaneResult) -> None:
        """End a job, and run what its end has posted."""
        callback = self._script.jobs.pop(job, None)
        if callback is None:
            raise _Left(f"job {job} was never started")
        self._delivering = True
        callback(*result)
        self._delivering = False
        function, self._delivered = self._delivered, None
        if function is None:
            raise _Left(f"nothing was posted when job {job} ended")
        function()

    def _post(self, function: Callable[[], None]) -> None:
        if self._delivering:
            self._delivered = function
        else:
            self._posts.append(function)

    def _decide(self, snapshot: Snapshot, costs: CostModel) -> Plan:
        plan, error = None, None
        try:
            plan = self._policy(snapshot, costs)
        except Exception as raised:
            error = raised
        if not self._expected:
            raise _Left("a decision was made that is not recorded", None, plan)
        recorded = self._expected.popleft()
        if isinstance(plan, Plan):
            self._plans.append(plan)
        if plan != recorded and (isinstance(plan, Plan) or recorded is not None):
            raise _Left(f"policy {policy_name(self._policy)!r} decides otherwise", recorded, plan)
        if error is not None:
            raise error
        assert plan is not None
        return plan
