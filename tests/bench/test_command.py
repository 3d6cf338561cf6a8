"""`spacetime bench` and `python -m bench`: which cases, which device, which files; outside of a checkout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import spacetime
from bench import __main__ as suite
from bench.cases import Scale
from bench.provenance import collect, gpu_id
from bench.results import Figure, Measurement, Row, default_path, load
from spacetime.errors import OptionError
from tests.cli.commands import run

FIGURE = Figure("case", "metric", "us", "how")


def one(scale: Scale) -> Iterator[Measurement]:
    yield FIGURE.of("subject", [1.0, 2.0], axes={"device": scale.device})


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> dict[str, suite.Run]:
    """A group, and a case of the others."""
    fakes: dict[str, suite.Run] = {"gemm": one, "masks": one}
    monkeypatch.setattr(suite, "CASES", fakes)
    return fakes


def ask(*cases: str, device: str = "cpu", **options: object) -> suite.Request:
    return suite.asked(cases, device, **{"quick": True, "as_json": True, "out": None} | options)  # type: ignore[arg-type]


# -- what is asked ---------------------------------------------------------------------------------------------------


def test_sets_of_cases_have_names() -> None:
    assert ask("suite").cases == ("gemm", "models", "tenants", "overheads", "interference")
    assert ask().cases == ask("all").cases == tuple(suite.CASES) == (*suite.GROUPS, *suite.CORE)
    assert ask("masks", "core", "masks").cases == ("masks", *(name for name in suite.CORE if name != "masks"))


def test_every_case_can_be_found() -> None:
    root = Path(suite.__file__).parent
    assert [name for name in suite.CASES if not (root / f"{name}.py").is_file()] == []


@pytest.mark.parametrize(
    ("cases", "device", "message"),
    [
        (("nonesuch",), "cpu", "no such case: nonesuch"),
        ((), "tpu", "device 'tpu' does not exist"),
        ((), "cuda:x", "device 'cuda:x' does not exist"),
        ((), "cuda:99", "device 'cuda:99' is not here"),
    ],
)
def test_what_does_not_exist_is_refused(cases: tuple[str, ...], device: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ask(*cases, device=device)


def test_cases_of_the_cpu_do_not_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "device_of", lambda name: "cuda:0")
    found = ask("all")
    assert found.cases == suite.GROUPS and found.scale.device == "cuda:0"
    with pytest.raises(OptionError, match="masks cannot run on cuda:0"):
        ask("gemm", "masks")


def test_how_much_is_measured() -> None:
    assert (ask(quick=False).scale.quick, ask().scale.quick, ask().scale.smoke) == (False, True, False)
    smoke = ask(quick=False, smoke=True).scale
    assert smoke.smoke and smoke.quick


# -- where it goes ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cases")
def test_a_folder_has_a_file_per_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite.perform(ask(out=tmp_path))
    printed = [Row.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["core.jsonl", "gemm.jsonl"]
    assert [*load(tmp_path / "gemm.jsonl"), *load(tmp_path / "core.jsonl")] == printed
    assert printed[0].measurement.axes == {"device": "cpu"}


@pytest.mark.usefixtures("cases")
@pytest.mark.parametrize(("quick", "recorded"), [(True, False), (False, True)])
def test_a_quick_run_leaves_no_trace(
    quick: bool, recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "default_path", lambda provenance, group: tmp_path / f"{group}.jsonl")
    suite.perform(ask(quick=quick))
    assert (tmp_path / "gemm.jsonl").exists() == recorded


@pytest.mark.usefixtures("cases")
def test_a_table_says_the_noise(capsys: pytest.CaptureFixture[str]) -> None:
    suite.perform(ask("gemm", as_json=False))
    heading, columns, line = capsys.readouterr().out.splitlines()
    assert "cores" in heading and "noise" in columns
    assert line.split()[:7] == ["case", "subject", "metric", "1.5", "1.25", "1.75", "33%"]


def test_results_lie_by_device_and_group() -> None:
    found = default_path(collect("cpu"), "gemm")
    assert found.name == "gemm.jsonl" and found.parent.name == collect("cpu").device
    assert gpu_id("NVIDIA H200") == "gpu-nvidia-h200"


def test_provenance_names_the_packages_that_compute() -> None:
    found = collect("cpu")
    assert found.gpu == "none" and "numpy" in found.versions


# -- the verb --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cases")
def test_the_verb_measures_and_records(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    ended = run(capsys, "bench", "gemm", "--device", "cpu", "--quick", "--json", "--out", out)
    assert ended.code == 0
    assert [Row.from_json(line) for line in ended.out.splitlines()] == load(out)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nonesuch",), 1, "no such case: nonesuch"),
        (("gemm", "--device", "tpu"), 1, "device 'tpu' does not exist"),
        (("--nonesuch",), 2, "No such option"),
        (("report", "--quick"), 1, "--quick has no effect on the report"),
        (("report", "gemm"), 1, "report is not a case"),
        (("report", "--results", "/nonesuch"), 1, "there are no results in /nonesuch"),
        (("gemm", "--results", "x"), 1, "--results has no effect on a measurement"),
    ],
)
def test_an_error_is_a_message(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    ended = run(capsys, "bench", *arguments)
    assert ended.code == code and message in ended.err and ended.out == ""
    if code == 1:  # ours: what failed, the facts, the next step
        assert len(ended.err.strip().splitlines()) >= 2


def test_outside_of_a_checkout_it_says_where_the_suite_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(spacetime, "__file__", str(tmp_path / "site-packages" / "spacetime" / "__init__.py"))
    for arguments in (("gemm",), ("report",)):
        ended = run(capsys, "bench", *arguments)
        assert ended.code == 1 and "not part of the installed package" in ended.err and "git clone" in ended.err


def test_the_report_is_written_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import bench.report

    monkeypatch.setattr(bench.report, "write_report", lambda results, out: (out / results.name / "report.html",))
    ended = run(capsys, "bench", "report", "--out", tmp_path)
    assert ended.code == 0 and ended.out.split() == [str(tmp_path / "results" / "report.html")]
    ended = run(capsys, "bench", "report", "--out", tmp_path, "--results", "others")
    assert ended.out.split() == [str(tmp_path / "others" / "report.html")]
