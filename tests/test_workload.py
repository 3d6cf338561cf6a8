"""Traffic generators: seeded, ordered, at the rate that was asked for; traces read, or refused by line."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.arrivals import Phase
from spacetime.errors import OptionError
from spacetime.workload import Arrival, Resident, Workload, azure_functions, closed_loop, gamma, merge, mmpp, poisson

RATES = (("slow", 20.0), ("fast", 200.0))
BURSTS = (Phase(0.0, 0.5), Phase(100.0, 0.2), Phase(500.0, 0.1))
PHASES = (("slow", BURSTS[:2]), ("fast", BURSTS))

OPEN: dict[str, Callable[..., Workload]] = {
    "poisson": lambda duration_s, **options: poisson(RATES, duration_s, **options),
    "gamma": lambda duration_s, **options: gamma(RATES, duration_s, 2.0, **options),
    "mmpp": lambda duration_s, **options: mmpp(PHASES, duration_s, **options),
}
ANY = {**OPEN, "closed_loop": lambda duration_s, **options: closed_loop(("slow", "fast"), 20, **options)}


def count(workload: Workload, tenant: str) -> int:
    return sum(arrival.tenant == tenant for arrival in workload.arrivals)


def gaps_us(workload: Workload) -> list[int]:
    times = [arrival.at_us for arrival in workload.arrivals]
    return [later - earlier for earlier, later in pairwise(times)]


def cv(workload: Workload) -> float:
    gaps = gaps_us(workload)
    return statistics.pstdev(gaps) / statistics.fmean(gaps)


@pytest.mark.parametrize("generate", [OPEN["poisson"], OPEN["gamma"]])
def test_the_rates_and_the_order_are_kept(generate: Callable[..., Workload]) -> None:
    workload = generate(50.0, rows=(1, 2, 3), seed=1)
    times = [arrival.at_us for arrival in workload.arrivals]
    assert times == sorted(times) and times[-1] < 50_000_000
    for tenant, rate in RATES:
        assert count(workload, tenant) == pytest.approx(50 * rate, rel=0.15)
    assert {arrival.rows for arrival in workload.arrivals} == {1, 2, 3}


@pytest.mark.parametrize("generate", OPEN.values(), ids=OPEN)
def test_a_seed_fixes_the_traffic_and_one_tenant_does_not_move_another(generate: Callable[..., Workload]) -> None:
    assert generate(2.0, seed=3) == generate(2.0, seed=3)
    assert generate(2.0, seed=3) != generate(2.0, seed=4)


def test_one_tenant_does_not_move_another() -> None:
    alone = [arrival for arrival in poisson(RATES, 1.0).arrivals if arrival.tenant == "slow"]
    assert alone == list(poisson(RATES[:1], 1.0).arrivals)


@pytest.mark.parametrize("generate", ANY.values(), ids=ANY)
def test_models_take_turns_over_the_tenants(generate: Callable[..., Workload]) -> None:
    workload = generate(2.0, models=("mlp", "bert"), slo_us=5000)
    assert workload.residents == (Resident("slow", "mlp", 5000), Resident("fast", "bert", 5000))
    assert generate(2.0).residents == ()
    assert Workload.from_json(workload.to_json()) == workload
    with pytest.raises(OptionError, match=r"without models\n.*\n.*models="):
        generate(2.0, slo_us=5000)


@pytest.mark.parametrize(("wanted", "tolerance"), [(0.25, 0.02), (1.0, 0.07), (3.0, 0.4)])
def test_gamma_gaps_vary_as_asked(wanted: float, tolerance: float) -> None:
    workload = gamma((("a", 200.0),), 100.0, wanted, seed=5)
    assert cv(workload) == pytest.approx(wanted, abs=tolerance)


def test_gamma_is_at_its_rate_from_the_start() -> None:
    """A process that began with a whole gap would have (cv**2 - 1) / 2 requests too many: 12 here instead of 5."""
    counts = [len(gamma((("a", 100.0),), 0.05, 4.0, seed=seed).arrivals) for seed in range(4000)]
    assert statistics.fmean(counts) == pytest.approx(5.0, rel=0.15)


def test_mmpp_has_the_rate_of_its_phases_and_bursts() -> None:
    workload = mmpp((("a", BURSTS),), 2000.0, seed=2)
    dwells = [phase.mean_dwell_s for phase in BURSTS]
    mean_rate = sum(phase.rate_per_s * phase.mean_dwell_s for phase in BURSTS) / sum(dwells)
    assert len(workload.arrivals) == pytest.approx(2000 * mean_rate, rel=0.1)
    assert cv(workload) > 2
    assert max(gaps_us(workload)) > 500_000, "the phase without requests lasts that long now and then"


@pytest.mark.parametrize(
    ("generate", "problem"),
    [
        (lambda: poisson((("a", 0.0),), 1.0), "must be positive"),
        (lambda: poisson((("a", -1.0),), 1.0), "must be positive"),
        (lambda: poisson((("a", nan),), 1.0), "a rate of nan"),
        (lambda: poisson((("a", inf),), 1.0), "a rate of inf"),
        (lambda: poisson(RATES, 0.0), "must be positive"),
        (lambda: poisson(RATES, inf), "a workload of inf s"),
        (lambda: gamma(RATES, 1.0, nan), "cv is nan"),
        (lambda: gamma(RATES, 1.0, 0.0), "cv is 0.0"),
        (lambda: mmpp((("a", BURSTS[:1]),), 1.0), "1 phases"),
        (lambda: mmpp((("a", (Phase(0, 1), Phase(0, 2))),), 1.0), r"rates \[0, 0\]"),
        (lambda: mmpp((("a", (Phase(-1, 1), Phase(1, 2))),), 1.0), "rate_per_s is -1"),
        (lambda: mmpp((("a", (Phase(1, 0), Phase(1, 2))),), 1.0), "mean_dwell_s is 0"),
        (lambda: merge(poisson(RATES, 1.0), closed_loop(("a",), 1)), "closed loop"),
        (
            lambda: merge(poisson(RATES, 1.0, models=("mlp",)), poisson(RATES, 1.0, models=("bert",))),
            "'slow' differs",
        ),
    ],
)
def test_impossible_traffic_is_refused(generate: Callable[[], Workload], problem: str) -> None:
    with pytest.raises(OptionError, match=problem) as caught:
        generate()
    assert caught.value.facts and caught.value.next_step


def test_a_closed_loop_gives_every_tenant_its_requests() -> None:
    workload = closed_loop(("a", "b"), 3, rows=(2,))
    assert workload.tenants == ("a", "b")
    assert len(workload.arrivals) == 6 and workload.num_rows == 12
    assert workload.outstanding == 1


def test_merged_workloads_keep_every_request_in_order() -> None:
    steady = poisson(RATES[:1], 5.0, models=("mlp",))
    flood = mmpp((("flood", BURSTS),), 5.0, models=("bert",))
    both = merge(steady, flood)
    assert sorted(both.arrivals, key=str) == sorted(steady.arrivals + flood.arrivals, key=str)
    assert [a.at_us for a in both.arrivals] == sorted(a.at_us for a in both.arrivals)
    assert both.residents == steady.residents + flood.residents


# -- Azure Functions ----------------------------------------------------------------------------------

HEADER = "HashOwner,HashApp,HashFunction,Trigger,1,2,3\n"
ROWS = (
    "o1,a1,aaaaaaaa11,http,0,0,0\n",
    "o1,a1,bbbbbbbb22,timer,1,0,1\n",
    "o2,a2,cccccccc33,queue,30,0,60\n",
    "o2,a3,cccccccc44,http,5,10,5\n",
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "invocations.csv"
    path.write_text(HEADER + "".join(ROWS), encoding="utf-8")
    return path


def per_minute(workload: Workload, tenant: str, minute_us: int = 60_000_000) -> list[int]:
    counts = [0, 0, 0]
    for arrival in workload.arrivals:
        if arrival.tenant == tenant:
            counts[arrival.at_us // minute_us] += 1
    return counts


@pytest.mark.parametrize("spread", ["even", "poisson"])
def test_the_busiest_functions_become_tenants(trace: Path, spread: Any) -> None:
    workload = azure_functions(trace, 2, spread=spread, models=("mlp",))
    assert per_minute(workload, "cccccccc") == [30, 0, 60]
    assert per_minute(workload, "cccccccc#2") == [5, 10, 5], "hashes that begin alike are told apart"
    assert [resident.name for resident in workload.residents] == ["cccccccc", "cccccccc#2"]
    assert [a.at_us for a in workload.arrivals] == sorted(a.at_us for a in workload.arrivals)


def test_even_invocations_are_at_equal_distances_and_poisson_ones_are_not(trace: Path) -> None:
    even, random = (
        azure_functions(trace, 1, minutes=(2, 3), spread=spread)
        for spread in ("even", "poisson")  # type: ignore
    )
    assert {round(gap, -1) for gap in gaps_us(even)} == {1_000_000}
    assert 0.5 < cv(random) < 1.6


def test_time_can_be_cut_and_compressed(trace: Path) -> None:
    workload = azure_functions(trace, 1, minutes=(1, 3), speed=60)
    assert per_minute(workload, "cccccccc", minute_us=1_000_000) == [0, 60, 0]
    assert max(arrival.at_us for arrival in workload.arrivals) < 2_000_000


def test_random_functions_are_those_invoked_and_the_seed_chooses(trace: Path) -> None:
    chosen = {azure_functions(trace, 1, seed=seed, choose="random").tenants for seed in range(20)}
    assert chosen == {("bbbbbbbb",), ("cccccccc",)}, "the last row's hash is cut to the third row's name"
    again = azure_functions(trace, 3, seed=7, choose="random")
    assert again == azure_functions(trace, 3, seed=7, choose="random")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: the header starts with nothing"),
        ("HashOwner,HashApp,HashFunction,Average\n", "line 1: the header starts with HashOwner, HashApp"),
        (HEADER.replace("3", "4"), "line 1: the header"),
        (HEADER + ROWS[0] + "o1,a1,f,http,1,2\n", "line 3: 6 fields, the header has 7"),
        (HEADER + ROWS[0] + ROWS[1] + "o1,a1,f,http,1,two,3\n", "line 4: minute 2 holds 'two'"),
        (HEADER + "o1,a1,f,http,1,-2,3\n", "line 2: minute 2 holds '-2'"),
        (HEADER + "\n" + "o1,a1,f,http,1,2,3.5\n", "line 3: minute 3 holds '3.5'"),
        (HEADER + ROWS[0] + 'o1,a1,"f"g,http,1,2,3\n', "line 3: it is no CSV"),
    ],
)
def test_a_malformed_trace_is_refused_by_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=problem):
        azure_functions(path, 1)


def test_what_a_trace_does_not_hold_is_refused(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="3 functions are invoked"):
        azure_functions(trace, 4)
    with pytest.raises(OptionError, match="minutes 1 to 9"):
        azure_functions(trace, 1, minutes=(1, 9))
    with pytest.raises(OptionError, match="cannot be read"):
        azure_functions(tmp_path / "nonesuch.csv", 1)
    for option in ({"choose": "best"}, {"spread": "odd"}, {"speed": 0}):
        with pytest.raises(OptionError, match=next(iter(option))):
            azure_functions(trace, 1, **option)  # type: ignore[arg-type]


@settings(max_examples=30)
@given(counts=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=6), seed=st.integers())
def test_every_invocation_of_the_chosen_functions_arrives(
    tmp_path_factory: pytest.TempPathFactory, counts: list[list[int]], seed: int
) -> None:
    path = tmp_path_factory.mktemp("azure") / "invocations.csv"
    lines = [f"o,a,{i:08d},http,{','.join(map(str, row))}\n" for i, row in enumerate(counts)]
    path.write_text(HEADER + "".join(lines), encoding="utf-8")
    invoked = {f"{i:08d}": row for i, row in enumerate(counts) if any(row)}
    if not invoked:
        with pytest.raises(OptionError, match="0 functions"):
            azure_functions(path, 1, seed=seed)
        return
    workload = azure_functions(path, len(invoked), seed=seed, rows=(2,))
    assert {tenant: per_minute(workload, tenant) for tenant in workload.tenants} == invoked
    assert set(workload.arrivals) <= {Arrival(a.at_us, a.tenant, 2) for a in workload.arrivals}
