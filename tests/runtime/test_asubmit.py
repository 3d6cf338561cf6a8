"""asyncio: what one iteration of the event loop submits is planned together, and its thread runs short lanes only."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from torch import Tensor, nn

import spacetime as st
from spacetime.scheduler import driver
from tests.runtime.models import EXAMPLE, PATIENCE_S, X, assert_equal, plain, tiny


class Whereabouts(nn.Module):
    """Notes which threads run it; that it looks at one makes it opaque."""

    def __init__(self, takes_s: float) -> None:
        super().__init__()
        self.threads: list[int] = []
        self.takes_s = takes_s

    def forward(self, x: Tensor) -> Tensor:
        self.threads.append(threading.get_ident())
        time.sleep(self.takes_s)
        return x + (1 if x.sum() > 0 else 2)


def in_one_lane(snapshot: st.Snapshot, costs: st.CostModel) -> st.Plan:
    """Whatever waits, if the device is idle."""
    if snapshot.running:
        return st.Plan()
    device, views = snapshot.device, [view for tenant in snapshot.tenants for view in tenant.waiting]
    segments, first = (st.Segment(device.partition(device.num_units)),), snapshot.tenants[0]
    return st.Plan((st.Lane(first.cohort, tuple(views), segments, fused=first.fusible),))


def test_what_is_gathered_is_planned_together() -> None:
    modules = [tiny(seed) for seed in range(3)]
    expected = [plain(module, X) for module in modules]
    with st.Runtime(policy=in_one_lane) as rt:
        tenants = [rt.add(module, EXAMPLE, f"t{i}") for i, module in enumerate(modules)]

        async def gathered() -> list[Tensor]:
            return await asyncio.wait_for(asyncio.gather(*(tenant.asubmit(X) for tenant in tenants)), PATIENCE_S)

        for found, wanted in zip(asyncio.run(gathered()), expected, strict=True):
            assert_equal(found, wanted)
        assert [len(event.lane.requests) for event in rt.trace().events] == [3]


@pytest.mark.parametrize("long_s", [0.0, 0.02])
def test_the_thread_of_the_event_loop_runs_short_lanes_only(monkeypatch: pytest.MonkeyPatch, long_s: float) -> None:
    module = Whereabouts(long_s)
    module.eval()
    expected = plain(module, X)
    monkeypatch.setattr(driver, "HAND_OVER_US", 10_000)  # so that no machine takes longer than that for an addition
    with st.Runtime(policy=in_one_lane) as rt:  # lanes on the whole device, such as a waiting caller runs itself
        tenant = rt.add(module, EXAMPLE, "t")
        module.threads.clear()

        async def serve() -> None:
            for _ in range(10):
                assert_equal(await asyncio.wait_for(tenant.asubmit(X), PATIENCE_S), expected)

        asyncio.run(serve())
        first, *later = module.threads
        assert first != threading.get_ident(), "nobody knows yet how long it takes"
        assert (threading.get_ident() in later) == (not long_s)


def test_a_task_that_is_cancelled_before_it_is_planned_hurts_nobody() -> None:
    module = tiny()
    expected = plain(module, X)
    with st.Runtime() as rt:
        tenant = rt.add(module, EXAMPLE, "t")

        async def serve() -> None:
            task = asyncio.ensure_future(tenant.asubmit(X))
            await asyncio.sleep(0)
            task.cancel()
            assert_equal(await asyncio.wait_for(tenant.asubmit(X), PATIENCE_S), expected)

        asyncio.run(serve())
        books = rt.stats()["t"]
        assert (books["submitted"], books["completed"] + books["cancelled"]) == (2, 2)


def test_an_event_loop_that_ends_too_early_loses_no_request() -> None:
    with st.Runtime() as rt:
        tenant = rt.add(tiny(), EXAMPLE, "t")
        loop = asyncio.new_event_loop()
        task = loop.create_task(tenant.asubmit(X))
        loop.call_soon(loop.stop)
        loop.run_forever()  # the request is submitted, and not planned
        tenant(X)
        assert rt.stats()["t"]["completed"] == 2
        loop.run_until_complete(task)
        loop.close()
