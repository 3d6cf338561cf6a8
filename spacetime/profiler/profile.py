"""Profile: what was found out about one program on one device. Public; a frozen value with a versioned file.

It keeps the measurements themselves; layers and knees follow from them, at any tolerance, for each row count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np

from spacetime.errors import OptionError
from spacetime.ir import Kernel
from spacetime.profiler import export
from spacetime.profiler.curves import Floats, Knee, Point, find_knee
from spacetime.profiler.records import Environment, Measurement
from spacetime.profiler.table import MeasuredTable
from spacetime.profiler.writing import write_whole
from spacetime.values import Value, decode

VERSION = 1  # of the file
# Keys of what is no kernel; a signature follows.
BETWEEN = "between:"  # what a straight run does between the kernels of that program
CODE = "code:"  # what the module itself does there
WHOLE = "whole:"  # and "first-last:": the operation that the module calls where the program has these kernels
LEAST_GAIN_US = 0.3  # of a kernel on more units: two runs do not agree on less, whatever part of a short kernel it is
NUM_DRAWS = 31  # samples of the whole model: sums of medians, each of a kernel's samples drawn again

Bound = Literal["compute", "bandwidth", "launch"]


@dataclass(frozen=True, slots=True)
class Ceilings(Value):
    """The most that the whole device reaches: measured on ideal kernels, or as the model has it."""

    flops_per_us: float
    bytes_per_us: float
    launch_us: float  # of a kernel with nothing to do

    def bound(self, flops: int, moved_bytes: int, latency_us: float) -> Bound:
        """What mostly keeps a kernel from being faster: its launch, else the ceiling that it comes closer to."""
        if self.launch_us >= latency_us / 2:
            return "launch"
        return "compute" if flops / self.flops_per_us >= moved_bytes / self.bytes_per_us else "bandwidth"


@dataclass(frozen=True, slots=True)
class Layer(Value):
    """A kernel of the program, without its latencies."""

    index: int
    name: str
    op: str
    key: str
    shape: str  # of what it writes
    flops_per_row: int
    bytes_per_row: int
    weight_bytes: int

    @classmethod
    def of(cls, kernel: Kernel) -> Self:
        return cls(
            index=kernel.index,
            name=kernel.name,
            op=kernel.op,
            key=kernel.key,
            shape=", ".join(map(str, kernel.outputs)),
            flops_per_row=kernel.flops_per_row,
            bytes_per_row=kernel.bytes_per_row,
            weight_bytes=kernel.weight_bytes,
        )


@dataclass(frozen=True, slots=True)
class LayerKnee(Value):
    """A kernel of the program with its latency over units."""

    index: int
    name: str
    op: str
    key: str
    shape: str
    flops: int
    bytes: int
    points: tuple[Point, ...]
    knee: Knee
    bound: Bound


@dataclass(frozen=True)
class Profile(Value):
    """Latencies of a program's kernels over units, and the knees in them."""

    version: int
    signature: str  # of the program
    environment: Environment
    cache: str  # see Key.cache
    rows: int  # which of `all_rows` the layers and knees below are about; `at` gives the others
    tolerance: float
    ceilings: Ceilings
    program: tuple[Layer, ...]
    measurements: tuple[Measurement, ...]

    @property
    def device(self) -> str:
        return self.environment.device

    @property
    def method(self) -> str:
        """ "measured" or "modelled"."""
        return "modelled" if self.environment.kind == "model" else "measured"

    @cached_property
    def all_rows(self) -> tuple[int, ...]:
        return tuple(sorted({measurement.key.rows for measurement in self.measurements}))

    def at(self, rows: int | None = None, tolerance: float | None = None) -> Profile:
        """The same for another number of rows that was profiled, or with another tolerance."""
        rows = self.rows if rows is None else rows
        if rows not in self.all_rows:
            facts = f"it has {', '.join(map(str, self.all_rows))}"
            raise OptionError(f"this profile has no kernels for {rows} rows", facts, f"profile with rows=({rows},)")
        tolerance = self.tolerance if tolerance is None else tolerance
        if (rows, tolerance) == (self.rows, self.tolerance):
            return self  # with the knees that it has found
        return replace(self, rows=rows, tolerance=tolerance)

    # -- knees ----------------------------------------------------------------------------------------

    @cached_property
    def layers(self) -> tuple[LayerKnee, ...]:
        """Every kernel in the order of execution; equal ones share what was measured."""
        keys = {layer.key for layer in self.program}
        knees = {key: find_knee(self._points[key], self.tolerance, least_gain_us=self._least_gain_us) for key in keys}
        return tuple(
            LayerKnee(
                index=layer.index,
                name=layer.name,
                op=layer.op,
                key=layer.key,
                shape=layer.shape,
                flops=(flops := layer.flops_per_row * self.rows),
                bytes=(moved_bytes := layer.bytes_per_row * self.rows + layer.weight_bytes),
                points=self._points[layer.key],
                knee=knees[layer.key],
                bound=self.ceilings.bound(flops, moved_bytes, knees[layer.key].best_us),
            )
            for layer in self.program
        )

    @property
    def _least_gain_us(self) -> float:
        return LEAST_GAIN_US if self.method == "measured" else 0.0

    def knees(self) -> tuple[LayerKnee, ...]:
        return self.layers

    @cached_property
    def total(self) -> Knee:
        """Of the whole model on one size throughout."""
        return find_knee(self.total_points, self.tolerance)

    @cached_property
    def total_points(self) -> tuple[Point, ...]:
        """The kernels one after another, and what lies between them; sizes between measured ones are interpolated."""
        rng = np.random.default_rng(0)
        sizes = sorted({point.units for points in self._points.values() for point in points})
        totals = []
        for units in sizes:
            drawn = {key: self._drawn_us(key, units, rng) for key in dict.fromkeys(self._parts)}
            samples = np.sum([drawn[key] for key in self._parts], axis=0)
            totals.append(Point(units, tuple(map(float, samples))))
        return tuple(totals)

    def _drawn_us(self, key: str, units: int, rng: np.random.Generator) -> Floats:
        for point in self._points[key]:
            if point.units == units:
                samples = np.array(point.samples_us)
                drawn: Floats = np.median(rng.choice(samples, (NUM_DRAWS, len(samples))), axis=1)
                return drawn
        us = self.table.kernel_us(key, self.rows, units)
        assert us is not None, "every kernel was measured on the smallest size and on the largest"
        return np.full(NUM_DRAWS, us)

    @cached_property
    def _parts(self) -> tuple[str, ...]:
        """The keys whose latencies add up to the model's."""
        whole = {key: _kernels_of(key) for key in self._points if key.startswith(WHOLE) and self._is_mine(key)}
        inside = {index for kernels in whole.values() for index in kernels}
        between = [key + self.signature for key in (CODE, BETWEEN) if key + self.signature in self._points]
        return (*(layer.key for layer in self.program if layer.index not in inside), *whole, *between[:1])

    def _is_mine(self, key: str) -> bool:
        return key.endswith(f":{self.signature}")

    @cached_property
    def _points(self) -> Mapping[str, tuple[Point, ...]]:
        found: dict[str, list[Point]] = {}
        for measurement in self.measurements:
            if measurement.key.rows == self.rows:
                found.setdefault(measurement.key.kernel, []).append(measurement.point)
        return {key: tuple(sorted(points, key=lambda point: point.units)) for key, points in found.items()}

    # -- predictions ----------------------------------------------------------------------------------

    @cached_property
    def table(self) -> MeasuredTable:
        """For the cost model, and for questions about single kernels."""
        return MeasuredTable.of(self.measurements)

    def predict_us(self, units: int | None = None, rows: int | None = None) -> float:
        """The whole model on so many units (None: as many as were profiled): its kernels one after another.

        If the cache is "run", what lies between them is known, and counted: the module's own code, views, memory that
        is given back. Then operations that the module calls as one (an LSTM) count as that, not as their kernels.
        """
        units = max(point.units for points in self._points.values() for point in points) if units is None else units
        rows = self.rows if rows is None else rows
        latencies = {key: self.table.kernel_us(key, rows, units) for key in set(self._parts)}
        unknown = sorted(key for key, us in latencies.items() if us is None)
        if unknown:
            known = self.table.measured(unknown[0])
            raise OptionError(
                f"{len(unknown)} kernels were not profiled for {rows} rows on {units} units, nor around that",
                f"{unknown[0]} is known for (rows, units): {', '.join(map(str, known)) or 'none'}",
                "ask within these, or profile with more rows and units",
            )
        return sum(latencies[key] or 0.0 for key in self._parts)

    # -- files ----------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            facts = f"it is no JSON: {error}" if isinstance(error, ValueError) else error.strerror or str(error)
            next_step = "name a .profile.json that `spacetime profile` or Profile.save() wrote"
            raise OptionError(f"{path} cannot be read as a profile", facts, next_step) from error
        if not isinstance(data, dict) or data.get("version") != VERSION:
            found = data.get("version") if isinstance(data, dict) else type(data).__name__
            facts = f"its version is {found!r}, this one reads {VERSION}"
            raise OptionError(f"{path} is no profile that can be read", facts, "profile the model again")
        try:
            return decode(cls, data)
        except OptionError as error:
            facts = "; ".join(filter(None, (error.what, error.facts)))
            raise OptionError(f"{path} is no profile", facts, "profile the model again") from error

    def to_csv(self) -> str:
        """A line per layer."""
        return export.to_csv(self.layers, self.rows, self.device, self.method)

    def to_chrome(self) -> str:
        """JSON for chrome://tracing or ui.perfetto.dev: the model in time, every kernel at its knee."""
        return export.to_chrome(self.layers, self.rows, self.device, self.method)

    def plot(self, path: str | Path) -> None:
        """A picture (.png or .svg): latency over units with the knees, needed units over time."""
        from spacetime.profiler import pictures

        pictures.plot(self, Path(path))

    def __str__(self) -> str:
        total = self.total
        return (
            f"profile of {self.signature} on {self.device} ({self.method}, {self.cache} caches, {self.rows} rows): "
            f"{len(self.program)} kernels, {total.best_us:.0f} us on {total.best_units} units, knee at {total.units}"
        )


def whole_key(first: int, last: int, signature: str) -> str:
    return f"{WHOLE}{first}-{last}:{signature}"


def _kernels_of(key: str) -> range:
    """
    >>> _kernels_of(whole_key(2, 4, "0123"))
    range(2, 5)
    """
    first, _, last = key.removeprefix(WHOLE).partition(":")[0].partition("-")
    return range(int(first), int(last) + 1)
