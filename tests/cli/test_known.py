"""A model that is known: the same table without torch and without a capture, and every reason to capture it again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from spacetime.cli import known, models
from spacetime.cli import profile as verb
from spacetime.profiler import conditions, environment
from tests.cli.commands import Ended, run

onnx = pytest.importorskip("onnx")

# Kernels one after another on one size: quick, and all that is looked at here is who has to be asked.
QUICK = ("--budget", "0.001", "--units", "1", "--cache", "warm")
MODELLED = ("--device", "model:h200")

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the user's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    # torch sets it at the first export of a process, and it is among the conditions.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were loaded, to be captured."""
    loaded: list[str] = []
    load = models.load_model

    def counted(source: str, sizes: dict[str, int]) -> models.NamedModel:
        loaded.append(Path(source).name)
        return load(source, sizes)

    monkeypatch.setattr(models, "load_model", counted)
    return loaded


def product(path: Path, columns: int = 3, beside: str = "") -> Path:
    """An ONNX file with one product; its weight in another file, if that has a name."""
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "product",
        [make("x", onnx.TensorProto.FLOAT, ["rows", "width"])],
        [make("y", onnx.TensorProto.FLOAT, ["rows", columns])],
        [onnx.numpy_helper.from_array(torch.ones(4, columns).numpy(), "weight")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    external = {"save_as_external_data": True, "location": beside, "size_threshold": 0} if beside else {}
    onnx.save_model(model, path, **external)
    return path


WIDTH = ("--size", "width=4")


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    ended = run(capsys, *arguments, entry=verb.main)
    assert (ended.code, ended.err) == (0, "")
    return ended.out


WITHOUT_TORCH = """
import builtins, sys
imported = builtins.__import__
def refuse(name, *rest, **named):
    if name.partition(".")[0] == "torch":
        raise ImportError("torch is not to be imported")
    return imported(name, *rest, **named)
builtins.__import__ = refuse
from spacetime.cli.profile import main
main(sys.argv[1:])
"""


def without_torch(*arguments: object) -> Ended:
    """The command in a process of its own, in which importing torch fails."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def exported(path: Path) -> Path:
    dynamic = ({0: torch.export.Dim("rows", min=1, max=64)},)
    torch.export.save(torch.export.export(nn.Linear(4, 3), (torch.ones(2, 4),), dynamic_shapes=dynamic), path)
    return path


# -- known -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["run", "warm"])
def test_the_table_is_the_same_without_torch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, captures: list[str], cache: str
) -> None:
    """Byte for byte, the profile and its page, too."""
    path = product(tmp_path / "product.onnx", beside="product.data")
    files = ("--output", tmp_path / "first.json", "--html", tmp_path / "first.html")
    options = (path, *WIDTH, "--rows", "1,2", "--budget", "0.001", "--cache", cache)
    measured = printed(capsys, *options, *files)
    written = [Path(name).read_bytes() for name in files[1::2]]
    ended = without_torch(*options, *files)
    assert (ended.code, ended.err, ended.out) == (0, "", measured)
    assert [Path(name).read_bytes() for name in files[1::2]] == written
    assert captures == ["product.onnx"]


def test_a_modelled_device_takes_no_torch_either(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = exported(tmp_path / "linear.pt2")
    first = printed(capsys, path, *MODELLED, "--json")
    assert without_torch(path, *MODELLED, "--json") == Ended(0, first, "")
    other = without_torch(path, "--device", "model:mi50", "--rows", "8")
    assert other.code == 0 and "model:mi50" in other.out


@pytest.mark.parametrize("make", [product, exported], ids=["onnx", "pt2"])
def test_a_file_is_known_wherever_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, captures: list[str], make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path / "first").rename(tmp_path / f"first.{'onnx' if make is product else 'pt2'}")
    options = (*QUICK, *(WIDTH if make is product else ()), "--json")
    first = printed(capsys, path, *options)
    moved = path.rename(path.with_stem("second"))
    assert printed(capsys, moved, *options).replace("second", "first") == first
    assert captures == [path.name]


def test_the_zoo_is_known_and_factories_never_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"factory_{abs(hash(str(tmp_path)))}"
    lines = "import torch\ndef make(): return torch.nn.Linear(4, 3), (torch.zeros(2, 4),)\n"
    (tmp_path / f"{name}.py").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        printed(capsys, "zoo:mlp", *MODELLED)
        printed(capsys, f"{name}:make", *MODELLED)
    assert captures == ["zoo:mlp", f"{name}:make", f"{name}:make"]


# -- captured again --------------------------------------------------------------------------------------------------


def test_other_contents_of_the_same_size_and_date_are_another_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, captures: list[str]
) -> None:
    path = product(tmp_path / "product.onnx", columns=3)
    assert ", 3]" in printed(capsys, path, *MODELLED, *WIDTH, "--json")
    state = path.stat()
    other = product(tmp_path / "other.onnx", columns=3).read_bytes().replace(b"MatMul", b"Matmul")
    path.write_bytes(other)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    ended = run(capsys, path, *MODELLED, *WIDTH, entry=verb.main)
    assert ended.code == 1 and "Matmul" in ended.err, "no such operation"


def test_other_data_beside_the_file_are_another_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, captures: list[str]
) -> None:
    options = (product(tmp_path / "product.onnx", beside="product.data"), *MODELLED, *WIDTH)
    data = tmp_path / "product.data"
    first = printed(capsys, *options)
    data.write_bytes(bytes(len(data.read_bytes())))
    assert printed(capsys, *options) == first and len(captures) == 2
    assert printed(capsys, *options) == first and len(captures) == 2, "it is known now"
    data.unlink()
    ended = run(capsys, *options, entry=verb.main)
    assert ended.code == 1 and "external data of 'weight' are missing" in ended.err


@pytest.mark.parametrize("option", [("--size", "width=4"), ("--rows", "2"), ("--units", "2"), ("--refresh",)])
def test_what_changes_the_capture_or_is_not_measured_is_not_known(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, captures: list[str], option: tuple[str, ...]
) -> None:
    if option == ("--units", "2") and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core has one size")
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [make("x", 1, ["rows", "width"])],
        [make("y", 1, ["rows", "width"])],
    )
    path = tmp_path / "relu.onnx"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, path)
    first = printed(capsys, path, *QUICK, "--size", "width=5", "--json")
    again = printed(capsys, path, *QUICK, "--size", "width=5", *option, "--json")
    assert len(captures) == 2 and again != first


def test_a_wrong_size_is_refused_as_if_nothing_were_known(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = product(tmp_path / "product.onnx")
    printed(capsys, path, *MODELLED, *WIDTH)
    ended = run(capsys, path, *MODELLED, *WIDTH, "--size", "depth=2", entry=verb.main)
    assert ended.code == 1 and "has no dynamic dimension 'depth'" in ended.err


def test_under_other_conditions_everything_is_captured_again(
    capsys: pytest.CaptureFixture[str], captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = printed(capsys, "zoo:mlp", *MODELLED)
    monkeypatch.setattr(conditions, "version", lambda name: "99.0")
    assert printed(capsys, "zoo:mlp", *MODELLED) == first and len(captures) == 2
    monkeypatch.setattr(known, "conditions_digest", lambda: None)
    assert printed(capsys, "zoo:mlp", *MODELLED) == first and len(captures) == 3


def test_stale_rows_are_named_although_the_program_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed(capsys, "zoo:mlp", *QUICK)
    monkeypatch.setattr(environment, "cpu_libraries", lambda: {"torch": "9.9"})
    out = printed(capsys, "zoo:mlp", *QUICK)
    assert "3 kernels were known from other conditions, and measured again" in out
    assert f"  torch: 9.9 here, {torch.__version__} there" in out


def test_a_damaged_program_is_said_and_captured_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, captures: list[str]
) -> None:
    first = printed(capsys, "zoo:mlp", *MODELLED)
    (path,) = (tmp_path / "caches").rglob("programs/*.json")
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    ended = run(capsys, "zoo:mlp", *MODELLED, entry=verb.main)
    assert (ended.code, ended.out, len(captures)) == (0, first, 2)
    assert ended.err.startswith(f"note: the program kept in {path} cannot be used\n")
    assert path.read_bytes() == content, "it was written again"


def test_what_torch_computes_with_is_not_kept_when_somebody_changed_it(
    capsys: pytest.CaptureFixture[str], captures: list[str]
) -> None:
    """Another process would not know of it."""
    torch.set_float32_matmul_precision("high")
    try:
        printed(capsys, "zoo:mlp", *QUICK)
    finally:
        torch.set_float32_matmul_precision("highest")
    printed(capsys, "zoo:mlp", *QUICK)
    assert len(captures) == 2


def test_a_file_that_is_written_meanwhile_is_not_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, load = product(tmp_path / "product.onnx"), models.load_model

    def replaced(source: str, sizes: dict[str, int]) -> models.NamedModel:
        found = load(source, sizes)
        product(path, columns=5)
        return found

    monkeypatch.setattr(models, "load_model", replaced)
    assert ", 3]" in printed(capsys, path, *MODELLED, *WIDTH, "--json")
    monkeypatch.setattr(models, "load_model", load)
    assert ", 5]" in printed(capsys, path, *MODELLED, *WIDTH, "--json")
    product(path, columns=3)
    assert list((tmp_path / "caches").rglob("programs/*.json")), "the second one is kept"
    assert ", 3]" in printed(capsys, path, *MODELLED, *WIDTH, "--json")
    assert len(captures) == 3


def test_a_file_that_does_not_fit_in_memory_is_not_read_for_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = product(tmp_path / "product.onnx")
    assert known.origin_of(str(path), {}) is not None
    monkeypatch.setattr(known, "available_bytes", lambda: 10)
    assert known.origin_of(str(path), {}) is None
