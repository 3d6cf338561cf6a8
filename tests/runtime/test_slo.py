"""Timeouts, late requests and full queues through the public API: rejected by themselves, with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch

import spacetime as st
from tests.runtime.models import EXAMPLE, PATIENCE_S, Gate, X, assert_three_parts, tiny


class Blocked:
    """A runtime whose only worker is busy for as long as the test wants."""

    def __init__(self, rt: st.Runtime, gate: Gate, blocker: st.Tenant) -> None:
        self.rt, self.gate = rt, gate
        gate.close()
        self.running = blocker.submit(X)
        assert gate.entered.wait(PATIENCE_S)


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    gate = Gate()
    with st.Runtime(policy="time_slice", admission="off") as rt:
        world = Blocked(rt, gate, rt.add(gate, EXAMPLE, "gate", exact=True))
        yield world
        gate.open()


def test_a_request_times_out_while_nothing_else_happens(blocked: Blocked) -> None:
    tenant = blocked.rt.add(tiny(), EXAMPLE, "a", timeout_ms=1)
    error = tenant.submit(X).exception(PATIENCE_S)
    assert isinstance(error, st.RejectedError) and not blocked.running.done()
    assert_three_parts(error, "tenant 'a': a request timed out", "the timeout is 1000 us", "raise timeout_ms")
    with pytest.raises(st.RejectedError, match="timed out"):
        tenant(X)
    with pytest.raises(st.RejectedError, match="timed out"):
        asyncio.run(tenant.asubmit(X))
    assert blocked.rt.stats()["a"]["rejected"] == 3


def test_a_request_that_missed_its_deadline_is_rejected_if_asked(blocked: Blocked) -> None:
    rejecting = blocked.rt.add(tiny(), EXAMPLE, "rejecting", slo_ms=1, late="reject")
    serving = blocked.rt.add(tiny(1), EXAMPLE, "serving", slo_ms=1)
    late, served = rejecting.submit(X), serving.submit(X)
    error = late.exception(PATIENCE_S)
    assert isinstance(error, st.RejectedError)
    assert_three_parts(error, "cannot make its deadline", "us (predicted)", "late='serve'")
    blocked.gate.open()
    assert isinstance(served.result(PATIENCE_S), torch.Tensor)


def test_a_request_in_time_is_served() -> None:
    with st.Runtime() as rt:
        tenant = rt.add(tiny(), EXAMPLE, "a", timeout_ms=1e6, slo_ms=1e6, late="reject")
        for _ in range(50):
            assert isinstance(tenant(X), torch.Tensor)
        assert rt.stats()["a"]["completed"] == 50


def test_cancelled_requests_make_room(blocked: Blocked) -> None:
    tenant = blocked.rt.add(tiny(), EXAMPLE, "a", max_queue=2)
    first, second = tenant.submit(X), tenant.submit(X)
    assert isinstance(tenant.submit(X).exception(PATIENCE_S), st.RejectedError)
    assert first.cancel()
    third = tenant.submit(X)
    blocked.gate.open()
    for future in (second, third):
        assert isinstance(future.result(PATIENCE_S), torch.Tensor)
    assert blocked.rt.stats()["a"]["cancelled"] == 1


def test_options_are_checked() -> None:
    with st.Runtime() as rt:
        with pytest.raises(st.OptionError, match="late is 'drop'"):
            rt.add(tiny(), EXAMPLE, "a", late="drop")
        with pytest.raises(st.OptionError, match="without an objective"):
            rt.add(tiny(), EXAMPLE, "a", late="reject")
        with pytest.raises(st.OptionError, match="timeout_ms is 0"):
            rt.add(tiny(), EXAMPLE, "a", timeout_ms=0)
        assert rt.tenants() == ()
        rt.add(tiny(), EXAMPLE, "a", timeout_ms=5)
