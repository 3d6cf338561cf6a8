"""The scale study: its search for the highest rate, its loads and placements, and its quick look."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.sim.report import Report
from spacetime.sim.simulate import simulate
from spacetime.sim.studies import scale
from spacetime.sim.studies.study import Study
from tests.sim.looks import check_prints, quick


@cache
def reports() -> tuple[Report, Report]:
    """One that is in time, and one that is not."""
    good, bad = (scale.load(2, rate, 0.05) for rate in (100.0, 4000.0))
    return simulate(good, "time_slice", "v100"), simulate(bad, "time_slice", "v100")


@given(st.floats(30.0, 50_000.0), st.floats(100.0, 20_000.0))
def test_the_search_ends_just_below_the_border(border: float, guess: float) -> None:
    good, bad = reports()
    played: list[float] = []

    def play(rate: float) -> Report:
        played.append(rate)
        return good if rate <= border else bad

    point = scale.highest_rate(play, guess)
    assert point.rate_per_s <= border < point.rate_per_s * scale.GRID * (1 + 1e-9)
    assert point.report is good and point.num_runs == len(played) == len(set(played))


def test_what_is_never_in_time_has_no_rate() -> None:
    point = scale.highest_rate(lambda rate: reports()[1], 1000.0)
    assert (point.rate_per_s, point.report) == (0.0, None)


def test_in_time_counts_requests() -> None:
    good, bad = reports()
    assert scale.in_time(good) == 1.0
    late = sum(tenant.late for tenant in bad.tenants)
    assert scale.in_time(bad) == pytest.approx(1 - late / scale.num_submitted(bad)) and late


def test_a_load_has_the_models_in_turn_and_the_rate_of_all() -> None:
    played = scale.load(12, 6000.0, 0.5)
    assert [each.model for each in played.residents] == [*scale.MODELS, *scale.MODELS]
    assert len(played.arrivals) == pytest.approx(3000, rel=0.1)


@pytest.mark.parametrize("num_devices", [2, 3, 4, 12])
def test_in_turn_every_device_has_some_of_everything(num_devices: int) -> None:
    played = scale.load(72, 3000.0, 0.1)
    model_of = {each.name: each.model for each in played.residents}
    placed = scale.PLACEMENTS["in turn"](played, num_devices)
    assert sorted(name for names in placed for name in names) == sorted(model_of)
    assert all({model_of[name] for name in names} == set(scale.MODELS) for names in placed)


def test_by_cohort_fewer_models_meet_on_a_device() -> None:
    played = scale.load(72, 9000.0, 0.1)
    model_of = {each.name: each.model for each in played.residents}
    placed = scale.PLACEMENTS["by cohort"](played, 4)
    assert sum(len({model_of[name] for name in names}) for names in placed) < 4 * len(scale.MODELS) / 2


def test_the_quick_look_has_every_policy_and_says_what_it_stands_on() -> None:
    found = quick("scale")
    check_prints(found)
    points, common, several, many = found.tables
    policies = list(scale.POLICIES)
    assert [row[:2] for row in points.rows] == [(n, policy) for n in scale.QUICK.tenants for policy in policies]
    assert [row[:2] for row in common.rows] == [row[:2] for row in points.rows]
    assert all(isinstance(row[4], int) and row[4] > 30 for row in points.rows)
    assert [row[:2] for row in several.rows] == [(2, placement) for placement in scale.PLACEMENTS]
    assert {row[0] for row in many.rows} == set(policies)
    assert all(isinstance(row[2], float) and row[2] > 500 for row in points.rows)
    assert found.claims[0].modelled > 1 and Study.from_json(found.to_json()) == found
