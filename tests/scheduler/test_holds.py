"""Holding back for peers is given up where nobody comes, and tried again; by itself, and in the loop."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from spacetime.plan import Lane, Plan, RequestView, Segment, Snapshot
from spacetime.scheduler.holds import RETRY_US, Holds
from tests.scheduler.harness import CORES, World, snapshot, tenant_view

BACK_US = 50
PATIENCE = 100  # holds after which any caller is understood


def waiting(*names: str, now_us: int = 1000, cohort: str = "cohort") -> Snapshot:
    return snapshot(*[tenant_view(name, 1, active_peers=5, cohort=cohort) for name in names], now_us=now_us)


def held(now_us: int = 1000) -> Plan:
    return Plan(wake_at_us=now_us + BACK_US)


def start(seen: Snapshot) -> Plan:
    requests = tuple(view for tenant in seen.tenants for view in tenant.waiting)
    return Plan((Lane(seen.tenants[0].cohort, requests, (Segment(CORES.whole),)),))


def hold(holds: Holds, before: Snapshot, after: Snapshot) -> None:
    holds.watch(before, held(before.now_us))
    holds.watch(after, start(after))


def discouraged(now_us: int = 1000) -> Holds:
    """So often was nobody there at the end that was not there at the beginning."""
    holds = Holds()
    for _ in range(PATIENCE):
        hold(holds, waiting("a", now_us=now_us), waiting("a", now_us=now_us))
    return holds


def test_nothing_is_in_vain_before_it_was_tried() -> None:
    holds = Holds()
    assert holds.in_vain(0) == ()
    hold(holds, waiting("a"), waiting("a"))
    assert holds.in_vain(1000) == (), "once is no habit"


def test_who_waits_for_nobody_is_told_so_and_tries_again_later() -> None:
    holds = discouraged(now_us=1000)
    assert holds.in_vain(1000) == ("cohort",)
    assert holds.in_vain(1000 + RETRY_US) == ()
    later = waiting("a", now_us=1000 + RETRY_US)
    hold(holds, later, later)
    assert holds.in_vain(1001 + RETRY_US) == ("cohort",), "one more in vain is enough"


def test_somebody_who_comes_after_all_renews_the_trust() -> None:
    holds = discouraged()
    hold(holds, waiting("a"), waiting("a", "b"))
    alone = waiting("a", now_us=1000 + RETRY_US)
    hold(holds, alone, alone)
    assert holds.in_vain(alone.now_us) == ()


@given(st.lists(st.booleans(), max_size=60))
def test_what_pays_every_other_time_at_least_goes_on(more: list[bool]) -> None:
    holds = Holds()
    for joined in more:
        hold(holds, waiting("a"), waiting("a", "b"))
        hold(holds, waiting("a"), waiting("a", "b") if joined else waiting("a"))
        assert holds.in_vain(1000) == ()


def test_a_hold_lasts_from_the_first_plan_to_the_lane() -> None:
    holds = discouraged()
    for names in ("a", "ab", "abc"):
        holds.watch(waiting(*names), held())
    holds.watch(waiting(*"abc"), start(waiting(*"abc")))
    assert holds.in_vain(1000 + RETRY_US) == ()
    later = waiting("a", now_us=1000 + RETRY_US)
    hold(holds, later, later)
    assert holds.in_vain(later.now_us) == (), "it was joined by two, the trust is renewed"


def test_who_waits_for_units_is_not_held_back() -> None:
    holds, busy = Holds(), replace(waiting("a"), free_atoms=0)
    for _ in range(PATIENCE):
        holds.watch(busy, held())
        holds.watch(waiting("a"), start(waiting("a")))
    assert holds.in_vain(1000) == ()


def test_who_waits_for_a_lane_of_its_peers_is_not_held_back() -> None:
    """How well that goes says nothing about callers who come by themselves."""
    peers = Lane("cohort", (RequestView(9, "b", 1, 0),), (Segment(CORES.partition(1)),))
    holds, beside = Holds(), snapshot(tenant_view("a", 1, active_peers=5), running=(peers,))
    for _ in range(PATIENCE):
        hold(holds, beside, waiting("a"))
    assert holds.in_vain(1000) == ()


def test_who_has_no_peers_is_not_held_back_for_them() -> None:
    """Another cohort is why the policy wants to be woken."""
    alone = snapshot(tenant_view("x", 1, cohort="x"))
    holds = Holds()
    for _ in range(PATIENCE):
        hold(holds, alone, alone)
    assert holds.in_vain(1000) == ()


def test_a_cohort_that_is_no_more_is_forgotten() -> None:
    holds = discouraged()
    holds.watch(waiting("a"), held())
    holds.forget("cohort")
    assert holds.in_vain(1000) == ()
    holds.forget("cohort")


def in_turn(world: World, num_calls: int) -> list[int]:
    """One caller of four tenants, each call when the one before has ended; how long they took."""
    latencies_us = []
    for call in range(num_calls):
        sent_us = world.backend.now_us()
        future = world.submit(f"t{call % 4}")
        while not future.done():
            world.step()
            world.backend.advance(1)
        latencies_us.append(world.backend.now_us() - sent_us)
    return latencies_us


def test_a_caller_in_turn_soon_waits_for_nobody() -> None:
    world = World(latency_us=1000)
    for index in range(4):
        world.add(f"t{index}")
    latencies_us = in_turn(world, 160)
    assert max(latencies_us[:20]) >= 1050, "at first it is held back for its peers"
    assert max(latencies_us[60:80]) <= 1010, "then not any more"
    assert sum(us > 1010 for us in latencies_us[60:]) <= 2, "but for a trial now and then"


def test_callers_side_by_side_are_held_back_for_each_other() -> None:
    """Four callers who send within 60 us of each other, over and over."""
    world = World(latency_us=1000)
    for index in range(4):
        world.add(f"t{index}")
    num_holds = 0
    for round_ in range(100):
        futures = []
        for index in range(4):
            futures.append(world.submit(f"t{(round_ + index) % 4}"))
            world.step()
            num_holds += world.scheduler.num_running == 0
            world.backend.advance(20)
        while not all(future.done() for future in futures):
            world.step()
            world.backend.advance(10)
        assert world.scheduler.snapshot().held_in_vain == ()
    assert num_holds >= 90
