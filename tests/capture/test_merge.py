"""Schedules of merged programs: what is called together, what is not and why; equal weights of unlike programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spacetime.backends.executables import CohortExecutable
from spacetime.capture.layer import Layer
from spacetime.capture.merge import Launch, Segment, schedule
from spacetime.capture.merge_contents import Contents
from spacetime.errors import PlanError
from spacetime.merged import MergedProgram, Part, Step
from spacetime.merging.align import align
from tests.capture.merging import aligned, captured_executable, run, trouble
from tests.capture.sketches import draw, sketch
from tests.kernels.layers import random

Parts = dict[str, Callable[[], nn.Module]]

PARTS: Parts = {"a": lambda: nn.Linear(8, 8), "head": lambda: nn.Linear(8, 8)}


def head(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.relu(m.a(x)))


def gated_head(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.relu(m.a(x))).sigmoid()


def pair() -> tuple[dict[str, nn.Module], list[CohortExecutable]]:
    modules = {"a": sketch(head, PARTS, 0), "b": sketch(gated_head, PARTS, 1)}
    inputs = draw(((8,),), 2, seed=0)
    return modules, [captured_executable(inputs, **{name: module}) for name, module in modules.items()]


def test_equal_kernels_are_one_launch_and_the_rest_are_segments() -> None:
    _, executables = pair()
    merged = aligned(*executables)
    found = merged.schedule
    assert [item.form for item in found.items if isinstance(item, Launch)] == ["shared"] * 3
    assert [len(item.steps) for item in found.items if isinstance(item, Segment)] == [1]
    assert (found.num_launches, found.num_alone, found.notes) == (4, 7, ())
    assert found.saved == pytest.approx(3 / 7)


def test_cohorts_in_another_order_are_refused() -> None:
    _, executables = pair()
    merged = align([executable.cohort.program for executable in executables])
    signatures = [program.signature for program in merged.programs]
    cohorts = sorted((e.cohort for e in executables), key=lambda c: -signatures.index(c.program.signature))
    with pytest.raises(PlanError, match="belongs to other cohorts"):
        schedule(merged, cohorts)


def test_why_calls_are_made_apart_is_said() -> None:
    """Equal keys, but a constant of the code differs."""
    inputs = draw(((8,),), 2, seed=0)
    parts: Parts = {"a": lambda: nn.Linear(8, 8)}
    bodies = [lambda m, x, s=scale: m.a(x) * torch.full((8,), s) for scale in (2.0, 3.0)]
    executables = [captured_executable(inputs, **{str(i): sketch(body, parts, i)}) for i, body in enumerate(bodies)]
    found = aligned(*executables).schedule
    assert [note.reason for note in found.notes] == ["the others are called in another way"] * 2
    assert {note.member for note in found.notes} == {0, 1}


def test_unlike_shapes_in_one_launch_are_a_group() -> None:
    inputs = draw(((8,),), 2, seed=0)
    executables = [
        captured_executable(inputs, **{str(width): sketch(lambda m, x: m.a(x), {"a": lambda w=width: nn.Linear(8, w)})})
        for width in (5, 6)
    ]
    merged = MergedProgram(
        tuple(executable.cohort.program for executable in executables), (Step((Part(0, 0), Part(1, 0)), "grouped"),)
    )
    (launch,) = schedule(merged, [executable.cohort for executable in executables]).items
    assert isinstance(launch, Launch) and launch.form == "grouped" and launch.alike == (0, 1)


def test_values_are_dropped_after_their_last_use() -> None:
    _, executables = pair()
    merged = aligned(*executables)
    found = merged.schedule
    dropped = [place for places in found.dead for place in places]
    kept = [{out.name for out in member.cohort.fused.outputs} for member in merged.members]
    assert len(dropped) == len(set(dropped)) > 0
    assert all(name not in kept[member] for member, name in dropped)


# -- equal weights ---------------------------------------------------------------------------------------


def test_contents_are_told_apart_and_followed() -> None:
    contents, one, other = Contents(), Layer("one"), Layer("other", channels_last=True)
    weight, changed = random(4, 3, 2, 2, seed=1), random(4, 3, 2, 2, seed=1)
    changed[3, 2, 1, 1] += 1
    one.put(0, weight)
    other.put(0, weight)
    other.put(1, changed)
    number = contents.number(one, 0)
    assert contents.number(other, 0) == number != contents.number(other, 1)
    other.drop(0)
    other.put(0, random(4, 3, 2, 2, seed=2))  # into the same entry
    assert other.entries[0] == 0
    assert contents.number(other, 0) != number == contents.number(one, 0)


def test_equal_fingerprints_are_not_taken_for_equality() -> None:
    """Of a large weight only samples are hashed."""
    contents, one, other = Contents(), Layer("one"), Layer("other")
    weight = random(64, 64, seed=1)
    changed = weight.clone()
    changed[0, 1] += 1
    one.put(0, weight)
    other.put(0, changed)
    assert contents.number(one, 0) != contents.number(other, 0)


def test_a_backbone_that_two_programs_share_is_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    modules, _ = pair()
    modules["b"].load_state_dict(modules["a"].state_dict() | {"head.bias": torch.ones(8)})
    inputs = draw(((8,),), 2, seed=0)
    executables = [captured_executable(inputs, **{name: module}) for name, module in modules.items()]
    merged = aligned(*executables)
    products: list[int] = []
    linear, addmm = F.linear, torch.addmm

    def counted_linear(x: Tensor, *rest: Any) -> Tensor:
        products.append(len(x))
        return linear(x, *rest)

    def counted_addmm(bias: Tensor, x: Tensor, *rest: Any, **options: Any) -> Tensor:
        products.append(len(x))
        return addmm(bias, x, *rest, **options)

    monkeypatch.setattr(F, "linear", counted_linear)
    monkeypatch.setattr(torch, "addmm", counted_addmm)
    requests = [("a", draw(((8,),), 3, 1)), ("b", draw(((8,),), 2, 2))]
    outcomes = run(merged, requests)
    assert sorted(products) == [2, 3, 5], "the backbone once for five rows, the heads apart"
    for (name, args), outcome in zip(requests, outcomes, strict=True):
        assert trouble(modules[name], args, outcome, draw(((8,),), 8, 3)) is None
