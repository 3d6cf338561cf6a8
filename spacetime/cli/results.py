"""Files of bench results side by side, figure by figure, with their noise. `spacetime compare` imports it.

A line of such a file is a measurement and its provenance. Only what is compared is read, so that files of other
versions can be; the benches' own reader is stricter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, log
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from spacetime.errors import OptionError
from spacetime.values import Value, decode

MOST_SHOWN = 40  # figures in the table; --json has all
HARDWARE = ("device", "cpu", "gpu", "num_cores")
OF_THE_RUN = ("commit", "dirty", "date_utc")  # these may differ: it is why one compares

Verdict = Literal["same", "higher", "lower", "one sample"]
Facts = tuple[tuple[str, str], ...]
Key = tuple[str, str, str, str, str, Facts]


@dataclass(frozen=True, slots=True)
class Spread(Value):
    """A median with its quartiles."""

    n: int
    median: float
    p25: float
    p75: float

    def __str__(self) -> str:
        if self.p25 == self.p75:
            return f"{self.median:.4g}"
        return f"{self.median:.4g} ({self.p25:.4g}-{self.p75:.4g})"


@dataclass(frozen=True, slots=True)
class Line(Value):
    """What is read of a line: a figure, when and on what it was taken."""

    key: Key
    spread: Spread | None  # None: it could not be taken
    date_utc: str
    commit: str
    facts: Facts  # of the environment

    @property
    def hardware(self) -> Facts:
        return tuple(fact for fact in self.facts if fact[0] in HARDWARE)


@dataclass(frozen=True, slots=True)
class FigureChange(Value):
    """The same figure in two files."""

    case: str
    subject: str
    metric: str
    unit: str
    cache: str
    before: Spread
    after: Spread

    @property
    def ratio(self) -> float | None:
        """None where there is none: of nothing, or of what took for ever."""
        if not self.before.median or not isfinite(self.before.median) or not isfinite(self.after.median):
            return None
        return self.after.median / self.before.median

    @property
    def verdict(self) -> Verdict:
        """Where the quartiles overlap, the difference may be noise. A single sample does not know its own."""
        if self.before.median == self.after.median:
            return "same"
        if min(self.before.n, self.after.n) == 1:
            return "one sample"
        if self.before.p25 <= self.after.p75 and self.after.p25 <= self.before.p75:
            return "same"
        return "higher" if self.after.median > self.before.median else "lower"


@dataclass(frozen=True, slots=True)
class ResultsComparison(Value):
    """What --json prints, with a ratio and a verdict for every figure."""

    before: str  # device, commits, dates
    after: str
    differences: tuple[str, ...]  # of the environments
    figures: tuple[FigureChange, ...]
    num_only_before: int
    num_only_after: int

    def count(self, verdict: Verdict) -> int:
        return sum(figure.verdict == verdict for figure in self.figures)

    def to_json(self) -> str:
        data = json.loads(super(ResultsComparison, self).to_json())
        for line, figure in zip(data["figures"], self.figures, strict=True):
            line |= {"ratio": figure.ratio, "verdict": figure.verdict}
        return json.dumps(data, separators=(",", ":"))


def is_results(path: Path) -> bool:
    """Whether it is a file of results: lines, and the first is a measurement with its provenance."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline() or "null")
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and {"measurement", "provenance"} <= first.keys()


def compared_results(before: Path, after: Path, *, force: bool) -> ResultsComparison:
    """Two files, the newest of every figure in each. Unequal devices are refused unless `force`."""
    mine, theirs = _newest(before), _newest(after)
    common = [key for key in theirs if key in mine]
    if not common:
        facts = f"{len(mine)} and {len(theirs)} figures, none the same"
        raise OptionError("these results have nothing in common", facts, "run the same cases with the same options")
    lines = [(mine[key], theirs[key]) for key in common]
    differences = _differences(lines)
    hardware = tuple(text for text in differences if text.partition(":")[0] in HARDWARE)
    if hardware and not force:
        raise OptionError(
            "these results cannot be compared: they were taken on different devices",
            "; ".join(hardware),
            "compare results of one device, or add --force to compare them all the same",
        )
    changes = [_change(old, new) for old, new in lines if old.spread and new.spread]
    return ResultsComparison(
        before=_told([old for old, _ in lines]),
        after=_told([new for _, new in lines]),
        differences=differences,
        figures=tuple(sorted(changes, key=_weight, reverse=True)),
        num_only_before=len(mine) - len(common),
        num_only_after=len(theirs) - len(common),
    )


def _weight(change: FigureChange) -> tuple[bool, float]:
    """What changed beyond noise first, and of that what changed most."""
    ratio = change.ratio
    size = abs(log(ratio)) if ratio and ratio > 0 else inf
    return change.verdict != "same", 0.0 if change.before.median == change.after.median else size


def _change(old: Line, new: Line) -> FigureChange:
    case, subject, metric, unit, cache, _ = new.key
    assert old.spread is not None and new.spread is not None
    return FigureChange(case, subject, metric, unit, cache, old.spread, new.spread)


def _newest(path: Path) -> dict[Key, Line]:
    found: dict[Key, Line] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = _line(path, number, text)
        known = found.get(line.key)
        if known is None or line.date_utc >= known.date_utc:
            found[line.key] = line
    return found


def _line(path: Path, number: int, text: str) -> Line:
    try:
        data = json.loads(text)
        found, provenance = data["measurement"], data["provenance"]
        axes = found.get("axes", {})
        # Fractions among the axes are results themselves, such as a share of the roofline.
        places = tuple((name, str(axes[name])) for name in sorted(axes) if not isinstance(axes[name], float))
        key = (found["case"], found["subject"], found["metric"], found["unit"], found["cache"], places)
        spread = None if found["median"] is None else decode(Spread, {name: found[name] for name in _SPREAD})
        return Line(key, spread, provenance["date_utc"], provenance["commit"], _facts(provenance))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        facts = f"line {number}: {type(error).__name__}: {error}".replace("\n  ", "; ")
        raise OptionError(f"{path} holds a line that is no result", facts, "take the line out") from error


_SPREAD = ("n", "median", "p25", "p75")


def _facts(provenance: Mapping[str, Any]) -> Facts:
    """Of the environment, those of nested tables too: ("versions.numpy", "2.1")."""
    facts: dict[str, str] = {"gpu": "none"}  # lines from before there were GPUs do not name one
    for name, value in provenance.items():
        if name in OF_THE_RUN:
            continue
        nested = value if isinstance(value, dict) else {"": value}
        facts |= {f"{name}.{part}".rstrip("."): str(fact) for part, fact in nested.items()}
    return tuple(sorted(facts.items()))


def _differences(lines: list[tuple[Line, Line]]) -> tuple[str, ...]:
    """What differs, one line each. A file may hold several values itself."""
    mine, theirs = (_values([pair[side] for pair in lines]) for side in (0, 1))
    return tuple(
        f"{name}: {' and '.join(mine.get(name, ('absent',)))} here, {' and '.join(theirs.get(name, ('absent',)))} there"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name) or (name in HARDWARE and len(mine[name]) > 1)
    )


def _values(lines: list[Line]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        for name, value in line.facts:
            found.setdefault(name, {})[value] = None
    return {name: tuple(sorted(values)) for name, values in found.items()}


def _told(lines: list[Line]) -> str:
    devices = " and ".join(dict.fromkeys(dict(line.facts).get("device", "?") for line in lines))
    commits = ", ".join(dict.fromkeys(line.commit[:10] for line in lines))
    days = sorted({line.date_utc[:10] for line in lines})
    return f"{devices}, commit {commits}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def print_results(console: Console, comparison: ResultsComparison) -> None:
    shown = comparison.figures[:MOST_SHOWN]
    counts = (
        f"{len(comparison.figures)} figures in both: {comparison.count('higher')} higher, "
        f"{comparison.count('lower')} lower, {comparison.count('same')} the same within their quartiles"
    )
    if comparison.count("one sample"):
        counts += f", {comparison.count('one sample')} different but of one sample, so of unknown noise"
    if comparison.num_only_before or comparison.num_only_after:
        counts += f"; {comparison.num_only_before} only before, {comparison.num_only_after} only after"
    if len(shown) < len(comparison.figures):
        counts += f"; the {len(shown)} that changed most are shown"
    lines = [f"before: {comparison.before}", f"after:  {comparison.after}"]
    for line in (*lines, *(f"  {difference}" for difference in comparison.differences), counts):
        console.print(line, soft_wrap=True)
    console.print(_table(shown))


def _table(figures: tuple[FigureChange, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("case", "subject", "figure"):
        table.add_column(heading, overflow="fold")
    for heading in ("before (quartiles)", "after", "ratio", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f} x"
        name = f"{figure.metric}, {figure.unit}, {figure.cache}"
        texts = (figure.case, figure.subject, name, str(figure.before), str(figure.after), ratio, figure.verdict)
        table.add_row(*texts)
    return table
