"""Pinning and intra-op threads of the calling thread. Used by backends/cpu.py.

torch.set_num_threads also changes MKL's process-wide setting, which would slow down everybody else's
threads; the thread-local knobs of OpenMP and MKL leave them alone.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from spacetime.backends.cores import can_pin

T = TypeVar("T")

_OMP_PAUSE_SOFT = 1


def confine(cores: Collection[int]) -> None:
    """Run the calling thread, and the intra-op threads it will start, on these cores only."""
    if can_pin():
        os.sched_setaffinity(0, cores)
    torch.get_num_threads()  # lets torch initialise this thread first; it would overwrite what follows
    library = _torch_library()
    if library is None:
        torch.set_num_threads(len(cores))
        return
    library.omp_set_num_threads(len(cores))
    if hasattr(library, "MKL_Set_Num_Threads_Local"):
        library.MKL_Set_Num_Threads_Local(len(cores))


def is_neutral(num_threads: int) -> bool:
    """Would a lane compute on the calling thread just what it computes on a worker with so many threads?

    Autocast, inference mode and torch's function and dispatch modes belong to the thread, and must not leak into
    the work of other tenants.
    """
    return (
        torch.get_num_threads() == num_threads
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_inference_mode_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
    )


def release_team() -> None:
    """Let the intra-op threads of the calling thread go; it gets new ones when it next needs them.

    OpenMP keeps a team for every thread that ever computed. Once all teams together have more threads than there
    are cores, busy or not, they sleep at barriers instead of spinning, and everybody's small parallel kernels
    take several times as long (measured: five batched GEMMs 77 -> 600 us beside one idle team).
    """
    library = _torch_library()
    if library is not None and hasattr(library, "omp_pause_resource_all"):
        library.omp_pause_resource_all(_OMP_PAUSE_SOFT)


def on_passing_thread(function: Callable[[], T]) -> T:
    """Call the function on a thread that ends with it, and its intra-op threads with it: see `release_team`."""
    keep_device_guard()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


@cache
def keep_device_guard() -> None:
    """Where torch is built for CUDA and finds no GPU, exports need a stand-in for the device's guard.

    torch keeps it in the memory of the thread that exports first, and crashes when another one exports after that has
    ended (seen in 2.11). So a thread that never ends asks for it before any other.
    """
    ensure = getattr(torch._C, "_ensureCUDADeviceGuardSet", None)
    if ensure is None or torch.version.cuda is None or torch.cuda.is_available():
        return
    is_set = threading.Event()

    def hold() -> None:
        ensure()
        is_set.set()
        threading.Event().wait()

    threading.Thread(target=hold, name="spacetime-device-guard", daemon=True).start()
    is_set.wait()


@cache
def _torch_library() -> ctypes.CDLL | None:
    """torch's CPU library, if it runs on OpenMP: symbols of its dependencies are found through it."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not path.exists():
        return None
    library = ctypes.CDLL(str(path))
    return library if hasattr(library, "omp_set_num_threads") else None
