"""How inputs reach a lane: those on the device as they are, after their producer; those on the host by pinned memory.

A request's inputs were put on some stream of the caller's. `Staging.arrive`, called on the submitting thread, marks
that point; the lane's stream waits for it, nobody else does. Inputs on the host travel through pinned buffers, copied
by the device while the host goes on. A buffer of a size that was never needed is made in the background; until then
such inputs go the slow way, from pageable memory. Used by backends/cuda/backend.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from spacetime.backends.cuda.gpu import Event, Gpu, Stream
from spacetime.backends.cuda.green import Later
from spacetime.backends.executables import Call
from spacetime.errors import InputError

BUDGET_BYTES = 256 << 20  # of pinned memory, which the system cannot swap
SMALLEST_BYTES = 4 << 10


@dataclass(frozen=True, slots=True)
class Arrived:
    """A payload with the stream it was submitted from; `ready`: when its inputs are there. None: they are on the host.

    Has the tensors and arguments of its call, so whoever reads those need not know.
    """

    call: Call
    origin: Stream
    ready: Event | None

    @property
    def args(self) -> tuple[Any, ...]:
        return self.call.args

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.call.tensors


class Staging:
    """One per device. `bring` runs on the thread of a lane, under its stream."""

    def __init__(self, gpu: Gpu, later: Later, budget_bytes: int = BUDGET_BYTES) -> None:
        self._gpu = gpu
        self._later = later
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._free: dict[int, list[Tensor]] = {}
        self._coming: set[int] = set()
        self._events: list[Event] = []
        self.pinned_bytes = 0

    def arrive(self, call: Call) -> Arrived:
        """Called where and when the request is submitted."""
        origin, ready = self._gpu.current(), None
        if any(map(self._gpu.holds, call.tensors)):
            ready = self.event()
            ready.record(origin)
        return Arrived(call, origin, ready)

    def event(self) -> Event:
        try:
            return self._events.pop()
        except IndexError:
            return self._gpu.event()

    def done_with(self, event: Event) -> None:
        """Everybody who waits for it knows already."""
        self._events.append(event)

    def bring(self, call: Call, held: list[Tensor]) -> Call:
        """The call with all its inputs on the device. `held`: buffers to give back when the lane has ended."""
        moved = {id(tensor): self._moved(tensor, held) for tensor in call.tensors if not self._stays(tensor)}
        if not moved:
            return call
        args = pytree.tree_map(lambda leaf: moved.get(id(leaf), leaf), call.args)
        return Call(args, tuple(moved.get(id(tensor), tensor) for tensor in call.tensors))

    def give_back(self, held: list[Tensor]) -> None:
        with self._lock:
            for buffer in held:
                self._free[buffer.nbytes].append(buffer)

    def _stays(self, tensor: Tensor) -> bool:
        """torch takes a single number from the host wherever it computes."""
        return self._gpu.holds(tensor) or tensor.ndim == 0

    def _moved(self, tensor: Tensor, held: list[Tensor]) -> Tensor:
        if tensor.device.type != "cpu":
            what = f"an input is on {tensor.device}"
            raise InputError(what, f"the runtime is on cuda:{self._gpu.index}", "move it there, or to the CPU")
        buffer = self._buffer(tensor.nbytes) if tensor.nbytes and not tensor.is_pinned() else None
        if buffer is None:
            return self._gpu.upload(tensor.detach())
        held.append(buffer)
        return self._gpu.upload(self._gpu.fill(buffer, tensor))

    def _buffer(self, num_bytes: int) -> Tensor | None:
        size = max(SMALLEST_BYTES, 1 << (num_bytes - 1).bit_length())
        with self._lock:
            free = self._free.setdefault(size, [])
            if free:
                return free.pop()
            if size in self._coming or self.pinned_bytes + size > self._budget_bytes:
                return None
            self._coming.add(size)
            self.pinned_bytes += size
        self._later(lambda: self._make(size))
        return None

    def _make(self, size: int) -> None:
        """In the background. What the system refuses is not asked for again."""
        buffer = self._gpu.pinned(size)
        with self._lock:
            self._free[size].append(buffer)
            self._coming.discard(size)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a result."""
    if isinstance(value, Tensor):
        yield value
    else:
        yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
