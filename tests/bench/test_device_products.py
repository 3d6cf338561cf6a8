"""The stage that times the ways of a product, as far as it needs no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.device import products as stage
from spacetime.kernels import batched_gemm
from spacetime.kernels.triton.launch import Slotted
from spacetime.kernels.triton.products import BADDBMM, BATCHED, GROUPED, SLOT, Shape
from spacetime.kernels.triton.slot_linear import Operands
from spacetime.kernels.triton.slot_linear import Shape as Linear
from spacetime.kernels.triton.slot_linear import sample as sample_linear
from spacetime.kernels.triton.table import Measured
from spacetime.kernels.triton.target import Target
from spacetime.kernels.triton.tune import TOLERANCE
from spacetime.kernels.triton.tune_products import usual_shapes
from spacetime.values import encode

HOPPER = Target("H200", "cuda", "90", 132, 232448)
LINEAR = Linear(6, 3, 24, 40, "bf16", bias=True, residual=True, activation="gelu")


def operands_of() -> Operands:
    operands = sample_linear(LINEAR, "cpu", slots=stage.SLOTS)
    assert operands.bias is not None
    return replace(operands, bias=Slotted(operands.bias.stack, torch.zeros(6, dtype=torch.int32)))


@pytest.mark.parametrize("mix", stage.MIXES)
def test_what_one_graph_does_is_right_for_every_mix_and_a_wrong_owner_shows(mix: tuple[int, ...]) -> None:
    operands = operands_of()
    stage.write(operands, mix)
    assert operands.bias is not None
    operands.bias.entries.copy_(operands.weight.entries.clamp_min(0))
    live = any(entry >= 0 for entry in mix)
    assert (stage.deviation(LINEAR, operands, mix) > 1e30) == live, "nothing has been written"
    stage.action(GROUPED, operands, "gelu")()
    assert stage.deviation(LINEAR, operands, mix) <= TOLERANCE["bf16"]
    operands.weight.entries.copy_((operands.weight.entries + 1) % stage.SLOTS)
    assert (stage.deviation(LINEAR, operands, mix) > TOLERANCE["bf16"]) == live


def test_a_way_that_cannot_be_used_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_gemm, "missing", lambda: "it was not built")
    assert stage._any_mix(BATCHED, LINEAR, HOPPER) == {"left_out": "it was not built"}
    assert "on the host" in stage._any_mix(GROUPED, LINEAR, replace(HOPPER, arch="80"))["left_out"]


def test_each_case_has_a_name_of_its_own_and_tells_what_would_be_chosen() -> None:
    names = [*map(stage.name_of, usual_shapes()), *(name for name, _ in stage.any_mix_cases(HOPPER))]
    assert len(set(names)) == len(names)
    shape = Shape(replace(LINEAR, rows=16), 16)
    times = {SLOT: 9.0, BADDBMM: 2.0, GROUPED: 4.0}
    entries = [Measured(way, "H200", encode(shape), {}, time, "made up", {}) for way, time in times.items()]
    told = stage.chosen(shape, HOPPER, {each.key: each for each in entries})
    assert told["mix"].startswith("baddbmm (measured") and told["any_mix"].startswith("grouped_mm (measured")
    assert stage.chosen(shape, HOPPER, {})["any_mix"] == "slot product (not measured)"
