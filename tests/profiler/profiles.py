"""Profiles made of arithmetic: what pictures, pages and commands are tested with. No clock, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spacetime.profiler.curves import Knee, Point, find_knee


@dataclass(frozen=True, slots=True)
class FakeLayer:
    index: int
    name: str
    op: str
    shape: str
    flops: int
    bytes: int
    points: tuple[Point, ...]
    knee: Knee
    bound: str


@dataclass(frozen=True, slots=True)
class FakeProfile:
    """As much of a Profile as the pictures need."""

    layers: tuple[FakeLayer, ...]
    device: str
    method: str
    rows: int
    tolerance: float
    total: Knee
    total_points: tuple[Point, ...]


def layer(
    index: int = 0,
    name: str = "features.conv",
    *,
    op: str = "conv2d",
    shape: str = "float32[rows, 64, 56, 56]",
    parallel_us: float = 60.0,
    serial_us: float = 5.0,
    most_useful: int = 8,
    sizes: Sequence[int] = (1, 2, 4, 8, 16),
    bound: str = "compute",
) -> FakeLayer:
    """A layer that gains from units until it has `most_useful`."""
    points = tuple(
        Point(units, tuple((parallel_us / min(units, most_useful) + serial_us) * noise for noise in (0.99, 1.0, 1.02)))
        for units in sizes
    )
    return FakeLayer(index, name, op, shape, 231_211_008, 1_605_632, points, find_knee(points), bound)


def profile(layers: Sequence[FakeLayer] | None = None, method: str = "measured") -> FakeProfile:
    if layers is None:
        layers = (
            layer(0, "conv1", parallel_us=100.0, most_useful=16),
            layer(1, "relu", op="relu", parallel_us=8.0, most_useful=2, bound="bandwidth"),
            layer(2, "fc", op="linear", parallel_us=0.0, bound="launch"),
        )
    layers = tuple(replace(each, index=index) for index, each in enumerate(layers))
    total = total_points(layers)
    return FakeProfile(
        layers, "model:h200" if method == "modelled" else "h200", method, 1, 0.05, find_knee(total), total
    )


def total_points(layers: Sequence[FakeLayer]) -> tuple[Point, ...]:
    """Kernels one after another, all at the same sizes."""
    curves = [each.points for each in layers]
    return tuple(
        Point(points[0].units, tuple(map(sum, zip(*(point.samples_us for point in points), strict=True))))
        for points in zip(*curves, strict=True)
    )
