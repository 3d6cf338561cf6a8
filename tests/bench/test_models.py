"""Case `models`: variants of a model, every way to serve them, which sides run together, its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from bench import models, models_sides
from bench.cases import SMOKE
from bench.models import MPS, Sizes
from bench.models_sides import (
    COMPILED,
    EAGER,
    OF_OURS,
    ONLY_ON_CPU,
    ONLY_ON_GPU,
    OURS,
    SIDES,
    OnThreads,
    Subject,
)
from bench.models_stand import Block, Contender, Stand, available_bytes, rows_per_s
from bench.models_subjects import BERT_BASE, SUBJECTS, TOKENS, example, variants, weight_bytes
from bench.report.build import is_ours
from bench.sides import Unavailable
from spacetime import zoo

SIZES = Sizes(("mlp",), (3,), (3,), ("float32",), 2, 0.001, 0.01, 60.0, 60.0, 60.0, 1.0, 60.0, called_back=("mlp",))
THREADS = "eager, a thread per core"


# -- models ----------------------------------------------------------------------------------------------------------


def test_variants_have_weights_of_their_own() -> None:
    members = list(variants("mlp", 3, "cpu", "float32"))
    args = example("mlp", 2, "cpu", "float32")
    outputs = [member(*args) for member in members]
    for one, other in pairwise(outputs):
        assert not torch.allclose(one, other, atol=1e-6)
    addresses = {parameter.data_ptr() for member in members for parameter in member.parameters()}
    assert len(addresses) == 3 * len(list(members[0].parameters()))


def test_weights_are_counted_without_being_made() -> None:
    (module,) = variants("mlp", 1, "cpu", "float32")
    assert weight_bytes("mlp", "float32") == sum(parameter.nbytes for parameter in module.parameters())
    assert weight_bytes("mlp", "bfloat16") * 2 == weight_bytes("mlp", "float32")
    assert 85e6 < weight_bytes(BERT_BASE, "float32") / 4 < 90e6


def test_inputs_fit_the_device_and_the_type() -> None:
    (image,) = example("resnet18", 2, "cpu", "bfloat16")
    assert image.shape == (2, 3, 64, 64) and image.dtype == torch.bfloat16
    ids, segments, mask = example(BERT_BASE, 3, "cpu", "bfloat16")
    assert ids.shape == segments.shape == mask.shape == (3, TOKENS)
    assert ids.dtype == torch.int64 and mask.all()


def test_subjects_are_of_the_zoo_but_one() -> None:
    assert set(SUBJECTS) - zoo.ZOO.keys() == {BERT_BASE}


# -- sides -----------------------------------------------------------------------------------------------------------


def make(side: str, rows: tuple[int, ...]) -> object:
    return SIDES[side](Subject("mlp", rows, "cpu", "float32"))


@pytest.mark.parametrize("side", [side for side in SIDES if side not in COMPILED])
def test_a_side_serves_every_tenant_or_says_what_it_needs(side: str) -> None:
    """Compilers are left to the benches: they take longer than all other tests of this file."""
    if side == "onnxruntime":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    with torch.no_grad():
        try:
            serving = make(side, (1, 1, 1))
        except Unavailable as why:
            assert side in ONLY_ON_GPU and str(why)
            return
        try:
            assert side not in ONLY_ON_GPU
            assert len(serving.ready_us) == 3  # type: ignore[attr-defined]
            for order in ([0, 1, 2], [2, 0, 1]):
                done_us = serving.serve(order)  # type: ignore[attr-defined]
                assert len(done_us) == 3 and min(done_us) > 0
            if side == EAGER:
                assert done_us[2] < done_us[0] < done_us[1]
        finally:
            getattr(serving, "close", lambda: None)()


def test_stacked_weights_need_equal_rows() -> None:
    with pytest.raises(Unavailable, match="different numbers of rows"):
        make("vmap", (1, 2))


def test_vmap_computes_what_the_modules_do() -> None:
    from bench.models_sides import Stacked

    subject = Subject("mlp", (2, 2), "cpu", "float32")
    with torch.no_grad():
        stacked = Stacked(subject, lambda function: function)
        found = stacked._run([0, 1])
        for tenant, (module, args) in enumerate(zip(subject.modules(), subject.inputs(), strict=True)):
            torch.testing.assert_close(found[tenant], module(*args))


def test_what_was_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An nn.GRU, for one, is left to PyTorch, and what is timed is no compiled model."""
    from torch._dynamo.utils import counters

    monkeypatch.setitem(counters, "stats", Counter())
    assert models_sides._compiled_so_far() == "it compiles nothing of this"
    counters["stats"]["unique_graphs"] = 4
    assert models_sides._compiled_so_far().endswith("for all its tenants: 4")


def test_a_thread_that_fails_fails_the_round() -> None:
    """Nobody waits for results that do not come."""

    def broken() -> None:
        raise ValueError("no")

    serving = OnThreads([broken, lambda: None, lambda: None], [0.0] * 3)
    try:
        with pytest.raises(ValueError, match="no"):
            serving.serve([0, 1, 2])
    finally:
        serving.close()


@pytest.mark.parametrize("side", OF_OURS)
def test_latencies_of_ours_are_seen_by_who_sends(side: str) -> None:
    """As for every side, on one thread and by its clock: in the order in which it learns of the results."""
    with torch.no_grad():
        serving: Any = make(side, (1, 2, 1))
        try:
            serving.serve([0, 1, 2])
            done_us = serving.serve([2, 0, 1])
            if side == OURS:
                assert done_us[2] <= done_us[0] <= done_us[1]
            assert min(done_us) > 0
            serving._runtime.remove("mlp/1")
            with pytest.raises(Exception, match="mlp/1"):
                serving.serve([0, 1, 2])
        finally:
            serving.close()


@pytest.fixture
def keeps_grad() -> Iterator[None]:
    grad = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(grad)


def stand(rows: tuple[int, ...]) -> tuple[Stand, list[list[int]]]:
    """A side that writes down the orders of its rounds."""
    made, orders = Stand(EAGER, Subject("mlp", rows, "cpu", "float32")), list[list[int]]()
    made.prepare(Subject("mlp", rows, "cpu", "float32"), warm_up_s=0.0)
    serving: Any = made._serving
    serve = serving.serve

    def noted(order: list[int]) -> Any:
        orders.append(list(order))
        return serve(order)

    serving.serve = noted
    return made, orders


@pytest.mark.usefixtures("keeps_grad")
def test_a_stand_turns_the_order_and_does_not_count_a_first_round() -> None:
    made, orders = stand((1, 2))
    block = made.block(60.0, most_rounds=3)
    assert orders == [[1, 0], [0, 1], [1, 0], [0, 1]]  # the warm-up was the first round
    assert (len(block.done_us), block.num_rows) == (3, 3)
    orders.clear()
    assert len(made.block(0.0, most_rounds=9).done_us) == len(orders) == 1  # no time for a round that does not count


@pytest.mark.usefixtures("keeps_grad")
def test_a_stand_serves_one_number_of_tenants_after_another() -> None:
    made, _ = stand((1, 2))
    with pytest.raises(Exception, match="nothing"):
        made.prepare(Subject("nothing", (1,), "cpu", "float32"), 0.0)
    ready = made.prepare(Subject("mlp", (1, 1, 2), "cpu", "float32"), 0.0)
    assert len(ready.ready_us) == 3 and ready.round_us > 0
    block = made.block(0.0, most_rounds=1)
    assert (len(block.done_us[0]), block.num_rows) == (3, 4)
    made.clear()
    made.clear()
    assert made._serving is None


def test_a_contender_makes_one_set_of_tenants_after_another_in_one_process() -> None:
    subject = Subject("mlp", (1, 2), "cpu", "float32")
    contender = Contender(EAGER, subject)
    try:
        assert contender.start(120) is None and contender.start(0) is None
        for rows in ((1, 2), (1, 1, 1)):
            assert contender.prepare(replace(subject, rows=rows), 0.0, 120) is None
            (block,) = contender.block(0.001)
            assert (len(block.done_us[0]), block.num_rows) == (len(rows), sum(rows))
            assert len(contender.ready.ready_us) == len(rows)
            contender.clear()
        why = contender.prepare(replace(subject, model="nothing"), 0.0, 120)
        assert why is not None and "nothing" in why
        assert contender.prepare(subject, 0.0, 120) is None  # what failed before leaves nothing
        for remote in contender._remotes:
            remote.kill()
        assert "ended" in (contender.prepare(subject, 0.0, 120) or "")
        with pytest.raises(Unavailable, match="ended"):
            contender.clear()
    finally:
        contender.close(kill=True)


# -- figures ---------------------------------------------------------------------------------------------------------


def test_rates_and_gaps_are_of_all_processes_together() -> None:
    one = Block([[1.0, 2.0], [3.0, 2.0]], seconds=0.5, num_rows=2)
    two = Block([[8.0]], seconds=0.25, num_rows=3)
    assert rows_per_s([one, two]) == 2 * 2 / 0.5 + 3 / 0.25
    assert models._gap([[one, two]]) == (4.0, 1)  # medians 2, 2 and 8
    assert models._gap([[one], [one]]) == (1.0, 4)


def test_quantiles() -> None:
    values = [float(value) for value in range(1, 102)]
    assert [models._quantile(values, name) for name in ("p50", "p99", "max")] == [51.0, 100.0, 101.0]
    assert models._quantile([7.0], "p99") == 7.0


def test_memory_that_is_free_is_known() -> None:
    assert available_bytes("cpu") > 0


def left_out() -> dict[str, str]:
    slow = (*COMPILED, "onnxruntime", "vmap")
    return dict.fromkeys((*ONLY_ON_GPU, *slow, MPS), "left out")


def test_the_case_measures_every_side_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Callable[[str], object] = lambda device: left_out().items()  # noqa: E731
    monkeypatch.setattr(models, "_missing", missing)
    monkeypatch.setattr(models.Sizes, "of", lambda scale: SIZES)
    found = list(models.run(SMOKE))
    unavailable = [row for row in found if row.n == 0]
    assert {row.axes["side"] for row in unavailable if "side" in row.axes} == left_out().keys()
    assert {row.axes["model"] for row in unavailable if "model" in row.axes} == {*SUBJECTS} - {"mlp"}
    assert {row.axes["dtype"] for row in unavailable if "dtype" in row.axes} == {"bfloat16"}
    measured = [row for row in found if row.n]
    expected = {(3, "1"), (3, "mixed 1..3")}
    for side in (EAGER, THREADS, *OF_OURS):
        rates = [row for row in measured if row.metric == "throughput" and row.axes["side"] == side]
        assert {(row.axes["tenants"], row.axes["rows"]) for row in rates} == expected
        metrics = {row.metric for row in measured if row.axes["side"] == side and row.axes["tenants"] == 3}
        assert {"throughput", "latency p50", "latency p99", "latency max", "memory"} < metrics
        assert "slowest over fastest tenant" in metrics
        mine = [row for row in measured if row.axes["side"] == side]
        assert all((row.distribution is not None) == (row.metric == "latency p50") for row in mine)
        assert all(row.distribution.n >= 2 * 3 for row in mine if row.distribution)  # blocks of 3 tenants' results
    speed_ups = [row for row in measured if row.metric == "speed-up"]
    assert {row.axes["baseline"] for row in speed_ups} == {EAGER, THREADS}
    for row in found:
        assert row.method and row.unit and (row.median is None) == (row.n == 0)


def test_sides_of_one_device_are_named_once() -> None:
    assert {*ONLY_ON_CPU, *ONLY_ON_GPU, *COMPILED} < SIDES.keys()
    assert not set(ONLY_ON_CPU) & set(ONLY_ON_GPU)
    assert all(is_ours(side) == (side in OF_OURS) for side in (*SIDES, MPS))  # for the report
