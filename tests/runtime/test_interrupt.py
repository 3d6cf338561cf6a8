"""Ctrl-C, or an exit, in the middle of the loop: every future ends, close() returns, the runtime goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from torch import Tensor, nn

import spacetime as st
from spacetime.backends.cpu import CpuBackend, Done
from spacetime.backends.threads import on_passing_thread
from spacetime.runtime import undo
from spacetime.scheduler import registry
from spacetime.scheduler.protocols import Executable
from tests.runtime.models import (
    EXAMPLE,
    PATIENCE_S,
    Gate,
    X,
    assert_equal,
    assert_three_parts,
    live_threads,
    plain,
    tiny,
)


class Trap:
    """Raises once, the next time somebody passes it after it was set; then it lets everybody pass."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def set(self, error: BaseException) -> None:
        self.error = error

    def spring(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


class TrappedBackend(CpuBackend):
    def __init__(self, trap: Trap) -> None:
        super().__init__()
        self.trap = trap

    def start(self, lane: st.Lane, executable: Executable, payloads: Sequence[Any], done: Done) -> None:
        self.trap.spring()
        super().start(lane, executable, payloads, done)


def make_runtime(trap: Trap, where: str) -> st.Runtime:
    space_time = registry.get_policy("space_time")

    def trapped(snapshot: st.Snapshot, costs: st.CostModel) -> st.Plan:
        trap.spring()
        return space_time(snapshot, costs)

    if where == "policy":
        return st.Runtime(policy=trapped)
    return st.Runtime(device=TrappedBackend(trap))


@pytest.mark.parametrize("where", ["policy", "backend"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_every_future_ends_and_the_runtime_goes_on(where: str, kind: type[BaseException]) -> None:
    before, trap, module, gate = live_threads(), Trap(), tiny(), Gate()
    expected = plain(module, X)
    rt = make_runtime(trap, where)
    tenant, blocker = rt.add(module, EXAMPLE, "tenant"), rt.add(gate, EXAMPLE, "gate", exact=True)
    gate.close()
    running = blocker.submit(X)
    assert gate.entered.wait(PATIENCE_S)
    waiting = [tenant.submit(X) for _ in range(5)]
    trap.set(kind("stop"))
    gate.open()  # now the worker's thread runs into the trap
    for future in waiting:
        error = future.exception(PATIENCE_S)
        assert error is not None
        assert_three_parts(error, "the loop was interrupted", f"{kind.__name__}: stop", "submit the request again")
    assert running.done()
    for _ in range(20):
        assert_equal(tenant.submit(X).result(PATIENCE_S), expected)
    rt.remove("gate")
    rt.close()
    assert live_threads() <= before
    books = rt.stats()["tenant"]
    assert books["submitted"] == 25 == books["completed"] + books["failed"] + books["rejected"]


@pytest.mark.parametrize("where", ["policy", "backend"])
def test_ctrl_c_reaches_the_thread_it_is_meant_for(where: str) -> None:
    before, trap = live_threads(), Trap()
    rt = make_runtime(trap, where)
    with pytest.raises(KeyboardInterrupt), rt:
        tenant = rt.add(tiny(), EXAMPLE, "tenant")
        trap.set(KeyboardInterrupt())
        futures = []

        def submit(scheduler: object) -> None:
            futures.append(tenant.submit(X))

        rt._driver.call(submit)  # the main thread pumps
    assert isinstance(futures[0].exception(PATIENCE_S), st.RejectedError)
    assert live_threads() <= before


@pytest.mark.parametrize("drain", [True, False])
def test_close_returns_when_the_last_lanes_are_interrupted(drain: bool) -> None:
    before, trap, gate = live_threads(), Trap(), Gate()
    rt = make_runtime(trap, "policy")
    tenant, blocker = rt.add(tiny(), EXAMPLE, "tenant"), rt.add(gate, EXAMPLE, "gate", exact=True)
    gate.close()
    running = blocker.submit(X)
    assert gate.entered.wait(PATIENCE_S)
    waiting = [tenant.submit(X) for _ in range(5)]
    closer = threading.Thread(target=rt.close, args=(drain,))
    closer.start()
    trap.set(KeyboardInterrupt())
    gate.open()
    closer.join(PATIENCE_S)
    assert not closer.is_alive()
    assert all(future.done() for future in (running, *waiting))
    assert live_threads() <= before


class Headed(nn.Module):
    """Cannot be captured, and has a layer that may be launched with others'."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(x if x.sum() > 0 else -x)
        return result


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"intercept": True}])
def test_ctrl_c_while_a_tenant_is_prepared_leaves_no_trace(
    options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work itself is done on another thread, to its end."""
    intercepted = bool(options.pop("intercept", False))
    if intercepted:
        pytest.importorskip("greenlet")
    module: nn.Module = Headed().eval() if intercepted else tiny()
    before = {id(p): p.data_ptr() for p in module.parameters()}

    def interrupted(function: Callable[[], Any]) -> Any:
        on_passing_thread(function)
        raise KeyboardInterrupt

    with st.Runtime("cpu", intercept=intercepted) as rt:
        monkeypatch.setattr(undo, "on_passing_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rt.add(module, EXAMPLE, "tenant", **options)
        monkeypatch.undo()
        preparer = rt._preparer
        assert not (preparer.modules or preparer.cohorts or preparer.meetings or preparer.varying or rt.tenants())
        assert {id(p): p.data_ptr() for p in module.parameters()} == before, "its own memory"
        assert_equal(rt.add(module, EXAMPLE, "tenant", **options)(X), plain(module, X))


def test_ctrl_c_while_a_tenant_is_removed_leaves_no_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for lanes, and is what one is tempted to interrupt."""
    leave = Future.result

    def interrupted(future: Future[Any], timeout: float | None = None) -> Any:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return leave(future, timeout)

    module = tiny()
    with st.Runtime("cpu") as rt:
        rt.add(tiny(1), EXAMPLE, "resident")
        for _ in range(3):
            rt.add(module, EXAMPLE, "tenant")
            monkeypatch.setattr(Future, "result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                rt.remove("tenant")
            monkeypatch.undo()
            (executable,) = rt._preparer.cohorts.values()
            assert rt.tenants() == tuple(rt._preparer.modules) == tuple(executable.cohort.members) == ("resident",)
            assert len({p.untyped_storage().data_ptr() for p in module.parameters()}) == 4, "memory of its own"


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, asyncio.CancelledError])
def test_a_callback_that_exits_ends_nothing_but_itself(kind: type[BaseException]) -> None:
    module, gate = tiny(), Gate()
    expected = plain(module, X)
    called = list[int]()

    def exits(_: Future[Any]) -> None:
        raise kind("stop")

    with st.Runtime(device="cpu") as rt:
        tenant, blocker = rt.add(module, EXAMPLE, "tenant", exact=True), rt.add(gate, EXAMPLE, "gate", exact=True)
        gate.close()
        first = blocker.submit(X)
        assert gate.entered.wait(PATIENCE_S)
        first.add_done_callback(exits)
        first.add_done_callback(lambda _: called.append(1))
        waiting = [tenant.submit(X) for _ in range(5)]
        gate.open()
        for future in waiting:
            assert_equal(future.result(PATIENCE_S), expected)
        first.result(PATIENCE_S)
    assert called == [1], "callbacks that follow are called"
    assert rt.stats()["tenant"]["completed"] == 5
