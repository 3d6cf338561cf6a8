"""Stage: fused programs on the GPU, end to end. The same answers as the plain modules, eagerly and from one graph.

What it proves, model by model: the form for GPUs and its kernels are right for ragged mixes; one CUDA graph serves any
mix after one small copy; what that copy and the replay cost on the host; how a replay compares with the tenants' own
graphs one after another. Each finding says which kernels ran, and why some did not.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench.device.findings import Notes
from bench.device.gpu import time_us
from bench.device.kernels import is_missing, tests_module
from bench.device.restart import Case, each
from spacetime.backends.compiler import compile_program
from spacetime.capture.cohort import Cohort
from spacetime.capture.selfcheck import deviation
from spacetime.kernels import AnyRows, MixError, RowMap
from spacetime.kernels.bound import choices
from spacetime.kernels.rowmap import fill, num_words
from spacetime.zoo import build, example

TENANTS = 16
MODELS = ("mlp", "resnet18", "bert", "mobilenet_v2", "vit", "recommender", "resnet50")
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
MIXES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((7,), (2,)),
    ((0, 1, 2), (1, 1, 1)),
    ((0, 2, 5, 9), (3, 1, 2, 4)),
    (tuple(range(TENANTS)), (1,) * TENANTS),  # last: which kernels ran is told of this one
)


def slot_programs(notes: Notes) -> None:
    """One finding per model and type."""
    if is_missing(notes, "fused programs"):
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    cases: list[Case] = [
        (f"{name} {str(dtype).removeprefix('torch.')}", partial(_model, name, dtype))
        for dtype in LIMITS
        for name in MODELS
    ]
    each(notes, "slot_programs", cases)


class _Served:
    """Tenants of one architecture on the GPU."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype
        self.modules: list[nn.Module] = [build(name, seed).to("cuda", dtype) for seed in range(TENANTS)]
        helper = tests_module("capture.tenants")
        captured = helper.capture(self.modules[0], self.inputs(2, 0))
        self.cohort = Cohort(captured)
        for index, module in enumerate(self.modules):
            self.cohort.join(str(index), helper.weights_of(captured, module))
        self.compiled = compile_program(self.cohort.fused, self.cohort.layers)
        self.leaves_of = helper.leaves_of

    def inputs(self, rows: int, seed: int) -> tuple[Tensor, ...]:
        tensors = (tensor.cuda() for tensor in example(self.name, rows, seed))
        return tuple(tensor.to(self.dtype) if tensor.is_floating_point() else tensor for tensor in tensors)

    def batch(self, slots: tuple[int, ...], rows: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
        return [self.inputs(count, slot) for slot, count in zip(slots, rows, strict=True)]

    def worst(self, outputs: Any, slots: tuple[int, ...], rows: tuple[int, ...]) -> float:
        """Deviation from the plain modules, by the numerics contract's measure."""
        found = 0.0
        columns = [output[: sum(rows)].split(list(rows)) for output in outputs]
        for index, (slot, own) in enumerate(zip(slots, self.batch(slots, rows), strict=True)):
            for column, plain in zip(columns, self.leaves_of(self.modules[slot], own), strict=True):
                found = max(found, deviation(column[index], plain))
        return found

    def run(self, slots: tuple[int, ...], rows: tuple[int, ...]) -> float:
        inputs = [torch.cat(column) for column in zip(*self.batch(slots, rows), strict=True)]
        with torch.no_grad():
            return self.worst(self.compiled.run(RowMap(slots, rows), *inputs), slots, rows)


def _model(name: str, dtype: torch.dtype) -> dict[str, Any]:
    served = _Served(name, dtype)
    worst = {f"{len(slots)} tenants, {sum(rows)} rows": served.run(slots, rows) for slots, rows in MIXES}
    ran = Counter(choice.kernel for choice in choices(served.compiled.kernels))
    reasons = sorted({choice.reason for choice in choices(served.compiled.kernels) if choice.reason})
    figures: dict[str, Any] = {"worst": worst, "kernels": dict(ran), "reasons": reasons}
    limit = LIMITS[dtype]
    if not max(worst.values()) <= limit:
        raise AssertionError(f"eagerly: {worst}, {limit} is allowed; {figures}")
    own_us = _own_graphs_us(served)
    try:
        graph = _graph(served)
    except MixError as error:  # a program that needs a graph for each mix
        return {**figures, "no_graph_for_any_mix": error.facts, "own_graphs_us": own_us}
    if not max(graph["worst"].values()) <= limit:
        raise AssertionError(f"from one graph: {graph}, {limit} is allowed")
    return {**figures, "graph": graph, "own_graphs_us": own_us}


def _graph(served: _Served) -> dict[str, Any]:
    """One capture, replayed for every mix."""
    total = TENANTS
    words = torch.zeros(num_words(total), dtype=torch.int32, device="cuda")
    host = torch.zeros(num_words(total), dtype=torch.int32).pin_memory()
    static = served.inputs(total, 0)
    rows = AnyRows(total, words)
    stream = torch.cuda.Stream()
    with torch.no_grad():
        fill(host, *MIXES[1])
        words.copy_(host)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            served.compiled.run(rows, *static)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            outputs = served.compiled.run(rows, *static)
    worst = {}
    for slots, counts in MIXES:
        joined = [torch.cat(column) for column in zip(*served.batch(slots, counts), strict=True)]
        for mine, given in zip(static, joined, strict=True):
            mine[: given.shape[0]].copy_(given)
        fill(host, slots, counts)
        words.copy_(host, non_blocking=True)
        graph.replay()
        torch.cuda.synchronize()
        worst[f"{len(slots)} tenants, {sum(counts)} rows"] = served.worst(outputs, slots, counts)
    samples = []
    for _ in range(100):
        start_s = time.perf_counter()
        fill(host, *MIXES[-1])
        words.copy_(host, non_blocking=True)
        graph.replay()
        samples.append(1e6 * (time.perf_counter() - start_s))
        torch.cuda.synchronize()
    replay_us = time_us(graph.replay, repeats=20)
    return {"worst": worst, "host_us": round(median(samples), 1), f"replay_us_of_{total}_rows": round(replay_us, 1)}


def _own_graphs_us(served: _Served) -> float:
    """Every tenant's plain module as a graph of its own, one row each, one after another."""
    graphs = []
    stream = torch.cuda.Stream()
    with torch.no_grad():
        for module in served.modules:
            own = served.inputs(1, 0)
            with torch.cuda.stream(stream):
                module(*own)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                module(*own)
            graphs.append((graph, own))
    return round(time_us(lambda: [graph.replay() for graph, _ in graphs], repeats=10), 1)


__all__ = ["slot_programs"]
