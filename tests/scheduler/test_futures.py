"""A lazy future does whatever a plain one does: the same calls in the same order, and threads that race."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, CancelledError, Future, as_completed, wait
from functools import partial
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.scheduler.futures import LazyFuture

PATIENCE_S = 30  # a hang fails the test instead of the suite

OWN = KeyError("its own")

Log = list[Any]
Operation = Callable[["Future[Any]", Log], Any]


def add_callback(future: Future[Any], log: Log) -> None:
    future.add_done_callback(lambda ended: log.append(("called back", ended is future, ended.done())))


def fail_in_callback(future: Future[Any], log: Log) -> None:
    def fail(_: Future[Any]) -> None:
        log.append("failed")
        raise ArithmeticError

    future.add_done_callback(fail)


OPERATIONS: dict[str, Operation] = {
    "begin": lambda future, log: future.set_running_or_notify_cancel(),
    "answer": lambda future, log: future.set_result(7),
    "fail": lambda future, log: future.set_exception(OWN),
    "end without error": lambda future, log: future.set_exception(None),
    "cancel": lambda future, log: future.cancel(),
    "call back": add_callback,
    "fail in callback": fail_in_callback,
    "done": lambda future, log: future.done(),
    "cancelled": lambda future, log: future.cancelled(),
    "running": lambda future, log: future.running(),
    "result": lambda future, log: future.result(0),
    "exception": lambda future, log: future.exception(0),
    "wait": lambda future, log: len(wait([future], 0, FIRST_COMPLETED).done),
    "as completed": lambda future, log: len(list(as_completed([future], 0))),
    "show": lambda future, log: repr(future).split(" at ")[1].partition(" ")[2],
}


def outcome(operation: str, future: Future[Any], log: Log) -> Any:
    try:
        return OPERATIONS[operation](future, log)
    except BaseException as error:
        return type(error), str(error).partition(" ")[0]


@given(st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=12))
def test_the_same_calls_have_the_same_outcomes(operations: list[str]) -> None:
    plain: Future[Any] = Future()
    lazy: LazyFuture[Any] = LazyFuture()
    plain_log: Log = []
    lazy_log: Log = []
    for operation in operations:
        expected, found = outcome(operation, plain, plain_log), outcome(operation, lazy, lazy_log)
        assert found == expected, operation
        assert lazy_log == plain_log


def test_it_has_all_that_the_base_class_makes() -> None:
    """Should a later Python's __init__ make more, it has to be made here as well."""
    assert vars(Future()).keys() == {
        "_condition",
        "_state",
        "_result",
        "_exception",
        "_waiters",
        "_done_callbacks",
    }
    lazy: LazyFuture[int] = LazyFuture()
    lazy.running()
    assert all(hasattr(lazy, name) for name in vars(Future()))


def test_a_life_that_nobody_watches_makes_no_condition() -> None:
    for error in (None, OWN):
        lazy: LazyFuture[int] = LazyFuture()
        assert not lazy.done() and not lazy.cancelled() and lazy.set_running_or_notify_cancel()
        if error is None:
            lazy.set_result(7)
            assert lazy.result() == 7
        else:
            lazy.set_exception(error)
        assert lazy.done() and lazy._made is None


# -- two threads ---------------------------------------------------------------------------------------------


class Interrupted:
    """A gate in front of which, or behind which, another thread does all of its work."""

    def __init__(self, gate: Any, before: bool, other: Callable[[], None]) -> None:
        self.gate, self.before = gate, before
        self.other: Callable[[], None] | None = other

    def do_other(self, now: bool) -> None:
        if now and self.other is not None:
            other, self.other = self.other, None
            thread = threading.Thread(target=other, daemon=True)
            thread.start()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def __enter__(self) -> None:
        self.do_other(self.before)
        self.gate.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.gate.__exit__(*error)
        self.do_other(not self.before)


def final(future: Future[Any], log: Log) -> Any:
    return [outcome(look, future, log) for look in ("result", "exception", "cancelled", "running", "done")], list(log)


RACING = [
    name for name in OPERATIONS if name not in ("show", "as completed", "wait", "done", "running", "end without error")
]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_a_step_between_the_halves_of_another_is_as_before_or_after_it(before: bool, begun: bool) -> None:
    for first, second in product(RACING, RACING):
        lazy: LazyFuture[Any] = LazyFuture()
        if begun:
            lazy.set_running_or_notify_cancel()
        log: Log = []
        found: dict[str, Any] = {}

        def do_second(name: str, future: Future[Any], log: Log, found: dict[str, Any]) -> None:
            found["second"] = outcome(name, future, log)

        other = partial(do_second, second, lazy, log, found)
        gate = Interrupted(lazy._gate, before, other)
        lazy._gate = gate  # type: ignore[assignment]
        found["first"] = outcome(first, lazy, log)
        gate.other = None
        if "second" not in found:
            other()  # the first one did not come to the gate
        possible = []
        for backwards in (False, True):
            plain: Future[Any] = Future()
            if begun:
                plain.set_running_or_notify_cancel()
            plain_log: Log = []
            order = (second, first) if backwards else (first, second)
            ended = [outcome(name, plain, plain_log) for name in order]
            if backwards:
                ended.reverse()
            possible.append(([kind(each) for each in ended], final(plain, plain_log)))
        assert ([kind(found["first"]), kind(found["second"])], final(lazy, log)) in possible, (first, second)


def kind(outcome: Any) -> Any:
    """Of an error its class: messages name addresses."""
    return outcome[0] if isinstance(outcome, tuple) else outcome


def watch(how: int, future: Future[Any], seen: list[Any]) -> None:
    """In one of the ways there are, wait for the end and note what it was."""
    if how == 0:
        try:
            seen.append(future.result(PATIENCE_S))
        except CancelledError:
            seen.append("cancelled")
    elif how == 1:
        assert not wait([future, an_ended_one()], PATIENCE_S, ALL_COMPLETED).not_done
        seen.append("cancelled" if future.cancelled() else future.result(0))
    elif how == 2:
        ended = threading.Event()
        future.add_done_callback(lambda _: ended.set())
        assert ended.wait(PATIENCE_S)
        seen.append("cancelled" if future.cancelled() else future.result(0))
    else:
        assert [each is future for each in as_completed([future], PATIENCE_S)] == [True]
        seen.append("cancelled" if future.cancelled() else future.result(0))


def an_ended_one() -> Future[Any]:
    ended: Future[Any] = Future()
    ended.set_result(None)
    return ended


@pytest.mark.parametrize("seed", range(3))
def test_whoever_waits_wakes_and_sees_the_one_end(seed: int) -> None:
    rng = random.Random(seed)
    num_rounds, num_watchers = 60, 5
    lazies: list[LazyFuture[Any]] = [LazyFuture() for _ in range(num_rounds)]
    seen: list[list[Any]] = [[] for _ in range(num_rounds)]
    began: list[bool] = []
    cancels: list[bool] = []
    barrier = threading.Barrier(num_watchers + 2)
    hows = [[rng.randrange(4) for _ in range(num_rounds)] for _ in range(num_watchers)]

    def each_round(act: Callable[[int], None]) -> None:
        for i in range(num_rounds):
            barrier.wait(PATIENCE_S)
            act(i)

    def end(i: int) -> None:
        began.append(lazies[i].set_running_or_notify_cancel())
        if began[-1]:
            lazies[i].set_result(i)

    def watcher(mine: list[int]) -> Callable[[int], None]:
        return lambda i: watch(mine[i], lazies[i], seen[i])

    acts: list[Callable[[int], None]] = [end, lambda i: cancels.append(lazies[i].cancel()), *map(watcher, hows)]
    threads = [threading.Thread(target=each_round, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    for i in range(num_rounds):
        assert began[i] is not cancels[i], "it was begun or cancelled, never both"
        assert seen[i] == [i if began[i] else "cancelled"] * num_watchers


def test_two_threads_that_wait_for_the_same_futures_do_not_lock_each_other_out() -> None:
    futures: list[Future[Any]] = [LazyFuture() if i % 3 else Future() for i in range(40)]

    def wait_for(mine: list[Future[Any]]) -> None:
        assert not wait(mine, PATIENCE_S).not_done

    threads = [threading.Thread(target=wait_for, args=(futures[start:],), daemon=True) for start in range(8)]
    for thread in threads:
        thread.start()
    for future in futures:
        future.set_result(None)
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_asyncio_may_wrap_it() -> None:
    async def both_ways() -> None:
        early: LazyFuture[int] = LazyFuture()
        late: LazyFuture[int] = LazyFuture()
        cancelled: LazyFuture[int] = LazyFuture()
        early.set_result(1)
        waiting = asyncio.ensure_future(asyncio.wrap_future(late))
        threading.Thread(target=late.set_result, args=(2,)).start()
        assert await asyncio.wait_for(asyncio.wrap_future(early), PATIENCE_S) == 1
        assert await asyncio.wait_for(waiting, PATIENCE_S) == 2
        wrapped = asyncio.wrap_future(cancelled)
        wrapped.cancel()
        await asyncio.sleep(0)
        assert cancelled.cancelled() and not cancelled.set_running_or_notify_cancel()

    asyncio.run(both_ways())
