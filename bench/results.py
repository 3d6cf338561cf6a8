"""Measurements as values, and the file they are appended to. Imported by the cases, their driver, and readers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import quantiles
from typing import Literal

from bench.provenance import REPOSITORY, Provenance
from spacetime.errors import OptionError
from spacetime.values import Value, decode

# Where a distribution is kept: closer together in the tails. Rows are read by their places here, so this never changes.
PERCENTS: tuple[float, ...] = (
    *(0.0, 1.0, 2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 17.5, 20.0),
    *(25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0, 60.0, 65.0, 70.0, 75.0, 80.0),
    *(82.5, 85.0, 87.5, 90.0, 91.0, 92.0, 93.0, 94.0, 95.0, 96.0, 97.0, 98.0, 98.5),
    *(99.0, 99.5, 99.7, 99.8, 99.9, 100.0),
)
DIGITS = 4  # of its values: a row stays short, and no latency is known better


@dataclass(frozen=True, slots=True)
class Distribution(Value):
    """Of `n` values those at PERCENTS, by nearest rank. Infinite ones are of requests that were never served."""

    n: int
    values: tuple[float, ...]


def distribution(samples: Sequence[float]) -> Distribution:
    """
    >>> distribution([3.0, 1.0, 2.00004]).values[15], distribution([3.0, 1.0, 2.00004]).values[-1]
    (2.0, 3.0)
    """
    ordered, number = sorted(samples), len(samples)
    ranks = (max(1, math.ceil(percent * number / 100)) for percent in PERCENTS)
    return Distribution(number, tuple(float(f"{ordered[rank - 1]:.{DIGITS}g}") for rank in ranks))


@dataclass(frozen=True, slots=True)
class Measurement(Value):
    """One figure: the median and the quartiles of `n` samples. n = 0: unavailable, `note` says why.

    `subject` is for people; `axes` says the same to readers that draw or tabulate: {"shape": "256x128x1152",
    "tenants": 16, "dtype": "float32", "side": "streams"}. Where a sample is itself a quantile of many values, the row
    of the first quantile has the `distribution` of all of them.
    """

    case: str
    subject: str
    metric: str
    unit: str
    n: int
    median: float | None
    p25: float | None
    p75: float | None
    method: str
    cache: Literal["warm", "cold"]
    goal: str = ""
    note: str = ""
    axes: dict[str, str | int | float] = field(default_factory=dict)
    distribution: Distribution | None = None


@dataclass(frozen=True, slots=True)
class Row(Value):
    """A line of a results file."""

    measurement: Measurement
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Figure:
    """What a case measures: everything of a Measurement but the subject and the samples."""

    case: str
    metric: str
    unit: str
    method: str
    goal: str = ""
    cache: Literal["warm", "cold"] = "warm"

    def of(
        self,
        subject: str,
        samples: Sequence[float],
        note: str = "",
        axes: Mapping[str, str | int | float] | None = None,
        of_all: Distribution | None = None,
    ) -> Measurement:
        p25, median, p75 = quartiles(samples)
        return replace(self._measurement(subject, len(samples), (p25, median, p75), note, axes), distribution=of_all)

    def unavailable(self, subject: str, why: str, axes: Mapping[str, str | int | float] | None = None) -> Measurement:
        return self._measurement(subject, 0, (None, None, None), f"unavailable: {why}", axes)

    def _measurement(
        self,
        subject: str,
        n: int,
        quarters: tuple[float | None, float | None, float | None],
        note: str,
        axes: Mapping[str, str | int | float] | None,
    ) -> Measurement:
        p25, median, p75 = quarters
        return Measurement(
            case=self.case,
            subject=subject,
            metric=self.metric,
            unit=self.unit,
            n=n,
            median=median,
            p25=p25,
            p75=p75,
            method=self.method,
            cache=self.cache,
            goal=self.goal,
            note=note,
            axes=dict(axes or {}),
        )


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """25 %, 50 %, 75 %; a single sample is all three."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    p25, median, p75 = quantiles(samples, n=4, method="inclusive")
    return p25, median, p75


def default_path(provenance: Provenance, group: str = "core") -> Path:
    return REPOSITORY / "bench" / "results" / provenance.device / f"{group}.jsonl"


def append(path: Path, rows: Sequence[Row]) -> None:
    """What was recorded before stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{row.to_json()}\n" for row in rows)


def load(path: Path) -> list[Row]:
    return [_row(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _row(line: str) -> Row:
    """Lines from before there were axes, distributions, and other devices than CPUs, have none."""
    data = json.loads(line)
    data["measurement"].setdefault("axes", {})
    data["measurement"].setdefault("distribution", None)
    data["provenance"].setdefault("gpu", "none")
    data["provenance"].setdefault("versions", {})
    row = decode(Row, data)
    found = row.measurement.distribution
    if found is not None and len(found.values) != len(PERCENTS):
        facts = f"it has {len(found.values)} values, the percents are {len(PERCENTS)}"
        raise OptionError("a distribution is not at the known percents", facts, "measure with this version")
    return row
