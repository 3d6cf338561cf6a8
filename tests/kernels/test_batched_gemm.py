"""Handles for batched products without a GPU: each thread has its own, none is destroyed. The library is a fake.

What the library itself does is tested in tests/csrc.
"""

from __future__ import annotations

import gc
import threading
from collections import defaultdict, deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spacetime.errors import InputError
from spacetime.kernels import batched_gemm


class Library:
    """Gives out numbers as handles, and remembers what each was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, tuple[Any, ...]]] = []  # name, thread, arguments
        self._number = 0

    def call(self, name: str, *arguments: Any) -> None:
        if name == "st_blas_create":
            self._number += 1
            arguments[0]._obj.value = self._number
        found = tuple([getattr(each, "value", each) for each in arguments])
        self.calls.append((name, threading.get_ident(), found))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, _, arguments in self.calls if called == name]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake = Library()
    monkeypatch.setattr(batched_gemm, "library", lambda: fake)
    monkeypatch.setattr(batched_gemm, "_FREE", defaultdict(deque))
    monkeypatch.setattr(batched_gemm, "_OF_THREAD", threading.local())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: SimpleNamespace(cuda_stream=77))
    return fake


def multiply() -> None:
    x, slab, out = torch.randn(3, 2, 16), torch.randn(4, 8, 16), torch.empty(3, 2, 8)
    batched_gemm.linear(x, slab, torch.zeros(3, dtype=torch.int32), torch.tensor([3], dtype=torch.int32), out)


def in_thread(barrier: threading.Barrier | None = None) -> threading.Thread:
    def work() -> None:
        multiply()
        if barrier is not None:
            barrier.wait(60)
        multiply()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_product_is_bound_to_the_current_stream_with_a_workspace_of_torchs(library: Library) -> None:
    multiply()
    (bound,) = library.of("st_blas_bind")
    assert bound[:2] == (1, 77) and bound[3] == batched_gemm._WORKSPACE_BYTES and bound[4] == 0
    names = [name for name, _, _ in library.calls]
    assert names == ["st_blas_create", "st_blas_bind", "st_slot_pointers", "st_batched_gemm"]
    (product,) = library.of("st_batched_gemm")
    assert product[1:6] == (0, 3, 2, 8, 16)


def test_nothing_of_a_product_is_kept(library: Library) -> None:
    """Memory of a captured graph would be kept from being released."""
    multiply()
    assert batched_gemm._OF_THREAD.lent.handles[0]._workspace is None
    with pytest.raises(InputError):
        wrong = torch.empty(3, 2, 9)
        zeros = torch.zeros(3, dtype=torch.int32)
        batched_gemm.linear(torch.randn(3, 2, 16), torch.randn(4, 8, 16), zeros, zeros[:1], wrong)
    assert batched_gemm._OF_THREAD.lent.handles[0]._workspace is None


def test_threads_at_the_same_time_have_handles_of_their_own(library: Library) -> None:
    barrier = threading.Barrier(3)
    threads = [in_thread(barrier) for _ in range(3)]
    for thread in threads:
        thread.join()
    owners: dict[int, set[int]] = {}
    for name, thread_id, arguments in library.calls:
        if name == "st_blas_bind":
            owners.setdefault(thread_id, set()).add(arguments[0])
    assert len(owners) == 3 and sorted(owners.values(), key=min) == [{1}, {2}, {3}]


def test_a_thread_that_ends_leaves_its_handle_to_the_next(library: Library) -> None:
    for _ in range(3):
        in_thread().join()
        gc.collect()
    assert len(library.of("st_blas_create")) == 1 and len(library.of("st_batched_gemm")) == 6
    assert not library.of("st_blas_destroy"), "that would wait for the device"
