"""A profile as PNG or SVG: `plot`. The profile and the command line call it; matplotlib is loaded only then.

Drawn on a `Figure` of its own, never through pyplot: no window, and nobody's settings change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import ceil, log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spacetime.errors import OptionError
from spacetime.profiler.figures import (
    BOUNDS,
    COLOURS,
    Panel,
    Profiled,
    Step,
    Timeline,
    heading,
    log_ticks,
    panels,
    print_tick,
    print_us,
    shorten,
    time_unit,
    timeline,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SUFFIXES = (".png", ".svg")
WIDTH_IN = 12.8  # a slide is 12.8 x 7.2
TIMELINE_IN = 4.6  # high, in a picture of everything
ROW_IN = 2.65  # of panels
HEADING_IN = 1.3  # above and below panels
DOTS_PER_IN = 150
COLUMNS = 3

INK, FAINT, ACCENT = "#20242a", "#9aa1ab", "#c8352b"
SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that pictures look the same everywhere
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # names of layers are not formulas
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched and edited
    "svg.hashsalt": "spacetime",  # equal profiles give equal files
}


def plot(profile: Profiled, path: str | Path, part: str = "all", model: str = "") -> None:
    """Draw a profile to a .png or .svg file: its latency over units, the units it needs over time, or both."""
    path = Path(path)
    check(path, part)
    if not profile.layers:
        raise OptionError("a profile of nothing has no picture", "it has no layers", "profile a model that computes")
    is_svg = path.suffix.lower() == ".svg"
    with _matplotlib(path.name).rc_context(SETTINGS), warnings.catch_warnings():
        if is_svg:  # the reader's fonts will be used, which may have what ours has not
            warnings.filterwarnings("ignore", "Glyph .* missing")
        # A date would make equal profiles differ.
        metadata = {"Date": None} if is_svg else None
        _PARTS[part](profile, model).savefig(path, dpi=DOTS_PER_IN, facecolor="white", metadata=metadata)


def check(path: Path, part: str = "all") -> None:
    """Whether `plot` could write there, without a profile: what takes long to measure should not be lost."""
    if part not in _PARTS:
        raise OptionError(f"a profile has no picture {part!r}", f"known: {', '.join(_PARTS)}", "take one of these")
    if path.suffix.lower() not in SUFFIXES:
        facts = f"{path.name!r} does not end in {' or '.join(SUFFIXES)}"
        raise OptionError("a picture is written as PNG or SVG", facts, f"name it {path.stem}.png")
    if not path.parent.is_dir():
        facts = f"{path.parent} is not a directory"
        raise OptionError(f"the picture cannot be written to {path}", facts, "make the directory first")
    _matplotlib(path.name)


def _matplotlib(name: str) -> Any:
    try:
        import matplotlib
        import matplotlib.figure  # not loaded by the line above
    except ImportError as error:
        next_step = "pip install matplotlib, or write an HTML page, which needs nothing"
        raise OptionError(f"{name} cannot be drawn", f"matplotlib cannot be imported: {error}", next_step) from error
    return matplotlib


def _figure(height_in: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def _draw_all(profile: Profiled, model: str) -> Figure:
    drawn = panels(profile)
    panels_in = ROW_IN * _num_rows(drawn) + HEADING_IN
    figure = _figure(TIMELINE_IN + panels_in)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(TIMELINE_IN, panels_in)).flat
    _timeline_into(top, profile, model)
    _panels_into(bottom, drawn, profile, "Latency over units")
    return figure


def _draw_latency(profile: Profiled, model: str) -> Figure:
    drawn = panels(profile)
    figure = _figure(ROW_IN * _num_rows(drawn) + HEADING_IN)
    _panels_into(figure, drawn, profile, f"Latency over units · {heading(profile, model)}")
    return figure


def _draw_timeline(profile: Profiled, model: str) -> Figure:
    figure = _figure(TIMELINE_IN)
    _timeline_into(figure, profile, model)
    return figure


_PARTS: dict[str, Callable[[Profiled, str], Figure]] = {
    "all": _draw_all,
    "latency": _draw_latency,
    "timeline": _draw_timeline,
}
PARTS = tuple(_PARTS)


def _title_into(figure: Figure | SubFigure, title: str) -> None:
    size = min(14.0, 14.0 * 104 / len(title))  # as wide as the picture at most
    figure.suptitle(title, x=0.01, ha="left", size=size, weight="bold")


# -- units over time -------------------------------------------------------------------------------------------------


def _timeline_into(figure: Figure | SubFigure, profile: Profiled, model: str) -> None:
    from matplotlib.patches import Patch

    drawn = timeline(profile)
    axes = figure.subplots()
    _title_into(figure, f"Units needed over time · {heading(profile, model)}")
    axes.set_title(drawn.summary, size=10.5, pad=8)
    size_us, unit = time_unit(drawn.duration_us)
    _steps_into(axes, drawn, size_us)
    _units_axis_into(axes, drawn, size_us)
    axes.set_xlabel(f"time with every kernel at its knee, {unit}", loc="left")
    axes.set_ylabel("units")
    used = [bound for bound in BOUNDS if any(step.bound == bound for step in drawn.steps)]
    keys = [Patch(color=COLOURS[bound], label=f"bound by {bound}") for bound in used]
    axes.legend(handles=keys, loc="upper right", bbox_to_anchor=(1, -0.07), ncols=len(keys), fontsize=9)


def _steps_into(axes: Axes, drawn: Timeline, size_us: float) -> None:
    starts = np.array([step.start_us for step in drawn.steps]) / size_us
    widths = np.array([step.duration_us for step in drawn.steps]) / size_us
    heights = [step.units for step in drawn.steps]
    colours = [COLOURS[step.bound] for step in drawn.steps]
    line = 0.9 if len(heights) <= 100 else 0.4
    between = "white" if len(heights) <= 100 else "none"
    axes.bar(starts, heights, widths, align="edge", color=colours, linewidth=line / 2, edgecolor=between)
    edges = np.append(starts, starts[-1] + widths[-1])
    axes.stairs(heights, edges, color=INK, linewidth=line, baseline=None)
    for step in _worth_a_name(drawn):
        axes.text(
            (step.start_us + step.duration_us / 2) / size_us,
            step.units / 2,
            shorten(step.name, 22),
            rotation=90,
            ha="center",
            va="center",
            color="white",
            size=8,
            clip_on=True,
        )


def _worth_a_name(drawn: Timeline) -> list[Step]:
    """Steps wide and high enough for their name, which stands upright in them."""
    letters = 22 * 0.95 * 0.1  # inches that a name of that length takes, about
    return [
        step
        for step in drawn.steps
        if step.duration_us / drawn.duration_us * WIDTH_IN > 0.2
        and step.units / drawn.num_units * TIMELINE_IN * 0.6 > letters * min(len(step.name), 22) / 22
    ]


def _units_axis_into(axes: Axes, drawn: Timeline, size_us: float) -> None:
    axes.set_xlim(0, drawn.duration_us / size_us)
    axes.set_ylim(0, drawn.num_units * 1.06)
    axes.set_yticks(_even_ticks(drawn.num_units))
    all_needed = drawn.knee_units == drawn.num_units
    device = f"{drawn.num_units}: the device" + ("\nand the model's knee" if all_needed else "")
    levels: list[tuple[float, str, str, Any]] = [(drawn.num_units, device, INK, "-")]
    if not all_needed:
        levels.append((drawn.knee_units, f"{drawn.knee_units}: knee of\nthe whole model", ACCENT, (0, (5, 3))))
    if round(drawn.mean_units, 1) < drawn.num_units:
        levels.append((drawn.mean_units, f"{drawn.mean_units:.1f} needed\non average", INK, (0, (1, 2))))
    levels.sort(key=lambda level: -level[0])
    # Beside the picture, where they hide nothing, and far enough from each other.
    highest = drawn.num_units * 1.03
    for units, label, colour, style in levels:
        axes.axhline(units, color=colour, linewidth=1.2, linestyle=style)
        place = min(units, highest)
        axes.annotate(
            label,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            size=9,
            color=colour,
        )
        highest = place - drawn.num_units * 0.13


def _even_ticks(most: int) -> list[int]:
    """A handful of round numbers from 0, none too near the top, and the top."""
    step = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 100, 200, 500, most) if most / step <= 7)
    return [*(tick for tick in range(0, most, step) if most - tick >= 0.7 * step), most]


# -- latency over units ----------------------------------------------------------------------------------------------


def _num_rows(drawn: Sequence[Panel]) -> int:
    return ceil(len(drawn) / COLUMNS)


def _panels_into(figure: Figure | SubFigure, drawn: Sequence[Panel], profile: Profiled, title: str) -> None:
    _title_into(figure, title)
    num_rows = _num_rows(drawn)
    grid = figure.subplots(num_rows, COLUMNS, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(drawn):
            axes.set_axis_off()
            continue
        _panel_into(axes, drawn[place], profile)
        if place + COLUMNS >= len(drawn):
            axes.set_xlabel("units")
    _panel_legend_into(figure, profile)


def _panel_into(axes: Axes, panel: Panel, profile: Profiled) -> None:
    knee = panel.knee
    top = knee.best_us * (1 + profile.tolerance)
    axes.axhspan(knee.best_us, top, color="#2b8a3e", alpha=0.16, linewidth=0)
    dense = np.geomspace(panel.units[0], panel.units[-1], 100)
    axes.plot(dense, [panel.law.us(units) for units in dense], color=FAINT, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.plot(panel.units, panel.fitted_us, color=COLOURS["compute"], linewidth=1.6)
    spread = np.abs(np.array([panel.low_us, panel.high_us]) - np.array(panel.median_us))
    style: dict[str, Any] = {"fmt": "o", "markersize": 3.2 if len(panel.units) <= 24 else 2, "elinewidth": 1}
    axes.errorbar(panel.units, panel.median_us, yerr=spread, color=COLOURS["compute"], **style)
    axes.axvline(knee.units, color=ACCENT, linewidth=1, linestyle=(0, (2, 2)))
    axes.plot([knee.units], [knee.latency_us], "o", color="white", markeredgecolor=ACCENT, markeredgewidth=2, zorder=5)
    _panel_axes_into(axes, panel)
    _knee_label_into(axes, panel)
    axes.set_title(shorten(panel.name, 40), weight="bold", pad=16)
    axes.text(0, 1.02, panel.detail, transform=axes.transAxes, size=8.5, color="#5a616b", va="bottom")


def _panel_axes_into(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator

    least, most = panel.units[0], panel.units[-1]
    axes.grid(True)
    if most >= 8 * least:
        axes.set_xscale("log", base=2)
        axes.set_xticks(_doubling_ticks(least, most), labels=[str(tick) for tick in _doubling_ticks(least, most)])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xticks(sorted({*panel.units} if len(panel.units) <= 8 else {least, most}))
        margin = max((most - least) * 0.12, 0.4)
        axes.set_xlim(least - margin, most + margin)
    low, high = min(panel.low_us), max(panel.high_us)
    if high >= 4 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.35, high * 1.6)
        ticks = log_ticks(low / 1.35, high * 1.6)
    else:
        axes.set_ylim(0, high * 1.25)
        ticks = list(MaxNLocator(4).tick_values(0, high * 1.2))[:-1]
    axes.set_yticks(ticks, labels=[print_tick(us) for us in ticks])
    axes.yaxis.set_minor_locator(NullLocator())


def _knee_label_into(axes: Axes, panel: Panel) -> None:
    """At the top of the panel, on the side of the knee that has room."""
    knee = panel.knee
    least, most = panel.units[0], panel.units[-1]
    spread = log2(most / least) if most >= 8 * least else most - least
    before = log2(knee.units / least) if most >= 8 * least else knee.units - least
    on_the_left = spread > 0 and before > spread / 2
    axes.annotate(
        f"knee {knee.units} · {print_us(knee.latency_us)}",
        (knee.units, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if on_the_left else 5, -3),
        textcoords="offset points",
        ha="right" if on_the_left else "left",
        va="top",
        size=9,
        color=ACCENT,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
    )


def _doubling_ticks(least: int, most: int) -> list[int]:
    ticks = [least]
    while ticks[-1] * 2 <= most / 1.5:
        ticks.append(ticks[-1] * 2)
    return [*ticks, most]


def _panel_legend_into(figure: Figure | SubFigure, profile: Profiled) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    blue = COLOURS["compute"]
    keys = [
        Line2D([], [], color=blue, marker="o", markersize=4, linewidth=1.6, label=f"{profile.method}, monotone fit"),
        Line2D([], [], color=FAINT, linestyle=(0, (4, 2)), label="law m / units + b"),
        Patch(color="#2b8a3e", alpha=0.16, label=f"within {profile.tolerance:.0%} of the best"),
        Line2D([], [], color=ACCENT, linestyle=(0, (2, 2)), marker="o", mfc="white", mew=2, label="knee"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=9)
