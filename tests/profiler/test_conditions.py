"""What decides how a model is captured: whatever changes it changes the digest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from spacetime.profiler import conditions
from spacetime.profiler.conditions import conditions_digest


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a package that may be changed."""
    folder = tmp_path / "package"
    (folder / "capture").mkdir(parents=True)
    (folder / "capture" / "export.py").write_text("A = 1\n", encoding="utf-8")
    monkeypatch.setattr(conditions, "_PACKAGE", folder)
    return folder


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of it that may be changed."""
    folder = tmp_path / "torch"
    (folder / "lib").mkdir(parents=True)
    for name in ("__init__.py", "version.py", "lib/libtorch_cpu.so"):
        (folder / name).write_text("built", encoding="utf-8")
    spec = type("Spec", (), {"origin": str(folder / "__init__.py")})()
    monkeypatch.setattr(conditions, "find_spec", lambda name: spec)
    return folder


def test_the_same_conditions_have_the_same_digest(sources: Path, torch: Path) -> None:
    assert conditions_digest() == conditions_digest() != None  # noqa: E711


@pytest.mark.parametrize(
    "path", ["package/capture/export.py", "package/capture/new.py", "torch/version.py", "torch/lib/libtorch_cpu.so"]
)
def test_other_sources_and_another_torch_are_other_conditions(
    sources: Path, torch: Path, tmp_path: Path, path: str
) -> None:
    before = conditions_digest()
    (tmp_path / path).write_text("other", encoding="utf-8")
    assert conditions_digest() != before


@pytest.mark.parametrize("name", ["TORCH_LOGS", "SPACETIME_ANY", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS"])
def test_variables_are_conditions(sources: Path, torch: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name, raising=False)
    before = conditions_digest()
    monkeypatch.setenv(name, "1")
    assert conditions_digest() != before


def test_the_processor_and_the_importer_are_conditions(
    sources: Path, torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: one\nflags\t\t: sse avx2\n\nmodel name\t: two\n", encoding="utf-8")
    monkeypatch.setattr(conditions, "_CPUINFO", tmp_path / "cpuinfo")
    found = [conditions_digest()]
    (tmp_path / "cpuinfo").write_text("model name\t: one\nflags\t\t: sse avx512f\n", encoding="utf-8")
    found.append(conditions_digest())
    monkeypatch.setattr(conditions, "version", lambda name: "99.0")
    found.append(conditions_digest())
    assert len(set(found)) == 3


def test_a_torch_that_cannot_be_looked_at_leaves_nothing_known(
    sources: Path, torch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(torch)
    assert conditions_digest() is None
    monkeypatch.setattr(conditions, "find_spec", lambda name: None)
    assert conditions_digest() is None
