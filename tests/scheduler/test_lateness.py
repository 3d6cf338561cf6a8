"""Requests that are too old to serve: timeouts, deadlines that cannot be made, and when the loop looks again."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.errors import RejectedError
from spacetime.plan import Lane, Plan, Segment, Snapshot
from spacetime.scheduler.lateness import TRUST_US
from spacetime.scheduler.protocols import CostModel
from tests.scheduler.harness import CORES, Echo, World

BLOCKED_US = 10_000


def blocked(**options: Any) -> World:
    """The device is busy with another tenant; `a` has to wait."""
    world = World("time_slice", latency_us=BLOCKED_US)
    world.add("blocker", "other")
    world.add("a", **options)
    world.submit("blocker")
    world.step()
    return world


def wake(world: World) -> int:
    """Let time pass until the loop said it wants to look again, and have it look."""
    wake_at_us = world.step()
    assert wake_at_us is not None
    world.backend.advance(max(0, wake_at_us - world.backend.now_us()))
    return wake_at_us


def teach(world: World, name: str = "a", lanes: int = 30) -> None:
    """Have the cost model see what lanes of the tenant take."""
    for _ in range(lanes):
        assert world.submit(name) and world.run() is None


def test_a_request_times_out_by_itself() -> None:
    world = blocked(timeout_us=2000)
    future = world.submit("a")
    arrival_us = world.backend.now_us()
    wake_at_us = wake(world)
    assert abs(wake_at_us - arrival_us - 2000) <= 2 and not future.done()
    world.step()
    with pytest.raises(RejectedError, match=r"'a': a request timed out(.|\n)*waited 20\d\d us, the timeout is 2000 us"):
        future.result(0)
    assert world.scheduler.stats()["a"]["rejected"] == 1
    world.run()
    assert world.scheduler.stats()["blocker"]["completed"] == 1


def test_a_request_that_started_in_time_does_not_time_out() -> None:
    world = World("time_slice", latency_us=BLOCKED_US)
    world.add("a", timeout_us=2000)
    future = world.submit("a", payload=5)
    world.run()
    assert future.result(0) == 5


def test_only_those_that_are_old_enough_time_out() -> None:
    world = blocked(timeout_us=2000)
    old = [world.submit("a") for _ in range(3)]
    world.backend.advance(1500)
    young = world.submit("a")
    wake(world)
    world.backend.advance(10)  # they came one reading of the clock after the other
    world.step()
    assert all(isinstance(future.exception(0), RejectedError) for future in old) and not young.done()
    wake(world)
    world.step()
    assert young.done()


def test_a_deadline_that_has_passed_rejects() -> None:
    world = blocked(slo_us=3000, late="reject")
    future = world.submit("a")
    wake(world)
    world.step()
    error = future.exception(0)
    assert isinstance(error, RejectedError) and "cannot make its deadline" in str(error)
    assert "late='serve'" in str(error)


def test_late_is_served_unless_asked_otherwise() -> None:
    world = blocked(slo_us=3000)
    future = world.submit("a", payload=1)
    assert world.step() is None, "nobody needs to look again"
    world.run()
    assert future.result(0) == 1


def test_a_deadline_that_cannot_be_made_rejects_early() -> None:
    world = World("time_slice", latency_us=BLOCKED_US)
    world.add("blocker", "other")
    world.add("a", slo_us=15_000, late="reject")
    teach(world)
    world.submit("blocker")
    world.step()
    future = world.submit("a")
    arrival_us = world.backend.now_us()
    wake_at_us = wake(world)
    assert 4000 <= wake_at_us - arrival_us <= 6000, "15 ms less a lane of about 10 ms"
    world.step()
    error = future.exception(0)
    assert isinstance(error, RejectedError)
    assert "alone on the whole device 1 rows take" in error.facts and "and is due in" in error.facts


def test_what_was_never_measured_or_long_ago_rejects_nothing_early() -> None:
    world = World("time_slice", latency_us=BLOCKED_US)
    world.add("a", slo_us=2000, late="reject")
    for _ in range(2):
        assert run_one(world).exception(0) is None, "the second one shows how long it takes"
    teach_us = world.backend.now_us()
    results = [run_one(world) for _ in range(20)]
    assert all(isinstance(future.exception(0), RejectedError) for future in results), "now it is known to be hopeless"
    assert world.backend.now_us() - teach_us < TRUST_US
    world.backend.advance(2 * TRUST_US)
    assert run_one(world).exception(0) is None, "an estimate that forbids every lane could never improve"


def run_one(world: World) -> Future[Any]:
    future = world.submit("a")
    world.run()
    return future


def test_a_form_that_the_policy_never_uses_is_no_hope() -> None:
    """The cost model prices what was never tried low; plain lanes of 10 ms leave no doubt here."""
    world = World("time_slice", latency_us=BLOCKED_US)
    world.add("a", slo_us=6000, late="reject")
    for _ in range(20):
        world.submit("a")
        world.run()
        world.backend.advance(2 * TRUST_US)
    world.submit("a")
    world.run()
    assert isinstance(run_one(world).exception(0), RejectedError)


def test_a_cancelled_head_leaves_with_the_late_ones() -> None:
    world = blocked(timeout_us=2000)
    dropped, waiting = world.submit("a"), world.submit("a")
    dropped.cancel()
    wake(world)
    world.backend.advance(10)
    world.step()
    assert dropped.cancelled() and isinstance(waiting.exception(0), RejectedError)
    books = world.scheduler.stats()["a"]
    assert (books["cancelled"], books["rejected"]) == (1, 1)


def test_a_tenant_that_left_is_not_looked_at() -> None:
    world = blocked(timeout_us=2000)
    world.submit("a")
    world.scheduler.remove_tenant("a")
    world.add("a")  # without a timeout
    future = world.submit("a", payload=1)
    assert world.step() is None
    world.run()
    assert future.result(0) == 1


def test_new_limits_hold_for_what_waits() -> None:
    world = blocked()
    future = world.submit("a")
    spec = world.specs["a"]
    world.scheduler.replace_tenant(type(spec)("a", spec.cohort, timeout_us=100), Echo())
    wake(world)
    world.step()
    assert isinstance(future.exception(0), RejectedError)


def test_the_policy_is_woken_when_it_asked_to_be() -> None:
    def patient(snapshot: Snapshot, costs: CostModel) -> Plan:
        view = snapshot.tenants[0].waiting[0]
        if snapshot.now_us < 500:
            return Plan(wake_at_us=500)
        return Plan((Lane("cohort", (view,), (Segment(CORES.whole),)),))

    for timeout_us, expected in ((300, False), (3000, True)):
        world = World(patient)
        world.add("a", timeout_us=timeout_us)
        future = world.submit("a")
        wake_at_us = world.step()
        assert wake_at_us == 500 if expected else wake_at_us is not None and wake_at_us < 400
        world.run()
        assert (future.exception(0) is None) is expected


OPTIONS = st.fixed_dictionaries(
    {
        "timeout_us": st.sampled_from([None, 50, 400, 3000]),
        "slo_us": st.sampled_from([100, 900]),
        "late": st.sampled_from(["serve", "reject"]),
    }
)


@given(
    st.sampled_from(["time_slice", "space_time"]),
    st.tuples(OPTIONS, OPTIONS),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 300), st.booleans()), max_size=40),
)
def test_nobody_starts_too_late_and_nobody_is_lost(
    policy: str, options: tuple[dict[str, Any], ...], script: list[tuple[str, int, bool]]
) -> None:
    world = World(policy, latency_us=250)
    for name, chosen in zip("ab", options, strict=True):
        world.add(name, f"cohort of {name}", **chosen)
    futures = []
    for name, pause_us, cancels in script:
        futures.append(world.submit(name))
        if cancels:
            futures[-1].cancel()
        wake_at_us = world.step()
        asked_us = pause_us if wake_at_us is None else wake_at_us - world.backend.now_us()
        world.backend.advance(max(0, min(pause_us, asked_us)))  # what a driver does
    world.run()
    assert all(future.done() for future in futures)
    for event in world.scheduler.trace().events:
        for view in event.lane.requests:
            timeout_us = world.specs[view.tenant].timeout_us
            assert timeout_us is None or event.start_us - view.arrival_us <= timeout_us + 20, "readings of the clock"


def test_a_tenant_that_left_is_not_kept_until_its_time_would_have_come() -> None:
    world = blocked(timeout_us=10**12)
    futures = [world.submit("a") for _ in range(3)]
    lateness = world.scheduler._lateness
    assert lateness
    world.add("b", timeout_us=2000)
    late = world.submit("b")
    world.scheduler.remove_tenant("a")
    assert all(isinstance(future.exception(0), RejectedError) for future in futures)
    assert [tenant.spec.name for _, _, tenant in lateness._checks] == ["b"]
    wake(world)
    world.step()
    assert "timed out" in str(late.exception(0)), "others are looked at as before"
