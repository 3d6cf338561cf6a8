"""Ways of a product beside the slot kernels: which is chosen, what they compute, how they are tuned. Without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spacetime.kernels import batched_gemm
from spacetime.kernels.triton import products, slot_linear, tune, tune_products, ways
from spacetime.kernels.triton.launch import ACTIVATIONS, Slotted
from spacetime.kernels.triton.products import (
    ANY_MIX,
    BADDBMM,
    BATCHED,
    GROUPED,
    LEAST_GAIN,
    SLOT,
    UNMEASURED,
    WAYS,
    Shape,
    decide,
    decide_any,
    refusal,
)
from spacetime.kernels.triton.slot_linear import Operands
from spacetime.kernels.triton.table import Measured, Table, load, save
from spacetime.kernels.triton.target import Target
from spacetime.kernels.triton.tune_products import Config, Way
from spacetime.kernels.triton.tune_products import tune_products as tune_shapes
from spacetime.values import decode, encode

HOPPER = Target("NVIDIA H200", "cuda", "90", 132, 232448)
LINEAR = slot_linear.Shape(16, 2, 24, 32, "bf16", bias=True)


def table_of(times: dict[int, dict[str, float]], linear: slot_linear.Shape = LINEAR) -> Table:
    """`times`: by slots, by way."""
    entries = [
        Measured(way, HOPPER.name, encode(Shape(linear, slots)), {"runs": way}, time_us, "made up", {})
        for slots, of_way in times.items()
        for way, time_us in of_way.items()
    ]
    return {each.key: each for each in entries}


# -- the choice ---------------------------------------------------------------------------------------------------


def test_what_is_not_measured_is_a_slot_kernel() -> None:
    assert decide(Shape(LINEAR, 16), WAYS, HOPPER, {}) == UNMEASURED == decide_any(LINEAR, WAYS, HOPPER, {})
    no_slot = table_of({16: {BADDBMM: 1.0, GROUPED: 1.0}})
    assert decide(Shape(LINEAR, 16), WAYS, HOPPER, no_slot) == UNMEASURED, "nothing to compare it with"
    assert decide_any(LINEAR, WAYS, HOPPER, no_slot) == UNMEASURED
    elsewhere = replace(HOPPER, name="another")
    assert decide(Shape(LINEAR, 16), WAYS, elsewhere, table_of({16: {SLOT: 2.0, BADDBMM: 1.0}})) == UNMEASURED
    assert not products.is_in({}) and products.is_in(no_slot)


def test_the_fastest_that_can_be_used_serves_a_mix_that_the_host_knows_and_the_times_are_the_reason() -> None:
    table = table_of({16: {SLOT: 9.0, BADDBMM: 4.0, GROUPED: 5.0}})
    found = decide(Shape(LINEAR, 16), WAYS, HOPPER, table)
    assert found.way == BADDBMM
    assert found.reason == "measured: baddbmm 4.0 us, grouped_mm 5.0 us, slot product 9.0 us"
    assert decide(Shape(LINEAR, 16), ANY_MIX, HOPPER, table).way == GROUPED
    assert decide(Shape(LINEAR, 16), (SLOT,), HOPPER, table).way == SLOT


def test_a_gain_that_another_measurement_may_not_find_is_none() -> None:
    def chosen(time_us: float) -> tuple[str, str]:
        table = table_of({16: {SLOT: 10.0, GROUPED: time_us}})
        return decide(Shape(LINEAR, 16), WAYS, HOPPER, table).way, decide_any(LINEAR, WAYS, HOPPER, table).way

    assert chosen(10.0 * (1 - LEAST_GAIN) + 0.01) == (SLOT, SLOT)
    assert chosen(10.0 * (1 - LEAST_GAIN) - 0.01) == (GROUPED, GROUPED)


def test_a_mix_that_is_not_measured_is_like_the_next_powers_of_two() -> None:
    table = table_of({8: {SLOT: 9.0, BADDBMM: 4.0}})  # 8 slots of 2 rows
    assert decide(Shape(replace(LINEAR, rows=14), 7), WAYS, HOPPER, table).way == BADDBMM
    assert decide(Shape(replace(LINEAR, rows=18), 9), WAYS, HOPPER, table) == UNMEASURED
    assert decide(Shape(replace(LINEAR, rows=21), 7), WAYS, HOPPER, table) == UNMEASURED, "4 rows each"
    assert decide(Shape(replace(LINEAR, rows=14, activation="relu"), 7), WAYS, HOPPER, table) == UNMEASURED


def test_what_serves_any_mix_loses_in_none_and_reads_no_owners_on_the_host() -> None:
    wins = {4: {SLOT: 9.0, BADDBMM: 1.0, GROUPED: 8.0}, 16: {SLOT: 20.0, BADDBMM: 1.0, GROUPED: 12.0}}
    found = decide_any(LINEAR, WAYS, HOPPER, table_of(wins))
    assert found.way == GROUPED and "mean of 2 mixes" in found.reason
    assert decide_any(replace(LINEAR, rows=9), WAYS, HOPPER, table_of(wins)).way == GROUPED, "a bucket of 16"
    assert decide_any(replace(LINEAR, rows=17), WAYS, HOPPER, table_of(wins)) == UNMEASURED
    loses = {**wins, 4: {SLOT: 9.0, GROUPED: 9.5}}
    assert decide_any(LINEAR, WAYS, HOPPER, table_of(loses)).way == SLOT
    unknown = {**wins, 4: {SLOT: 9.0}}
    assert decide_any(LINEAR, WAYS, HOPPER, table_of(unknown)).way == SLOT, "it may lose where it is not measured"
    assert decide_any(LINEAR, (SLOT, BADDBMM), HOPPER, table_of(wins)).way == SLOT


times = st.dictionaries(st.sampled_from(WAYS), st.floats(1.0, 50.0), max_size=4)


@given(st.dictionaries(st.sampled_from([2, 4, 8, 16]), times), st.sets(st.sampled_from(WAYS)), st.sampled_from([2, 8]))
def test_a_choice_can_be_used_and_is_never_slower_than_the_slot_kernel(
    measured: dict[int, dict[str, float]], usable: set[str], slots: int
) -> None:
    table = table_of(measured)
    one = decide(Shape(LINEAR, slots), usable, HOPPER, table)
    any_mix = decide_any(LINEAR, usable, HOPPER, table)
    assert {one.way, any_mix.way} <= usable | {SLOT} and any_mix.way != BADDBMM
    if one.way != SLOT:
        assert measured[slots][one.way] < measured[slots][SLOT]
    if any_mix.way != SLOT:
        assert all(of_way[any_mix.way] <= of_way[SLOT] for of_way in measured.values() if SLOT in of_way)
    assert (one.reason == "") == (SLOT not in usable or SLOT not in measured.get(slots, {}))


UNFIT: dict[str, tuple[slot_linear.Shape, Target, int, str]] = {
    "fp32": (replace(LINEAR, dtype="fp32"), HOPPER, 4, "fast for bf16"),
    "odd columns": (replace(LINEAR, n=20), HOPPER, 4, "16 bytes"),
    "odd depth": (replace(LINEAR, k=36), HOPPER, 4, "16 bytes"),
    "a large slab": (LINEAR, HOPPER, 1024, "1024 entries"),
    "an older GPU": (LINEAR, replace(HOPPER, arch="80"), 4, "on the host"),
    "a consumer's GPU": (LINEAR, replace(HOPPER, arch="120"), 4, "on the host"),
    "AMD": (LINEAR, Target("MI300X", "hip", "gfx942", 304, 65536), 4, "on the host"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_grouped_products_are_refused_where_torch_has_no_kernel_for_them(name: str) -> None:
    shape, target, num_entries, reason = UNFIT[name]
    assert reason in str(refusal(GROUPED, shape, target, num_entries))
    assert refusal(GROUPED, LINEAR, HOPPER, 1023) is None
    assert refusal(BADDBMM, shape, target, num_entries) is None


# -- what they compute --------------------------------------------------------------------------------------------


mixes = st.lists(st.integers(-1, 4), min_size=1, max_size=9)


@given(mixes, st.data())
def test_rows_are_brought_into_the_order_of_their_entries_and_back(entries: list[int], data: st.DataObject) -> None:
    active = data.draw(st.integers(0, len(entries)))
    layers = torch.tensor([entries, [4 - entry if entry >= 0 else -1 for entry in entries]], dtype=torch.int32)
    rows = ways.ByEntry.of(layers, torch.tensor([active], dtype=torch.int32))
    for layer, of_layer in enumerate(layers.tolist()):
        live = sorted(entry for entry in of_layer[:active] if entry >= 0)
        order = rows.order[layer].tolist()
        assert sorted(order) == list(range(len(entries)))
        assert [of_layer[row] for row in order[: len(live)]] == live, "idle rows come last, whatever their words are"
        assert [order[place] for place in rows.place[layer].tolist()] == list(range(len(entries)))
        ends = rows.ends(layer, 5, 3)
        assert ends.dtype == torch.int32
        assert ends.tolist() == [3 * sum(entry <= each for entry in live) for each in range(5)]


def cublas(
    x: Tensor, slab: Tensor, slot: Tensor, num_active: Tensor, out: Tensor, pointers: Tensor, scratch: Tensor
) -> None:
    """What the compiled library does."""
    for row, entry in enumerate(slot[: int(num_active)].tolist()):
        if entry >= 0:
            out[row] = x[row] @ slab[entry].T


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_gemm, "missing", lambda: None)
    monkeypatch.setattr(batched_gemm, "linear", lambda *operands: cublas(*operands, operands[0], operands[0]))


def run(way: str, operands: Operands, shape: Shape) -> None:
    Way(way, {}).launch(shape, Config(""), operands, HOPPER).run()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("way", [BADDBMM, GROUPED, BATCHED])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_every_way_computes_the_layer(way: str, activation: str, bias: bool, residual: bool) -> None:
    linear = slot_linear.Shape(6, 2, 24, 32, "fp32", bias=bias, residual=residual, activation=activation)
    for slots in (1, 3, 6):
        shape = Shape(linear, slots)
        operands = Way(way, {}).sample(shape, "cpu", slots=6)
        assert slot_linear.describe(operands, activation) == linear and operands.weight.stack.shape[0] == slots
        wanted = slot_linear.reference(linear, operands)
        run(way, operands, shape)
        assert (operands.out.double() - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_part_of_a_slab_is_multiplied_where_it_lies() -> None:
    shape = Shape(replace(LINEAR, rows=6, dtype="fp32"), 3)
    operands = Way(BADDBMM, {}).sample(shape, "cpu", slots=6)
    stack, bias = torch.full((6, 24, 32), torch.nan), torch.full((6, 24), torch.nan)
    assert operands.bias is not None
    stack[2:5], bias[1:4] = operands.weight.stack, operands.bias.stack
    entries = operands.weight.entries
    moved = replace(operands, weight=Slotted(stack, entries + 2), bias=Slotted(bias, entries + 1))
    wanted = slot_linear.reference(shape.linear, moved)
    ways.baddbmm(moved, "none", 2, 3, 1)
    assert (moved.out.double() - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("way", [GROUPED, BATCHED])
@given(entries=mixes, others=st.integers(0, 4), data=st.data())
def test_any_mix_is_served_and_poison_behind_idle_rows_stays_there(
    way: str, entries: list[int], others: int, data: st.DataObject
) -> None:
    active = data.draw(st.integers(0, len(entries)))
    linear = slot_linear.Shape(len(entries), 2, 8, 16, "fp32", bias=True, activation="relu")
    operands = slot_linear.sample(linear, "cpu", slots=5)
    assert operands.bias is not None
    table = torch.tensor(entries, dtype=torch.int32)
    of_bias = torch.where(table < 0, -1, (table + others) % 5).int()
    idle = [row for row, entry in enumerate(entries) if row >= active or entry < 0]
    operands.x[idle] = torch.nan
    operands.out.fill_(7.0)
    operands = replace(
        operands,
        num_active=torch.tensor([active], dtype=torch.int32),
        weight=Slotted(operands.weight.stack, table),
        bias=Slotted(operands.bias.stack, of_bias),
    )
    wanted = slot_linear.reference(linear, operands)
    if way == GROUPED:
        rows = ways.ByEntry.of(table.unsqueeze(0), operands.num_active)
        ways.grouped_mm(operands, "relu", rows, 0, of_bias.clamp_min(0))
    else:
        ways.cublas_batched(operands, "relu", of_bias.clamp_min(0))
    live = [row for row in range(len(entries)) if row not in idle]
    torch.testing.assert_close(operands.out[live].double(), wanted[live], rtol=1e-5, atol=1e-5)


# -- tuning -------------------------------------------------------------------------------------------------------


def timer(times: dict[str, float]) -> Callable[[Any, Any, Any], float]:
    def timed(way: Way, shape: Shape, config: Config) -> float:
        if way.name not in times:
            raise RuntimeError("the device refuses it\nwith details")
        return times[way.name]

    return timed


@pytest.mark.usefixtures("library")
def test_tuning_keeps_every_way_that_works_and_says_why_others_do_not(tmp_path: Path) -> None:
    path, said = tmp_path / "configs.json", list[str]()
    other = Measured("slot_gemv", HOPPER.name, encode(LINEAR), {}, 3.0, "made up", {})
    save(path, [other])
    shape = Shape(LINEAR, 4)
    tune_shapes([shape], HOPPER, timer({SLOT: 4.0, GROUPED: 2.0, BADDBMM: 3.0}), path, said.append)
    table = load(path)
    assert {kernel for kernel, _, _ in table} == {"slot_gemv", SLOT, GROUPED, BADDBMM}
    assert decide(shape, WAYS, HOPPER, table).way == GROUPED
    assert said[-1] == f"  {BATCHED}: RuntimeError: the device refuses it"
    assert tune_products.is_measured(shape, HOPPER, table)
    of_slot = next(each for each in table.values() if each.kernel == SLOT)
    assert of_slot.config == {"runs": "slot_linear"} and decode(Shape, of_slot.shape) == shape


def test_a_shape_that_was_cut_short_is_not_kept(tmp_path: Path) -> None:
    path, said, left = tmp_path / "configs.json", list[str](), iter([True, True, False])
    tune_shapes([Shape(LINEAR, 4)], HOPPER, timer(dict.fromkeys(WAYS, 1.0)), path, said.append, lambda: next(left))
    assert not path.exists() and "no time left" in said[-1]


def test_what_cannot_be_used_here_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_gemm, "missing", lambda: "it was not built")
    said, shape = list[str](), Shape(replace(LINEAR, dtype="fp32"), 4)
    tune_shapes([shape], HOPPER, timer(dict.fromkeys(WAYS, 1.0)), tmp_path / "configs.json", said.append)
    assert {kernel for kernel, _, _ in load(tmp_path / "configs.json")} == {SLOT, BADDBMM}
    assert f"  {BATCHED}: it was not built" in said


@pytest.mark.usefixtures("library")
def test_tuning_compares_each_way_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the comparison that tunes kernels: a way that is wrong is out."""
    shape = Shape(replace(LINEAR, dtype="fp32"), 4)
    way = Way(BATCHED, {})
    tune.verify(way, shape, Config(""), tune.prepared(way, shape, Config(""), "cpu"), HOPPER)
    monkeypatch.setattr(batched_gemm, "linear", lambda x, slab, slot, num_active, out: out.zero_())
    with pytest.raises(tune.WrongResult):
        tune.verify(way, shape, Config(""), tune.prepared(way, shape, Config(""), "cpu"), HOPPER)


def test_the_slot_kernel_is_timed_with_the_config_that_serves() -> None:
    shape = Shape(LINEAR, 4)
    best = replace(slot_linear.default(LINEAR, HOPPER), num_warps=8)
    other = Measured("slot_linear", HOPPER.name, encode(LINEAR), encode(best), 3.0, "made up", {})
    way = Way(SLOT, {other.key: other})
    launch = way.launch(shape, Config(""), way.sample(shape, "meta", slots=4), HOPPER)
    assert launch.kernel == "slot_linear" and launch.num_warps == 8


def test_usual_shapes_cover_every_bucket_in_more_than_one_mix() -> None:
    shapes = tune_products.usual_shapes()
    assert len(set(shapes)) == len(shapes)
    for shape in shapes:
        rows = shape.linear.rows
        assert shape.slots * shape.rows_each == rows and rows & (rows - 1) == 0
        assert sum(other.linear == shape.linear for other in shapes) == 2
    assert tune_products.main(["--shape", Shape(LINEAR, 4).to_json()]) == 1, "there is no GPU here"
