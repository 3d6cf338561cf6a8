"""What the backend needs of torch.cuda, behind a narrow protocol. Only backends/cuda and the doctor import it.

`TorchGpu` is the real one; importing this module touches no device. Tests bring a fake that runs on CPU tensors and
finds races. Streams and events are torch's own classes, of which the protocols name what is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from spacetime.errors import OptionError

# fp32 lanes per SM by compute capability; no attribute of the driver tells.
LANES_OF = {(7, 0): 64, (7, 5): 64, (8, 0): 64}
MOST_LANES = 128  # all others


class Stream(Protocol):
    @property
    def cuda_stream(self) -> int: ...


class Event(Protocol):
    """A point on a stream. It can be recorded again once everybody who waits for it has been told to."""

    def record(self, stream: Any) -> None: ...

    def wait(self, stream: Any) -> None:
        """What is put on the stream from now on runs after the event."""

    def query(self) -> bool: ...

    def synchronize(self) -> None:
        """Block the calling thread, without holding up others."""


class Replayable(Protocol):
    """A captured graph. `replay` puts it on the current stream; its kernels stay where they were captured."""

    num_bytes: int

    def replay(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Facts:
    """What a device says of itself; rates are peaks. None where this version of torch does not tell."""

    name: str
    kind: str  # "cuda" | "hip"
    num_units: int
    memory_bytes: int
    cache_bytes: int
    flops_per_unit_us: float | None
    bytes_per_us: float | None


class Gpu(Protocol):
    """One device. Tensors that live on it are its; "under" a stream means that torch's calls go there."""

    index: int

    @property
    def torch_device(self) -> str:
        """How torch names it: "cuda:0"."""

    def facts(self) -> Facts: ...

    def free_bytes(self) -> int:
        """What can still be had: of the device, and of what torch has kept to itself."""

    def finish(self) -> None:
        """Wait for what the calling thread has put on its stream and on the default one."""

    def stream(self, handle: int) -> Stream:
        """An existing stream by its handle."""

    def new_stream(self) -> Stream:
        """A stream on the whole device."""

    def current(self) -> Stream:
        """Where the calling thread's work goes."""

    def default(self) -> Stream: ...

    def under(self, stream: Stream) -> AbstractContextManager[Any]: ...

    def event(self) -> Event: ...

    def holds(self, tensor: Tensor) -> bool: ...

    def pinned(self, num_bytes: int) -> Tensor:
        """Page-locked bytes on the host. Slow: never on the hot path."""

    def fill(self, buffer: Tensor, source: Tensor) -> Tensor:
        """Copy a host tensor into pinned bytes, on the host and now; the copy, strides kept."""

    def upload(self, host: Tensor) -> Tensor:
        """A copy on the device, made on the current stream; in the background if `host` is pinned."""

    def keep(self, tensor: Tensor, stream: Stream) -> None:
        """The tensor will be used on that stream: once freed, its memory waits for what is on it by then."""

    def capture(self, stream: Stream, function: Callable[[], None]) -> Replayable:
        """What the function puts on the stream, as a graph. Nothing runs. One capture at a time."""

    def warm(self) -> None:
        """Have the libraries make what they need for this thread and the current stream."""

    def health(self) -> str | None:
        """Why nothing can run any more; None while something can."""


class TorchGpu:
    """The real one."""

    def __init__(self, index: int = 0, kind: str = "cuda") -> None:
        reason = unusable(kind)
        if reason is not None:
            what = f"device '{kind}:{index}' cannot be used"
            raise OptionError(what, reason, "use device='cpu'; `spacetime doctor` says more")
        if index >= torch.cuda.device_count():
            facts = f"there are {torch.cuda.device_count()}, numbered from 0"
            raise OptionError(f"device '{kind}:{index}' does not exist", facts, "name one of them")
        self.index = index
        self._device = torch.device("cuda", index)
        torch.cuda.init()
        torch.empty(1, device=self._device)  # the primary context exists from here on

    @property
    def torch_device(self) -> str:
        return str(self._device)

    def free_bytes(self) -> int:
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0]) + unused

    def finish(self) -> None:
        self.current().synchronize()  # type: ignore[attr-defined]
        self.default().synchronize()  # type: ignore[attr-defined]

    def facts(self) -> Facts:
        found = torch.cuda.get_device_properties(self._device)
        clock_khz = getattr(found, "clock_rate", 0)  # not in every version of torch
        memory_khz, bus_bits = getattr(found, "memory_clock_rate", 0), getattr(found, "memory_bus_width", 0)
        lanes = LANES_OF.get((found.major, found.minor), MOST_LANES)
        return Facts(
            name=found.name,
            kind="hip" if torch.version.hip else "cuda",
            num_units=found.multi_processor_count,
            memory_bytes=found.total_memory,
            cache_bytes=found.L2_cache_size,
            flops_per_unit_us=2e-3 * clock_khz * lanes if clock_khz else None,
            bytes_per_us=2e-3 * memory_khz * bus_bits / 8 if memory_khz and bus_bits else None,  # two per clock
        )

    def stream(self, handle: int) -> Stream:
        return torch.cuda.ExternalStream(handle, device=self._device)

    def new_stream(self) -> Stream:
        return torch.cuda.Stream(device=self._device)

    def current(self) -> Stream:
        return torch.cuda.current_stream(self._device)

    def default(self) -> Stream:
        return torch.cuda.default_stream(self._device)

    def under(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)  # makes its device the current one, too

    def event(self) -> Event:
        # Blocking: `synchronize` sleeps. Otherwise it spins, and every lane under way would keep a core busy.
        return torch.cuda.Event(blocking=True)

    def holds(self, tensor: Tensor) -> bool:
        return tensor.is_cuda and tensor.get_device() == self.index

    def pinned(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def fill(self, buffer: Tensor, source: Tensor) -> Tensor:
        return place(buffer, source)

    def upload(self, host: Tensor) -> Tensor:
        return torch.empty_like(host, device=self._device).copy_(host, non_blocking=True)

    def keep(self, tensor: Tensor, stream: Any) -> None:
        tensor.record_stream(stream)

    def capture(self, stream: Any, function: Callable[[], None]) -> Replayable:
        # Not torch.cuda.graph(): it synchronises the device and empties the allocator's cache, and others are serving.
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with torch.cuda.stream(stream):
            try:
                with _random_numbers_apart(self.index):
                    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    function()
                finally:
                    graph.capture_end()
            except BaseException:
                if _end_allocations(self.index, pool):
                    _UNENDED.append(graph)
                raise
        return _TorchGraph(graph)

    def warm(self) -> None:
        small = torch.ones(8, 8, device=self._device)
        torch.addmm(small, small, small)

    def health(self) -> str | None:
        try:
            event = torch.cuda.Event()
            event.record(torch.cuda.default_stream(self._device))
            event.query()
        except RuntimeError as error:  # once the context is broken every call fails, with the first reason
            return str(error).partition("\n")[0]
        return None


class _TorchGraph:
    """A graph with a memory pool of its own, so that dropping it gives the memory back."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self.replay = graph.replay
        pool = tuple(graph.pool())
        segments = torch.cuda.memory_snapshot()
        self.num_bytes = sum(part["total_size"] for part in segments if tuple(part["segment_pool_id"]) == pool)


@contextmanager
def _random_numbers_apart(index: int) -> Iterator[None]:
    """The capture that begins inside does not hold the device's generator: it gets a copy of its state.

    Before torch 2.12 a capture marks the generator's state, and whoever uses it meanwhile on another stream fails
    ("Offset increment outside graph capture"): a caller's torch.randn on the device, and the replay of every graph that
    was captured with the same state. A capture that fails never takes the mark off. A function that draws random
    numbers cannot be captured this way; its lane stays eager.
    """
    generator = torch.cuda.default_generators[index]
    own = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(own)


# Captures that failed: torch's allocator of pinned memory goes on asking them whether a stream is theirs, as long as
# the process lives. One that is destroyed would answer from memory that belongs to somebody else.
_UNENDED: list[Any] = []


def _end_allocations(index: int, pool: Any) -> bool:
    """After a capture that failed: torch before 2.12 would take it to be under way for ever. Was it?

    From then on the allocator would neither free what `keep` was told of, nor give up its cache when memory is short.
    """
    try:
        torch._C._cuda_endAllocateToPool(index, pool)
    except RuntimeError:
        return False  # it has ended: a newer torch, or a function that failed while the capture did not
    return True


def place(buffer: Tensor, source: Tensor) -> Tensor:
    """A copy of the source in a buffer of bytes, with the strides that a clone would have."""
    like = torch.empty_like(source, device="meta")
    copy = buffer[: source.nbytes].view(source.dtype).as_strided(like.shape, like.stride())
    return copy.copy_(source.detach())


def unusable(kind: str | None = None) -> str | None:
    """Why torch can use no GPU (of that kind: "cuda", "hip") here; None when it can."""
    built_for = "hip" if torch.version.hip else "cuda" if torch.version.cuda else None
    if built_for is None:
        return f"torch {torch.__version__} is built for CPUs only"
    if kind not in (None, built_for):
        return f"torch {torch.__version__} is built for {built_for}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU, or no driver for it"
    return None
