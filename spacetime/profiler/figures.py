"""What the pictures of a profile show, as values. `pictures` draws them with matplotlib, `page` as SVG; no torch.

Two pictures: latency over units of the layers that take longest, and the units a model needs over its time when
every kernel runs at its knee. Models have hundreds of layers; those that are the same work share one panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Protocol

import numpy as np

from spacetime.profiler.curves import Floats, Knee, Law, Point, fit_law, monotone, weights_of
from spacetime.values import Value

NUM_PANELS = 9  # the whole model and the layers that take longest: three by three
BOUNDS = ("compute", "bandwidth", "launch")
COLOURS = {"compute": "#3568b2", "bandwidth": "#d9822b", "launch": "#858c96"}  # apart for colour-blind eyes, too


class Layer(Protocol):
    """One kernel of a profiled program."""

    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def shape(self) -> str: ...
    @property
    def flops(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def points(self) -> tuple[Point, ...]: ...
    @property
    def knee(self) -> Knee: ...
    @property
    def bound(self) -> str: ...


class Profiled(Protocol):
    """What the pictures need of a profile."""

    @property
    def layers(self) -> Sequence[Layer]: ...
    @property
    def device(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def total(self) -> Knee: ...
    @property
    def total_points(self) -> tuple[Point, ...]: ...


@dataclass(frozen=True, slots=True)
class Panel(Value):
    """Latency over units, of one kind of work or of the whole model."""

    name: str
    detail: str  # what kind of work, how many layers do it, which part of the model's time it is
    units: tuple[int, ...]
    median_us: tuple[float, ...]
    low_us: tuple[float, ...]  # half of the samples lie between
    high_us: tuple[float, ...]
    fitted_us: tuple[float, ...]  # the monotone fit that the knee is read from
    law: Law
    knee: Knee


@dataclass(frozen=True, slots=True)
class Step(Value):
    """One kernel at its knee, in the order of execution."""

    name: str
    op: str
    bound: str
    start_us: float
    duration_us: float
    units: int


@dataclass(frozen=True, slots=True)
class Timeline(Value):
    """The units a model needs over its time."""

    steps: tuple[Step, ...]
    num_units: int  # that the device has, as far as it was profiled
    knee_units: int  # of the model as a whole
    mean_units: float  # over time
    saved_share: float  # of the unit-time that the model takes on all units: what right-sized kernels leave free

    @property
    def duration_us(self) -> float:
        return self.steps[-1].start_us + self.steps[-1].duration_us

    @property
    def summary(self) -> str:
        return (
            f"Right-sizing every kernel frees {self.saved_share:.0%} of the unit-time: "
            f"{self.mean_units:.1f} of {self.num_units} units are needed on average; "
            f"the model as a whole has its knee at {self.knee_units}"
        )


def heading(profile: Profiled, model: str = "") -> str:
    """Which profile it is, in one line: "resnet18 on h200 (modelled), 1 row"."""
    rows = f"{profile.rows} row" + ("" if profile.rows == 1 else "s")
    device = shorten(profile.device.removeprefix("model:"), 44)  # the method says that it is a model
    return f"{shorten(model or 'model', 32)} on {device} ({profile.method}), {rows}"


def panels(profile: Profiled, most: int = NUM_PANELS) -> tuple[Panel, ...]:
    """The whole model, then the kinds of work that take the largest part of its time."""
    alike: dict[object, list[Layer]] = {}
    for layer in profile.layers:
        alike.setdefault((layer.op, layer.shape, layer.points), []).append(layer)
    total_us = sum(layer.knee.best_us for layer in profile.layers)
    largest = sorted(alike.values(), key=lambda group: len(group) * group[0].knee.best_us, reverse=True)
    whole = _panel("whole model", _layers(len(profile.layers)), profile.total_points, profile.total)
    return (whole, *(_group_panel(group, total_us) for group in largest[: most - 1]))


def _group_panel(group: list[Layer], total_us: float) -> Panel:
    first = group[0]
    share = len(group) * first.knee.best_us / total_us
    count = "" if len(group) == 1 else f"{_layers(len(group))}, "
    return _panel(
        first.name, f"{shorten(print_op(first.op), 22)} · {count}{share:.0%} of the time", first.points, first.knee
    )


def _panel(name: str, detail: str, points: Sequence[Point], knee: Knee) -> Panel:
    ordered = sorted(points, key=lambda point: point.units)
    quartiles = [np.quantile(point.samples_us, (0.25, 0.75)).tolist() for point in ordered]
    return Panel(
        name=name,
        detail=detail,
        units=tuple(point.units for point in ordered),
        median_us=tuple(point.median_us for point in ordered),
        low_us=tuple(low for low, _ in quartiles),
        high_us=tuple(high for _, high in quartiles),
        fitted_us=tuple(_fit(ordered).tolist()),
        law=fit_law(ordered),
        knee=knee,
    )


def _fit(ordered: Sequence[Point]) -> Floats:
    """The curve that `find_knee` reads the knee from."""
    return monotone(np.array([point.median_us for point in ordered]), weights_of(ordered))


def timeline(profile: Profiled) -> Timeline:
    """Every kernel at its knee, one after another."""
    steps, now_us = [], 0.0
    for layer in profile.layers:
        knee = layer.knee
        steps.append(Step(layer.name, layer.op, layer.bound, now_us, knee.latency_us, knee.units))
        now_us += knee.latency_us
    num_units = profile.total.best_units
    needed = sum(step.duration_us * step.units for step in steps)
    whole = num_units * sum(layer.knee.best_us for layer in profile.layers)
    return Timeline(
        steps=tuple(steps),
        num_units=num_units,
        knee_units=profile.total.units,
        mean_units=needed / now_us,
        saved_share=1 - needed / whole,
    )


def _layers(count: int) -> str:
    return f"{count} layer" + ("" if count == 1 else "s")


# -- numbers for people ----------------------------------------------------------------------------------------------


def print_us(us: float) -> str:
    """Three digits and a unit.

    >>> print_us(0.5), print_us(12.34), print_us(1234.0), print_us(2.5e6)
    ('0.500 µs', '12.3 µs', '1.23 ms', '2.50 s')
    """
    size_us, unit = time_unit(us)
    return f"{_three_digits(us / size_us)} {unit}"


def print_tick(us: float) -> str:
    """A round time, short.

    >>> print_tick(0), print_tick(0.5), print_tick(20000.0)
    ('0', '0.5 µs', '20 ms')
    """
    size_us, unit = time_unit(us)
    return f"{us / size_us:g} {unit}" if us else "0"


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between the ends: 1, 2, 5, 10, ..., or only powers of ten where those are too many.

    >>> log_ticks(3.0, 130.0), log_ticks(0.9, 2e4)
    ([5.0, 10.0, 20.0, 50.0, 100.0], [1.0, 10.0, 100.0, 1000.0, 10000.0])
    """
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= most:
            return inside
    return inside[:: ceil(len(inside) / most)]


def time_unit(us: float) -> tuple[float, str]:
    """The unit to print a time in, and its size."""
    if us >= 0.9995e6:
        return 1e6, "s"
    return (1e3, "ms") if us >= 0.9995e3 else (1.0, "µs")


def print_count(count: float, unit: str = "") -> str:
    """Three digits and a prefix.

    >>> print_count(0, "B"), print_count(2048, "B"), print_count(3.6e9)
    ('0 B', '2.05 kB', '3.60 G')
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size * 0.9995:
            return f"{_three_digits(count / size)} {prefix}{unit}"
    return f"{count:.0f} {unit}".rstrip()


_PLAIN = {"_native_batch_norm_legit_no_training": "batch_norm", "_to_copy": "to"}


def print_op(op: str) -> str:
    """As people write it; torch's graphs have names of their own for a few.

    >>> print_op("_native_batch_norm_legit_no_training"), print_op("linear")
    ('batch_norm', 'linear')
    """
    return _PLAIN.get(op, op)


def shorten(name: str, most: int) -> str:
    """Names of layers differ at their ends: what is cut is the middle.

    >>> shorten("encoder.layers.11.attention.output", 20)
    'encoder.l…ion.output'
    """
    if len(name) <= most:
        return name
    kept = most - 1
    return name[: kept // 2] + "…" + name[-(kept - kept // 2) :]


def _three_digits(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}" if number >= 0.9995 else f"{number:.3f}"
