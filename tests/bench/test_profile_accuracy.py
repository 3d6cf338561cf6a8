"""The bench of the profiler: its lines, and what it calls agreement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import profile_accuracy
from bench.cases import QUICK
from spacetime.profiler.curves import Point
from spacetime.profiler.records import Key, Measurement
from tests.profiler.test_profile import WIDE, profile


def test_it_measures_time_agreement_and_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_accuracy, "BUDGET_S", 0.01)
    monkeypatch.setattr(profile_accuracy, "WHOLE_BUDGET_S", 0.05)
    monkeypatch.setattr(profile_accuracy, "TIMED_MODEL", "mlp")
    monkeypatch.setattr(profile_accuracy, "NUM_COMMANDS", 1)
    found = list(profile_accuracy.run(replace(QUICK, models=("mlp",))))
    assert {line.case for line in found} == {"profile_accuracy"}
    metrics = [line.metric for line in found]
    assert metrics[:4] == [
        "profile with an empty store",
        "profile when all is known",
        "the command when all is known",
        "equal knees in two runs",
    ]
    ratios = [line for line in found if line.unit == "ratio"]
    shares = [line for line in found if line.unit == "share of models"]
    assert ratios and len(shares) == sum(line.n == 2 for line in ratios)
    assert all(line.median if line.n == 2 else "interrupted" in line.note for line in ratios)
    assert all(line.median in (0.0, 1.0) and line.note == "1 models" for line in shares)


def test_agreement_is_the_share_of_layers_with_the_same_knee() -> None:
    one = profile()
    faster = Measurement(Key(WIDE, 1, 1), "linear", "float32", (49.0,), 1, 0.0, 0, "measured", "2026-01-01")
    other = replace(one, measurements=tuple(faster if each.key == faster.key else each for each in one.measurements))
    assert other.layers[1].points[0] == Point(1, (49.0,))
    assert profile_accuracy.agreement(one, one) == 1.0
    assert profile_accuracy.agreement(one, other) == pytest.approx(2 / 3)
