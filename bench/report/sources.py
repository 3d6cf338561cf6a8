"""Where figures come from, in words: device, versions, commits, dates. The report's sections and pages import it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from bench.provenance import Provenance
from bench.report.rows import Rows

WHEN_AND_WHICH = ("commit", "dirty", "date_utc")  # of a provenance: not the environment
SHORT_COMMIT = 10


def source(rows: Rows) -> str:
    """One line for one figure: "Measured on h200 (driver 570, torch 2.9, spacetime 0.1.0), commit 0ab, 2026-11-21;
    medians of 9 samples, cache warm."
    """
    if not rows:
        return "Nothing was measured."
    found = [row.provenance for row in rows]
    where = "; ".join(_where(device, found) for device in dict.fromkeys(each.device for each in found))
    return f"Measured on {where}; {_samples(rows)}."


def _where(device: str, found: Iterable[Provenance]) -> str:
    mine = [each for each in found if each.device == device]
    facts = [*_driver(mine), "torch " + _all(each.torch for each in mine)]
    commits = _all(each.commit[:SHORT_COMMIT] + (" with changes" if each.dirty else "") for each in mine)
    plural = "s" if len({(each.commit, each.dirty) for each in mine}) > 1 else ""
    dates = sorted({each.date_utc[:10] for each in mine})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{device} ({', '.join(facts)}), commit{plural} {commits}, {when}"


def _driver(found: Iterable[Provenance]) -> list[str]:
    drivers = [each.driver for each in found if each.driver != "none"]
    return ["driver " + _all(drivers)] if drivers else []


def _samples(rows: Rows) -> str:
    counts = [row.measurement.n for row in rows if row.measurement.n]
    if not counts:
        return "no figure could be taken"
    few, many = min(counts), max(counts)
    caches = _all(sorted({row.measurement.cache for row in rows}))
    if many == 1:
        return f"one sample each, cache {caches}"
    return f"medians of {few if few == many else f'{few} to {many}'} samples, cache {caches}"


def methods(rows: Rows) -> tuple[str, ...]:
    """How it was measured, each way once."""
    return tuple(dict.fromkeys(f"{row.measurement.metric}: {row.measurement.method}" for row in rows))


def environments(rows: Rows) -> tuple[dict[str, str], ...]:
    """What the figures were measured on and with, each environment once, with the dates that it was used."""
    dates: dict[tuple[tuple[str, str], ...], set[str]] = {}
    for row in rows:
        facts = tuple(
            (field.name, str(getattr(row.provenance, field.name)))
            for field in fields(Provenance)
            if field.name not in WHEN_AND_WHICH
        )
        dates.setdefault(facts, set()).add(row.provenance.date_utc[:10])
    return tuple({**dict(facts), "days": ", ".join(sorted(days))} for facts, days in sorted(dates.items()))


def _all(names: Iterable[str]) -> str:
    """
    >>> _all(["a", "b", "a", "c"]), _all(["a"])
    ('a, b and c', 'a')
    """
    *first, last = dict.fromkeys(names)
    return f"{', '.join(first)} and {last}" if first else last
