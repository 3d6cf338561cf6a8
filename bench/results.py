"""Measurements as values, and the file they are appended to. Imported by the cases, their driver, and readers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Literal

from bench.provenance import REPOSITORY, Provenance
from spacetime.values import Value, decode


@dataclass(frozen=True, slots=True)
class Measurement(Value):
    """One figure: the median and the quartiles of `n` samples. n = 0: unavailable, `note` says why.

    `subject` is for people; `axes` says the same to readers that draw or tabulate: {"shape": "256x128x1152",
    "tenants": 16, "dtype": "float32", "side": "streams"}.
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
    ) -> Measurement:
        p25, median, p75 = quartiles(samples)
        return self._measurement(subject, len(samples), (p25, median, p75), note, axes)

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
    """Lines from before there were axes, and other devices than CPUs, have none."""
    data = json.loads(line)
    data["measurement"].setdefault("axes", {})
    data["provenance"].setdefault("gpu", "none")
    data["provenance"].setdefault("versions", {})
    return decode(Row, data)
