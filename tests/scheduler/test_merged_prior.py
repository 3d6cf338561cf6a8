"""What is expected of a merged lane: by what its members take, until such lanes were seen."""

from __future__ import annotations

from typing import Any

import pytest

from spacetime.errors import OptionError
from spacetime.merging import align
from spacetime.plan import Load
from spacetime.scheduler.analytic import kernel_work
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.learned import FORGET_AFTER
from spacetime.sim.devices import find
from tests.merging.programs import chain

GPU = find("h200")
PROGRAMS = {"a": chain("a", "64 r64 64"), "b": chain("b", "64 64")}
Loads = tuple[Load, ...]


def registered(*names: str) -> OnlineCosts:
    made = OnlineCosts()
    for name in names:
        made.register(name, PROGRAMS[name], GPU)
    made.register_merged("m", align([PROGRAMS[name] for name in names]), names, GPU)
    return made


def test_a_member_by_itself_is_expected_to_take_what_its_own_lane_takes() -> None:
    made = registered("a", "b")
    own_us = kernel_work(PROGRAMS["a"], GPU, tenants=2, rows=3).times(GPU).lane_us(GPU.num_atoms)
    assert made.merged_us("m", (Load(2, 3), Load(0, 0)), units=GPU.num_units) == pytest.approx(own_us)


def test_what_is_known_of_the_members_is_expected_of_merged_lanes_until_some_were_seen() -> None:
    made, loads = registered("a", "b"), (Load(1, 1), Load(1, 1))
    first_us = made.merged_us("m", loads, units=GPU.num_units)
    for _ in range(40):
        for name in "ab":
            own_us = kernel_work(PROGRAMS[name], GPU, tenants=1, rows=1).times(GPU).lane_us(GPU.num_atoms)
            kind: dict[str, Any] = {"tenants": 1, "rows": 1, "units": GPU.num_units, "fused": True}
            made.observe(name, **kind, duration_us=round(3 * own_us))
    assert made.merged_us("m", loads, units=GPU.num_units) == pytest.approx(3 * first_us, rel=0.1)
    for _ in range(20):
        made.observe_merged("m", loads, units=GPU.num_units, duration_us=500)
    assert made.merged_us("m", loads, units=GPU.num_units) == pytest.approx(500, rel=0.05)
    for _ in range(8 * FORGET_AFTER):
        made.observe("a", tenants=4, rows=4, units=GPU.num_units, fused=True, duration_us=100)
    assert made.merged_us("m", loads, units=GPU.num_units) != pytest.approx(500, rel=0.5), "long ago"


def test_what_was_learned_of_a_merged_execution_stays_until_it_is_another() -> None:
    made, loads = registered("a", "b"), (Load(1, 1), Load(1, 1))
    for _ in range(20):
        made.observe_merged("m", loads, units=8, duration_us=500)
    known_us = made.merged_us("m", loads, units=8)
    made.register_merged("m", align([PROGRAMS[name] for name in "ab"]), ("a", "b"), GPU)
    assert made.merged_us("m", loads, units=8) == known_us
    made.forget_merged("m")
    with pytest.raises(OptionError, match="has no costs"):
        made.merged_us("m", loads, units=8)


@pytest.mark.parametrize("loads", [(), (Load(1, 1),), (Load(0, 0), Load(0, 0))])
def test_loads_that_do_not_fit_have_no_cost(loads: Loads) -> None:
    with pytest.raises(OptionError, match="has no cost"):
        registered("a", "b").merged_us("m", loads, units=8)
