"""What the processor offers to vector kernels: lanes, registers, and the threads of PyTorch's own pool."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import torch

_LEAST_LLVM = (20, 0, 0)  # before, pointers had types, and intrinsics other names
PARALLEL, BARRIER = "GOMP_parallel", "GOMP_barrier"
THREAD, THREADS = "omp_get_thread_num", "omp_get_num_threads"


@dataclass(frozen=True, slots=True)
class Host:
    """`lanes` floats are one register. A tile of `pixels` by `channels` registers of sums leaves room for operands."""

    cpu: str
    features: str
    lanes: int
    pixels: int
    channels: int


@cache
def host() -> Host | None:
    """None where a multiply and an add are not one instruction: there PyTorch's own kernels stay."""
    if llvm.llvm_version_info < _LEAST_LLVM:
        return None
    features = llvm.get_host_cpu_features()
    cpu, text = llvm.get_host_cpu_name(), features.flatten()
    if features.get("avx512f") and features.get("avx512vl") and features.get("fma"):
        return wide(cpu, text)
    if features.get("avx2") and features.get("fma"):
        return narrow(cpu, text)
    if platform.machine() in ("aarch64", "arm64"):
        return Host(cpu, text, lanes=4, pixels=4, channels=4)
    return None


def wide(cpu: str, features: str) -> Host:
    """AVX-512: 32 registers of 16 floats."""
    return Host(cpu, f"{features},-prefer-256-bit", lanes=16, pixels=4, channels=4)  # else LLVM halves the registers


def narrow(cpu: str, features: str) -> Host:
    """AVX2: 16 registers of 8 floats."""
    return Host(cpu, features, lanes=8, pixels=2, channels=4)


@cache
def has_threads() -> bool:
    """Can kernels run on the threads that PyTorch's operations use? Makes their functions known to LLVM."""
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        library = ctypes.CDLL(str(path))  # loaded already; this only finds it
        for name in (PARALLEL, BARRIER, THREAD, THREADS):
            llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
        return True
    return False
