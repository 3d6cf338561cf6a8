"""The pictures of a profile as inline SVG, for the HTML page. Nothing else imports it.

Sizes are in pixels, colours are classes of the page's style, which knows light and dark. What comes from a profile
is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from math import log

from spacetime.profiler.figures import Panel, Timeline, log_ticks, print_tick, print_us, shorten, time_unit
from spacetime.values import Value

Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Frame(Value):
    """The part of a picture that data is drawn in."""

    left: float
    top: float
    right: float
    bottom: float


TIMELINE_WIDTH, TIMELINE_HEIGHT = 1160, 330
TIMELINE = Frame(44, 14, 1030, 288)
PANEL_WIDTH, PANEL_HEIGHT = 360, 220
PANEL = Frame(58, 12, 346, 182)
LETTER_PX = 5.6  # of the small type, about


def draw_timeline(drawn: Timeline) -> str:
    """The units needed over time; every step tells its kernel when pointed at."""
    across = linear(0, drawn.duration_us, TIMELINE.left, TIMELINE.right)
    up = linear(0, drawn.num_units * 1.03, TIMELINE.bottom, TIMELINE.top)
    parts = [*_time_axis(drawn, across), *_steps(drawn, across, up), *_levels(drawn, up)]
    return _svg(TIMELINE_WIDTH, TIMELINE_HEIGHT, f"Units needed over time. {drawn.summary}.", parts)


def draw_panel(panel: Panel, tolerance: float) -> str:
    """Latency over units, its fit, the law, and the knee."""
    least, most = panel.units[0], panel.units[-1]
    low, high = min(panel.low_us), max(panel.high_us)
    doubling, steep = most >= 8 * least, high >= 4 * low
    across = (logarithmic if doubling else linear)(*_margins(least, most, doubling), PANEL.left, PANEL.right)
    ends = (low / 1.35, high * 1.7) if steep else (0.0, high * 1.3)
    up = (logarithmic if steep else linear)(*ends, PANEL.bottom, PANEL.top)
    parts = [*_latency_axis(*ends, steep, up), *_units_axis(panel, doubling, across), *_curve(panel, across, up)]
    parts += _knee(panel, tolerance, across, up)
    label = f"Latency over units of {panel.name}: knee at {panel.knee.units} units"
    return _svg(PANEL_WIDTH, PANEL_HEIGHT, label, parts)


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """A scale on which low is at start and high at end.

    >>> linear(0, 10, 100, 200)(5)
    150.0
    """
    return lambda value: start + (value - low) / (high - low) * (end - start)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """
    >>> round(logarithmic(1, 100, 0, 200)(10))
    100
    """
    return lambda value: start + log(value / low) / log(high / low) * (end - start)


# -- units over time -------------------------------------------------------------------------------------------------


def _steps(drawn: Timeline, across: Scale, up: Scale) -> Iterator[str]:
    outline = [f"M{across(0):.2f} {up(0):.2f}"]
    for step in drawn.steps:
        left, right = across(step.start_us), across(step.start_us + step.duration_us)
        top = up(step.units)
        tip = f"{step.name} · {step.op}: {step.units} units for {print_us(step.duration_us)}, bound by {step.bound}"
        yield (
            f'<rect class="step {escape(step.bound)}" x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" '
            f'height="{TIMELINE.bottom - top:.2f}"><title>{escape(tip)}</title></rect>'
        )
        outline.append(f"V{top:.2f}H{right:.2f}")
        name = shorten(step.name, 24)
        if right - left >= 13 and TIMELINE.bottom - top >= len(name) * LETTER_PX + 8:
            x, y = (left + right) / 2 + 3.5, (top + TIMELINE.bottom) / 2
            turned = f'transform="rotate(-90 {x:.2f} {y:.2f})"'
            yield f'<text class="inside" x="{x:.2f}" y="{y:.2f}" {turned}>{escape(name)}</text>'
    yield f'<path class="outline" d="{"".join(outline)}"/>'


def _levels(drawn: Timeline, up: Scale) -> Iterator[str]:
    """The device, the whole model's knee and the mean, named beside the picture."""
    levels = [(float(drawn.num_units), "device", f"{drawn.num_units}: the device")]
    if drawn.knee_units < drawn.num_units:
        levels.append((drawn.knee_units, "whole", f"{drawn.knee_units}: whole model"))
    if round(drawn.mean_units, 1) < drawn.num_units:
        levels.append((drawn.mean_units, "mean", f"{drawn.mean_units:.1f} on average"))
    lowest = 0.0
    for units, kind, label in sorted(levels, reverse=True):
        yield _line(f"level {kind}", TIMELINE.left, up(units), TIMELINE.right, up(units))
        place = max(up(units) + 4, lowest)
        yield _text(TIMELINE.right + 8, place, label, f"level-name {kind}")
        lowest = place + 15


def _time_axis(drawn: Timeline, across: Scale) -> Iterator[str]:
    size_us, unit = time_unit(drawn.duration_us)
    for tick in round_ticks(drawn.duration_us / size_us, 9):
        x = across(tick * size_us)
        yield _line("axis", x, TIMELINE.bottom, x, TIMELINE.bottom + 4)
        yield _text(x, TIMELINE.bottom + 17, f"{tick:g}", "middle")
    yield _text(TIMELINE.left, TIMELINE_HEIGHT - 6, f"time with every kernel at its knee, {unit}", "")
    up = linear(0, drawn.num_units * 1.03, TIMELINE.bottom, TIMELINE.top)
    for units in round_ticks(drawn.num_units, 6, whole=True):
        yield _line("grid", TIMELINE.left, up(units), TIMELINE.right, up(units))
        yield _text(TIMELINE.left - 6, up(units) + 4, f"{units:g}", "end")


def round_ticks(most: float, count: int, whole: bool = False) -> list[float]:
    """About so many round numbers from 0.

    >>> round_ticks(1.7, 4), round_ticks(132, 6, whole=True), round_ticks(2, 6, whole=True)
    ([0.0, 0.5, 1.0, 1.5], [0.0, 50.0, 100.0], [0.0, 1.0, 2.0])
    """
    step = next(
        digit * 10.0**power
        for power in range(-6, 12)
        for digit in (1, 2, 5)
        if most / (digit * 10.0**power) <= count and not (whole and power < 0)
    )
    return [round(step * index, 9) for index in range(int(most / step + 1e-9) + 1)]


# -- latency over units ----------------------------------------------------------------------------------------------


def _margins(least: int, most: int, doubling: bool) -> tuple[float, float]:
    if doubling:
        factor = (most / least) ** 0.05
        return least / factor, most * factor
    margin = max((most - least) * 0.12, 0.4)
    return least - margin, most + margin


def _latency_axis(low: float, high: float, steep: bool, up: Scale) -> Iterator[str]:
    size_us, _ = time_unit(high)
    ticks = log_ticks(low, high) if steep else [tick * size_us for tick in round_ticks(high / size_us, 5)]
    for us in ticks:
        yield _line("grid", PANEL.left, up(us), PANEL.right, up(us))
        yield _text(PANEL.left - 6, up(us) + 4, print_tick(us), "end")


def _units_axis(panel: Panel, doubling: bool, across: Scale) -> Iterator[str]:
    least, most = panel.units[0], panel.units[-1]
    ticks = [*panel.units] if len(panel.units) <= 8 else [least, most]
    if doubling:
        ticks = [tick for power in range(32) if (tick := least << power) * 1.5 <= most]
        ticks.append(most)
    yield _line("axis", PANEL.left, PANEL.bottom, PANEL.right, PANEL.bottom)
    for units in ticks:
        yield _line("axis", across(units), PANEL.bottom, across(units), PANEL.bottom + 4)
        yield _text(across(units), PANEL.bottom + 17, str(units), "middle")
    yield _text((PANEL.left + PANEL.right) / 2, PANEL_HEIGHT - 5, "units", "middle")


def _curve(panel: Panel, across: Scale, up: Scale) -> Iterator[str]:
    least, most = panel.units[0], panel.units[-1]
    dense = [least * (most / least) ** (step / 40) for step in range(41)]
    yield _path("law", [(across(units), up(max(panel.law.us(units), 1e-9))) for units in dense])
    yield _path("fit", [(across(units), up(us)) for units, us in zip(panel.units, panel.fitted_us, strict=True)])
    sizes = zip(panel.units, panel.median_us, panel.low_us, panel.high_us, strict=True)
    for units, median_us, low_us, high_us in sizes:
        yield _line("spread", across(units), up(low_us), across(units), up(high_us))
        yield (
            f'<circle class="dot" cx="{across(units):.2f}" cy="{up(median_us):.2f}" r="2.6">'
            f"<title>{units} units: {print_us(median_us)}</title></circle>"
        )


def _knee(panel: Panel, tolerance: float, across: Scale, up: Scale) -> Iterator[str]:
    knee = panel.knee
    top, bottom = up(knee.best_us * (1 + tolerance)), up(knee.best_us)
    width = PANEL.right - PANEL.left
    yield f'<rect class="within" x="{PANEL.left}" y="{top:.2f}" width="{width}" height="{bottom - top:.2f}"/>'
    x = across(knee.units)
    yield _line("knee", x, PANEL.top, x, PANEL.bottom)
    yield f'<circle class="knee-dot" cx="{x:.2f}" cy="{up(knee.latency_us):.2f}" r="4.5"/>'
    on_the_left = x > (PANEL.left + PANEL.right) / 2
    label = f"knee {knee.units} · {print_us(knee.latency_us)}"
    yield _text(x - 6 if on_the_left else x + 6, PANEL.top + 8, label, "knee-name" + (" end" if on_the_left else ""))


# -- elements --------------------------------------------------------------------------------------------------------


def _svg(width: int, height: int, label: str, parts: list[str]) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return head + "".join(parts) + "</svg>"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'


def _path(kind: str, points: list[tuple[float, float]]) -> str:
    return f'<path class="{kind}" d="M' + "L".join(f"{x:.2f} {y:.2f}" for x, y in points) + '"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.2f}" y="{y:.2f}">{escape(text)}</text>'
