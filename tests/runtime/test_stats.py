"""stats(): the books add up."""

from __future__ import annotations

import pytest

import spacetime as st
from tests.runtime.models import EXAMPLE, PATIENCE_S, Gate, Refusing, X, tiny


@pytest.mark.parametrize("policy", ["space_time", "time_slice", "streams"])
def test_every_request_is_counted_once(policy: str) -> None:
    gate = Gate()
    rt = st.Runtime(policy=policy)
    blocker = rt.add(gate, EXAMPLE, "gate", exact=True, max_queue=3)
    fused, refusing = rt.add(tiny(), EXAMPLE, "fused"), rt.add(Refusing().eval(), (X.abs(),), "refusing")
    gate.close()
    futures = [blocker.submit(X)]
    assert gate.entered.wait(PATIENCE_S)
    futures += [blocker.submit(X) for _ in range(6)]  # three find the queue full
    futures += [fused.submit(X[: 1 + i % 2]) for i in range(10)]
    futures += [refusing.submit(X if i % 2 else X.abs()) for i in range(10)]
    num_cancelled = sum(future.cancel() for future in futures[-2:])
    gate.open()
    rt.close()
    stats = rt.stats()
    ends = ("completed", "failed", "rejected", "cancelled")
    assert {name: books["submitted"] for name, books in stats.items()} == {"gate": 7, "fused": 10, "refusing": 10}
    for books in stats.values():
        assert books["submitted"] == sum(books[end] for end in ends)
        assert books["device_us"] > 0 and 0 < books["p50_us"] <= books["p99_us"] <= 1.01 * books["max_us"]
    assert [stats["gate"][end] for end in ends] == [4, 0, 3, 0]
    assert (stats["fused"]["completed"], stats["fused"]["rows"]) == (10, 15)
    assert stats["refusing"]["cancelled"] == num_cancelled
    assert stats["refusing"]["failed"] in (4, 5) and stats["refusing"]["completed"] in (4, 5)


def test_what_waits_and_runs_now_is_counted() -> None:
    gate = Gate()
    with st.Runtime(policy="time_slice") as rt:
        blocker, other = rt.add(gate, EXAMPLE, "gate"), rt.add(tiny(), EXAMPLE, "other")
        gate.close()
        futures = [blocker.submit(X)]
        assert gate.entered.wait(PATIENCE_S)
        futures += [blocker.submit(X) for _ in range(2)] + [other.submit(X) for _ in range(4)]
        stats = rt.stats()
        assert {name: (books["waiting"], books["running"]) for name, books in stats.items()} == {
            "gate": (2, 1),
            "other": (4, 0),
        }
        gate.open()
        for future in futures:
            future.result(PATIENCE_S)
        stats = rt.stats()
        assert all(books["waiting"] == books["running"] == 0 for books in stats.values())
        for books in stats.values():
            assert books["max_us"] <= books["latency_sum_us"] <= books["completed"] * books["max_us"]


def test_device_time_is_what_the_lanes_used() -> None:
    with st.Runtime() as rt:
        tenants = [rt.add(tiny(seed), EXAMPLE, f"t{seed}") for seed in range(3)]
        for future in [tenant.submit(X) for tenant in tenants for _ in range(20)]:
            future.result(PATIENCE_S)
        num_units = rt.explain().num_units
        events = rt.trace().events
        used_us = sum((event.end_us - event.start_us) * event.lane.units / num_units for event in events)
        assert sum(books["device_us"] for books in rt.stats().values()) == pytest.approx(used_us)
        assert sum(event.lane.num_rows for event in events) == 3 * 20 * 2


def test_a_tenant_that_never_asked_has_empty_books() -> None:
    with st.Runtime() as rt:
        rt.add(tiny(), EXAMPLE, "quiet")
        books = rt.stats()["quiet"]
        assert {name for name, value in books.items() if value} == {"weight_bytes", "lane_bytes", "peak_bytes"}


def test_bytes_are_those_of_inputs_and_results() -> None:
    with st.Runtime() as rt:
        fused, opaque = rt.add(tiny(), EXAMPLE, "fused"), rt.add(Refusing().eval(), (X.abs(),), "opaque")
        fused(X)
        fused(X[:1])
        opaque(X.abs())
        assert rt.stats()["fused"]["bytes"] == 3 * 4 * (X.shape[1] + 3), "three rows of floats in and out"
        assert rt.stats()["opaque"]["bytes"] == 2 * X.nbytes
