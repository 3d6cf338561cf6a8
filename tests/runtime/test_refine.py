"""Runtime(merge=True): members that recur together are aligned by themselves, while the lanes go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spacetime
from spacetime.merged import MergedProgram, verify
from spacetime.merging.recurrences import TIMES
from spacetime.plan import Lane, Plan, Segment, Snapshot
from spacetime.runtime import merging
from spacetime.runtime.merging import Merging
from spacetime.scheduler.protocols import CostModel
from tests.runtime.models import PATIENCE_S, WIDTH, assert_equal, plain

LAYERS = {"L": lambda: nn.Linear(WIDTH, WIDTH), "r": nn.ReLU, "s": nn.Sigmoid, "t": nn.Tanh}
# The longest is aligned first, and takes each of the others where they do not fit together.
WORK = {"one": "trL", "two": "ttsr", "long": "LrtLr"}
X = torch.linspace(-2, 2, 3 * WIDTH).reshape(3, WIDTH)


def chain(work: str) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(len(work))
        return nn.Sequential(*[LAYERS[layer]() for layer in work]).eval()


def smallest(snapshot: Snapshot, costs: CostModel) -> Plan:
    """All that waits in one lane, by the execution with the fewest members that has them all."""
    device = snapshot.device
    if snapshot.free_atoms != device.all_atoms:
        return Plan()
    requests = tuple([request for tenant in snapshot.tenants for request in tenant.waiting])
    cohorts = {tenant.cohort for tenant in snapshot.tenants}
    views = [view for view in snapshot.merged if cohorts <= set(view.cohorts)]
    whole = (Segment(device.whole),)
    if len(cohorts) > 1 and views:
        return Plan((Lane(min(views, key=lambda view: len(view.cohorts)).id, requests, whole),))
    return Plan((Lane(snapshot.tenants[0].cohort, snapshot.tenants[0].waiting, whole),))


class Served:
    def __init__(self, rt: spacetime.Runtime) -> None:
        self.rt = rt
        self.modules = {name: chain(work) for name, work in WORK.items()}
        self.handles = {name: rt.add(module, (X,), name) for name, module in self.modules.items()}
        self.settle()

    @property
    def merging(self) -> Merging:
        assert self.rt._merging is not None
        return self.rt._merging

    def settle(self) -> None:
        self.merging.settle()

    def serve(self, *names: str) -> Lane:
        """One lane with a request of each; the lane that it was."""
        calls = {name: X + index for index, name in enumerate(names)}
        futures = self.rt._driver.call(lambda scheduler: [self.handles[name].submit(x) for name, x in calls.items()])
        for (name, x), future in zip(calls.items(), futures, strict=True):
            assert_equal(future.result(PATIENCE_S), plain(self.modules[name], x))
        return self.rt.trace().events[-1].lane

    def recur(self, *names: str) -> None:
        for _ in range(TIMES):
            self.serve(*names)
        self.settle()


@pytest.fixture
def served() -> Iterator[Served]:
    with spacetime.Runtime("cpu", smallest, merge=True, record=True) as rt:
        yield Served(rt)


def test_members_that_recur_are_aligned_by_themselves(served: Served) -> None:
    everybody = served.serve("one", "two")
    (before,) = served.rt.explain().merged
    assert everybody.cohort == before.id and len(before.members) == 3
    served.recur("one", "two")
    kept, refined = served.rt.explain().merged
    assert kept.id == before.id
    assert {tenant for member in refined.members for tenant in member.tenants} == {"one", "two"}
    assert refined.num_launches == 5, "two of seven kernels are in common, where each had met the long one's"
    assert served.serve("one", "two").cohort == refined.id
    assert served.serve("one", "two", "long").cohort == kept.id


def test_where_nothing_is_gained_nothing_is_made(served: Served) -> None:
    served.recur("one", "long")
    assert len(served.rt.explain().merged) == 1 and served.rt.explain().unmerged == ()


def test_it_goes_with_its_members_and_comes_again(served: Served) -> None:
    served.recur("one", "two")
    served.rt.remove("two")
    served.settle()
    (left,) = served.rt.explain().merged
    assert len(left.members) == 2 and served.serve("one", "long").cohort == left.id
    served.handles["two"] = served.rt.add(served.modules["two"], (X,), "two")
    served.settle()
    served.recur("one", "two")
    assert len(served.rt.explain().merged) == 2


def test_a_tenant_that_joins_a_member_is_checked_and_served(served: Served) -> None:
    served.recur("one", "two")
    served.modules["another"] = chain(WORK["one"])
    nn.init.ones_(served.modules["another"][2].weight)
    served.handles["another"] = served.rt.add(served.modules["another"], (X,), "another")
    served.settle()
    refined = served.rt.explain().merged[1]
    assert served.serve("another", "two", "one").cohort == refined.id


def test_there_are_only_a_few_of_them(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MOST_REFINED", 0)
    served.recur("one", "two")
    assert len(served.rt.explain().merged) == 1
    assert len(served.serve("one", "two").requests) == 2


def test_what_cannot_be_refined_says_why_and_runs_as_before(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> MergedProgram:
        raise ArithmeticError("no alignment today")

    monkeypatch.setattr(served.merging._cache, "refine", broken)
    served.recur("one", "two")
    assert served.serve("one", "two").cohort == served.rt.explain().merged[0].id
    (why,) = served.rt.explain().unmerged
    assert why.endswith("ArithmeticError: no alignment today")


@pytest.fixture(scope="module")
def resident() -> Iterator[Served]:
    with spacetime.Runtime("cpu", smallest, merge=True) as rt:
        yield Served(rt)


@settings(max_examples=20)
@given(st.lists(st.sets(st.sampled_from(sorted(WORK)), min_size=1), min_size=1, max_size=8))
def test_whoever_is_active_gets_their_results(resident: Served, mixes: list[set[str]]) -> None:
    for mix in mixes:
        resident.serve(*sorted(mix))
    for live in resident.merging._lives():
        verify(live.executable.merged.programs, live.executable.merged.steps)
