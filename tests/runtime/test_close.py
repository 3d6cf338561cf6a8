"""close(): every future ends, every thread ends, whoever calls it and whenever."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import Any

import pytest
import torch

import spacetime as st
from tests.runtime.models import (
    EXAMPLE,
    PATIENCE_S,
    Gate,
    X,
    assert_equal,
    assert_three_parts,
    live_threads,
    plain,
    tiny,
)

Futures = list[Future[Any]]


class House:
    """A closed gate with a request in it, and a tenant whose requests wait behind it."""

    def __init__(self) -> None:
        self.threads = live_threads()
        self.rt = st.Runtime(policy="time_slice")
        self.gate, self.module = Gate(), tiny()
        self.expected = plain(self.module, X)
        blocker = self.rt.add(self.gate, EXAMPLE, "gate")
        self.tenant = self.rt.add(self.module, EXAMPLE, "tenant")
        self.gate.close()
        self.running = blocker.submit(X)
        assert self.gate.entered.wait(PATIENCE_S)
        self.waiting: Futures = [self.tenant.submit(X) for _ in range(5)]

    def assert_ended(self) -> None:
        """Nothing is left of it, and the modules have memory of their own."""
        assert torch.equal(self.running.result(PATIENCE_S), X + 1)
        assert live_threads() <= self.threads
        assert len({p.untyped_storage().data_ptr() for p in self.module.parameters()}) == 4
        assert torch.equal(plain(self.module, X), self.expected)


def close_in_a_thread(rt: st.Runtime, drain: bool = True) -> threading.Thread:
    thread = threading.Thread(target=rt.close, args=(drain,))
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_close_serves_what_waits() -> None:
    house = House()
    closer = close_in_a_thread(house.rt)
    house.gate.open()
    join(closer)
    for future in house.waiting:
        assert_equal(future.result(0), house.expected)
    house.assert_ended()


def test_close_without_drain_rejects_what_waits() -> None:
    house = House()
    closer = close_in_a_thread(house.rt, drain=False)
    for future in house.waiting:
        error = future.exception(PATIENCE_S)
        assert error is not None
        assert_three_parts(error, "the runtime was closed", "had not started", "close(drain=True)")
    assert not house.running.done(), "what runs is not cut off"
    house.gate.open()
    join(closer)
    house.assert_ended()


def test_a_closed_runtime_says_so_and_still_reports() -> None:
    house = House()
    house.gate.open()
    house.rt.close()
    house.rt.close(drain=False)
    for call in (house.tenant, house.tenant.submit):
        with pytest.raises(st.ClosedError) as caught:
            call(X)
        assert_three_parts(caught.value, "'tenant': the request was not accepted", "is closed", "another Runtime")
    assert house.rt.stats()["tenant"]["completed"] == 5
    assert house.rt.explain().cohorts == () and len(house.rt.trace().events) == 6
    house.assert_ended()


@pytest.mark.parametrize("drain", [True, False])
def test_several_threads_may_close(drain: bool) -> None:
    house = House()
    closers = [close_in_a_thread(house.rt, drain) for _ in range(4)]
    house.gate.open()
    join(*closers)
    assert not wait(house.waiting, 0).not_done
    house.assert_ended()


def test_a_callback_may_close_and_what_waits_is_served() -> None:
    house = House()
    returned: Future[None] = Future()

    def close(_: Future[Any]) -> None:
        house.rt.close()
        returned.set_result(None)

    house.running.add_done_callback(close)
    house.gate.open()
    returned.result(PATIENCE_S)
    for future in house.waiting:
        assert_equal(future.result(PATIENCE_S), house.expected)
    house.rt.close()  # now from outside: waits for the end
    house.assert_ended()


def test_leaving_the_with_block_drains() -> None:
    with st.Runtime() as rt:
        futures = [rt.add(tiny(), EXAMPLE, "tenant").submit(X) for _ in range(1)]
    assert futures[0].done() and futures[0].exception() is None


def test_an_exception_in_the_with_block_rejects_what_waits_and_passes_on() -> None:
    house = House()

    def open_when_rejected() -> None:
        wait(house.waiting, PATIENCE_S)
        house.gate.open()

    opener = threading.Thread(target=open_when_rejected)
    opener.start()
    with pytest.raises(ZeroDivisionError), house.rt:
        raise ZeroDivisionError
    join(opener)
    assert all(isinstance(future.exception(0), st.RejectedError) for future in house.waiting)
    house.assert_ended()


@pytest.mark.parametrize("policy", ["space_time", "time_slice", "streams"])
@pytest.mark.parametrize("drain", [True, False])
def test_no_request_is_lost_when_closing_under_traffic(policy: str, drain: bool) -> None:
    before = live_threads()
    rt = st.Runtime(policy=policy)
    modules = [tiny(seed) for seed in range(4)]
    expected = [plain(module, X) for module in modules]
    tenants = [rt.add(module, EXAMPLE, f"t{seed}") for seed, module in enumerate(modules)]
    flowing = threading.Barrier(len(tenants) + 1)
    accepted: list[Futures] = [[] for _ in tenants]

    def flood(index: int) -> None:
        try:
            for number in range(100_000):
                accepted[index].append(tenants[index].submit(X))
                if number == 20:
                    flowing.wait(PATIENCE_S)
        except st.ClosedError:
            return

    threads = [threading.Thread(target=flood, args=(index,)) for index in range(len(tenants))]
    for thread in threads:
        thread.start()
    flowing.wait(PATIENCE_S)
    rt.close(drain)
    join(*threads)
    for futures, reference in zip(accepted, expected, strict=True):
        assert not wait(futures, PATIENCE_S).not_done
        for future in futures:
            error = future.exception(0)
            if error is None:
                assert_equal(future.result(0), reference)
            else:
                assert isinstance(error, st.ClosedError if drain else st.ClosedError | st.RejectedError), error
    assert live_threads() <= before
    books = rt.stats().values()
    assert sum(book["submitted"] for book in books) == sum(map(len, accepted))


def test_adding_while_closing_either_works_or_is_refused() -> None:
    for _ in range(5):
        rt = st.Runtime()
        rt.add(tiny(), EXAMPLE, "first")
        modules = [tiny(seed) for seed in range(1, 9)]
        expected = [plain(module, X) for module in modules]
        started = threading.Event()

        def add_all(rt: st.Runtime = rt, modules: list[Any] = modules, started: threading.Event = started) -> None:
            for index, module in enumerate(modules):
                started.set()
                try:
                    rt.add(module, EXAMPLE, f"t{index}")
                except st.ClosedError:
                    return

        adder = threading.Thread(target=add_all)
        adder.start()
        assert started.wait(PATIENCE_S)
        rt.close()
        join(adder)
        assert rt.tenants() == ()
        for module, reference in zip(modules, expected, strict=True):
            assert torch.equal(plain(module, X), reference)
            assert len({p.untyped_storage().data_ptr() for p in module.parameters()}) == 4
