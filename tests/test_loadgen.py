"""The load driver: order, accounts, and what happens to requests that fail."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from spacetime import Runtime
from spacetime.backends.null import NullBackend
from spacetime.errors import OptionError
from spacetime.loadgen import Load, closed_loop, open_loop
from spacetime.workload import Arrival, Workload
from spacetime.workload import closed_loop as closed_loop_workload
from spacetime.zoo import build, example

TENANTS = ("a", "b", "c")


class Clock:
    """Virtual time: it passes when somebody sleeps."""

    def __init__(self) -> None:
        self.us = 1_000

    def now_us(self) -> int:
        return self.us

    def sleep_s(self, seconds: float) -> None:
        self.us += round(seconds * 1e6)


def ended(value: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def test_a_closed_loop_keeps_one_request_per_tenant_outstanding() -> None:
    workload = closed_loop_workload(TENANTS, num_requests=50, rows=(1, 2, 3), seed=1)
    outstanding: Counter[str] = Counter()
    most: Counter[str] = Counter()
    order: dict[str, list[int]] = {tenant: [] for tenant in TENANTS}
    lock = threading.Lock()

    def serve(tenant: str) -> None:
        with lock:
            outstanding[tenant] -= 1

    with ThreadPoolExecutor(4) as pool:

        def submit(index: int, arrival: Arrival) -> Future[Any]:
            with lock:
                order[arrival.tenant].append(index)
                outstanding[arrival.tenant] += 1
                most[arrival.tenant] = max(most[arrival.tenant], outstanding[arrival.tenant])
            return pool.submit(serve, arrival.tenant)

        load = closed_loop(workload, submit)
    assert set(most.values()) == {1}
    assert all(indices == sorted(indices) and len(indices) == 50 for indices in order.values())
    assert len(load.latencies_us) == 150
    assert load.num_rows == workload.num_rows
    assert load.errors == ()


@pytest.mark.parametrize("outstanding", [1, 3, 8])
def test_a_closed_loop_keeps_as_many_on_their_way_as_the_workload_says(outstanding: int) -> None:
    workload = replace(closed_loop_workload(TENANTS, num_requests=20), outstanding=outstanding)
    waiting: deque[tuple[str, Future[Any]]] = deque()
    sent: Counter[str] = Counter()
    full = threading.Event()

    def submit(index: int, arrival: Arrival) -> Future[Any]:
        future: Future[Any] = Future()
        waiting.append((arrival.tenant, future))
        sent[arrival.tenant] += 1
        if len(waiting) == outstanding * len(TENANTS):
            full.set()
        return future

    with ThreadPoolExecutor(1) as pool:
        playing = pool.submit(closed_loop, workload, submit)
        assert full.wait(timeout=30)
        assert set(sent.values()) == {outstanding}  # and nothing more until one of them ends
        while waiting:
            tenant, future = waiting.popleft()
            before = sent[tenant]
            future.set_result(None)
            assert sent[tenant] == min(before + 1, 20)
        assert len(playing.result(timeout=30).latencies_us) == 60


def test_a_closed_loop_of_nothing_at_a_time_is_refused() -> None:
    with pytest.raises(OptionError, match=r"0 requests at a time(.|\n)*outstanding=1"):
        closed_loop(Workload((Arrival(0, "a"),), outstanding=0), lambda index, arrival: ended())


@pytest.mark.parametrize("play", [closed_loop, open_loop])
def test_how_each_request_ends_is_told(play: Callable[..., Load]) -> None:
    def submit(index: int, arrival: Arrival) -> Future[Any]:
        if index == 1:
            raise ValueError("refused")
        return ended()

    told: dict[int, tuple[int, str | None]] = {}

    def note(index: int, latency_us: int, error: str | None) -> None:
        told[index] = latency_us, error

    load = play(Workload(tuple(Arrival(0, "a") for _ in range(3))), submit, ended=note)
    assert [told[index][1] for index in range(3)] == [None, "refused", None]
    assert sorted(told[index][0] for index in (0, 2)) == sorted(load.latencies_us)


def test_an_open_loop_gives_up_what_has_not_started() -> None:
    clock = Clock()
    futures: list[Future[Any]] = []

    def submit(index: int, arrival: Arrival) -> Future[Any]:
        futures.append(ended() if index == 0 else Future())
        return futures[-1]

    workload = Workload(tuple(Arrival(at_us, "a") for at_us in (0, 10, 20)))
    load = open_loop(workload, submit, clock.now_us, clock.sleep_s, patience_s=0.0)
    assert load.errors == ("cancelled", "cancelled")
    assert len(load.latencies_us) == 1


def test_a_closed_loop_does_not_recurse_when_requests_end_at_once() -> None:
    workload = closed_loop_workload(("a",), num_requests=20_000)
    assert len(closed_loop(workload, lambda index, arrival: ended()).latencies_us) == 20_000


@pytest.mark.parametrize("play", [closed_loop, open_loop])
def test_failed_refused_and_cancelled_requests_are_counted_and_the_others_go_on(
    play: Callable[..., Load],
) -> None:
    def submit(index: int, arrival: Arrival) -> Future[Any]:
        if index == 0:
            raise ValueError("refused")
        future: Future[Any] = Future()
        if index == 1:
            future.set_exception(ValueError("failed"))
        elif index == 2:
            future.cancel()
        else:
            future.set_result(None)
        return future

    load = play(Workload(tuple(Arrival(0, "a", rows=2) for _ in range(5))), submit)
    assert load.errors == ("refused", "failed", "cancelled")
    assert len(load.latencies_us) == 2
    assert load.num_rows == 4


def test_an_open_loop_sends_when_due_and_counts_latency_from_then() -> None:
    clock = Clock()
    sent_us = []

    def submit(index: int, arrival: Arrival) -> Future[Any]:
        sent_us.append(clock.us)
        clock.us += 300  # the sender is held up: the second request leaves late
        return ended()

    workload = Workload((Arrival(100, "a"), Arrival(200, "a"), Arrival(5_000, "b", rows=3)))
    load = open_loop(workload, submit, clock.now_us, clock.sleep_s)
    assert sent_us == [1_100, 1_400, 6_000]
    assert load.latencies_us == (300, 500, 300)
    assert (load.duration_us, load.num_rows) == (5_300, 5)


@pytest.mark.parametrize("play", [closed_loop, open_loop])
def test_an_empty_workload_ends(play: Callable[..., Load]) -> None:
    load = play(Workload(()), lambda index, arrival: ended())
    assert (load.latencies_us, load.requests_per_s, load.latency_us(0.5)) == ((), 0.0, 0)


def test_a_load_knows_its_rates_and_quantiles() -> None:
    load = Load(duration_us=500_000, num_rows=300, latencies_us=tuple(range(100, 0, -1)))
    assert (load.requests_per_s, load.rows_per_s) == (200.0, 600.0)
    assert (load.latency_us(0.5), load.latency_us(0.99), load.latency_us(1.0)) == (50, 99, 100)
    assert Load.from_json(load.to_json()) == load


def test_a_runtime_serves_a_closed_loop() -> None:
    modules: dict[str, nn.Module] = {tenant: build("mlp", seed) for seed, tenant in enumerate(TENANTS)}
    workload = closed_loop_workload(TENANTS, num_requests=10, rows=(1, 2), seed=3)
    backend = NullBackend()
    with Runtime(backend) as runtime:
        handles = {tenant: runtime.add(module, example("mlp"), tenant) for tenant, module in modules.items()}
        load = closed_loop(workload, lambda i, a: handles[a.tenant].submit(*example("mlp", a.rows, seed=i)))
    assert load.errors == ()
    assert load.num_rows == workload.num_rows == sum(lane.num_rows for lane in backend.lanes)
