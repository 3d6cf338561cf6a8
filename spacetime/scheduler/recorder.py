"""Writes the journal of a scheduler while it serves. The runtime and tests import it; journal.py replays.

It stands at every seam of the scheduler: its methods, the backend below, the policy, the cost model, the `post` that
brings functions back to the loop. The scheduler itself does not know that it is recorded, and no payload is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import fields
from functools import partial, update_wrapper
from typing import Any

from spacetime.device import Capabilities, Device
from spacetime.errors import OptionError, SpacetimeError
from spacetime.ir import Program
from spacetime.merged import MergedProgram
from spacetime.plan import Lane, MergedView, Plan, RequestView, Snapshot
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.journal import Entry, Journal, LaneEnd, MergedRegistration, Option, Registration
from spacetime.scheduler.loop import Post, Scheduler
from spacetime.scheduler.protocols import Backend, CostModel, Executable, LaneResult, Policy
from spacetime.scheduler.registry import policy_name
from spacetime.scheduler.request import Request, TenantSpec
from spacetime.scheduler.tables import LatencyTable

Argument = Registration | MergedRegistration | TenantSpec | MergedView | RequestView | LaneEnd | Option


class Recorder:
    """Records one scheduler and its cost model, `costs`, which is to be told about cohorts as any other.

    `most_entries`: of the beginning so many, since a replay needs it; None: everything.
    """

    def __init__(self, most_entries: int | None = None) -> None:
        self.costs = RecordingCosts(self)
        self._most_entries = most_entries
        self._entries: list[Entry] = []
        self._present: _Present | None = None
        self._interrupted = False
        self._caller = _Caller()
        self._num_posts = 0
        self._scheduler: RecordingScheduler | None = None
        self._policy = ""
        self._options: tuple[tuple[str, Option], ...] = ()

    def scheduler(self, backend: Backend, policy: Policy, post: Post, **options: Any) -> Scheduler:
        """The scheduler to record; arguments and options are Scheduler's."""
        assert self._scheduler is None, "a recorder is for one scheduler"
        for name, value in options.items():
            if not isinstance(value, Option):
                facts = f"it is a {type(value).__name__}"
                raise OptionError(f"option {name} cannot be recorded", facts, "numbers, strings and None can")
        self._options = tuple(options.items())
        self._policy = policy_name(policy)
        self._scheduler = RecordingScheduler(self, backend, policy, post, options)
        return self._scheduler

    def journal(self) -> Journal:
        """What has been recorded. Call it where the scheduler may be called: between two of its calls."""
        assert self._scheduler is not None, "nothing is being recorded"
        backend = self._scheduler.backend
        return Journal(
            self._policy,
            backend.device,
            backend.capabilities,
            self._options,
            tuple(self._entries),
            self._interrupted,
            self._is_full,
        )

    @property
    def _is_full(self) -> bool:
        return self._most_entries is not None and len(self._entries) >= self._most_entries

    # -- for the parts below ------------------------------------------------------------------------------

    @contextmanager
    def entry(self, call: str, argument: Argument = None) -> Iterator[None]:
        """Record a call; those that it makes itself are part of it."""
        if self._present is not None or self._interrupted or self._is_full:
            yield
            return
        present = self._present = _Present()
        error = None
        try:
            yield
        except Exception as raised:
            error = type(raised).__name__
            raise
        except BaseException:  # it may have come between any two instructions: what follows cannot be repeated
            self._interrupted = True
            raise
        finally:
            self._present = None
            if not self._interrupted and not self._is_full:
                self._entries.append(present.close(call, argument, error))

    def registered(self, registration: Registration | MergedRegistration) -> None:
        """Cohorts are registered before the scheduler knows them, from any thread."""
        if not self._is_full:
            self._entries.append(Entry("register", registration))

    @property
    def present(self) -> _Present | None:
        """The entry that is being written, if the calling thread is in it; others look at clocks, too."""
        present = self._present
        return present if present is not None and present.thread == threading.get_ident() else None

    def caused(self, call: str, argument: Argument, function: Callable[[], None]) -> None:
        """Call a function that posts; what it posts is recorded as this call."""
        self._caller.cause = (call, argument)
        try:
            function()
        finally:
            self._caller.cause = None

    def post(self, post: Post, function: Callable[[], None]) -> None:
        cause, self._caller.cause = self._caller.cause, None  # posting may run other functions, that post
        if cause is None:
            cause = ("post", self._num_posts)
            self._num_posts += 1
        post(partial(self._run, *cause, function))

    def _run(self, call: str, argument: Argument, function: Callable[[], None]) -> None:
        assert self._present is None, "what is posted runs between two calls of the scheduler"
        with self.entry(call, argument):
            function()


class _Caller(threading.local):
    """Of a thread: what it has to report, while it does."""

    cause: tuple[str, Argument] | None = None


class _Present:
    """An entry that is being written."""

    __slots__ = ("cancelled", "clock_us", "plans", "refused", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.clock_us: list[int] = []
        self.cancelled: list[tuple[str, int]] = []
        self.refused: list[int] = []
        self.plans: list[Plan | None] = []

    def close(self, call: str, argument: Argument, error: str | None) -> Entry:
        found = tuple(self.clock_us), tuple(self.cancelled), tuple(self.refused), tuple(self.plans)
        return Entry(call, argument, *found, error)


class RecordingCosts(OnlineCosts):
    """Records which cohorts it is told about; what it learns of them follows from the rest."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def register(self, cohort: str, program: Program | None, device: Device, table: LatencyTable | None = None) -> None:
        super().register(cohort, program, device, table)
        self._recorder.registered(Registration.of(cohort, program, table))

    def register_merged(self, merged: str, program: MergedProgram, cohorts: Sequence[str], device: Device) -> None:
        super().register_merged(merged, program, cohorts, device)
        self._recorder.registered(MergedRegistration(MergedView(merged, tuple(cohorts)), program))


class RecordingBackend:
    """A Backend that records what the scheduler learns from it."""

    def __init__(self, backend: Backend, recorder: Recorder) -> None:
        self._backend = backend
        self._recorder = recorder
        self._num_jobs = 0

    @property
    def device(self) -> Device:
        return self._backend.device

    @property
    def capabilities(self) -> Capabilities:
        return self._backend.capabilities

    def now_us(self) -> int:
        now_us = self._backend.now_us()
        if (present := self._recorder.present) is not None:
            present.clock_us.append(now_us)
        return now_us

    def start(
        self, lane: Lane, executable: Executable, payloads: Sequence[Any], done: Callable[[LaneResult], None]
    ) -> None:
        with self._job() as job:
            self._backend.start(lane, executable, payloads, partial(self._ended, job, done))

    def prepare(self, cohort: str, executable: Executable, units: int, ready: Callable[[], None]) -> None:
        with self._job() as job:
            caused = partial(self._recorder.caused, "ready", job, ready)
            self._backend.prepare(cohort, executable, units, caused)

    def assist(self, pump: Callable[[], None], most_us: int | None = None) -> bool:
        return self._backend.assist(pump, most_us)

    def close(self) -> None:
        self._backend.close()

    def _ended(self, job: int, done: Callable[[LaneResult], None], result: LaneResult) -> None:
        ok = tuple(outcome.error is None for outcome in result.outcomes)
        end = LaneEnd(job, ok, result.start_us, result.end_us)
        self._recorder.caused("lane", end, partial(done, result))

    @contextmanager
    def _job(self) -> Iterator[int]:
        job = self._num_jobs
        self._num_jobs += 1
        try:
            yield job
        except Exception:
            if (present := self._recorder.present) is not None:
                present.refused.append(job)
            raise


class RecordingScheduler(Scheduler):
    """A Scheduler that records its calls. Those that only look, like stats(), are left out."""

    def __init__(
        self, recorder: Recorder, backend: Backend, policy: Policy, post: Post, options: dict[str, Any]
    ) -> None:
        self._recorder = recorder
        decide = _recorded_policy(policy, recorder)
        super().__init__(
            RecordingBackend(backend, recorder), decide, recorder.costs, partial(recorder.post, post), **options
        )

    def add_tenant(self, spec: TenantSpec, executable: Executable) -> None:
        with self._recorder.entry("add_tenant", spec):
            super().add_tenant(spec, executable)

    def replace_tenant(self, spec: TenantSpec, executable: Executable) -> None:
        with self._recorder.entry("replace_tenant", spec):
            super().replace_tenant(spec, executable)

    def remove_tenant(self, name: str) -> Future[None]:
        with self._recorder.entry("remove_tenant", name):
            return super().remove_tenant(name)

    def add_merged(self, view: MergedView, executable: Executable) -> None:
        with self._recorder.entry("add_merged", view):
            super().add_merged(view, executable)

    def remove_merged(self, merged: str) -> None:
        with self._recorder.entry("remove_merged", merged):
            super().remove_merged(merged)

    def submit(self, request: Request) -> None:
        recorded = RecordedRequest(**{field.name: getattr(request, field.name) for field in fields(request)})
        recorded.recorder = self._recorder
        with self._recorder.entry("submit", request.view):
            super().submit(recorded)

    def close(self, drain: bool) -> None:
        with self._recorder.entry("close", drain):
            super().close(drain)

    def reject_waiting(self, error: SpacetimeError) -> None:
        with self._recorder.entry("reject_waiting", error.what):
            super().reject_waiting(error)

    def abandon(self, error: SpacetimeError) -> None:
        with self._recorder.entry("abandon", error.what):
            super().abandon(error)

    def step(self) -> int | None:
        with self._recorder.entry("step"):
            return super().step()

    def snapshot(self) -> Snapshot:
        with self._recorder.entry("snapshot"):
            return super().snapshot()


class RecordedRequest(Request):
    """A request that records whether it was cancelled."""

    __slots__ = ("recorder",)
    recorder: Recorder

    def begin(self) -> bool:
        begun = super().begin()
        if not begun and (present := self.recorder.present) is not None:
            present.cancelled.append((self.view.tenant, self.view.id))
        return begun


def _recorded_policy(policy: Policy, recorder: Recorder) -> Policy:
    def decide(snapshot: Snapshot, costs: CostModel) -> Plan:
        plan = None
        try:
            plan = policy(snapshot, costs)
        finally:
            if (present := recorder.present) is not None:
                present.plans.append(plan if isinstance(plan, Plan) else None)
        return plan

    update_wrapper(decide, policy)
    decide.__name__ = policy_name(policy)  # what error messages call it
    return decide
