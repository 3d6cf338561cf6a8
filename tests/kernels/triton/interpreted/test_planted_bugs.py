"""Bugs planted into the device code fail the cases. Without this the cases could pass whatever the kernels did."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spacetime.kernels.triton import grouped_linear, launch, tune
from spacetime.kernels.triton.slot_linear import Shape as Linear
from tests.kernels.triton.interpreted import cases
from tests.kernels.triton.interpreted.harness import HOPPER

SOURCES = Path(launch.__file__).parent / "sources"
COMMON = "spacetime.kernels.triton.sources.common"


def run(known: list[cases.Case], number: int) -> Callable[[], None]:
    return lambda: cases.run(known[number])


LINEAR, GEMV, LAYERNORM = run(cases.LINEAR, 1), run(cases.GEMV, 1), run(cases.LAYERNORM, 0)
IMAGE, FOLDED, GROUPS = (run(cases.CONVOLUTION, number) for number in (0, 1, 3))
DEPTHWISE, MULTIPLIED = (run(cases.DEPTHWISE, number) for number in (0, 1))
EMBEDDING, GROUPED, ENTRIES = cases.run_embedding, cases.run_grouped, cases.run_entries
TABLE = "weights_of(w, entry, w_slot"
COLUMNS = "tl.where(column[None, :], v -"
BORDER = "inside = (top + down >= 0) & (top + down < H) & (left + right >= 0) & (left + right < W)"

# (device code that runs, file that is changed, what is replaced, by what, cases that must notice)
PLANTED: dict[str, tuple[str, str, str, str, Callable[[], None]]] = {
    "the row instead of its slot": (
        "slot_linear",
        "",
        "weights_of(w, entry, w_slot",
        "weights_of(w, r, w_slot",
        LINEAR,
    ),
    "arrivals stay": ("slot_linear", "", "tl.store(arrivals + place, 0)", "pass", LINEAR),
    "a part is left out": ("slot_linear", "", "tl.static_range(SPLIT)", "tl.static_range(SPLIT - 1)", LINEAR),
    "the end of K": ("slot_linear", "", "inside = k + ok < K", "inside = k + ok < K + 8", LINEAR),
    "a tile of columns twice": ("slot_linear", "", "on = tile % tiles_n", "on = 0 * tile", LINEAR),
    "the row of another": ("slot_gemv", "", "r.to(tl.int64) * x_row", "0 * r.to(tl.int64) * x_row", GEMV),
    "rounding inside a sum": ("slot_gemv", "", "(total,", "(total.to(tl.float16).to(tl.float32),", GEMV),
    "idle rows run": ("slot_linear", "", "if entry < 0:", "if entry < -1:", LINEAR),
    "num_active is ignored": ("slot_linear", "common", "r < tl.load(num_active)", "r < 4", LINEAR),
    "one row too many": ("slot_gemv", "common", "r < tl.load(num_active)", "r <= tl.load(num_active)", GEMV),
    "bias by the weight's table": (
        "slot_linear",
        "",
        "finish(acc, bias, bias_entry",
        "finish(acc, bias, w_entry",
        LINEAR,
    ),
    "bias of slot 0": ("slot_linear", "common", "entry * values_slot", "entry * 0", LINEAR),
    "activation before residual": (
        *("slot_linear", "common", "acc += tl.load(res + at", "acc = activate(acc, ACTIVATION) + tl.load(res + at"),
        LINEAR,
    ),
    "columns beyond N": ("slot_linear", "common", "(om < M)[:, None] & (on < N)[None, :]", "(om < M)[:, None]", LINEAR),
    "gelu by tanh": ("slot_gemv", "common", 'ACTIVATION == "gelu":', 'ACTIVATION == "off":', GEMV),
    "padding off by one": ("slot_conv2d", "", "* STRIDE_H - PAD_H", "* STRIDE_H - PAD_H + 1", IMAGE),
    "no left border": ("slot_conv2d", "", BORDER, BORDER.replace("& (left + right >= 0) ", ""), FOLDED),
    "dilation lost": ("slot_conv2d", "", "tap // KERNEL_W * DILATION_H\n", "tap // KERNEL_W\n", GROUPS),
    "group 0 for all": ("slot_conv2d", "", "x_row + group * C", "x_row", GROUPS),
    "shift before scale": ("slot_conv2d", "", "acc *= per_output(scale", "acc += per_output(scale", FOLDED),
    "the second image is the first": ("slot_conv2d", "", "(pixel // OUT_W // OUT_H * H + top)", "top", FOLDED),
    "taps transposed": ("slot_depthwise", "", "kh * KERNEL_W + kw,", "kw * KERNEL_W + kh,", DEPTHWISE),
    "multiplier lost": ("slot_depthwise", "", "(oc // MULTIPLIER)", "(oc % (OUT_C // MULTIPLIER))", MULTIPLIED),
    "padding counts in the mean": (
        "slot_layernorm",
        "",
        "tl.where(column[None, :], v -",
        "tl.where(on > -1, v -",
        LAYERNORM,
    ),
    "normalised before the residual": ("slot_layernorm", "", "if res is not None:", "if False:", LAYERNORM),
    "an index outside is clamped": ("slot_embedding", "", "(index >= 0) &", "(index >= -1) &", EMBEDDING),
    "no mark": ("slot_embedding", "", "mask=wrong > 0", "mask=wrong > 1", EMBEDDING),
    "a slot that does not exist": ("row_entries", "", "& (slot < SLOTS)", "", ENTRIES),
    "tables for one layer only": (
        "row_entries",
        "",
        "layer.to(tl.int64)[:, None] * SLOTS",
        "0 * layer[:, None]",
        ENTRIES,
    ),
    "all units do the same": ("grouped_linear", "", "tl.program_id(0), num_tiles,", "0, num_tiles - 1,", GROUPED),
    "a tile is left out": ("grouped_linear", "", "tl.num_programs(0)):", "tl.num_programs(0) + 1):", GROUPED),
    "idle rows in a group": ("grouped_linear", "", "[None, :] & live", "[None, :] & (live | True)", GROUPED),
    "no bias in a group": ("grouped_linear", "", "has_bias = (on < N) &", "has_bias = (on < 0) &", GROUPED),
    "its neighbour's activation": ("grouped_linear", "", "tl.load(d + 16)", "tl.load(problems + 16)", GROUPED),
}


def load(name: str, text: str, folder: Path) -> ModuleType:
    """A module from its text; the interpreter reads kernels back from their file."""
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planted(kernel: str, file: str, old: str, new: str, folder: Path) -> Any:
    """The device code of a kernel with one change in its own file or in another."""
    texts = {name: (SOURCES / f"{name}.py").read_text(encoding="utf-8") for name in (kernel, "common")}
    changed = file or kernel
    assert old in texts[changed], f"{old!r} is no longer in {changed}.py: plant it anew"
    texts[changed] = texts[changed].replace(old, new, 1)
    common = f"planted_common_{abs(hash(folder))}"
    load(common, texts["common"], folder)
    module = load(f"planted_{kernel}_{abs(hash(folder))}", texts[kernel].replace(COMMON, common), folder)
    return getattr(module, f"{kernel}_kernel")


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel, file, old, new, notice = PLANTED[bug]
    broken = planted(kernel, file, old, new, tmp_path)
    monkeypatch.setattr(launch, "source", lambda _: broken)
    with pytest.raises(AssertionError):
        notice()


def test_an_unchanged_copy_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that a planted bug fails for what it is, and not for how it was loaded."""
    copy = planted("slot_linear", "", "import triton", "import triton", tmp_path)
    monkeypatch.setattr(launch, "source", lambda _: copy)
    LINEAR()


@pytest.mark.parametrize("number", [0, 1])
def test_tuning_refuses_a_config_that_computes_something_else(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel, shape, config, _ = cases.LINEAR[number]
    operands = tune.prepared(kernel, shape, config, "cpu")
    tune.verify(kernel, shape, config, operands, HOPPER)
    broken = planted("slot_linear", "", TABLE, "weights_of(w, r * 0, w_slot", tmp_path)
    monkeypatch.setattr(launch, "source", lambda _: broken)
    with pytest.raises(tune.WrongResult):
        tune.verify(kernel, shape, config, operands, HOPPER)


def test_tuning_checks_every_layer_of_a_group() -> None:
    layers = (Linear(2, 3, 16, 16, "fp32", bias=True), Linear(3, 1, 40, 32, "fp32", activation="relu"))
    shape = grouped_linear.Shape(layers, 2)
    config = grouped_linear.Config(16, 32, 16, True, 4, 2)
    operands = tune.prepared(grouped_linear, shape, config, "cpu")
    tune.verify(grouped_linear, shape, config, operands, HOPPER)
    assert tune.num_bytes(operands) >= 4 * sum(layer.rows * layer.n * layer.k for layer in layers)
