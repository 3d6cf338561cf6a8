"""What is asked of torch.cuda, as far as it can be seen without a GPU: copies into pinned bytes, absence, facts."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spacetime.backends.cuda import gpu
from spacetime.backends.cuda.gpu import TorchGpu, place, unusable
from spacetime.errors import OptionError
from tests.backends.cuda.fake_gpu import FakeGpu
from tests.runtime.models import assert_three_parts


@pytest.mark.parametrize(
    "source",
    [
        torch.arange(12.0).reshape(3, 4),
        torch.arange(12).reshape(3, 4).t(),
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.rand(4, 6)[:, ::2],
        torch.ones(1, 3).expand(4, 3),
        torch.tensor([True, False]),
        torch.rand(3).bfloat16(),
        torch.rand(3, requires_grad=True),
        torch.empty(0, 2),
    ],
)
def test_a_copy_in_a_buffer_is_what_a_clone_would_be(source: torch.Tensor) -> None:
    buffer = torch.full((4096,), 255, dtype=torch.uint8)
    copy, clone = place(buffer, source), source.detach().clone()
    assert torch.equal(copy, clone) and copy.stride() == clone.stride() and copy.dtype == clone.dtype
    assert copy.data_ptr() == buffer.data_ptr() or not source.numel()
    assert bool((buffer[max(source.nbytes, clone.nbytes) :] == 255).all()), "nothing behind it is written"
    assert not copy.requires_grad


@pytest.mark.parametrize(
    ("cuda", "hip", "available", "kind", "reason"),
    [
        (None, None, False, None, "built for CPUs only"),
        ("13.0", None, False, None, "finds no GPU"),
        ("13.0", None, True, None, None),
        ("13.0", None, True, "cuda", None),
        ("13.0", None, True, "hip", "built for cuda"),
        (None, "6.3", True, "hip", None),
        (None, "6.3", True, "cuda", "built for hip"),
    ],
)
def test_why_torch_can_use_no_gpu(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, hip: str | None, available: bool, kind: str | None, reason: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    found = unusable(kind)
    assert found is None if reason is None else found is not None and reason in found


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "unusable", lambda kind: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(OptionError) as caught:
        TorchGpu(2)
    assert_three_parts(caught.value, "device 'cuda:2' does not exist", "there are 2, numbered from 0", "name one")


@pytest.fixture
def torch_gpu(monkeypatch: pytest.MonkeyPatch) -> TorchGpu:
    """The real class on what torch.cuda would say."""
    properties = SimpleNamespace(
        name="NVIDIA H200",
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=150_000_000_000,
        L2_cache_size=52_428_800,
        clock_rate=1_980_000,
        memory_clock_rate=3_201_000,
        memory_bus_width=6144,
    )
    monkeypatch.setattr(gpu, "unusable", lambda kind: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "default_generators", (Generator("own"),))
    return TorchGpu(0)


class Generator:
    """torch's generator of a device: what it draws from is a state, which several generators can share."""

    def __init__(self, state: str) -> None:
        self.state = state

    def graphsafe_get_state(self) -> Generator:
        return Generator(self.state)

    def graphsafe_set_state(self, other: Generator) -> None:
        self.state = other.state

    def clone_state(self) -> Generator:
        return Generator(f"copy of {self.state}")


def test_peaks_follow_from_clocks_and_widths(torch_gpu: TorchGpu) -> None:
    facts = torch_gpu.facts()
    assert (facts.name, facts.num_units, facts.memory_bytes) == ("NVIDIA H200", 132, 150_000_000_000)
    assert facts.flops_per_unit_us is not None and facts.bytes_per_us is not None
    assert facts.flops_per_unit_us * 132 * 1e6 == pytest.approx(66.9e12, rel=1e-2)
    assert facts.bytes_per_us * 1e6 == pytest.approx(4.9e12, rel=1e-2)
    assert torch_gpu.torch_device == "cuda:0"


def test_what_is_free_includes_what_torch_keeps(torch_gpu: TorchGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert torch_gpu.free_bytes() == 130


def test_a_thread_that_waits_for_an_event_sleeps(torch_gpu: TorchGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: asked.append(options))
    torch_gpu.event()
    assert asked == [{"blocking": True}]


def test_a_context_that_is_broken_tells_its_first_reason(torch_gpu: TorchGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def record(self, stream: Any) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", Broken)
    assert torch_gpu.health() == "CUDA error: an illegal memory access was encountered"


def test_a_capture_ends_whatever_its_function_does(torch_gpu: TorchGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Recorded:
        def __init__(self) -> None:
            self.replay = lambda: None

        def capture_begin(self, pool: tuple[int, int], capture_error_mode: str) -> None:
            calls.append(f"begin {capture_error_mode} with the {torch.cuda.default_generators[0].state} state")
            assert pool == (0, 7)

        def capture_end(self) -> None:
            calls.append("end")

        def pool(self) -> tuple[int, int]:
            return (0, 7)

    class Under:
        def __init__(self, stream: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    segments = [{"segment_pool_id": (0, 7), "total_size": 5}, {"segment_pool_id": (0, 0), "total_size": 9}]
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)

    def end_allocations(index: int, pool: tuple[int, int]) -> None:
        calls.append(f"no more of pool {pool} on {index}")
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")  # as it is where it has ended

    monkeypatch.setattr(torch.cuda, "stream", Under)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocations, raising=False)

    def works() -> None:
        calls.append(f"work with the {torch.cuda.default_generators[0].state} state")

    graph = torch_gpu.capture(None, works)
    assert calls == [BEGIN, "work with the own state", "end"] and graph.num_bytes == 5
    calls.clear()

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        torch_gpu.capture(None, fails)
    assert calls == [BEGIN, "end", "no more of pool (0, 7) on 0"], "or the allocator waits for its end"
    assert torch.cuda.default_generators[0].state == "own" and gpu._UNENDED == []


BEGIN = "begin thread_local with the copy of own state"  # nobody else who draws random numbers is in the capture


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_capture_that_cannot_end_gives_back_what_it_held(
    torch_gpu: TorchGpu, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    class Broken:
        def capture_begin(self, pool: tuple[int, int], capture_error_mode: str) -> None:
            if is_refused:
                raise RuntimeError("CUDA error: operation not permitted")

        def capture_end(self) -> None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    ended: list[tuple[int, int]] = []
    monkeypatch.setattr(gpu, "_UNENDED", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Broken)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda index, pool: ended.append(pool), raising=False)
    with pytest.raises(RuntimeError, match="CUDA error"):
        torch_gpu.capture(None, lambda: None)
    assert torch.cuda.default_generators[0].state == "own", "others go on drawing from it"
    assert ended == [(0, 7)]
    assert [type(each) for each in gpu._UNENDED] == [Broken], "torch goes on asking it"


def test_the_fake_and_the_real_one_have_the_same_calls() -> None:
    public = {name for name in vars(gpu.Gpu) if not name.startswith("_")}
    for kind in (TorchGpu, FakeGpu):
        assert public <= {name for name in dir(kind) if not name.startswith("_")}
