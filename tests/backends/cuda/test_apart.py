"""Lanes of several plain requests: each by its tenant's own graph; and when a mix has a graph besides that for any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from spacetime.backends.cuda import anymix, captured
from spacetime.backends.cuda.backend import CudaBackend
from spacetime.backends.cuda.graphs import CAPTURE_AFTER, MOST_GRAPHS, Graphs
from spacetime.kernels.bound import gains_from_own_graph
from spacetime.kernels.bound.operation import Bound
from tests.backends.cuda.any_cohort import AnyCohort
from tests.backends.cuda.fake_gpu import FakeGpu, with_gpu
from tests.backends.cuda.lanes import PATIENCE_S, Cohort, check, is_handed_on, rows, serve, start

BOTH = (("b", rows(2)), ("a", rows(1, 3)))
THREE = (*BOTH, ("c", rows(2, 5)))
Made = tuple[CudaBackend, FakeGpu, Cohort]


@pytest.fixture
def made() -> Iterator[Made]:
    backend, gpu = with_gpu()
    yield backend, gpu, Cohort()
    backend.close()
    assert gpu.problems == []
    assert is_handed_on(gpu)


def test_requests_of_a_plain_lane_are_replayed_one_by_one(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, fused=False, times=CAPTURE_AFTER)
    report = backend.graphs.report()
    assert (report.ready, report.replays) == (2, 0), "one for each tenant"
    serve(backend, cohort, *BOTH, fused=False, times=2)
    assert backend.graphs.report().replays == 4
    serve(backend, cohort, ("a", rows(1, 9)), fused=False)
    assert backend.graphs.report().replays == 5, "the same graph as when it comes alone"


def test_what_has_no_graph_runs_beside_what_has_one_in_the_order_of_the_requests(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, ("b", rows(2)), fused=False, times=CAPTURE_AFTER)
    serve(backend, cohort, ("a", rows(1)), ("b", rows(2, 4)), ("c", rows(3)), fused=False)
    assert backend.graphs.report().replays == 1


def test_a_second_request_of_a_tenant_does_not_overwrite_the_first(made: Made) -> None:
    backend, _, cohort = made
    twice = (("a", rows(1, 1)), ("a", rows(1, 2)))
    serve(backend, cohort, *twice, fused=False, times=CAPTURE_AFTER + 2)
    report = backend.graphs.report()
    assert report.ready == 1 and report.replays > 0
    first, second = start(backend, cohort, *twice, fused=False).result(PATIENCE_S).outcomes
    assert not torch.equal(first.value, second.value)


def test_its_graphs_are_free_again_when_the_lane_has_ended(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *THREE, fused=False, times=CAPTURE_AFTER + 1)
    assert not any(graph.busy for graph in backend.graphs._ready.values())
    cohort.leave("a")
    backend.settle()
    assert backend.graphs.report().ready == 2


def test_a_request_that_fails_fails_alone(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, fused=False, times=CAPTURE_AFTER)
    plain = captured.Graph.run

    def run(self: Any, calls: Any) -> Any:
        if self.tenants == ("a",):
            raise ValueError("its graph is broken")
        return plain(self, calls)

    monkeypatch.setattr(captured.Graph, "run", run)
    outcomes = start(backend, cohort, *THREE, fused=False).result(PATIENCE_S).outcomes
    assert [type(outcome.error) for outcome in outcomes] == [type(None), ValueError, type(None)]
    assert not any(graph.busy for graph in backend.graphs._ready.values())


def test_graphs_for_plain_lanes_push_out_no_others(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, cohort = made
    monkeypatch.setattr(Graphs, "_has_room", lambda self: False)
    serve(backend, cohort, *BOTH, fused=False, times=CAPTURE_AFTER + 1)
    assert backend.graphs.report().ready == 0 < MOST_GRAPHS
    serve(backend, cohort, ("a", rows(1)), fused=False, times=CAPTURE_AFTER)
    assert backend.graphs.report().ready == 1, "a tenant that comes alone has one"


def test_fused_lanes_are_not_taken_apart(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, ("a", rows(1)), ("b", rows(1)), fused=False, times=CAPTURE_AFTER)
    serve(backend, cohort, ("a", rows(1)), ("b", rows(1)), fused=True)
    assert backend.graphs.report().replays == 0


# -- graphs of whole mixes ----------------------------------------------------------------------------------------


class Whole(Bound):
    """Has multiplied a slab as it lies, for lanes of so many rows."""

    def __init__(self, *num_rows: int) -> None:
        self.whole_rows = set(num_rows)


def test_a_mix_gains_from_a_graph_of_its_own_if_all_have_equal_rows_and_a_product_needs_to_know() -> None:
    kernels = [object(), Whole(), Whole(6, 8)]
    assert gains_from_own_graph(kernels, [(1, 2), (2, 2), (3, 2)])
    assert not gains_from_own_graph(kernels, [(1, 2), (2, 1), (3, 3)])
    assert not gains_from_own_graph(kernels, [(1, 2), (2, 2)])
    assert not gains_from_own_graph(kernels[:2], [(1, 2), (2, 2), (3, 2)])


def test_such_a_mix_has_a_graph_of_its_own_and_others_share_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, gpu = with_gpu()
    cohort = AnyCohort("abcd")
    monkeypatch.setattr(
        "spacetime.backends.cuda.graphs.gains_from_own_graph", lambda kernels, parts: [n for _, n in parts] == [1, 1, 1]
    )
    whole = (("a", rows(1)), ("b", rows(1, 2)), ("c", rows(1, 3)))
    served: list[type] = []
    for kind in (anymix.AnyGraph, captured.Graph):
        monkeypatch.setattr(kind, "serve", lambda s, *a, _p=kind.serve: (served.append(type(s)), _p(s, *a))[1])
    serve(backend, cohort, *whole, times=CAPTURE_AFTER + 1)
    assert served == [captured.Graph] and backend.graphs.report().ready == 2
    serve(backend, cohort, ("d", rows(1)), ("a", rows(2)))
    assert served[1:] == [anymix.AnyGraph], "a mix that came never before"
    cohort.join("e")
    check(cohort, start(backend, cohort, *whole), *whole)
    backend.close()
    assert gpu.problems == []
