"""Descriptors, configs, the table and tuning: all that needs neither a GPU nor triton."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spacetime.errors import InputError, OptionError, SpacetimeError
from spacetime.kernels.triton import (
    convolution,
    grouped_linear,
    missing,
    slot_embedding,
    slot_gemv,
    slot_layernorm,
    slot_linear,
    tune,
)
from spacetime.kernels.triton.choose import (
    KERNELS,
    config_for,
    convolution_for,
    convolution_plan,
    linear_for,
    linear_plan,
)
from spacetime.kernels.triton.launch import Slotted
from spacetime.kernels.triton.slot_linear import Operands, Shape
from spacetime.kernels.triton.table import SHIPPED, Measured, load, save
from spacetime.kernels.triton.target import Target
from spacetime.values import decode, encode
from tests.kernels.layers import layer

HOPPER = Target("NVIDIA H200", "cuda", "90", 132, 232448)
AMD = Target("MI300X", "hip", "gfx942", 304, 65536)
LINEAR = Shape(4, 2, 32, 64, "bf16", bias=True)
CONVOLUTION = convolution.Shape(4, 1, (8, 8), 16, 24, (3, 3), "fp32", padding=(1, 1), bias=True)
SHAPES: dict[str, Any] = {
    "slot_linear": LINEAR,
    "slot_gemv": LINEAR,
    "slot_conv2d": CONVOLUTION,
    "slot_depthwise": replace(CONVOLUTION, groups=16, out_channels=16),
    "slot_embedding": slot_embedding.Shape(4, 3, 50, 40, "bf16"),
    "slot_layernorm": slot_layernorm.Shape(4, 3, 40, "bf16", residual=True),
    "grouped_linear": grouped_linear.Shape((LINEAR, replace(LINEAR, n=16, k=32)), 7),
}


def test_importing_the_package_does_not_import_triton() -> None:
    code = "import sys, spacetime.kernels.triton.choose, spacetime.kernels.triton.tune; print('triton' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_missing_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacetime.kernels.triton.find_spec", lambda _: None)
    assert missing() == "triton is not installed"
    monkeypatch.setattr("spacetime.kernels.triton.find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert missing() == "there is no GPU that PyTorch can use"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert missing() is None


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", [HOPPER, AMD], ids=["cuda", "hip"])
def test_a_descriptor_follows_from_its_operands_and_both_survive_json(name: str, target: Target) -> None:
    kernel, shape = KERNELS[name], SHAPES[name]
    operands = kernel.sample(shape, "cpu", slots=3)
    described = {
        "slot_linear": lambda: slot_linear.describe(operands),
        "slot_gemv": lambda: slot_gemv.describe(operands),
        "slot_conv2d": lambda: convolution.describe(operands, padding=(1, 1)),
        "slot_depthwise": lambda: convolution.describe(operands, padding=(1, 1), groups=16),
        "slot_embedding": lambda: slot_embedding.describe(operands),
        "slot_layernorm": lambda: slot_layernorm.describe(operands),
        "grouped_linear": lambda: grouped_linear.describe(operands, ["none", "none"], 7),
    }[name]()
    assert described == shape == decode(kernel.Shape, encode(shape))
    config = config_for(kernel, shape, target, {})
    assert config == kernel.default(shape, target) == decode(kernel.Config, encode(config))
    assert "Config(" in repr(config) and "Shape(" in repr(shape)


linears = st.builds(
    Shape,
    rows=st.integers(1, 200),
    m=st.integers(1, 300),
    n=st.integers(1, 5000),
    k=st.integers(1, 5000),
    dtype=st.sampled_from(["fp32", "bf16", "fp16"]),
)


@given(linears, st.sampled_from([HOPPER, AMD]))
def test_a_default_config_is_one_that_triton_takes(shape: Shape, target: Target) -> None:
    config = slot_linear.default(shape, target)
    blocks = (config.block_m, config.block_n, config.block_k)
    assert all(block >= 16 and block & (block - 1) == 0 for block in blocks)
    stage_bytes = (config.block_m + config.block_n) * config.block_k * (4 if shape.dtype == "fp32" else 2)
    assert config.num_stages == 1 or config.num_stages * stage_bytes <= target.shared_bytes
    deepest = -(-shape.k // config.block_k)
    assert config.split == 1 or 2 * config.split <= deepest, "a part of K has two blocks, or there is one part"
    if shape.m <= slot_gemv.MOST_ROWS:
        narrow = slot_gemv.default(shape, target)
        assert narrow.block_n >= 1 and narrow.block_k >= 16


def test_few_programs_split_k_and_many_do_not() -> None:
    few, many = Shape(1, 1, 512, 4096, "bf16"), Shape(200, 1, 4096, 4096, "bf16")
    assert slot_linear.default(few, HOPPER).split > 1
    assert slot_linear.default(many, HOPPER).split == 1


def test_exact_products_of_few_rows_go_to_the_gemv_and_depthwise_ones_to_their_kernel() -> None:
    assert linear_for(Shape(4, 8, 64, 64, "fp32"), HOPPER, {}) is slot_gemv
    assert linear_for(Shape(4, 9, 64, 64, "fp32"), HOPPER, {}) is slot_linear
    assert linear_for(Shape(4, 8, 64, 64, "fp32", "tf32"), HOPPER, {}) is slot_linear
    assert linear_for(Shape(4, 8, 64, 64, "fp32", "tf32"), AMD, {}) is slot_gemv, "there it is exact anyway"
    assert convolution_for(SHAPES["slot_depthwise"]) is KERNELS["slot_depthwise"]
    assert convolution_for(CONVOLUTION) is KERNELS["slot_conv2d"]


def measured(kernel: Any, shape: Any, config: Any, time_us: float) -> Measured:
    return Measured(kernel.NAME, HOPPER.name, encode(shape), encode(config), time_us, "made up", {})


def test_a_measured_config_counts_for_its_shape_and_device_only(tmp_path: Path) -> None:
    best = replace(slot_linear.default(LINEAR, HOPPER), num_warps=8, split=2)
    path = tmp_path / "configs.json"
    save(path, [measured(slot_linear, LINEAR, best, 3.0)])
    table = load(path)
    assert config_for(slot_linear, LINEAR, HOPPER, table) == best
    assert config_for(slot_linear, LINEAR, AMD, table) == slot_linear.default(LINEAR, AMD)
    other = replace(LINEAR, rows=5)
    assert config_for(slot_linear, other, HOPPER, table) == slot_linear.default(other, HOPPER)


def test_the_faster_of_two_measured_kernels_serves() -> None:
    fast = measured(slot_gemv, LINEAR, slot_gemv.default(LINEAR, HOPPER), 2.0)
    slow = measured(slot_linear, LINEAR, slot_linear.default(LINEAR, HOPPER), 3.0)
    assert linear_for(LINEAR, HOPPER, {each.key: each for each in (fast, slow)}) is slot_gemv
    assert linear_for(LINEAR, HOPPER, {slow.key: slow}) is slot_linear


def test_a_plan_takes_the_precision_that_is_measured_to_be_the_fastest() -> None:
    exact = Shape(120, 256, 128, 1152, "fp32")
    rounded = replace(exact, precision="tf32x3")
    config = replace(slot_linear.default(rounded, HOPPER), num_warps=8)
    slow, fast = (
        measured(slot_linear, exact, slot_linear.default(exact, HOPPER), 9.0),
        measured(slot_linear, rounded, config, 5.0),
    )
    assert linear_plan(exact, HOPPER, {slow.key: slow}).shape == exact
    assert linear_plan(exact, HOPPER, {fast.key: fast}).shape == exact, "nothing to compare it with"
    plan = linear_plan(exact, HOPPER, {each.key: each for each in (slow, fast)})
    assert (plan.shape, plan.config) == (rounded, config)


def test_a_plan_does_not_change_with_every_number_of_rows() -> None:
    """Each config is a compilation."""
    shapes = [replace(LINEAR, rows=rows, k=4096) for rows in range(1, 129)]
    assert len({linear_plan(shape, HOPPER, {}).config for shape in shapes}) <= 8
    assert all(linear_plan(shape, HOPPER, {}).shape == shape for shape in shapes)
    own = measured(slot_gemv, shapes[4], replace(slot_gemv.default(shapes[4], HOPPER), num_warps=1), 1.0)
    of_bucket = measured(slot_gemv, shapes[7], replace(slot_gemv.default(shapes[7], HOPPER), num_warps=2), 1.0)
    both = {each.key: each for each in (own, of_bucket)}
    assert config_for(slot_gemv, shapes[4], HOPPER, both).num_warps == 1
    assert convolution_plan(replace(CONVOLUTION, rows=5), HOPPER, {}).shape.rows == 5


def test_a_plan_launches_with_a_workspace_where_its_config_needs_one() -> None:
    shape = Shape(2, 1, 64, 4096, "bf16")
    split = measured(slot_linear, shape, replace(slot_linear.default(shape, HOPPER), split=4), 1.0)
    other = measured(slot_gemv, shape, slot_gemv.default(shape, HOPPER), 2.0)
    plan = linear_plan(shape, HOPPER, {each.key: each for each in (split, other)})
    asked: list[tuple[int, int]] = []

    def workspace(words: int, arrivals: int) -> torch.Tensor:
        asked.append((words, arrivals))
        return torch.zeros(words, dtype=torch.int32)

    launch = plan.launch(slot_linear.sample(shape, "cpu", slots=2), HOPPER, workspace)
    assert plan.config.split == 4 and asked == [(slot_linear.workspace_words(shape, plan.config), slot_linear.ARRIVALS)]
    assert launch.arguments["arrivals"].numel() == slot_linear.ARRIVALS
    assert launch.arguments["partials"].data_ptr() % 16 == 0


def test_the_shipped_table_can_be_read_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    assert SHIPPED.exists()
    load(SHIPPED)
    assert load(tmp_path / "absent.json") == {}
    for text in ("{", "[]", '{"schema": 99, "entries": []}', '{"schema": 1, "entries": [{}]}'):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(OptionError):
            load(tmp_path / "broken.json")


def test_tuning_keeps_the_fastest_reports_failures_and_adds_to_the_table(tmp_path: Path) -> None:
    path, said = tmp_path / "configs.json", []
    default = slot_gemv.default(LINEAR, HOPPER)
    save(path, [measured(slot_linear, LINEAR, slot_linear.default(LINEAR, HOPPER), 9.0)])
    winner = next(config for config in slot_gemv.candidates(LINEAR, HOPPER) if config.num_warps == 2)

    def timer(kernel: Any, shape: Any, config: Any) -> float:
        if config.num_warps == 8:
            raise RuntimeError("out of resources")
        return 1.0 if config == winner else 5.0

    tune.tune([("slot_gemv", LINEAR)], HOPPER, timer, path, report=said.append)
    table = load(path)
    assert len(table) == 2 and config_for(slot_gemv, LINEAR, HOPPER, table) == winner
    assert any("RuntimeError: out of resources" in line for line in said)
    tried = tune.trials(slot_gemv, LINEAR, HOPPER, timer, limit=0)
    assert [trial.config for trial in tried] == [default], "the default is always among them"


def test_tuning_that_is_cut_short_keeps_what_it_has(tmp_path: Path) -> None:
    said: list[str] = []
    left = iter([True, True, True, False, False])
    shapes = [("slot_gemv", LINEAR), ("slot_gemv", replace(LINEAR, rows=9))]
    path = tmp_path / "configs.json"
    tune.tune(shapes, HOPPER, lambda *_: 1.0, path, report=said.append, goes_on=lambda: next(left))
    assert len(load(path)) == 1 and "3 measured" in said[0] and "no time left" in said[-1]


def test_a_limit_takes_candidates_from_first_to_last() -> None:
    every = tune.configs_of(slot_gemv, LINEAR, HOPPER)
    some = tune.configs_of(slot_gemv, LINEAR, HOPPER, 5)
    assert some[0] == every[0] == slot_gemv.default(LINEAR, HOPPER) and 3 <= len(some) <= 6 < len(every)
    assert set(some) <= set(every) and every.index(some[-1]) > len(every) // 2


def test_nothing_is_written_when_every_candidate_fails(tmp_path: Path) -> None:
    def timer(kernel: Any, shape: Any, config: Any) -> float:
        raise RuntimeError("no device")

    tune.tune([("slot_gemv", LINEAR)], HOPPER, timer, tmp_path / "configs.json", report=lambda _: None)
    assert not (tmp_path / "configs.json").exists()


def test_the_shapes_that_are_tuned_have_candidates() -> None:
    for name, shape in tune.usual_shapes():
        assert list(KERNELS[name].candidates(shape, HOPPER)), f"{name} {shape}"


def test_tuning_needs_a_gpu_and_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tune, "missing", lambda: "there is none")
    assert tune.main([]) == 1
    assert "there is none" in capsys.readouterr().err


def test_a_slab_of_the_capture_is_taken_as_it_is() -> None:
    """Layers of a cohort: a linear weight, and a convolution's in channels-last memory."""
    weight = layer((0, 1, 0, 2), 32, 64)
    entries = torch.tensor([weight.entries[slot] for slot in (3, 0)], dtype=torch.int32)
    active, out = torch.tensor([2], dtype=torch.int32), torch.empty(2, 5, 32)
    shape = slot_linear.describe(Operands(torch.randn(2, 5, 64), Slotted(weight.stack, entries), active, out))
    assert shape == Shape(2, 5, 32, 64, "fp32")
    kernel = layer((0, 1), 24, 16, 3, 3, channels_last=True)
    stack = Slotted(kernel.stack.permute(0, 1, 3, 4, 2), entries)
    out = torch.empty(2, 1, 6, 6, 24)
    operands = convolution.Operands(torch.randn(2, 1, 8, 8, 16), stack, active, out)
    assert convolution.describe(operands).out_channels == 24


def change(**changes: Any) -> Callable[[Operands], Operands]:
    return lambda operands: replace(operands, **changes)


REFUSED: dict[str, tuple[Callable[[Operands], Operands], str]] = {
    "a slab in another order": (
        lambda ops: replace(ops, weight=Slotted(torch.empty(3, 64, 32).to(torch.bfloat16).mT, ops.weight.entries)),
        "not contiguous",
    ),
    "weights of another type": (
        lambda ops: replace(ops, weight=Slotted(ops.weight.stack.float(), ops.weight.entries)),
        "weights are torch.float32",
    ),
    "weights of another depth": (
        lambda ops: replace(ops, weight=Slotted(ops.weight.stack[..., :48].contiguous(), ops.weight.entries)),
        "x has depth 64, the slab 48",
    ),
    "a table of int64": (
        lambda ops: replace(ops, weight=Slotted(ops.weight.stack, ops.weight.entries.long())),
        "a table is torch.int64",
    ),
    "a table that is too short": (
        lambda ops: replace(ops, weight=Slotted(ops.weight.stack, ops.weight.entries[:3])),
        "for 4 rows",
    ),
    "num_active of int64": (change(num_active=torch.tensor([4])), "num_active is torch.int64"),
    "an output of another shape": (change(out=torch.empty(4, 2, 31, dtype=torch.bfloat16)), "out is (4, 2, 31)"),
    "a residual of another type": (change(residual=torch.empty(4, 2, 32)), "residual is torch.float32"),
    "a bias of another width": (
        lambda ops: replace(ops, bias=Slotted(torch.empty(3, 31), ops.weight.entries)),
        "for 32 columns",
    ),
    "x of integers": (change(x=torch.zeros(4, 2, 64, dtype=torch.int32)), "kernels take fp32, bf16, fp16"),
    "x of two dimensions": (change(x=torch.zeros(4, 64, dtype=torch.bfloat16)), "x is [rows, M, K]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operands_that_break_the_contract_are_refused(name: str) -> None:
    break_it, facts = REFUSED[name]
    with pytest.raises(InputError) as refused:
        slot_linear.describe(break_it(slot_linear.sample(LINEAR, "cpu", slots=3)))
    assert facts in str(refused.value)


def test_unknown_options_are_refused() -> None:
    operands = slot_linear.sample(LINEAR, "cpu", slots=3)
    for options in ({"activation": "mish"}, {"precision": "fp8"}, {"precision": "tf32"}):
        with pytest.raises(SpacetimeError):
            slot_linear.describe(operands, **options)


def test_what_a_kernel_cannot_do_it_says_before_it_is_launched() -> None:
    tall = replace(LINEAR, m=9)
    with pytest.raises(InputError, match="use slot_linear"):
        slot_gemv.launch(tall, slot_gemv.Config(4, 64, 4, 2), slot_gemv.sample(tall, "cpu", slots=2), HOPPER)
    split = replace(slot_linear.default(LINEAR, HOPPER), split=2)
    with pytest.raises(InputError, match="workspace_words"):
        slot_linear.launch(LINEAR, split, slot_linear.sample(LINEAR, "cpu", slots=2), HOPPER)
    with pytest.raises(InputError, match="use slot_conv2d"):
        operands = convolution.sample(CONVOLUTION, "cpu", slots=2)
        config = KERNELS["slot_depthwise"].default(CONVOLUTION, HOPPER)
        KERNELS["slot_depthwise"].launch(CONVOLUTION, config, operands, HOPPER)
    odd = replace(LINEAR, k=60)
    with pytest.raises(InputError, match="multiples of 16 bytes"):
        sampled = grouped_linear.sample(grouped_linear.Shape((odd,), 4), "cpu", slots=2)
        grouped_linear.describe(sampled, ["none"], 4)
