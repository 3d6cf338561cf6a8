"""Case `gemm`: windows of weights, every way to compute a round, the arithmetic of its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import gemm, gemm_lab
from bench.cases import FULL, QUICK, SMOKE
from bench.gemm import GEOMEAN, MPS, PUBLISHED, ROOFLINE, TIME_ONLY, Roof, Sizes, Table
from bench.gemm_lab import Lab, Several, answers
from bench.gemm_sides import NEEDS_GPU, OURS, SIDES, Reordered
from bench.gemm_work import LIMITS, LISTED, SHAPES, Shape, Work, make_weights, num_weights
from bench.results import Measurement
from bench.sides import Remote, Unavailable

TINY = Shape(6, 3, 8, "tiny")
PATH = "ours: slot_linear"
SIZES = Sizes((TINY,), ("float32",), (1, 3), (), (2,), 2, 2, 1 << 12)


def work_of(most: int = 5, number: int = 12, *, dtype: str = "float32", rotate: bool = True) -> Work:
    return Work(TINY, dtype, make_weights(TINY, dtype, "cpu", number), most, rotate=rotate)


# -- weights ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12))
def test_windows_never_share_a_weight_and_take_turns(number: int, count: int) -> None:
    work = work_of(most=1, number=number)
    windows = work.windows(count)
    used = [start + r for start in windows for r in range(count)]
    assert len(set(used)) == len(used) and set(used) <= set(range(number))
    assert len(windows) == number // count
    if windows:
        turns = work.turns(count)
        assert [next(turns) for _ in range(2 * len(windows))] == 2 * windows


def test_weights_that_do_not_rotate_are_one_window() -> None:
    assert work_of(rotate=False).windows(4) == [0]


def test_there_are_weights_for_twice_the_cache_as_far_as_the_limit_allows() -> None:
    each = 6 * 8 * 4
    assert num_weights(TINY, "float32", cache_bytes=100 * each, most=5) == 200
    assert num_weights(TINY, "bfloat16", cache_bytes=100 * each, most=5) == 400
    assert num_weights(TINY, "float32", cache_bytes=100 * each, most=5, limit_bytes=30 * each) == 30
    assert num_weights(TINY, "float32", cache_bytes=0, most=5) == 5


def test_weights_follow_their_seed_and_differ() -> None:
    weights = make_weights(TINY, "float32", "cpu", 70)
    assert torch.equal(weights, make_weights(TINY, "float32", "cpu", 70))
    assert len({weight.sum().item() for weight in weights}) == 70
    assert weights.is_shared()


# -- sides -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("side", SIDES)
def test_every_side_multiplies_or_says_what_it_needs(side: str, count: int, dtype: str) -> None:
    work = work_of(dtype=dtype)
    try:
        action = SIDES[side](work, count)
    except Unavailable as why:
        assert side in gemm.ONLY_ON_GPU and str(why)
        return
    assert side not in gemm.ONLY_ON_GPU
    for _ in range(3):  # windows other than the first too
        work.out.fill_(float("nan"))
        result = action()
        out = result if isinstance(result, torch.Tensor) else work.out[:count]
        out = action.ordered(out) if isinstance(action, Reordered) else out
        exact = torch.stack([work.x[r].double() @ work.weights[work.first + r].double().T for r in range(count)])
        assert (out.double() - exact).abs().max() <= LIMITS[dtype] * exact.abs().max()
        assert work.deviation(out, count) <= LIMITS[dtype]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("side", SIDES)
def test_every_side_multiplies_on_a_gpu(side: str, dtype: str, shape: Shape) -> None:
    lab = Lab("cuda:0")
    lab.open(shape, dtype, 40, 20, True)
    for count in (1, 3, 20):
        try:
            assert lab.prepare(side, count) > 0
        except (Unavailable, RuntimeError) as why:  # libraries refuse types and strides
            assert "deviates" not in str(why)


def lab_of(work: Work) -> Lab:
    lab = Lab("cpu")
    lab.open(TINY, work.dtype, work.weights, len(work.x), True)
    return lab


def test_a_wrong_result_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(work: Work, count: int) -> Callable[[], None]:
        right = SIDES["bmm"](work, count)

        def run_round() -> None:
            right()
            work.out[count - 1, 0, 0] += 1

        return run_round

    lab = lab_of(work_of())
    assert lab.prepare("bmm", 3) > 0
    monkeypatch.setitem(SIDES, "wrong", wrong)
    monkeypatch.setitem(SIDES, "nothing", lambda work, count: lambda: None)
    for name in ("wrong", "nothing"):
        with pytest.raises(Unavailable, match="deviates"):
            lab.prepare(name, 3)


def test_processes_share_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        """Does 10 rounds in a slice."""

        def __init__(self) -> None:
            self.taken = 0

        def call(self, method: str, *arguments: object) -> object:
            if method == "take":
                (self.taken,) = arguments  # type: ignore[assignment]
                return None
            now[0] += 1.0
            return 10, now[0]

    now = [0.0]
    monkeypatch.setattr(gemm_lab.time, "monotonic", lambda: now[0])
    fakes = [Fake() for _ in range(3)]
    several = Several(fakes, 0.001, at_once=False)  # type: ignore[arg-type]
    several.prepare(7)
    assert [fake.taken for fake in fakes] == [3, 2, 2]
    # 70 products in three slices of a second: 7 of them take 0.3 s.
    assert several.sample() == pytest.approx(0.3e6)
    several.prepare(2)
    assert several.sample() == pytest.approx(0.2e6)  # 20 products in the two that have any


# -- figures ---------------------------------------------------------------------------------------------------------


def test_the_roof_is_arithmetic_or_traffic() -> None:
    shape = Shape(100, 1, 100, "matvec")
    assert Roof(gflops=1000, gb_s=10).gflops_of(shape, "float32") == pytest.approx(10 * 20000 / (10200 * 4))
    assert Roof(gflops=2, gb_s=10).gflops_of(shape, "float32") == 2


def table_of(shape: Shape, dtype: str, round_us: dict[str, list[list[float]]]) -> Table:
    """Samples by side, for R = 1, 2, 4."""
    table = Table("cpu", replace(SIZES, num_samples=2), shape, dtype, Roof(100, 100))
    for side, samples in round_us.items():
        table.round_us[side] = dict(zip((1, 2, 4), samples, strict=False))
    table.round_us[TIME_ONLY] = {1: [1.0, 1.0], 2: [4.0, 4.0], 4: [36.0, 36.0]}
    return table


def test_geomeans_pair_samples_and_leave_out_one_product() -> None:
    table = table_of(SHAPES[0], "float32", {PATH: [[9.0, 9.0], [2.0, 1.0], [2.0, 4.0]]})
    rows = {(row.metric, row.axes["side"], row.axes.get("baseline")): row for row in table.geomeans()}
    row = rows[GEOMEAN, PATH, TIME_ONLY]
    assert (row.n, row.median) == (2, 6.0)  # sqrt(2 * 18) and sqrt(4 * 9)
    assert row.method.startswith("over R = 2, 4;")


@pytest.mark.parametrize(("dtype", "published"), [("float32", True), ("bfloat16", False)])
def test_the_published_value_stands_beside_its_own_baseline_and_type(dtype: str, published: bool) -> None:
    for shape in SHAPES:
        table = table_of(shape, dtype, {PATH: [[1, 1], [1, 1]], "space-only": [[1, 1], [1, 1]]})
        found = {row.axes["baseline"]: row.goal for row in table.geomeans() if row.metric == GEOMEAN}
        against, value = PUBLISHED[str(shape)]
        assert found.keys() == {TIME_ONLY, "space-only"}
        assert found.pop(against) == (f"published: {value}" if published else "")
        assert set(found.values()) == {""}


def test_counts_are_told_in_short() -> None:
    assert gemm._listed([2, 4, 8, 9, 10, 20]) == "2, 4, 8..10, 20"


def test_a_full_run_has_the_counts_of_the_publication() -> None:
    assert Sizes.of(replace(FULL, device="cuda:0")).counts == tuple(range(1, 121))
    assert Sizes.of(FULL).counts == LISTED == Sizes.of(replace(QUICK, device="cuda:0")).counts
    assert max(Sizes.of(SMOKE).counts) < max(Sizes.of(QUICK).counts) < 120


def test_the_case_measures_every_side_and_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm.Sizes, "of", lambda scale: SIZES)
    monkeypatch.setattr(gemm, "PUBLISHED", {str(TINY): (TIME_ONLY, 1.0)})
    monkeypatch.setattr(gemm, "BLOCK_US", 1.0, raising=False)
    found = list(gemm.run(SMOKE))
    speeds = [row for row in found if row.metric == gemm.SPEED.metric]
    missing = {row.axes["side"]: row.note for row in speeds if row.n == 0}
    assert missing == {side: f"unavailable: {NEEDS_GPU}" for side in (*gemm.ONLY_ON_GPU, MPS)}
    measured = {(row.axes["side"], row.axes["tenants"], row.axes["weights"]) for row in speeds if row.n}
    sides = {*SIDES, TIME_ONLY} - set(gemm.ONLY_ON_GPU)
    rotated = {(side, count, "rotated") for side in sides for count in SIZES.counts}
    assert measured == rotated | {(side, 2, "the same") for side in sides}
    assert [row.axes for row in found if row.metric == ROOFLINE.metric] == [{"shape": str(TINY), "dtype": "float32"}]
    baselines = {row.axes["baseline"] for row in found if row.metric == GEOMEAN}
    assert baselines == sides - OURS.keys()
    assert_complete(found)


def assert_complete(found: list[Measurement]) -> None:
    assert {row.case for row in found} == {"gemm"}
    for row in found:
        assert row.method and row.unit and row.axes
        assert (row.median is None) == (row.n == 0)


# -- processes -------------------------------------------------------------------------------------------------------


class Kept:
    """What a process keeps in these tests."""

    def __init__(self, value: int) -> None:
        if value < 0:
            raise ValueError("less than nothing\nand more of it")
        self._value = value

    def plus(self, number: int) -> int:
        if number == 0:
            raise Unavailable("nothing to add")
        return self._value + number

    def sum_of(self, tensor: torch.Tensor) -> float:
        tensor[0] = 5.0
        return float(tensor.sum())

    def wait(self) -> None:
        import threading

        threading.Event().wait()


def test_an_object_in_another_process_answers_and_shares_tensors() -> None:
    with Remote(Kept, 2) as remote:
        remote.require()
        shared = torch.zeros(3).share_memory_()
        assert remote.call("plus", 3) == 5
        assert remote.call("sum_of", shared) == 5.0 and shared[0] == 5.0
        with pytest.raises(Unavailable, match=r"^nothing to add$"):
            remote.call("plus", 0)
        with pytest.raises(Unavailable, match="AttributeError"):
            remote.call("nonesuch")
        assert remote.call("plus", 1) == 3


def test_what_cannot_be_made_is_a_reason_of_one_line() -> None:
    with Remote(Kept, -1) as remote:
        assert remote.why_not() == "ValueError: less than nothing"
        with pytest.raises(Unavailable):
            remote.call("plus", 1)


def test_a_process_that_does_not_answer_in_time_is_ended() -> None:
    with Remote(Kept, 1) as remote:
        remote.require()
        with pytest.raises(Unavailable, match="not ready in 0 s"):
            remote.call("wait", limit_s=0.01)
        with pytest.raises(Unavailable, match="ended"):
            remote.call("plus", 1)


def test_all_answers_are_taken_also_after_a_failure() -> None:
    with Remote(Kept, 1) as one, Remote(Kept, 2) as two:
        for remote in (one, two):
            remote.require()
        one.ask("plus", 0)
        two.ask("plus", 5)
        with pytest.raises(Unavailable, match="nothing to add"):
            answers([one, two])
        assert two.call("plus", 1) == 3
