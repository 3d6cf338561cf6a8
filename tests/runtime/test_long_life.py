"""What comes and goes leaves nothing behind: after many tenants a runtime holds what it held after a few."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from spacetime.backends.cpu import CpuBackend
from spacetime.backends.executables import Call
from spacetime.backends.outcomes import outcomes_of
from spacetime.plan import RequestView
from spacetime.scheduler.costs import MOST_RETIRED
from spacetime.scheduler.learned import LearnedCohort
from spacetime.scheduler.load import DeviceLoad
from spacetime.scheduler.metering import Histogram
from spacetime.scheduler.protocols import Outcome
from spacetime.scheduler.stragglers import _Cohort as CohortLanes
from tests.runtime.models import EXAMPLE, PATIENCE_S, Lookup, Refusing, X, assert_equal, plain, tiny

# What code is made of; and books that grow with what was seen, up to bounds that have tests of their own.
_LEAVES = (types.ModuleType, types.FunctionType, type, Tensor, LearnedCohort, CohortLanes, Histogram, DeviceLoad)

VISITS = 24  # what every one of them, or every other one, leaves behind is found


def held_by(rt: st.Runtime) -> Counter[str]:
    """Everything that can be reached from a runtime's own parts, by its type. Of lists and dicts the items count."""
    rt._driver.call(lambda scheduler: scheduler._events.clear())  # the last 10,000 lanes ...
    assert isinstance(rt._backend, CpuBackend)
    rt._backend._took_us.clear()  # ... and what the last 4,096 kinds of them took
    found, seen = Counter[str](), set[int]()
    reached: list[Any] = [rt._residents, rt._preparer, rt._costs, rt._ledger, rt._driver._scheduler, rt._backend]
    while reached:
        one = reached.pop()
        kind = type(one)
        if id(one) in seen or isinstance(one, _LEAVES):
            continue
        seen.add(id(one))
        if kind.__module__.startswith("spacetime"):
            found[kind.__qualname__] += 1
        elif isinstance(one, (dict, list, set, frozenset)):
            found["items"] += len(one)
        elif kind.__module__ not in ("builtins", "collections", "functools", "weakref"):
            continue  # torch's graphs
        reached += gc.get_referents(one)
    return found


def visit(rt: st.Runtime, resident: st.Tenant, number: int) -> None:
    """Tenants of every kind come, are used in every way, and go."""
    fused, exact, module = f"fused{number}", f"exact{number}", tiny(number)
    expected = plain(module, X)
    joined = rt.add(module, EXAMPLE, fused, slo_ms=1000.0 + number, timeout_ms=1e9)
    alone = rt.add(Refusing().eval(), (X.abs(),), exact, exact=True, late="reject", slo_ms=10_000.0 + number)
    together = [tenant.submit(X) for tenant in (joined, resident)]
    failing = alone.submit(-X.abs() - 1)
    assert_equal(together[0].result(PATIENCE_S), expected)
    assert isinstance(failing.exception(PATIENCE_S), ArithmeticError)
    together[1].result(PATIENCE_S)
    left: list[Future[Any]] = [joined.submit(X) for _ in range(3)]
    left[0].cancel()
    rt.remove(fused)
    rt.remove(exact)
    assert all(future.done() for future in left)


def test_tenants_that_come_and_go_leave_nothing_behind() -> None:
    with st.Runtime("cpu") as rt:
        resident = rt.add(tiny(10**6), EXAMPLE, "resident")
        for number in range(MOST_RETIRED + 2):  # those that are remembered for a while
            visit(rt, resident, number)
        before = held_by(rt)
        for number in range(MOST_RETIRED + 2, MOST_RETIRED + 2 + VISITS):
            visit(rt, resident, number)
        after = held_by(rt)
        # Which lanes there were is a matter of timing, and so are some of the items that are kept up to a bound.
        assert not {
            kind: (before[kind], number) for kind, number in after.items() if number >= before[kind] + VISITS // 2
        }
        assert after["Request"] == 0 and after["CohortExecutable"] == 1
        books = rt.stats()["resident"]
        assert (
            list(rt.stats()) == ["resident"] and books["completed"] == books["submitted"] == MOST_RETIRED + 2 + VISITS
        )


@pytest.mark.parametrize("dynamic", [None, {0: {1: (4, 8)}}])
def test_the_weights_of_who_founded_a_cohort_go_with_him(dynamic: Any) -> None:
    def build() -> nn.Module:
        if dynamic is None:
            return tiny()
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval()

    example = EXAMPLE if dynamic is None else (torch.ones(2, 4, 4),)
    with st.Runtime("cpu") as rt:
        founder = build()
        weights = [weakref.ref(parameter) for parameter in founder.parameters()]
        rt.add(founder, example, "founder", dynamic=dynamic)
        second = build()
        tenant = rt.add(second, example, "second", dynamic=dynamic)
        rt.remove("founder")
        del founder
        gc.collect()
        assert [weight() for weight in weights] == [None] * len(weights)
        assert_equal(tenant(*example), plain(second, *example))
        third = build()
        assert_equal(rt.add(third, example, "third", dynamic=dynamic)(*example), plain(third, *example))


# -- what a failed request leaves -----------------------------------------------------------------------


def fail_by_call(tenant: st.Tenant, x: Tensor) -> None:
    with pytest.raises(ArithmeticError):
        tenant(x)


def fail_by_asking(tenant: st.Tenant, x: Tensor) -> None:
    assert isinstance(tenant.submit(x).exception(PATIENCE_S), ArithmeticError)


def fail_unseen(tenant: st.Tenant, x: Tensor) -> None:
    done = threading.Event()
    tenant.submit(x).add_done_callback(lambda _: done.set())
    assert done.wait(PATIENCE_S)


def fail_in_asyncio(tenant: st.Tenant, x: Tensor) -> None:
    async def ask() -> None:
        with pytest.raises(ArithmeticError):
            await tenant.asubmit(x)

    asyncio.run(ask())


@contextmanager
def no_collections() -> Iterator[None]:
    """Only what nobody has a name for goes."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def gone(reference: weakref.ref[Any]) -> bool:
    """Soon: the thread that has ended a request lets go of it a moment later."""
    give_up = time.monotonic() + PATIENCE_S
    while reference() is not None and time.monotonic() < give_up:
        time.sleep(0.001)
    return reference() is None


@pytest.mark.parametrize("fail", [fail_by_call, fail_by_asking, fail_unseen, fail_in_asyncio])
def test_inputs_of_failed_requests_live_no_longer_than_their_errors(
    fail: Callable[[st.Tenant, Tensor], None],
) -> None:
    with st.Runtime("cpu") as rt:
        tenant = rt.add(Refusing().eval(), (X.abs(),), "refusing", exact=True)
        with no_collections():
            x = -X.abs() - 1
            reference = weakref.ref(x)
            fail(tenant, x)
            del x
            assert gone(reference)


def frames_behind(error: BaseException | None) -> Iterator[types.FrameType]:
    """All that can be reached from an error."""
    while error is not None:
        traceback = error.__traceback__
        while traceback is not None:
            frame: types.FrameType | None = traceback.tb_frame
            while frame is not None:
                yield frame
                frame = frame.f_back
            traceback = traceback.tb_next
        error = error.__context__


@pytest.mark.parametrize("fused", [True, False])
def test_an_error_does_not_show_what_else_was_in_its_lane(fused: bool) -> None:
    good, bad = torch.tensor([[1, 2]]), torch.tensor([[3, 10]])  # the last is not in the table
    with st.Runtime("cpu") as rt:
        for seed, name in enumerate("ab"):
            rt.add(Lookup(seed), (good,), name)
        (executable,) = rt._preparer.cohorts.values()
        views = tuple([RequestView(index, name, 1, 0) for index, name in enumerate("ab")])
        lane = st.Lane("cohort", views, (st.Segment(rt._backend.device.whole),), fused)
        worker: Future[Sequence[Outcome]] = Future()  # another thread's frames end with it, as a lane's do

        def serve() -> None:
            worker.set_result(outcomes_of(executable, lane, [Call.of((good,)), Call.of((bad,))]))

        thread = threading.Thread(target=serve)
        thread.start()
        thread.join(PATIENCE_S)
        mine, its = worker.result(0)
        assert mine.error is None and isinstance(its.error, IndexError)
        frames = list(frames_behind(its.error))
        assert any(frame.f_code.co_name == "embedding" for frame in frames), "where it failed can be seen"
        for frame in frames:
            if frame.f_code is not serve.__code__:  # the test's own
                assert not any(one is good or one is mine.value for one in flat(frame.f_locals.values())), frame


def flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, Call | Outcome):
            yield from flat([getattr(value, name) for name in type(value).__slots__])
        elif isinstance(value, (list, tuple)):
            yield from flat(value)
        else:
            yield value
