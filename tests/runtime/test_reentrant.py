"""A module whose forward uses the runtime that serves it: no lane waits for another lane of the same runtime."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from tests.runtime.models import EXAMPLE, PATIENCE_S, WIDTH, X, assert_equal, assert_three_parts, plain, tiny


class Calling(nn.Module):
    """Calls something when it runs, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2)
        self.call: Callable[[], Any] = bool

    def forward(self, x: Tensor) -> Tensor:
        self.call()
        y: Tensor = self.linear(x)
        return y


@pytest.mark.parametrize("what", ["result()", "add()", "remove()", "explain()"])
def test_a_lane_that_would_wait_for_a_lane_is_told_so(what: str) -> None:
    caller = Calling().eval()
    with st.Runtime(device="cpu") as rt:
        inner, outer = rt.add(tiny(), EXAMPLE, "inner", exact=True), rt.add(caller, EXAMPLE, "outer", exact=True)
        calls: dict[str, Callable[[], Any]] = {
            "result()": lambda: inner(X),
            "add()": lambda: rt.add(tiny(1), EXAMPLE, "late"),
            "remove()": lambda: rt.remove("outer"),
            "explain()": rt.explain,
        }
        caller.call = calls[what]
        for wait in (lambda: outer(X), lambda: outer.submit(X).result(PATIENCE_S)):  # on this thread, and on a worker's
            with pytest.raises(st.SpacetimeError) as caught:
                wait()
            assert_three_parts(
                caught.value, f"{what} was called from a module's forward", "wait for another lane", "the plain module"
            )
        assert rt.stats()["outer"]["failed"] == 2
        assert_equal(inner(X), plain(tiny(), X))
        caller.call = bool
        assert_equal(outer(X), plain(caller, X))


def test_a_lane_may_submit_ask_for_stats_and_close() -> None:
    caller, submitted = Calling().eval(), list[Any]()
    rt = st.Runtime(device="cpu")
    inner, outer = rt.add(tiny(), EXAMPLE, "inner", exact=True), rt.add(caller, EXAMPLE, "outer", exact=True)

    def call() -> None:
        submitted.append(inner.submit(X))
        assert rt.stats()["outer"]["running"] == 1
        rt.close()

    caller.call = call
    assert_equal(outer.submit(X).result(PATIENCE_S), caller.linear(X).detach())
    assert_equal(submitted[0].result(PATIENCE_S), plain(tiny(), X))
    rt.close()


def test_a_lane_may_wait_for_another_runtime() -> None:
    caller, results, expected = Calling().eval(), list[Tensor](), plain(tiny(), X)
    with st.Runtime(device="cpu") as rt, st.Runtime(device="cpu") as other:
        inner, outer = other.add(tiny(), EXAMPLE, "inner", exact=True), rt.add(caller, EXAMPLE, "outer", exact=True)
        caller.call = lambda: results.append(inner(X))
        for _ in range(3):
            assert_equal(outer(X), caller.linear(X).detach())
            assert_equal(outer.submit(X).result(PATIENCE_S), caller.linear(X).detach())
    assert len(results) >= 6 and all(torch.equal(result, expected) for result in results)


def test_threads_that_run_no_lane_may_wait_while_one_runs() -> None:
    """It is the thread that counts: what a lane does not wait for is nobody's business."""
    caller, results = Calling().eval(), list[Tensor]()
    threads: list[threading.Thread] = []
    with st.Runtime(device="cpu") as rt:
        inner, outer = rt.add(tiny(), EXAMPLE, "inner", exact=True), rt.add(caller, EXAMPLE, "outer", exact=True)

        def call() -> None:
            threads.append(threading.Thread(target=lambda: results.append(inner(X))))
            threads[-1].start()

        caller.call = call
        outer(X)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(results) == len(threads) > 0
