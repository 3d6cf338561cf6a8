"""Requests: what is refused at submit, what fails alone, and that nobody else notices."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import pytest
import torch
from torch import Tensor

import spacetime as st
from spacetime.capture.selfcheck import magnitude
from spacetime.zoo import build, example
from tests.runtime.models import (
    EXAMPLE,
    PATIENCE_S,
    WIDTH,
    Gate,
    Lookup,
    Refusing,
    X,
    assert_equal,
    assert_three_parts,
    plain,
    tiny,
)


class House:
    """A runtime with two tenants of one cohort; `neighbour` must never notice anything."""

    def __init__(self) -> None:
        self.rt = st.Runtime(device="cpu")
        self.modules = [tiny(0), tiny(1)]
        self.expected = plain(self.modules[1], X)
        self.victim, self.neighbour = (self.rt.add(module, EXAMPLE, f"t{i}") for i, module in enumerate(self.modules))


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    built = House()
    yield built
    built.rt.close()


BAD_INPUTS: list[tuple[tuple[Any, ...], str, str, str]] = [
    ((X[:, :3],), "input 0 has shape (2, 3)", "expected (rows, 4)", "another tenant"),
    ((X[0],), "input 0 has shape (4,)", "expected (rows, 4)", "x[None]"),
    ((X[None],), "input 0 has shape (1, 2, 4)", "expected (rows, 4)", "another tenant"),
    ((X[0, 0],), "input 0 has shape ()", "expected (rows, 4)", "another tenant"),
    ((X.double(),), "input 0 is torch.float64", "torch.float32", "convert"),
    ((X.to("meta"),), "input 0 is on meta", "on cpu", "move"),
    ((), "takes 1 inputs", "got: ", "module(*example)"),
    ((X, X), "takes 1 inputs", "torch.float32[2, 4], torch.float32[2, 4]", "module(*example)"),
    (((X,),), "takes 1 inputs", "example: torch.float32[2, 4]", "module(*example)"),
    ((None,), "input 0 is a NoneType", "the example has a tensor", "pass a tensor"),
    (([1.0, 2.0],), "takes 1 inputs", "got: float, float", "module(*example)"),
    ((X[:0],), "got 0 rows", "1..65536", "split"),
    ((torch.empty(65_537, WIDTH),), "got 65537 rows", "1..65536", "split"),
]


@pytest.mark.parametrize(("args", "what", "facts", "next_step"), BAD_INPUTS)
def test_inputs_that_do_not_fit(house: House, args: tuple[Any, ...], what: str, facts: str, next_step: str) -> None:
    pending = house.neighbour.submit(X)
    for call in (house.victim, house.victim.submit, lambda *args: asyncio.run(house.victim.asubmit(*args))):
        with pytest.raises(st.InputError) as caught:
            call(*args)
        assert_three_parts(caught.value, f"tenant 't0': {what}", facts, next_step)
    assert_equal(pending.result(PATIENCE_S), house.expected)


def test_inputs_that_disagree_on_their_rows() -> None:
    with st.Runtime() as rt:
        tenant = rt.add(build("gru_cell"), example("gru_cell"), "cell")
        x, state = example("gru_cell", rows=3)
        with pytest.raises(st.InputError) as caught:
            tenant(x, state[:2])
        assert_three_parts(caught.value, "input 1 has 2 rows, input 0 has 3", "must agree", "every input")


def test_an_opaque_tenant_judges_its_inputs_itself_but_not_rows_and_device() -> None:
    with st.Runtime() as rt:
        tenant = rt.add(Gate(), EXAMPLE, "gate")
        assert torch.equal(tenant(X[:, :2]), X[:, :2] + 1)
        with pytest.raises(TypeError, match="positional argument"):
            tenant(X, X)
        for args, what in (((X[:0],), "got 0 rows"), ((X.to("meta"),), "input 0 is on meta")):
            with pytest.raises(st.InputError, match=what):
                tenant(*args)


def test_nested_inputs_keep_their_structure() -> None:
    class Pair(torch.nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] + 2 * pair[1]

    with st.Runtime() as rt:
        tenant = rt.add(Pair().eval(), ((X, X),), "pair")
        assert_equal(tenant((X, X)), 3 * X)
        with pytest.raises(st.InputError, match="takes 2 inputs of the example's structure, got 2"):
            tenant(X, X)


def test_nan_stays_in_its_own_rows(house: House) -> None:
    poisoned = X.clone()
    poisoned[0] = float("nan")
    result, other = house.victim.submit(poisoned), house.neighbour.submit(X)
    assert_equal(result.result(PATIENCE_S), plain(house.modules[0], poisoned))
    assert result.result(0)[0].isnan().all() and not result.result(0)[1].isnan().any()
    assert_equal(other.result(PATIENCE_S), house.expected)


def test_an_exception_in_an_opaque_forward_is_its_requests_own() -> None:
    with st.Runtime() as rt:
        tenant, other = rt.add(Refusing().eval(), (X.abs(),), "refusing"), rt.add(tiny(), EXAMPLE, "other")
        bad, good, beside = tenant.submit(X), tenant.submit(X.abs()), other.submit(X)
        assert isinstance(bad.exception(PATIENCE_S), ArithmeticError)
        assert torch.equal(good.result(PATIENCE_S), X.abs().sqrt())
        assert beside.result(PATIENCE_S).shape == (2, 3)
        stats = rt.stats()
        assert (stats["refusing"]["failed"], stats["refusing"]["completed"], stats["other"]["failed"]) == (1, 1, 0)


@pytest.mark.parametrize("index", [10, -1])
def test_an_exception_in_a_fused_batch_is_its_requests_own(index: int) -> None:
    """Also where a neighbour's table lies next to one's own in memory."""
    modules = [Lookup(seed) for seed in range(4)]
    ids = torch.tensor([1, 9])
    expected = [plain(module, ids) for module in modules]
    with st.Runtime() as rt:
        gate = Gate()
        hold, *tenants = [rt.add(gate, EXAMPLE, "gate", exact=True)] + [
            rt.add(module, (ids,), f"t{i}") for i, module in enumerate(modules)
        ]
        assert len(rt.explain().cohorts[0].tenants) == 4
        gate.close()
        holding = hold.submit(X)  # so that the others meet in one lane
        assert gate.entered.wait(PATIENCE_S)
        futures = [tenant.submit(ids) for tenant in tenants]
        bad = tenants[1].submit(torch.tensor([1, index]))
        gate.open()
        holding.result(PATIENCE_S)
        assert isinstance(bad.exception(PATIENCE_S), IndexError)
        for future, reference in zip(futures, expected, strict=True):
            assert_equal(future.result(PATIENCE_S), reference)
        assert [rt.stats()[f"t{i}"]["failed"] for i in range(4)] == [0, 1, 0, 0]


def test_a_request_can_be_cancelled_until_its_lane_starts() -> None:
    gate, module = Gate(), tiny()
    expected = plain(module, X)
    with st.Runtime(policy="time_slice") as rt:
        blocker, tenant = rt.add(gate, EXAMPLE, "gate"), rt.add(module, EXAMPLE, "tenant")
        gate.close()
        running = blocker.submit(X)
        assert gate.entered.wait(PATIENCE_S)
        dropped, kept = tenant.submit(X), tenant.submit(X)
        assert dropped.cancel() and not running.cancel()
        gate.open()
        assert_equal(kept.result(PATIENCE_S), expected)
        assert torch.equal(running.result(PATIENCE_S), X + 1)
        with pytest.raises(CancelledError):
            dropped.result(PATIENCE_S)
        stats = rt.stats()["tenant"]
        assert (stats["submitted"], stats["completed"], stats["cancelled"]) == (2, 1, 1)


def test_a_cancelled_task_cancels_its_request() -> None:
    gate = Gate()

    async def scenario(blocker: st.Tenant, tenant: st.Tenant) -> None:
        running = asyncio.ensure_future(blocker.asubmit(X))
        assert await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
        task = asyncio.ensure_future(tenant.asubmit(X))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        await running

    with st.Runtime(policy="time_slice") as rt:
        blocker, tenant = rt.add(gate, EXAMPLE, "gate"), rt.add(tiny(), EXAMPLE, "tenant")
        gate.close()
        asyncio.run(scenario(blocker, tenant))
        tenant(X)
        assert rt.stats()["tenant"]["cancelled"] == 1


def test_a_full_queue_rejects_and_says_so() -> None:
    gate = Gate()
    with st.Runtime(policy="time_slice") as rt:
        tenant = rt.add(gate, EXAMPLE, "gate", max_queue=2)
        gate.close()
        running = tenant.submit(X)
        assert gate.entered.wait(PATIENCE_S)
        waiting = [tenant.submit(X) for _ in range(2)]
        error = tenant.submit(X).exception(PATIENCE_S)
        assert error is not None
        assert_three_parts(error, "the queue is full", "2 requests wait, max_queue is 2", "raise max_queue")
        gate.open()
        assert all(torch.equal(future.result(PATIENCE_S), X + 1) for future in (running, *waiting))


def test_a_callback_that_would_wait_for_the_loop_is_told_so(house: House) -> None:
    told: dict[str, BaseException] = {}
    calls = {
        "result()": lambda: house.neighbour(X),
        "add()": lambda: house.rt.add(tiny(), EXAMPLE, "late"),
        "remove()": lambda: house.rt.remove("t1"),
        "explain()": house.rt.explain,
    }
    called = threading.Event()

    def callback(_: Future[Any]) -> None:
        for what, call in calls.items():
            try:
                call()
            except st.SpacetimeError as error:
                told[what] = error
        called.set()

    house.victim.submit(X).add_done_callback(callback)
    assert called.wait(PATIENCE_S) and told.keys() == calls.keys()
    for what, error in told.items():
        assert_three_parts(error, f"{what} was called from a future's callback", "the loop runs", "another thread")
    assert_equal(house.neighbour(X), house.expected)


def test_a_callback_may_submit_and_ask_for_stats(house: House) -> None:
    chained: Future[Future[Any]] = Future()

    def callback(_: Future[Any]) -> None:
        assert house.rt.stats()["t0"]["completed"] > 0
        chained.set_result(house.neighbour.submit(X))

    house.victim.submit(X).add_done_callback(callback)
    assert_equal(chained.result(PATIENCE_S).result(PATIENCE_S), house.expected)


def test_thousands_of_requests_from_many_threads_and_tasks() -> None:
    names, rows = ("mlp", "recommender"), (1, 2, 3)
    with st.Runtime() as rt:
        cases = []
        for name in names:
            for seed in range(3):
                module = build(name, seed=seed)
                inputs = [example(name, rows=count, seed=seed) for count in rows]
                references = [plain(module, *args) for args in inputs]
                tenant = rt.add(module, example(name), f"{name}{seed}")
                scale = max(map(magnitude, references))
                cases += [
                    (tenant, args, reference, [scale]) for args, reference in zip(inputs, references, strict=True)
                ]
        wrong: list[BaseException] = []

        def flood(offset: int) -> None:
            try:
                mine = [cases[(offset + i) % len(cases)] for i in range(250)]
                futures = [tenant.submit(*args) for tenant, args, *_ in mine]
                for future, (_, _, *expected) in zip(futures, mine, strict=True):
                    assert_equal(future.result(PATIENCE_S), *expected)
            except BaseException as error:
                wrong.append(error)

        async def tasks() -> None:
            mine = [cases[i % len(cases)] for i in range(250)]
            results = await asyncio.gather(*(tenant.asubmit(*args) for tenant, args, *_ in mine))
            for result, (_, _, *expected) in zip(results, mine, strict=True):
                assert_equal(result, *expected)

        threads = [threading.Thread(target=flood, args=(offset,)) for offset in range(8)]
        for thread in threads:
            thread.start()
        asyncio.run(tasks())
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not wrong and not any(thread.is_alive() for thread in threads)
        assert sum(books["completed"] for books in rt.stats().values()) == 9 * 250


def test_a_timeout_leaves_the_request_alone() -> None:
    gate = Gate()
    with st.Runtime() as rt:
        tenant = rt.add(gate, EXAMPLE, "gate")
        gate.close()
        future = tenant.submit(X)
        with pytest.raises(TimeoutError):
            future.result(0)
        gate.open()
        assert torch.equal(future.result(PATIENCE_S), X + 1)
        assert not wait([future], 0).not_done
