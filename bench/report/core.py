"""What falls short of its goal, and every case that no other section knows."""

from __future__ import annotations

from bench.report import gemm, models, overheads, traffic
from bench.report.build import cell, has_goal, metric, misses, reasons, shortfall, tables
from bench.report.figures import Section, Sheet
from bench.report.rows import Rows
from bench.report.sources import source
from bench.results import Row

ELSEWHERE = (*gemm.CASES, *models.CASES, *traffic.TENANTS, *traffic.INTERFERENCE, *overheads.CASES)


def other_section(rows: Rows) -> Section | None:
    found = rows.where(lambda one: one.case not in ELSEWHERE)
    if not found:
        return None
    return Section("Other cases", "As they were measured.", (*tables(found), *reasons(found)))


def shortfalls_section(rows: Rows) -> Section | None:
    """What is not as it should be."""
    judged = rows.available.where(has_goal)
    if not judged:
        return None
    short = judged.where(misses)
    text = f"{len(judged) - len(short)} of {len(judged)} figures that have a goal reach it."
    return Section("What falls short", text, (_by_figure(judged), _one_by_one(short)) if short else ())


def _by_figure(judged: Rows) -> Sheet:
    """A row per metric: how many subjects miss the goal, and which misses it most."""
    figures: dict[tuple[str, str, str], list[Row]] = {}
    for row in judged:
        figures.setdefault((row.provenance.device, row.measurement.case, metric(row.measurement)), []).append(row)
    lines = []
    for (device, case, name), all_ in figures.items():
        missed = [row.measurement for row in all_ if misses(row.measurement)]
        if missed:
            worst = max(missed, key=shortfall)
            told = f"{worst.subject}: {cell(worst)}"
            lines.append((device, case, name, f"{len(missed)} of {len(all_)}", told))
    headings = ("device", "case", "figure", "missed by", "furthest from it")
    return Sheet("Figures that miss their goal", headings, tuple(lines), source(judged.where(misses)))


def _one_by_one(short: Rows) -> Sheet:
    lines = tuple(
        (
            row.provenance.device,
            row.measurement.case,
            row.measurement.subject,
            metric(row.measurement),
            cell(row.measurement),
            row.measurement.note,
        )
        for row in short
    )
    return Sheet("One by one", ("device", "case", "subject", "figure", "measured", "note"), lines, "", is_folded=True)
