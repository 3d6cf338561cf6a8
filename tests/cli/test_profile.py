"""`spacetime profile` and `spacetime-profile` as users meet them."""

from __future__ import annotations

import csv
import doctest
import errno
import io
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import spacetime as st
from spacetime import zoo
from spacetime.cli import known, models
from spacetime.cli import profile as verb
from spacetime.cli import profile_report as reports
from spacetime.cli.models import load_model
from spacetime.cli.profile_report import ProfileReport
from spacetime.profiler import environment
from spacetime.profiler import run as running
from spacetime.profiler.campaign import Progress
from spacetime.sim import architectures
from tests.cli.commands import Ended, run
from tests.profiler.fake_clock import OLD, ClockedSite

MODELLED = ("--device", "model:h200")


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is written to the user's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches"


def profiled(capsys: pytest.CaptureFixture[str], *arguments: object) -> ProfileReport:
    ended = run(capsys, "profile", *arguments, "--json")
    assert (ended.code, ended.err) == (0, "")
    return ProfileReport.from_json(ended.out)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(verb).failed == doctest.testmod(reports).failed == 0
    assert doctest.testmod(models).failed == doctest.testmod(known).failed == 0


# -- what it prints and writes ---------------------------------------------------------------------------------------


def test_a_table_of_layers_a_model_level_knee_and_the_files(capsys: pytest.CaptureFixture[str], caches: Path) -> None:
    ended = run(capsys, "profile", "zoo:mlp", *MODELLED)
    assert (ended.code, ended.err) == (0, "")  # no progress bar: this is no terminal
    lines = ended.out.splitlines()
    assert lines[0].startswith("mlp on model:h200, 132 units (modelled) · 1 row")
    for heading in ("layer", "op", "shape", "flops", "bytes", "best", "knee", "saved", "bound"):
        assert heading in lines[2]
    assert "linear" in ended.out and "float32[rows, 256]" in ended.out and "/132" in ended.out
    assert "whole model" in ended.out
    written = [Path(line) for line in lines if line.startswith(str(caches))]
    assert [path.suffix for path in written] == [".json", ".html"]
    assert st.Profile.load(written[0]).device == "model:h200"
    assert "mlp on h200 (modelled)" in written[1].read_text(encoding="utf-8")


def test_a_gpu_without_partitions_is_said_to_have_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    monkeypatch.setattr(running, "make_site", lambda device: ClockedSite(partitions=False))
    ended = run(capsys, "profile", "zoo:mlp", "--device", "cuda:0", "--budget", "0.0001")
    assert (ended.code, ended.err) == (0, "")
    assert f"measured on the whole device only: this driver has no green contexts: {OLD}" in ended.out
    page = next(caches.rglob("*.html")).read_text(encoding="utf-8")
    assert OLD in page and "132" in page


def test_the_table_of_layers_fits_the_terminal() -> None:
    profile = st.profile(architectures.program("mobilenet_v2"), "model:h200")
    for width in (50, 60, 72, 80, 100, 120, 160):
        console = Console(width=width, markup=False, record=True, file=io.StringIO())
        total = reports.total_of(profile)
        console.print(reports.total_table([total], width))
        assert "…" not in console.export_text(clear=False)
        console.print(reports.layer_table(total, width))
        lines = console.export_text().splitlines()
        assert max(len(line.rstrip()) for line in lines) <= width
        assert sum("conv2d" in line for line in lines) > 5 or width < 60
        assert sum("132" in line for line in lines) == 1 + len({layer.key for layer in profile.layers}), (
            "nothing is cut"
        )
        assert ("in a wider" in " ".join(lines[-3:])) == (width < 145)
        assert "_native_batch" not in "".join(lines)
        assert any("float32[rows" in line for line in lines) == (width >= 145)


def test_kernels_that_are_not_known_well_are_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def restless(values: object) -> float:
        return 0.2

    ended = run(capsys, "profile", "zoo:mlp", *MODELLED)
    assert "no better than" not in ended.out, "a model is sure of itself"
    monkeypatch.setattr(reports, "half_width", restless)
    ended = run(capsys, "profile", "zoo:mlp", *MODELLED)
    assert "3 of 3 kernels are known to no better than 10%" in ended.out
    assert "--refresh measures again" in ended.out
    assert profiled(capsys, "zoo:mlp", *MODELLED).totals[0].num_unsure == 3


def test_json_has_every_layer_at_every_number_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    report = profiled(capsys, "zoo:mlp", *MODELLED, "--rows", "4,1", "--units", "8,64,132", "--tolerance", "0.1")
    program = st.capture(zoo.build("mlp"), zoo.example("mlp"))
    assert (report.model, report.method, report.tolerance) == ("mlp", "modelled", 0.1)
    assert [total.rows for total in report.totals] == [4, 1]
    for total in report.totals:
        assert [layer.name for layer in total.layers] == [kernel.name for kernel in program.kernels]
        assert {point.units for layer in total.layers for point in layer.points} == {8, 64, 132}
        assert total.layers[0].flops == program.kernels[0].flops(total.rows)


def test_what_is_asked_for_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = {
        "--output": "kept.json",
        "--html": "kept.html",
        "--csv": "kept.csv",
        "--chrome": "kept.trace.json",
        "--picture": "kept.svg",
    }
    options = [part for option, name in names.items() for part in (option, tmp_path / name)]
    report = profiled(capsys, "zoo:mlp", *MODELLED, "--rows", "1,2", *options, "--part", "timeline")
    assert sorted(Path(path).name for path in report.files) == sorted(names.values())
    assert st.Profile.load(tmp_path / "kept.json").all_rows == (1, 2)
    rows = list(csv.DictReader((tmp_path / "kept.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["rows"] for row in rows] == ["1"] * len(report.totals[0].layers) + ["2"] * len(report.totals[1].layers)
    assert json.loads((tmp_path / "kept.trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert "Units needed over time · mlp" in (tmp_path / "kept.svg").read_text(encoding="utf-8")
    assert (tmp_path / "kept.html").stat().st_size > 10_000


def test_the_cpu_is_measured_kept_and_not_measured_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, seen: list[Progress]
) -> None:
    # Kernels one after another; inside a run all of them become sure at about the same time.
    options = ("zoo:mlp", "--store", tmp_path / "store", "--budget", "0.01", "--units", "1", "--cache", "warm")
    report = profiled(capsys, *options)
    assert report.method == "measured"
    assert seen[-1].done == seen[-1].total and seen[-1].num_known == 0
    assert {layer.knee.units for layer in report.totals[0].layers} == {1}
    again = profiled(capsys, *options)
    assert seen[-1].num_known == seen[-1].total
    assert again.totals == report.totals


def test_the_script_is_the_verb_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    ended = run(capsys, "zoo:mlp", *MODELLED, entry=verb.main)
    assert ended.code == 0 and "whole model" in ended.out
    assert run(capsys, "--nonesuch", entry=verb.main).code == 2
    assert run(capsys, "profile", "zoo:mlp", entry=verb.main).code == 2, "there are no verbs"
    assert "profile [OPTIONS]" not in run(capsys, "--help", entry=verb.main).out
    refused(run(capsys, "zoo:nonesuch", entry=verb.main), "the zoo has no model 'nonesuch'")


def test_two_profiles_are_compared_on_the_way(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = tmp_path / "before.json"
    profiled(capsys, "zoo:mlp", *MODELLED, "--output", before)
    same = profiled(capsys, "zoo:mlp", *MODELLED, "--compare", before)
    assert same.comparison is not None
    assert same.comparison.num_same_knees == len(same.comparison.kernels) > 0
    kept = tmp_path / "kept.json"
    ended = run(capsys, "profile", "zoo:mlp", "--device", "model:mi50", "--compare", before, "--output", kept)
    refused(ended, "  device: model:h200 here, model:mi50 there\n")
    assert "--force" in ended.err and st.Profile.load(kept).device == "model:mi50", "what was found out is not lost"
    forced = run(capsys, "profile", "zoo:mlp", "--device", "model:mi50", "--compare", before, "--force")
    assert forced.code == 0 and "device: model:h200 here, model:mi50 there" in forced.out


def test_what_is_known_from_other_conditions_is_measured_again_and_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("zoo:mlp", "--store", tmp_path / "store", "--budget", "0.01", "--units", "1", "--cache", "warm")
    assert profiled(capsys, *options).num_stale == 0
    monkeypatch.setattr(environment, "cpu_libraries", lambda: {"torch": "9.9"})
    ended = run(capsys, "profile", *options)
    assert "3 kernels were known from other conditions, and measured again" in ended.out
    assert f"  torch: 9.9 here, {torch.__version__} there" in ended.out
    assert profiled(capsys, *options).num_stale == 0, "they are known now"
    assert "known from other" not in run(capsys, "profile", *options).out
    monkeypatch.undo()
    assert profiled(capsys, *options).num_stale == 0, "nothing is lost by it"


# -- interruption ----------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """All progress that a bar would have shown."""
    heard: list[Progress] = []
    show_with(monkeypatch, heard.append)
    return heard


def show_with(monkeypatch: pytest.MonkeyPatch, show: Callable[[Progress], None]) -> None:
    @contextmanager
    def bar(name: str) -> Iterator[Callable[[Progress], None]]:
        yield show

    monkeypatch.setattr(verb, "_bar", bar)


def test_ctrl_c_keeps_what_was_measured_and_the_same_command_resumes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    # Kernels one after another; inside a run all of them become sure at about the same time.
    options = ("zoo:mlp", "--store", tmp_path / "store", "--budget", "0.01", "--units", "1", "--cache", "warm")
    show_with(monkeypatch, interrupt)
    ended = run(capsys, "profile", *options)
    assert (ended.code, ended.out) == (130, "")
    assert re.match(r"interrupted: [23] of ", ended.err), "the third may have become sure in the meantime"
    assert str(tmp_path / "store") in ended.err
    assert "run the same command again" in ended.err
    heard: list[Progress] = []
    show_with(monkeypatch, heard.append)
    profiled(capsys, *options)
    assert heard[-1].num_known >= 2  # the third may have become sure before the interruption was looked at


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_that_end_a_program_keep_it_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert threading.current_thread() is threading.main_thread(), "only there signals are heard"
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    show_with(monkeypatch, lambda progress: os.kill(os.getpid(), number))
    try:
        ended = run(capsys, "profile", *("zoo:mlp", "--store", tmp_path, "--budget", "0.01", "--cache", "warm"))
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert ended.code == 128 + number
    assert ended.err.startswith("interrupted: ") and "are measured, and kept in" in ended.err


@pytest.mark.parametrize(
    "stage",
    [
        "spacetime.cli.models.load_model",
        "spacetime.api.capture",
        "spacetime.cli.profile.profile_program",
    ],
)
def test_ctrl_c_before_anything_was_measured_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, interrupted)
    ended = run(capsys, "profile", "zoo:mlp")
    assert (ended.code, ended.err) == (130, "interrupted before any kernel was measured\n")


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (
            Progress(1, 5, "linear", 0, num_begun=3),
            "interrupted: 1 of 5 kernels are measured, and kept in",
        ),
        (
            Progress(0, 5, "", 0, num_begun=5),
            "interrupted: 0 of 5 kernels are measured, and kept in",
        ),
        (Progress(0, 5, "", 0), "interrupted before any kernel was measured"),
    ],
)
def test_an_interruption_says_what_is_begun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, last: Progress, message: str
) -> None:
    def interrupted(program: object, asked: object, progress: Callable[[Progress], None]) -> None:
        progress(last)
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "profile_program", interrupted)
    ended = run(capsys, "profile", "zoo:mlp")
    assert ended.code == 130 and ended.err.startswith(message)
    assert (f"\n  {last.num_begun} of the others are begun" in ended.err) == (last.num_begun > 0)


# -- wrong values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "1,x"), "--rows 1,x is no list of numbers"),
        (("--rows", "0"), "--rows 0 is no list of numbers"),
        (("--rows", ""), "is no list of numbers"),
        (("--units", "1;2"), "--units 1;2 is no list of numbers"),
        (("--units", "3"), "cannot be profiled on 3 units"),
        (("--cache", "tepid"), "no state of the caches"),
        (("--picture", "profile.bmp"), "PNG or SVG"),
        (("--picture", "/nonesuch/profile.png"), "/nonesuch is not a directory"),
        (("--output", "/tmp"), "it is a directory"),
        (("--html", "/tmp"), "it is a directory"),
        (("--output", "/tmp/page.html"), "say --html"),
        (("--store", "/dev/null/store"), "Not a directory"),
        (("--device", "cpu", "--store", "/dev/null/store"), "measurements cannot be kept in /dev/null/store"),
        (("--device", "cpu", "--rows", "99999999"), "99999999 rows do not fit in memory"),
        (("--device", "cpu", "--rows", "9" * 30), f"{'9' * 30} rows are too many"),
        (("--rows", "9" * 30), f"{'9' * 30} rows are too many"),
        (("--tolerance", "inf"), "a tolerance of inf"),
        (("--cache", "cold"), "its model knows no caches"),
        (("--device", "cpu", "--budget", "nan"), "a measurement needs time"),
        (("--part", "nonesuch", "--picture", "profile.png"), "known: all, latency, timeline"),
        (("--csv", "/nonesuch/profile.csv"), "/nonesuch is not a directory"),
        (("--compare", "/nonesuch/profile.json"), "cannot be read as a profile"),
        (("--device", "model:nonesuch"), "device 'nonesuch'"),
        (("--device", "nonesuch"), "'nonesuch'"),
    ],
)
def test_a_wrong_value_is_refused_with_a_way_out(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    device = () if "--device" in arguments else MODELLED
    refused(run(capsys, "profile", "zoo:mlp", *device, *arguments), message)


@pytest.mark.parametrize(
    "options",
    [
        ("--output", "one.json", "--csv", "one.json"),
        ("--csv", "one.csv", "--chrome", "./one.csv"),
        ("--output", "one.json", "--csv", "one.html"),  # the page is there
        ("--picture", "one.png", "--picture", "one.png"),
        ("--csv", "model.onnx"),
        ("--html", "../{folder}/model.onnx"),
    ],
)
def test_no_file_takes_the_place_of_another_or_of_the_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(b"what took a week to train")
    named = [option.format(folder=tmp_path.name) for option in options]
    refused(run(capsys, "profile", "model.onnx", *MODELLED, *named), "name another place for one of them")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert Path("model.onnx").read_bytes() == b"what took a week to train"


def test_a_pipe_takes_everything_and_the_page_stays_in_the_store(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # what is written fits in it, so nobody has to wait
    try:
        report = profiled(capsys, "zoo:mlp", *MODELLED, "--csv", pipe, "--units", "132")
        assert os.read(end, 1 << 16).startswith(b"index,name,op")
        folder = tmp_path / "store"
        report = profiled(capsys, "zoo:mlp", *MODELLED, "--output", pipe, "--units", "132", "--store", folder)
        assert json.loads(os.read(end, 1 << 16))["signature"]
    finally:
        os.close(end)
    assert Path(report.files[1]).is_relative_to(folder)


def test_a_disk_that_is_full_is_said_and_nothing_half_is_left(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str, **options: object) -> int:
        with path.open("w", encoding="utf-8") as file:
            file.write(text[:10])
        raise OSError(errno.ENOSPC, "No space left on device")  # which does not know its file

    monkeypatch.setattr(Path, "write_text", full)
    output = tmp_path / "kept.json"
    ended = run(capsys, "profile", "zoo:mlp", *MODELLED, "--output", output)
    refused(ended, f"{output} cannot be written")
    assert "No space left on device" in ended.err and list(tmp_path.iterdir()) == []


def test_names_in_any_script(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    (tmp_path / "réseau.py").write_text(FACTORIES + "\nréseau_模型 = pair\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    report = profiled(capsys, "réseau:réseau_模型", *MODELLED, "--picture", "層.svg")
    assert Path(report.files[0]).name.startswith("réseau-模型-")
    assert "réseau_模型" in Path("層.svg").read_text(encoding="utf-8")
    long = tmp_path / f"{'é' * 120}.onnx"
    refused(run(capsys, "profile", long, *MODELLED), "is not there")


def refused(ended: Ended, message: str) -> None:
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: ") and message in ended.err
    assert len(ended.err.splitlines()) == 3, "what failed, the facts, the next step"


@pytest.mark.parametrize("arguments", [("--nonesuch",), ("--tolerance", "-1"), ("--rows",), ("zoo:mlp", "extra")])
def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    ended = run(capsys, "profile", "zoo:mlp", *arguments)
    assert (ended.code, ended.out) == (2, "")


# -- models ----------------------------------------------------------------------------------------------------------

FACTORIES = """
import torch
from rich.console import Console
from torch import nn

def pair():
    return nn.Linear(4, 3), (torch.zeros(2, 4),)

class WithExample(nn.Module):
    example = torch.zeros(2, 4)
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4))
    def forward(self, x):
        return self.layers(x)

made = WithExample()
number = 3
lone = nn.Linear(4, 3)
def nothing():
    return None
def text_example():
    return nn.Linear(4, 3), ("text",)
class Holder:
    inner = staticmethod(pair)
def broken():
    raise KeyError("weights")
def leaving():
    raise SystemExit(3)
def needing(size, *, depth, width=3):
    return None
class Sized(nn.Module):
    def __init__(self, size):
        super().__init__()
class Fickle(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x
def fickle():
    return Fickle(), (torch.zeros(2, 4),)
def misfit():
    return nn.Linear(4, 3), (torch.zeros(2, 5),)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory."""
    name = f"factories_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("attribute", ["pair", "WithExample", "made", "Holder.inner"])
def test_a_factory_gives_a_model(factories: str, attribute: str) -> None:
    found = load_model(f"{factories}:{attribute}")
    assert found.name == attribute.rpartition(".")[2]
    assert not found.module.training  # dropout and batch norms as in serving
    assert st.capture(found.module, found.example).kernels


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("nonesuch", "has no nonesuch"),
        ("number", "gives a int"),
        ("nothing", "gives a NoneType"),
        ("lone", "its example is missing"),
        ("text_example", "its example is a tuple"),
        ("broken", "KeyError: 'weights' (factories_"),
        ("leaving", "SystemExit: 3"),
        ("needing", "cannot be called without size, depth"),
        ("Sized", "cannot be called without size"),
        ("fickle", "Fickle cannot be captured"),
        ("misfit", "Linear cannot be captured"),
    ],
)
def test_a_factory_that_gives_none_is_refused(
    capsys: pytest.CaptureFixture[str], factories: str, attribute: str, message: str
) -> None:
    refused(run(capsys, "profile", f"{factories}:{attribute}", *MODELLED), message)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet18", "zoo:resnet18, if you mean that one"),
        ("nonesuch", "names no model"),
        ("./models/mine.py:pair", "models.mine:pair, in the folder that it starts from"),
        ("mine.py:pair", "mine:pair, in the folder that it starts from"),
        ("nonesuch.ONNX", "is not there"),
        (":pair", "names no model"),
        ("nonesuch_module:pair", "cannot be imported"),
        ("zoo:nonesuch", "the zoo has no model 'nonesuch'"),
        ("nonesuch.onnx", "is not there"),
        ("nonesuch.pt2", "is not there"),
    ],
)
def test_a_model_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str], model: str, message: str) -> None:
    refused(run(capsys, "profile", model, *MODELLED), message)


def exported(path: Path, *, most_rows: int | None) -> nn.Module:
    module, example = zoo.build("mlp"), zoo.example("mlp")
    dynamic = None if most_rows is None else ({0: torch.export.Dim("rows", min=1, max=most_rows)},)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=dynamic), path)
    return module


def test_an_exported_program_is_the_model_it_was_exported_from(tmp_path: Path) -> None:
    module = exported(tmp_path / "mlp.pt2", most_rows=64)
    found = load_model(str(tmp_path / "mlp.pt2"))
    assert found.name == "mlp"
    captured = st.capture(found.module, found.example)
    assert captured.signature == st.capture(module, zoo.example("mlp")).signature


def test_an_exported_program_with_fixed_rows_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    exported(tmp_path / "mlp.pt2", most_rows=None)
    refused(run(capsys, "profile", tmp_path / "mlp.pt2", *MODELLED), "has a fixed number of rows")


def test_a_file_that_is_no_exported_program_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mlp.pt2").write_bytes(b"not a zip file")
    refused(run(capsys, "profile", tmp_path / "mlp.pt2", *MODELLED), "is no exported program")


def test_an_onnx_file_is_profiled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    make = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(torch.ones(4, 3).numpy(), "weight")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "product",
        [make("x", onnx.TensorProto.FLOAT, ["rows", 4])],
        [make("y", onnx.TensorProto.FLOAT, ["rows", 3])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "product.onnx")
    report = profiled(capsys, tmp_path / "product.onnx", *MODELLED)
    assert report.model == "product"
    assert sum(layer.flops for layer in report.totals[0].layers) == 2 * 4 * 3


def test_sizes_fix_the_dynamic_dimensions_of_an_onnx_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As exports of language models have them."""
    onnx = pytest.importorskip("onnx")
    helper, path = onnx.helper, tmp_path / "tokens.onnx"
    x = helper.make_tensor_value_info("x", 1, ["rows", "tokens", 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [onnx.ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    refused(run(capsys, "profile", path, *MODELLED), "--size tokens=128")
    report = profiled(capsys, path, *MODELLED, "--size", "tokens=7")
    assert report.totals[0].layers[0].shape == "float32[rows, 7, 4]"
    refused(run(capsys, "profile", path, *MODELLED, "--size", "words=7"), "has no dynamic dimension 'words'")
    refused(run(capsys, "profile", path, *MODELLED, "--size", "tokens"), "--size tokens is no size")
    refused(run(capsys, "profile", "zoo:mlp", *MODELLED, "--size", "tokens=7"), "--size is for ONNX files")


def test_a_file_of_weights_is_no_exported_program(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt2")
    refused(run(capsys, "profile", tmp_path / "weights.pt2", *MODELLED), "torch finds no program in it")


@pytest.mark.parametrize("lines", ["def pair(:\n", "raise KeyError('weights')\n", "raise SystemExit(2)\n"])
def test_a_module_that_cannot_be_imported_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    name = f"broken_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    refused(run(capsys, "profile", f"{name}:pair", *MODELLED), f"{name} cannot be imported")


def test_torchs_noise_is_kept_back_only_where_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    with models.quiet_torch():
        print("a warning", file=sys.stderr)
    assert capsys.readouterr().err == "a warning\n"
    with pytest.raises(ValueError, match="refused"), models.quiet_torch():
        print("a graph of a thousand lines", file=sys.stderr)
        raise ValueError("refused")
    assert capsys.readouterr().err == ""
    assert logging.root.manager.disable == logging.NOTSET
