"""The CUDA backend on a fake GPU: the order of work, what lives how long, and what errors do to whom.

The second half plants the faults that the fake is to find, so that an empty list of problems means something.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from spacetime.backends import make_backend, memory_of
from spacetime.backends.cuda.backend import CudaBackend
from spacetime.backends.cuda.gpu import unusable
from spacetime.backends.cuda.staging import Staging
from spacetime.capture import slab
from spacetime.device import Device
from spacetime.errors import OptionError, RejectedError
from tests.backends.conformance import Calls
from tests.backends.conformance import start as start_calls
from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.cuda.fake_gpu import DEFAULT, FakeEvent, FakeGpu, fake_backend, with_gpu
from tests.backends.cuda.lanes import PATIENCE_S, Cohort, call, check, is_handed_on, lane_of, rows, serve, start
from tests.runtime.models import assert_three_parts

A, B = ("a", rows(2)), ("b", rows(1, 3))

Made = tuple[CudaBackend, FakeGpu, Cohort]


@pytest.fixture
def made() -> Iterator[Made]:
    backend, gpu = with_gpu()
    yield backend, gpu, Cohort()
    backend.close()


# -- the device -----------------------------------------------------------------------------------------


def test_the_device_is_what_gpu_and_driver_say(made: Made) -> None:
    backend, _, _ = made
    device = backend.device
    assert isinstance(device, Device) and device.name == "Fake H200 (cuda:0)"
    assert (device.num_units, device.units_per_atom, device.num_atoms) == (132, 8, 16)
    assert (device.memory_bytes, device.cache_bytes, device.flops_per_unit_us) == (1 << 37, 50 << 20, 5e5)
    assert backend.capabilities.partitions and backend.capabilities.graphs and backend.unconfined == ""
    assert memory_of(backend) is backend


def test_without_green_contexts_it_says_why_and_promises_nothing() -> None:
    backend, gpu = with_gpu(partitions=False)
    assert "CUDA 12.2, they need 12.4" in backend.unconfined
    assert not backend.capabilities.partitions and backend.device.num_atoms == 1
    serve(backend, Cohort(), A, B, times=2)
    assert len(gpu.streams_used()) >= 1
    backend.close()


@pytest.mark.skipif(unusable() is None, reason="there is a GPU")
def test_where_there_is_no_gpu_the_error_says_so_and_auto_is_the_cpu() -> None:
    with pytest.raises(OptionError) as caught:
        make_backend("cuda:0")
    assert_three_parts(caught.value, "device 'cuda:0' cannot be used", "torch", "use device='cpu'")
    chosen = make_backend("auto")
    assert chosen.device.kind == "cpu"
    chosen.close()


@pytest.mark.parametrize("name", ["cuda:x", "cuda:", "cuda:-1", "gpu", "cuda:0:1"])
def test_names_that_are_no_devices(name: str) -> None:
    with pytest.raises(OptionError, match=r"does not exist"):
        make_backend(name)


def test_an_opener_that_fails_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())

    def fail(*_: Any) -> Any:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        CudaBackend(gpu=FakeGpu(FakeDriver()), opener=fail)
    assert set(threading.enumerate()) <= before


# -- lanes ----------------------------------------------------------------------------------------------


def test_lanes_run_on_their_partition_and_never_on_the_primary_context(made: Made) -> None:
    backend, gpu, cohort = made
    quarter = backend.device.partition(32, 0xF0)
    serve(backend, cohort, A, B, on=quarter)
    assert gpu.driver is not None and gpu.problems == []
    assert {sm for stream in gpu.streams_used() for sm in gpu.driver.sms_of(stream)} == set(range(32, 64))
    (granted,) = backend.granted()
    assert (granted.asked_units, granted.planned_units, granted.units, granted.lanes) == (32, 32, 32, 1)


def test_a_partition_that_is_not_ready_serves_on_a_part_of_it_and_says_so(made: Made) -> None:
    backend, gpu, cohort = made
    odd = backend.device.partition(24, 0b1010_0001)
    serve(backend, cohort, A, on=odd)
    serve(backend, cohort, A, on=odd)
    first, second = sorted(backend.granted(), key=lambda kind: kind.units)
    assert (first.planned_units, first.units, first.lanes) == (24, 8, 1)
    assert (second.planned_units, second.units, second.lanes) == (24, 24, 1)
    assert gpu.problems == []


def test_inputs_on_the_device_are_taken_as_they_are(made: Made) -> None:
    backend, gpu, cohort = made
    with gpu.caller() as origin:
        x = rows(2) * 2
        payload = backend.accept(call(x))
    seen: list[int] = []

    class Looks:
        def run(self, lane: Any, payloads: Any) -> Any:
            seen.extend(p.tensors[0].data_ptr() for p in payloads)
            return cohort.executable.run(lane, payloads)

    ended: list[Any] = []
    done = threading.Event()

    def report(result: Any) -> None:
        ended.append(result)
        done.set()

    backend.start(lane_of([("a", x)], backend.device.whole), Looks(), [payload], report)
    assert done.wait(PATIENCE_S)
    assert seen == [x.data_ptr()] and payload.origin == origin
    assert gpu.problems == []


def test_an_input_on_another_device_fails_its_request_alone(made: Made) -> None:
    backend, gpu, cohort = made
    payloads = [call(rows(2)), call(rows(1).to("meta")), call(rows(1, 3))]
    mix = (A, ("c", rows(1)), B)
    outcomes = start(backend, cohort, *mix, payloads=payloads).result(PATIENCE_S).outcomes
    assert_three_parts(outcomes[1].error, "an input is on meta", "the runtime is on cuda:0", "move it there")
    assert outcomes[0].error is None and outcomes[2].error is None
    with torch.no_grad():
        assert torch.allclose(outcomes[2].value, cohort.modules["b"](B[1]), atol=1e-6)
    assert gpu.problems == []


def test_a_lane_that_fails_hurts_nobody_else(made: Made) -> None:
    backend, gpu, cohort = made
    bad = ("b", torch.ones(2, 7))  # seven columns: the batch cannot even be put together
    outcomes = start(backend, cohort, A, bad).result(PATIENCE_S).outcomes
    assert outcomes[0].error is None and isinstance(outcomes[1].error, RuntimeError)
    serve(backend, cohort, A, B, times=2)
    assert gpu.problems == []


def test_an_error_on_the_device_shows_when_the_lane_is_waited_for(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, cohort = made

    def fails(self: FakeEvent) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with monkeypatch.context() as patch:
        patch.setattr(FakeEvent, "synchronize", fails)
        outcomes = start(backend, cohort, A, B).result(PATIENCE_S).outcomes
    assert all("unspecified launch failure" in str(outcome.error) for outcome in outcomes)
    serve(backend, cohort, A, B)


def test_a_broken_context_fails_what_runs_and_rejects_what_comes() -> None:
    backend, gpu = with_gpu()
    cohort, reason = Cohort(), "CUDA error: an illegal memory access was encountered"

    def breaks() -> None:
        gpu.broken = reason

    outcome = start_calls(backend, Calls(), breaks).result(PATIENCE_S).outcomes[0]
    assert reason in str(outcome.error)
    with pytest.raises(RejectedError) as caught:
        start(backend, cohort, A)
    assert_three_parts(caught.value, "a lane of cohort 'cohort' was not started", reason, "start the process again")
    backend.close()  # nothing can be destroyed, and nothing hangs


def test_closing_waits_for_lanes_that_run() -> None:
    backend, gpu = with_gpu()
    entered, go = threading.Event(), threading.Event()

    def waits() -> str:
        entered.set()
        assert go.wait(PATIENCE_S)
        return "ran"

    lane = start_calls(backend, Calls(), waits)
    assert entered.wait(PATIENCE_S)
    closer = threading.Thread(target=backend.close)
    closer.start()
    assert gpu.driver is not None and gpu.driver.contexts, "its partition is still there"
    go.set()
    closer.join(PATIENCE_S)
    assert lane.result(0).outcomes[0].value == "ran"
    assert is_handed_on(gpu)


def test_preparing_a_size_warms_it_up_on_a_worker_that_lanes_use(made: Made) -> None:
    backend, gpu, cohort = made
    ready = threading.Event()
    backend.prepare("cohort", cohort.executable, 64, ready.set)
    assert ready.wait(PATIENCE_S)
    (stream,) = gpu.streams_used()
    before = set(threading.enumerate())
    serve(backend, cohort, A, on=backend.device.partition(64))
    assert gpu.streams_used() == {stream} and set(threading.enumerate()) == before
    assert gpu.problems == []


def test_the_hot_path_creates_nothing_once_it_is_warm(made: Made) -> None:
    backend, gpu, cohort = made
    serve(backend, cohort, A, B, times=8)
    before = list(gpu.created)
    assert gpu.driver is not None
    calls = list(gpu.driver.calls)
    serve(backend, cohort, A, B, times=4)
    assert gpu.created == before and gpu.driver.calls == calls


# -- what lives how long --------------------------------------------------------------------------------


def test_memory_that_was_replaced_lives_until_the_lanes_that_run_have_ended(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _, _ = made
    monkeypatch.setattr(slab, "_RESERVE", 1)
    old = torch.ones(3)
    gone = weakref.ref(old)
    entered, go = threading.Event(), threading.Event()

    def waits() -> None:
        entered.set()
        assert go.wait(PATIENCE_S)

    lane = start_calls(backend, Calls(), waits)
    assert entered.wait(PATIENCE_S)
    backend.retire([old])
    del old
    gc.collect()
    assert gone() is not None
    go.set()
    lane.result(PATIENCE_S)
    gc.collect()
    assert gone() is None


# -- faults that the fake finds -------------------------------------------------------------------------


def test_a_producer_that_is_not_waited_for_is_found(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, gpu, cohort = made
    monkeypatch.setattr(FakeEvent, "wait", lambda self, stream: None)
    stream = gpu.new_stream()
    with gpu.caller(stream):
        x = rows(2) * 2
        payload = backend.accept(call(x))
    start(backend, cohort, ("a", x), payloads=[payload]).result(PATIENCE_S)
    assert any(f"reads what stream {stream.cuda_stream} may still write" in problem for problem in gpu.problems)


def test_an_input_that_its_owner_overwrites_under_the_lane_is_found(made: Made) -> None:
    """The caller's mistake, if he did not wait for the result; here the lane has been told to wait for nobody."""
    backend, gpu, cohort = made
    stream = gpu.new_stream()
    with gpu.caller(stream):
        x = rows(2) * 2
        payload = backend.accept(call(x))
    entered, go = threading.Event(), threading.Event()

    class Slow:
        def run(self, lane: Any, payloads: Any) -> Any:
            outcomes = cohort.executable.run(lane, payloads)
            entered.set()
            assert go.wait(PATIENCE_S)
            return outcomes

    done = threading.Event()
    backend.start(lane_of([("a", x)], backend.device.whole), Slow(), [payload], lambda _: done.set())
    assert entered.wait(PATIENCE_S)
    with gpu.caller(stream):
        x.zero_()
    go.set()
    assert done.wait(PATIENCE_S)
    assert any("writes what stream" in problem for problem in gpu.problems)


def test_a_pinned_buffer_that_is_given_back_too_early_is_found(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, gpu, cohort = made
    serve(backend, cohort, A)  # a buffer of that size is there from now on
    bring = Staging.bring

    def hasty(self: Staging, one: Any, held: list[Any]) -> Any:
        brought = bring(self, one, held)
        self.give_back(held)
        held.clear()
        return brought

    monkeypatch.setattr(Staging, "bring", hasty)
    start(backend, cohort, A, ("b", rows(2, 5))).result(PATIENCE_S)
    assert any("a pinned buffer is filled again" in problem for problem in gpu.problems)


def test_a_result_that_is_not_kept_for_its_readers_stream_is_found(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, gpu, cohort = made
    monkeypatch.setattr(FakeGpu, "keep", lambda self, tensor, stream: None)
    stream = gpu.new_stream()
    with gpu.caller(stream):
        x = rows(2) * 2
        payload = backend.accept(call(x))
    outcomes = start(backend, cohort, ("a", x), payloads=[payload]).result(PATIENCE_S).outcomes
    with gpu.caller(stream):
        used = outcomes[0].value + 1
    del outcomes
    gc.collect()
    gpu.sweep()
    assert any(f"is freed under stream {stream.cuda_stream}" in problem for problem in gpu.problems)
    assert used.shape == (2, 3)


def test_work_on_a_stream_of_the_primary_context_is_found(made: Made) -> None:
    backend, gpu, _ = made

    def strays() -> None:
        with gpu.under(gpu.default()):
            torch.ones(2) + 1

    start_calls(backend, Calls(), strays).result(PATIENCE_S)
    assert any(f"on stream {DEFAULT} of the primary context" in problem for problem in gpu.problems)


def test_backends_side_by_side_do_not_know_each_other() -> None:
    first, second = fake_backend(), fake_backend()
    check(cohort := Cohort(), start(first, cohort, A, B), A, B)
    first.close()
    check(cohort, start(second, cohort, A, B), A, B)
    second.close()
