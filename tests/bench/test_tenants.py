"""Case `tenants`: traffic, searches and figures without a clock; a runtime's tenants; a harness that is not ours."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import mlperf, tenants, traffic
from bench.cases import FULL, QUICK, SMOKE
from bench.models_subjects import weight_bytes
from bench.results import Measurement
from bench.sides import Unavailable
from bench.tenants import Contest, Sizes, duration_of, needed_bytes, share_late
from bench.tenants_rates import Lone
from bench.traffic import FEW_POLICIES, NEEDS, Flood, Played, Served, nearest_rank, open_traffic
from spacetime.device import Capabilities
from spacetime.errors import OptionError
from spacetime.scheduler.registry import policy_names
from spacetime.sim.report import jain
from spacetime.workload import Resident
from spacetime.zoo import ZOO

LONE_US = {"mlp": 100.0, "gru": 1000.0}
PAIR = traffic.residents(("mlp", "gru"), 4, (1.0, 2.0))
EVERYTHING = Capabilities(partitions=True, segments=True, graphs=True, placement=True)


# -- traffic ---------------------------------------------------------------------------------------------------------


def test_models_take_turns_and_so_do_weights() -> None:
    assert [(t.name, t.model, t.weight) for t in PAIR] == [
        ("mlp/0", "mlp", 1.0),
        ("gru/0", "gru", 1.0),
        ("mlp/1", "mlp", 2.0),
        ("gru/1", "gru", 2.0),
    ]


def test_slos_follow_the_lone_latency_down_to_a_floor() -> None:
    found = traffic.with_slos(PAIR, LONE_US, times=10, floor=2)
    assert [tenant.slo_us for tenant in found] == [2000, 10_000, 2000, 10_000]
    assert [tenant.weight for tenant in found] == [1.0, 1.0, 2.0, 2.0]


def test_capacity_is_that_of_calls_one_after_another() -> None:
    assert traffic.capacity_per_s(PAIR, LONE_US) == pytest.approx(4e6 / 2200)


@pytest.mark.parametrize("arrivals", traffic.ARRIVALS)
def test_every_tenant_sends_and_the_rate_is_that_of_all(arrivals: str) -> None:
    workload = open_traffic(PAIR, 400.0, 60.0, arrivals, seed=1)
    assert set(workload.tenants) == {tenant.name for tenant in PAIR}
    assert len(workload.arrivals) == pytest.approx(400 * 60, rel=0.1)


def test_bursts_have_the_mean_rate_that_was_asked_for() -> None:
    mean = (traffic.BURST_RATE * traffic.BURST_S + traffic.QUIET_RATE * traffic.QUIET_S) / (
        traffic.BURST_S + traffic.QUIET_S
    )
    assert mean == pytest.approx(1.0)
    with pytest.raises(OptionError, match="arrivals 'rain' do not exist"):
        open_traffic(PAIR, 1.0, 1.0, "rain")


def test_policies_are_all_there_and_say_what_they_need() -> None:
    assert {*NEEDS, *FEW_POLICIES} <= set(policy_names())
    assert [name for name, _ in traffic.policies(EVERYTHING)] == list(policy_names())
    assert all(why is None for _, why in traffic.policies(EVERYTHING))
    without = dict(traffic.policies(Capabilities(partitions=False, segments=False, graphs=False)))
    assert {name for name, why in without.items() if why is None} == {"time_slice", "streams", "space_time"}
    assert without["static"] == "this device cannot confine lanes to partitions"
    assert {name for name, _ in traffic.policies(EVERYTHING, few=True)} == set(FEW_POLICIES)


# -- figures ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 1e3), min_size=1, max_size=20))
def test_jains_index_is_between_one_share_and_all(shares: list[float]) -> None:
    assert 1 / len(shares) - 1e-9 <= jain(shares) <= 1 + 1e-9


def test_jains_index() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1)
    assert jain([5.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([1.0, 2.0]) == pytest.approx(0.9)


def test_ranks_see_what_was_never_served() -> None:
    values = [*map(float, range(1, 100)), math.inf]
    assert (nearest_rank(values, 0.5), nearest_rank(values, 0.99), nearest_rank(values, 1.0)) == (50, 99, math.inf)
    assert nearest_rank([], 0.5) == math.inf


def test_latencies_are_judged_by_the_slo_of_their_own_tenant() -> None:
    asked = [Resident("a", "mlp", 100), Resident("b", "mlp", 1000)]
    played = Played({"a": [50.0, 150.0], "b": [500.0, math.inf]}, 1)
    assert played.over_slo(asked) == [0.5, 1.5, 0.5, math.inf]
    assert share_late(played.over_slo(asked)) == 0.5
    assert share_late([]) == 0.0


def test_slow_rates_have_more_time_within_bounds() -> None:
    assert duration_of(1e6, 2.0) == 2.0
    assert duration_of(50.0, 2.0) == 4.0
    assert duration_of(1e-3, 2.0) == 8.0


# -- a flood ---------------------------------------------------------------------------------------------------------


def test_a_flood_has_so_many_on_their_way_until_it_is_stopped() -> None:
    with ThreadPoolExecutor(4) as pool:
        flood = Flood(lambda name: pool.submit(str, name), ("a", "b"), 3)
        while min(flood.counts.values()) < 20:
            flood.wait(0.001)
        counts = flood.stop()
    assert min(counts.values()) >= 20


def test_a_flood_counts_what_ends_after_it_was_stopped() -> None:
    waiting: list[Future[Any]] = []

    def submit(name: str) -> Future[Any]:
        waiting.append(Future())
        return waiting[-1]

    flood = Flood(submit, ("a",), 5)
    assert len(waiting) == 5
    waiting.pop(0).set_result(None)
    assert len(waiting) == 5 and flood.counts == {"a": 1}
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(flood.stop)
        flood.wait(60)  # until the other thread has said so
        for future in waiting:
            future.set_result(None)
        assert stopping.result(timeout=60) == {"a": 6}


def test_a_flood_whose_requests_fail_ends_and_says_so() -> None:
    future: Future[Any] = Future()
    future.set_exception(ValueError("no"))
    flood = Flood(lambda name: future, ("a",), 4)
    with pytest.raises(RuntimeError, match="failed: no"):
        flood.stop()


# -- the case --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    it = Served("cpu", "space_time", traffic.residents(("mlp",), 2))
    yield it
    it.close()


def test_tenants_serve_traffic(served: Served) -> None:
    served.warm_up(0.01)
    workload = open_traffic(traffic.residents(("mlp",), 2), 200.0, 0.2, "bursts", seed=3)
    played = served.play(workload, patience_s=60.0)
    assert played.errors == ()
    assert len(played.all_us) == len(workload.arrivals)
    assert all(0 < us < math.inf for us in played.all_us)
    assert served.saturate(("mlp/0", "mlp/1"), 0.0, 2).keys() == {"mlp/0", "mlp/1"}
    served.start_flood(("mlp/0",), 2)
    assert served.stop_flood().keys() == {"mlp/0"}


class There:
    """In place of another process: the same object, in this one."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def call(self, method: str, *arguments: Any, limit_s: float | None = None) -> Any:
        return getattr(self._served, method)(*arguments)

    def why_not(self, limit_s: float) -> None:
        return None

    def __enter__(self) -> There:
        return self

    def __exit__(self, *_: object) -> None:
        pass


TINY = Sizes(("mlp",), (2,), ("poisson",), ("poisson", "bursts"), 1, 1, 1, 0.01, 2, 0.02, 0.0, 60.0)
LONE = Lone({"mlp": 2e3}, {"mlp": 4e3})


def test_a_policy_is_measured(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "Remote", lambda *arguments: There(served))
    monkeypatch.setattr(mlperf, "why_not", lambda: mlperf.MISSING)
    found = list(Contest("cpu", TINY, ("space_time",), 2, LONE).run())
    rows: dict[tuple[str, Any], Measurement] = {(row.metric, row.axes["traffic"]): row for row in found}
    for arrivals in ("poisson", "bursts"):
        assert rows["SLO violations", arrivals].n == 2
        assert rows["latency p99", arrivals].axes["policy"] == "space_time"
        of_all = rows["latency p50", arrivals].distribution
        assert of_all is not None and f"; {of_all.n} in all" in rows["latency p50", arrivals].note
        assert rows["latency p99", arrivals].distribution is None
    assert rows["fairness of service", "saturated"].n == 2
    goodput = rows[tenants.GOODPUT.metric, "poisson"]
    assert "rates between 75 and 300, steps of 100%, 3 requests or more; SLO mlp 20 ms" in goodput.note
    for scenario in mlperf.SCENARIOS:
        assert rows[f"loadgen {scenario} p99", f"loadgen {scenario}"].note == (
            "unavailable: mlcommons-loadgen is not installed; pip install mlcommons-loadgen"
        )


def test_a_scenario_that_fails_leaves_its_reason_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(There):
        def __init__(self) -> None:
            pass

        def call(self, method: str, *arguments: Any, limit_s: float | None = None) -> Any:
            raise Unavailable("not ready in 5 s")

    monkeypatch.setattr(mlperf, "why_not", lambda: None)
    contest = Contest("cpu", TINY, ("streams",), 2, LONE)
    contest.served["streams"] = Failing()  # type: ignore[assignment]
    server, multi_stream = contest._harness("streams")
    assert (server.n, server.note) == (0, "unavailable: not ready in 5 s")
    assert multi_stream.metric == "loadgen MultiStream p99"
    assert multi_stream.note == "unavailable: after Server: not ready in 5 s"


def test_a_policy_that_cannot_serve_is_unavailable_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(There):
        def __init__(self, *arguments: Any) -> None:
            pass

        def call(self, method: str, *arguments: Any, limit_s: float | None = None) -> Any:
            raise Unavailable("its process ended with code 9")

    monkeypatch.setattr(tenants, "Remote", Broken)
    (row,) = Contest("cpu", TINY, ("streams",), 2, LONE).run()
    assert row.n == 0 and row.note == "unavailable: its process ended with code 9"


def test_policies_that_the_device_lacks_something_for_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = dict.fromkeys(traffic.SMALL_MIX, 1.0)
    monkeypatch.setattr(tenants, "lone_of", lambda *_: Lone(ones, ones))
    monkeypatch.setattr(tenants, "capabilities_of", lambda _: Capabilities(False, False, False))
    monkeypatch.setattr(Contest, "run", lambda self: iter(()))
    names = {row.subject: row.note for row in tenants.run(QUICK)}
    assert names == {
        name: f"unavailable: {why}"
        for name, why in traffic.policies(Capabilities(False, False, False), few=True)
        if why is not None
    }


def test_memory_decides_how_many_policies_take_turns() -> None:
    needed = needed_bytes(("mlp", "bert"), 4)
    assert needed > 2 * tenants.COPIES * weight_bytes("bert", "float32")
    assert tenants.in_memory(("a", "b", "c"), needed, 100 * needed) == [("a", "b", "c")]
    assert tenants.in_memory(("a", "b", "c"), needed, 2.6 * needed) == [("a", "c"), ("b",)]
    assert tenants.in_memory(("a", "b"), needed, 0.1 * needed) == [("a",), ("b",)]
    assert tenants.in_memory((), needed, needed) == []


def test_sizes_grow_with_the_scale() -> None:
    smoke, quick, full = map(Sizes.of, (SMOKE, QUICK, FULL))
    assert smoke.num_above < quick.num_above < full.num_above
    assert smoke.num_repeats == 1 and quick.num_repeats >= 3 and full.num_repeats >= 3
    assert all(set(sizes.searched) <= set(sizes.arrivals) for sizes in (smoke, quick, full))
    assert full.counts == (2, 8, 32, 64) and not full.few_policies and not full.only
    assert {*smoke.models, *quick.models} <= ZOO.keys()


# -- somebody else's harness -----------------------------------------------------------------------------------------


class Harness(SimpleNamespace):
    """As much of mlcommons-loadgen as is used, without its clock."""

    def __init__(self) -> None:
        scenarios = SimpleNamespace(**{name: name for name in mlperf.SCENARIOS})
        modes = SimpleNamespace(PerformanceOnly="performance")
        super().__init__(TestScenario=scenarios, TestMode=modes)
        self.TestSettings = self.LogSettings = self.LogOutputSettings = SimpleNamespace
        self.completed: list[int] = []
        self.destroyed: list[int] = []

    def ConstructSUT(self, issue: Callable[[Sequence[Any]], None], flush: Callable[[], None]) -> int:
        self.issue = issue
        return 1

    def ConstructQSL(self, total: int, performance: int, load: Any, unload: Any) -> int:
        self.num_samples = total
        return 2

    def DestroyQSL(self, library: int) -> None:
        self.destroyed.append(library)

    DestroySUT = DestroyQSL

    def QuerySampleResponse(self, sample_id: int, data: int, size: int) -> int:
        return sample_id

    def QuerySamplesComplete(self, responses: list[int]) -> None:
        self.completed += responses

    def StartTestWithLogSettings(self, sut: int, library: int, settings: Any, logs: Any) -> None:
        self.settings = settings
        self.issue([SimpleNamespace(id=100 + index, index=index) for index in range(self.num_samples)])
        of = "latency" if settings.scenario == mlperf.SERVER else "per_query_latency"
        lines = {
            "result_query_count": 7,
            "result_50.00_percentile_latency_ns": 1000,
            "result_99.00_percentile_latency_ns": 2000,
            f"result_50.00_percentile_{of}_ns": 3000,
            f"result_99.00_percentile_{of}_ns": 4000,
        }
        if settings.scenario == mlperf.SERVER:
            lines["result_completed_samples_per_sec"] = 12
        with open(f"{logs.log_output.outdir}/mlperf_log_detail.txt", "w", encoding="utf-8") as file:
            file.writelines(f":::MLLOG {json.dumps({'key': key, 'value': lines[key]})}\n" for key in lines)


@pytest.mark.parametrize("scenario", mlperf.SCENARIOS)
def test_the_harness_gets_an_answer_for_every_sample(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    monkeypatch.setitem(sys.modules, mlperf.MODULE, harness)  # type: ignore[arg-type]
    asked: list[str] = []

    def submit(name: str) -> Future[Any]:
        asked.append(name)
        future: Future[Any] = Future()
        if name == "b":
            future.set_exception(ValueError("bad"))
        else:
            future.set_result(None)
        return future

    found = mlperf.drive(submit, ("a", "b", "c"), mlperf.Drive(scenario, 0.5, 10.0, 2000))
    assert asked == ["a", "b", "c"] and harness.completed == [100, 101, 102]
    assert harness.destroyed == [2, 1]
    assert (harness.settings.server_target_qps, harness.settings.multi_stream_samples_per_query) == (10.0, 3)
    assert harness.settings.server_target_latency_ns == 2_000_000
    assert found == mlperf.Driven(3.0, 4.0, 7, 12.0 if scenario == mlperf.SERVER else None, num_failed=1)


def test_what_it_drives_is_never_called_a_result_of_mlperf() -> None:
    for figure in (*tenants.SERVER.values(), *tenants.MULTI_STREAM.values()):
        assert "MLPerf" not in figure.metric and "no MLPerf result" in figure.method


def test_the_real_harness_drives() -> None:
    pytest.importorskip(mlperf.MODULE, reason=mlperf.MISSING)
    with ThreadPoolExecutor(2) as pool:
        for scenario in mlperf.SCENARIOS:
            what = mlperf.Drive(scenario, 0.05, 100.0, 10_000)
            found = mlperf.drive(lambda name: pool.submit(str, name), ("a", "b"), what)
            assert found.num_queries > 0 and found.p99_us >= found.p50_us > 0 and found.num_failed == 0
