"""What an export leaves to those who are being served meanwhile."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from spacetime import Runtime
from spacetime.runtime import courtesy
from spacetime.runtime.courtesy import SWITCH_S, courteous
from tests.runtime.models import Branching, X

EXAMPLE, IDS = (torch.zeros(2, 3),), torch.ones(2, 4, dtype=torch.int64)


@pytest.fixture(autouse=True)
def switch_interval() -> Iterator[float]:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield 0.005
    sys.setswitchinterval(before_s)


def test_turns_are_short_until_the_last_one_has_left() -> None:
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(courteous())
        second.enter_context(courteous())
        first.close()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
        second.close()
        assert sys.getswitchinterval() == pytest.approx(0.005)


def test_an_exception_ends_it_too() -> None:
    with pytest.raises(ValueError, match="inside"), courteous():
        raise ValueError("inside")
    assert sys.getswitchinterval() == pytest.approx(0.005)


@pytest.mark.parametrize("chosen_s", [0.00001, 0.002])
def test_what_somebody_else_chooses_stays(chosen_s: float) -> None:
    with courteous():
        sys.setswitchinterval(chosen_s)
    assert sys.getswitchinterval() == pytest.approx(chosen_s)
    sys.setswitchinterval(SWITCH_S / 2)
    with courteous():
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S / 2), "they are short enough"
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S / 2)


class Telling(nn.Module):
    """Notes how long turns are while it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.seen_s: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(x) is torch.Tensor:  # not while it is traced
            self.seen_s.append(sys.getswitchinterval())
        return self.linear(x)


def test_add_is_courteous() -> None:
    module = Telling().eval()
    with Runtime(device="cpu") as rt:
        rt.add(module, EXAMPLE, "telling")
    assert min(module.seen_s) == pytest.approx(SWITCH_S)
    assert sys.getswitchinterval() == pytest.approx(0.005)


def collections_of_all() -> int:
    return int(gc.get_stats()[2]["collections"])


def test_only_a_new_architecture_leaves_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    num_calls = 0

    def count() -> None:
        nonlocal num_calls
        num_calls += 1

    monkeypatch.setattr("spacetime.runtime.prepare.collect_garbage", count)
    with Runtime(device="cpu") as rt:
        for name, width, so_far in (("a", 3, 1), ("b", 3, 1), ("c", 5, 2)):
            rt.add(nn.Linear(3, width).eval(), EXAMPLE, name)
            assert num_calls == so_far, name


def test_what_is_refused_leaves_garbage_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr("spacetime.runtime.prepare.collect_garbage", lambda: calls.append(sys.exc_info()[0] is None))
    with Runtime(device="cpu") as rt:
        for name, so_far in (("a", 1), ("b", 1)):
            rt.add(Branching().eval(), (X,), name)
            assert calls == [True] * so_far, name  # an exception would hold on to it
        assert len(rt.explain().opaque) == 2


def test_programs_of_other_lengths_leave_garbage_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr("spacetime.runtime.prepare.collect_garbage", lambda: calls.append(None))
    with Runtime(device="cpu") as rt:
        for name in ("a", "b"):
            rt.add(nn.Embedding(8, 4).eval(), (IDS,), name, dynamic={0: {1: (2, 8)}})
            assert len(calls) == 2, "after the longest, and after the others"
        assert rt.explain().varying


def test_collections_that_are_switched_off_stay_off() -> None:
    before = collections_of_all()
    courtesy.collect_garbage()
    assert collections_of_all() == before + 1
    gc.disable()
    try:
        courtesy.collect_garbage()
        assert collections_of_all() == before + 1
    finally:
        gc.enable()
