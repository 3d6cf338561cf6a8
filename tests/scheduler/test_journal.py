"""Recorded decisions replay identically: of random worlds, and of a run on real threads. What differs is shown."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.backends.null import NullBackend
from spacetime.errors import OptionError, PlanError
from spacetime.ir import Kernel, Program, Rows, TensorSpec
from spacetime.loadgen import closed_loop
from spacetime.plan import Lane, Plan, Segment, Snapshot
from spacetime.runtime.runtime import Runtime
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.journal import Entry, Journal, Registration, replay
from spacetime.scheduler.loop import Scheduler
from spacetime.scheduler.protocols import CostModel, Policy
from spacetime.scheduler.recorder import Recorder, RecordingScheduler
from spacetime.scheduler.registry import get_policy, policy_names
from spacetime.workload import Arrival
from spacetime.workload import closed_loop as closed_loop_workload
from spacetime.zoo import build, example
from tests.scheduler.harness import CORES, Echo, World

SHIPPED = [name for name in policy_names() if get_policy(name).__module__.startswith("spacetime.")]


class RecordedWorld(World):
    """The harness's world, with a recorder at every seam of its scheduler."""

    def __init__(self, policy: str | Policy = "space_time", *, latency_us: int | Callable[[Lane], int] = 100) -> None:
        super().__init__(policy, latency_us=latency_us)
        self.recorder = Recorder()
        self.costs: Any = self.recorder.costs
        self.scheduler = self.recorder.scheduler(self.backend, get_policy(policy), self.posted.append)

    def journal(self) -> Journal:
        journal = self.recorder.journal()
        assert Journal.from_json(journal.to_json()) == journal
        return journal


def assert_replays(journal: Journal) -> None:
    again = replay(journal)
    assert again.difference is None, str(again.difference)
    assert again.plans == journal.plans


# -- random worlds ------------------------------------------------------------------------------------

TENANTS = ("a", "b", "c", "d")
COHORTS = {"a": "x", "b": "x", "c": "x", "d": "y"}

tenants = st.sampled_from(TENANTS)
COMMON = st.one_of(
    st.tuples(st.just("submit"), tenants, st.integers(1, 5), st.booleans()),
    st.tuples(st.just("submit"), tenants, st.integers(1, 5), st.booleans()),
    st.tuples(st.just("submit_and_cancel"), tenants),
    st.tuples(st.just("advance"), st.integers(1, 400)),
    st.tuples(st.just("advance"), st.integers(1, 40)),
    st.tuples(st.just("look")),
)
RARE = st.one_of(
    st.tuples(st.just("remove"), tenants),
    st.tuples(st.just("add"), tenants, st.integers(1, 3)),
    st.tuples(st.just("reject")),
    st.tuples(st.just("break_device")),
    st.tuples(st.just("close"), st.booleans()),
)
OPERATIONS = st.builds(
    lambda *parts: [operation for part in parts for operation in part],
    st.lists(COMMON, min_size=15, max_size=40),
    st.lists(RARE, max_size=2),
    st.lists(COMMON, max_size=20),
    st.lists(RARE, max_size=2),
    st.lists(COMMON, max_size=10),
)


class Player:
    """Performs operations; those that cannot be are errors of the scheduler, recorded like the rest."""

    def __init__(self, world: RecordedWorld) -> None:
        self.world = world

    def play(self, name: str, *arguments: Any) -> None:
        try:
            getattr(self, name)(*arguments)
        except Exception as error:
            assert type(error).__module__ == "spacetime.errors", error

    def add(self, tenant: str, max_concurrency: int = 2) -> None:
        slo_us = 500 if tenant == "b" else None
        fusible = tenant != "d"
        options = {"slo_us": slo_us, "fusible": fusible, "max_concurrency": max_concurrency, "max_queue": 6}
        self.world.add(tenant, COHORTS[tenant], **options)

    def remove(self, tenant: str) -> None:
        self.world.scheduler.remove_tenant(tenant)

    def submit(self, tenant: str, rows: int, fails: bool) -> None:
        payload = ValueError("of the tenant's own") if fails else None
        self.world.submit(tenant, rows, payload)

    def submit_and_cancel(self, tenant: str) -> None:
        self.world.submit(tenant).cancel()

    def advance(self, us: int) -> None:
        self.world.backend.advance(us)
        self.world.step()

    def look(self) -> None:
        self.world.scheduler.snapshot()

    def close(self, drain: bool) -> None:
        self.world.scheduler.close(drain)

    def reject(self) -> None:
        self.world.scheduler.reject_waiting(PlanError("enough"))

    def break_device(self) -> None:
        """The device is gone: what is started from now on is refused."""
        self.world.backend.close()


def latency_us(lane: Lane) -> int:
    """Some lanes end at once, others do not."""
    return lane.requests[0].id * 37 % 5 * 60


@pytest.mark.parametrize("policy", SHIPPED)
@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS)
def test_any_world_replays_identically(policy: str, operations: list[tuple[Any, ...]]) -> None:
    world = RecordedWorld(policy, latency_us=latency_us)
    player = Player(world)
    for tenant in TENANTS:
        player.play("add", tenant)
    for name, *arguments in operations:
        player.play(name, *arguments)
    for _ in range(10):
        player.advance(100)
    assert_replays(world.journal())


# -- what a replay notices ----------------------------------------------------------------------------


@pytest.fixture
def journal() -> Journal:
    """Three tenants that fuse, twelve requests; several decisions."""
    world = RecordedWorld("space_time")
    for tenant in "abc":
        world.add(tenant)
    for number in range(12):
        world.submit("abc"[number % 3])
        if number % 3 == 2:
            world.step()
            world.backend.advance(30)
    world.run()
    journal = world.journal()
    assert len(journal.plans) >= 3 and any(len(lane.tenants) == 3 for plan in journal.plans for lane in plan.lanes)
    return journal


def test_the_same_policy_makes_the_same_plans(journal: Journal) -> None:
    assert journal.policy == "space_time"
    assert_replays(journal)


def test_another_policy_is_followed_to_its_first_difference(journal: Journal) -> None:
    again = replay(journal, "time_slice")
    assert again.difference is not None
    assert again.difference.decision == 0
    assert again.plans == (again.difference.replayed,)
    assert again.difference.recorded == journal.plans[0]
    text = str(again.difference)
    assert "policy 'time_slice' decides otherwise" in text
    assert "recorded: cohort of a+b+c, 3 rows, atoms 0xf, fused" in text
    assert "replayed: cohort of a, 1 rows, atoms 0xf, plain" in text


def test_a_policy_that_is_no_function_of_what_it_sees_is_found_out() -> None:
    calls = []

    def moody(snapshot: Snapshot, costs: CostModel) -> Plan:
        calls.append(snapshot)
        waiting = snapshot.tenants[0 if len(calls) <= 3 else -1]
        return Plan((Lane(waiting.cohort, waiting.waiting[:1], (Segment(snapshot.device.whole),), False),))

    world = RecordedWorld(moody)
    for tenant in "ab":
        world.add(tenant)
        world.submit(tenant)
        world.submit(tenant)
    world.run()
    again = replay(world.journal(), moody)
    assert again.difference is not None and again.difference.decision == 0


def edit(journal: Journal, call: str, change: Callable[[Entry], Entry | None], which: int = 0) -> Journal:
    """The journal with one of its entries of this kind changed, or (None) left out."""
    places = [i for i, entry in enumerate(journal.entries) if entry.call == call]
    place = places[which]
    changed = change(journal.entries[place])
    kept = (changed,) if changed is not None else ()
    return replace(journal, entries=journal.entries[:place] + kept + journal.entries[place + 1 :])


LOST_CLOCK: Callable[[Entry], Entry] = lambda entry: replace(entry, clock_us=entry.clock_us[:-1])  # noqa: E731


@pytest.mark.parametrize(
    ("call", "change", "problem"),
    [
        ("submit", lambda entry: None, "decides otherwise"),
        ("submit", lambda entry: replace(entry, argument=replace(entry.argument, rows=2)), "decides otherwise"),
        ("submit", lambda entry: replace(entry, cancelled=((entry.argument.tenant, entry.argument.id),)), ""),
        ("lane", lambda entry: None, "decides otherwise|less often|more often|fewer|not recorded"),
        ("lane", lambda entry: replace(entry, argument=replace(entry.argument, job=99)), "job 99 was never started"),
        ("lane", LOST_CLOCK, "lane|the clock was read more often"),
        ("step", LOST_CLOCK, "the clock was read more often"),
        ("step", lambda entry: replace(entry, clock_us=(*entry.clock_us, 5)), "step read the clock less often"),
        ("step", lambda entry: replace(entry, plans=()), "a decision was made that is not recorded"),
        ("step", lambda entry: replace(entry, plans=(*entry.plans, Plan())), "step made fewer decisions"),
        ("step", lambda entry: replace(entry, error="PlanError"), "no error, recorded was PlanError"),
        ("step", lambda entry: replace(entry, refused=(0,)), "the clock was read more often"),
        ("step", lambda entry: replace(entry, call="leap"), "this version knows no call 'leap'"),
        ("step", lambda entry: replace(entry, call="post", argument=3), "function 3 was never posted"),
        ("add_tenant", lambda entry: None, "decides otherwise"),
    ],
)
def test_a_journal_that_was_tampered_with_is_found_out(
    journal: Journal, call: str, change: Callable[[Entry], Entry | None], problem: str
) -> None:
    again = replay(edit(journal, call, change))
    if not problem:
        assert again.difference is None, "who was cancelled matters only where the scheduler asked"
        return
    assert again.difference is not None
    assert re.search(problem, again.difference.problem), again.difference


def test_cohorts_that_nobody_registered_make_the_policy_fail(journal: Journal) -> None:
    again = replay(replace(journal, entries=tuple(entry for entry in journal.entries if entry.call != "register")))
    assert again.difference is not None and again.difference.replayed is None
    assert "replayed: no plan" in str(again.difference)


# -- the seams ----------------------------------------------------------------------------------------


def test_every_method_of_the_scheduler_is_recorded_or_only_looks() -> None:
    """A new one must be recorded too (recorder.py, journal.py), or what it does is missing in replays."""
    looks = {"num_waiting", "num_running", "idle", "stats", "trace"}
    public = {name for name in vars(Scheduler) if not name.startswith("_")}
    posted = {"lane_done"}  # comes through `post`
    assert public - looks - posted == {name for name in vars(RecordingScheduler) if not name.startswith("_")}


def test_other_threads_may_look_at_the_clock_meanwhile() -> None:
    """The driver's thread does, to see how long it may sleep."""

    def looked_over(snapshot: Snapshot, costs: CostModel) -> Plan:
        looks = Thread(target=world.scheduler.backend.now_us)
        looks.start()
        looks.join()
        return get_policy("streams")(snapshot, costs)

    world = RecordedWorld(looked_over)
    world.add("a")
    world.submit("a")
    world.run()
    assert replay(world.journal(), "streams").difference is None


def test_a_backend_that_refuses_lanes_is_replayed() -> None:
    world = RecordedWorld("streams")
    world.add("a")
    world.backend.close()
    future = world.submit("a")
    world.run()
    assert isinstance(future.exception(), Exception)
    recorded = world.journal()
    assert [entry.refused for entry in recorded.entries if entry.refused] == [(0,)]
    assert "post" in [entry.call for entry in recorded.entries]
    assert_replays(recorded)


def test_preparations_are_recorded_when_their_end_reaches_the_scheduler() -> None:
    """No policy of this test resizes, so the seam is used directly, as a scheduler would."""
    recorder, posted = Recorder(), []
    backend = NullBackend()
    scheduler = recorder.scheduler(backend, get_policy("streams"), posted.append)
    done: list[str] = []
    post = scheduler._post
    scheduler.backend.prepare("c", Echo(), 2, lambda: post(lambda: done.append("ready")))
    (function,) = posted
    assert not done
    function()
    (entry,) = recorder.journal().entries
    assert done and (entry.call, entry.argument) == ("ready", 0)


def test_a_policy_that_fails_is_replayed() -> None:
    def fails(snapshot: Snapshot, costs: CostModel) -> Plan:
        raise KeyError("no idea")

    world = RecordedWorld(fails)
    world.add("a")
    future = world.submit("a")
    world.run()
    with pytest.raises(PlanError, match="policy 'fails' failed"):
        future.result()
    journal = world.journal()
    assert journal.policy == "fails" and journal.plans == ()
    assert replay(journal, fails).difference is None
    assert replay(journal, "streams").difference is not None


def test_an_interrupted_call_ends_the_journal_and_what_came_before_replays() -> None:
    calls = []

    def interrupted(snapshot: Snapshot, costs: CostModel) -> Plan:
        calls.append(snapshot)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return get_policy("streams")(snapshot, costs)

    world = RecordedWorld(interrupted)
    world.add("a")
    world.submit("a")
    world.run()
    world.submit("a")
    with pytest.raises(KeyboardInterrupt):
        world.step()
    calls.clear()
    world.scheduler.abandon(PlanError("interrupted"))
    journal = world.journal()
    assert journal.interrupted and "abandon" not in [entry.call for entry in journal.entries]
    again = replay(journal, interrupted)
    assert again.difference is None and len(again.plans) == 1


def test_no_payload_outlives_its_request() -> None:
    world = RecordedWorld()
    world.add("a")
    payload = Echo()  # anything that can be referred to weakly
    alive = weakref.ref(payload)
    future = world.submit("a", payload=payload)
    world.run()
    del payload, future
    gc.collect()
    assert alive() is None
    assert world.journal().plans


def test_a_profile_is_recorded_with_its_cohort() -> None:
    spec = TensorSpec((Rows(), 64), "float32", 0)
    weight = TensorSpec((64, 64), "float32")
    kernel = Kernel(0, "fc", "linear", "gemm", (spec, weight), (spec,), (0,), (), "", 8192, 512, 16384)
    program = Program("two layers", (spec,), (spec,), (weight,), (kernel, replace(kernel, index=1)))
    measured = {(1, 1): 90.0, (1, 4): 30.0, (8, 1): 400.0, (8, 4): 110.0}
    table = Profile(kernel.key, measured)
    recorder, again, unmeasured = Recorder(), OnlineCosts(), OnlineCosts()
    recorder.scheduler(NullBackend(CORES), get_policy("streams"), lambda function: None)
    recorder.costs.register("c", program, CORES, table)
    (entry,) = Journal.from_json(recorder.journal().to_json()).entries
    assert isinstance(entry.argument, Registration)
    entry.argument.register(again, CORES)
    unmeasured.register("c", program, CORES)
    sizes = [(rows, units) for rows in (1, 3, 8) for units in (1, 2, 4)]
    recorded_us, again_us, unmeasured_us = (
        [costs.lane_us("c", tenants=1, rows=rows, units=units) for rows, units in sizes]
        for costs in (recorder.costs, again, unmeasured)
    )
    assert recorded_us == again_us != unmeasured_us


class Profile:
    """A LatencyTable of one kernel."""

    def __init__(self, key: str, us: dict[tuple[int, int], float]) -> None:
        self.key, self.us = key, us

    def kernel_us(self, key: str, rows: int, units: int) -> float | None:
        return self.us.get((rows, units)) if key == self.key else None

    def measured(self, key: str) -> list[tuple[int, int]]:
        return list(self.us) if key == self.key else []


def test_options_of_the_scheduler_are_recorded_and_replayed() -> None:
    recorder = Recorder()
    recorder.scheduler(NullBackend(), get_policy("streams"), lambda function: None, trace_events=7)
    assert recorder.journal().options == (("trace_events", 7),)
    assert_replays(recorder.journal())
    with pytest.raises(OptionError, match="option trace_events cannot be recorded"):
        Recorder().scheduler(NullBackend(), get_policy("streams"), lambda function: None, trace_events=[])


# -- real threads -------------------------------------------------------------------------------------


def record_cpu_run(policy: str) -> Journal:
    """Three architectures, six tenants, one added late and one removed, some requests cancelled or failing."""
    architectures = ("mlp", "mlp", "mlp", "gru_cell", "gru_cell", "recommender")
    names = [f"{architecture}/{i}" for i, architecture in enumerate(architectures)]
    with Runtime("cpu", policy, record=True) as runtime:
        handles = {
            name: runtime.add(build(architecture, seed=i), example(architecture), name, slo_ms=50.0 if i == 1 else None)
            for i, (name, architecture) in enumerate(zip(names, architectures, strict=True))
        }
        workload = closed_loop_workload(names, 25, rows=(1, 2, 3), seed=4)

        def submit(index: int, arrival: Arrival) -> Future[Any]:
            future = handles[arrival.tenant].submit(*example(arrival.tenant.split("/")[0], arrival.rows, seed=index))
            if index % 17 == 0:
                future.cancel()
            return future

        closed_loop(workload, submit)
        handles[names[0]](*example("mlp"))
        runtime.remove(names[1])
        late = runtime.add(build("mlp", seed=9), example("mlp"), "late")
        waiting = [late.submit(*example("mlp", 1, seed=i)) for i in range(5)]
        for future in waiting:
            future.result()
        return runtime.journal()


@pytest.mark.parametrize("policy", ["space_time", "streams"])
def test_the_decisions_of_a_cpu_run_replay_identically(policy: str) -> None:
    journal = record_cpu_run(policy)
    assert len(journal.plans) > 30
    assert {"add_tenant", "remove_tenant", "submit", "step", "lane", "register"} <= {e.call for e in journal.entries}
    assert any(entry.cancelled for entry in journal.entries)
    restored = Journal.from_json(journal.to_json())
    assert restored == journal
    assert_replays(restored)
    assert replay(restored, "time_slice").difference is not None


REPLAY = """
import sys
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.journal import Journal, replay
again = replay(Journal.from_json(sys.stdin.read()))
sys.exit(str(again.difference) if again.difference else 0)
"""


def test_another_process_makes_the_same_plans(journal: Journal) -> None:
    """Where hashes are seeded otherwise, so that nothing depends on the order of a set."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", REPLAY],
        input=journal.to_json(),
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
