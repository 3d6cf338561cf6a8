"""y[r] = x[r] @ W[slot[r]].T for all rows in one cuBLAS launch: the thin wrapper of csrc/batched_gemm.cu. CUDA only.

Who a row belongs to lives in device memory, so a captured graph serves any mix of tenants. Needs the compiled
library; `missing()` says why it cannot be used here.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spacetime.errors import InputError
from spacetime.kernels.native import Library, NativeError

_POINTER = c_void_p
_SIGNATURES: dict[str, Sequence[Any]] = {
    "st_cuda_device_count": [_POINTER],
    "st_blas_open": [c_char_p],
    "st_blas_create": [_POINTER],
    "st_blas_destroy": [_POINTER],
    "st_blas_version": [_POINTER, _POINTER],
    "st_blas_bind": [_POINTER, _POINTER, _POINTER, c_int64, c_int],
    "st_slot_pointers": [
        *(_POINTER, _POINTER, _POINTER, c_int),
        *(_POINTER, c_int64, _POINTER, c_int64, _POINTER, c_int64),
        *(_POINTER, _POINTER),
    ],
    "st_batched_gemm": [_POINTER, c_int, c_int, c_int, c_int, c_int, _POINTER],
    "st_grouped_gemm": [
        *(_POINTER, c_int, c_int),
        *(_POINTER, _POINTER, _POINTER, _POINTER),
        *(_POINTER, _POINTER, _POINTER),
    ],
}
# The order is that of FindPrecision in csrc/batched_gemm.cu; TF32 is fp32 that may be rounded.
_PRECISIONS = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
_TF32 = 1
_WORKSPACE_BYTES = 4 << 20  # what cuBLAS asks for at least; batches of small products need less


@cache
def library() -> Library:
    return Library("spacetime_cuda", "st_error", _SIGNATURES)


def missing() -> str | None:
    """What it lacks to be used here; None when it can be."""
    try:
        count = c_int()
        library().call("st_cuda_device_count", byref(count))
        library().call("st_blas_open", None)
    except NativeError as error:
        return error.facts or error.what
    return None if count.value else "there is no CUDA device"


class Handle:
    """A cuBLAS handle bound to a stream, a workspace and a number of SMs: one per partition. Not thread-safe."""

    def __init__(self) -> None:
        self._handle = c_void_p()
        library().call("st_blas_create", byref(self._handle))
        self._workspace: Tensor | None = None  # cuBLAS uses it as long as it is bound

    def bind(self, stream: torch.cuda.Stream, workspace: Tensor, num_units: int = 0) -> None:
        """`num_units` is what heuristics may count on; 0 for the whole device."""
        self._workspace = workspace
        num_bytes = workspace.numel() * workspace.element_size()
        arguments = (stream.cuda_stream, workspace.data_ptr(), num_bytes, num_units)
        library().call("st_blas_bind", self._handle, *arguments)

    def unbind(self) -> None:
        """Give the workspace back to whoever else uses the stream; bind() again before the next product."""
        self._workspace = None

    def close(self) -> None:
        library().call("st_blas_destroy", self._handle)
        self._handle = c_void_p()

    @property
    def version(self) -> int:
        version = c_int()
        library().call("st_blas_version", self._handle, byref(version))
        return version.value

    def linear(
        self, x: Tensor, slab: Tensor, slot: Tensor, num_active: Tensor, out: Tensor, pointers: Tensor, scratch: Tensor
    ) -> None:
        """out[r] = x[r] @ slab[slot[r]].T for r < num_active and slot[r] >= 0; other rows of `out` stay as they are.

        x[rows, M, K], slab[slots, N, K], out[rows, M, N]; pointers: int64[3 * rows] and scratch: [M, N] are the
        launch's own memory. Runs on the bound stream; reads no host memory, so it can be captured.
        """
        rows, num_rows_each, depth = _check(x, slab, slot, num_active, out, pointers, scratch)
        width = slab.shape[1]
        assert self._workspace is not None, "bind() comes first"
        library().call(
            "st_slot_pointers",
            *(torch.cuda.current_stream().cuda_stream, slot.data_ptr(), num_active.data_ptr(), rows),
            *(slab.data_ptr(), _stride_bytes(slab), x.data_ptr(), _stride_bytes(x), out.data_ptr(), _stride_bytes(out)),
            *(scratch.data_ptr(), pointers.data_ptr()),
        )
        precision = _precision(x.dtype)
        arguments = (precision, rows, num_rows_each, width, depth, pointers.data_ptr())
        library().call("st_batched_gemm", self._handle, *arguments)

    def grouped(
        self, shapes: Sequence[tuple[int, int, int, int]], dtype: torch.dtype, weights: Tensor, x: Tensor, out: Tensor
    ) -> None:
        """Groups of (M, N, K, products) in one launch; weights, x and out are int64 device addresses, by group."""
        columns = [(c_int * len(shapes))(*column) for column in zip(*shapes, strict=True)]
        addresses = (weights.data_ptr(), x.data_ptr(), out.data_ptr())
        library().call("st_grouped_gemm", self._handle, _precision(dtype), len(shapes), *columns, *addresses)


def linear(x: Tensor, slab: Tensor, slot: Tensor, num_active: Tensor, out: Tensor) -> None:
    """`Handle.linear` on the current stream, with the thread's own handle and memory of torch's allocator.

    A handle is made in the first call of a thread, which no capture allows: call it once before. The memory is the
    stream's, or the captured graph's. Heuristics count on the whole device.
    """
    handle = _handle_of_thread(x.device.index or 0)
    pointers = torch.empty(3 * x.shape[0], dtype=torch.int64, device=x.device)
    scratch = x.new_empty(x.shape[1], slab.shape[1])
    workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=x.device)
    handle.bind(torch.cuda.current_stream(x.device), workspace)
    try:
        handle.linear(x, slab, slot, num_active, out, pointers, scratch)
    finally:
        handle.unbind()


class _Lent:
    """The handles of a thread, by device. They outlive it: to destroy one waits for the device, and breaks captures."""

    def __init__(self) -> None:
        self.handles: dict[int, Handle] = {}

    def __del__(self) -> None:
        for device, handle in self.handles.items():
            _FREE[device].append(handle)


_FREE: defaultdict[int, deque[Handle]] = defaultdict(deque)
_OF_THREAD = threading.local()


def _handle_of_thread(device: int) -> Handle:
    lent: _Lent | None = getattr(_OF_THREAD, "lent", None)
    if lent is None:
        lent = _OF_THREAD.lent = _Lent()
    handle = lent.handles.get(device)
    if handle is None:
        try:
            handle = _FREE[device].pop()
        except IndexError:
            handle = Handle()
        lent.handles[device] = handle
    return handle


def _precision(dtype: torch.dtype) -> int:
    if dtype not in _PRECISIONS:
        known = ", ".join(map(str, _PRECISIONS))
        raise InputError(f"batched_gemm of {dtype}", f"cuBLAS batches {known}", "use another kernel")
    is_tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return _TF32 if is_tf32 else _PRECISIONS[dtype]


def _check(
    x: Tensor, slab: Tensor, slot: Tensor, num_active: Tensor, out: Tensor, pointers: Tensor, scratch: Tensor
) -> tuple[int, int, int]:
    rows, num_rows_each, depth = x.shape
    width = slab.shape[1]
    problems = [
        (slab.shape[2] != depth, f"x has depth {depth}, the slab {slab.shape[2]}"),
        (out.shape != (rows, num_rows_each, width), f"out is {tuple(out.shape)}"),
        (len({x.dtype, slab.dtype, out.dtype, scratch.dtype}) > 1, f"types {x.dtype}, {slab.dtype}, {out.dtype}"),
        (slot.dtype != torch.int32 or slot.numel() < rows, f"slot is {slot.dtype}[{slot.numel()}] for {rows} rows"),
        (num_active.dtype != torch.int32, f"num_active is {num_active.dtype}"),
        (pointers.dtype != torch.int64 or pointers.numel() < 3 * rows, f"pointers hold {pointers.numel()}"),
        (scratch.numel() < num_rows_each * width, f"scratch holds {scratch.numel()}"),
        (not all(tensor[0].is_contiguous() for tensor in (x, slab, out)), "a row or a slot is not contiguous"),
    ]
    for is_wrong, facts in problems:
        if is_wrong:
            raise InputError(
                f"batched_gemm of x{tuple(x.shape)} and slab{tuple(slab.shape)}",
                facts,
                "pass operands as linear() describes them",
            )
    return rows, num_rows_each, depth


def _stride_bytes(tensor: Tensor) -> int:
    return tensor.stride(0) * tensor.element_size()
