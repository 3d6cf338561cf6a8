"""Fused programs whose linear layers run other ways than slot kernels, because a table says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from spacetime.kernels import batched_gemm
from spacetime.kernels.bound import choices, gains_from_own_graph, operation, owners, warm
from spacetime.kernels.rowmap import fill, num_words
from spacetime.kernels.triton import products, slot_linear
from spacetime.kernels.triton.products import BADDBMM, BATCHED, GROUPED, SLOT, Shape
from spacetime.kernels.triton.table import Measured, Table
from spacetime.kernels.triton.target import Target
from spacetime.values import encode
from tests.capture.tenants import largest_deviation
from tests.kernels.triton.interpreted.test_fused import MODELS, Served

TARGET = Target("interpreter", "cuda", "90", 1, 232448)
MLP = MODELS["mlp"]


class Everything(dict[Any, Measured]):
    """A table in which all shapes were measured, and one way is the fastest by far."""

    def __init__(self, *fast: str) -> None:
        super().__init__()
        self._fast = fast

    def get(self, key: Any, default: Any = None) -> Any:
        way, device, _ = key
        if way not in products.WAYS or not (way == SLOT or way in self._fast):
            return default
        time_us = 9.0 if way == SLOT else 1.0 + self._fast.index(way)
        return Measured(way, device, {}, {}, time_us, "made up", {})

    def __iter__(self) -> Iterator[Any]:
        return iter([(SLOT, "", "")])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> operation.Engine:
    """The one that lanes find; with nothing measured but what a test puts into it."""
    found = operation.Engine(TARGET, {})
    monkeypatch.setattr(owners, "engine_of", lambda device: found)
    return found


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """cuBLAS in plain torch, where it can be used; the tables of owners that it was called with."""
    calls: list[Tensor] = []

    def linear(x: Tensor, slab: Tensor, slot: Tensor, num_active: Tensor, out: Tensor) -> None:
        calls.append(slot)
        for row, entry in enumerate(slot[: int(num_active)].tolist()[: x.shape[0]]):
            if entry >= 0:
                out[row] = x[row] @ slab[entry].T

    monkeypatch.setattr(batched_gemm, "missing", lambda: None)
    monkeypatch.setattr(batched_gemm, "linear", linear)
    return calls


def measure(engine: operation.Engine, table: Table) -> None:
    engine.table, engine.has_products = table, products.is_in(table)


def ran(model: Served) -> list[str]:
    return [choice.kernel for choice in choices(model.compiled.kernels)]


def words_of(total: int, slots: tuple[int, ...], counts: tuple[int, ...]) -> Tensor:
    words = torch.zeros(num_words(total), dtype=torch.int32)
    fill(words, slots, counts)
    return words


# fp32 is multiplied by torch._grouped_mm as well, only not fast: what it computes can be tested.
@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacetime.kernels.bound.products.refusal", lambda *_: None)


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize(("name", "way"), [("mlp", GROUPED), ("mlp", BATCHED), ("bert", GROUPED)])
def test_any_mix_is_served_the_way_that_is_measured_to_be_the_fastest(
    name: str, way: str, engine: operation.Engine
) -> None:
    measure(engine, Everything(way))
    model = Served(*MODELS[name])
    model.check_any(6, words_of(6, (3, 0, 1), (1, 2, 1)), (3, 0, 1), (1, 2, 1))
    assert way in ran(model) and not {"slot_linear", "slot_gemv"} & set(ran(model))
    model.check((0, 2, 3), (1, 2, 1))
    assert way in ran(model), "a ragged mix is like any"
    told = next(choice.reason for choice in choices(model.compiled.kernels) if choice.kernel == way)
    assert told.startswith("measured: ") and "slot product 9.0 us" in told


def test_a_lane_of_all_tenants_alike_multiplies_the_slab_where_it_lies(engine: operation.Engine) -> None:
    measure(engine, Everything(BADDBMM, BATCHED))
    model = Served(*MLP)
    model.check((0, 1, 2), (2, 2, 2))
    assert ran(model).count(BADDBMM) == 3
    kernels = model.compiled.kernels
    assert gains_from_own_graph(kernels, [(0, 2), (1, 2), (2, 2)]), "a graph for any mix cannot do that"
    assert not gains_from_own_graph(kernels, [(0, 2), (1, 2)])
    model.check((1, 2), (1, 1))
    assert BADDBMM in ran(model)
    for slots, counts in (((0, 1, 2), (2, 1, 2)), ((2, 0), (1, 1))):
        model.check(slots, counts)
        assert BADDBMM not in ran(model) and BATCHED in ran(model), (slots, counts)


def test_a_graph_for_any_mix_never_takes_the_slab_as_a_whole(engine: operation.Engine) -> None:
    """All tenants may be there when it is captured, and some of them when it is replayed."""
    measure(engine, Everything(BADDBMM))
    model = Served(*MLP)
    model.check_any(3, words_of(3, (0, 1, 2), (1, 1, 1)), (0, 1, 2), (1, 1, 1))
    assert BADDBMM not in ran(model) and "slot_gemv" in ran(model)


def test_what_is_measured_for_one_shape_changes_no_other(engine: operation.Engine) -> None:
    model = Served(*MLP)
    model.check((0, 1), (1, 1))
    assert set(ran(model)) == {"slot_gemv"}
    inputs = model.own((0, 1), (1, 1))
    of_head = Shape(slot_linear.Shape(2, 1, 7, 40, "fp32", bias=True), 2)
    entries = [
        Measured(way, TARGET.name, encode(of_head), {}, time_us, "made up", {})
        for way, time_us in ((SLOT, 5.0), (BADDBMM, 2.0))
    ]
    measure(engine, {each.key: each for each in entries})
    again = Served(*MLP)
    assert largest_deviation(again.tenants.fused((0, 1), inputs), again.plain((0, 1), inputs)) <= 1e-5
    assert ran(again) == ["slot_gemv", "slot_gemv", BADDBMM]


def test_torchs_own_limits_are_kept(engine: operation.Engine) -> None:
    measure(engine, Everything(GROUPED))
    model = Served(*MLP)
    model.check((0, 1, 2), (1, 2, 1))
    assert GROUPED not in ran(model), "fp32"


def test_warming_runs_the_same_ways(engine: operation.Engine, library: list[Tensor]) -> None:
    measure(engine, Everything(BATCHED))
    model = Served(*MLP)
    assert warm(model.compiled.run, model.inputs(1, 0), [2, 4]) is None
    assert len(library) == 2 * ran(model).count(BATCHED) > 0
    assert all(bool((owners == -1).all()) for owners in library), "with nobody's rows"


def test_nothing_measured_costs_nothing(engine: operation.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacetime.kernels.bound.products.decide", lambda *_: pytest.fail("it was asked"))
    monkeypatch.setattr("spacetime.kernels.bound.products.decide_any", lambda *_: pytest.fail("it was asked"))
    assert not engine.has_products and not operation.Engine(replace(TARGET), {}).has_products
    Served(*MLP).check((0, 1), (1, 1))
