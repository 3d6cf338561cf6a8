"""Graphs of merged lanes: one for any mix of all members' tenants, by buckets of rows; and what stays eager."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.backends.cuda.anymerged import MergedGraph, MergedMix, MergedRecipe, capture_merged
from spacetime.backends.cuda.backend import CudaBackend
from spacetime.backends.cuda.capturing import GraphError
from spacetime.backends.cuda.graphs import CAPTURE_AFTER
from spacetime.backends.cuda.green import Grant
from spacetime.device import Partition
from spacetime.kernels.together import LateSpans
from spacetime.plan import Lane
from tests.backends.cuda.any_cohort import TOO_LARGE
from tests.backends.cuda.any_merged import AnyMerged
from tests.backends.cuda.fake_gpu import FakeGpu, with_gpu
from tests.backends.cuda.lanes import PATIENCE_S, call, check, is_handed_on, lane_of, rows, serve, start
from tests.runtime.models import assert_equal, assert_three_parts, plain

WHOLE = Partition(1, 132, 132)
BOTH = (("b", rows(2)), ("e", rows(1, 3)), ("a", rows(1, 5)))
Made = tuple[CudaBackend, FakeGpu, AnyMerged]


@pytest.fixture
def made() -> Iterator[Made]:
    backend, gpu = with_gpu()
    yield backend, gpu, AnyMerged()
    backend.close()
    assert gpu.problems == []
    assert is_handed_on(gpu)


class OneGraph:
    """A graph without a backend, for up to 16 rows of the first member and 8 of the second."""

    def __init__(self) -> None:
        self.merged, self.gpu = AnyMerged(), FakeGpu()
        self.stream = self.gpu.new_stream()
        mix = self._mix(("a", rows(16)), ("d", rows(8)))
        recipe = MergedRecipe.of(mix, [call(rows(16)), call(rows(8))])
        grant = Grant(self.stream.cuda_stream, 1, 132)
        self.graph: MergedGraph = capture_merged(self.gpu, grant, self.merged.executable, recipe)

    def _mix(self, *requests: tuple[str, torch.Tensor]) -> MergedMix:
        mix = MergedMix.of(self.merged.executable, lane_of(requests, WHOLE), [call(x) for _, x in requests])
        assert mix is not None
        return mix

    def serve(self, *requests: tuple[str, torch.Tensor]) -> Any:
        with self.gpu.under(self.stream):
            assert self.graph.is_usable()
            return self.graph.serve(self._mix(*requests), [call(x) for _, x in requests])

    def check(self, *requests: tuple[str, torch.Tensor]) -> None:
        for (name, x), outcome in zip(requests, self.serve(*requests), strict=True):
            assert outcome.error is None, outcome.error
            assert_equal(outcome.value, plain(self.merged.modules[name], x))


def part(names: str, most: int) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(names), st.integers(1, 4)), min_size=1, max_size=most)


@given(st.lists(st.tuples(part("abc", 4), part("de", 2), st.randoms(use_true_random=False)), max_size=2))
@settings(max_examples=12, deadline=None)
def test_a_graph_answers_like_the_modules_whatever_the_mix(mixes: list[Any]) -> None:
    one = OneGraph()
    for first, second, random in mixes:
        mix = [*first, *second]
        random.shuffle(mix)
        one.check(*((name, rows(count, seed)) for seed, (name, count) in enumerate(mix)))
    assert [cohort.ran for cohort in one.merged.cohorts] == [[16, 16], [8, 8]], "once eagerly, once for the capture"
    assert one.gpu.problems == []


def test_a_row_that_asks_for_what_does_not_exist_fails_its_request_alone() -> None:
    one = OneGraph()
    requests = [("c", rows(2)), ("d", rows(1)), ("a", rows(1)), ("e", rows(3))]
    for bad in (None, 0, 3, 1, None):
        inputs = [(name, x.clone()) for name, x in requests]
        if bad is not None:
            inputs[bad][1][-1, 0] = 10 * TOO_LARGE
        errors = {index: o.error for index, o in enumerate(one.serve(*inputs)) if o.error is not None}
        assert list(errors) == [bad] * (bad is not None)
        if bad is not None:
            assert_three_parts(errors[bad], "outside the table of its embedding", "rows", "check the inputs")
    assert one.gpu.problems == []


def test_results_are_memory_of_their_own() -> None:
    one = OneGraph()
    outcomes = [*one.serve(*BOTH), *one.serve(("c", rows(4)), ("d", rows(2)))]
    memories = {outcome.value.untyped_storage().data_ptr() for outcome in outcomes}
    static = {out.untyped_storage().data_ptr() for share in one.graph.shares for out in share.outputs}
    assert len(memories) == 5 and memories.isdisjoint(static)
    assert all(o.value.untyped_storage().nbytes() == o.value.nbytes for o in outcomes), "nobody else's rows in it"


def test_a_graph_whose_tables_are_not_written_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake has run what it captured; so what is not written must be wrong by then."""
    monkeypatch.setattr(LateSpans, "write", lambda self: [table.zero_() for table, _ in self._unwritten])
    with pytest.raises(GraphError, match="answers otherwise"):
        OneGraph()


def test_it_keeps_what_it_reads_and_gives_it_back() -> None:
    one = OneGraph()
    kept = {tensor.untyped_storage().data_ptr() for tensor in one.graph.reads}
    for cohort in one.merged.cohorts:
        assert {layer.stack.data_ptr() for layer in cohort.executable.cohort.layers} <= kept
        assert cohort.table.current().data_ptr() in kept
    assert one.graph.tenants == ("a", "b", "c", "d", "e") and one.graph.num_bytes > 0
    one.graph.drop()
    assert (one.graph.reads, one.graph.shares, one.graph.words) == ([], (), None)


# -- in a backend ------------------------------------------------------------------------------------------------------


def test_lanes_of_other_mixes_count_together_and_replay_one_graph(made: Made) -> None:
    backend, gpu, merged = made
    told: list[Lane] = []
    merged.executable.watch = lambda executable, lane: told.append(lane)
    mixes = [BOTH, (("d", rows(1)), ("c", rows(3))), (("a", rows(1)), ("b", rows(1)), ("c", rows(1)), ("e", rows(1)))]
    assert len(mixes) == CAPTURE_AFTER
    for mix in mixes:
        serve(backend, merged, *mix)
    report = backend.graphs.report()
    assert (report.ready, report.captured, report.replays, report.refused, report.by_mix) == (1, 1, 0, (), ())
    before = _made_of(gpu)
    for mix in (*mixes, (("c", rows(2, 7)), ("d", rows(1)), ("b", rows(1)))):
        serve(backend, merged, *mix)
    assert backend.graphs.report().replays == 4 and len(told) == CAPTURE_AFTER + 4
    assert _made_of(gpu) == before, "a replay creates nothing"
    assert set(backend.graph_bytes()) == set("abcde")
    serve(backend, merged, ("a", rows(3)), ("d", rows(1)), ("e", rows(1)))
    assert backend.graphs.report().replays == 4, "two rows of the second member are another bucket's"


def _made_of(gpu: FakeGpu) -> list[tuple[str, str]]:
    """But for buffers of inputs from the host, of which every number of requests needs its own."""
    return [each for each in gpu.created if each[0] != "pinned"]


def test_a_lane_of_one_member_is_no_merged_work(made: Made) -> None:
    backend, _, merged = made
    serve(backend, merged, ("a", rows(1)), ("b", rows(1)), times=CAPTURE_AFTER + 1)
    serve(backend, merged, *BOTH, times=CAPTURE_AFTER + 1, fused=False)
    report = backend.graphs.report()
    assert (report.ready, report.captured, report.eager, report.refused) == (0, 0, 0, ())


def test_who_joins_is_served_and_who_outgrows_the_slabs_is_captured_again(made: Made) -> None:
    backend, _, merged = made
    first, _ = merged.cohorts
    serve(backend, merged, *BOTH, times=CAPTURE_AFTER)
    first.join("f")
    first.leave("a")
    first.join("g", seed=77)  # into the slot of a
    mix = (("g", rows(2)), ("e", rows(1)), ("f", rows(1)))
    serve(backend, merged, *mix)
    report = backend.graphs.report()
    assert (report.captured, report.dropped, report.replays) == (1, 0, 1)
    for name in "hijklmno":
        first.join(name)
    serve(backend, merged, *mix, times=CAPTURE_AFTER + 1)
    report = backend.graphs.report()
    assert (report.captured, report.dropped, report.replays, report.ready) == (2, 1, 2, 1)


def test_a_tenant_that_was_removed_gets_its_error_and_the_others_their_results(made: Made) -> None:
    backend, _, merged = made
    serve(backend, merged, *BOTH, times=CAPTURE_AFTER)
    merged.cohorts[0].leave("b")
    outcomes = start(backend, merged, *BOTH).result(PATIENCE_S).outcomes
    assert "'b' was removed" in str(outcomes[0].error)
    for (name, x), outcome in zip(BOTH[1:], outcomes[1:], strict=True):
        assert_equal(outcome.value, plain(merged.modules[name], x))


def test_what_must_know_its_rows_stays_eager_and_says_why(made: Made) -> None:
    backend, _, merged = made
    merged.cohorts[1].program.needs_mix = True
    serve(backend, merged, *BOTH, times=CAPTURE_AFTER + 2)
    report = backend.graphs.report()
    assert (report.ready, report.captured, report.refused) == (0, 0, ())
    (reason,) = report.by_mix
    assert reason.startswith("merged ") and "no kernel for any mix of tenants: conv9d" in reason


def test_an_execution_that_is_gone_takes_its_graphs_along(made: Made) -> None:
    backend, _, merged = made
    serve(backend, merged, *BOTH, times=CAPTURE_AFTER)
    assert backend.graphs.report().ready == 1
    merged.executable = None
    gc.collect()
    backend.settle()
    report = backend.graphs.report()
    assert (report.ready, report.dropped, report.num_bytes) == (0, 1, 0)


def test_a_tenant_may_leave_while_its_lanes_are_being_captured(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, merged = made
    entered, go = threading.Event(), threading.Event()
    capture = FakeGpu.capture

    def waiting(self: FakeGpu, stream: Any, function: Any) -> Any:
        entered.set()
        assert go.wait(PATIENCE_S)
        return capture(self, stream, function)

    monkeypatch.setattr(FakeGpu, "capture", waiting)
    for _ in range(CAPTURE_AFTER):
        check(merged, start(backend, merged, *BOTH), *BOTH)
    assert entered.wait(PATIENCE_S)
    merged.cohorts[0].leave("c")
    go.set()
    backend.settle()
    assert backend.graphs.report().refused == ()
    serve(backend, merged, *BOTH, times=CAPTURE_AFTER + 1)
    assert backend.graphs.report().replays >= 1


def test_prepare_captures_the_buckets_for_another_size(made: Made) -> None:
    backend, _, merged = made
    serve(backend, merged, *BOTH, times=CAPTURE_AFTER)
    ready = threading.Event()
    backend.prepare("merged", merged.executable, 64, ready.set)
    assert ready.wait(PATIENCE_S)
    serve(backend, merged, ("c", rows(3)), ("d", rows(1)), on=backend.device.partition(64))
    assert (backend.graphs.report().ready, backend.graphs.report().replays) == (2, 1)
