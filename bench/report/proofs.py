"""What a device's folder holds beside rows: profiles, drawn as knee curves, and what make device proved."""

from __future__ import annotations

import json
from pathlib import Path

from bench.report.figures import Section, Sheet
from bench.report.sources import SHORT_COMMIT
from spacetime.errors import OptionError
from spacetime.profiler.figures import heading, panels, shorten
from spacetime.profiler.profile import Profile
from spacetime.profiler.svg import draw_panel

PROFILES = "profiles"  # bench/results/<device>/profiles/MODEL.json, as `spacetime profile --save` writes them
PROOFS = "device.json"  # bench/results/<device>/device.json, as make device writes it
MOST_PANELS = 6
STATUSES = ("PASS", "FAIL", "INFO", "MISSING")


def profiles(results: Path) -> list[Path]:
    return sorted(results.glob(f"*/{PROFILES}/*.json"))


def proved(results: Path) -> list[Path]:
    return sorted(results.glob(f"*/{PROOFS}"))


def knees_section(results: Path) -> Section | None:
    """Latency over units of each profile's whole model and largest kernels."""
    paths = profiles(results)
    if not paths:
        return None
    drawn, lines = [], []
    for path in paths:
        profile = Profile.load(path)
        drawn.append(knee_panels(profile, path.stem))
        total, environment = profile.total, profile.environment
        knee = f"{total.units} of {total.best_units}"
        versions = ", ".join(f"{name} {version}" for name, version in environment.versions)
        lines.append((path.stem, profile.device, profile.method, str(profile.rows), knee, environment.driver, versions))
    headings = ("model", "device", "method", "rows", "knee of the whole", "driver", "versions")
    table = Sheet("Profiles", headings, tuple(lines), "Read from the profiles' files.")
    text = (
        "The knee is the least number of units at which a kernel stays within the tolerance of its best latency. Shown "
        f"are the whole model and the work that takes most of its time, at most {MOST_PANELS} curves each; dots are "
        "medians, the dashed line is the law m / units + b."
    )
    return Section("Knee curves", text, drawn=tuple(drawn), more_sheets=(table,))


def knee_panels(profile: Profile, model: str) -> str:
    from html import escape

    title = escape(heading(profile, model))
    figures = "".join(
        f"<figure><figcaption><b>{escape(shorten(panel.name, 40))}</b><br>{escape(panel.detail)}</figcaption>"
        f"{draw_panel(panel, profile.tolerance)}</figure>"
        for panel in panels(profile, MOST_PANELS)
    )
    return f'<h3 class="across">{title}</h3>{figures}'


def device_section(results: Path) -> Section | None:
    """Per stage: how it ended and what it found; then what failed or is missing, in its own words."""
    paths = proved(results)
    if not paths:
        return None
    sheets = tuple(sheet for path in paths for sheet in _proofs(path))
    text = (
        "What make device found of the device: whether partitions confine their kernels, whether graphs keep to "
        "them, what switching costs. Proofs hold or do not; their figures are in the file."
    )
    return Section("What was proved on the device", text, sheets)


def _proofs(path: Path) -> list[Sheet]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        outcomes, provenance = data["outcomes"], data["provenance"]
        stages = tuple(
            (
                " ".join([outcome["stage"], *(f"{name}={value}" for name, value in outcome["environment"].items())]),
                outcome["end"],
                f"{outcome['seconds']:.1f}",
                *(str(sum(each["status"] == status for each in outcome["findings"])) for status in STATUSES),
            )
            for outcome in outcomes
        )
        unproved = tuple(
            (each["stage"], each["name"], each["status"], each["facts"])
            for outcome in outcomes
            for each in outcome["findings"]
            if each["status"] in ("FAIL", "MISSING")
        )
        told = f"On {path.parent.name}, commit {provenance['commit'][:SHORT_COMMIT]}, {provenance['date_utc'][:10]}, "
        told += f"torch {provenance['torch']}."
    except (ValueError, KeyError, TypeError) as error:
        facts = f"{type(error).__name__}: {error}"
        raise OptionError(
            f"{path} is not what make device writes", facts, "run make device again, or remove it"
        ) from error
    headings = ("stage", "end", "s", *(status.lower() for status in STATUSES))
    made = [Sheet(f"Stages on {path.parent.name}", headings, stages, told)]
    if unproved:
        heads = ("stage", "name", "status", "facts")
        made.append(Sheet(f"Failed or missing on {path.parent.name}", heads, unproved, told))
    return made
