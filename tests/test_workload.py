"""Traffic generators: seeded, ordered, at the rate that was asked for."""

from __future__ import annotations

import pytest

from spacetime.errors import OptionError
from spacetime.workload import closed_loop, poisson

RATES = (("slow", 20.0), ("fast", 200.0))


def test_poisson_keeps_the_rates_and_the_order() -> None:
    workload = poisson(RATES, duration_s=50.0, rows=(1, 2, 3), seed=1)
    times = [arrival.at_us for arrival in workload.arrivals]
    assert times == sorted(times) and times[-1] < 50_000_000
    for tenant, rate in RATES:
        count = sum(arrival.tenant == tenant for arrival in workload.arrivals)
        assert count == pytest.approx(50 * rate, rel=0.15)
    assert {arrival.rows for arrival in workload.arrivals} == {1, 2, 3}


def test_a_seed_fixes_the_traffic_and_one_tenant_does_not_move_another() -> None:
    assert poisson(RATES, 1.0, seed=3) == poisson(RATES, 1.0, seed=3)
    assert poisson(RATES, 1.0, seed=3) != poisson(RATES, 1.0, seed=4)
    alone = [arrival for arrival in poisson(RATES, 1.0).arrivals if arrival.tenant == "slow"]
    assert alone == list(poisson(RATES[:1], 1.0).arrivals)


@pytest.mark.parametrize(("rates", "duration_s"), [((("a", 0.0),), 1.0), ((("a", -1.0),), 1.0), (RATES, 0.0)])
def test_impossible_traffic_is_refused(rates: tuple[tuple[str, float], ...], duration_s: float) -> None:
    with pytest.raises(OptionError, match="must be positive"):
        poisson(rates, duration_s)


def test_a_closed_loop_gives_every_tenant_its_requests() -> None:
    workload = closed_loop(("a", "b"), 3, rows=(2,))
    assert workload.tenants == ("a", "b")
    assert len(workload.arrivals) == 6 and workload.num_rows == 12
