"""The rows of bench/results/ for readers: the newest of each figure, by device. The report's sections import it.

Files are append-only, so a figure may have been measured many times: the newest row of equal axes counts, older ones
stay in the files and are counted here. Nothing is known of the cases: a case of tomorrow is read like those of today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from bench.results import Measurement, Row, load
from spacetime.errors import OptionError

Axis = str | int | float
Key = tuple[str, str, str, str, str, tuple[tuple[str, Axis], ...]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows, in a fixed order: by file, then by line."""

    rows: tuple[Row, ...]
    num_older: int = 0  # measurements of the same figures that newer ones have replaced

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def where(self, keep: Callable[[Measurement], bool]) -> Rows:
        return Rows(tuple(row for row in self.rows if keep(row.measurement)))

    def of_case(self, *cases: str) -> Rows:
        return self.where(lambda found: found.case in cases)

    def of_metric(self, metric: str) -> Rows:
        return self.where(lambda found: found.metric == metric)

    def having(self, axis: str, value: Axis) -> Rows:
        return self.where(lambda found: found.axes.get(axis) == value)

    def on(self, device: str) -> Rows:
        return Rows(tuple(row for row in self.rows if row.provenance.device == device))

    @property
    def devices(self) -> tuple[str, ...]:
        """GPUs first, as the figures to reproduce are theirs."""
        found = {row.provenance.device for row in self.rows}
        return tuple(sorted(found, key=lambda device: (device.startswith("cpu"), device)))

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.measurement.case for row in self.rows))

    def axis(self, name: str) -> tuple[Axis, ...]:
        """The values that an axis takes: numbers in order, texts as they come."""
        values = tuple(dict.fromkeys(row.measurement.axes[name] for row in self.rows if name in row.measurement.axes))
        numeric = all(isinstance(value, int | float) for value in values)
        return tuple(sorted(values)) if numeric else values

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(str(value) for value in self.axis(name))

    @property
    def available(self) -> Rows:
        return self.where(lambda found: found.median is not None)

    @property
    def drawable(self) -> Rows:
        """Those that have a place on an axis: what was never served took for ever."""
        return self.where(lambda found: found.median is not None and isfinite(found.median))

    @property
    def missing(self) -> Rows:
        """Figures that could not be taken; their notes say why. What was measured later is none of them."""
        taken = [row for row in self.rows if row.measurement.median is not None]
        never = (row for row in self.rows if row.measurement.median is None)
        return Rows(tuple(row for row in never if not any(_makes_up_for(other, row) for other in taken)))


def _makes_up_for(taken: Row, missing: Row) -> bool:
    """Whether it is a figure of what was missing as a whole, such as a side, and not older."""
    mine, theirs = taken.measurement, missing.measurement
    if (mine.case, mine.metric, taken.provenance.device) != (theirs.case, theirs.metric, missing.provenance.device):
        return False
    is_newer = taken.provenance.date_utc >= missing.provenance.date_utc
    return is_newer and bool(theirs.axes) and theirs.axes.items() <= mine.axes.items()


def key_of(row: Row) -> Key:
    """What makes two rows the same figure of one device. Axes that are fractions are results, such as a roofline."""
    found = row.measurement
    axes = tuple(sorted(item for item in found.axes.items() if not isinstance(item[1], float)))
    return (row.provenance.device, found.case, found.subject, found.metric, found.cache, axes)


def of_any_cache(row: Row) -> Key:
    """For cases whose caches are warm or cold by their sizes: what was measured last counts, however that was."""
    return key_of(replace(row, measurement=replace(row.measurement, cache="warm")))


def newest(rows: Iterable[Row], key_of: Callable[[Row], Key] = key_of) -> Rows:
    """Of equal figures the one with the latest date; of equal dates the later line."""
    found: dict[Key, Row] = {}
    num_rows = 0
    for row in rows:
        num_rows += 1
        known = found.get(key_of(row))
        if known is None or row.provenance.date_utc >= known.provenance.date_utc:
            found[key_of(row)] = row
    return Rows(tuple(found.values()), num_rows - len(found))


def read(results: Path) -> Rows:
    """Every *.jsonl in the folders below `results`. A line that is no row is an error that names its file."""
    if not results.is_dir():
        next_step = "give the folder that holds a folder per device, such as bench/results"
        raise OptionError(f"there are no results in {results}", "it is not a directory", next_step)
    return newest(row for path in files(results) for row in _rows(path))


def files(results: Path) -> Sequence[Path]:
    return sorted(results.rglob("*.jsonl"))


def _rows(path: Path) -> list[Row]:
    try:
        return load(path)
    except (ValueError, KeyError) as error:
        first = str(error).replace("\n  ", "; ")
        next_step = "lines are bench.results.Row as JSON; take the line out, or measure with this version"
        raise OptionError(f"{path} holds a line that is no result", first, next_step) from error
