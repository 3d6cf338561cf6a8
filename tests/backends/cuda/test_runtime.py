"""A runtime on a fake GPU: the zoo's models, ragged rows, tenants that come and go, graphs; and no race anywhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import spacetime as st
from spacetime import zoo
from spacetime.backends import executables
from spacetime.backends.cuda.backend import CudaBackend
from spacetime.backends.cuda.graphs import CAPTURE_AFTER
from spacetime.capture import cohort as cohorts
from tests.backends.cuda.any_cohort import AnyProgram, in_gpu_form
from tests.backends.cuda.fake_gpu import FakeGpu, with_gpu
from tests.backends.cuda.lanes import is_handed_on
from tests.runtime.models import EXAMPLE, PATIENCE_S, WIDTH, Gate, X, assert_equal, plain, tiny

MOST_ROUNDS = 500  # how soon the policy settles depends on what it measures
MODELS = ("mlp", "resnet18", "bert")


class House:
    """A runtime, what is behind it, and somebody who compares."""

    def __init__(self, runtime: st.Runtime, backend: CudaBackend, gpu: FakeGpu) -> None:
        self.runtime, self.backend, self.gpu = runtime, backend, gpu

    def check(self, results: Sequence[Any], modules: Sequence[nn.Module], inputs: Sequence[tuple[Any, ...]]) -> None:
        for result, module, args in zip(results, modules, inputs, strict=True):
            assert_equal(result, plain(module, *args))


@contextmanager
def house(policy: Any = "space_time", **options: Any) -> Iterator[House]:
    backend, gpu = with_gpu(**options)
    with st.Runtime(backend, policy) as runtime:
        yield House(runtime, backend, gpu)
        backend.settle()
    assert gpu.problems == []
    assert gpu.driver is None or is_handed_on(gpu)


def some_rows(args: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
    """The first rows, repeated if need be."""

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.repeat(-(-rows // leaf.shape[0]), *[1] * (leaf.ndim - 1))[:rows].clone()

    return pytree.tree_map(take, args)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("model", "partitions"), [*((model, False) for model in MODELS), ("mlp", True)])
def test_the_zoo_is_served_right_alone_and_together(model: str, partitions: bool) -> None:
    """A lone tenant; three with ragged rows; one leaves, one comes; the same mix until it is a graph."""
    example = zoo.example(model)
    modules = [zoo.build(model, seed) for seed in range(4)]
    with house(partitions=partitions) as h:
        lone = h.runtime.add(modules[0], example, "t0")
        h.check([lone(*example)], modules[:1], [example])
        tenants = [lone, *(h.runtime.add(modules[i], example, f"t{i}") for i in (1, 2))]
        inputs = [some_rows(example, rows) for rows in (1, 3, 2)]
        futures = [tenant.submit(*args) for tenant, args in zip(tenants, inputs, strict=True)]
        h.check([future.result(PATIENCE_S) for future in futures], modules[:3], inputs)
        h.runtime.remove("t1")
        late = h.runtime.add(modules[3], example, "t3")
        h.check([late(*inputs[1])], modules[3:], inputs[1:2])
        for _ in range(CAPTURE_AFTER + 2):
            h.check([lone(*inputs[0])], modules[:1], inputs[:1])
            h.backend.settle()
        if partitions:
            return  # the policy is still trying sizes
        report = h.backend.graphs.report()
        assert report.replays >= 1 and report.refused == (), report
        assert h.gpu.replays == report.replays + report.captured, "each is tried once before it serves"
        assert h.runtime.stats()["t0"]["graph_bytes"] > 0
        assert h.runtime.memory().resident_bytes >= report.num_bytes


@pytest.mark.parametrize("num_tenants", [1, 3])
def test_steady_traffic_is_replayed_on_partitions_too(num_tenants: int) -> None:
    """The policy tries sizes until it knows them, and keeps trying some; lanes of many sizes meet in few blocks."""
    modules = [tiny(seed) for seed in range(num_tenants)]
    with house() as h:
        assert h.backend.capabilities.partitions
        tenants = [h.runtime.add(module, EXAMPLE, f"t{i}") for i, module in enumerate(modules)]
        for turn in range(MOST_ROUNDS):
            active = (
                slice(None) if turn % 2 else slice(1)
            )  # all, and one alone: a plain lane of several is not replayed
            futures = [tenant.submit(X) for tenant in tenants[active]]
            h.check([future.result(PATIENCE_S) for future in futures], modules[active], [EXAMPLE] * len(futures))
            h.backend.settle()
            if (report := h.backend.graphs.report()).replays >= 40:
                break
        assert report.replays >= 40 and report.refused == (), report
        assert h.gpu.replays == report.replays + report.captured


def test_tenants_come_and_go_while_others_are_served() -> None:
    modules = {f"stays{i}": tiny(i) for i in range(3)}
    with house() as h:
        tenants = {name: h.runtime.add(module, EXAMPLE, name) for name, module in modules.items()}
        expected = {name: plain(module, X) for name, module in modules.items()}
        done = threading.Event()
        wrong: list[str] = []

        def serve(name: str) -> None:
            while not done.is_set():
                if not torch.allclose(tenants[name].submit(X).result(PATIENCE_S), expected[name], atol=1e-5):
                    wrong.append(name)

        threads = [threading.Thread(target=serve, args=(name,)) for name in tenants]
        for thread in threads:
            thread.start()
        try:
            for seed in range(12):  # more than a slab has room for at first
                guest = tiny(100 + seed)
                handle = h.runtime.add(guest, EXAMPLE, f"guest{seed}")
                assert_equal(handle(X), plain(guest, X))
                if seed % 3 == 2:
                    h.runtime.remove(f"guest{seed}")
        finally:
            done.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        assert not wrong


def always_fused(snapshot: Any, costs: Any) -> st.Plan:
    """All that waits, in one lane on the whole device."""
    waiting = tuple(request for tenant in snapshot.tenants for request in tenant.waiting)
    if not waiting or snapshot.running:
        return st.Plan(())
    lane = st.Lane(snapshot.tenants[0].cohort, waiting, (st.Segment(snapshot.device.whole),), fused=True)
    return st.Plan((lane,))


def test_one_graph_serves_whoever_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that read the owners of rows from device tables, from add() to the replay."""
    fuse = cohorts.fuse
    monkeypatch.setattr(cohorts, "fuse", lambda captured: in_gpu_form(fuse(captured)))
    monkeypatch.setattr(executables, "compile_program", lambda fused, layers, **_: AnyProgram(fused, layers).compiled)
    modules = {f"t{i}": tiny(i) for i in range(6)}
    with house(always_fused) as h:
        tenants = {name: h.runtime.add(modules[name], EXAMPLE, name) for name in ("t0", "t1", "t2")}
        for leaves, comes in ((None, None), ("t1", "t3"), ("t0", "t4"), ("t3", "t5")):
            if leaves is not None and comes is not None:
                h.runtime.remove(leaves)
                del tenants[leaves]
                tenants[comes] = h.runtime.add(modules[comes], EXAMPLE, comes)
            before = h.backend.graphs.report()
            for turn in range(12):
                names = [name for index, name in enumerate(tenants) if index != turn % 4]
                futures = [tenants[name].submit(X) for name in names]
                h.check([f.result(PATIENCE_S) for f in futures], [modules[n] for n in names], [EXAMPLE] * len(names))
                h.backend.settle()
        after = h.backend.graphs.report()
        assert after.replays > before.replays and after.refused == () and after.by_mix == ()
        assert after.captured <= 10, "a graph for each bucket and, of those that came alone, for each tenant"


@pytest.mark.parametrize("policy", ["space_time", "time_slice", "streams", "static", "krisp", "gslice"])
def test_every_policy_serves_on_it(policy: str) -> None:
    modules = [tiny(0), tiny(1), Gate()]
    with house(policy) as h:
        tenants = [h.runtime.add(module, EXAMPLE, f"t{i}") for i, module in enumerate(modules)]
        futures = [[tenant.submit(X) for tenant in tenants] for _ in range(5)]
        for row in futures:
            h.check([future.result(PATIENCE_S) for future in row], modules, [EXAMPLE] * 3)


def test_inputs_made_on_a_stream_of_the_callers_are_waited_for() -> None:
    module = tiny()
    with house() as h:
        tenant = h.runtime.add(module, EXAMPLE, "t")
        stream = h.gpu.new_stream()
        futures: list[Future[Any]] = []
        for factor in range(4):
            with h.gpu.caller(stream):
                made = X * factor
                futures.append(tenant.submit(made))
                copy = made.clone()
            result = futures[-1].result(PATIENCE_S)
            assert_equal(result, plain(module, X * factor))
            with h.gpu.caller(stream):
                assert (result + copy[:, :1]).shape == (2, 3)


def test_memory_that_runs_out_in_add_leaves_the_others_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    from spacetime.capture.slab import Slab

    first, second = tiny(0), tiny(1)
    weights = {name: value.clone() for name, value in second.state_dict().items()}
    adopt, calls = Slab.adopt, 0

    def failing(self: Slab, tensor: Tensor) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:  # in the middle of joining
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore of it")
        return adopt(self, tensor)

    with house() as h:
        tenant = h.runtime.add(first, EXAMPLE, "first")
        before = h.runtime.memory()
        with monkeypatch.context() as patch:
            patch.setattr(Slab, "adopt", failing)
            with pytest.raises(st.AdmissionError) as caught:
                h.runtime.add(second, EXAMPLE, "second")
        assert str(caught.value).splitlines() == [
            "tenant 'second' does not fit into the memory of Fake H200 (cuda:0)",
            "  OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB more of it",
            "  remove a tenant, or use a smaller dtype; the tenants that are there go on",
        ]
        assert h.runtime.tenants() == ("first",) and h.runtime.memory() == before
        assert_equal(tenant(X), plain(first, X))
        assert all(torch.equal(value, weights[name]) for name, value in second.state_dict().items())
        again = h.runtime.add(second, EXAMPLE, "second")  # nothing of the attempt is left
        assert_equal(again(X), plain(second, X))
        h.check([f.result(PATIENCE_S) for f in (tenant.submit(X), again.submit(X))], [first, second], [EXAMPLE] * 2)


def test_what_is_free_on_the_device_decides_who_comes_in() -> None:
    backend, gpu = with_gpu()
    gpu.num_free_bytes = 1000
    with st.Runtime(backend, admission="reject") as rt:
        rt.add(tiny(), EXAMPLE, "small")
        with pytest.raises(st.AdmissionError, match=r"(?s)'big' does not fit.*0\.0 MB, there are 0\.0 MB"):
            rt.add(nn.Linear(WIDTH, 1000).eval(), EXAMPLE, "big")
        with pytest.raises(st.AdmissionError, match=r"(?s)'wide' does not fit.*a lane of 500 rows takes 0\.0 MB"):
            rt.add(tiny(), (X[:1].repeat(500, 1),), "wide")
        assert rt.tenants() == ("small",)


def test_a_module_on_another_device_is_refused() -> None:
    backend, _ = with_gpu()
    with st.Runtime(backend) as rt:
        with pytest.raises(st.CaptureError, match=r"is on meta"):
            rt.add(tiny().to("meta"), EXAMPLE, "t")
        tenant = rt.add(tiny(), EXAMPLE, "t")
        with pytest.raises(st.InputError, match=r"input 0 is on meta"):
            tenant.submit(X.to("meta"))


def test_explain_says_why_nothing_is_confined_and_what_stays_eager() -> None:
    backend, _ = with_gpu(partitions=False, graph_bytes=10)
    with st.Runtime(backend) as rt:
        tenant = rt.add(tiny(), EXAMPLE, "t")
        for _ in range(CAPTURE_AFTER + 1):
            tenant(X)
            backend.settle()
        text = str(rt.explain())
        assert "lanes are not confined to partitions: this driver has no green contexts" in text
        assert "no CUDA graph: cohort" in text and "all graphs together may have 10" in text
        assert type(rt.explain()).from_json(rt.explain().to_json()) == rt.explain()
