"""Case `interference`: which blocks are played, in which order, and what is made of their latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from bench import interference
from bench.cases import FULL, QUICK, SMOKE
from bench.interference import AGGRESSOR, MOVED, VICTIM, Attack, Sizes, figures, meet, percent
from bench.results import Measurement
from bench.sides import Unavailable
from bench.traffic import Played
from spacetime.device import Capabilities
from spacetime.workload import Resident, Workload
from spacetime.zoo import ZOO

FLOOD = Attack("flood", "mlp", 7)
TINY = Sizes("gru", (FLOOD,), (False,), 4, 1.0, 0.0, 60.0)


class Scripted:
    """A runtime in another process: beside the aggressor everything takes twice as long."""

    def __init__(self, make: Any, device: str, policy: str, tenants: Sequence[Resident]) -> None:
        self.tenants = tenants
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.workloads: list[tuple[bool, Workload]] = []
        self.flooded = False
        made.append(self)

    def why_not(self, limit_s: float) -> str | None:
        return None

    def call(self, method: str, *arguments: Any) -> Any:
        self.calls.append((method, arguments))
        if method == "start_flood":
            self.flooded = True
        elif method == "stop_flood":
            self.flooded = False
            return {AGGRESSOR: 500}
        elif method == "play":
            self.workloads.append((self.flooded, arguments[0]))
            return Played({VICTIM: [200.0 if self.flooded else 100.0] * 50}, 1_000_000)
        return None

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        pass


made: list[Scripted] = []


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    monkeypatch.setattr(interference, "Remote", Scripted)


def by_metric(rows: Sequence[Measurement]) -> dict[str, Measurement]:
    return {row.metric: row for row in rows}


def test_alone_and_beside_take_turns_with_the_same_arrivals() -> None:
    rows = by_metric(list(meet("cpu", TINY, "krisp", FLOOD, 1000.0, with_slo=True)))
    (runtime,) = made
    assert [resident.slo_us for resident in runtime.tenants] == [10_000, None]
    assert [flooded for flooded, _ in runtime.workloads] == [False, True, True, False] * 2
    pairs = list(zip(runtime.workloads[::2], runtime.workloads[1::2], strict=True))
    assert all(one[1] == other[1] and one[1].tenants == (VICTIM,) for one, other in pairs)
    assert len({one[1] for one, _ in pairs}) == len(pairs)  # other arrivals in every pair
    assert ("start_flood", ((AGGRESSOR,), 7)) in runtime.calls
    moved = rows[MOVED.metric]
    assert (moved.median, moved.n) == (pytest.approx(100.0), 4)
    assert moved.axes == {
        "policy": "krisp",
        "victim": "gru",
        "aggressor": "flood",
        "aggressor_model": "mlp",
        "outstanding": 7,
        "slo": "own",
    }
    assert rows["aggressor's throughput"].median == pytest.approx(500.0)
    assert rows["victim's p99, alone over alone"].median == pytest.approx(0.0)


def test_a_runtime_that_fails_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Scripted, method: str, *arguments: Any) -> Any:
        raise Unavailable("its process ended with code 1")

    monkeypatch.setattr(Scripted, "call", fail)
    (row,) = meet("cpu", TINY, "krisp", FLOOD, 1000.0, with_slo=False)
    assert (row.metric, row.n, row.note) == (MOVED.metric, 0, "unavailable: its process ended with code 1")


def test_p99_is_compared_pair_by_pair() -> None:
    rows = by_metric(list(figures("s", [[100.0], [200.0]], [[150.0], [500.0]], "told", {})))
    moved = rows[MOVED.metric]
    assert (moved.median, moved.n) == (pytest.approx(100.0), 2)  # of 50 and 150
    assert rows["victim's p99, alone over alone"].median == pytest.approx(100.0)
    assert rows["victim's p99 alone"].median == pytest.approx(0.15)
    assert "p99 0.15 ms alone, 0.325 ms beside; told" in moved.note


def test_a_victim_that_starves_is_no_figure() -> None:
    rows = by_metric(list(figures("s", [[100.0, 100.0]], [[100.0, math.inf]], "told", {})))
    assert rows[MOVED.metric].n == 0
    assert "0.0% alone and 50.0% beside did not even start" in rows[MOVED.metric].note
    assert rows["victim's p99 alone"].median == pytest.approx(0.1)
    rows = by_metric(list(figures("s", [[math.inf]], [[100.0]], "told", {})))
    assert set(rows) == {MOVED.metric} and rows[MOVED.metric].n == 0


def test_percent() -> None:
    assert percent([100.0, 10.0], [150.0, 5.0]) == pytest.approx([50.0, -50.0])


def test_every_policy_meets_every_aggressor(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = Capabilities(partitions=True, segments=False, graphs=False)
    monkeypatch.setattr(interference, "lone_latencies_us", lambda *_: {"gru": 1000.0})
    monkeypatch.setattr(interference, "capabilities_of", lambda _: capabilities)
    rows = [row for row in interference.run(QUICK) if row.metric == MOVED.metric]
    unavailable = [row.subject for row in rows if not row.n]
    assert unavailable == ["space_time_floating"]
    met = {(row.axes["policy"], row.axes["aggressor"]) for row in rows if row.n}
    attacks = {attack.name for attack in Sizes.of(QUICK).attacks}
    assert met == {(policy, attack) for policy, _ in met for attack in attacks}
    assert {policy for policy, _ in met} == {"time_slice", "streams", "static", "gslice", "krisp", "space_time"}


def test_sizes_grow_with_the_scale() -> None:
    smoke, quick, full = map(Sizes.of, (SMOKE, QUICK, FULL))
    assert smoke.num_pairs < quick.num_pairs < full.num_pairs
    assert len(full.attacks) > len(quick.attacks) and not full.few_policies
    assert {attack.model for sizes in (smoke, quick, full) for attack in sizes.attacks} <= ZOO.keys()
