"""Finds the fastest configs on this machine's GPU and writes them to the table: python -m spacetime.kernels.triton.tune

Offline only: nothing imports this module. A candidate that is wrong, or that the device refuses, is reported and out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from spacetime.kernels.triton import missing
from spacetime.kernels.triton.choose import KERNELS
from spacetime.kernels.triton.convolution import Shape as Convolution
from spacetime.kernels.triton.slot_layernorm import Shape as Norm
from spacetime.kernels.triton.slot_linear import Shape as Linear
from spacetime.kernels.triton.table import SHIPPED, Measured, load, save
from spacetime.kernels.triton.target import Target
from spacetime.values import decode, encode

Timer = Callable[[Any, Any, Any], float]  # (kernel, shape, config) -> microseconds; raises what the config raises
METHOD = "median of 20 replays of a CUDA graph; operand sets rotate, together at least twice the L2 cache"
TOLERANCE = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 2e-2, "fp16": 5e-3}


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate: its time, or why it has none."""

    config: Any
    time_us: float | None
    problem: str = ""


class WrongResult(Exception):
    """A candidate computed something else than the reference."""


def configs_of(kernel: Any, shape: Any, target: Target, limit: int | None = None) -> list[Any]:
    """The default, then every candidate, or `limit` of them from first to last."""
    every = list(kernel.candidates(shape, target))
    step = 1 if not limit else max(1, -(-len(every) // limit))
    some = every[::step] if limit is None or limit else []
    return list(dict.fromkeys([kernel.default(shape, target), *some]))


def trials(
    kernel: Any,
    shape: Any,
    target: Target,
    timer: Timer,
    limit: int | None = None,
    goes_on: Callable[[], bool] = lambda: True,
) -> list[Trial]:
    """Candidates and the default, the fastest first; those that failed come last."""
    found: list[Trial] = []
    for config in configs_of(kernel, shape, target, limit):
        if found and not goes_on():
            break
        try:
            found.append(Trial(config, timer(kernel, shape, config)))
        except Exception as error:
            found.append(Trial(config, None, f"{type(error).__name__}: {error}".splitlines()[0]))
    return sorted(found, key=lambda trial: float("inf") if trial.time_us is None else trial.time_us)


def tune(
    shapes: Iterable[tuple[str, Any]],
    target: Target,
    timer: Timer,
    path: Path,
    limit: int | None = None,
    report: Callable[[str], None] = print,
    goes_on: Callable[[], bool] = lambda: True,
) -> None:
    """Measures (kernel name, shape) pairs and adds the winners to the table, which is saved after each.

    `goes_on` is asked before every candidate; a shape that was cut short keeps the fastest of what was tried.
    """
    versions = tuned_with()
    for name, shape in shapes:
        if not goes_on():
            report(f"{name} {shape}: no time left")
            continue
        found = trials(KERNELS[name], shape, target, timer, limit, goes_on)
        failed = [trial for trial in found if trial.time_us is None]
        report(f"{name} {shape}: {len(found) - len(failed)} measured, {len(failed)} failed")
        for trial in failed:
            report(f"  {trial.config}: {trial.problem}")
        best = found[0]
        if best.time_us is None:
            continue
        report(f"  {best.time_us:.2f} us: {best.config}")
        measured = Measured(name, target.name, encode(shape), encode(best.config), best.time_us, METHOD, versions)
        save(path, {**load(path), measured.key: measured}.values())


def prepared(kernel: Any, shape: Any, config: Any, device: str, seed: int = 0) -> Any:
    """Random operands that are ready to be launched with this config."""
    slots = max(layer.rows for layer in getattr(shape, "layers", [shape]))
    words = kernel.workspace_words(shape, config)
    operands = kernel.sample(shape, device, slots=slots, seed=seed, words=words)
    return kernel.prepare(shape, config, operands) if hasattr(kernel, "prepare") else operands


def verify(kernel: Any, shape: Any, config: Any, operands: Any, target: Target) -> None:
    """Raises WrongResult where a launch deviates from the reference."""
    deviation(kernel, shape, config, operands, target)


def deviation(kernel: Any, shape: Any, config: Any, operands: Any, target: Target) -> float:
    """The largest of all layers, relative to the largest value; WrongResult where it is not allowed."""
    expected = kernel.reference(shape, operands)
    kernel.launch(shape, config, operands, target).run()
    wanted_of = expected if isinstance(expected, tuple) else (expected,)
    first = getattr(shape, "layers", [shape])[0]
    tolerance = TOLERANCE["tf32" if getattr(first, "precision", "ieee") == "tf32" else first.dtype]
    worst = 0.0
    for of_layer, wanted in zip(getattr(operands, "layers", [operands]), wanted_of, strict=True):
        found = float((of_layer.out.double() - wanted).abs().max() / wanted.abs().max())
        if not found <= tolerance:  # a NaN is not
            raise WrongResult(f"deviates by {found:.2e}, {tolerance:.0e} is allowed")
        worst = max(worst, found)
    return worst


class GraphTimer:
    """Times a candidate on the current GPU, after comparing it with the reference."""

    def __init__(self, target: Target, cache_bytes: int, device: str = "cuda") -> None:
        self.target = target
        self.cache_bytes = cache_bytes
        self.device = device

    def __call__(self, kernel: Any, shape: Any, config: Any) -> float:
        first = prepared(kernel, shape, config, self.device)
        verify(kernel, shape, config, first, self.target)
        copies = min(64, 2 * self.cache_bytes // max(1, num_bytes(first)))
        others = [prepared(kernel, shape, config, self.device, seed) for seed in range(1, copies + 1)]
        return self._replay([kernel.launch(shape, config, operands, self.target) for operands in (first, *others)])

    def _replay(self, launches: list[Any]) -> float:
        for launch in launches:
            launch.run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for launch in launches:
                launch.run()
        times = []
        for _ in range(23):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(1e3 * start.elapsed_time(end) / len(launches))
        return float(median(times[3:]))


def num_bytes(value: Any) -> int:
    """Of all tensors in a set of operands."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple):
        return sum(map(num_bytes, value))
    names = getattr(value, "__slots__", ())
    return sum(num_bytes(getattr(value, name)) for name in names)


def tuned_with() -> dict[str, str]:
    """Versions, for the table."""
    return {"torch": torch.__version__, "triton": version("triton") if find_spec("triton") else "none"}


def usual_shapes() -> list[tuple[str, Any]]:
    """The shapes of the project's benchmarks: skinny and square products, ResNet and BERT layers."""
    shapes: list[tuple[str, Any]] = []
    for rows in (2, 20, 120):
        for m in (1, 8):
            narrow = Linear(rows, m, 4096, 4096, "bf16", bias=True)
            exact = Linear(rows, m, 512, 512, "fp32", bias=True)
            shapes += [(kernel, shape) for kernel in ("slot_gemv", "slot_linear") for shape in (narrow, exact)]
        for precision in ("ieee", "tf32", "tf32x3"):
            shapes.append(("slot_linear", Linear(rows, 256, 128, 1152, "fp32", precision)))
            shapes.append(("slot_linear", Linear(rows, 256, 256, 256, "fp32", precision)))
    for size, channels in ((56, 64), (28, 128), (14, 256), (7, 512)):
        geometry = {"padding": (1, 1), "bias": True, "residual": True, "activation": "relu"}
        layer = Convolution(16, 1, (size, size), channels, channels, (3, 3), "bf16", **geometry)  # type: ignore[arg-type]
        shapes.append(("slot_conv2d", layer))
    for n, k, activation in ((768, 768, "none"), (3072, 768, "gelu"), (768, 3072, "none")):
        shapes.append(("slot_linear", Linear(16, 128, n, k, "bf16", bias=True, activation=activation)))
    shapes.append(("slot_layernorm", Norm(16, 128, 768, "bf16", residual=True)))
    return shapes


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m spacetime.kernels.triton.tune", description=__doc__)
    parser.add_argument("--table", type=Path, default=SHIPPED, help="where to write (default: the shipped table)")
    parser.add_argument("--kernel", choices=sorted(KERNELS), help="with --shape: only this")
    parser.add_argument("--shape", help='a descriptor as JSON: {"rows": 16, "m": 1, ...}')
    parser.add_argument("--limit", type=int, help="try at most so many candidates")
    given = parser.parse_args(arguments)
    if (given.kernel is None) != (given.shape is None):
        parser.error("--kernel and --shape come together")
    shapes = usual_shapes()
    if given.kernel:
        shapes = [(given.kernel, decode(KERNELS[given.kernel].Shape, json.loads(given.shape)))]
    reason = missing()
    if reason:
        print(f"tuning needs a GPU and triton\n  {reason}", file=sys.stderr)
        return 1
    target = Target.of(torch.device("cuda"))
    cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    tune(shapes, target, GraphTimer(target, cache_bytes), given.table, given.limit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
