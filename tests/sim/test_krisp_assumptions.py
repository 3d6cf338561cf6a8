"""Other assumptions: each changes what it says and nothing else, and what neighbours cost hurts those who share."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from spacetime.sim import devices
from spacetime.sim.studies import krisp, krisp_assumptions
from spacetime.sim.studies.krisp_assumptions import ASSUMPTIONS, POLICIES, Assumption, Found

MI50 = devices.find("mi50")


def test_the_first_changes_nothing_and_every_other_something() -> None:
    as_it_is, *others = [assumption.applied(MI50) for assumption in ASSUMPTIONS]
    assert replace(as_it_is, name=MI50.name) == MI50
    for other in others:
        changed = [getattr(other, each) != getattr(MI50, each) for each in ("interference", "launch_us", "tiles")]
        assert sum(changed) == 1 and other.tiles, other.name


def test_neighbours_that_cost_more_slow_down_streams_and_not_what_is_isolated() -> None:
    def gain(policy: str, interference: float) -> float:
        device = Assumption("other", interference=interference).applied(MI50)
        play = partial(krisp.play, noise=krisp.NOISE, num_requests=8, device=device)
        return play(policy, "squeezenet", 4, 1).requests_per_s / play("time_slice", "squeezenet", 1, 1).requests_per_s

    assert gain("streams", 2.0) < 0.7 * gain("streams", 0.1)
    assert gain("krisp", 2.0) == pytest.approx(gain("krisp", 0.1), rel=0.01)


def test_gains_are_over_one_worker_alone_on_the_same_device() -> None:
    rates = {"time_slice": 2.0, "streams": 1.0, "static": 4.0, "krisp": 8.0}
    asked, begun = [], []

    def rate(policy: str, model: str, workers: int, rows: int, device: object) -> float:
        asked.append((policy, workers))
        return rates[policy]

    found = krisp_assumptions.play(MI50, ["alexnet"], 4, (1, 32), rate, lambda: begun.append(1))
    assert len(begun) == len(ASSUMPTIONS) and len(found) == 2 * len(ASSUMPTIONS)
    assert found[0] == Found(ASSUMPTIONS[0], 1, 0.5, 2.0, 4.0)
    assert (found[0].over_static, found[0].over_streams) == (2.0, 8.0)
    assert set(asked) == {("time_slice", 1), *((policy, 4) for policy in POLICIES)}
    published = krisp_assumptions.table(found, 4, (2.0, 1.22, 3.5)).rows[0]
    assert published[2] == pytest.approx(0.571, abs=0.001) and published[3] == pytest.approx(1.639, abs=0.001)
