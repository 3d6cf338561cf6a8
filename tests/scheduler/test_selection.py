"""Who is next: deadlines, floods, fair shares, patience; what may share a lane."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spacetime.device import Device
from spacetime.plan import TenantView
from spacetime.scheduler.selection import PATIENCE_US, cohorts_by_urgency
from tests.scheduler.harness import TableCosts, World, snapshot, tenant_view

NOW_US = 10 * PATIENCE_US
COSTS = TableCosts(lambda *_: 1000.0)


def waiting(name: str, waited_us: int = 100, due_in_us: int | None = None, **options: Any) -> TenantView:
    """A tenant of a cohort of its own."""
    due_us = None if due_in_us is None else NOW_US + due_in_us
    return tenant_view(name, 1, cohort=name, arrival_us=NOW_US - waited_us, deadline_us=due_us, **options)


def order(*tenants: TenantView) -> list[str]:
    return [cohort.name for cohort in cohorts_by_urgency(snapshot(*tenants, now_us=NOW_US), COSTS)]


def test_the_earliest_deadline_comes_first() -> None:
    assert order(waiting("none"), waiting("late", due_in_us=9000), waiting("soon", due_in_us=8000)) == [
        "soon",
        "late",
        "none",
    ]


def test_a_deadline_that_cannot_be_met_is_none() -> None:
    missed = waiting("missed", due_in_us=500)  # nothing takes less than 1000 us
    assert order(missed, waiting("can be met", due_in_us=9000)) == ["can be met", "missed"]
    assert order(missed, waiting("served less", served_us=-1)) == ["served less", "missed"]


def test_a_flood_does_not_go_before_everybody_else() -> None:
    """Its oldest request is always about to be late; it has been served more than the others."""
    flood = waiting("flood", 19_000, due_in_us=1000, served_us=900_000)
    assert order(flood, waiting("modest", due_in_us=19_900)) == ["modest", "flood"]
    assert order(flood, waiting("leisurely", due_in_us=900_000)) == ["flood", "leisurely"], "at most one objective"


def test_weights_scale_what_is_fair() -> None:
    heavy = waiting("heavy", due_in_us=9000, served_us=900_000, weight=9.0)
    assert order(heavy, waiting("light", due_in_us=9050, served_us=100_000)) == ["heavy", "light"]
    assert order(waiting("once", served_us=5), waiting("thrice", served_us=9, weight=3.0)) == ["thrice", "once"]


def test_patience_ends() -> None:
    urgent = waiting("urgent", due_in_us=2000, served_us=10)
    assert order(waiting("patient", PATIENCE_US - 1), urgent) == ["urgent", "patient"]
    assert order(urgent, waiting("patient", PATIENCE_US)) == ["patient", "urgent"]
    greedy = waiting("greedy", PATIENCE_US, served_us=11)
    assert order(greedy, urgent) == ["urgent", "greedy"], "it has had more than its share"


def test_stragglers_and_what_cannot_be_fused_keep_to_themselves() -> None:
    tenants = [
        tenant_view("a", 1),
        tenant_view("b", 1),
        tenant_view("straggler", 1, apart=True),
        tenant_view("opaque", 1, fusible=False),
        tenant_view("busy", 1, running=1),
    ]
    found = cohorts_by_urgency(snapshot(*tenants), COSTS)
    members = [[chunk[2].name for chunk in cohort.chunks] for cohort in found]
    assert sorted(members) == [["a", "b"], ["opaque"], ["straggler"]]
    assert [cohort.shared for cohort in found] == [len(names) > 1 for names in members]


def test_nobody_waits_for_ever_behind_deadlines() -> None:
    """One unit, and three tenants that keep it busy with deadlines that can be met."""
    world = World(device=Device("one", "null", num_units=1), latency_us=1000)
    for index in range(3):
        world.add(f"urgent{index}", f"cohort{index}", slo_us=50_000)
    world.add("patient", "other", priority=9)
    flood = [world.submit(f"urgent{index}") for index in range(3)]
    patient = world.submit("patient")
    for _ in range(2 * PATIENCE_US // 1000):
        world.step()
        if patient.done():
            break
        world.backend.advance(1000)
        while world.posted:
            world.posted.popleft()()
        for index, future in enumerate(flood):
            if future.done():
                flood[index] = world.submit(f"urgent{index}")
    assert patient.done()
    assert 0.9 * PATIENCE_US < world.backend.now_us() < 1.1 * PATIENCE_US, "or the test shows nothing"


def queue(name: str, *due_in_us: int, waited_us: int = 10_000, **options: Any) -> TenantView:
    """A request for each deadline."""
    view = tenant_view(name, *[1] * len(due_in_us), cohort=name, arrival_us=NOW_US - waited_us, **options)
    due = [replace(each, deadline_us=NOW_US + us) for each, us in zip(view.waiting, due_in_us, strict=True)]
    return replace(view, waiting=tuple(due))


def test_a_lost_request_does_not_hold_up_those_behind_it() -> None:
    behind = queue("behind", -500, 500, 2000, 9000)  # nothing takes less than 1000 us
    assert order(behind, waiting("later", due_in_us=3000)) == ["behind", "later"]
    assert order(behind, waiting("sooner", due_in_us=1500)) == ["sooner", "behind"]
    assert order(queue("lost", -500, 500), waiting("later", due_in_us=3000)) == ["later", "lost"]


def test_patience_is_for_lost_requests_too() -> None:
    patient = queue("patient", -500, 500_000, waited_us=PATIENCE_US + 1)
    assert order(patient, waiting("soon", due_in_us=3000)) == ["patient", "soon"]
