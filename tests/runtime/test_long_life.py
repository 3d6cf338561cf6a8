"""What comes and goes leaves nothing behind: after many tenants a runtime holds what it held after a few."""

from __future__ import annotations

import gc
import types
import weakref
from collections import Counter
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from spacetime.backends.cpu import CpuBackend
from spacetime.scheduler.costs import MOST_RETIRED
from spacetime.scheduler.learned import LearnedCohort
from spacetime.scheduler.metering import Histogram
from spacetime.scheduler.stragglers import _Cohort as CohortLanes
from tests.runtime.models import EXAMPLE, PATIENCE_S, Refusing, X, assert_equal, plain, tiny

# What code is made of; and books that grow with what was seen, up to bounds that have tests of their own.
_LEAVES = (types.ModuleType, types.FunctionType, type, Tensor, LearnedCohort, CohortLanes, Histogram)


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
        for number in range(MOST_RETIRED + 2, MOST_RETIRED + 14):
            visit(rt, resident, number)
        after = held_by(rt)
        assert not {kind: (before[kind], number) for kind, number in after.items() if number > before[kind]}
        assert after["Request"] == 0 and after["CohortExecutable"] == 1
        books = rt.stats()["resident"]
        assert list(rt.stats()) == ["resident"] and books["completed"] == books["submitted"] == MOST_RETIRED + 14


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
