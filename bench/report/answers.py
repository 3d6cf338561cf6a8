"""What a user asks first: is it faster, for what, and where not? Tiles and a table; document puts them on top.

Every cell is made from rows. Whoever is faster by less than the quartiles tell apart is in neither column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.report import gemm, models, traffic
from bench.report.build import TENANTS
from bench.report.figures import NO_FIGURE, Sheet, number
from bench.report.rows import Rows
from bench.report.sources import source
from bench.results import Measurement
from spacetime.sim.studies.study import geomean
from spacetime.values import Value

TITLE = "Is it faster, for what, and where not?"
HEADINGS = ("compared with", "overall", "faster", "slower", "even")
PLAIN, ONNX = "speed-up over plain modules", "speed-up over onnxruntime"
OF_ZOO = {PLAIN: "eager", ONNX: "onnxruntime"}  # what the case `models` calls the same
LONE, GOODPUT, BESIDE = "runtime above plain call", "goodput", "victim's p99 beside the aggressor"
SUMMARIES = ("geomean", "minimum")  # subjects that are about the others
MOST_NAMES = 4  # in a cell
TOLERANCE = 0.1  # of ratios of medians that stand for several figures


@dataclass(frozen=True, slots=True)
class Ratio(Value):
    """Ours over theirs, more is better. From `low` to `high` it may as well be."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Answer(Value):
    """A row of the table. `tile` is what is shown large; not every answer is."""

    question: str
    overall: str
    faster: str = NO_FIGURE
    slower: str = NO_FIGURE
    even: str = NO_FIGURE
    tile: tuple[str, str] | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.question, self.overall, self.faster, self.slower, self.even)


def tiles(rows: Rows) -> tuple[tuple[str, str], ...]:
    """Published figures are a GPU's: beside a CPU's they would say nothing at this size."""
    published = [one.tile for one in gemm.reached(rows) if not one.device.startswith("cpu")]
    return (*published, *(one.tile for one in _answers(rows) if one.tile is not None))


def answers(rows: Rows) -> Sheet | None:
    """Of the first device that has any. None where nothing was measured that answers."""
    found = tuple(_answers(rows))
    if not found:
        return None
    used = rows.on(_device(rows)).where(lambda one: any(one.metric.startswith(name) for name in _METRICS))
    return Sheet(TITLE, HEADINGS, tuple(one.cells for one in found), source(used) if used else "")


_METRICS = (PLAIN, ONNX, LONE, GOODPUT, BESIDE, models.SPEED_UP)


def _device(rows: Rows) -> str:
    return rows.devices[0]


def _answers(rows: Rows) -> Iterator[Answer]:
    if not rows:
        return
    mine = rows.on(_device(rows)).drawable
    yield from _over_zoo(mine, PLAIN, "the same modules, one after another")
    yield from _over_zoo(mine, ONNX, "onnxruntime, a thread per core")
    yield from _over_baselines(mine)
    yield from _over_policies(mine)
    yield from _beside(mine)
    yield from _lone(mine)
    yield from _published(rows)
    if not any(device.startswith("gpu") for device in rows.devices):
        yield Answer("anything on a GPU", "not measured")


# -- ratios ----------------------------------------------------------------------------------------------------------


def _over_zoo(mine: Rows, metric: str, what: str) -> Iterator[Answer]:
    """Several tenants of each model of the zoo."""
    found = [row.measurement for row in mine.of_metric(metric)]
    ratios = [_ratio(one.subject, one) for one in found if one.subject not in SUMMARIES]
    if ratios:
        mean = geomean([one.value for one in ratios])
        spans = f"{_times(min(ratios, key=_value))} to {_times(max(ratios, key=_value))}"
        told = f"the throughput of {what} (geomean of {len(ratios)} models: {spans})"
        yield _compared(what, ratios, f"{number(mean)}x", (f"{number(mean)}x", told))


def _over_baselines(mine: Rows) -> Iterator[Answer]:
    """Baselines that the zoo is not compared with, at the most tenants of each model."""
    found = mine.of_metric(models.SPEED_UP).where(lambda one: {models.BASELINE, TENANTS} <= one.axes.keys())
    answered = {baseline for metric, baseline in OF_ZOO.items() if mine.of_metric(metric)}
    for baseline in sorted(set(found.texts(models.BASELINE)) - answered):
        against = [row.measurement for row in found.having(models.BASELINE, baseline)]
        most: dict[str, Measurement] = {}
        for one in against:
            name = f"{one.axes.get('model', one.subject)} {one.axes.get('dtype', '')}".removesuffix(" float32").strip()
            known = most.get(name)
            if one.axes.get("rows", "1") == "1" and (known is None or known.axes[TENANTS] < one.axes[TENANTS]):
                most[name] = one
        ratios = [_ratio(f"{one.axes[TENANTS]} {name}", one) for name, one in most.items()]
        if ratios:
            overall = f"{number(geomean([one.value for one in ratios]))}x"
            yield _compared(baseline, ratios, overall)


def _over_policies(mine: Rows) -> Iterator[Answer]:
    """Rates served in time, where the policies had the same traffic."""
    found = mine.where(lambda one: one.metric.startswith(GOODPUT) and traffic.POLICY in one.axes)
    rates = _by_policy(found)
    if rates.get(traffic.PRODUCT):
        ours = _mean(rates[traffic.PRODUCT])
        others = sorted(((_mean(its), name) for name, its in rates.items() if name != traffic.PRODUCT), reverse=True)
        ratios = [_about(f"{name} {number(rate)}/s", ours / rate) for rate, name in others if rate > 0]
        told = f"requests in time under {traffic.PRODUCT}; " + ", ".join(
            f"{name} {number(rate)}" for rate, name in others
        )
        overall = f"{traffic.PRODUCT} {number(ours)}/s"
        yield _named("other policies: requests in time", ratios, overall, (f"{number(ours)}/s", told))


def _beside(mine: Rows) -> Iterator[Answer]:
    """A tenant's tail beside aggressors: geometric means over those that both policies had."""
    times = _by_policy(mine.of_metric(BESIDE).where(lambda one: traffic.POLICY in one.axes))
    ours = times.pop(traffic.PRODUCT, {})
    ratios = []
    for name, theirs in sorted(times.items()):
        common = [subject for subject in ours if theirs.get(subject) and ours[subject]]
        if common:
            ratio = geomean([theirs[subject] / ours[subject] for subject in common])
            ratios.append(_about(f"{name} {number(ratio)}x", ratio))
    if ratios:
        overall = f"{traffic.PRODUCT}: {number(_mean(ours))} ms"
        yield _named("other policies: p99 beside an aggressor", ratios, overall)


def _lone(mine: Rows) -> Iterator[Answer]:
    found = {row.measurement.subject: row.measurement.median or 0.0 for row in mine.of_metric(LONE)}
    if found:
        least, most = number(min(found.values())), number(max(found.values()))
        slower = ", ".join(f"{name} +{number(us)} us" for name, us in sorted(found.items(), key=lambda item: item[1]))
        told = "what a call takes longer than the plain module's, where there is one tenant"
        span = f"+{least} us" if least == most else f"+{least} to {most} us"
        yield Answer("a lone tenant's plain call", span, slower=slower, tile=(span, told))


def _published(rows: Rows) -> Iterator[Answer]:
    found = gemm.reached(rows)
    if found:
        ratios = [
            _ratio(f"{one.what} {number(one.best.median)}x (published {one.published}x)", one.best) for one in found
        ]
        yield _named("baselines of published products", ratios, NO_FIGURE)


# -- cells -----------------------------------------------------------------------------------------------------------


def _compared(what: str, ratios: Sequence[Ratio], overall: str, tile: tuple[str, str] | None = None) -> Answer:
    return _answer(what, ratios, overall, tile, lambda one: f"{one.name} {_times(one)}")


def _named(what: str, ratios: Sequence[Ratio], overall: str, tile: tuple[str, str] | None = None) -> Answer:
    return _answer(what, ratios, overall, tile, lambda one: one.name)


def _answer(
    what: str, ratios: Sequence[Ratio], overall: str, tile: tuple[str, str] | None, told: Callable[[Ratio], str]
) -> Answer:
    faster = sorted((one for one in ratios if one.low > 1), key=_value, reverse=True)
    slower = sorted((one for one in ratios if one.high < 1), key=_value)
    even = [one for one in ratios if one.low <= 1 <= one.high]
    return Answer(what, overall, *[_list([told(one) for one in its]) for its in (faster, slower, even)], tile=tile)


def _list(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMES + 1:
        return f"{', '.join(names[:MOST_NAMES])}, {len(names) - MOST_NAMES} more"
    return ", ".join(names) or NO_FIGURE


def _ratio(name: str, found: Measurement) -> Ratio:
    value = found.median or 0.0
    return Ratio(name, value, value if found.p25 is None else found.p25, value if found.p75 is None else found.p75)


def _about(name: str, value: float) -> Ratio:
    return Ratio(name, value, value / (1 + TOLERANCE), value * (1 + TOLERANCE))


def _times(one: Ratio) -> str:
    return f"{number(one.value)}x"


def _value(one: Ratio) -> float:
    return one.value


def _by_policy(rows: Rows) -> dict[str, dict[str, float]]:
    """Medians by policy and by the axes besides."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        one = row.measurement
        place = ", ".join(f"{name}={value}" for name, value in sorted(one.axes.items()) if name != traffic.POLICY)
        found.setdefault(str(one.axes[traffic.POLICY]), {})[place] = one.median or 0.0
    return found


def _mean(found: dict[str, float]) -> float:
    values = [value for value in found.values() if value > 0]
    return geomean(values) if values else 0.0
