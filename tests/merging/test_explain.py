"""Explanations: every kernel once, with its partners or a reason that is true."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.merging import Launches, MergeExplanation, PredictedTime, align, explain
from tests.merging.programs import chain, mixes

FREE = Device("free", "model", 1, flops_per_unit_us=1e5, bytes_per_us=1e9, launch_us=0.0)


def reasons(explanation: MergeExplanation) -> list[str]:
    return [fate.reason for fate in explanation.kernels]


def test_partners_are_named() -> None:
    explanation = explain(align([chain("p", "8 16"), chain("q", "8")]), names=("vision", "text"))
    first, second, third = explanation.kernels
    assert (first.member, first.form, first.partners) == ("vision", "shared", ("text.linear0",))
    assert (second.member, second.form, second.partners) == ("vision", "alone", ())
    assert (third.member, third.partners) == ("text", ("vision.linear0",))
    assert first.saved_launches == third.saved_launches == 0.5


def test_why_not() -> None:
    assert reasons(explain(align([chain("p", "8"), chain("q", "r8")]))) == ["no partner"] * 2
    crossed = align([chain("p", "8 r8"), chain("q", "r8 8")])
    assert sorted(reasons(explain(crossed))) == ["", "", "dependency", "dependency"]
    weights = PredictedTime(FREE)
    assert reasons(explain(align([chain("p", "r8"), chain("q", "r8")], weights), weights)) == ["cost"] * 2


def test_unlike_shapes_that_are_not_grouped_are_a_matter_of_cost() -> None:
    mix = [chain("p", "8"), chain("q", "16")]
    assert reasons(explain(align(mix))) == ["cost"] * 2
    grouped = Launches(grouped=True)
    assert reasons(explain(align(mix, grouped), grouped)) == ["", ""]


@settings(max_examples=60, deadline=None)
@given(mixes())
def test_shares_add_up_and_only_lone_kernels_have_reasons(mix: list[Program]) -> None:
    merged = align(mix)
    explanation = explain(merged)
    assert len(explanation.kernels) == merged.num_alone
    assert explanation.saved == merged.saved
    spared = sum(fate.saved_launches for fate in explanation.kernels)
    assert spared == pytest.approx(merged.num_alone - merged.num_launches)
    for fate in explanation.kernels:
        assert bool(fate.reason) == (fate.form == "alone") == (not fate.partners)
    assert sum(explanation.reasons().values()) == sum(fate.form == "alone" for fate in explanation.kernels)


def test_it_prints_as_a_table_and_survives_json() -> None:
    explanation = explain(align([chain("p", "8 16"), chain("q", "8")]), names=("vision", "text"))
    text = str(explanation)
    assert text.splitlines()[0] == "3 launches in 2 (33.3% saved)"
    assert "text.linear0" in text and "no other kernel" not in text  # 16 has an unlike partner, 8
    assert MergeExplanation.from_json(explanation.to_json()) == explanation


def test_names_must_fit() -> None:
    with pytest.raises(OptionError, match="1 names do not fit"):
        explain(align([chain("p", "8"), chain("q", "8")]), names=("vision",))
