"""Runtime(merge=True): unlike architectures share launches, and nobody's results, failures or removal show it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spacetime
from spacetime.backends import HostMemory
from spacetime.backends.cores import available_cores
from spacetime.backends.merged import MergedExecutable
from spacetime.backends.null import NullBackend
from spacetime.plan import Lane, Plan, Segment, Snapshot
from spacetime.runtime.explain import Explanation
from spacetime.runtime.merging import Merging
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.journal import replay
from spacetime.scheduler.protocols import CostModel
from tests.runtime.models import PATIENCE_S, WIDTH, Lookup, assert_equal, plain, tiny

Call = tuple[str, tuple[Tensor, ...]]


def deep(seed: int = 0) -> nn.Sequential:
    """Has all of `tiny` in it, and a layer more."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(100 + seed)
        module = nn.Sequential(
            nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(1)
        )
    module.eval()
    return module


def always_merged(snapshot: Snapshot, costs: CostModel) -> Plan:
    """Whatever waits in one lane, if there is a merged execution of it; a lane of a cohort otherwise."""
    device = snapshot.device
    if snapshot.free_atoms != device.all_atoms:
        return Plan()
    whole = (Segment(device.whole),)
    for view in snapshot.merged:
        its = [tenant for tenant in snapshot.tenants if tenant.cohort in view.cohorts and not tenant.apart]
        if len({tenant.cohort for tenant in its}) > 1:
            return Plan((Lane(view.id, tuple(request for t in its for request in t.waiting), whole),))
    first = snapshot.tenants[0]
    return Plan((Lane(first.cohort, first.waiting if first.fusible else first.waiting[:1], whole, first.fusible),))


def modules() -> dict[str, nn.Module]:
    return {
        **{f"tiny{seed}": tiny(seed) for seed in range(2)},
        **{f"deep{seed}": deep(seed) for seed in range(2)},
        "lookup": Lookup(),
    }


def rows_for(name: str, rows: int, seed: int) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    if name == "lookup":
        return (torch.randint(0, 10, (rows,), generator=random),)
    return (torch.randn(rows, WIDTH, generator=random),)


def add_all(rt: spacetime.Runtime, its: dict[str, nn.Module]) -> dict[str, spacetime.Tenant]:
    handles = {name: rt.add(module, rows_for(name, 2, 0), name) for name, module in its.items()}
    merging_of(rt).settle()
    return handles


def merging_of(rt: spacetime.Runtime) -> Merging:
    assert rt._merging is not None
    return rt._merging


def together(rt: spacetime.Runtime, handles: dict[str, spacetime.Tenant], calls: list[Call]) -> list[Future[Any]]:
    """Submitted between two steps of the loop, so that they wait at the same time."""
    return rt._driver.call(lambda scheduler: [handles[name].submit(*args) for name, args in calls])


def merged_lanes(rt: spacetime.Runtime) -> list[Lane]:
    return [event.lane for event in rt.trace().events if event.lane.cohort.startswith("merged:")]


class Served:
    """A runtime that everybody uses, and leaves as it was."""

    def __init__(self, rt: spacetime.Runtime) -> None:
        self.rt = rt
        self.modules = modules()
        self.handles = add_all(rt, self.modules)

    def check(self, calls: list[Call]) -> None:
        futures = together(self.rt, self.handles, calls)
        for (name, args), future in zip(calls, futures, strict=True):
            assert_equal(future.result(PATIENCE_S), plain(self.modules[name], *args), scales=[1.0])


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with spacetime.Runtime("cpu", always_merged, merge=True, record=True) as rt:
        yield Served(rt)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(modules())), st.integers(1, 5), st.integers(0, 9)), min_size=1, max_size=6
    )
)
def test_merging_never_changes_results(served: Served, picked: list[tuple[str, int, int]]) -> None:
    served.check([(name, rows_for(name, rows, seed)) for name, rows, seed in picked])


def test_tenants_of_unlike_architectures_share_a_lane(served: Served) -> None:
    before = len(merged_lanes(served.rt))
    served.check([(name, rows_for(name, rows, rows)) for rows, name in enumerate(served.modules, 1)])
    lanes = merged_lanes(served.rt)
    assert len(lanes) == before + 1 and set(lanes[-1].tenants) == set(served.modules)


def test_a_request_that_fails_fails_alone(served: Served) -> None:
    calls = [(name, rows_for(name, 2, 1)) for name in served.modules if name != "lookup"]
    futures = together(served.rt, served.handles, [("lookup", (torch.tensor([99]),)), *calls])
    assert isinstance(futures[0].exception(PATIENCE_S), IndexError)
    for (name, args), future in zip(calls, futures[1:], strict=True):
        assert_equal(future.result(PATIENCE_S), plain(served.modules[name], *args), scales=[1.0])
    assert merged_lanes(served.rt)[-1].tenants[0] == "lookup"
    merging_of(served.rt).settle()
    assert served.rt.explain().merged, "the request was broken, not the merged execution"


def test_explain_says_who_shares_launches_and_what_that_saves(served: Served) -> None:
    explanation = served.rt.explain()
    (report,) = explanation.merged
    assert [set(member.tenants) for member in report.members] == [
        set(cohort.tenants) for cohort in sorted(explanation.cohorts, key=lambda cohort: cohort.signature)
    ]
    assert (report.num_alone, report.num_launches) == (3 + 6 + 2, 8), "all of tiny is in deep"
    assert (report.num_alone_executed, report.num_launches_executed) == (11, 8)
    assert report.saved == report.saved_executed == pytest.approx(3 / 11)
    assert {kernel.op for kernel in report.kernels if kernel.form == "shared"} == {"linear", "relu"}
    assert all(kernel.reason for kernel in report.kernels if kernel.form == "alone")
    text = str(explanation)
    assert (report.num_products_alone, report.num_products) == (2 + 3 + 1, 4)
    launches = explanation.launches
    assert launches is not None and launches.in_cohorts - launches.merged == 3
    assert launches.products_in_cohorts - launches.products_merged == 2
    assert "11 launches in 8 (27.3% saved" in text and "why alone" in text and explanation.unmerged == ()
    assert Explanation.from_json(explanation.to_json()) == explanation


def test_its_decisions_replay_identically(served: Served) -> None:
    served.check([(name, rows_for(name, 1, 2)) for name in served.modules])
    journal = served.rt.journal()
    again = replay(journal, always_merged)
    assert again.difference is None and again.plans == journal.plans, str(again.difference)


# -- coming and going -------------------------------------------------------------------------------------


@pytest.fixture
def rt() -> Iterator[spacetime.Runtime]:
    with spacetime.Runtime("cpu", always_merged, merge=True) as made:
        yield made


def test_tenants_come_and_go_while_others_run(rt: spacetime.Runtime) -> None:
    its = modules()
    del its["lookup"]
    handles = add_all(rt, its)
    (first,) = rt.explain().merged
    stop, problems = threading.Event(), []

    def use(name: str) -> None:
        number = 0
        while not stop.is_set():
            args = rows_for(name, 1 + number % 3, number)
            number += 1
            try:
                assert_equal(handles[name].submit(*args).result(PATIENCE_S), plain(reference[name], *args), [1.0])
            except BaseException as error:
                problems.append(error)
                return

    reference: dict[str, nn.Module] = {"tiny0": tiny(0), "deep0": deep(0)}
    users = [threading.Thread(target=use, args=(name,)) for name in reference]
    for user in users:
        user.start()
    rt.remove("deep1")
    rt.remove("tiny1")
    merging_of(rt).settle()
    (still,) = rt.explain().merged
    handles["lookup"] = rt.add(Lookup(), rows_for("lookup", 2, 0), "lookup")
    merging_of(rt).settle()
    (larger,) = rt.explain().merged
    stop.set()
    for user in users:
        user.join(PATIENCE_S)
    assert problems == []
    assert still.id == first.id and len(larger.members) == 3
    rt.remove("deep0")
    merging_of(rt).settle()
    (smaller,) = rt.explain().merged
    assert [member.tenants for member in smaller.members] in ([("tiny0",), ("lookup",)], [("lookup",), ("tiny0",)])
    rt.remove("lookup")
    assert rt.explain().merged == ()


@pytest.mark.skipif(len(available_cores()) < 2, reason="two lanes start together on two cores only")
def test_space_time_merges_what_is_predicted_to_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnlineCosts, "merged_us", lambda self, merged, loads, *, units: 1.0)
    its: dict[str, nn.Module] = {"tiny": tiny(), "deep": deep()}
    with spacetime.Runtime("cpu", merge=True) as rt:
        handles = add_all(rt, its)
        calls = [(name, rows_for(name, 2, 3)) for name in its]
        for (name, args), future in zip(calls, together(rt, handles, calls), strict=True):
            assert_equal(future.result(PATIENCE_S), plain(its[name], *args), [1.0])
        assert [set(lane.tenants) for lane in merged_lanes(rt)] == [{"tiny", "deep"}]


def test_an_execution_at_fault_is_given_up_and_says_why(
    rt: spacetime.Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    its: dict[str, nn.Module] = {"tiny": tiny(), "deep": deep()}
    handles = add_all(rt, its)
    live = merging_of(rt)._live
    assert live is not None

    def broken(*args: Any) -> None:
        raise ArithmeticError("a common launch is broken")

    monkeypatch.setattr(live.executable._code, "run", broken)
    calls = [(name, rows_for(name, 2, 3)) for name in its]
    for _ in range(2):
        for (name, args), future in zip(calls, together(rt, handles, calls), strict=True):
            assert_equal(future.result(PATIENCE_S), plain(its[name], *args), [1.0])
        merging_of(rt).settle()
    assert len(merged_lanes(rt)) == 1 and "given up" in caplog.text
    explanation = rt.explain()
    assert explanation.merged == () and "a common launch is broken" in str(explanation)


def test_a_cohort_that_deviates_is_left_out_and_says_why(
    rt: spacetime.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = MergedExecutable.check

    def picky(self: MergedExecutable, calls: Any) -> dict[str, str]:
        return check(self, calls) | {name: "off by a lot" for name in calls if name == "deep"}

    monkeypatch.setattr(MergedExecutable, "check", picky)
    add_all(rt, {"tiny": tiny(), "healthy": deep(1), "lookup": Lookup()})
    (report,) = rt.explain().merged
    assert len(report.members) == 3
    add_all(rt, {"deep": deep()})
    explanation = rt.explain()
    (report,) = explanation.merged
    assert {name for member in report.members for name in member.tenants} == {"tiny", "lookup"}
    assert "self-check of 'deep' failed when merged: off by a lot" in str(explanation)


def test_what_goes_wrong_in_the_background_is_told_and_hurts_nobody(
    rt: spacetime.Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise MemoryError("no room for it")

    monkeypatch.setattr("spacetime.runtime.merging.MergedExecutable", broken)
    its: dict[str, nn.Module] = {"tiny": tiny(), "deep": deep()}
    handles = add_all(rt, its)
    for name, module in its.items():
        args = rows_for(name, 2, 3)
        assert_equal(handles[name](*args), plain(module, *args), [1.0])
    assert "no room for it" in str(rt.explain()) and "merging failed" in caplog.text


def test_close_does_not_wait_for_what_is_not_needed_any_more() -> None:
    rt = spacetime.Runtime("cpu", merge=True)
    rt.add(tiny(), rows_for("tiny", 2, 0), "tiny")
    rt.add(deep(), rows_for("deep", 2, 0), "deep")
    merging = merging_of(rt)
    rt.close()
    assert merging._thread is None


class OnGpu(NullBackend, HostMemory):
    torch_device = "cuda:0"


def test_on_a_gpu_lanes_are_merged_as_well() -> None:
    with spacetime.Runtime(OnGpu(), merge=True) as rt:
        assert rt._merging is not None and rt.explain().unmerged == ()


def test_without_the_option_nothing_is_prepared() -> None:
    with spacetime.Runtime("cpu") as rt:
        assert rt._merging is None and rt.explain().unmerged == ()
