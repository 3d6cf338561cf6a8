"""Case `throughput`: eight models with one row each, together against one after another, and against onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import geometric_mean, median

from bench.cases import Scale
from bench.onnx import sessions
from bench.results import Figure, Measurement
from bench.sides import Side, plain, tenants
from bench.timing import interleaved_us

METHOD = (
    "rounds of one row per tenant under space_time, all submitted, then all awaited, after a warm-up; ratio of round "
    "times; each side in a process of its own, they take turns in blocks of rounds of 20 ms or more, the median of a "
    "block without its first round counts; against "
)
LEAST_BLOCK_US = 20_000  # a server under load is warm: its code is in the caches, as far as its weights leave it there
PLAIN = Figure(
    "throughput",
    "speed-up over plain modules",
    "ratio",
    METHOD + "equal plain modules that are no tenants, called one after another on all cores",
    goal=">= 1, geomean >= 1.5",
)
ONNX = Figure(
    "throughput",
    "speed-up over onnxruntime",
    "ratio",
    METHOD + "as many sessions dealt out to a pinned thread per core, one intra-op thread each",
    goal=">= 1",
)


def run(scale: Scale) -> Iterator[Measurement]:
    medians: dict[Figure, list[float]] = {PLAIN: [], ONNX: []}
    for model in scale.models:
        for figure, measurement in zip((PLAIN, ONNX), compare(model, scale), strict=True):
            yield measurement
            if measurement.median is not None:
                medians[figure].append(measurement.median)
    for figure, ratios in medians.items():
        if ratios:
            yield figure.of("geomean", [geometric_mean(ratios)], f"{len(ratios)} models")
            yield figure.of("minimum", [min(ratios)], f"{len(ratios)} models")


def compare(model: str, scale: Scale) -> tuple[Measurement, Measurement]:
    """Against the plain modules, and against onnxruntime. All sides take turns in one loop."""
    with (
        Side(plain, model, scale.num_tenants) as base,
        Side(sessions, model, scale.num_tenants) as onnx,
    ):
        base.require()
        unavailable = onnx.why_not()
        # The runtime comes last: nothing else may run while its cost model learns.
        with Side(tenants, model, scale.num_tenants, scale.warm_up_rounds, scale.warm_up_s) as ours:
            ours.require()
            sides = [ours, base] if unavailable else [ours, base, onnx]
            blocks = [partial(side.block_median_us, scale.rounds_per_block, LEAST_BLOCK_US) for side in sides]
            ours_us, *others_us = interleaved_us(blocks, scale.num_blocks)
    against_plain = _measurement(PLAIN, model, others_us[0], ours_us)
    if unavailable:
        return against_plain, ONNX.unavailable(model, unavailable)
    return against_plain, _measurement(ONNX, model, others_us[1], ours_us)


def _measurement(figure: Figure, model: str, theirs_us: Sequence[float], ours_us: Sequence[float]) -> Measurement:
    ratios = [their / our for their, our in zip(theirs_us, ours_us, strict=True)]
    return figure.of(model, ratios, f"{median(theirs_us) / 1e3:.2f} ms against {median(ours_us) / 1e3:.2f} ms")
