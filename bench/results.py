"""Measurements as values, and the file they are appended to. Imported by the cases, their driver, and readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Literal

from bench.provenance import REPOSITORY, Provenance
from spacetime.values import Value


@dataclass(frozen=True, slots=True)
class Measurement(Value):
    """One figure: the median and the quartiles of `n` samples. n = 0: unavailable, `note` says why."""

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

    def of(self, subject: str, samples: Sequence[float], note: str = "") -> Measurement:
        p25, median, p75 = quartiles(samples)
        return self._measurement(subject, len(samples), (p25, median, p75), note)

    def unavailable(self, subject: str, why: str) -> Measurement:
        return self._measurement(subject, 0, (None, None, None), f"unavailable: {why}")

    def _measurement(
        self, subject: str, n: int, quarters: tuple[float | None, float | None, float | None], note: str
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
        )


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """25 %, 50 %, 75 %; a single sample is all three."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    p25, median, p75 = quantiles(samples, n=4, method="inclusive")
    return p25, median, p75


def default_path(provenance: Provenance) -> Path:
    return REPOSITORY / "bench" / "results" / provenance.device / "core.jsonl"


def append(path: Path, rows: Sequence[Row]) -> None:
    """What was recorded before stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{row.to_json()}\n" for row in rows)


def load(path: Path) -> list[Row]:
    return [Row.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
