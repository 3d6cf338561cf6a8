"""Plays a workload on a simulated device through the scheduler's own loop. `st.simulate` is this function.

The loop is the one that serves real devices, driven by virtual time: requests arrive, lanes end, a policy asks to be
woken; between these nothing happens, so nothing is computed. The same arguments give the same report.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.plan import Plan, Snapshot
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.loop import Scheduler
from spacetime.scheduler.protocols import CostModel, Policy
from spacetime.scheduler.registry import get_policy, policy_name
from spacetime.scheduler.request import TenantSpec, make_request
from spacetime.sim import architectures, devices
from spacetime.sim.executables import SimExecutable
from spacetime.sim.oracle import OracleCosts
from spacetime.sim.report import Book, Report, Totals
from spacetime.trace import Trace
from spacetime.workload import Arrival, Resident, Workload

if TYPE_CHECKING:  # it loads numba
    from spacetime.sim.backend import Slowdown

MAX_QUEUE = 10_000
PROGRESS_EVERY = 256  # steps

Progress = Callable[[int, int], None]  # requests that have ended, requests in all


def simulate(
    workload: Workload,
    policy: str | Policy = "space_time",
    device: str | Device = "h200",
    seed: int = 0,
    *,
    programs: Mapping[str, Program] | None = None,
    noise: float = 0.0,
    model_error: float = 0.0,
    slowdowns: Sequence[Slowdown] = (),
    decision_us: int = 0,
    prepare_us: int = 0,
    warm_up_s: float = 0.0,
    max_queue: int = MAX_QUEUE,
    oracle_costs: bool = False,
) -> Report:
    """What the workload would see under this policy on this device, as far as the model goes.

    `device`: h200, a100, v100, mi50, mi300x, a .json file of Device.to_json(), or a Device. The residents' models are
    looked up in `programs`, then among `spacetime.sim.architectures`. `noise`, `model_error`, `slowdowns` and
    `prepare_us` make the device less ideal (see SimBackend). `decision_us` passes before each decision takes effect.
    What arrives within `warm_up_s` is served but not reported: the cost model learns meanwhile, unless `oracle_costs`
    give it the truth.
    """
    simulation = Simulation(
        workload,
        policy,
        device,
        seed,
        programs=programs,
        noise=noise,
        model_error=model_error,
        slowdowns=slowdowns,
        decision_us=decision_us,
        prepare_us=prepare_us,
        warm_up_s=warm_up_s,
        max_queue=max_queue,
        oracle_costs=oracle_costs,
    )
    return simulation.run()


class Simulation:
    """One run, for those who want more than its report: the trace, the scheduler, the backend. Arguments as above."""

    def __init__(
        self,
        workload: Workload,
        policy: str | Policy = "space_time",
        device: str | Device = "h200",
        seed: int = 0,
        *,
        programs: Mapping[str, Program] | None = None,
        noise: float = 0.0,
        model_error: float = 0.0,
        slowdowns: Sequence[Slowdown] = (),
        decision_us: int = 0,
        prepare_us: int = 0,
        warm_up_s: float = 0.0,
        max_queue: int = MAX_QUEUE,
        oracle_costs: bool = False,
        trace_events: int = 10_000,
    ) -> None:
        from spacetime.sim.backend import SimBackend

        for option, value in (("decision_us", decision_us), ("warm_up_s", warm_up_s)):
            if not 0 <= value < inf:
                raise OptionError(
                    f"{option} is {value}", "it must be 0 or more, and finite", "leave it out, or raise it"
                )
        residents = _residents(workload, programs or {})
        self._workload = workload
        self._decision_us = decision_us
        self._warm_up_us = round(warm_up_s * 1e6)
        self._posted: deque[Callable[[], None]] = deque()
        self._policy = _Counted(get_policy(policy))
        self.backend = SimBackend(
            devices.find(device),
            noise=noise,
            model_error=model_error,
            slowdowns=slowdowns,
            prepare_us=prepare_us,
            seed=seed,
        )
        self.costs = OracleCosts() if oracle_costs else OnlineCosts()
        self.scheduler = Scheduler(
            self.backend, self._policy, self.costs, self._posted.append, trace_events=trace_events
        )
        self._specs: dict[str, TenantSpec] = {}
        self._add_tenants(residents, max_queue)
        self._book = Book(self.backend.device, self._policy.__name__, seed, residents, self._warm_up_us)
        self._backlog: defaultdict[str, deque[Arrival]] = defaultdict(deque)  # closed loop: what is not yet sent
        self._ids = count()
        self._num_ended = 0

    @property
    def trace(self) -> Trace:
        """The last lanes that ended."""
        return self.scheduler.trace()

    def run(self, progress: Progress | None = None) -> Report:
        """Play the workload to its end, once."""
        arrivals = deque(self._first_arrivals())
        backend, scheduler, posted = self.backend, self.scheduler, self._posted
        decide_at_us = inf
        is_warm, num_steps = False, 0
        while True:
            now_us = backend.now_us()
            if not is_warm and now_us >= self._warm_up_us:
                self._book.open(self._totals(now_us))
                is_warm = True
            happened = bool(posted)
            while posted:
                posted.popleft()()
            while arrivals and arrivals[0].at_us <= now_us:
                self._submit(arrivals.popleft())
                happened = True
            if posted:
                continue  # what ended at once, a rejection
            if happened:
                decide_at_us = min(decide_at_us, now_us + self._decision_us)
            if decide_at_us <= now_us:
                wake_at_us = scheduler.step()
                decide_at_us = inf if wake_at_us is None else wake_at_us
                num_steps += 1
                if progress is not None and num_steps % PROGRESS_EVERY == 0:
                    progress(self._num_ended, len(self._workload.arrivals))
            if posted:
                continue
            if not arrivals and scheduler.idle:
                break
            next_us = arrivals[0].at_us if arrivals else inf
            warm_up_us = inf if is_warm else self._warm_up_us
            if not backend.advance(min(next_us, decide_at_us, warm_up_us)):
                assert min(next_us, decide_at_us, warm_up_us) < inf, "requests wait, and nothing will ever happen"
        return self._book.close(self._totals(backend.now_us()))

    def _first_arrivals(self) -> Sequence[Arrival]:
        """Everything in an open loop; in a closed one what is outstanding at first."""
        outstanding = self._workload.outstanding
        if outstanding is None:
            return self._workload.arrivals
        if outstanding < 1:
            what = f"a closed loop with {outstanding} requests outstanding"
            raise OptionError(what, "nothing would be sent", "give the workload outstanding=1 or more, or None")
        for arrival in self._workload.arrivals:
            self._backlog[arrival.tenant].append(arrival)
        rounds = range(outstanding)
        first = [backlog.popleft() for _ in rounds for backlog in self._backlog.values() if backlog]
        return [Arrival(0, arrival.tenant, arrival.rows) for arrival in first]

    def _submit(self, arrival: Arrival) -> None:
        request = make_request(self._specs[arrival.tenant], next(self._ids), arrival.rows, None, arrival.at_us)
        request.future.add_done_callback(partial(self._ended, arrival))
        self.scheduler.submit(request)

    def _ended(self, arrival: Arrival, future: Future[None]) -> None:
        now_us = self.backend.now_us()
        self._num_ended += 1
        if arrival.at_us >= self._warm_up_us:
            self._book.enter(arrival.tenant, arrival.rows, now_us - arrival.at_us, future.exception())
        backlog = self._backlog.get(arrival.tenant)
        if backlog:
            following = Arrival(now_us, arrival.tenant, backlog.popleft().rows)
            self._posted.append(partial(self._submit, following))  # later: the loop is in the middle of something

    def _totals(self, now_us: int) -> Totals:
        engine = self.backend.engine
        served_us = {name: float(stats["device_us"]) for name, stats in self.scheduler.stats().items()}
        return Totals(
            now_us,
            engine.busy_unit_us,
            engine.moved_bytes,
            engine.num_kernels,
            self.backend.num_started,
            self._policy.num_calls,
            served_us,
        )

    def _add_tenants(self, residents: Mapping[str, tuple[Resident, Program]], max_queue: int) -> None:
        executables: dict[str, SimExecutable] = {}
        for resident, program in residents.values():
            cohort = program.signature
            if cohort not in executables:
                executables[cohort] = SimExecutable(program)
                self.costs.register(cohort, program, self.backend.device)
            spec = TenantSpec(
                resident.name,
                cohort,
                weight=resident.weight,
                priority=resident.priority,
                slo_us=resident.slo_us,
                max_concurrency=self.backend.device.num_units,
                max_queue=max_queue,
            )
            self._specs[resident.name] = spec
            self.scheduler.add_tenant(spec, executables[cohort])


class _Counted:
    """A policy that counts its decisions."""

    def __init__(self, policy: Policy) -> None:
        self.num_calls = 0
        self.__name__ = policy_name(policy)
        self._policy = policy

    def __call__(self, snapshot: Snapshot, costs: CostModel) -> Plan:
        self.num_calls += 1
        return self._policy(snapshot, costs)


def _residents(workload: Workload, programs: Mapping[str, Program]) -> dict[str, tuple[Resident, Program]]:
    """Who is there and what each runs. Without residents, a tenant runs the program of its own name."""
    if not isinstance(workload, Workload):
        what, facts = f"the workload is a {type(workload).__name__}", "a simulation plays a spacetime.workload.Workload"
        raise OptionError(what, facts, "make one: spacetime.workload.poisson(), say, or Workload.from_json()")
    if not workload.arrivals:
        raise OptionError("the workload is empty", "it has no arrivals", "see spacetime.workload")
    residents = {resident.name: resident for resident in workload.residents}
    if len(residents) < len(workload.residents):
        facts = f"{len(workload.residents)} residents, {len(residents)} names"
        raise OptionError("the workload names a tenant twice", facts, "give every resident a name of its own")
    found = {}
    for name in residents or workload.tenants:
        resident = residents.get(name) or Resident(name, name)
        found[name] = (resident, _program(resident, programs))
    strangers = [tenant for tenant in workload.tenants if tenant not in found]
    if strangers:
        facts = f"residents: {', '.join(found)}"
        raise OptionError(
            f"tenant {strangers[0]!r} sends requests but is no resident", facts, "add it to the residents"
        )
    return found


def _program(resident: Resident, programs: Mapping[str, Program]) -> Program:
    if resident.model in programs:
        return programs[resident.model]
    try:
        return architectures.program(resident.model)
    except OptionError as error:
        facts = f"given: {', '.join(programs) or 'none'}; {error.facts}"
        what = f"tenant {resident.name!r} runs {resident.model!r}, which nobody knows"
        raise OptionError(what, facts, "take one of these, or pass programs=") from error
