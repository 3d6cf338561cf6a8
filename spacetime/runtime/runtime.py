"""Runtime: the public entrance. Tenants are added and removed while others run; nothing ever restarts."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self
from weakref import finalize

import torch
from torch import nn

from spacetime.backends import make_backend, memory_of
from spacetime.backends.meeting import require_greenlet
from spacetime.backends.threads import on_passing_thread, release_team
from spacetime.capture.lengths import Declared, Lengths
from spacetime.capture.named import Example, input_names, omitted_inputs, positional
from spacetime.errors import AdmissionError, ClosedError, OptionError, RejectedError, SpacetimeError
from spacetime.kernels import prepacked_conv
from spacetime.profiler.profile import Profile
from spacetime.runtime.admission import Admission, Candidate, LoopFigures
from spacetime.runtime.checks import brought, check_example, check_module
from spacetime.runtime.contract import Contract, contract_of
from spacetime.runtime.explain import ApartReport, Explanation, cohort_report, lengths_report, opaque_report
from spacetime.runtime.memory import FIGURES, Holding, Ledger, MemoryReport, lane_bytes
from spacetime.runtime.merging import Merging
from spacetime.runtime.options import check_flags, check_profile, chosen, no_tenant, recorder_of, table_of
from spacetime.runtime.prepare import Prepared, Preparer
from spacetime.runtime.tenant import Tenant, Wrapped
from spacetime.runtime.undo import prepare_whole, release
from spacetime.runtime.written_report import written_reports
from spacetime.scheduler.admission import check_option
from spacetime.scheduler.costs import OnlineCosts, Staleness
from spacetime.scheduler.driver import Driver, Result
from spacetime.scheduler.journal import Journal
from spacetime.scheduler.loop import Post, Scheduler
from spacetime.scheduler.protocols import Backend, Policy
from spacetime.scheduler.registry import get_policy
from spacetime.scheduler.request import TenantSpec, limit_us, make_request
from spacetime.trace import Trace


@dataclass(frozen=True)
class _Resident:
    spec: TenantSpec
    contract: Contract | None  # None: it takes no more requests, what waits is being served
    prepared: Prepared
    rows: int  # of the example


class Runtime:
    """Many models, one device. A context manager; `close()` serves what waits and ends.

    >>> with Runtime(device="cpu") as rt:
    ...     double = rt.add(nn.Linear(4, 2).eval(), example=(torch.ones(2, 4),), name="double")
    ...     tuple(double(torch.ones(3, 4)).shape)
    (3, 2)
    """

    def __init__(
        self,
        device: str | torch.device | Backend = "auto",
        policy: str | Policy = "space_time",
        *,
        prepack: bool = False,
        intercept: bool = False,
        merge: bool = False,
        admission: str = "warn",
        profile: Profile | None = None,
        record: bool | int = False,
    ) -> None:
        """`device`: "auto" (a GPU that torch can use, else the CPU), "cpu", "cuda:0", "hip:0", or a backend itself.
        `policy`: a name, docs/index.md lists them, or a function `(Snapshot, CostModel) -> Plan`.

        `prepack=True` keeps a second copy of large convolution weights in the form the CPU is fastest with.

        `intercept=True`: modules that cannot be captured share the launches of their linears and convolutions with
        modules that are alike, when that is faster; needs the extra "intercept".

        `merge=True`: tenants of unlike architectures share the launches that they have in common, when that is
        faster. What may be merged is prepared in the background of add(); explain() says what is, and what is not.

        `admission`: what add() does with a tenant that cannot make its SLO, comes to an overloaded device or does
        not fit into memory: "warn", "reject" (AdmissionError), or "off": nothing is predicted. `profile`: what was
        measured on this machine, for better first guesses. `record=100_000` keeps a journal of the scheduler's first
        so many calls and its decisions: four a request, 0.3 KB each. `record=True` keeps all of them.
        """
        check_option(admission)
        check_flags(prepack=prepack, intercept=intercept, merge=merge)
        check_profile(profile)
        if prepack and not prepacked_conv.available():
            raise OptionError(
                "prepack=True needs oneDNN", "this build of torch has none of its packed convolutions", "leave it out"
            )
        if intercept:
            require_greenlet()
        self._policy = get_policy(policy)
        self._backend = make_backend(chosen(device))
        self._memory = memory_of(self._backend)
        self._torch_device = self._memory.torch_device
        self._ledger = Ledger()
        self._recorder = recorder_of(record)
        self._costs = OnlineCosts() if self._recorder is None else self._recorder.costs
        self._table = None if profile is None else table_of(profile, self._backend.device, self._memory.unconfined)
        copies = 2 if prepack else 1
        self._admission = Admission(admission, self._backend.device, self._costs, self._memory, copies=copies)
        self._preparer = Preparer(prepack, intercept)
        self._residents: dict[str, _Resident] = {}
        self._changing = threading.RLock()  # one add() or remove() at a time; requests do not take it
        self._closed = False
        self._request_ids = itertools.count()
        residents, preparer, changing = self._residents, self._preparer, self._changing
        # It does not know the runtime, which so ends when nobody has a name for it, or for a handle.
        self._driver = Driver(self._build, at_end=lambda: release(residents, preparer, changing, merging))
        finalize(self, self._driver.let_go).atexit = False
        merging = Merging(self._driver, self._costs, self._backend.device, changing) if merge else None
        self._merging = merging

    def _build(self, post: Post) -> Scheduler:
        if self._recorder is not None:
            return self._recorder.scheduler(self._backend, self._policy, post)
        return Scheduler(self._backend, self._policy, self._costs, post)

    # -- tenants --------------------------------------------------------------------------------------

    def add(
        self,
        module: nn.Module,
        example: Example,
        name: str,
        *,
        slo_ms: float | None = None,
        weight: float = 1.0,
        priority: int = 0,
        exact: bool = False,
        max_queue: int = 10_000,
        timeout_ms: float | None = None,
        late: str = "serve",
        dynamic: Declared | None = None,
    ) -> Tenant:
        """Make `module` a tenant. It joins the cohort of its architecture, or runs alone with the reason in explain().

        Blocks, for seconds where the architecture is new, while others are served. `name`: of the tenant, its key in
        stats() and for remove().

        `example`: a tuple of positional inputs, or inputs by name as a tokenizer gives them, {"input_ids": ids,
        "attention_mask": mask}; requests have the same ones, with any number of rows. What is None stays None.

        `slo_ms`: the latency that requests should keep to. `weight`: of its share of the device where there is not
        enough for all, beside others'. `priority`: lower ones come first. Of its requests `max_queue` may wait, the
        next one is rejected. A request that has not started after `timeout_ms` is rejected; `late="reject"` also
        rejects one as soon as it cannot make its `slo_ms` any more.

        `exact=True` keeps every kernel as it is: bit-equal results, nothing shared. `dynamic`: dimensions that vary
        from request to request, as {"ids": {1: (8, 512)}, "mask": {1: (8, 512)}}; all of them have one length.

        Weights must not change while the module is a tenant.
        """
        self._driver.may_wait("add()")
        check_module(name, module, self._torch_device)
        module, inputs = positional(f"tenant {name!r}", module, example)
        check_example(name, inputs)
        check_flags(exact=exact)
        asked = TenantSpec(
            name,
            cohort="",  # not known yet
            weight=weight,
            priority=priority,
            slo_us=limit_us(name, "slo_ms", slo_ms),
            max_queue=max_queue,
            timeout_us=limit_us(name, "timeout_ms", timeout_ms),
            late=late,
        )
        inputs = brought(inputs, self._torch_device)
        lengths = None if dynamic is None else Lengths.of(name, module, inputs, dynamic)
        with self._changing:
            self._check_name(name)
            candidate = Candidate(name, module, inputs)
            memory_problem = self._admission.check_memory(candidate, self._preparer.modules.values())
            where = (self._backend.device.name, self._memory)
            prepared = prepare_whole(self._preparer, candidate, *where, exact=exact, lengths=lengths)
            release_team()  # the caller's own, from building the model
            try:
                spec = replace(
                    asked,
                    cohort=prepared.group(name),
                    fusible=prepared.cohort is not None or prepared.meets is not None,
                    max_concurrency=self._backend.device.num_units if prepared.cohort else 1,
                    min_units=self._backend.device.num_units if exact else 1,
                )
                lane_problem = self._check_lane(candidate, prepared)
                self._admission.warn((memory_problem, lane_problem, self._check_load(candidate, spec)), stacklevel=2)
                self._enter(spec, prepared)
            except BaseException:
                self._preparer.forget(name)
                raise
            is_strict = prepared.cohort is not None
            contract = contract_of(name, inputs, lengths, strict=is_strict, device=self._torch_device)
            self._residents[name] = _Resident(spec, contract, prepared, candidate.rows)
            self._ledger.update(self._holdings())
            if self._merging is not None and prepared.cohort is not None and prepared.cohort == spec.cohort:
                self._merging.joined(name, spec.cohort, self._preparer.cohorts[spec.cohort], inputs)
        return Tenant(name, partial(self._submit, name, contract), input_names(module), omitted_inputs(module))

    def _check_lane(self, candidate: Candidate, prepared: Prepared) -> AdmissionError | None:
        if prepared.cohort is None:
            return None  # what an opaque module needs is not known
        need_bytes = lane_bytes(self._preparer.cohorts[prepared.cohort].cohort.program, candidate.rows)
        return self._admission.check_lane(candidate, need_bytes, self._preparer.modules.values())

    def _check_load(self, candidate: Candidate, spec: TenantSpec) -> AdmissionError | None:
        if self._admission.is_off:
            return None
        peers = [name for name, resident in self._residents.items() if resident.spec.cohort == spec.cohort]
        return self._admission.check_load(candidate, spec, LoopFigures.of(self.stats(), peers))

    def remove(self, name: str, *, drain: bool = False) -> None:
        """Take a tenant out: what waits is rejected, what runs ends, then the module has its own memory again. Blocks.

        `drain=True`: what waits is served first. Requests that come meanwhile are rejected; other tenants may come and
        go, and another `remove(name)` puts an end to it.
        """
        self._driver.may_wait("remove()")
        leaving = self._drained(name) if drain else None
        with self._changing:
            if leaving is not None and self._residents.get(name) is not leaving:
                return  # somebody else removed it meanwhile, or closed the runtime
            self._find(name)
            on_passing_thread(lambda: self._take_out(name))  # to the end, even if Ctrl-C comes to who waits for it

    def _take_out(self, name: str) -> None:
        del self._residents[name]
        self._driver.call(lambda scheduler: scheduler.remove_tenant(name)).result()
        if self._merging is not None:
            self._merging.left(name)
        self._preparer.forget(name)
        self._ledger.update(self._holdings())

    def _find(self, name: str) -> _Resident:
        if name not in self._residents:
            raise no_tenant(name, self._residents)
        return self._residents[name]

    def _drained(self, name: str) -> _Resident:
        """The tenant, when it takes no more requests and all that it took have ended, or when it is gone."""
        with self._changing:
            resident = self._find(name)
            if resident.contract is not None:  # or it is being drained already
                resident = self._residents[name] = replace(resident, contract=None)
            drained = self._driver.drained(name)
        drained.result()  # outside: others may come and go
        return resident

    def _holdings(self) -> dict[str, Holding]:
        cohorts = {signature: executable.cohort for signature, executable in self._preparer.cohorts.items()}
        return {
            name: Holding(
                self._preparer.modules[name],
                cohorts.get(resident.prepared.cohort or ""),
                resident.rows,
                resident.prepared.executable,
            )
            for name, resident in self._residents.items()
        }

    def tenants(self) -> tuple[str, ...]:
        """The names of those that are there, also of those that are just being drained."""
        return tuple(self._residents)

    def _check_name(self, name: str) -> None:
        if self._closed:
            raise ClosedError(f"tenant {name!r} cannot be added", "the runtime is closed", "make another Runtime")
        if name in self._residents:
            raise OptionError(
                f"tenant {name!r} exists already",
                f"{len(self._residents)} tenants are resident",
                f"choose another name, or remove({name!r}) first",
            )

    def _enter(self, spec: TenantSpec, prepared: Prepared) -> None:
        program = self._preparer.cohorts[prepared.cohort].cohort.program if prepared.cohort else None
        device = self._backend.device
        # A profile has the times of kernels, each by itself: of a program that is one call it says nothing.
        table = None if prepared.is_one_call else self._table

        def enter(scheduler: Scheduler) -> None:
            self._costs.register(spec.cohort, program, device, table)
            scheduler.add_tenant(spec, prepared.executable)

        self._driver.call(enter)

    # -- requests -------------------------------------------------------------------------------------

    def _submit(self, name: str, contract: Contract, args: tuple[Any, ...], waits: bool) -> Result[Any]:
        resident = self._residents.get(name)
        if self._closed or resident is None or resident.contract is not contract:
            raise self._refusal(name, resident)
        call, rows, num_bytes = contract.accept(args)
        future: Result[Any] = Result(self._driver)
        now_us, request_id = self._backend.now_us(), next(self._request_ids)
        payload = self._memory.accept(call)
        request = make_request(resident.spec, request_id, rows, payload, now_us, future, input_bytes=num_bytes)
        self._driver.submit(request, assisted=waits)
        return future

    def _refusal(self, name: str, resident: _Resident | None) -> SpacetimeError:
        if self._closed or self._driver.is_closed:
            what = f"tenant {name!r}: the request was not accepted"
            return ClosedError(what, "the runtime is closed", "make another Runtime")
        gone = "was" if resident is None or resident.contract is not None else "is being"
        return RejectedError(f"tenant {name!r} {gone} removed", "its handle is no longer valid", "add it again")

    # -- reports --------------------------------------------------------------------------------------

    def explain(self) -> Explanation:
        """Cohorts, fused or not and why, units asked and granted; prints as a table."""
        self._driver.may_wait("explain()")
        trace = self.trace()
        stats = self.stats()
        with self._changing:
            merged, unmerged = self._merging.reports(trace) if self._merging else ((), ())
            return Explanation(
                device=self._backend.device.name,
                num_units=self._backend.device.num_units,
                policy=getattr(self._policy, "__name__", repr(self._policy)),
                cohorts=tuple(cohort_report(e, trace) for e in self._preparer.cohorts.values()),
                opaque=tuple(
                    opaque_report(name, resident.spec.cohort, resident.prepared, trace)
                    for name, resident in self._residents.items()
                    if resident.prepared.cohort is None
                ),
                apart=tuple(ApartReport(name, books["slowdown"]) for name, books in stats.items() if books["apart"]),
                varying=tuple(lengths_report(executable) for executable in self._preparer.varying.values()),
                memory=self.memory(),
                unconfined=self._memory.unconfined,
                eager=self._memory.uncaptured(),
                merged=merged,
                unmerged=unmerged,
                stale=self._stale(),
                written=written_reports(self._preparer),
            )

    def _stale(self) -> tuple[Staleness, ...]:
        cohorts = dict.fromkeys([resident.spec.cohort for resident in self._residents.values()])
        found = self._driver.call(lambda _: [self._costs.staleness(cohort) for cohort in cohorts])
        return tuple([staleness for staleness in found if staleness is not None])

    def stats(self) -> dict[str, dict[str, int | float]]:
        """Per tenant: requests by how they ended, or that wait or run now; rows, device time, evictions; memory.

        Latencies are of what ran, `completed` or `failed`: quantiles since add(), and their sum, for averages. `load`:
        device time asked for per time, of late; 1.0 is all that there is. `apart`: it slowed lanes down, and shares
        none for now.
        """
        books = self._driver.call(lambda scheduler: scheduler.stats())
        memory = {tenant.tenant: tenant.as_dict() for tenant in self.memory().tenants}
        nothing = dict.fromkeys(FIGURES, 0)  # of somebody who is just coming
        return {name: book | memory.get(name, nothing) for name, book in books.items()}

    def memory(self) -> MemoryReport:
        """Who has how much of the device's memory, and what everybody shares."""
        return self._ledger.report(self._memory.graph_bytes())

    def trace(self) -> Trace:
        """The last 10,000 lanes that ran; `to_perfetto()` and `to_chrome()` draw them."""
        return self._driver.call(lambda scheduler: scheduler.trace())

    def journal(self) -> Journal:
        """Everything that entered the scheduler, and its plans: `replay` makes them again. Needs `record`."""
        recorder = self._recorder
        if recorder is None:
            raise OptionError("this runtime keeps no journal", "record is False", "make it with Runtime(record=True)")
        return self._driver.call(lambda scheduler: recorder.journal())

    # -- end ------------------------------------------------------------------------------------------

    def close(self, drain: bool = True) -> None:
        """Serve what waits (or reject it), end the loop, give every module its own memory back. Idempotent."""
        self._closed = True
        self._driver.close(drain)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=error is None)


def wrap(module: nn.Module, *, runtime: Runtime, example: Example, name: str, **options: Any) -> Wrapped:
    """A drop-in for `module` whose forward goes through the runtime; options are those of Runtime.add()."""
    return Wrapped(module, runtime.add(module, example, name, **options))
