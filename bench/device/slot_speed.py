"""Stage: slot kernels against what else one can do with many small products, as shares of what the card can do.

All times are those of CUDA graphs over several sets of weights, together at least twice the L2 cache: nothing is found
warm, no launch is waited for. Only "one after another" is eager on one stream, as a naive server would do it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.device.findings import INFO, Notes
from bench.device.gpu import time_us
from bench.device.kernels import is_missing
from bench.device.restart import Case, each
from bench.device.tables import best_table
from spacetime.kernels import batched_gemm
from spacetime.kernels.triton import slot_conv2d, slot_gemv, slot_linear
from spacetime.kernels.triton.choose import config_for, linear_plan
from spacetime.kernels.triton.convolution import Shape as Convolution
from spacetime.kernels.triton.slot_linear import Operands, Shape
from spacetime.kernels.triton.table import Table, shipped
from spacetime.kernels.triton.target import Target

# An H200 as measured by others; shares of it are what the project promises.
MEMORY_TB_S, FP32_TFLOP_S, BF16_TFLOP_S = 4.3, 67.0, 790.0
MOST_SETS, MOST_BYTES = 8, 24 << 30


@dataclass(frozen=True)
class Figure:
    """A promise: this share of a ceiling, from so many rows on."""

    shape: Shape
    ceiling: str  # "memory" | "compute"
    share: float | None  # None: only measured


def figures() -> list[Figure]:
    found = []
    for rows in (20, 120, 2):
        wanted = None if rows == 2 else 0.8
        found += [Figure(Shape(rows, m, 4096, 4096, "bf16"), "memory", wanted) for m in (1, 8, 4, 2)]
    for rows in (120, 20, 2):
        wanted = 0.75 if rows == 120 else None
        sizes = ((256, 128, 1152), (256, 256, 256))
        found += [Figure(Shape(rows, m, n, k, "fp32"), "compute", wanted) for m, n, k in sizes]
    found += [Figure(Shape(rows, 1, 512, 512, "fp32"), "memory", None) for rows in (120, 20, 2)]
    found += [Figure(Shape(16, 128, n, k, "bf16"), "compute", None) for n, k in ((3072, 768), (768, 3072), (768, 768))]
    return found


def slot_speed(notes: Notes) -> None:
    """The project's figures, one finding each: every path in microseconds, ours also as a share of the ceiling."""
    if is_missing(notes, "slot kernels"):
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    target = Target.of(torch.device("cuda"))
    table = {**shipped(), **best_table()}
    with notes.trying("batched_gemm"):
        notes.note("batched_gemm", INFO, batched_gemm.missing() or "cublasGemmBatchedEx is there")
    cases: list[Case] = [(_name(figure), partial(_linear, figure, target, table)) for figure in figures()]
    for size, channels in ((56, 64), (28, 128), (14, 256), (7, 512)):
        for rows in (16, 64):
            shape = Convolution(rows, 1, (size, size), channels, channels, (3, 3), "bf16", padding=(1, 1))
            cases.append((f"conv {rows} rows {channels}x{size}x{size} bf16", partial(_conv, shape, target, table)))
    each(notes, "slot_speed", cases, status=INFO)


def _name(figure: Figure) -> str:
    shape = figure.shape
    return f"{shape.rows} rows {shape.m}x{shape.n}x{shape.k} {shape.dtype}"


# -- linear layers ----------------------------------------------------------------------------------------


def _linear(figure: Figure, target: Target, table: Table) -> dict[str, Any]:
    shape = figure.shape
    samples = _samples(slot_linear, shape)
    us, problems = {}, {}
    for name, sides in _linear_sides(shape, samples, target, table).items():
        try:
            us[name] = round(sides(), 2)
        except Exception as error:  # a path that is not there must not hide the others
            problems[name] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    best = min((name for name in us if name.startswith("slot")), key=us.__getitem__, default=None)
    return {"us": us, "problems": problems, "sets": len(samples)} | ({} if best is None else _share(figure, us, best))


def _share(figure: Figure, us: dict[str, float], best: str) -> dict[str, Any]:
    """What the best of ours attains; the others' times beside it, in multiples of ours."""
    shape = figure.shape
    item = 4 if shape.dtype == "fp32" else 2
    moved = shape.rows * (shape.n * shape.k + shape.m * (shape.n + shape.k)) * item
    compute = FP32_TFLOP_S if shape.dtype == "fp32" else BF16_TFLOP_S
    attained = moved / us[best] / 1e6 if figure.ceiling == "memory" else _flops(shape) / us[best] / 1e6
    share = attained / (MEMORY_TB_S if figure.ceiling == "memory" else compute)
    unit = "tb_s" if figure.ceiling == "memory" else "tflop_s"
    promise = {} if figure.share is None else {"promised": figure.share, "kept": share >= figure.share}
    gains = {name: round(time / us[best], 2) for name, time in us.items() if not name.startswith("slot")}
    return {"best": best, unit: round(attained, 2), "share": round(share, 3), "times_of_ours": gains, **promise}


def _flops(shape: Shape) -> int:
    return 2 * shape.rows * shape.m * shape.n * shape.k


def _linear_sides(
    shape: Shape, samples: list[Operands], target: Target, table: Table
) -> dict[str, Callable[[], float]]:
    def kernel(module: Any, of: Shape, config: Any) -> float:
        words = module.workspace_words(of, config)
        workspace = torch.zeros(words, dtype=torch.int32, device="cuda") if words else None
        launches = [module.launch(of, config, replace(each, workspace=workspace), target) for each in samples]
        return _graph_us([launch.run for launch in launches])

    sides: dict[str, Callable[[], float]] = {}
    for module in (slot_gemv, slot_linear) if shape.m <= slot_gemv.MOST_ROWS else (slot_linear,):
        for precision in ("ieee", "tf32x3") if shape.dtype == "fp32" and module is slot_linear else ("ieee",):
            of = replace(shape, precision=precision)
            config = config_for(module, of, target, table)
            suffix = "" if precision == "ieee" else f" {precision}"
            sides[f"{module.NAME}{suffix}"] = partial(kernel, module, of, config)
            if config != module.default(of, target):
                sides[f"{module.NAME}{suffix}, default config"] = partial(
                    kernel, module, of, module.default(of, target)
                )
    chosen = linear_plan(shape, target, table)
    sides[f"slot: as served ({chosen.kernel.NAME})"] = partial(kernel, chosen.kernel, chosen.shape, chosen.config)
    sides["bmm"] = lambda: _graph_us([partial(_bmm, each) for each in samples])
    sides["one graph, chained"] = lambda: _graph_us([partial(_one_by_one, each) for each in samples])
    sides["one after another"] = lambda: time_us(_turns([partial(_one_by_one, each) for each in samples]), repeats=5)
    sides["cublasGemmBatchedEx"] = lambda: _cublas_us(shape, samples)
    if shape.dtype == "bf16":
        sides["torch._grouped_mm"] = lambda: _grouped_us(shape, samples)
    return sides


def _bmm(operands: Operands) -> None:
    torch.bmm(operands.x, operands.weight.stack.transpose(1, 2), out=operands.out)


def _one_by_one(operands: Operands) -> None:
    x, weights, out = operands.x, operands.weight.stack, operands.out
    for row in range(x.shape[0]):
        torch.mm(x[row], weights[row].T, out=out[row])


def _cublas_us(shape: Shape, samples: list[Operands]) -> float:
    reason = batched_gemm.missing()
    if reason is not None:
        raise RuntimeError(reason)
    handle, stream = batched_gemm.Handle(), torch.cuda.Stream()
    handle.bind(stream, torch.empty(32 << 20, dtype=torch.uint8, device="cuda"))
    pointers = [torch.zeros(3 * shape.rows, dtype=torch.int64, device="cuda") for _ in samples]
    scratch = samples[0].out.new_empty(shape.m, shape.n)

    def work(operands: Operands, own: Tensor) -> None:
        weight = operands.weight
        handle.linear(operands.x, weight.stack, weight.entries, operands.num_active, operands.out, own, scratch)

    try:
        return _graph_us([partial(work, *pair) for pair in zip(samples, pointers, strict=True)], stream)
    finally:
        torch.cuda.synchronize()
        handle.close()


def _grouped_us(shape: Shape, samples: list[Operands]) -> float:
    ends = torch.arange(1, shape.rows + 1, dtype=torch.int32, device="cuda") * shape.m
    ends = ends.to(torch.int32)

    def work(operands: Operands) -> None:
        flat = operands.x.view(-1, shape.k)
        torch._grouped_mm(flat, operands.weight.stack.transpose(1, 2), offs=ends)

    return _graph_us([partial(work, operands) for operands in samples])


# -- convolutions -----------------------------------------------------------------------------------------


def _conv(shape: Convolution, target: Target, table: Table) -> dict[str, Any]:
    """Ours against cuDNN, tenant by tenant in one chained graph, and eagerly."""
    samples = _samples(slot_conv2d, shape)
    config = config_for(slot_conv2d, shape, target, table)
    ours_us = _graph_us([slot_conv2d.launch(shape, config, each, target).run for each in samples])

    def one_by_one(operands: Any) -> None:
        for row in range(shape.rows):
            weight = operands.weight.stack[row].permute(0, 3, 1, 2)
            torch.nn.functional.conv2d(operands.x[row].permute(0, 3, 1, 2), weight, None, shape.stride, shape.padding)

    chained_us = _graph_us([partial(one_by_one, each) for each in samples])
    eager_us = time_us(_turns([partial(one_by_one, each) for each in samples]), repeats=5)
    flops = 2 * shape.rows * shape.pixels * shape.out_channels * shape.channels * shape.kernel[0] * shape.kernel[1]
    return {
        "us": {
            "slot_conv2d": round(ours_us, 2),
            "one graph, chained": round(chained_us, 2),
            "one after another": round(eager_us, 2),
        },
        "tflop_s": round(flops / ours_us / 1e6, 1),
        "share": round(flops / ours_us / 1e6 / BF16_TFLOP_S, 3),
        "config": str(config),
    }


# -- timing -----------------------------------------------------------------------------------------------


def _samples(kernel: Any, shape: Any) -> list[Any]:
    """Sets of operands that together exceed the L2 cache, in turn."""
    from spacetime.kernels.triton.tune import num_bytes

    first = kernel.sample(shape, "cuda", slots=shape.rows)
    size = num_bytes(first)
    enough = 1 + 2 * torch.cuda.get_device_properties(0).L2_cache_size // max(1, size)
    copies = max(1, min(4 * MOST_SETS, enough, MOST_BYTES // size))
    return [first, *(kernel.sample(shape, "cuda", slots=shape.rows, seed=seed) for seed in range(1, copies))]


def _graph_us(calls: list[Callable[[], None]], stream: torch.cuda.Stream | None = None) -> float:
    """One call, from a graph of all."""
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    us = time_us(graph.replay, repeats=15, warm_up=2) / len(calls)
    del graph
    return us


def _turns(calls: list[Callable[[], None]]) -> Callable[[], None]:
    state = [0]

    def call() -> None:
        state[0] += 1
        calls[state[0] % len(calls)]()

    return call


__all__ = ["slot_speed"]
