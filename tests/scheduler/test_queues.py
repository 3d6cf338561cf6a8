"""Queues: order, limits, cached views, activity of peers, idle time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.errors import OptionError, RejectedError
from spacetime.plan import TenantView
from spacetime.scheduler.queues import ACTIVE_US, LOOKS_PER_PUSH, PROMISED_US, VISIBLE_REQUESTS
from spacetime.scheduler.request import Request, TenantSpec
from tests.scheduler.harness import Echo, World


def view_of(world: World, name: str) -> TenantView:
    return next(tenant for tenant in world.scheduler.snapshot().tenants if tenant.name == name)


def test_requests_wait_in_order_of_arrival() -> None:
    world = World()
    world.add("a")
    for rows in (3, 1, 2):
        world.submit("a", rows)
    assert [view.rows for view in view_of(world, "a").waiting] == [3, 1, 2]
    assert world.scheduler.num_waiting == 3


def test_only_tenants_that_wait_are_shown_and_of_a_flood_only_the_head() -> None:
    world = World()
    world.add("a")
    world.add("b")
    for _ in range(VISIBLE_REQUESTS + 5):
        world.submit("a")
    (tenant,) = world.scheduler.snapshot().tenants
    assert tenant.name == "a" and len(tenant.waiting) == VISIBLE_REQUESTS
    assert world.scheduler.num_waiting == VISIBLE_REQUESTS + 5


def test_a_view_is_kept_until_its_tenant_changes() -> None:
    world = World()
    world.add("a", "one")
    world.add("b", "two")
    world.submit("a")
    world.submit("b")
    before_a, before_b = view_of(world, "a"), view_of(world, "b")
    world.submit("b")
    assert view_of(world, "a") is before_a
    assert len(view_of(world, "b").waiting) == len(before_b.waiting) + 1


def test_a_full_queue_rejects() -> None:
    world = World()
    world.add("a", max_queue=2)
    kept = [world.submit("a"), world.submit("a")]
    with pytest.raises(RejectedError, match=r"'a': the queue is full(.|\n)*2 requests wait, max_queue is 2"):
        world.submit("a").result(0)
    world.run()
    assert all(future.done() for future in kept)
    assert world.scheduler.stats()["a"]["rejected"] == 1


def test_active_peers_counts_recent_submitters_of_the_cohort() -> None:
    world = World()
    for name in "abc":
        world.add(name)
    world.add("other", "elsewhere")
    for name in ("a", "b", "c", "other"):
        world.submit(name)
    assert view_of(world, "a").active_peers == 2
    assert view_of(world, "other").active_peers == 0
    world.backend.advance(ACTIVE_US + 100)
    world.submit("a")
    assert view_of(world, "a").active_peers == 0


OPERATIONS = ["submit", "submit", "start", "end", "later", "move", "remove", "add"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.sampled_from("abcd")), max_size=30))
def test_views_that_were_kept_say_what_new_ones_would(steps: list[tuple[str, str]]) -> None:
    world = World(latency_us=ACTIVE_US // 3)
    for operation, name in [*[("add", name) for name in "abcd"], *steps]:
        tenants = world.scheduler._queues.tenants
        if operation == "add" and name not in tenants:
            world.add(name)
        elif operation == "start":
            world.step()
        elif operation == "end":
            world.run()
        elif operation == "later":
            world.backend.advance(ACTIVE_US // 2)
        elif name in tenants:
            if operation == "submit":
                world.submit(name)
            elif operation == "remove":
                world.scheduler.remove_tenant(name)
            elif operation == "move":
                world.costs.register("elsewhere", None, world.backend.device)
                spec = world.specs[name] = TenantSpec(name, "elsewhere")
                world.scheduler.replace_tenant(spec, Echo())
        kept = world.scheduler.snapshot().tenants
        for tenant in tenants.values():
            tenant.view = None
        assert world.scheduler.snapshot().tenants == kept


def test_a_removed_tenant_is_no_active_peer() -> None:
    world = World()
    world.add("a")
    world.add("b")
    world.submit("a")
    world.submit("b")
    world.scheduler.remove_tenant("b")
    assert view_of(world, "a").active_peers == 0


def test_idle_time_is_no_credit() -> None:
    world = World("time_slice")
    world.add("busy")
    world.add("sleeper", weight=2.0)
    for _ in range(20):
        world.submit("busy")
        world.run()
    world.submit("busy")
    served = view_of(world, "busy").served_us
    world.submit("sleeper")
    assert served >= 2000
    assert view_of(world, "sleeper").served_us == pytest.approx(2 * served, abs=2)  # level, by weight
    assert world.scheduler.stats()["sleeper"]["device_us"] == 0


def test_names_are_unique_and_known() -> None:
    world = World()
    spec = world.add("a")
    with pytest.raises(OptionError, match=r"'a' exists already(.|\n)*known: a\n.*choose another name"):
        world.scheduler.add_tenant(spec, Echo())
    with pytest.raises(OptionError, match=r"'b' does not exist(.|\n)*known: a\n.*name one of these"):
        world.scheduler.remove_tenant("b")


def test_a_cancelled_request_makes_room_in_a_full_queue() -> None:
    world = World("time_slice", latency_us=10_000)
    world.add("a", max_queue=3)
    world.submit("a")
    world.step()
    waiting = [world.submit("a") for _ in range(3)]
    waiting[1].cancel()
    kept, refused = world.submit("a"), world.submit("a")
    assert not kept.done() and isinstance(refused.exception(0), RejectedError)
    for future in (waiting[0], waiting[2], kept):
        future.cancel()
    last = world.submit("a", payload=9)
    assert world.scheduler.num_waiting == 1
    world.run()
    books = world.scheduler.stats()["a"]
    assert last.result(0) == 9
    assert (books["completed"], books["rejected"], books["cancelled"]) == (2, 1, 4)


def test_a_flood_does_not_search_a_long_queue_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def look(request: Request) -> bool:
        nonlocal looks
        looks += 1
        return False

    monkeypatch.setattr(Request, "is_cancelled", property(look))
    world = World()
    world.add("a", max_queue=6400)
    for _ in range(6400 + 1000):
        world.submit("a")
    assert looks <= 6400 + 1000 * LOOKS_PER_PUSH


def test_a_view_shows_recent_rates_and_latency() -> None:
    world = World("time_slice", latency_us=2000)
    world.add("a", weight=1.0)
    for _ in range(2000):  # a request every 3 ms or so, for several time constants
        world.submit("a")
        world.run()
        world.backend.advance(1000)
    world.submit("a")
    view = view_of(world, "a")
    rate = 1e6 * 2000 / world.backend.now_us()
    assert view.arrivals_per_s == pytest.approx(rate, rel=0.03)
    assert view.completions_per_s == pytest.approx(rate, rel=0.03)
    assert 2000 <= view.latency_us <= 2200
    assert not view.apart and not view.resizing and view.share_units is None


def test_arrivals_that_find_the_queue_full_are_seen() -> None:
    world = World("time_slice", latency_us=2000)
    world.add("a", max_queue=1)
    for _ in range(100):
        world.submit("a")
    view = view_of(world, "a")
    assert view.arrivals_per_s > 90 and view.completions_per_s == 0 and view.latency_us == 0


def test_the_tightest_objective_of_who_may_come_is_known_for_a_while() -> None:
    world = World("time_slice")
    world.add("none")
    world.add("loose", slo_us=9_000)
    world.add("tight", slo_us=2_000)
    for name in ("none", "tight", "loose"):
        world.submit(name)
    assert world.scheduler.snapshot().promised_us is None, "all of them wait: what they ask is known"
    world.step()  # "none" came first: the others wait
    assert world.scheduler.snapshot().promised_us is None
    world.backend.advance(100)
    world.step()  # "tight" runs
    assert world.scheduler.snapshot().promised_us == 2_000
    world.run()
    assert world.scheduler.snapshot().promised_us == 2_000
    world.scheduler.remove_tenant("tight")
    assert world.scheduler.snapshot().promised_us == 9_000
    world.backend.advance(PROMISED_US + 1_000)
    assert world.scheduler.snapshot().promised_us is None, "it has not asked for long"


def test_a_snapshot_says_since_when_lanes_run_and_when_one_ended() -> None:
    world = World("streams", latency_us=lambda lane: 1000 * lane.num_rows)
    for name in "ab":
        world.add(name)
    world.submit("a", 3)
    world.step()
    world.backend.advance(500)
    world.submit("b", 1)
    world.step()
    first = world.scheduler.snapshot()
    since_a_us, since_b_us = first.running_since_us
    assert since_a_us < 500 <= since_b_us <= first.now_us and first.freed_at_us == 0
    world.backend.advance(1000)
    world.step()
    second = world.scheduler.snapshot()
    assert second.running_since_us == (since_a_us,)
    assert 1500 <= second.freed_at_us <= second.now_us
