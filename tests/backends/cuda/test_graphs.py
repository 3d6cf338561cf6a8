"""Which lanes become graphs, when they are found, what makes them go, and what of it happens off the hot path."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from spacetime.backends.cuda import captured
from spacetime.backends.cuda.backend import CudaBackend
from spacetime.backends.cuda.graphs import CAPTURE_AFTER, MOST_DISTURBED
from spacetime.backends.executables import CohortExecutable
from tests.backends.cuda.fake_gpu import FakeGpu, with_gpu
from tests.backends.cuda.lanes import PATIENCE_S, Cohort, check, is_handed_on, rows, serve, start

BOTH = (("b", rows(2)), ("a", rows(1, 3)))


@pytest.fixture
def made() -> Iterator[tuple[CudaBackend, FakeGpu, Cohort]]:
    backend, gpu = with_gpu()
    yield backend, gpu, Cohort()
    backend.close()
    assert gpu.problems == []
    assert is_handed_on(gpu)


Made = tuple[CudaBackend, FakeGpu, Cohort]


def test_a_mix_that_comes_again_is_captured_in_the_background_and_replayed(made: Made) -> None:
    backend, gpu, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    report = backend.graphs.report()
    assert (report.ready, report.captured, report.replays, report.eager) == (1, 1, 0, CAPTURE_AFTER)
    assert {thread for what, thread in gpu.created if what == "graph"} == {"spacetime-background"}
    before = list(gpu.created)
    serve(backend, cohort, *BOTH, times=2)
    serve(backend, cohort, *BOTH[::-1])  # the order of the requests does not matter
    serve(backend, cohort, ("b", rows(2, 9)), ("a", rows(1, 5)))  # nor do their values
    report = backend.graphs.report()
    assert (report.replays, report.eager) == (4, CAPTURE_AFTER)
    assert gpu.created == before, "a replay creates nothing"


def test_a_graph_is_for_its_rows_its_tenants_and_its_atoms(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    serve(backend, cohort, ("b", rows(1)), ("a", rows(2)))
    serve(backend, cohort, ("b", rows(2)), ("c", rows(1)))
    serve(backend, cohort, *BOTH, on=backend.device.partition(64))
    report = backend.graphs.report()
    assert (report.ready, report.replays) == (1, 0)


def test_graphs_run_on_the_partition_that_they_were_captured_for(made: Made) -> None:
    backend, gpu, cohort = made
    half = backend.device.partition(64)
    serve(backend, cohort, *BOTH, on=half, times=CAPTURE_AFTER)
    assert gpu.driver is not None
    inside = {sm for stream in gpu.streams_used() - {7} for sm in gpu.driver.sms_of(stream)}
    assert inside == set(range(64))


def test_a_plain_lane_of_one_request_is_replayed_too(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, ("a", rows(2)), fused=False, times=CAPTURE_AFTER + 1)
    assert backend.graphs.report().replays == 1


def test_results_of_a_replay_are_not_overwritten_by_the_next(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    first = start(backend, cohort, *BOTH).result(PATIENCE_S)
    kept = [outcome.value.clone() for outcome in first.outcomes]
    other = (("b", rows(2, 7)), ("a", rows(1, 8)))
    second = start(backend, cohort, *other).result(PATIENCE_S)
    assert all(torch.equal(outcome.value, value) for outcome, value in zip(first.outcomes, kept, strict=True))
    memories = [o.value.untyped_storage().data_ptr() for o in (*first.outcomes, *second.outcomes)]
    assert len(set(memories)) == 4, "of its own for each request"


def test_a_second_lane_of_the_mix_at_the_same_time_runs_eagerly(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    entered, go = threading.Event(), threading.Event()
    replay = captured.Graph.run

    def slow(self: captured.Graph, calls: Any) -> Any:
        entered.set()
        assert go.wait(PATIENCE_S)
        return replay(self, calls)

    monkeypatch.setattr(captured.Graph, "run", slow)
    first = start(backend, cohort, *BOTH)
    assert entered.wait(PATIENCE_S)
    check(cohort, start(backend, cohort, *BOTH), *BOTH)
    go.set()
    check(cohort, first, *BOTH)
    report = backend.graphs.report()
    assert (report.replays, report.eager) == (1, CAPTURE_AFTER + 1)


def test_a_tenant_that_leaves_takes_its_graphs_along(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    serve(backend, cohort, ("c", rows(2)), times=CAPTURE_AFTER)
    assert backend.graphs.report().ready == 2
    assert backend.graph_bytes().keys() == {"a", "b", "c"}
    cohort.leave("a")
    gc.collect()
    backend.settle()
    report = backend.graphs.report()
    assert (report.ready, report.dropped) == (1, 1)
    assert backend.graph_bytes().keys() == {"c"}
    cohort.join("a", seed=99)  # the same name and slot, other weights
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER + 1)


def blocked_capture(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """(a capture has begun, it may go on)"""
    entered, go = threading.Event(), threading.Event()
    capture = FakeGpu.capture

    def waiting(self: FakeGpu, stream: Any, function: Any) -> Any:
        entered.set()
        assert go.wait(PATIENCE_S)
        return capture(self, stream, function)

    monkeypatch.setattr(FakeGpu, "capture", waiting)
    return entered, go


@pytest.mark.parametrize("comes_again", [False, True])
def test_a_tenant_may_leave_while_it_is_being_captured(
    made: Made, monkeypatch: pytest.MonkeyPatch, comes_again: bool
) -> None:
    """Whatever becomes of the capture, nobody finds it, and the cohort's other mixes are captured as before."""
    backend, _, cohort = made
    entered, go = blocked_capture(monkeypatch)
    for _ in range(CAPTURE_AFTER):
        check(cohort, start(backend, cohort, *BOTH), *BOTH)
    assert entered.wait(PATIENCE_S)
    cohort.leave("a")
    if comes_again:
        cohort.join("a", seed=99)
    go.set()
    backend.settle()
    report = backend.graphs.report()
    assert (report.ready, report.captured, report.refused) == (0, 0, ())
    serve(backend, cohort, ("c", rows(2)), times=CAPTURE_AFTER + 1)
    assert backend.graphs.report().replays == 1
    if comes_again:
        serve(backend, cohort, *BOTH, times=CAPTURE_AFTER + 1)
        assert backend.graphs.report().replays == 2


def test_lanes_go_on_while_a_graph_is_made(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, cohort = made
    entered, go = blocked_capture(monkeypatch)
    for _ in range(CAPTURE_AFTER):
        check(cohort, start(backend, cohort, *BOTH), *BOTH)
    assert entered.wait(PATIENCE_S)
    check(cohort, start(backend, cohort, *BOTH), *BOTH)
    assert backend.graphs.report().captured == 0
    go.set()
    serve(backend, cohort, *BOTH)


def test_a_cohort_that_grows_retires_graphs_that_keep_its_old_memory(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    for name in "defghijk":
        cohort.join(name)
    serve(backend, cohort, *BOTH)
    assert backend.graphs.report().replays == 1, "it is still right ..."
    serve(backend, cohort, ("d", rows(2)), times=CAPTURE_AFTER)
    report = backend.graphs.report()
    assert (report.ready, report.dropped) == (1, 1), "... and goes at the next occasion"


def test_the_least_recently_used_go_when_the_budget_is_exceeded() -> None:
    backend, gpu = with_gpu()
    cohort = Cohort()
    serve(backend, cohort, ("a", rows(2)), times=CAPTURE_AFTER)
    size = backend.graphs.report().num_bytes
    backend.close()
    backend, gpu = with_gpu(graph_bytes=2 * size)
    for name in "abac":
        serve(backend, cohort, (name, rows(2)), times=CAPTURE_AFTER)
    report = backend.graphs.report()
    assert (report.ready, report.captured, report.dropped) == (2, 3, 1)
    assert backend.graph_bytes().keys() == {"a", "c"}, "a was used after b"
    backend.close()
    assert gpu.problems == []


def test_a_graph_that_is_larger_than_the_budget_is_not_tried_again() -> None:
    backend, gpu = with_gpu(graph_bytes=10)
    cohort = Cohort()
    serve(backend, cohort, *BOTH, times=3 * CAPTURE_AFTER)
    report = backend.graphs.report()
    assert (report.ready, report.captured) == (0, 0)
    assert len(report.refused) == 1 and "all graphs together may have 10" in report.refused[0]
    assert [what for what, _ in gpu.created].count("graph") == 1
    backend.close()
    assert gpu.problems == [] and is_handed_on(gpu)


def test_memory_that_runs_out_refuses_one_mix_only(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, cohort = made

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(FakeGpu, "capture", full)
        serve(backend, cohort, *BOTH, times=CAPTURE_AFTER + 1)
    assert "OutOfMemoryError" in backend.graphs.report().refused[0]
    serve(backend, cohort, ("a", rows(1)), times=CAPTURE_AFTER + 1)
    assert backend.graphs.report().replays == 1


def test_what_cannot_be_captured_says_why_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads a value back spoils a capture; its lanes stay eager."""
    backend, _, cohort = made
    batch = CohortExecutable._batch

    def looking(self: CohortExecutable, slots: Any, calls: Any) -> Any:
        assert float(calls[0].tensors[0].sum()) < 1e6
        return batch(self, slots, calls)

    monkeypatch.setattr(CohortExecutable, "_batch", looking)
    serve(backend, cohort, *BOTH, times=2 * CAPTURE_AFTER)
    serve(backend, cohort, ("a", rows(1)), times=2 * CAPTURE_AFTER)
    report = backend.graphs.report()
    assert (report.ready, report.replays) == (0, 0)
    assert len(report.refused) == 1 and "not permitted when stream is capturing" in report.refused[0]


BROKEN = "CUDA error: operation failed due to a previous error during capture\nSearch for `cudaErrorStream...' in"


@pytest.mark.parametrize("where", ["at its end", "in the lane"])
def test_a_capture_that_somebody_else_breaks_is_tried_again(
    made: Made, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """As when another thread waits for the whole device meanwhile."""
    backend, _, cohort = made

    def broken(*_: Any) -> Any:
        raise RuntimeError(BROKEN)

    def breaking(self: FakeGpu, stream: Any, function: Any) -> Any:
        monkeypatch.setattr(CohortExecutable, "_batch", broken)
        try:
            function()
        finally:
            monkeypatch.setattr(CohortExecutable, "_batch", batch)

    batch = CohortExecutable._batch
    with monkeypatch.context() as patch:
        patch.setattr(FakeGpu, "capture", broken if where == "at its end" else breaking)
        serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    assert (backend.graphs.report().ready, backend.graphs.report().refused) == (0, ())
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER + 1)
    assert backend.graphs.report().replays == 1


def test_a_capture_that_is_broken_every_time_is_given_up_with_the_reason(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _, cohort = made
    tried: list[int] = []

    def broken(*_: Any) -> Any:
        tried.append(1)
        raise RuntimeError(BROKEN)

    with monkeypatch.context() as patch:
        patch.setattr(FakeGpu, "capture", broken)
        serve(backend, cohort, *BOTH, times=(MOST_DISTURBED + 2) * CAPTURE_AFTER)
    assert len(tried) == MOST_DISTURBED
    (reason,) = backend.graphs.report().refused
    assert "broken from outside" in reason and "previous error during capture" in reason
    serve(backend, cohort, ("c", rows(2)), times=CAPTURE_AFTER + 1)
    assert backend.graphs.report().replays == 1, "other lanes are captured"


def test_a_graph_that_answers_otherwise_than_its_lane_never_serves(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, cohort = made
    replay = captured.Graph.run

    def wrong(self: captured.Graph, calls: Any) -> Any:
        outcomes = replay(self, calls)
        outcomes[0].value.add_(1)
        return outcomes

    monkeypatch.setattr(captured.Graph, "run", wrong)
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER + 1)
    report = backend.graphs.report()
    assert report.replays == 0 and "answers otherwise" in report.refused[0]


def test_a_partition_that_is_not_ready_is_captured_for_later(made: Made) -> None:
    backend, _, cohort = made
    odd = backend.device.partition(24, 0b1010_0001)  # on no menu
    serve(backend, cohort, *BOTH, on=odd, times=2 * CAPTURE_AFTER + 1)
    report = backend.graphs.report()
    assert report.ready == 1 and report.replays >= 1
    (granted,) = [kind for kind in backend.granted() if kind.units == 24]
    assert granted.lanes >= CAPTURE_AFTER


def test_prepare_captures_for_another_size_what_is_captured_already(made: Made) -> None:
    backend, _, cohort = made
    serve(backend, cohort, *BOTH, times=CAPTURE_AFTER)
    ready = threading.Event()
    backend.prepare("cohort", cohort.executable, 64, ready.set)
    assert ready.wait(PATIENCE_S)
    assert backend.graphs.report().ready == 2
    serve(backend, cohort, *BOTH, on=backend.device.partition(64))
    assert backend.graphs.report().replays == 1


def test_closing_gives_everything_back_with_a_capture_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, gpu = with_gpu()
    cohort = Cohort()
    entered, go = blocked_capture(monkeypatch)
    for _ in range(CAPTURE_AFTER):
        check(cohort, start(backend, cohort, *BOTH), *BOTH)
    assert entered.wait(PATIENCE_S)
    closer = threading.Thread(target=backend.close)
    closer.start()
    go.set()
    closer.join(PATIENCE_S)
    assert not closer.is_alive() and gpu.problems == []
    assert is_handed_on(gpu)
