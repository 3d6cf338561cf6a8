"""The flood study: its base case keeps to the goal, its loads differ by the flood alone, and its quick look."""

from __future__ import annotations

from dataclasses import replace

from spacetime.sim.studies import flood
from spacetime.sim.studies.study import Study
from tests.sim.looks import quick

SHORT = flood.Lengths(load_s=0.6, warm_up_s=0.15)


def test_a_flood_does_not_move_the_p99_of_another_by_more_than_a_fifth() -> None:
    """Twice what an H200 can serve, of the victim's own model: 3.2 times the p99 where nothing is reserved."""
    found = flood.play(flood.BASE_CASE, SHORT)
    assert found.ratio <= flood.GOAL
    assert flood.worst_us(found.flooded) < flood.SLO_US
    (crowd,) = [tenant for tenant in found.flooded.tenants if tenant.name == flood.FLOOD]
    assert crowd.requests_per_s > 200, "nor is the flood shut out"


def test_the_victims_arrivals_are_the_same_whatever_the_neighbour_does() -> None:
    case = replace(flood.BASE_CASE, num_victims=3)
    modest, flooded = (flood.load(case, rate, 0.5) for rate in (20.0, 4000.0))
    of_victims = [[each for each in load.arrivals if each.tenant != flood.FLOOD] for load in (modest, flooded)]
    assert of_victims[0] == of_victims[1] and of_victims[0]
    assert len(flooded.arrivals) - len(of_victims[0]) > 50 * (len(modest.arrivals) - len(of_victims[0]))


def test_bursts_are_bursts_of_the_neighbour_alone() -> None:
    steady, bursts = (flood.load(replace(flood.BASE_CASE, bursts=each), 500.0, 0.5) for each in (False, True))
    neighbours = [[each.at_us for each in load.arrivals if each.tenant == flood.FLOOD] for load in (steady, bursts)]
    assert neighbours[0] != neighbours[1]


def test_the_quick_look_has_a_row_per_case() -> None:
    found = quick("flood")
    assert [table.title.split("`")[1] for table in found.tables] == [flood.POLICY, flood.DEFAULT_POLICY]
    assert all(len(table.rows) == 2 and table.headings[-2] == "with / without" for table in found.tables)
    assert Study.from_json(found.to_json()) == found
