"""The scheduler as a state machine: what happens to a request, whatever happens around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.errors import ClosedError, OptionError, PlanError, RejectedError, SpacetimeError
from spacetime.plan import Lane, Plan, Segment, Snapshot
from spacetime.scheduler.protocols import CostModel, Executable, LaneResult, Outcome
from tests.scheduler.harness import CORES, Echo, World


def test_results_flow_back_to_their_requests() -> None:
    world = World()
    world.add("a")
    world.add("b")
    futures = {name: world.submit(name, payload=name.upper()) for name in "ab"}
    world.run()
    assert {name: future.result(0) for name, future in futures.items()} == {"a": "A", "b": "B"}


def test_an_error_stays_with_its_request() -> None:
    world = World()
    world.add("a")
    world.add("b")
    bad, good = world.submit("a", payload=ValueError("nan")), world.submit("b", payload=1)
    world.run()
    assert len(world.backend.lanes) == 1, "both were in one lane"
    assert isinstance(bad.exception(0), ValueError) and good.result(0) == 1
    assert world.scheduler.stats()["a"]["failed"] == world.scheduler.stats()["b"]["completed"] == 1
    assert [event.ok for event in world.scheduler.trace().events] == [False]


def test_cancelled_requests_do_not_run() -> None:
    world = World()
    world.add("a")
    dropped, kept = world.submit("a"), world.submit("a")
    assert dropped.cancel()
    world.run()
    assert kept.done() and world.backend.lanes[0].requests[0].id == 2
    assert world.scheduler.stats()["a"]["cancelled"] == 1


def test_a_plan_of_cancelled_requests_does_not_stall_the_others() -> None:
    world = World("time_slice")
    world.add("a")
    dropped, kept = world.submit("a"), world.submit("a")
    dropped.cancel()
    world.step()
    assert world.scheduler.num_running == 1 and not kept.cancel()


def test_submitting_to_nobody_is_rejected() -> None:
    world = World()
    world.add("a")
    request = world.request("a")
    world.scheduler.remove_tenant("a").result(0)
    world.scheduler.submit(request)
    with pytest.raises(RejectedError, match="tenant 'a' does not exist"):
        request.future.result(0)


def test_removal_rejects_what_waits_and_ends_with_the_last_lane() -> None:
    world = World("time_slice")
    world.add("a")
    running, waiting = world.submit("a", payload=7), world.submit("a")
    world.step()
    removed = world.scheduler.remove_tenant("a")
    assert isinstance(waiting.exception(0), RejectedError) and not removed.done()
    world.add("a")  # the name is free at once
    world.run()
    assert removed.done() and running.result(0) == 7
    assert world.scheduler.stats()["a"]["completed"] == 0, "the new tenant has books of its own"


def test_replacing_a_tenant_keeps_what_waits() -> None:
    world = World()
    world.add("a")
    future = world.submit("a", payload=3)
    spec = world.add("b", "plain", fusible=False)
    world.scheduler.remove_tenant("b")
    demoted = type(spec)("a", "plain", fusible=False)
    world.scheduler.replace_tenant(demoted, Echo())
    world.run()
    assert future.result(0) == 3
    assert (world.backend.lanes[0].cohort, world.backend.lanes[0].fused) == ("plain", False)


def test_close_rejects_or_drains() -> None:
    for drain in (True, False):
        world = World("time_slice")
        world.add("a")
        running, waiting = world.submit("a"), world.submit("a")
        world.step()
        world.scheduler.close(drain)
        late = world.submit("a")
        with pytest.raises(ClosedError):
            world.add("b")
        world.run()
        assert running.exception(0) is None and isinstance(late.exception(0), ClosedError)
        assert isinstance(waiting.exception(0), type(None) if drain else RejectedError)


def raising(snapshot: Snapshot, costs: CostModel) -> Plan:
    raise ZeroDivisionError("by nought")


def empty(snapshot: Snapshot, costs: CostModel) -> Plan:
    return Plan()


def doubling(snapshot: Snapshot, costs: CostModel) -> Plan:
    view = snapshot.tenants[0].waiting[0]
    return Plan((Lane("cohort", (view, view), (Segment(CORES.whole),)),))


def no_plan(snapshot: Snapshot, costs: CostModel) -> Plan:
    return None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (raising, "ZeroDivisionError: by nought"),
        (empty, "wait forever"),
        (doubling, "is in the plan twice"),
        (no_plan, "AttributeError"),
    ],
)
def test_a_broken_policy_fails_its_requests_by_name(
    policy: Callable[[Snapshot, CostModel], Plan], problem: str
) -> None:
    world = World(policy)
    world.add("a")
    futures = [world.submit("a") for _ in range(300)]  # more than one snapshot shows
    assert world.step() is None
    for future in futures:
        error = future.exception(0)
        assert isinstance(error, PlanError)
        assert policy.__name__ in str(error) and problem in str(error)
    again = world.submit("a")
    world.step()
    assert again.done(), "the loop goes on serving"


def test_a_policy_may_wait_for_the_clock() -> None:
    def patient(snapshot: Snapshot, costs: CostModel) -> Plan:
        if snapshot.now_us < 500:
            return Plan(wake_at_us=500)
        view = snapshot.tenants[0].waiting[0]
        return Plan((Lane("cohort", (view,), (Segment(CORES.whole),)),))

    world = World(patient)
    world.add("a")
    future = world.submit("a")
    assert world.step() == 500 and not future.done()
    world.run()
    assert future.done()


class Short:
    """Answers fewer requests than it was given."""

    def run(self, lane: Lane, payloads: Sequence[Any]) -> list[Outcome]:
        return []


class Raising:
    def run(self, lane: Lane, payloads: Sequence[Any]) -> list[Outcome]:
        raise MemoryError("slab")


@pytest.mark.parametrize(("executable", "kind"), [(Short(), SpacetimeError), (Raising(), MemoryError)])
def test_a_broken_executable_fails_its_lane_only(executable: Executable, kind: type[Exception]) -> None:
    world = World("streams")
    broken = world.add("broken", "one")
    world.scheduler.replace_tenant(broken, executable)
    world.add("fine", "two")
    bad, good = world.submit("broken"), world.submit("fine", payload=1)
    world.run()
    assert isinstance(bad.exception(0), kind) and good.result(0) == 1


def test_a_backend_that_cannot_start_fails_the_lane() -> None:
    world = World()
    world.add("a")
    world.backend.close()
    future = world.submit("a")
    world.run()
    assert isinstance(future.exception(0), ClosedError)


def test_a_backend_that_reports_too_few_outcomes_fails_the_lane() -> None:
    world = World(latency_us=1000)
    world.add("a")
    future = world.submit("a")
    world.step()
    world.scheduler.lane_done(0, LaneResult((), 0, 0))
    assert "1 requests, 0 outcomes" in str(future.exception(0)) and world.scheduler.idle


def test_an_abandoned_scheduler_starts_over() -> None:
    world = World("time_slice", latency_us=1000)
    world.add("a")
    running, waiting, dropped = world.submit("a"), world.submit("a"), world.submit("a")
    world.step()
    dropped.cancel()
    removed = world.scheduler.remove_tenant("a")
    world.add("a")
    again = world.submit("a")
    world.scheduler.abandon(RejectedError("the loop was interrupted"))
    for future in (running, waiting, again):
        assert isinstance(future.exception(0), RejectedError)
    assert world.scheduler.idle and removed.done() and dropped.cancelled()
    assert world.submit("a", payload=4) and world.scheduler.num_waiting == 1
    world.run()  # the abandoned lane ends meanwhile
    books = world.scheduler.stats()["a"]
    assert (books["submitted"], books["completed"], books["rejected"]) == (2, 1, 1)


def test_a_lane_ends_once() -> None:
    world = World()
    with pytest.raises(PlanError, match="lane 5 ended twice"):
        world.scheduler.lane_done(5, LaneResult((), 0, 0))


def test_costs_learn_from_isolated_lanes_only() -> None:
    for policy, learns in (("time_slice", True), ("streams", False)):
        world = World(policy, latency_us=100_000)
        world.add("a")
        for _ in range(2):  # the first one is cold
            world.submit("a")
            world.run()
        estimate = world.costs.lane_us("cohort", tenants=1, rows=1, units=4, fused=False)
        assert (estimate > 10_000) is learns


def test_a_callback_may_come_back() -> None:
    world = World("time_slice")
    world.add("a")
    world.add("b")
    first, second = world.submit("a"), world.submit("b")
    first.add_done_callback(lambda _: world.scheduler.close(drain=False))
    second.add_done_callback(lambda _: world.scheduler.remove_tenant("a"))
    world.run()
    assert first.done() and isinstance(second.exception(0), RejectedError)


actions = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 4), st.integers(1, 100)),
    st.tuples(st.just("fail"), st.integers(0, 4), st.just(1)),
    st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("remove"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("step"), st.just(0), st.just(0)),
    st.tuples(st.just("advance"), st.integers(0, 300), st.just(0)),
    st.tuples(st.just("close"), st.integers(0, 1), st.just(0)),
)
TENANTS = [
    ("t0", "x", True, 3),
    ("t1", "x", True, 1),
    ("t2", "x", True, 2),
    ("t3", "y", True, 1),
    ("t4", "z", False, 1),
]


def perform(world: World, action: tuple[str, int, int], futures: list[Future[Any]], ends: dict[int, int]) -> None:
    kind, which, rows = action
    name = f"t{which}"
    if kind in ("submit", "fail"):
        payload = ValueError("bad") if kind == "fail" else len(futures)
        request = world.request(name, rows, payload)
        index = len(futures)
        request.future.add_done_callback(lambda _: ends.update({index: ends.get(index, 0) + 1}))
        futures.append(request.future)
        world.scheduler.submit(request)
    elif kind == "cancel" and which < len(futures):
        futures[which].cancel()
    elif kind == "remove":
        try:
            world.scheduler.remove_tenant(name)
        except OptionError:
            assert name not in world.scheduler.stats()
    elif kind == "step":
        world.step()
    elif kind == "advance":
        world.backend.advance(which)
    elif kind == "close":
        world.scheduler.close(drain=bool(which))


@given(st.sampled_from(["time_slice", "streams", "space_time"]), st.lists(actions, max_size=40))
def test_every_request_ends_exactly_once(policy: str, script: list[tuple[str, int, int]]) -> None:
    world = World(policy, latency_us=lambda lane: 37 * lane.num_rows)
    for name, cohort, fusible, concurrency in TENANTS:
        world.add(name, cohort, fusible=fusible, max_concurrency=concurrency, max_queue=6)
    futures: list[Future[Any]] = []
    ends: dict[int, int] = {}
    for action in script:
        perform(world, action, futures, ends)
    world.run()
    assert ends == {index: 1 for index in range(len(futures))}
    for index, future in enumerate(futures):
        if not future.cancelled() and future.exception(0) is None:
            assert future.result(0) == index


@given(st.sampled_from(["time_slice", "streams", "space_time"]), st.lists(actions, max_size=40))
def test_the_books_add_up(policy: str, script: list[tuple[str, int, int]]) -> None:
    world = World(policy, latency_us=lambda lane: 37 * lane.num_rows)
    for name, cohort, fusible, concurrency in TENANTS:
        world.add(name, cohort, fusible=fusible, max_concurrency=concurrency, max_queue=6)
    futures: list[Future[Any]] = []
    for action in script:
        if action[0] != "remove":  # a removed tenant takes its books along
            perform(world, action, futures, {})
    world.run()
    stats = world.scheduler.stats().values()
    for books in stats:
        assert books["submitted"] == sum(books[end] for end in ("completed", "failed", "rejected", "cancelled"))
    assert sum(books["submitted"] for books in stats) == len(futures)
    events = world.scheduler.trace().events
    used = sum((event.end_us - event.start_us) * event.lane.units / CORES.num_units for event in events)
    assert sum(books["device_us"] for books in stats) == pytest.approx(used)
    assert sum(books["rows"] for books in stats) == sum(event.lane.num_rows for event in events)
