"""How inputs reach the device: what is copied, through what, when a buffer is free again, and who may fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spacetime.backends.cuda.staging import SMALLEST_BYTES, Arrived, Staging, tensors_in
from spacetime.backends.executables import Call
from spacetime.errors import InputError
from tests.backends.cuda.fake_gpu import FakeGpu
from tests.runtime.models import assert_three_parts


class Background:
    def __init__(self) -> None:
        self.postponed: list[Callable[[], None]] = []

    def __call__(self, function: Callable[[], None]) -> None:
        self.postponed.append(function)

    def run(self) -> None:
        while self.postponed:
            self.postponed.pop(0)()


class Bench:
    """A staging area, and lanes that bring one call at a time."""

    def __init__(self, **options: Any) -> None:
        self.gpu, self.background = FakeGpu(), Background()
        self.staging = Staging(self.gpu, self.background, **options)
        self.lane = self.gpu.new_stream()

    def bring(self, *tensors: Any) -> tuple[Call, list[torch.Tensor]]:
        held: list[torch.Tensor] = []
        with self.gpu.under(self.lane):
            call = self.staging.bring(Call(tensors, tuple(t for t in tensors if isinstance(t, torch.Tensor))), held)
        return call, held

    def on_device(self, *shape: int) -> torch.Tensor:
        with self.gpu.caller():
            return torch.ones(*shape) * 3


def test_what_is_on_the_device_stays_as_it_is() -> None:
    bench = Bench()
    x = bench.on_device(4)
    call, held = bench.bring(x, 7)
    assert call.args[0] is x and call.args[1] == 7 and held == [] and bench.background.postponed == []


def test_the_first_of_a_size_goes_the_slow_way_and_the_next_by_pinned_memory() -> None:
    bench = Bench()
    x = torch.arange(6.0).reshape(2, 3)
    first, held = bench.bring(x)
    assert held == [] and len(bench.background.postponed) == 1
    bench.bring(x)
    assert len(bench.background.postponed) == 1, "it is on its way"
    bench.background.run()
    second, held = bench.bring(x)
    assert len(held) == 1 and held[0].nbytes == SMALLEST_BYTES == bench.staging.pinned_bytes
    for call in (first, second):
        (tensor,) = call.tensors
        assert torch.equal(tensor, x) and bench.gpu.holds(tensor) and tensor is call.args[0]


def test_a_buffer_serves_the_next_lane_once_it_is_given_back() -> None:
    bench = Bench()
    x = torch.ones(5)
    bench.bring(x)
    bench.background.run()
    _, held = bench.bring(x)
    buffer = held[0]
    _, none = bench.bring(x)
    assert none == [], "it is in use; another one is on its way"
    event = bench.gpu.event()
    event.record(bench.lane)
    event.synchronize()
    bench.staging.give_back(held)
    _, held = bench.bring(2 * x)
    assert held[0] is buffer and bench.gpu.problems == []


def test_strides_types_and_structure_survive() -> None:
    bench = Bench()
    picture = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    values = {"picture": picture, "mask": torch.tensor([[True, False]]), "turned": torch.rand(3, 4).t()}
    for _ in range(2):  # slowly, then by pinned memory
        tensors = tuple(values.values())
        with bench.gpu.under(bench.lane):
            call = bench.staging.bring(Call((values, 5), tensors), [])
        (found, five) = call.args
        assert five == 5
        for name, tensor in values.items():
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
            assert found[name].stride() == tensor.stride()
        bench.background.run()


def test_a_tensor_that_is_passed_twice_is_brought_once() -> None:
    bench = Bench()
    x = torch.ones(3)
    call, _ = bench.bring(x, x)
    assert call.args[0] is call.args[1]


def test_single_numbers_and_empty_tensors_need_no_buffer() -> None:
    bench = Bench()
    number, empty = torch.tensor(2.0), torch.empty(0, 3)
    call, held = bench.bring(number, empty)
    assert call.args[0] is number and call.args[1].shape == (0, 3) and held == []
    assert bench.background.postponed == []


def test_pinned_memory_is_bounded() -> None:
    bench = Bench(budget_bytes=SMALLEST_BYTES)
    for size in (3, 5000, 3):
        bench.bring(torch.ones(size))
    bench.background.run()
    assert bench.staging.pinned_bytes == SMALLEST_BYTES
    assert [what for what, _ in bench.gpu.created].count("pinned") == 1


def test_what_the_system_refuses_to_pin_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def refuse(self: FakeGpu, num_bytes: int) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(FakeGpu, "pinned", refuse)
    bench.bring(torch.ones(3))
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.background.run()
    call, held = bench.bring(torch.ones(3))
    assert held == [] and bench.background.postponed == [] and bench.gpu.holds(call.tensors[0])


def test_an_input_elsewhere_is_refused() -> None:
    bench = Bench()
    with pytest.raises(InputError) as caught:
        bench.bring(torch.ones(3, device="meta"))
    assert_three_parts(caught.value, "an input is on meta", "the runtime is on cuda:0", "move it there, or to the CPU")


def test_arriving_marks_the_callers_stream_only_where_something_is_on_the_device() -> None:
    bench = Bench()
    x = bench.on_device(2)
    stream = bench.gpu.new_stream()
    with bench.gpu.caller(stream):
        arrived = bench.staging.arrive(Call((x,), (x,)))
        from_host = bench.staging.arrive(Call((torch.ones(2),), ()))
    assert isinstance(arrived, Arrived) and arrived.origin == stream and arrived.ready is not None
    assert arrived.args == (x,) and arrived.tensors == (x,)
    assert from_host.ready is None and from_host.origin == stream


def test_events_are_used_again() -> None:
    bench = Bench()
    event = bench.staging.event()
    bench.staging.done_with(event)
    assert bench.staging.event() is event
    assert bench.staging.event() is not event


def test_buffers_are_nobody_elses_while_many_lanes_bring() -> None:
    bench = Bench()
    for _ in range(4):
        bench.bring(torch.ones(8))
        bench.background.run()
    barrier = threading.Barrier(4)
    seen: list[int] = []

    def lane() -> None:
        barrier.wait(30)
        for _ in range(50):
            buffer = bench.staging._buffer(32)
            if buffer is not None:
                assert buffer.data_ptr() not in seen
                seen.append(buffer.data_ptr())
                seen.remove(buffer.data_ptr())
                bench.staging.give_back([buffer])

    threads = [threading.Thread(target=lane) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(map(len, bench.staging._free.values())) * SMALLEST_BYTES <= bench.staging.pinned_bytes


def test_tensors_of_a_result() -> None:
    x = torch.ones(1)
    assert list(tensors_in(x)) == [x] and list(tensors_in({"a": (x, None), "b": 3})) == [x]
