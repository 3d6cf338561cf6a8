"""Aligned programs: nothing lost, nothing doubled, no cycle, the same whoever comes first; and what is saved."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.merged import MergedProgram, Part, verify
from spacetime.merging import Launches, PredictedTime, Weights, align
from spacetime.sim.architectures import program as architecture
from spacetime.sim.architectures.transformers import bert
from tests.merging.programs import chain, make_program, mixes

H200 = Device("h200", "model", 132, 8, flops_per_unit_us=5e5, bytes_per_us=4.8e6, launch_us=2.5, tiles=((64, 64),))
WEIGHTS: tuple[Weights, ...] = (Launches(), Launches(grouped=True), PredictedTime(H200), PredictedTime(H200, rows=64))


@settings(max_examples=150, deadline=None)
@given(mixes(), st.sampled_from(WEIGHTS))
def test_every_alignment_can_run(mix: list[Program], weights: Weights) -> None:
    merged = align(mix, weights)
    verify(merged.programs, merged.steps)
    found = sorted((part.member, part.kernel) for step in merged.steps for part in step.parts)
    assert found == [(m, k.index) for m, program in enumerate(merged.programs) for k in program.kernels]
    assert max(len(program.kernels) for program in merged.programs) <= merged.num_alone
    assert merged.num_launches <= merged.num_alone


@settings(max_examples=75, deadline=None)
@given(mixes(2, 3), st.sampled_from(WEIGHTS), st.randoms(use_true_random=False))
def test_the_order_of_the_members_does_not_matter(mix: list[Program], weights: Weights, rnd: random.Random) -> None:
    merged = align(mix, weights)
    rnd.shuffle(mix)
    assert align(mix, weights) == merged


@settings(max_examples=100, deadline=None)
@given(mixes(2, 4), st.data())
def test_a_subset_can_run_and_is_no_worse_than_alone(mix: list[Program], data: st.DataObject) -> None:
    merged = align(mix, Launches(grouped=True))
    members = data.draw(st.sets(st.integers(0, len(mix) - 1), min_size=1))
    subset = merged.restrict(sorted(members))
    verify(subset.programs, subset.steps)
    assert subset.programs == tuple(merged.programs[member] for member in sorted(members))
    assert subset.num_launches <= min(subset.num_alone, merged.num_launches)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([8, 16, 32]), min_size=1, max_size=12), st.data())
def test_two_chains_are_aligned_as_well_as_can_be(one: list[int], data: st.DataObject) -> None:
    """Relus in a row have one order only: the longest common subsequence is the optimum."""
    other = data.draw(st.lists(st.sampled_from([8, 16, 32]), min_size=1, max_size=12))
    mix = [chain(name, " ".join(f"r{w}" for w in widths)) for name, widths in (("one", one), ("other", other))]
    assert align(mix).num_launches == len(one) + len(other) - longest_common(one, other)


def longest_common(one: list[int], other: list[int]) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, j in itertools.product(range(len(one)), range(len(other))):
        longest = max(table[i][j + 1], table[i + 1][j])
        table[i + 1][j + 1] = max(longest, table[i][j] + 1) if one[i] == other[j] else longest
    return table[-1][-1]


def steps(merged: MergedProgram) -> list[tuple[str, list[tuple[int, int]]]]:
    return [(step.form, [(part.member, part.kernel) for part in step.parts]) for step in merged.steps]


def test_siblings_of_one_program_share_a_launch() -> None:
    """q, k and v read what 0 writes; relus do not join: their inputs would have to be copied together."""
    attention = make_program(
        "p",
        [
            ("linear", 8, ()),
            *[("linear", 16, (0,))] * 3,
            ("relu", 16, (1,)),
            ("relu", 16, (2,)),
            ("linear", 8, (3, 4, 5)),
        ],
    )
    assert steps(align([attention])) == [
        ("alone", [(0, 0)]),
        ("shared", [(0, 1), (0, 2), (0, 3)]),
        ("alone", [(0, 4)]),
        ("alone", [(0, 5)]),
        ("alone", [(0, 6)]),
    ]


def test_independent_branches_meet_whatever_their_order() -> None:
    """A sequence would align one of the branches only; dependencies allow both."""
    one = make_program("one", [("linear", 8, ()), ("linear", 16, ())])
    other = make_program("other", [("linear", 16, ()), ("linear", 8, ())])
    assert align([one, other]).num_launches == 2


def test_crossing_dependencies_are_not_both_satisfied() -> None:
    """8 before 16 in one, after it in the other: only one of them can meet."""
    merged = align([chain("one", "8 16"), chain("other", "16 8")])
    assert merged.num_launches == 3


def test_unlike_shapes_are_grouped_on_request_only() -> None:
    mix = [chain("one", "8 r8"), chain("other", "16 r16")]
    assert align(mix).num_launches == 4
    merged = align(mix, Launches(grouped=True))
    assert steps(merged)[0] == ("grouped", [(0, 0), (1, 0)])
    assert merged.num_launches == 3, "relus of unlike shapes stay apart"


def test_equal_shapes_are_preferred_to_unlike_ones() -> None:
    merged = align([chain("one", "8 16"), chain("other", "16")], Launches(grouped=True))
    assert merged.steps[-1].form == "shared" and Part(1, 0) in merged.steps[-1].parts


def test_the_cost_model_decides_what_is_worth_aligning() -> None:
    """One heavy launch or two light ones: counting takes the two, the model whichever spares more time."""
    heavy, light = 4096, 8
    mix = [chain("one", f"r{light} r{light} {heavy}"), chain("other", f"{heavy} r{light} r{light}")]
    few_tiles = Device("d", "model", 1024, 8, flops_per_unit_us=1e5, bytes_per_us=1e9, launch_us=1.0, tiles=((64, 64),))
    shared_relus = [s for s in align(mix).steps if s.form == "shared"]
    assert len(shared_relus) == 2
    [shared] = [s for s in align(mix, PredictedTime(few_tiles)).steps if s.form == "shared"]
    assert shared.parts == (Part(0, 2), Part(1, 0))


def test_nothing_is_fused_where_a_launch_costs_nothing() -> None:
    free = Device("free", "model", 1, flops_per_unit_us=1e5, bytes_per_us=1e9, launch_us=0.0)
    mix = [chain("one", "8 r8"), chain("other", "8 r8")]
    assert align(mix, PredictedTime(free)).num_launches == 4


@pytest.mark.parametrize("mix", [[], [chain("one", "8"), chain("one", "16")]])
def test_the_same_cohort_twice_is_refused(mix: list[Program]) -> None:
    with pytest.raises(OptionError, match="cannot be merged"):
        align(mix)


def saved(*mix: Program) -> float:
    return align(mix).saved


def test_known_architectures() -> None:
    """As fused lanes run them."""
    vgg = saved(architecture("vgg16", folded=True), architecture("vgg19", folded=True))
    resnet = saved(architecture("resnet18"), architecture("resnet34"))
    assert vgg >= 0.46 and resnet >= 0.35
    assert saved(architecture("resnet18"), architecture("vgg16")) < 0.05


def test_bert_of_unlike_depth_meets_in_every_layer() -> None:
    """8 + 4 layers take the launches of 8, siblings joined: the optimum."""
    shallow, deep = bert(depth=4, width=256, heads=4), bert(depth=8, width=256, heads=4)
    assert align([shallow, deep]).num_launches == align([deep]).num_launches
