"""remove(drain=True): what waits is served, what comes meanwhile is refused, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch

import spacetime as st
from tests.runtime.models import EXAMPLE, PATIENCE_S, Gate, X, assert_equal, assert_three_parts, plain, tiny


@pytest.fixture
def rt() -> Iterator[st.Runtime]:
    with st.Runtime(policy="time_slice") as made:
        yield made


class Held:
    """A runtime in which "gate" runs and `leaving` waits, three requests of it, until the gate opens."""

    def __init__(self, rt: st.Runtime) -> None:
        self.rt, self.gate = rt, Gate()
        blocker, self.leaving = rt.add(self.gate, EXAMPLE, "gate"), rt.add(tiny(1), EXAMPLE, "leaving")
        self.gate.close()
        self.running = blocker.submit(X)
        assert self.gate.entered.wait(PATIENCE_S)
        self.waiting = [self.leaving.submit(X) for _ in range(3)]

    def drain(self) -> threading.Thread:
        """Somebody drains `leaving`; back when new requests are refused."""
        drainer = threading.Thread(target=self.rt.remove, args=("leaving",), kwargs={"drain": True})
        drainer.start()
        until_refused(lambda: self.waiting.append(self.leaving.submit(X)))
        return drainer


def until_refused(submit: Callable[[], Any]) -> st.RejectedError:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        try:
            submit()
        except st.RejectedError as error:
            return error
        time.sleep(0.001)
    pytest.fail("requests are still accepted")


@pytest.fixture
def held(rt: st.Runtime) -> Iterator[Held]:
    held = Held(rt)
    yield held
    held.gate.open()  # or a test that failed would hang


def ended(thread: threading.Thread) -> bool:
    thread.join(PATIENCE_S)
    return not thread.is_alive()


def test_what_waits_is_served_and_what_comes_is_refused(rt: st.Runtime, held: Held) -> None:
    drainer = held.drain()
    with pytest.raises(st.RejectedError) as caught:
        held.leaving(X)
    assert_three_parts(caught.value, "tenant 'leaving' is being removed", "no longer valid", "add it again")
    guest = rt.add(tiny(2), EXAMPLE, "guest")  # others come and go meanwhile
    served = guest.submit(X)
    with pytest.raises(st.OptionError, match="'leaving' exists already"):
        rt.add(tiny(3), EXAMPLE, "leaving")
    assert drainer.is_alive() and "leaving" in rt.tenants() and not any(future.done() for future in held.waiting)
    assert rt.stats()["leaving"]["waiting"] == len(held.waiting)
    held.gate.open()
    assert ended(drainer)
    for future in held.waiting:
        assert_equal(future.result(0), plain(tiny(1), X))
    assert rt.tenants() == ("gate", "guest") and "leaving" not in rt.stats()
    assert_equal(served.result(PATIENCE_S), plain(tiny(2), X))
    assert_equal(rt.add(tiny(3), EXAMPLE, "leaving")(X), plain(tiny(3), X))


def test_a_tenant_without_requests_is_just_removed(rt: st.Runtime) -> None:
    module = tiny()
    old = rt.add(module, EXAMPLE, "t")
    rt.remove("t", drain=True)
    assert rt.tenants() == ()
    with pytest.raises(st.RejectedError, match="'t' was removed"):
        old(X)
    with pytest.raises(st.OptionError) as caught:
        rt.remove("t", drain=True)
    assert_three_parts(caught.value, "tenant 't' does not exist", "known: none", "name one of these")


@pytest.mark.parametrize("policy", ["space_time", "streams"])
def test_who_goes_on_submitting_is_served_or_refused(policy: str) -> None:
    modules = {name: tiny(seed) for seed, name in enumerate(("leaving", "staying"))}
    expected = {name: plain(module, X) for name, module in modules.items()}
    with st.Runtime(policy=policy) as rt:
        handles = {name: rt.add(module, EXAMPLE, name) for name, module in modules.items()}
        refusals: list[st.RejectedError] = []
        futures: list[tuple[str, Future[Any]]] = []
        begun, enough = threading.Barrier(5), threading.Event()

        def keep_calling() -> None:
            begun.wait(PATIENCE_S)
            refusals.append(until_refused(lambda: assert_equal(handles["leaving"](X), expected["leaving"])))

        def submit(name: str) -> None:
            futures.append((name, handles[name].submit(X)))

        def keep_submitting() -> None:
            begun.wait(PATIENCE_S)
            refusals.append(until_refused(lambda: submit("leaving")))

        def others() -> None:
            begun.wait(PATIENCE_S)
            while not enough.wait(0.001):
                submit("staying")

        threads = [threading.Thread(target=work) for work in (keep_calling, keep_calling, keep_submitting, others)]
        for thread in threads:
            thread.start()
        begun.wait(PATIENCE_S)
        rt.remove("leaving", drain=True)
        enough.set()
        assert all(ended(thread) for thread in threads)
        assert len(refusals) == 3 and all("removed" in str(error) for error in refusals)
        for name, future in futures:
            error = future.exception(PATIENCE_S)
            if error is None:
                assert_equal(future.result(0), expected[name])
            else:  # it was on its way between the look and the removal
                assert name == "leaving" and isinstance(error, st.RejectedError)


def test_it_is_refused_in_a_callback(rt: st.Runtime, held: Held) -> None:
    """It would wait for the loop that calls it."""
    errors: list[BaseException] = []

    def called_back(_: Future[Any]) -> None:
        try:
            rt.remove("leaving", drain=True)
        except st.SpacetimeError as error:
            errors.append(error)

    held.waiting[-1].add_done_callback(called_back)
    held.gate.open()
    held.waiting[-1].result(PATIENCE_S)
    assert_equal(held.leaving(X), plain(tiny(1), X))
    (error,) = errors
    assert_three_parts(error, "remove() was called from a future's callback", "waits for the loop", "another thread")


def test_removing_it_at_once_ends_the_drain(rt: st.Runtime, held: Held) -> None:
    drainer = held.drain()
    rt.remove("leaving")
    assert ended(drainer) and rt.tenants() == ("gate",)
    for future in held.waiting:
        assert isinstance(future.exception(PATIENCE_S), st.RejectedError)
    assert not held.running.done()


def test_two_may_drain_the_same_tenant(rt: st.Runtime, held: Held) -> None:
    drainers = [held.drain(), held.drain()]
    held.gate.open()
    assert all(ended(drainer) for drainer in drainers) and rt.tenants() == ("gate",)
    assert all(future.exception(PATIENCE_S) is None for future in held.waiting)


@pytest.mark.parametrize("drain", [True, False])
def test_closing_the_runtime_ends_the_drain(rt: st.Runtime, held: Held, drain: bool) -> None:
    drainer = held.drain()
    closer = threading.Thread(target=rt.close, args=(drain,))
    closer.start()
    held.gate.open()
    assert ended(closer) and ended(drainer)
    for future in held.waiting:
        assert future.done()
        error = future.exception(0)
        assert error is None or (not drain and isinstance(error, (st.RejectedError, st.ClosedError)))
    assert torch.equal(held.running.result(0), X + 1) and rt.tenants() == ()


def test_others_may_come_while_its_last_lane_runs(rt: st.Runtime) -> None:
    gate = Gate()
    handle = rt.add(gate, EXAMPLE, "gate")
    gate.close()
    running = handle.submit(X)
    assert gate.entered.wait(PATIENCE_S)
    drainer = threading.Thread(target=rt.remove, args=("gate",), kwargs={"drain": True})
    drainer.start()
    try:
        until_refused(lambda: handle.submit(X))
        added: list[st.Tenant] = []
        adder = threading.Thread(target=lambda: added.append(rt.add(tiny(1), EXAMPLE, "guest")))
        adder.start()
        assert ended(adder) and not running.done()
    finally:
        gate.open()
    assert ended(drainer) and rt.tenants() == ("guest",)
