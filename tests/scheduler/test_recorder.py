"""What is recorded: every call that matters, whatever comes of it, and all of a run on real threads."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest

from spacetime.backends.null import NullBackend
from spacetime.errors import OptionError, PlanError
from spacetime.ir import Kernel, Program, Rows, TensorSpec
from spacetime.loadgen import closed_loop
from spacetime.plan import Plan, Snapshot
from spacetime.runtime.runtime import Runtime
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.journal import Journal, Registration, replay
from spacetime.scheduler.loop import Scheduler
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.recorder import Recorder, RecordingScheduler
from spacetime.scheduler.registry import get_policy
from spacetime.workload import Arrival
from spacetime.workload import closed_loop as closed_loop_workload
from spacetime.zoo import build, example
from tests.scheduler.harness import CORES, Echo
from tests.scheduler.recorded import RecordedWorld, assert_replays


def test_every_method_of_the_scheduler_is_recorded_or_only_looks() -> None:
    """A new one must be recorded too (recorder.py, journal.py), or what it does is missing in replays."""
    looks = {"num_waiting", "num_running", "idle", "idleness", "runs", "stats", "trace"}
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
