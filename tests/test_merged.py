"""Merged programs: what is verified, counted, and kept when only some members are active."""

from __future__ import annotations

import pytest

from spacetime.errors import OptionError, PlanError
from spacetime.ir import Kernel, Program, Rows, TensorSpec
from spacetime.merged import MergedProgram, Part, Step, is_same_work


def kernel(index: int, width: int, deps: tuple[int, ...] = (), op: str = "linear", dtype: str = "float32") -> Kernel:
    spec = TensorSpec((Rows(1), width), dtype, 0)
    return Kernel(index, f"{op}{index}", op, "gemm", (spec,), (spec,), (), deps, "", width, width, width)


def chain(*widths: int, op: str = "linear", dtype: str = "float32") -> Program:
    """Kernels in a row; equal widths are equal work."""
    kernels = [kernel(i, width, (i - 1,) if i else (), op, dtype) for i, width in enumerate(widths)]
    return Program(f"{op}{widths}", (), (), (), tuple(kernels))


def step(form: str, *parts: tuple[int, int]) -> Step:
    return Step(tuple(Part(*part) for part in parts), form)  # type: ignore[arg-type]


def merged_pair() -> MergedProgram:
    """8-16-4 and 8-32-4, met at both ends and grouped in the middle."""
    steps = (step("shared", (0, 0), (1, 0)), step("grouped", (0, 1), (1, 1)), step("shared", (0, 2), (1, 2)))
    return MergedProgram((chain(8, 16, 4), chain(8, 32, 4)), steps)


def test_counts() -> None:
    merged = merged_pair()
    assert (merged.num_launches, merged.num_alone, merged.saved) == (3, 6, 0.5)
    assert merged.products_saved == 0.5, "every linear is a product"
    assert merged.steps_of == ((0, 1, 2), (0, 1, 2))
    assert [k.name for k in merged.kernels(merged.steps[0])] == ["linear0", "linear0"]
    assert merged.steps[0].members == (0, 1)
    assert "6 launches in 3 (50% saved)" in str(merged)


def test_survives_json() -> None:
    assert MergedProgram.from_json(merged_pair().to_json()) == merged_pair()


def test_same_work_is_an_equal_key() -> None:
    kernels = [kernel(0, 8), kernel(1, 8), kernel(2, 16), kernel(3, 8, op="relu"), kernel(4, 8, dtype="float16")]
    for one in kernels:
        for other in kernels:
            assert is_same_work(one, other) == (one.key == other.key)


@pytest.mark.parametrize(
    ("steps", "facts"),
    [
        ([step("alone", (0, 0))], "no step holds kernel 1 of member 0"),
        ([step("alone", (0, 0)), step("alone", (0, 1)), step("alone", (0, 0))], "is already in step 0"),
        ([step("alone", (0, 1)), step("alone", (0, 0))], "which is not earlier"),
        ([step("shared", (0, 0), (0, 1))], "which is not earlier"),
        ([step("alone", (0, 0)), step("alone", (0, 7))], "there is no kernel 7 of a member 0"),
        ([step("alone", (1, 0))], "there is no kernel 0 of a member 1"),
        ([step("alone", (-1, 0))], "there is no kernel 0 of a member -1"),
        ([step("alone")], "0 kernels cannot be launched"),
        ([step("shared", (0, 0)), step("alone", (0, 1))], "1 kernels cannot be launched as 'shared'"),
        ([step("alone", (0, 0), (0, 1))], "2 kernels cannot be launched as 'alone'"),
        ([step("fused", (0, 0)), step("alone", (0, 1))], "'fused' is no form"),
    ],
)
def test_steps_that_cannot_run_are_refused(steps: list[Step], facts: str) -> None:
    with pytest.raises(PlanError) as caught:
        MergedProgram((chain(8, 8),), tuple(steps))
    assert facts in caught.value.facts
    assert caught.value.next_step


def test_a_cycle_across_members_is_refused() -> None:
    """Each pair alone would be fine; both together would make each step wait for the other."""
    steps = (step("shared", (0, 0), (1, 1)), step("shared", (0, 1), (1, 0)))
    with pytest.raises(PlanError, match="which is not earlier"):
        MergedProgram((chain(8, 8), chain(8, 8)), steps)


@pytest.mark.parametrize(
    ("form", "other", "facts"),
    [
        ("shared", chain(16), "not the same work"),
        ("grouped", chain(16, dtype="float16"), "not the same operation and dtype"),
        ("grouped", chain(16, op="relu"), "not the same operation and dtype"),
    ],
)
def test_kernels_that_do_not_fit_are_refused(form: str, other: Program, facts: str) -> None:
    with pytest.raises(PlanError, match=facts):
        MergedProgram((chain(8), other), (step(form, (0, 0), (1, 0)),))


def test_restricting_keeps_order_and_renames() -> None:
    restricted = merged_pair().restrict([1])
    assert restricted.programs == (chain(8, 32, 4),)
    assert restricted.steps == (step("alone", (0, 0)), step("alone", (0, 1)), step("alone", (0, 2)))


def test_restricting_to_all_is_the_same_program() -> None:
    merged = merged_pair()
    assert merged.restrict([1, 0]) is merged


def test_what_is_left_of_a_group_may_be_shared() -> None:
    programs = (chain(8), chain(16), chain(8))
    merged = MergedProgram(programs, (step("grouped", (0, 0), (1, 0), (2, 0)),))
    assert merged.restrict([0, 2]).steps == (step("shared", (0, 0), (1, 0)),)
    assert merged.restrict([0, 1]).steps == (step("grouped", (0, 0), (1, 0)),)
    assert merged.restrict([1]).steps == (step("alone", (0, 0)),)


@pytest.mark.parametrize("members", [[], [2], [-1]])
def test_restricting_to_nobody_is_refused(members: list[int]) -> None:
    with pytest.raises(OptionError, match="cannot be restricted"):
        merged_pair().restrict(members)
