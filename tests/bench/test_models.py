"""Case `models`: variants of a model, every way to serve them, which sides run together, its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from bench import models
from bench.cases import FULL, QUICK, SMOKE
from bench.models import MPS, Race, Sizes
from bench.models_sides import COMPILED, EAGER, ONLY_ON_CPU, ONLY_ON_GPU, OURS, SIDES, Subject
from bench.models_stand import Block, Stand, available_bytes, rows_per_s
from bench.models_subjects import BERT_BASE, SUBJECTS, TOKENS, example, variants, weight_bytes
from bench.sides import Unavailable
from spacetime import zoo

SIZES = Sizes(("mlp",), (3,), (3,), ("float32",), 2, 0.001, 0.01, 60.0, 60.0, 1.0, 60.0)
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


def test_a_stand_turns_the_order_and_says_what_it_took() -> None:
    grad = torch.is_grad_enabled()
    try:
        stand = Stand(EAGER, Subject("mlp", (1, 2), "cpu", "float32"), warm_up_s=0.0)
        orders: list[list[int]] = []
        serve = stand._serving.serve
        stand._serving.serve = lambda order: (orders.append(list(order)), serve(order))[1]  # type: ignore[method-assign]
        block = stand.block(60.0, most_rounds=3)
    finally:
        torch.set_grad_enabled(grad)
    assert orders == [[1, 0], [0, 1], [1, 0]]  # the warm-up was the first round
    assert (len(block.done_us), block.num_rows) == (3, 3)
    assert len(stand.ready().ready_us) == 2 and stand.ready().round_us > 0


# -- which sides, and when -------------------------------------------------------------------------------------------


def race(**options: object) -> Race:
    made = Race("cpu", SIZES, "mlp", "float32", {}, {}, {})
    for name, value in options.items():
        setattr(made, name, value)
    return made


def test_memory_decides_what_runs_at_all_and_what_runs_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "weight_bytes", lambda model, dtype: 1 << 30)
    monkeypatch.setattr(models, "available_bytes", lambda device: 10 << 30)
    found = race()
    assert found._why_not(EAGER, (1,) * 7) is None
    assert "GB" in (found._why_not(EAGER, (1,) * 8) or "")
    assert "GB" in (found._why_not(OURS, (1,) * 4) or "")  # the slab is a copy while it grows
    assert found._group([EAGER, THREADS, "vmap", OURS], (1,) * 3) == [EAGER, THREADS]
    assert found._group([OURS, EAGER], (1,) * 7) == [OURS]  # one at least


def test_a_side_that_failed_or_would_take_too_long_is_left_out() -> None:
    found = race(given_up={"vmap": "at R = 2: no"}, round_us={EAGER: 1e6}, sizes=replace(SIZES, round_limit_s=3.0))
    assert found._why_not("vmap", (1, 1)) == "at R = 2: no"
    assert found._why_not(EAGER, (1, 1)) is None
    assert "4 s" in (found._why_not(EAGER, (2, 2)) or "")


def test_a_side_that_ends_in_the_middle_takes_no_other_with_it() -> None:
    """An out-of-memory kill, for one: its blocks so far are not figures, and its reason is one."""

    class Contender:
        ready = SimpleNamespace(round_us=1.0)

        def __init__(self, most_blocks: int) -> None:
            self._left = most_blocks

        def block(self, seconds: float) -> list[Block]:
            self._left -= 1
            if self._left < 0:
                raise Unavailable("its process ended with code -9")
            return [Block([[3.0, 6.0]], 1.0, 2)]

    found = race()
    taken, lost = found._in_turns({EAGER: Contender(9), "vmap": Contender(1)}, 2)  # type: ignore[dict-item]
    assert {side: len(blocks) for side, blocks in taken.items()} == {EAGER: SIZES.num_blocks}
    assert lost == {"vmap": "its process ended with code -9"}
    assert found.round_us == {EAGER: 3.0}
    row = found._give_up("vmap", (1, 1), lost["vmap"])
    assert row.n == 0 and "code -9" in row.note and "code -9" in (found._why_not("vmap", (1,) * 4) or "")


def test_larger_counts_are_left_out_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Race, "_compare", lambda self, rows: iter(()))
    (row,) = race(sizes=replace(SIZES, counts=(5,), model_budget_s=-1.0)).run()
    assert row.n == 0 and "were over" in row.note and row.axes["tenants"] == 5


def test_sizes_grow_with_the_scale() -> None:
    assert Sizes.of(FULL).models == SUBJECTS
    assert Sizes.of(FULL).counts == (1, 2, 4, 8, 16, 32, 64) and Sizes.of(QUICK).counts == (1, 4, 8)
    assert set(Sizes.of(SMOKE).models) <= set(Sizes.of(QUICK).models) <= set(SUBJECTS)
    assert Sizes.of(replace(FULL, device="cuda:0")).dtypes == ("float32", "bfloat16")


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
    for side in (EAGER, THREADS, OURS):
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
