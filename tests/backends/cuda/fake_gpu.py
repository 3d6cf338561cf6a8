"""A GPU that runs on CPU tensors and watches: every operation under a stream is checked against what it depends on.

Operations run at once, but each has a place in its stream's order, and streams know of each other only through
events (vector clocks). What reads or writes memory without being ordered after whoever used it before is a problem,
even though nothing goes wrong here. So is memory that is freed while another stream still uses it, a pinned buffer
that is filled again before it was copied, work on streams of the primary context, and a capture that a library would
spoil. `problems` must be empty at the end of a test; `created` tells what was made, and on which thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from spacetime.backends.cuda.backend import CudaBackend
from spacetime.backends.cuda.driver import Driver, DriverError
from spacetime.backends.cuda.gpu import Facts, place
from spacetime.backends.cuda.streams import open_partitions
from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.cuda.fake_graph import SYNCHRONISING, Capture, Clock, FakeGraph, join, tensors, written_by

DEFAULT = 7  # the handle of the default stream


@dataclass(frozen=True)
class FakeStream:
    cuda_stream: int


@dataclass(eq=False)
class FakeEvent:
    gpu: FakeGpu
    clock: Clock = field(default_factory=dict)

    def record(self, stream: FakeStream) -> None:
        self.gpu.check_alive()
        with self.gpu.lock:
            self.clock = dict(self.gpu.clock_of(stream.cuda_stream))

    def wait(self, stream: FakeStream) -> None:
        with self.gpu.lock:
            join(self.gpu.clock_of(stream.cuda_stream), self.clock)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.gpu.check_alive()
        with self.gpu.lock:
            join(self.gpu.host, self.clock)


@dataclass
class Memory:
    """A storage: who allocated it, and who used it when."""

    alive: StorageWeakRef
    owner: int
    on_device: bool
    pinned: bool = False
    write: tuple[int, int] | None = None
    reads: Clock = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)

    @property
    def uses(self) -> list[tuple[int, int]]:
        return [*self.reads.items(), *([self.write] if self.write else [])]


class FakeGpu:
    def __init__(self, driver: FakeDriver | None = None, index: int = 0) -> None:
        self.index = index
        self.driver = driver
        self.lock = threading.RLock()
        self.host: Clock = {}  # what the host has waited for
        self.problems: list[str] = []
        self.created: list[tuple[str, str]] = []
        self.ran: list[tuple[int, str]] = []  # (stream, operation), in order
        self.replays = 0
        self.broken: str | None = None
        self.num_free_bytes = 1 << 36
        self._clocks: dict[int, Clock] = {}
        self._memories: dict[int, Memory] = {}
        self._own: dict[int, FakeStream] = {}
        self._warm: set[tuple[int, int]] = set()
        self._here = threading.local()
        self._handles = 1000

    # -- the protocol -----------------------------------------------------------------------------------

    @property
    def torch_device(self) -> str:
        return "cpu"

    def free_bytes(self) -> int:
        return self.num_free_bytes

    def finish(self) -> None:
        with self.lock:
            join(self.host, self.clock_of(self.current().cuda_stream))
            join(self.host, self.clock_of(DEFAULT))

    def facts(self) -> Facts:
        return Facts("Fake H200", "cuda", 132, 1 << 37, 50 << 20, 5e5, 4.8e6)

    def stream(self, handle: int) -> FakeStream:
        known = handle in self._own or (self.driver is not None and handle in self.driver.streams)
        assert known, f"stream {handle} does not exist (any more)"
        return FakeStream(handle)

    def new_stream(self) -> FakeStream:
        self._handles += 1
        stream = self._own[self._handles] = FakeStream(self._handles)
        self._create("stream")
        return stream

    def current(self) -> FakeStream:
        stack = self._stack()
        return stack[-1] if stack else self.default()

    def default(self) -> FakeStream:
        return FakeStream(DEFAULT)

    @contextmanager
    def under(self, stream: FakeStream) -> Iterator[None]:
        self._stack().append(stream)
        try:
            with _Watch(self, stream.cuda_stream):
                yield
        finally:
            self._stack().pop()

    def event(self) -> FakeEvent:
        self._create("event")
        return FakeEvent(self)

    def holds(self, tensor: Tensor) -> bool:
        with self.lock:
            memory = self._find(tensor)
            return memory is not None and memory.on_device

    def pinned(self, num_bytes: int) -> Tensor:
        self._create("pinned")
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
        with self.lock:
            self._memory(buffer).pinned = True
        return buffer

    def fill(self, buffer: Tensor, source: Tensor) -> Tensor:
        with self.lock:
            late = [use for use in self._memory(buffer).uses if not self._host_knows(use)]
        if late:
            self.problems.append(f"a pinned buffer is filled again before its copy on {late} has ended")
        return place(buffer, source)

    def upload(self, host: Tensor) -> Tensor:
        return host.clone(memory_format=torch.preserve_format)

    def keep(self, tensor: Tensor, stream: FakeStream) -> None:
        with self.lock:
            self._memory(tensor).kept.add(stream.cuda_stream)

    def capture(self, stream: FakeStream, function: Callable[[], None]) -> FakeGraph:
        self._create("graph")
        if (threading.get_ident(), stream.cuda_stream) not in self._warm:
            self.problems.append("a capture on a thread and stream where no library was warmed up")
        capture = Capture(self)
        self._stack().append(stream)
        try:
            with capture:
                function()
        finally:
            self._stack().pop()
        if capture.spoilt:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        return FakeGraph(self, capture.calls)

    def warm(self) -> None:
        torch.ones(2, 2) @ torch.ones(2, 2)

    def health(self) -> str | None:
        return self.broken

    # -- for tests --------------------------------------------------------------------------------------

    @contextmanager
    def caller(self, stream: FakeStream | None = None) -> Iterator[FakeStream]:
        """The user's own work, on a stream of the user's."""
        stream = stream or self.default()
        self._here.is_caller = True
        try:
            with self.under(stream):
                yield stream
        finally:
            self._here.is_caller = False

    def check_alive(self) -> None:
        if self.broken is not None:
            raise RuntimeError(self.broken)

    def streams_used(self) -> set[int]:
        return {stream for stream, _ in self.ran}

    def waits_for(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> bool:
        """Does the host wait for such a copy?"""
        return not non_blocking and not self.holds(source)

    # -- the order of things ----------------------------------------------------------------------------

    def clock_of(self, stream: int) -> Clock:
        return self._clocks.setdefault(stream, {})

    def begin(self, stream: int, name: str) -> int:
        """With the lock: the next place in the stream's order."""
        if self.driver is not None and stream not in self.driver.streams and not self._is_caller():
            self.problems.append(f"{name} on stream {stream} of the primary context")
        self.sweep()
        clock = self.clock_of(stream)
        join(clock, self.host)
        clock[stream] = clock.get(stream, 0) + 1
        self.ran.append((stream, name))
        self._warm.add((threading.get_ident(), stream))
        return clock[stream]

    def read(self, tensor: Tensor, stream: int, tick: int, name: str) -> None:
        memory = self._memory(tensor)
        if memory.write is not None and not self._knows(stream, memory.write):
            self.problems.append(f"{name} on stream {stream} reads what stream {memory.write[0]} may still write")
        memory.reads[stream] = tick

    def write(self, tensor: Tensor, stream: int, tick: int, name: str) -> None:
        memory = self._memory(tensor)
        for use in memory.uses:
            if not self._knows(stream, use):
                self.problems.append(f"{name} on stream {stream} writes what stream {use[0]} may still use")
        memory.write, memory.reads = (stream, tick), {}

    def made(self, tensor: Tensor, stream: int, tick: int) -> None:
        """A result of an operation: memory of the stream's, unless it is a view of something."""
        if self._find(tensor) is None:
            memory = self._memory(tensor)
            memory.owner, memory.on_device, memory.write = stream, True, (stream, tick)

    def sweep(self) -> None:
        """What has been freed: its owner may use it for something else at once."""
        for number, memory in list(self._memories.items()):
            if memory.alive.expired():
                del self._memories[number]
                for use in memory.uses:
                    if use[0] not in memory.kept and not self._knows(memory.owner, use) and not self._host_knows(use):
                        self.problems.append(f"memory of stream {memory.owner} is freed under stream {use[0]}")

    def _knows(self, stream: int, use: tuple[int, int]) -> bool:
        return stream == use[0] or self.clock_of(stream).get(use[0], 0) >= use[1] or self._host_knows(use)

    def _host_knows(self, use: tuple[int, int]) -> bool:
        return self.host.get(use[0], 0) >= use[1]

    def _find(self, tensor: Tensor) -> Memory | None:
        memory = self._memories.get(tensor.untyped_storage()._cdata)
        return None if memory is None or memory.alive.expired() else memory

    def _memory(self, tensor: Tensor) -> Memory:
        memory = self._find(tensor)
        if memory is None:
            storage = tensor.untyped_storage()
            memory = self._memories[storage._cdata] = Memory(StorageWeakRef(storage), DEFAULT, on_device=False)
        return memory

    def _stack(self) -> list[FakeStream]:
        if not hasattr(self._here, "stack"):
            self._here.stack = []
        stack: list[FakeStream] = self._here.stack
        return stack

    def _is_caller(self) -> bool:
        return getattr(self._here, "is_caller", False)

    def _create(self, what: str) -> None:
        self.created.append((what, threading.current_thread().name))


class _Watch(TorchDispatchMode):
    """Everything that is called under a stream."""

    def __init__(self, gpu: FakeGpu, stream: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._gpu, self._stream = gpu, stream

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, stream, name = self._gpu, self._stream, str(func.overloadpacket)
        written = written_by(func, args, kwargs or {})
        with gpu.lock:
            tick = gpu.begin(stream, name)
            for tensor in tensors(args, kwargs):
                gpu.read(tensor, stream, tick, name)
            for tensor in written:
                gpu.write(tensor, stream, tick, name)
        result = func(*args, **(kwargs or {}))
        with gpu.lock:
            for tensor in tensors(result):
                gpu.made(tensor, stream, tick)
            if name in SYNCHRONISING or (name == "aten.copy_" and gpu.waits_for(*args, **(kwargs or {}))):
                join(gpu.host, gpu.clock_of(stream))
        return result


def fake_backend(driver: FakeDriver | None = None, *, partitions: bool = True, **options: Any) -> CudaBackend:
    """A backend on a fake GPU; `backend.gpu` is not public, so tests that look use `with_gpu`."""
    return with_gpu(driver, partitions=partitions, **options)[0]


def with_gpu(
    driver: FakeDriver | None = None, *, partitions: bool = True, **options: Any
) -> tuple[CudaBackend, FakeGpu]:
    """`partitions` False: a driver that is too old."""
    driver = (driver or FakeDriver()) if partitions else None

    def open_driver() -> Driver:
        if driver is None:
            raise DriverError("this driver has no green contexts", "the driver supports CUDA 12.2, they need 12.4")
        return driver

    gpu = FakeGpu(driver)
    backend = CudaBackend(gpu=gpu, opener=lambda *rest: open_partitions(*rest, driver=open_driver), **options)
    return backend, gpu
