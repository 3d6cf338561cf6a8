"""CUDA graphs of the fake GPU: what a capture writes down, and its replay. Only fake_gpu.py uses it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from tests.backends.cuda.fake_gpu import FakeGpu

Clock = dict[int, int]  # stream -> how far it has come, as far as is known
SYNCHRONISING = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero")


@dataclass
class Called:
    func: Any
    args: Any
    kwargs: Any
    results: list[Tensor]
    written: list[Tensor]


class Capture(TorchDispatchMode):
    """Writes down what is called. Results are memory of the graph's."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._gpu = gpu
        self.calls: list[Called] = []
        self.spoilt = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        if name in SYNCHRONISING or self.spoilt:
            self.spoilt = True
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        read = {tensor.untyped_storage()._cdata for tensor in tensors(args, kwargs)}
        results = list(tensors(result))
        fresh = [tensor for tensor in results if tensor.untyped_storage()._cdata not in read]
        written = fresh + written_by(func, args, kwargs or {})
        self.calls.append(Called(func, args, kwargs or {}, results, written))
        with self._gpu.lock:
            for tensor in fresh:
                self._gpu.made(tensor, self._gpu.current().cuda_stream, 0)
        return result


class FakeGraph:
    def __init__(self, gpu: FakeGpu, calls: list[Called]) -> None:
        self._gpu, self._calls = gpu, calls
        made = {tensor.untyped_storage()._cdata: tensor.nbytes for call in calls for tensor in call.written}
        self.num_bytes = sum(made.values())

    def replay(self) -> None:
        gpu, stream = self._gpu, self._gpu.current().cuda_stream
        with gpu.lock:
            gpu.replays += 1
            tick = gpu.begin(stream, "replay")
            for call in self._calls:
                for tensor in tensors(call.args, call.kwargs):
                    gpu.read(tensor, stream, tick, "replay")
            for call in self._calls:
                for tensor in call.written:
                    gpu.write(tensor, stream, tick, "replay")
        with torch._C._DisableTorchDispatch():
            for call in self._calls:
                if "empty" in str(call.func):
                    continue  # memory is no kernel; what the host has written there stays
                again = list(tensors(call.func(*call.args, **call.kwargs)))
                for old, new in zip(call.results, again, strict=True):
                    if any(old is made for made in call.written) and old is not new:
                        old.copy_(new)


def tensors(*values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))


def written_by(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Arguments that the operation's schema says it writes to."""
    found: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.extend(tensors(value))
    return found


def join(clock: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)
