"""Stages on speed: batched GEMMs by every path, convolutions, interference between partitions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from bench.device.findings import INFO, MISSING, Notes
from bench.device.gpu import geomean, halves, open_partitions, stream_of, time_us, worst
from spacetime.kernels import batched_gemm

SHAPES = {"512x1x512": (512, 1, 512), "256x128x1152": (256, 128, 1152), "256x256x256": (256, 256, 256)}
COUNTS = (1, 2, 4, 8, 10, 16, 20, 32, 40, 64, 80, 100, 120)
PRODUCTS = 50  # of a victim beside an aggressor, in one graph
SETS = 8  # weight sets that take turns, so that the L2 does not flatter a loop


def gemm(notes: Notes) -> None:
    """The Space-Time table: M x N x K as N rows per tenant against R different M x K weights."""
    for precision in ("fp32", "tf32", "bf16"):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for name, (m, n, k) in SHAPES.items():
            with notes.trying(f"{name} {precision}"):
                _gemm_of(notes, name, precision, m, n, k, dtype)
    torch.backends.cuda.matmul.allow_tf32 = False


def _gemm_of(notes: Notes, name: str, precision: str, m: int, n: int, k: int, dtype: torch.dtype) -> None:
    most = max(COUNTS)
    slabs = [torch.randn(most, m, k, device="cuda", dtype=dtype) / k**0.5 for _ in range(SETS)]
    x = torch.randn(most, n, k, device="cuda", dtype=dtype)
    out = torch.empty(most, n, m, device="cuda", dtype=dtype)
    ours = _Ours(most, n, m, dtype) if batched_gemm.missing() is None else None
    speeds: dict[str, dict[int, float]] = {}
    for count in COUNTS:
        turn = _Turn()
        paths: dict[str, Callable[[], Any]] = {
            "one after another": lambda count=count, turn=turn: [
                torch.mm(x[r], slab[r].T, out=out[r]) for slab in (slabs[turn()],) for r in range(count)
            ],
            "bmm": lambda count=count, turn=turn: torch.bmm(
                x[:count], slabs[turn()][:count].transpose(1, 2), out=out[:count]
            ),
        }
        if ours is not None:
            paths["cublasGemmBatchedEx over slots"] = lambda count=count, turn=turn: ours(x, slabs[turn()], out, count)
        for path, work in paths.items():
            repeats = 10 if path == "one after another" else 20
            us = time_us(work, repeats=repeats, inner=4)
            speeds.setdefault(path, {})[count] = round(2 * m * n * k * count / us / 1e3, 1)
    graphs = {count: _sequential_graph(x, slabs[0], out, count) for count in (20, 120)}
    speeds["one graph, in sequence"] = {c: round(2 * m * n * k * c / us / 1e3, 1) for c, us in graphs.items()}
    gains = {
        path: round(geomean([by[c] / speeds["one after another"][c] for c in COUNTS[1:]]), 2)
        for path, by in speeds.items()
        if set(COUNTS) <= by.keys()
    }
    notes.note(
        f"{name} {precision}",
        INFO,
        "GFLOP/s by R; gain over one after another, geomean over R > 1",
        gflops=speeds,
        gains=gains,
    )
    if ours is not None:
        ours(x, slabs[0], out, most)
        torch.cuda.synchronize()
        exact = torch.bmm(x.double(), slabs[0].double().transpose(1, 2))
        limit = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 2e-2}[precision]
        error = worst(out, exact)
        notes.check(f"{name} {precision} is right", error <= limit, worst=error)


class _Turn:
    def __init__(self) -> None:
        self._index = 0

    def __call__(self) -> int:
        self._index = (self._index + 1) % SETS
        return self._index


class _Ours:
    """csrc/batched_gemm.cu with everything it needs allocated before."""

    def __init__(self, most: int, n: int, m: int, dtype: torch.dtype) -> None:
        self.handle = batched_gemm.Handle()
        self.handle.bind(torch.cuda.current_stream(), torch.empty(32 << 20, dtype=torch.uint8, device="cuda"))
        self.slot = torch.arange(most, dtype=torch.int32, device="cuda")
        self.active = torch.zeros(1, dtype=torch.int32, device="cuda")
        self.pointers = torch.zeros(3 * most, dtype=torch.int64, device="cuda")
        self.scratch = torch.empty(n, m, dtype=dtype, device="cuda")
        self._count = 0

    def __call__(self, x: torch.Tensor, slab: torch.Tensor, out: torch.Tensor, count: int) -> None:
        if count != self._count:
            self.active.fill_(count)
            self._count = count
        self.handle.linear(x[:count], slab, self.slot, self.active, out[:count], self.pointers, self.scratch)


def _sequential_graph(x: torch.Tensor, slab: torch.Tensor, out: torch.Tensor, count: int) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for r in range(count):
            torch.mm(x[r], slab[r].T, out=out[r])
    return time_us(graph.replay, repeats=20)


def conv(notes: Notes) -> None:
    """R tenants' convolutions, 3x3, bf16, one row each: one after another, grouped, and as im2col + bmm."""
    for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
        for count in (8, 32):
            name = f"{channels}x{side} R={count}"
            with notes.trying(name):
                paths = _conv_paths(channels, side, count)
                us = {path: round(time_us(work, repeats=10), 1) for path, work in paths.items()}
                notes.note(name, INFO, us=us)


def _conv_paths(channels: int, side: int, count: int) -> dict[str, Callable[[], Any]]:
    functional = torch.nn.functional
    x = torch.randn(count, channels, side, side, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(count, channels, channels, 3, 3, device="cuda", dtype=torch.bfloat16)
    rows = x.to(memory_format=torch.channels_last)
    filters = [each.to(memory_format=torch.channels_last) for each in w]
    wide, stacked = x.reshape(1, -1, side, side), w.reshape(-1, channels, 3, 3)
    flat = w.reshape(count, channels, -1)
    return {
        "one after another": lambda: [functional.conv2d(rows[r : r + 1], filters[r], padding=1) for r in range(count)],
        "grouped": lambda: functional.conv2d(wide, stacked, padding=1, groups=count),
        "im2col + bmm": lambda: torch.bmm(flat, functional.unfold(x, 3, padding=1)),
    }


def interference(notes: Notes) -> None:
    """A victim's latency beside an aggressor: in the complementary partition, and on the primary context."""
    contexts = open_partitions()
    a, b = (torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    big = torch.empty(1 << 28, device="cuda", dtype=torch.uint8)
    other = torch.empty_like(big)
    c = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    victim, beside = (stream_of(contexts, mask) for mask in halves(contexts))
    aggressors = {"complementary partition": beside, "primary context": torch.cuda.Stream()}
    graph, result = torch.cuda.CUDAGraph(), torch.empty_like(a)
    with torch.cuda.stream(victim):
        torch.mm(a, b, out=result)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=victim):  # launched one by one, they would measure who has the GIL
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=result)
    with torch.cuda.stream(victim):
        quiet = time_us(graph.replay, repeats=50) / PRODUCTS
    for place, stream in aggressors.items():
        for load, work in {"matmul": lambda: torch.mm(c, c), "copy": lambda: other.copy_(big)}.items():
            stop = threading.Event()

            def attack(stream: Any = stream, work: Any = work, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    with torch.cuda.stream(stream):
                        work()
                    stream.synchronize()

            thread = threading.Thread(target=attack)
            thread.start()
            try:
                with torch.cuda.stream(victim):
                    loud = time_us(graph.replay, repeats=50) / PRODUCTS
            finally:
                stop.set()
                thread.join()
            torch.cuda.synchronize()
            notes.note(
                f"{load} in the {place}",
                INFO,
                quiet_us=round(quiet, 1),
                beside_us=round(loud, 1),
                factor=round(loud / quiet, 2),
            )


def native(notes: Notes) -> None:
    """Build csrc/batched_gemm.cu on this machine and compare it with float64, idle rows included."""
    from spacetime.kernels.native import build  # part of what is probed

    if batched_gemm.missing() is not None:
        with notes.trying("build"):
            major, minor = torch.cuda.get_device_capability()
            notes.note("build", INFO, str(build(architectures=[f"{major}{minor}"])))
    reason = batched_gemm.missing()
    if reason is not None:
        notes.note("batched_gemm", MISSING, reason)
        return
    torch.manual_seed(0)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)):
        with notes.trying(f"batched_gemm {dtype}"):
            slab = torch.randn(7, 70, 96, device="cuda", dtype=dtype)
            x = torch.randn(6, 5, 96, device="cuda", dtype=dtype)
            out = torch.full((6, 5, 70), float("nan"), device="cuda", dtype=dtype)
            ours = _Ours(6, 5, 70, dtype)
            slots = [4, -1, 0, 6, 2, 99]
            ours.slot.copy_(torch.tensor(slots, dtype=torch.int32))
            ours.active.fill_(5)
            ours.handle.linear(x, slab, ours.slot, ours.active, out, ours.pointers, ours.scratch)
            torch.cuda.synchronize()
            live = [row for row in range(5) if slots[row] >= 0]
            errors = [worst(out[row], x[row].double() @ slab[slots[row]].double().T) for row in live]
            idle = all(bool(out[row].isnan().all()) for row in (1, 5))
            notes.check(
                f"batched_gemm {dtype}", max(errors) <= limit and idle, worst=max(errors), idle_rows_untouched=idle
            )
    with notes.trying("batched_gemm in a graph"):
        slab, x = torch.randn(4, 64, 64, device="cuda"), torch.randn(4, 2, 64, device="cuda")
        out = torch.zeros(4, 2, 64, device="cuda")
        ours = _Ours(4, 2, 64, torch.float32)
        ours.active.fill_(4)
        stream = torch.cuda.Stream()
        ours.handle.bind(stream, torch.empty(32 << 20, dtype=torch.uint8, device="cuda"))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            ours.handle.linear(x, slab, ours.slot, ours.active, out, ours.pointers, ours.scratch)
        found = []
        for order in ([3, 2, 1, 0], [0, 0, 2, 2]):
            ours.slot.copy_(torch.tensor(order, dtype=torch.int32))
            graph.replay()
            torch.cuda.synchronize()
            found.append(worst(out, torch.bmm(x.double(), slab[order].double().transpose(1, 2))))
        notes.check("one graph serves any mix of tenants", max(found) <= 1e-5, worst=max(found))


__all__ = ["conv", "gemm", "interference", "native"]
