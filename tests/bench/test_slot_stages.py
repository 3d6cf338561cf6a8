"""What the stages on slot kernels do without a GPU: go on behind a case that breaks the device, choose what to tune."""

from __future__ import annotations

import os

import pytest

from bench.device import kernels, restart, slot_speed, tables
from bench.device.findings import FAIL, INFO, PASS, Finding, Notes, read
from spacetime.kernels.triton.choose import KERNELS
from spacetime.kernels.triton.target import Target

HOPPER = Target("H200", "cuda", "90", 132, 232448)


class StartedAgain(Exception):
    """Instead of becoming another process."""


def found(capsys: pytest.CaptureFixture[str]) -> list[Finding]:
    return [finding for line in capsys.readouterr().out.splitlines() if (finding := read(line)) is not None]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """A device that some case breaks."""
    state: dict[str, str | None] = {"trouble": None}

    def start_again(stage: str, index: int) -> None:
        monkeypatch.setenv(restart.FROM, str(index))
        state["trouble"] = None
        raise StartedAgain

    monkeypatch.setattr(restart, "broken", lambda: state["trouble"])
    monkeypatch.setattr(restart, "start_again", start_again)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    return state


def test_every_case_has_its_own_finding_and_one_that_breaks_the_device_stops_no_other(
    device: dict[str, str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong() -> None:
        raise AssertionError("deviates")

    def wild() -> None:
        device["trouble"] = "an illegal memory access"
        raise RuntimeError("CUDA error")

    cases: list[restart.Case] = [("a", lambda: {"us": 3}), ("b", wrong), ("c", wild), ("d", lambda: None)]
    with pytest.raises(StartedAgain):
        restart.each(Notes("slots"), "slots", cases)
    restart.each(Notes("slots"), "slots", cases)
    findings = found(capsys)
    assert [(each.name[:1], each.status) for each in findings] == [
        *(("a", PASS), ("b", FAIL), ("c", FAIL), ("c", INFO), ("d", PASS)),
    ]
    assert findings[0].figures["us"] == 3 and "illegal memory access" in findings[3].facts
    assert restart.FROM not in os.environ, "the next stage starts at its first case"


def test_the_cases_are_those_of_the_tests_and_each_has_a_name_of_its_own() -> None:
    names = [name for name, _ in kernels._cases(("cpu", HOPPER))]
    assert len(set(names)) == len(names) >= 75
    starts = {name.split()[0] for name in names}
    assert starts >= {"entries", "linear", "gemv", "conv", "depthwise", "layernorm", "embedding", "grouped", "default"}


def test_promised_figures_are_tuned_first_and_each_shape_once() -> None:
    wanted = tables.wanted()
    assert len(set(wanted)) == len(wanted)
    promised = {figure.shape for figure in slot_speed.figures() if figure.share and figure.shape.rows == 20}
    first = {(shape.m, shape.n, shape.k) for _, shape in wanted[:8]}
    assert {(shape.m, shape.n, shape.k) for shape in promised} == first
    assert all(list(KERNELS[name].candidates(shape, HOPPER)) for name, shape in wanted)


def test_a_share_is_that_of_the_fastest_of_ours() -> None:
    figure = next(each for each in slot_speed.figures() if each.shape.rows == 20 and each.shape.m == 1)
    moved_us = 20 * 4096 * 4096 * 2 / slot_speed.MEMORY_TB_S / 1e6
    share = slot_speed._share(
        figure, {"slot_gemv": moved_us * 2, "slot_linear": moved_us, "bmm": moved_us * 3}, "slot_linear"
    )
    assert share["share"] == pytest.approx(1.0, abs=0.01) and share["kept"] is True
    assert share["times_of_ours"] == {"bmm": 3.0}
