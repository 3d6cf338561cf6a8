"""Queues: order, limits, cached views, activity of peers, idle time."""

from __future__ import annotations

import pytest

from spacetime.errors import OptionError, RejectedError
from spacetime.plan import TenantView
from spacetime.scheduler.queues import ACTIVE_US, VISIBLE_REQUESTS
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
    with pytest.raises(OptionError, match="'a' exists already"):
        world.scheduler.add_tenant(spec, Echo())
    with pytest.raises(OptionError, match=r"'b' does not exist(.|\n)*known: a"):
        world.scheduler.remove_tenant("b")
