"""The first thing to read: what was measured where, what is modelled, and what falls short. document puts it on top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.report import gemm, models, overheads, traffic
from bench.report.build import cell, has_goal, metric, misses, shortfall
from bench.report.figures import NO_FIGURE, Sheet, number
from bench.report.rows import Rows
from bench.results import Measurement

TITLE = "At a glance"
HEADINGS = ("part", "where", "figures", "not possible", "goals missed", "what falls short most", "newest")
MEASURED = "measured on"
PARTS = (
    ("Matrix products", gemm.CASES),
    ("Whole models", models.CASES),
    ("Tenants under traffic", traffic.TENANTS),
    ("Interference", traffic.INTERFERENCE),
    ("Overheads", overheads.CASES),
)
KNOWN = tuple(case for _, cases in PARTS for case in cases)


def overview(rows: Rows, num_studies: int, num_profiles: int, proved: Sequence[str]) -> Sheet | None:
    """A line per part and device; the last ones say what was not measured at all."""
    lines = [line for name, cases in PARTS for line in _part(name, rows.of_case(*cases))]
    lines += _part("Other cases", rows.where(lambda one: one.case not in KNOWN))
    if not lines:
        return None
    blank = (NO_FIGURE,) * 3
    if num_profiles:
        lines.append((f"{num_profiles} profiles", "measured or modelled, as each says", *blank, "see Knee curves", ""))
    lines += [("Proofs", f"{MEASURED} {device}", *blank, "see What was proved", "") for device in proved]
    if num_studies:
        lines.append((f"{num_studies} studies", "modelled, none measured", *blank, "see Modelled", ""))
    if not any(device.startswith("gpu") for device in rows.devices):
        lines.append(("Any of it on a GPU", "not measured", *blank, "no GPU has run it: no figure here is one's", ""))
    return Sheet(TITLE, HEADINGS, tuple(lines), "")


def _part(name: str, found: Rows) -> Iterator[tuple[str, ...]]:
    for device in found.devices:
        mine = found.on(device)
        judged = mine.available.where(has_goal)
        short = judged.where(misses)
        goals = f"{len(short)} of {len(judged)}" if judged else "none set"
        when = max(row.provenance.date_utc for row in mine)[:10]
        worst = _worst(mine.available) or _furthest(short) or NO_FIGURE
        missing = str(len(mine.missing)) if mine.missing else "0"
        yield (name, f"{MEASURED} {device}", str(len(mine.available)), missing, goals, worst, when)


def _furthest(short: Rows) -> str:
    """Of our own policies, where one of them is among them: the others are there to be compared with."""
    if not short:
        return ""
    own = short.where(lambda one: str(one.axes.get(traffic.POLICY, traffic.PRODUCT)).startswith(traffic.PRODUCT))
    found = max((row.measurement for row in own or short), key=shortfall)
    return f"{metric(found)}: {found.subject}, {cell(found)}"


def _worst(mine: Rows) -> str:
    """For parts that are judged by others than a goal of ours: the publication, the baselines, the other policies."""
    return _under_published(mine) or _behind(mine) or _outdone(mine)


def _under_published(mine: Rows) -> str:
    """Of the published speed-ups those that are not reached, with the best path."""
    found = gemm.reached(mine)
    below = [
        f"{one.what} {number(one.best.median)}x, published {one.published}x"
        for one in found
        if _median(one.best) < one.published
    ]
    return "; ".join(below) or ("every published speed-up is reached" if found else "")


def _behind(mine: Rows) -> str:
    """Ours against every baseline."""
    ratios = [row.measurement for row in mine.of_metric(models.SPEED_UP)]
    slower = [one for one in ratios if one.median is not None and one.median < 1]
    if not ratios:
        return ""
    if not slower:
        return f"ours is not slower in any of {len(ratios)} comparisons"
    worst = min(slower, key=_median)
    return f"ours is slower in {len(slower)} of {len(ratios)} comparisons; most: {worst.subject}, {cell(worst)}"


def _outdone(mine: Rows) -> str:
    """The product's goodput against the best policy's, where it is outdone most."""
    rates = mine.where(lambda one: one.metric.startswith("goodput") and traffic.POLICY in one.axes)
    ours = {_place(one): one for one in _measurements(rates) if one.axes[traffic.POLICY] == traffic.PRODUCT}
    told = []
    for place, own in ours.items():
        best = max((one for one in _measurements(rates) if _place(one) == place), key=_median)
        if _median(best) > _median(own):
            what = f"{best.axes[traffic.POLICY]} {number(best.median)}, {traffic.PRODUCT} {number(own.median)}"
            told.append((_median(best) / max(_median(own), 1e-9), f"goodput in {own.unit}: {what}"))
    if not ours:
        return ""
    return max(told)[1] if told else f"no policy has more goodput than {traffic.PRODUCT}"


def _measurements(rows: Rows) -> list[Measurement]:
    return [row.measurement for row in rows]


def _place(found: Measurement) -> tuple[object, ...]:
    return tuple(sorted((name, str(value)) for name, value in found.axes.items() if name != traffic.POLICY))


def _median(found: Measurement) -> float:
    return found.median or 0.0
