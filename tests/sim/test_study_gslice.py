"""GSLICE's study: what it measures on traces made by hand, and that its quick look shows what a restart costs."""

from __future__ import annotations

import pytest

from spacetime.device import Partition
from spacetime.plan import Lane, RequestView, Segment
from spacetime.sim.simulate import Simulation
from spacetime.sim.studies import gslice as study
from spacetime.sim.studies.study import Study
from spacetime.trace import LaneEvent, Trace
from tests.sim.looks import check_prints, quick

SECOND = 1_000_000


def lane(start_us: int, end_us: int, *requests: tuple[str, int, int]) -> LaneEvent:
    """Requests: tenant, arrival, deadline."""
    views = tuple(RequestView(index, name, 1, at, due) for index, (name, at, due) in enumerate(requests))
    return LaneEvent(Lane("cohort", views, (Segment(Partition(1, 1, 1)),)), start_us, end_us)


def column(beginning: str) -> list[float]:
    """Of the load step."""
    table = quick("gslice").tables[1]
    (index,) = [index for index, heading in enumerate(table.headings) if heading.startswith(beginning)]
    cells = [row[index] for row in table.rows]
    return [cell for cell in cells if isinstance(cell, int | float)]


def test_an_outage_is_waiting_while_no_lane_of_the_tenant_runs() -> None:
    found = study.outages(
        Trace(
            (
                lane(10, 50, ("a", 10, 99)),  # at once
                lane(50, 80, ("a", 20, 99)),  # it waited, but a lane ran
                lane(200, 300, ("a", 90, 999), ("a", 150, 999), ("b", 120, 999)),
                lane(250, 400, ("a", 210, 999)),  # beside the one before
                lane(420, 430, ("a", 260, 999)),
            )
        )
    )
    assert found == [study.Outage("a", 90, 200), study.Outage("a", 400, 420), study.Outage("b", 120, 200)]
    assert [gap.us for gap in found] == [110, 20, 80]


def test_a_tenant_has_settled_when_no_second_is_bad_any_more() -> None:
    good, bad = [SECOND * index + 5 for index in range(4)], SECOND + 7
    events = [lane(at, at + 5, ("a", at, at + 10)) for at in good]
    late = [lane(bad, bad + 20, ("a", bad, bad + 10)), lane(1, 9, ("b", 1, 2))]
    assert study.settled_s(Trace(tuple(events)), "a", 0, 4 * SECOND) == 0.0
    assert study.settled_s(Trace((*events, *late)), "a", 0, 4 * SECOND) == 2.0
    assert study.settled_s(Trace((*events, *late)), "a", 0, 2 * SECOND) is None
    assert study.settled_s(Trace((*events, *late)), "b", 0, 4 * SECOND) == 1.0
    assert study.late_after(Trace((*events, *late)), SECOND) == {"a": 1}


def test_loads_have_the_mean_that_they_claim() -> None:
    for played in (study.steady(60.0), study.bursts(400.0), study.waves(60.0)):
        seconds = played.arrivals[-1].at_us / SECOND
        for name, mean in study.MEAN_PER_S.items():
            count = sum(1 for arrival in played.arrivals if arrival.tenant == name)
            assert count / seconds == pytest.approx(mean, rel=0.15)
        assert all(resident.slo_us == study.SLO_US for resident in played.residents)


def test_loads_in_turn_follow_each_other() -> None:
    played = study.in_turn([(0.5, {"mlp": 200.0}), (0.5, {"mlp": 2000.0})])
    counts = [sum(1 for each in played.arrivals if low <= each.at_us < low + 500_000) for low in (0, 500_000)]
    assert 60 < counts[0] < 150 and 850 < counts[1] < 1150
    assert [each.at_us for each in played.arrivals] == sorted(each.at_us for each in played.arrivals)


def test_a_tenant_that_restarts_is_down_and_one_with_a_shadow_is_not() -> None:
    swap, shadow, restart, seldom = list(zip(column("requests"), column("resizes"), column("longest"), strict=True))[1:]
    num_tenants = len(study.MEAN_PER_S)
    for requests, resizes, _ in (swap, shadow, restart):
        assert resizes > num_tenants  # more than the sizes that they start with
        assert requests == swap[0]
    assert swap[2] == shadow[2] == 0
    assert study.QUICK.prepare_s * 0.9 < restart[2] < study.QUICK.prepare_s * 1.5
    assert seldom[1:] == (num_tenants, 0)


def test_the_quick_look_is_printed_and_documented() -> None:
    check_prints(quick("gslice"))


def test_the_size_that_a_tenant_starts_with_stops_nobody() -> None:
    played = study.in_turn([(0.5, study.BEFORE_PER_S)])
    simulation = Simulation(played, study.restarting, study.DEVICE, prepare_us=10 * SECOND, trace_events=10_000)
    report = simulation.run()
    assert report.completed == len(played.arrivals) and report.violations == 0


def test_the_quick_look_has_every_policy_and_every_way() -> None:
    found = quick("gslice")
    loads, steps = found.tables
    policies = len(study.POLICIES)
    assert [row[0] for row in loads.rows] == ["steady"] * policies + ["bursts"] * policies + ["waves"] * policies
    assert len({row[2] for row in loads.rows}) == 3  # the same arrivals for all
    assert [row[0] for row in steps.rows] == [way.name for way in study.resize_ways(study.QUICK)]
    assert found.is_quick and found.claims[0].modelled > 1
    assert "modelled" in found.to_markdown() and Study.from_json(found.to_json()) == found
