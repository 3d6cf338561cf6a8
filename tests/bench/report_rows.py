"""Rows made up for tests of the report: fixtures, on devices that do not exist. Nothing here was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

from bench.provenance import Provenance
from bench.report.document import Document
from bench.report.figures import Section, Sheet
from bench.results import Distribution, Figure, Measurement, Row, append, distribution

CPU = Provenance(
    device="cpu-2core-fixture",
    cpu="Fixture CPU",
    num_cores=2,
    driver="none",
    system="Linux 0.0",
    python="3.11.0",
    torch="2.13.0+cpu",
    spacetime="0.1.0",
    commit="c" * 40,
    dirty=False,
    date_utc="2026-01-02T03:04:05+00:00",
)
GPU = replace(
    CPU,
    device="gpu-fixture-h200",
    driver="570.0",
    torch="2.13.0+cu130",
    commit="a" * 40,
    date_utc="2026-01-03T00:00:00+00:00",
    gpu="Fixture H200",
    versions={"cuda": "13.0"},
)
COUNTS = (1, 2, 4, 8, 10, 18, 20, 40, 80, 118, 120)
SHAPES = {"512x1x512": 0.52e6, "256x128x1152": 75.5e6, "256x256x256": 33.6e6}
# us for one launch, and how many products run at once
SIDES = {
    "one after another": (4.0, 1.0),
    "time-only": (11.0, 1.0),
    "space-only": (5.0, 5.0),
    "chained graph": (2.0, 1.0),
    "16-branch graph": (2.0, 12.0),
    "bmm": (0.4, 40.0),
    "grouped_mm": (0.5, 26.0),
    "ours: slot_linear": (0.4, 38.0),
    "ours: Triton": (0.3, 44.0),
}
GPU_ONLY = ("chained graph", "16-branch graph", "ours: Triton")
GFLOPS = {CPU.device: 90.0, GPU.device: 1700.0}  # of one product alone
ROOF = {CPU.device: 160.0, GPU.device: 52_000.0}

PLAIN = Figure("unheard_of", "something", "things", "a fixture", goal="<= 2")
SPEED = Figure("gemm", "speed", "GFLOP/s", "a fixture", cache="cold")
GEOMEAN = Figure("gemm", "geomean of speed-ups", "ratio", "over R = 2, 4, 8; a fixture")
FRACTION = Figure("gemm", "geomean of fractions of the roofline", "share", "over R = 2, 4, 8; a fixture")
ROOFLINE = Figure("gemm", "roofline", "GFLOP/s", "a fixture")
PEAK = Figure("gemm", "peak of one large product", "GFLOP/s", "a fixture")


def around(value: float, share: float = 0.04) -> list[float]:
    """Samples whose median is the value."""
    return [value * (1 + share * step) for step in (-2, -1, 0, 1, 2)]


def latencies(device: str, ms: float) -> Distribution | None:
    """Of a thousand requests around a median. The CPU's rows are of old: they have none."""
    return None if device == CPU.device else distribution([ms * (0.5 + i / 1000) ** 2 for i in range(1000)])


def rate(device: str, shape: str, side: str, count: int) -> float:
    """GFLOP/s of a round: a launch per product, and only so many at once."""
    launch_us, most = SIDES[side]
    at_once = min(count, most if device == GPU.device else min(most, 2.0))
    us = SHAPES[shape] / GFLOPS[device] / 1e3
    total = launch_us * (1 if launch_us < 1 else count) + us * count / at_once
    return min(SHAPES[shape] * count / total / 1e3, 0.95 * ROOF[device])


def gemm(device: str, dtype: str = "float32") -> Iterator[Measurement]:
    yield PEAK.of(dtype, around(ROOF[device]), axes={"dtype": dtype})
    sides = [side for side in SIDES if device == GPU.device or side not in GPU_ONLY]
    for shape in SHAPES:
        yield ROOFLINE.of(f"{shape} {dtype}", [ROOF[device]], axes={"shape": shape, "dtype": dtype})
        rates = {side: {count: rate(device, shape, side, count) for count in COUNTS} for side in sides}
        for side in sides:
            axes: dict[str, str | int | float] = {"shape": shape, "dtype": dtype, "side": side, "weights": "rotated"}
            for count, value in rates[side].items():
                yield SPEED.of(f"{shape} {dtype} R={count} {side}", around(value), axes=axes | {"tenants": count})
            yield FRACTION.of(f"{shape} {dtype} {side}", around(0.5), axes=axes)
        for ours in (side for side in sides if side.startswith("ours")):
            for side in (side for side in sides if not side.startswith("ours")):
                mean = geometric_mean([rates[ours][count] / rates[side][count] for count in COUNTS[1:]])
                axes = {"shape": shape, "dtype": dtype, "side": ours, "weights": "rotated", "baseline": side}
                yield GEOMEAN.of(f"{shape} {dtype} {ours} over {side}", around(mean), axes=axes)
    if device == CPU.device:
        for side in GPU_ONLY:
            yield SPEED.unavailable(side, "there is no GPU", {"side": side})


MODEL_SIDES = {
    "eager": 1.0,
    "graph per tenant, sequential": 0.6,
    "torch.compile per tenant": 0.7,
    "vmap": 0.5,
    "ours": 0.3,
}
MODEL_COUNTS = (1, 2, 4, 8, 16, 32, 64)
MODELS = {"mlp": 0.05, "resnet18": 1.0, "bert_base": 4.0}  # ms of one alone
THROUGHPUT = Figure("models", "throughput", "rows/s", "a fixture")
LATENCIES = {name: Figure("models", f"latency {name}", "ms", "a fixture") for name in ("p50", "p99", "max")}
GAP = Figure("models", "slowest over fastest tenant", "ratio", "a fixture")
MEMORY = Figure("models", "memory", "MB", "a fixture")
MODEL_SPEED_UP = Figure("models", "speed-up", "ratio", "a fixture")


def models(device: str, dtype: str = "float32") -> Iterator[Measurement]:
    slower = 20.0 if device == CPU.device else 1.0
    for model, alone_ms in MODELS.items():
        for count in MODEL_COUNTS:
            times = {side: slower * alone_ms * share * (0.6 + 0.4 * count) for side, share in MODEL_SIDES.items()}
            times["ours"] = slower * alone_ms * (0.9 + 0.1 * count)
            for side, ms in times.items():
                axes: dict[str, str | int | float] = {"model": model, "dtype": dtype, "tenants": count, "rows": "1"}
                subject = f"{model} {dtype} R={count} {side}"
                yield THROUGHPUT.of(subject, around(1e3 * count / ms), axes=axes | {"side": side})
                for name, share in (("p50", 0.6), ("p99", 1.2), ("max", 1.9)):
                    of_all = latencies(device, ms * share) if name == "p50" else None
                    yield LATENCIES[name].of(subject, around(ms * share), axes=axes | {"side": side}, of_all=of_all)
                yield GAP.of(subject, [1.5], axes=axes | {"side": side})
                yield MEMORY.of(subject, [10.0 * count * alone_ms], axes=axes | {"side": side})
                if side != "ours":
                    more = {"side": "ours", "baseline": side}
                    ratios = around(ms / times["ours"])
                    yield MODEL_SPEED_UP.of(f"{model} R={count} ours over {side}", ratios, axes=axes | more)
    yield THROUGHPUT.unavailable("MPS processes", "no daemon can run here", {"side": "MPS processes"})


POLICIES = {"space_time": 1.0, "krisp": 0.7, "streams": 0.55, "static": 0.5, "gslice": 0.6, "time_slice": 0.3}
GOODPUT = Figure("tenants", "goodput: highest rate with p99 within the SLO", "requests/s", "a fixture")
VIOLATIONS = Figure("tenants", "SLO violations", "%", "a fixture", goal="<= 1")
FAIRNESS = Figure("tenants", "fairness of service", "Jain index", "a fixture")
SERVER = {name: Figure("tenants", f"loadgen Server {name}", "ms", "a fixture") for name in ("p50", "p99")}
TRAFFIC_LATENCIES = {name: Figure("tenants", f"latency {name}", "ms", "a fixture") for name in ("p50", "p99")}
MOVED = Figure("interference", "victim's p99, beside over alone", "%", "a fixture", goal="flood: <= 50")
ALONE = Figure("interference", "victim's p99 alone", "ms", "a fixture")
SWAP = Figure("overheads", "plan swap", "us", "a fixture", goal="<= 100")
DECISION = Figure("overheads", "snapshot and policy", "us", "a fixture")
MOVE = Figure("overheads", "change of partition", "us", "a fixture")


def tenants(device: str) -> Iterator[Measurement]:
    most = 40.0 if device == CPU.device else 9000.0
    for policy, share in POLICIES.items():
        for count in (2, 8, 32, 64):
            where: dict[str, str | int | float] = {"policy": policy, "tenants": count, "mix": "resnet18+mlp"}
            subject = f"{policy}, {count} tenants"
            for traffic in ("poisson", "bursts"):
                axes = where | {"traffic": traffic}
                goodput = most * share * (0.7 if traffic == "bursts" else 1) * count**0.2
                yield GOODPUT.of(f"{subject} {traffic}", around(goodput), axes=axes)
                yield VIOLATIONS.of(f"{subject} {traffic}", [0.0 if policy == "space_time" else 0.9 / share], axes=axes)
                for name, ms in (("p50", 3.0), ("p99", 11.0)):
                    of_all = latencies(device, ms / share) if name == "p50" else None
                    yield TRAFFIC_LATENCIES[name].of(f"{subject} {traffic}", around(ms / share), "", axes, of_all)
            yield FAIRNESS.of(f"{subject} saturated", [0.9 * share**0.1], axes=where | {"traffic": "saturated"})
            for name, ms in (("p50", 3.0), ("p99", 11.0)):
                axes = where | {"traffic": "loadgen Server"}
                yield SERVER[name].of(f"{subject} loadgen Server", [ms / share], axes=axes)
    yield GOODPUT.unavailable("krisp_packed", "this device cannot confine lanes", {"policy": "krisp_packed"})


def interference(device: str) -> Iterator[Measurement]:
    for aggressor in ("flood", "heavy"):
        for policy, share in POLICIES.items():
            axes: dict[str, str | int | float] = {"policy": policy, "victim": "gru", "aggressor": aggressor}
            subject = f"{policy}, gru beside a {aggressor}"
            yield MOVED.of(subject, around(40 / share**2 - 45), axes=axes | {"outstanding": 64, "slo": "none"})
            yield ALONE.of(subject, around(2.0), axes=axes | {"outstanding": 64, "slo": "none"})


def overheads(device: str) -> Iterator[Measurement]:
    yield SWAP.of("8 lanes", around(120.0))
    yield SWAP.of("2 lanes", around(60.0))
    yield MOVE.of("gru", [-5.0, 4.0, 5.0])
    for policy, share in POLICIES.items():
        for count in (2, 64, 1000):
            axes: dict[str, str | int | float] = {"policy": policy, "tenants": count}
            yield DECISION.of(f"{policy}, {count} tenants", around(count / share), axes=axes)


def everything(folder: Path) -> Path:
    """All cases, on both devices."""
    for provenance in (CPU, GPU):
        for make in (gemm, models, tenants, interference, overheads):
            write(folder, make.__name__, rows(provenance, list(make(provenance.device))))
    return folder


def rows(provenance: Provenance, measurements: Iterator[Measurement] | list[Measurement]) -> list[Row]:
    return [Row(measurement, provenance) for measurement in measurements]


def write(results: Path, name: str, made: list[Row]) -> None:
    """As the benches do: a folder per device."""
    for row in made:
        append(results / row.provenance.device / f"{name}.jsonl", [row])


def section_of(made: Document, title: str) -> Section:
    return next(section for section in made.sections if section.title == title)


def sheets_of(section: Section) -> list[Sheet]:
    return [*section.sheets, *section.more_sheets]
