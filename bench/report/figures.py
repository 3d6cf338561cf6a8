"""What a report shows, as values: charts, sheets and sections. `svg` and `png` draw them, `page` and `markdown` print
them; the sections make them. Nothing here knows a case or reads a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, isfinite, log10

from spacetime.values import Value

NUM_OURS = 4  # colours of one family, for the paths of ours; those of the others follow
NUM_COLOURS = 14
NEUTRAL = -1  # limits, and what is too much for the colours: grey
NO_FIGURE = "-"


@dataclass(frozen=True, slots=True)
class Point(Value):
    """A median with its quartiles."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series(Value):
    name: str
    colour: int
    points: tuple[Point, ...]
    is_limit: bool = False  # drawn dashed: computed, not measured


@dataclass(frozen=True, slots=True)
class Lines(Value):
    """Figures over a number, such as the number of tenants."""

    name: str  # of its file
    title: str
    detail: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    source: str  # where which of it was measured
    is_log: bool = True  # both axes
    level: float | None = None  # a line across: 1 in a picture of speed-ups
    is_share: bool = False  # a distribution: up goes the share of all, from 0 to 100 %


MARKED = (50.0, 99.0)  # per cent: the dots of a distribution


@dataclass(frozen=True, slots=True)
class Bar(Value):
    """One bar, or one strip: from the first mark to the last; a dot where there is one mark."""

    name: str
    colour: int
    marks: tuple[float, ...]  # a bar: its end; a strip: one per quantile
    low: float  # quartiles of the first mark
    high: float
    goal: float | None = None


def values(bar: Bar) -> str:
    """
    >>> values(Bar("ours", 0, (1.5, 12.0), 1.5, 1.5))
    '1.50 / 12.0'
    """
    return " / ".join(map(number, bar.marks))


@dataclass(frozen=True, slots=True)
class Group(Value):
    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Bars(Value):
    """Horizontal bars from 0, or strips of quantiles on a logarithmic axis where `marks` are named."""

    name: str
    title: str
    detail: str
    x_label: str
    groups: tuple[Group, ...]
    source: str
    marks: tuple[str, ...] = ()  # names of quantiles: "p50", "p99", "max"
    level: float | None = None
    is_wide: bool = False  # long names: across the page


Chart = Lines | Bars


@dataclass(frozen=True, slots=True)
class Sheet(Value):
    """A table of texts; numbers were printed before."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str
    is_folded: bool = False  # long, and not what one looks for first

    @property
    def is_number(self) -> tuple[bool, ...]:
        """By column: whether every cell reads as a number, so that it stands to the right."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.headings)
        return tuple(all(map(_reads_as_number, column)) for column in columns)


@dataclass(frozen=True, slots=True)
class Section(Value):
    title: str
    text: str  # what the reader should know before
    sheets: tuple[Sheet, ...] = ()
    charts: tuple[Chart, ...] = ()
    folded_charts: tuple[Chart, ...] = ()  # more of the same, for other types or sizes
    drawn: tuple[str, ...] = ()  # pictures that are SVG already
    more_sheets: tuple[Sheet, ...] = ()  # after the charts


@dataclass(frozen=True, slots=True)
class Palette(Value):
    """Colours by name: the same side has the same colour in all the pictures of a section."""

    ours: tuple[str, ...]
    others: tuple[str, ...]

    def colour(self, name: str) -> int:
        if name in self.ours[:NUM_OURS]:
            return self.ours.index(name)
        others = self.others[: NUM_COLOURS - NUM_OURS]
        return NUM_OURS + others.index(name) if name in others else NEUTRAL


def is_emphasised(colour: int) -> bool:
    return 0 <= colour < NUM_OURS


def number(value: float | None) -> str:
    """Three digits that count, and never fewer before the point.

    >>> number(12254.3), number(3.2345), number(0.02853), number(1.0), number(0), number(None), number(float("inf"))
    ('12254', '3.23', '0.0285', '1.00', '0', '-', 'inf')
    """
    if value is None:
        return NO_FIGURE
    if not isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    digits = 2 - floor(log10(abs(value)))
    if digits > 6:
        return f"{value:.2e}"
    return f"{value:.{max(digits, 0)}f}"


def tick(value: float) -> str:
    """Round numbers, short.

    >>> tick(0.5), tick(5000), tick(20000), tick(2e6)
    ('0.5', '5000', '20k', '2M')
    """
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (size if size > 1e3 else 10 * size):
            return f"{value / size:g}{prefix}"
    return f"{value:g}"


def spread(median: float | None, low: float | None, high: float | None) -> str:
    """The quartiles in short; nothing where a single sample has none.

    >>> spread(2.0, 1.9, 2.2), spread(2.0, 2.0, 2.0)
    ('1.90-2.20', '')
    """
    if median is None or low is None or high is None or low == high:
        return ""
    return f"{number(low)}-{number(high)}"


def _reads_as_number(cell: str) -> bool:
    """
    >>> _reads_as_number("3.2x"), _reads_as_number("-"), _reads_as_number("2 (1.9-2.2)"), _reads_as_number("h200")
    (True, True, True, False)
    """
    return not cell.strip("0123456789.-+ex%() ")
