"""Case `tenants`: lone latencies, the ladder of rates and the search on it, and policies that take turns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import tenants, tenants_rates, traffic
from bench.results import Measurement
from bench.sides import Unavailable
from bench.tenants import GOODPUT, Contest, Sizes
from bench.tenants_rates import ALONE_REQUESTS, LEAST_GAP_US, Ladder, Lone, Search, gap_us, one_by_one
from bench.traffic import Played
from spacetime.workload import Workload

LADDERS = st.builds(
    Ladder, st.floats(0.1, 1e5), st.integers(0, 20), st.integers(0, 20), st.sampled_from((1, 2, 3, 4, 6, 12))
)
LONE = Lone({"mlp": 100.0}, {"mlp": 1000.0})
SIZES = Sizes(("mlp",), (2,), ("poisson",), ("poisson",), 3, 4, 2, 0.01, 3, 0.02, 0.0, 60.0)


# -- lone latencies --------------------------------------------------------------------------------------------------


def test_requests_that_are_alone_come_one_by_one() -> None:
    pair = traffic.residents(("mlp", "gru"), 2)
    workload = one_by_one(pair, 500)
    assert [arrival.tenant for arrival in workload.arrivals] == ["mlp/0", "gru/0"] * ALONE_REQUESTS
    times = [arrival.at_us for arrival in workload.arrivals]
    assert {later - earlier for earlier, later in pairwise(times)} == {500}
    assert gap_us({"mlp": 10.0, "bert": 50_000.0}) == 150_000
    assert gap_us({"mlp": 10.0}) == LEAST_GAP_US


def test_a_user_whom_nobody_disturbs_is_not_a_busy_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Serving:
        def __enter__(self) -> Serving:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def require(self) -> None:
            pass

        def call(self, method: str, what: Any, *_: object) -> Any:
            if method == "lone_us":
                return {"mlp/0": 100.0, "gru/0": 300.0}[what]
            latencies: dict[str, list[float]] = {name: [] for name in what.tenants}
            for place, arrival in enumerate(what.arrivals):
                latencies[arrival.tenant].append(float(place))
            return Played(latencies, 1)

    monkeypatch.setattr(tenants_rates, "serving", lambda *_: Serving())
    found = tenants_rates.lone_of("cpu", ("mlp", "gru"))
    assert found == Lone({"mlp": 100.0, "gru": 300.0}, {"mlp": ALONE_REQUESTS - 1.0, "gru": float(ALONE_REQUESTS)})


# -- the search ------------------------------------------------------------------------------------------------------


@given(LADDERS)
def test_steps_are_of_equal_ratio_around_the_common_rate(ladder: Ladder) -> None:
    rates = ladder.rates_per_s
    assert len(rates) == ladder.num_below + 1 + ladder.num_above
    assert rates[ladder.num_below] == ladder.common_per_s
    for lower, upper in pairwise(rates):
        assert (upper / lower) ** ladder.steps_per_doubling == pytest.approx(2)


@given(LADDERS, st.floats(0.001, 1e8))
def test_the_search_finds_the_highest_rate_that_passes(ladder: Ladder, limit: float) -> None:
    search, tried = Search(ladder), []
    while (rate := search.rate_per_s) is not None:
        tried.append(rate)
        search.saw(rate <= limit)
    rates = ladder.rates_per_s
    assert search.passed_per_s == max((rate for rate in rates if rate <= limit), default=None)
    assert search.failed_per_s == min((rate for rate in rates if rate > limit), default=None)
    assert tried[0] == ladder.common_per_s and set(tried) <= set(rates)
    side = max(ladder.num_below, ladder.num_above) + 1
    assert len(tried) == len(set(tried)) == search.num_tried <= 1 + math.ceil(math.log2(side))


@given(LADDERS, st.data())
def test_a_search_that_sees_noise_ends_between_what_it_saw(ladder: Ladder, data: st.DataObject) -> None:
    search, seen = Search(ladder), dict[float, bool]()
    while (rate := search.rate_per_s) is not None:
        seen[rate] = data.draw(st.booleans())
        search.saw(seen[rate])
    assert search.passed_per_s == max((rate for rate, passed in seen.items() if passed), default=None)
    assert search.failed_per_s == min((rate for rate, passed in seen.items() if not passed), default=None)


# -- turns -----------------------------------------------------------------------------------------------------------


class Policy:
    """In place of a process: it serves in time up to a rate, and nobody beyond."""

    def __init__(self, name: str, limits_per_s: Sequence[float], log: list[tuple[str, float]], most_plays: int) -> None:
        self._name, self._limits_per_s, self._log, self._left = name, limits_per_s, log, most_plays

    def why_not(self, limit_s: float) -> str | None:
        return None if self._limits_per_s else "out of memory"

    def call(self, method: str, *arguments: Any, limit_s: float | None = None) -> Any:
        if method == "saturate":
            return dict.fromkeys(arguments[0], 5)
        return self._play(*arguments) if method == "play" else None

    def _play(self, workload: Any, patience_s: float) -> Played:
        self._left -= 1
        if self._left < 0:
            raise Unavailable("its process ended with code -9")
        self._log.append((self._name, workload.rate_per_s))
        us = 100.0 if workload.rate_per_s <= self._limits_per_s[workload.seed] else 1e9
        return Played({"mlp/0": [us], "mlp/1": [us]}, 1)

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, float]]]:
    """What was played: who, and the rate."""

    def workload(residents: object, rate_per_s: float, duration_s: float, arrivals: str, seed: int) -> Any:
        return SimpleNamespace(rate_per_s=rate_per_s, seed=seed)

    monkeypatch.setattr(tenants, "open_traffic", workload)
    yield []


def contest(
    monkeypatch: pytest.MonkeyPatch,
    log: list[tuple[str, float]],
    limits_per_s: dict[str, Sequence[float]],
    most_plays: int = 1000,
) -> list[Measurement]:
    def remote(make: object, device: str, policy: str, residents: object) -> Policy:
        return Policy(policy, limits_per_s[policy], log, most_plays if policy == "fifo" else 1000)

    monkeypatch.setattr(tenants, "Remote", remote)
    return list(Contest("cpu", SIZES, tuple(limits_per_s), 2, LONE).run())


def goodput(found: list[Measurement], policy: str) -> list[Measurement]:
    return [row for row in found if row.metric == GOODPUT.metric and row.axes["policy"] == policy]


def test_a_sample_is_a_seed_and_rates_are_shared(monkeypatch: pytest.MonkeyPatch, log: list[tuple[str, float]]) -> None:
    """The common rate: 30 % of 10,000/s; steps of 1.41, three below and four above."""
    found = contest(monkeypatch, log, {"fifo": (3000, 4300, 6100), "lifo": (2900, 1500, 100), "both": (1e9,) * 3})
    rates = Ladder(3000.0, 3, 4, 2).rates_per_s
    assert {rate for _, rate in log} <= set(rates)
    (fifo,), (lifo,), (both,) = (goodput(found, policy) for policy in ("fifo", "lifo", "both"))
    assert (fifo.n, fifo.p25, fifo.median, fifo.p75) == (
        3,
        *(pytest.approx(rate, rel=1e-3) for rate in (3621, 4243, 5121)),
    )
    assert lifo.n == 3 and lifo.median == pytest.approx(1500) and "1 of 3 seeds found no rate that passes" in lifo.note
    assert lifo.p25 == pytest.approx(750)  # between 0 and 1500
    assert both.median == rates[-1] and "3 of 3 seeds passed at every rate: there may be more" in both.note
    assert "failed from" not in both.note and "failed from 4243 on" in fifo.note
    late = [row for row in found if row.metric == "SLO violations" and row.axes["policy"] == "lifo"]
    assert [(row.n, row.median) for row in late] == [(3, 100.0)]


def test_policies_take_turns_at_every_rate(monkeypatch: pytest.MonkeyPatch, log: list[tuple[str, float]]) -> None:
    contest(monkeypatch, log, {"fifo": (3000,) * 3, "lifo": (3000,) * 3})
    common = [policy for policy, _ in log[:6]]
    assert [{*common[place : place + 2]} for place in (0, 2, 4)] == [{"fifo", "lifo"}] * 3
    searched = [log[place : place + 2] for place in range(6, len(log), 2)]
    assert all({policy for policy, _ in turn} == {"fifo", "lifo"} for turn in searched)
    assert all(len({rate for _, rate in turn}) == 1 for turn in searched)
    assert {turn[0][0] for turn in searched} == {"fifo", "lifo"}  # who is first changes


def test_a_rate_that_nobody_passes_is_said(monkeypatch: pytest.MonkeyPatch, log: list[tuple[str, float]]) -> None:
    (row,) = goodput(contest(monkeypatch, log, {"fifo": (1.0,) * 3}), "fifo")
    assert row.n == 0 and row.note.startswith("unavailable: no rate passed, down to 1061 requests/s; rates between")


@pytest.mark.parametrize("most_plays", [2, 4], ids=["at the common rate", "in the search"])
def test_a_policy_that_ends_in_the_middle_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch, log: list[tuple[str, float]], most_plays: int
) -> None:
    found = contest(monkeypatch, log, {"fifo": (9e3,) * 3, "lifo": (9e3,) * 3, "none": ()}, most_plays)
    (lost,) = goodput(found, "fifo")
    assert lost.note == "unavailable: its process ended with code -9"
    kept = [row for row in found if row.axes["policy"] == "fifo" and row.metric == "SLO violations"]
    assert [row.n for row in kept] == [min(most_plays, 3)]
    (lifo,) = goodput(found, "lifo")
    assert lifo.n == 3
    (none,) = goodput(found, "none")
    assert none.note == "unavailable: out of memory"


def test_workloads_of_one_seed_differ_by_their_rate_only() -> None:
    """What makes the answer of a search follow the rate: the same gaps, in proportion."""
    pair = traffic.residents(("mlp",), 2)
    slow, fast = (traffic.open_traffic(pair, rate, 10.0, "poisson", seed=7) for rate in (20.0, 40.0))

    def first(workload: Workload) -> list[tuple[str, int]]:
        return [(arrival.tenant, arrival.at_us) for arrival in workload.arrivals[:50]]

    for (one, slow_us), (other, fast_us) in zip(first(slow), first(fast), strict=True):
        assert one == other and slow_us == pytest.approx(2 * fast_us, abs=3)
