"""Case `gemm`: R products with different weights, by every path: the table of Space-Time (2018), on this device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import geometric_mean, median
from typing import Literal

from bench import mps
from bench.cases import Scale
from bench.gemm_lab import SLICE_S, Contender, Several, Single, labs
from bench.gemm_sides import BASELINES, NEEDS_GPU, OURS, SIDES
from bench.gemm_work import (
    DTYPES,
    EVERY,
    LISTED,
    SHAPES,
    Shape,
    cache_bytes_of,
    make_weights,
    num_weights,
    sharable_bytes,
)
from bench.results import Figure, Measurement
from bench.sides import Remote, Unavailable
from bench.timing import interleaved_us

TIME_ONLY, MPS = "time-only", "space-only, MPS"
ALL_BASELINES = (*BASELINES, TIME_ONLY, MPS)
ONLY_ON_GPU = ("chained graph", "16-branch graph", "cublasGemmBatchedEx", "ours: Triton", "ours: Triton, grouped")
# Geomeans over 2..120 in fp32, on a V100: which baseline they were published against.
PUBLISHED = {"512x1x512": (TIME_ONLY, 2.48), "256x128x1152": ("space-only", 3.23), "256x256x256": ("space-only", 4.63)}
SLOW_BF16 = 0.5  # of the float32 peak: below it, figures would say nothing about anybody's choice

PEAK = Figure("gemm", "peak of one large product", "GFLOP/s", "a square product: 1024 on a CPU, 8192 on a GPU")
BANDWIDTH = Figure("gemm", "memory bandwidth", "GB/s", "the better of reading and copying a large tensor", cache="cold")
ROOFLINE = Figure(
    "gemm",
    "roofline",
    "GFLOP/s",
    "what products of the shape can reach at most, by the peak and the bandwidth measured in this run; each byte once",
)
GEOMEAN = "geomean of speed-ups"
FRACTION = "geomean of fractions of the roofline"
METHOD = (
    "R products of x[n, k] and a weight [m, k] of its own, tensors allocated before; {rotation}; blocks of rounds, "
    "sides in turns, the first round of a block not counted; time-only: {processes} processes share the R, "
    "slices of {slice_ms:.0f} ms; space-only: {space}; every result compared with float64 first"
)
SPEED = Figure("gemm", "speed", "GFLOP/s", METHOD)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of it."""

    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    counts: tuple[int, ...]  # products per round, for the first type
    other_counts: tuple[int, ...]  # for the others
    warm_counts: tuple[int, ...]  # again with a single window, the first type only
    num_samples: int
    num_processes: int
    weight_bytes: int

    @classmethod
    def of(cls, scale: Scale) -> Sizes:
        on_gpu = scale.device != "cpu"
        dtypes = ("float32", "tf32", "bfloat16") if on_gpu else ("float32", "bfloat16")
        if scale.smoke:
            return cls(SHAPES, dtypes[:1], (1, 4), (), (), 2, 2, 16 << 20)
        if scale.quick:
            counts = LISTED if on_gpu else (1, 8, 20)
            return cls(SHAPES, dtypes, counts, (8,), (8,), 3, 4 if on_gpu else 2, (512 if on_gpu else 64) << 20)
        counts, num_samples = (EVERY, 5) if on_gpu else (LISTED, 9)  # a GPU's is to end within ten minutes
        return cls(SHAPES, dtypes, counts, LISTED, (1, 10, 20, 120), num_samples, 8 if on_gpu else 4, 1 << 30)


@dataclass(frozen=True, slots=True)
class Roof:
    """What the device did at best in this run: the highest of the samples, so that noise lowers nothing."""

    gflops: float
    gb_s: float

    def gflops_of(self, shape: Shape, dtype: str) -> float:
        """The most that products of this shape can reach: bound by arithmetic or by traffic."""
        return min(self.gflops, self.gb_s * shape.flops / (shape.num_elements * DTYPES[dtype].itemsize))


def run(scale: Scale) -> Iterator[Measurement]:
    sizes = Sizes.of(scale)
    with ExitStack() as stack:
        found: dict[str, Contender] = {}
        for name, why in _enter(stack, scale.device, sizes, found):
            yield SPEED.unavailable(name, why, {"side": name})
        with labs(scale.device, 1) as (lab,):
            roofs = yield from _roofs(lab, scale.device, sizes)
        for dtype in sizes.dtypes:
            if dtype not in roofs:
                continue
            counts = sizes.counts if dtype == sizes.dtypes[0] else sizes.other_counts
            for shape in sizes.shapes:
                table = Table(scale.device, sizes, shape, dtype, roofs[dtype])
                yield from table.measure(found, counts)
                yield from table.geomeans()
                if dtype == sizes.dtypes[0] and sizes.warm_counts:
                    warm = Table(scale.device, sizes, shape, dtype, roofs[dtype], rotate=False)
                    yield from warm.measure(found, sizes.warm_counts)


def _enter(stack: ExitStack, device: str, sizes: Sizes, found: dict[str, Contender]) -> Iterator[tuple[str, str]]:
    """Start the processes of all sides; those that cannot run here, and why."""
    kind = device.partition(":")[0]
    shared = stack.enter_context(labs(device, 1)) if kind == "cuda" else []
    for name in SIDES:
        if kind == "cpu" and name in ONLY_ON_GPU:
            yield name, NEEDS_GPU
            continue
        lab = shared[0] if shared else stack.enter_context(labs(device, 1))[0]
        found[name] = Single(lab, name, opens=not (shared and found))
    taking_turns = stack.enter_context(labs(device, sizes.num_processes))
    found[TIME_ONLY] = Several(taking_turns, SLICE_S[kind], at_once=kind == "cuda")
    try:
        environment = stack.enter_context(mps.daemon(device))
        clients = stack.enter_context(labs(device, sizes.num_processes, environment))
    except (Unavailable, RuntimeError) as why:
        yield MPS, str(why)
        return
    found[MPS] = Several(clients, SLICE_S[kind], at_once=True)


def _roofs(lab: Remote, device: str, sizes: Sizes) -> Generator[Measurement, None, dict[str, Roof]]:
    samples = max(3, sizes.num_samples)
    rates = lab.call("bandwidth_gb_s", samples, max(sizes.weight_bytes, 1 << 28))
    yield BANDWIDTH.of(device, rates, axes={"device": device})
    roofs: dict[str, Roof] = {}
    for dtype in sizes.dtypes:
        peaks = lab.call("peak_gflops", dtype, samples)
        yield PEAK.of(dtype, peaks, axes={"dtype": dtype})
        roof = Roof(max(peaks), max(rates))
        slow = roofs and device == "cpu" and roof.gflops < SLOW_BF16 * roofs[sizes.dtypes[0]].gflops
        if slow:
            yield SPEED.unavailable(dtype, f"{roof.gflops:.0f} GFLOP/s at best on this CPU", {"dtype": dtype})
            continue
        roofs[dtype] = roof
    return roofs


@dataclass(slots=True)
class Table:
    """The figures of one shape and type."""

    device: str
    sizes: Sizes
    shape: Shape
    dtype: str
    roof: Roof
    rotate: bool = True
    round_us: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # samples by side and count
    method: str = ""
    cache: Literal["warm", "cold"] = "warm"

    def measure(self, contenders: dict[str, Contender], counts: Sequence[int]) -> Iterator[Measurement]:
        most, cache_bytes = max(counts), cache_bytes_of(self.device)
        limit_bytes = min(self.sizes.weight_bytes, sharable_bytes(self.device))
        number = num_weights(self.shape, self.dtype, cache_bytes, most, limit_bytes)
        weights = make_weights(self.shape, self.dtype, "cpu", number) if self.device == "cpu" else number
        self._describe(number, cache_bytes)
        figure = Figure(SPEED.case, SPEED.metric, SPEED.unit, self.method, cache=self.cache)
        if self.rotate:
            yield ROOFLINE.of(
                f"{self.shape} {self.dtype}",
                [self.roof.gflops_of(self.shape, self.dtype)],
                f"peak {self.roof.gflops:.0f} GFLOP/s, {self.roof.gb_s:.0f} GB/s",
                {"shape": str(self.shape), "dtype": self.dtype},
            )
        active = dict(contenders)
        for name, contender in contenders.items():
            why = _reason(partial(contender.open, self.shape, self.dtype, weights, most, self.rotate))
            if why is not None:
                yield figure.unavailable(self._subject(name), why, self._axes(name))
                del active[name]
        for count in counts:
            for name in list(active):
                why = _reason(partial(active[name].prepare, count))
                if why is not None:
                    yield figure.unavailable(self._subject(name, count), why, self._axes(name, count))
                    del active[name]
            samples = interleaved_us([each.sample for each in active.values()], self.sizes.num_samples)
            for name, us in zip(active, samples, strict=True):
                self.round_us.setdefault(name, {})[count] = us
                yield self._speed(figure, name, count, us, active[name].note)

    def _describe(self, number: int, cache_bytes: int) -> None:
        turn_bytes = number * self.shape.m * self.shape.k * DTYPES[self.dtype].itemsize
        self.cache = "cold" if self.rotate and turn_bytes >= 2 * cache_bytes > 0 else "warm"
        rotation = (
            f"rounds take windows of {turn_bytes / 1e6:.0f} MB of weights in turns (last-level cache: "
            f"{cache_bytes / 1e6:.0f} MB)"
            if self.rotate
            else "every round the same weights"
        )
        self.method = METHOD.format(
            rotation=rotation,
            processes=self.sizes.num_processes,
            slice_ms=1e3 * SLICE_S[self.device.partition(":")[0]],
            space="a thread per core" if self.device == "cpu" else "as many streams, of the 32 that torch has",
        )

    def _speed(self, figure: Figure, name: str, count: int, samples_us: Sequence[float], told: str) -> Measurement:
        rates = [self.shape.flops * count / us / 1e3 for us in samples_us]
        fraction = median(rates) / self.roof.gflops_of(self.shape, self.dtype)
        note = f"{median(samples_us):.1f} us, {fraction:.0%} of the roofline"
        note = f"{note}; {told}" if told else note
        return figure.of(self._subject(name, count), rates, note, self._axes(name, count))

    def geomeans(self) -> Iterator[Measurement]:
        """Of every path of ours over every baseline, and of each side's fraction of the roofline."""
        for name in self.round_us:
            yield from self._fractions(name)
        for ours in OURS:
            for baseline in ALL_BASELINES:
                if ours in self.round_us and baseline in self.round_us:
                    yield from self._speed_up(ours, baseline)

    def _speed_up(self, ours: str, baseline: str) -> Iterator[Measurement]:
        counts, samples = self._over_counts(
            lambda count, i: self.round_us[baseline][count][i] / self.round_us[ours][count][i], ours, baseline
        )
        if not samples:
            return
        against, published = PUBLISHED[str(self.shape)]
        is_published = self.dtype == "float32" and against == baseline
        goal = f"published: {published}" if is_published else ""
        figure = Figure("gemm", GEOMEAN, "ratio", f"over R = {_listed(counts)}; {self.method}", goal, self.cache)
        note = f"published: {published}x on a V100, R = 2..120" if is_published else ""
        axes = self._axes(ours) | {"baseline": baseline}
        yield figure.of(f"{self._subject(ours)} over {baseline}", samples, note, axes)

    def _fractions(self, name: str) -> Iterator[Measurement]:
        roof = self.roof.gflops_of(self.shape, self.dtype)
        counts, samples = self._over_counts(
            lambda count, i: self.shape.flops * count / self.round_us[name][count][i] / 1e3 / roof, name
        )
        if samples:
            note = f"roofline: {roof:.0f} GFLOP/s, of the peak and the bandwidth measured in this run"
            figure = Figure("gemm", FRACTION, "share", f"over R = {_listed(counts)}; {self.method}", cache=self.cache)
            yield figure.of(self._subject(name), samples, note, self._axes(name))

    def _over_counts(self, value: Callable[[int, int], float], *names: str) -> tuple[list[int], list[float]]:
        """The counts above 1 that all sides have, and the geomean over them, once per sample."""
        measured = set.intersection(*(set(self.round_us[name]) for name in names))
        counts = sorted(count for count in measured if count > 1)
        if not counts:
            return counts, []
        number = self.sizes.num_samples
        return counts, [geometric_mean([value(count, i) for count in counts]) for i in range(number)]

    def _subject(self, name: str, count: int | None = None) -> str:
        return " ".join([str(self.shape), self.dtype, *([] if count is None else [f"R={count}"]), name])

    def _axes(self, name: str, count: int | None = None) -> dict[str, str | int | float]:
        axes: dict[str, str | int | float] = {"shape": str(self.shape), "dtype": self.dtype, "side": name}
        axes["weights"] = "rotated" if self.rotate else "the same"
        return axes if count is None else axes | {"tenants": count}


def _reason(action: Callable[[], object]) -> str | None:
    try:
        action()
    except Unavailable as why:
        return str(why)
    return None


def _listed(counts: Sequence[int]) -> str:
    """2, 8..10: what was measured, in short."""
    runs: list[list[int]] = []
    for count in counts:
        if runs and count == runs[-1][-1] + 1:
            runs[-1].append(count)
        else:
            runs.append([count])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
