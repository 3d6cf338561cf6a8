"""The loop on real threads: nothing is lost, nothing hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

import pytest

from spacetime.backends.null import NullBackend
from spacetime.errors import ClosedError, RejectedError, SpacetimeError
from spacetime.plan import Lane, Plan, Snapshot
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.driver import Driver, Result
from spacetime.scheduler.loop import Scheduler
from spacetime.scheduler.protocols import CostModel, Executable, LaneResult, Policy
from spacetime.scheduler.registry import get_policy
from spacetime.scheduler.request import TenantSpec, make_request
from tests.scheduler.harness import Echo

SPEC = TenantSpec("a", "cohort")
PATIENCE_S = 30  # a hang fails the test instead of the suite


def make_loop(backend: NullBackend, policy: str | Policy = "space_time") -> Driver:
    costs = OnlineCosts()
    costs.register("cohort", None, backend.device)
    loop = Driver(lambda post: Scheduler(backend, get_policy(policy), costs, post))
    loop.call(lambda scheduler: scheduler.add_tenant(SPEC, Echo()))
    return loop


def submit(loop: Driver, backend: NullBackend, request_id: int) -> Future[Any]:
    request = make_request(SPEC, request_id, 1, request_id, backend.now_us())
    loop.submit(request)
    return request.future


def test_requests_are_served() -> None:
    backend = NullBackend()
    loop = make_loop(backend)
    assert [submit(loop, backend, i).result(PATIENCE_S) for i in range(10)] == list(range(10))
    loop.close()
    assert backend.closed


def test_call_answers_and_raises() -> None:
    loop = make_loop(NullBackend())
    assert loop.call(lambda scheduler: scheduler.num_waiting) == 0
    with pytest.raises(ZeroDivisionError):
        loop.call(lambda scheduler: 1 // 0)
    assert loop.call(lambda scheduler: loop.call(lambda inner: inner is scheduler)), "from the loop itself"
    loop.close()


def test_what_is_posted_together_is_planned_together() -> None:
    backend = NullBackend()
    loop = make_loop(backend)

    def submit_three(scheduler: Scheduler) -> list[Future[Any]]:
        return [submit(loop, backend, i) for i in range(3)]

    wait(loop.call(submit_three), PATIENCE_S)
    loop.close()
    assert [lane.num_rows for lane in backend.lanes] == [3]


def test_a_report_that_raises_does_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    class Twice(NullBackend):
        def start(
            self, lane: Lane, executable: Executable, payloads: Sequence[Any], done: Callable[[LaneResult], None]
        ) -> None:
            def report(result: LaneResult) -> None:
                done(result)
                done(result)

            super().start(lane, executable, payloads, report)

    backend = Twice()
    loop = make_loop(backend)
    assert submit(loop, backend, 0).result(PATIENCE_S) == 0
    assert submit(loop, backend, 1).result(PATIENCE_S) == 1
    loop.close()
    assert "a call on the loop failed" in caplog.text and "lane 0 ended twice" in caplog.text


def test_a_step_that_raises_rejects_what_waits(caplog: pytest.LogCaptureFixture) -> None:
    class Dead(NullBackend):
        broken = False

        def now_us(self) -> int:
            if self.broken:
                raise OSError("device lost")
            return super().now_us()

    backend = Dead()
    loop = make_loop(backend)
    request = make_request(SPEC, 1, 1, None, 0)
    backend.broken = True
    loop.submit(request)
    with pytest.raises(RejectedError, match=r"(?s)the loop failed.*OSError: device lost"):
        request.future.result(PATIENCE_S)
    backend.broken = False
    assert submit(loop, backend, 2).result(PATIENCE_S) == 2
    loop.close()


def test_close_drains() -> None:
    backend = NullBackend()
    loop = make_loop(backend, "time_slice")
    futures = [submit(loop, backend, i) for i in range(100)]
    loop.close(drain=True)
    assert [future.result(0) for future in futures] == list(range(100))


def test_close_without_drain_rejects_what_waits_and_lets_lanes_end() -> None:
    backend = NullBackend(latency_us=1000)
    loop = make_loop(backend, "time_slice")
    running, waiting = submit(loop, backend, 1), submit(loop, backend, 2)
    loop.call(lambda scheduler: scheduler.step())
    closer = threading.Thread(target=loop.close, kwargs={"drain": False})
    closer.start()
    assert isinstance(waiting.exception(PATIENCE_S), RejectedError)
    assert not running.done()
    backend.advance(2000)
    closer.join(PATIENCE_S)
    assert running.result(0) == 1 and not closer.is_alive()


def test_a_closed_loop_answers() -> None:
    backend = NullBackend()
    loop = make_loop(backend)
    loop.close()
    loop.close(drain=False)
    assert isinstance(submit(loop, backend, 1).exception(0), ClosedError)
    assert loop.call(lambda scheduler: scheduler.stats())["a"]["rejected"] == 1
    with pytest.raises(ClosedError):
        loop.call(lambda scheduler: scheduler.add_tenant(TenantSpec("b", "cohort"), Echo()))


def test_a_callback_may_close() -> None:
    backend = NullBackend()
    loop = make_loop(backend)
    closed: Future[None] = Future()

    def close(_: Future[Any]) -> None:
        loop.close()
        closed.set_result(None)

    submit(loop, backend, 1).add_done_callback(close)
    closed.result(PATIENCE_S)
    loop.close()
    assert backend.closed


def test_what_is_called_at_the_end_finds_everything_ended() -> None:
    backend = NullBackend()
    costs = OnlineCosts()
    costs.register("cohort", None, backend.device)
    found: list[tuple[bool, bool]] = []
    loop = Driver(
        lambda post: Scheduler(backend, get_policy("space_time"), costs, post),
        at_end=lambda: found.append((future.done(), backend.closed)),
    )
    loop.call(lambda scheduler: scheduler.add_tenant(SPEC, Echo()))
    future = submit(loop, backend, 1)
    loop.close()
    loop.close()
    assert found == [(True, True)]


def test_waiting_inside_the_loop_is_refused_instead_of_hanging() -> None:
    backend = NullBackend()
    loop = make_loop(backend, "time_slice")
    seen: Future[BaseException | None] = Future()

    def wait_for_another(_: Future[Any]) -> None:
        request = make_request(SPEC, 2, 1, 2, backend.now_us(), Result(loop))
        loop.submit(request)
        try:
            request.future.result(PATIENCE_S)
        except SpacetimeError as error:
            seen.set_result(error)
        else:
            seen.set_result(None)

    submit(loop, backend, 1).add_done_callback(wait_for_another)
    assert "result() was called from a future's callback" in str(seen.result(PATIENCE_S))
    loop.close()


def interrupted(snapshot: Snapshot, costs: CostModel) -> Plan:
    raise KeyboardInterrupt


def test_an_interruption_of_the_main_thread_ends_every_request_and_passes_on() -> None:
    backend = NullBackend()
    loop = make_loop(backend, interrupted)
    requests = [make_request(SPEC, i, 1, i, backend.now_us(), Result(loop)) for i in range(3)]

    def submit_all(scheduler: Scheduler) -> None:
        for request in requests:
            scheduler.submit(request)

    with pytest.raises(KeyboardInterrupt):
        loop.call(submit_all)
    for request in requests:
        assert isinstance(request.future.exception(0), RejectedError)
    assert loop.call(lambda scheduler: scheduler.idle)
    loop.close()
    assert backend.closed


def test_an_interruption_of_the_loops_own_thread_does_not_end_it() -> None:
    backend = NullBackend()
    loop = make_loop(backend, interrupted)
    for i in range(3):
        with pytest.raises(RejectedError, match=r"(?s)the loop was interrupted.*KeyboardInterrupt.*submit"):
            submit(loop, backend, i).result(PATIENCE_S)
    loop.close()
    assert backend.closed


@pytest.mark.parametrize("drain", [True, False])
def test_no_request_is_lost_while_close_runs(drain: bool) -> None:
    backend = NullBackend()
    for round_ in range(10):
        backend = NullBackend()
        loop = make_loop(backend)
        futures: list[list[Future[Any]]] = [[] for _ in range(8)]
        started = threading.Barrier(10)

        def flood(
            worker: int,
            loop: Driver = loop,
            backend: NullBackend = backend,
            futures: list[list[Future[Any]]] = futures,
            started: threading.Barrier = started,
        ) -> None:
            started.wait(PATIENCE_S)
            for i in range(100):
                futures[worker].append(submit(loop, backend, 1000 * worker + i))

        def close(loop: Driver = loop, started: threading.Barrier = started) -> None:
            started.wait(PATIENCE_S)
            loop.close(drain)

        threads = [threading.Thread(target=flood, args=(worker,)) for worker in range(8)]
        threads += [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"round {round_} hangs"
        everything = [future for per_worker in futures for future in per_worker]
        assert len(everything) == 800 and not wait(everything, PATIENCE_S).not_done
        for future in everything:
            assert isinstance(future.exception(0), ClosedError | (type(None) if drain else RejectedError | None))
