"""One graph for every mix of a cohort: buckets, owners, joining and leaving, faults; and when there is one per mix."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.backends.cuda.anymix import AnyGraph, AnyRecipe, bucket_of, capture_any
from spacetime.backends.cuda.backend import CudaBackend
from spacetime.backends.cuda.captured import Mix
from spacetime.backends.cuda.capturing import GraphError
from spacetime.backends.cuda.graphs import CAPTURE_AFTER
from spacetime.backends.cuda.green import Grant
from spacetime.device import Partition
from tests.backends.cuda.any_cohort import TOO_LARGE, AnyCohort
from tests.backends.cuda.fake_gpu import FakeGpu, FakeStream, with_gpu
from tests.backends.cuda.lanes import PATIENCE_S, call, check, is_handed_on, lane_of, rows, serve, start
from tests.runtime.models import assert_equal, assert_three_parts, plain

WHOLE = Partition(1, 132, 132)
BOTH = (("b", rows(2)), ("a", rows(1, 3)))
Made = tuple[CudaBackend, FakeGpu, AnyCohort]


@pytest.fixture
def made() -> Iterator[Made]:
    backend, gpu = with_gpu()
    yield backend, gpu, AnyCohort()
    backend.close()
    assert gpu.problems == []
    assert is_handed_on(gpu)


class OneGraph:
    """A graph without a backend."""

    def __init__(self, bucket: int, names: str = "abcd") -> None:
        self.cohort, self.gpu = AnyCohort(names), FakeGpu()
        self.stream: FakeStream = self.gpu.new_stream()
        recipe = AnyRecipe.of(self._mix((names[0], rows(1))), [call(rows(1))], bucket)
        grant = Grant(self.stream.cuda_stream, 1, 132)
        self.graph: AnyGraph = capture_any(self.gpu, grant, self.cohort.executable, recipe)

    def _mix(self, *requests: tuple[str, torch.Tensor]) -> Mix:
        return Mix.of(self.cohort.executable, lane_of(requests, WHOLE), [call(x) for _, x in requests])

    def serve(self, *requests: tuple[str, torch.Tensor]) -> Any:
        with self.gpu.under(self.stream):
            assert self.graph.is_usable()
            outcomes = self.graph.serve(self._mix(*requests), [call(x) for _, x in requests])
        return outcomes

    def check(self, *requests: tuple[str, torch.Tensor]) -> None:
        for (name, x), outcome in zip(requests, self.serve(*requests), strict=True):
            assert outcome.error is None, outcome.error
            assert_equal(outcome.value, plain(self.cohort.modules[name], x))


def test_buckets_hold_the_rows_and_are_at_most_twice_as_large() -> None:
    for count in range(1, 200):
        bucket = bucket_of(count)
        assert count <= bucket < 2 * count and bucket & (bucket - 1) == 0


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 4)), min_size=1, max_size=6), max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_graph_answers_like_the_modules_whatever_the_mix(mixes: list[list[tuple[str, int]]]) -> None:
    one = OneGraph(bucket=24)
    for mix in mixes:
        one.check(*((name, rows(count, seed)) for seed, (name, count) in enumerate(mix)))
    assert one.cohort.ran == [24, 24], "once eagerly, once for the capture"
    assert one.gpu.problems == []


def test_rows_of_earlier_lanes_show_nowhere() -> None:
    one = OneGraph(bucket=8)
    poison = rows(8) * float("nan")
    with one.gpu.under(one.stream):
        one.graph.serve(one._mix(("a", poison)), [call(poison)])
    one.check(("c", rows(2)), ("b", rows(1)))
    assert one.graph.inputs[0][3:].isnan().all(), "they are still there"


def test_results_are_memory_of_their_own() -> None:
    one = OneGraph(bucket=4)
    outcomes = [*one.serve(*BOTH), *one.serve(("c", rows(4)))]
    memories = {outcome.value.untyped_storage().data_ptr() for outcome in outcomes}
    assert len(memories) == 3 and memories.isdisjoint(t.untyped_storage().data_ptr() for t in one.graph.outputs)
    assert all(o.value.untyped_storage().nbytes() == o.value.nbytes for o in outcomes), "nobody else's rows in it"


def test_a_row_that_asks_for_what_does_not_exist_fails_its_request_alone() -> None:
    one = OneGraph(bucket=8)
    requests = [("c", rows(2)), ("a", rows(1)), ("c", rows(1)), ("b", rows(3))]
    for bad in (None, 0, 3, 1, None):
        inputs = [(name, x.clone()) for name, x in requests]
        if bad is not None:
            inputs[bad][1][-1, 0] = 10 * TOO_LARGE
        errors = {index: o.error for index, o in enumerate(one.serve(*inputs)) if o.error is not None}
        assert list(errors) == [bad] * (bad is not None)
        if bad is not None:
            assert_three_parts(errors[bad], "outside the table of its embedding", "rows", "check the inputs")
    assert one.gpu.problems == []


def test_it_keeps_what_it_reads_and_gives_it_back() -> None:
    one = OneGraph(bucket=4)
    stacks = {layer.stack.data_ptr() for layer in one.cohort.executable.cohort.layers}
    table = one.cohort.table.current()
    assert {table.data_ptr(), *stacks} <= {tensor.untyped_storage().data_ptr() for tensor in one.graph.reads}
    assert one.graph.tenants == ("a", "b", "c", "d") and one.graph.num_bytes > 0
    one.graph.drop()
    assert one.graph.reads == [] and one.graph.inputs == () and one.graph.words is None


def test_a_graph_that_answers_otherwise_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacetime.backends.cuda.anymix.fill", lambda words, slots, counts: words.zero_())
    with pytest.raises(GraphError, match="answers otherwise"):
        OneGraph(bucket=4)


# -- in a backend ------------------------------------------------------------------------------------------------------


def test_lanes_of_other_mixes_count_together_and_replay_one_graph(made: Made) -> None:
    backend, gpu, cohort = made
    mixes = [BOTH, (("c", rows(3)), ("a", rows(1))), (("a", rows(1)), ("b", rows(1)), ("c", rows(1)))]
    assert len(mixes) == CAPTURE_AFTER
    for mix in mixes:
        serve(backend, cohort, *mix)
    report = backend.graphs.report()
    assert (report.ready, report.captured, report.replays, report.refused) == (1, 1, 0, ())
    before = list(gpu.created)
    for mix in (*mixes, (("c", rows(2, 7)), ("b", rows(1)), ("c", rows(1)))):
        serve(backend, cohort, *mix)
    assert backend.graphs.report().replays == 4 and backend.graphs.report().by_mix == ()
    assert gpu.created == before, "a replay creates nothing"
    assert set(backend.graph_bytes()) == {"a", "b", "c"}
    serve(backend, cohort, ("a", rows(4)), ("b", rows(1)))
    assert backend.graphs.report().replays == 4, "five rows are another bucket's"


def test_a_tenant_that_comes_alone_has_its_own_graph_and_until_then_that_of_all(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    serve(backend, cohort, ("c", rows(3)), times=CAPTURE_AFTER)
    report = backend.graphs.report()
    assert (report.ready, report.replays) == (2, CAPTURE_AFTER)
    ran = len(cohort.ran)
    serve(backend, cohort, ("c", rows(3)))
    assert backend.graphs.report().replays == CAPTURE_AFTER + 1 and len(cohort.ran) == ran


def test_graphs_that_could_be_done_without_push_out_nobody() -> None:
    backend, gpu = with_gpu()
    cohort = AnyCohort()
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    size = backend.graphs.report().num_bytes
    backend.close()
    backend, gpu = with_gpu(graph_bytes=size + size // 2)
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    serve(backend, cohort, ("c", rows(3)), times=2 * CAPTURE_AFTER)
    report = backend.graphs.report()
    assert (report.captured, report.dropped, report.replays) == (1, 0, 2 * CAPTURE_AFTER)
    backend.close()
    assert gpu.problems == []


def test_the_only_tenant_of_a_cohort_needs_no_graph_for_others(made: Made) -> None:
    backend, _, _ = made
    cohort = AnyCohort("a")
    serve(backend, cohort, ("a", rows(2)), times=CAPTURE_AFTER + 1)
    report = backend.graphs.report()
    assert (report.ready, report.replays, cohort.ran) == (1, 1, [])


def test_who_joins_is_served_by_the_graph_that_is_there(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    cohort.join("d")
    serve(backend, cohort, ("d", rows(2)), ("a", rows(1)))
    cohort.leave("a")
    cohort.join("e", seed=77)  # into the slot of a
    serve(backend, cohort, ("d", rows(1)), ("e", rows(2)))
    report = backend.graphs.report()
    assert (report.captured, report.dropped, report.replays) == (1, 0, 2)


def test_a_cohort_that_has_grown_out_of_its_slabs_is_captured_again(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    for name in "defghijk":
        cohort.join(name)
    mix = (("k", rows(2)), ("a", rows(1)))
    serve(backend, cohort, *mix, times=CAPTURE_AFTER)
    report = backend.graphs.report()
    assert (report.captured, report.dropped, report.replays, report.ready) == (2, 1, 0, 1)
    serve(backend, cohort, *mix)
    assert backend.graphs.report().replays == 1


def test_a_table_of_entries_that_was_replaced_is_noticed() -> None:
    one = OneGraph(bucket=4)
    one.check(*BOTH)
    tables = one.cohort.table.tables()
    one.cohort.table._tables.append(replace(tables, entries=tables.entries.clone()))
    assert one.graph.is_usable(), "nobody has joined"
    one.cohort.leave("d")
    assert not one.graph.is_usable() and one.graph.is_outgrown


def test_a_program_that_must_know_its_rows_has_a_graph_for_each_mix(made: Made) -> None:
    backend, _, _ = made
    cohort = AnyCohort(needs_mix=True)
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    report = backend.graphs.report()
    assert (report.ready, report.refused, cohort.ran) == (0, (), [4])
    assert len(report.by_mix) == 1 and "no kernel for any mix of tenants: conv9d" in report.by_mix[0]
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER + 1)
    serve(backend, cohort, ("b", rows(1)), ("a", rows(2)))
    report = backend.graphs.report()
    assert (report.ready, report.replays, cohort.ran) == (1, 1, [4]), "another mix of three rows is another graph's"


def test_a_cohort_that_is_gone_takes_its_graphs_along() -> None:
    backend, gpu = with_gpu()
    cohort = AnyCohort()
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    assert backend.graphs.report().ready == 1
    del cohort
    gc.collect()
    backend.settle()
    report = backend.graphs.report()
    assert (report.ready, report.dropped, report.num_bytes) == (0, 1, 0)
    backend.close()
    assert gpu.problems == []


def test_a_tenant_may_leave_while_all_are_being_captured(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the capture then says nothing; the next lanes have it made again."""
    backend, _, cohort = made
    entered, go = threading.Event(), threading.Event()
    capture = FakeGpu.capture

    def waiting(self: FakeGpu, stream: Any, function: Any) -> Any:
        entered.set()
        assert go.wait(PATIENCE_S)
        return capture(self, stream, function)

    monkeypatch.setattr(FakeGpu, "capture", waiting)
    for _ in range(CAPTURE_AFTER):
        check(cohort, start(backend, cohort, *BOTH), *BOTH)
    assert entered.wait(PATIENCE_S)
    cohort.leave("c")
    go.set()
    backend.settle()
    assert backend.graphs.report().refused == ()
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER + 1)
    assert backend.graphs.report().replays >= 1


def test_two_lanes_at_once_do_not_share_buffers(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    entered, go = threading.Event(), threading.Event()
    serving = AnyGraph.serve

    def slow(self: AnyGraph, mix: Any, calls: Any) -> Any:
        entered.set()
        assert go.wait(PATIENCE_S)
        return serving(self, mix, calls)

    monkeypatch.setattr(AnyGraph, "serve", slow)
    first = start(backend, cohort, *BOTH)
    assert entered.wait(PATIENCE_S)
    other = (("c", rows(3)), ("a", rows(1)))
    check(cohort, start(backend, cohort, *other), *other)
    go.set()
    check(cohort, first, *BOTH)
    report = backend.graphs.report()
    assert (report.replays, report.eager) == (1, CAPTURE_AFTER + 1)


def test_prepare_captures_the_buckets_for_another_size(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    ready = threading.Event()
    backend.prepare("cohort", cohort.executable, 64, ready.set)
    assert ready.wait(PATIENCE_S)
    serve(backend, cohort, ("c", rows(3)), ("b", rows(1)), on=backend.device.partition(64))
    assert (backend.graphs.report().ready, backend.graphs.report().replays) == (2, 1)


def test_lanes_whose_partitions_keep_changing_meet_in_a_block_of_their_own(made: Made) -> None:
    backend, gpu, cohort = made
    sizes = (64, 72, 80, 88)  # 8 to 11 atoms from the first: 8 of them are a block
    for units in sizes[:CAPTURE_AFTER]:
        serve(backend, cohort, *BOTH, on=backend.device.partition(units))
    report = backend.graphs.report()
    assert (report.ready, report.captured) == (1, 1)
    gpu.ran.clear()
    for units in sizes:
        serve(backend, cohort, *BOTH, on=backend.device.partition(units))
    assert backend.graphs.report().replays == len(sizes)
    assert {(kind.planned_units, kind.units) for kind in backend.granted() if kind.planned_units == 88} == {(88, 64)}
    assert gpu.driver is not None
    inside = {sm for stream in gpu.streams_used() - {7} for sm in gpu.driver.sms_of(stream)}
    assert inside <= set(range(88))
