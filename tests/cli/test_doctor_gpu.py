"""The doctor on GPUs: every line on a machine without one, and what it would say where there is one."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spacetime.backends.cuda.census import Survey
from spacetime.backends.cuda.gpu import unusable
from spacetime.cli import doctor_gpu
from spacetime.cli.checks import Check
from spacetime.cli.doctor_gpu import gpu_checks
from spacetime.errors import SpacetimeError
from spacetime.kernels.triton.products import BADDBMM, SLOT, Shape
from spacetime.kernels.triton.slot_linear import Shape as Linear
from spacetime.kernels.triton.table import Measured, load
from spacetime.values import encode

take_census = doctor_gpu._census

LINES = (
    *("CUDA", "HIP", "CUDA driver", "cuda.bindings", "green contexts", "confinement", "compute capability"),
    *("Triton", "cuBLAS", "compiled library", "measured products", "nvcc", "MPS"),
)


def line(name: str) -> Check:
    return next(check for check in gpu_checks() if check.name == name)


def test_every_line_has_a_reason_and_what_is_used_instead() -> None:
    checks = list(gpu_checks())
    assert tuple(check.name for check in checks) == LINES
    for check in checks:
        assert check.reason and bool(check.instead) == (check.status == "MISSING"), check


@pytest.mark.skipif(unusable() is None, reason="there is a GPU")
def test_without_a_gpu_nothing_fails_and_the_cpu_is_used() -> None:
    checks = {check.name: check for check in gpu_checks()}
    assert not [check for check in checks.values() if check.status == "FAIL"]
    for name in ("CUDA", "green contexts", "confinement", "compute capability", "Triton", "compiled library"):
        assert (checks[name].status, checks[name].instead) == ("MISSING", "the CPU device"), name


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """What torch would say on a machine with an H200."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(doctor_gpu, "DEVICES", tmp_path)
    monkeypatch.setattr(doctor_gpu, "_census", lambda: Check("confinement", "PASS", "for once, taken for granted"))
    yield monkeypatch


def test_a_gpu_is_named(on_a_gpu: pytest.MonkeyPatch) -> None:
    cuda = line("CUDA")
    assert (cuda.status, cuda.reason) == ("PASS", "torch is built for CUDA 13.0 and finds NVIDIA H200")
    assert line("HIP").status == "MISSING"
    assert line("compute capability").reason == "9.0; 8.0 or newer is needed"


def test_a_gpu_that_torch_does_not_find_is_a_failure(on_a_gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_a_gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert line("CUDA").status == "MISSING", "there may be none"
    (tmp_path / "nvidia0").touch()
    cuda = line("CUDA")
    assert cuda.status == "FAIL" and "nvidia0 is there" in cuda.reason


@pytest.mark.parametrize(
    ("number", "status", "reason"),
    [
        (13_000, "PASS", "it supports CUDA 13.0"),
        (12_040, "PASS", "it supports CUDA 12.4"),
        (12_020, "MISSING", "it supports CUDA 12.2; partitions need 12.4"),
        (None, "MISSING", "libcuda.so.1 is not installed"),
    ],
)
def test_the_drivers_version(on_a_gpu: pytest.MonkeyPatch, number: int | None, status: str, reason: str) -> None:
    class Library:
        def __init__(self, name: str) -> None:
            if number is None:
                raise OSError(name)

        def cuDriverGetVersion(self, pointer: Any) -> int:
            pointer._obj.value = number
            return 0

    on_a_gpu.setattr(doctor_gpu.ctypes, "CDLL", Library)
    assert isinstance(ctypes.c_int(), ctypes.c_int)
    found = doctor_gpu._driver()
    assert (found.status, found.reason) == (status, reason)


def test_green_contexts_where_the_driver_has_them(on_a_gpu: pytest.MonkeyPatch) -> None:
    from tests.backends.cuda.fake_driver import FakeDriver

    on_a_gpu.setattr(doctor_gpu, "CudaDriver", FakeDriver)
    assert line("green contexts") == Check("green contexts", "PASS", "the SMs split into 16 groups of 8")

    def refuse() -> None:
        raise SpacetimeError("this driver has no green contexts", "it supports CUDA 12.2", "update it")

    on_a_gpu.setattr(doctor_gpu, "CudaDriver", refuse)
    found = line("green contexts")
    assert found.reason == "this driver has no green contexts: it supports CUDA 12.2"
    assert "plain streams" in found.instead


@pytest.mark.parametrize("old", [(7, 5), (6, 0)])
def test_an_older_chip_computes_without_triton(on_a_gpu: pytest.MonkeyPatch, old: tuple[int, int]) -> None:
    on_a_gpu.setattr(torch.cuda, "get_device_capability", lambda: old)
    found = line("compute capability")
    assert found.status == "MISSING" and "Triton kernels need 8.0" in found.reason and "plain torch" in found.instead


def measured(way: str, device: str, rows: int) -> Measured:
    shape = Shape(Linear(rows, 1, 512, 512, "fp32"), rows)
    return Measured(way, device, encode(shape), {"runs": way}, 9.5, "graphs", {})


def test_products_are_counted_for_this_device_alone(on_a_gpu: pytest.MonkeyPatch) -> None:
    found = line("measured products")
    assert found.status == "MISSING" and "slot kernel" in found.instead
    assert found.reason == "none for NVIDIA H200; python -m spacetime.kernels.triton.tune_products measures them"
    h200, other = "NVIDIA H200", "NVIDIA B200"
    entries = [measured(SLOT, h200, 4), measured(BADDBMM, h200, 4), measured(SLOT, h200, 16), measured(SLOT, other, 64)]
    on_a_gpu.setattr(doctor_gpu, "shipped", lambda: {each.key: each for each in entries})
    found = line("measured products")
    assert (found.status, found.instead) == ("PASS", "")
    assert found.reason == "2 for NVIDIA H200; other shapes and mixes take slot kernels"


def test_a_broken_table_of_products_is_a_failure(on_a_gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "configs.json").write_text("{}")
    on_a_gpu.setattr(doctor_gpu, "shipped", lambda: load(tmp_path / "configs.json"))
    found = line("measured products")
    assert found.status == "FAIL" and "is no table of configs" in found.reason


# -- the census -----------------------------------------------------------------------------------------

GOOD = Survey(16, 8, 53, 132, ())


def survey_by(code: str, limit_s: float = 30) -> Check:
    return take_census((sys.executable, "-c", code), limit_s)


def test_a_census_that_finds_nothing_wrong(on_a_gpu: pytest.MonkeyPatch) -> None:
    found = survey_by(f"print('chatter'); print({GOOD.to_json()!r})")
    assert found.status == "PASS"
    assert found.reason == "kernels stay inside all of 53 partitions of 16 atoms with 8 SMs; the whole has 132"


def test_partitions_that_do_not_hold_are_a_failure(on_a_gpu: pytest.MonkeyPatch) -> None:
    bad = Survey(16, 8, 53, 132, ("partition 0x3 ran on 9 SMs outside of it", "another"))
    found = survey_by(f"print({bad.to_json()!r})")
    assert (found.status, found.reason) == ("FAIL", "partition 0x3 ran on 9 SMs outside of it, and 1 more")


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("import sys; sys.exit('Segmentation fault')", "FAIL", "ended with code 1: Segmentation fault"),
        ("print('no JSON')", "FAIL", "ended with code 0"),
        ("import os; os.abort()", "FAIL", "ended with code -6"),
        (
            "import sys; print('the census needs cupy: No module', file=sys.stderr); sys.exit(2)",
            "MISSING",
            "no census: the census needs cupy: No module",
        ),
    ],
)
def test_a_census_that_does_not_come_about(on_a_gpu: pytest.MonkeyPatch, code: str, status: str, reason: str) -> None:
    found = survey_by(code)
    assert found.status == status and reason in found.reason
    assert bool(found.instead) == (status == "MISSING")


def test_a_census_that_hangs_is_ended(on_a_gpu: pytest.MonkeyPatch) -> None:
    found = survey_by("import threading; threading.Event().wait()", limit_s=0.5)
    assert (found.status, found.reason) == ("FAIL", "the census of SMs did not end within 0.5 s")
