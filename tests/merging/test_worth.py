"""Predictions for merged lanes: held to the model of the members' own lanes where both must say the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.merging import Launches, Load, align, worth
from spacetime.merging.worth import Worth, lane_times
from spacetime.scheduler.analytic import kernel_work
from spacetime.scheduler.costs import OnlineCosts
from spacetime.sim.architectures import program as architecture
from spacetime.sim.architectures.transformers import bert
from spacetime.sim.devices import find
from tests.merging.programs import chain, mixes

GPU = find("h200")
CPU = Device("cpu", "cpu", 2, flops_per_unit_us=5e4, bytes_per_us=2e4, launch_us=5.0)


@settings(max_examples=40, deadline=None)
@given(mixes(1, 1), st.integers(1, 8), st.integers(0, 8))
def test_one_member_without_siblings_takes_what_its_own_lane_takes(
    mix: list[Program], tenants: int, more_rows: int
) -> None:
    merged = align(mix)
    if merged.num_launches < merged.num_alone:
        return
    own = kernel_work(mix[0], GPU, tenants=tenants, rows=tenants + more_rows).times(GPU)
    times = lane_times(merged, [Load(tenants, tenants + more_rows)], GPU)
    assert times.lane_us(GPU.num_atoms) == pytest.approx(own.lane_us(GPU.num_atoms))
    assert times.num_kernels == merged.num_launches


def test_equal_kernels_of_two_members_are_one_lane_of_both_their_tenants() -> None:
    merged = align([chain("a", "64 r64"), chain("b", "64 r64")])
    together = kernel_work(chain("ab", "64 r64"), GPU, tenants=4, rows=8).times(GPU)
    assert lane_times(merged, [Load(2, 4), Load(2, 4)], GPU).lane_us(4) == pytest.approx(together.lane_us(4))


@settings(max_examples=40, deadline=None)
@given(mixes(2, 3), st.booleans())
def test_a_merged_lane_is_never_predicted_slower_than_one_lane_after_another(mix: list[Program], grouped: bool) -> None:
    merged = align(mix, Launches(grouped=grouped))
    answer = worth(merged, [Load(1, 1)] * len(mix), CPU)
    assert answer.merged_us <= answer.in_turn_us * (1 + 1e-9)


def test_small_transformers_are_worth_merging_on_a_gpu() -> None:
    merged = align([bert(depth=4, width=256, heads=4), bert(depth=8, width=256, heads=4)])
    answer = worth(merged, [Load(4, 4)] * 2, GPU)
    assert answer.merged_us < answer.in_turn_us


def test_large_convolutions_are_not_worth_merging_on_a_cpu() -> None:
    merged = align([architecture("vgg16"), architecture("vgg19")])
    answer = worth(merged, [Load(1, 1)] * 2, CPU)
    assert not answer.pays
    assert "do not merge" in str(answer)


def test_merging_must_promise_more_than_the_margin() -> None:
    assert Worth(94.0, 100.0, 100.0).pays
    assert not Worth(96.0, 100.0, 100.0).pays
    assert not Worth(90.0, 100.0, 80.0).pays


def test_more_members_than_atoms_cannot_run_side_by_side() -> None:
    mix = [chain(name, "8") for name in "abc"]
    assert worth(align(mix), [Load(1, 1)] * 3, CPU).side_by_side_us == float("inf")


def test_what_was_measured_scales_the_steps() -> None:
    """Lanes of both members took three times what the model says: so will the merged lane."""
    mix = [chain("a", "64 r64"), chain("b", "64 r64")]
    merged, loads, costs = align(mix), [Load(2, 4), Load(2, 4)], OnlineCosts()
    for program in mix:
        costs.register(program.signature, program, GPU)
    before, modelled = worth(merged, loads, GPU, costs), worth(merged, loads, GPU)
    assert before.merged_us / before.in_turn_us == pytest.approx(modelled.merged_us / modelled.in_turn_us)
    for program in mix:
        for units in (GPU.num_units, GPU.units_per_atom):
            for _ in range(50):
                took = 3 * costs_of(program, units)
                costs.observe(program.signature, tenants=2, rows=4, units=units, fused=True, duration_us=round(took))
    after = worth(merged, loads, GPU, costs)
    assert after.merged_us / before.merged_us == pytest.approx(after.in_turn_us / before.in_turn_us, rel=0.01)
    assert after.merged_us > 2 * before.merged_us


def costs_of(program: Program, units: int) -> float:
    fresh = OnlineCosts()
    fresh.register("c", program, GPU)
    return fresh.lane_us("c", tenants=2, rows=4, units=units)


@pytest.mark.parametrize(
    ("loads", "cohorts"), [([Load(1, 1)], ()), ([Load(1, 1), Load(2, 1)], ()), ([Load(1, 1)] * 2, ("one",))]
)
def test_loads_that_do_not_fit_are_refused(loads: list[Load], cohorts: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match="cannot be predicted"):
        worth(align([chain("a", "8"), chain("b", "8")]), loads, GPU, cohorts=cohorts)
