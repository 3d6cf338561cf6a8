"""A profile as one HTML file that needs nothing else: no network, no fonts, no libraries. The command line imports it.

The page forbids itself every outside resource (its Content-Security-Policy); names from a model are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from spacetime.profiler.figures import (
    BOUNDS,
    COLOURS,
    Layer,
    Profiled,
    Timeline,
    heading,
    panels,
    print_count,
    print_op,
    print_us,
    timeline,
)
from spacetime.profiler.svg import draw_panel, draw_timeline
from spacetime.values import Value


@dataclass(frozen=True, slots=True)
class Column(Value):
    """One column of the table of layers."""

    title: str
    note: str
    is_number: bool = True


NUMBER = ' class="number"'
COLUMNS = (
    Column("#", "position in the model"),
    Column("name", "the layer's name in the model", is_number=False),
    Column("op", "operation", is_number=False),
    Column("shape", "of what it writes", is_number=False),
    Column("flops", "floating-point operations"),
    Column("bytes", "moved, weights included"),
    Column("best", "latency on as many units as pay"),
    Column("knee", "least units within the tolerance of the best latency"),
    Column("saved", "unit-time left free by running at the knee instead of on all units"),
    Column("sure", "share of resampled measurements that give the same knee"),
    Column("bound", "what keeps it from being faster", is_number=False),
)


def page(profile: Profiled, model: str = "", details: Mapping[str, str] | None = None) -> str:
    """The page's HTML. `details` are facts to list: driver, versions, date."""
    drawn = timeline(profile)
    title = escape(heading(profile, model))
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">",
            f"<title>{title}</title><style>{STYLE}</style></head><body>",
            f"<header><h1>{title}</h1><p>{escape(drawn.summary)}.</p></header>",
            _tiles(profile, drawn),
            f'<h2>Units needed over time</h2>{_bounds(drawn)}<figure class="wide">{draw_timeline(drawn)}</figure>',
            f"<h2>Latency over units</h2>{_keys(profile)}",
            f'<div class="panels">{_panels(profile)}</div>',
            "<h2>Layers</h2>",
            '<p><label>Find <input id="find" type="search" placeholder="name, op, shape, bound"></label> '
            '<span id="shown"></span></p>',
            _table(profile),
            _details(profile, details or {}),
            f"<script>{_SCRIPT}</script></body></html>\n",
        )
    )


def _tiles(profile: Profiled, drawn: Timeline) -> str:
    total = profile.total
    tiles = (
        (print_us(total.best_us), f"on {total.best_units} units"),
        (f"{total.units} of {total.best_units}", f"units at the knee: {print_us(total.latency_us)}"),
        (f"{drawn.mean_units:.1f}", "units needed on average, kernel by kernel"),
        (f"{drawn.saved_share:.0%}", "of the unit-time free for others"),
    )
    return '<div class="tiles">' + "".join(f"<div><b>{big}</b>{small}</div>" for big, small in tiles) + "</div>"


def _bounds(drawn: Timeline) -> str:
    used = [bound for bound in BOUNDS if any(step.bound == bound for step in drawn.steps)]
    return '<p class="keys">' + "".join(f'<i class="{bound}"></i>bound by {bound} ' for bound in used) + "</p>"


def _keys(profile: Profiled) -> str:
    return (
        f'<p class="keys"><i class="line fit"></i>{escape(profile.method)}, monotone fit '
        '<i class="line law"></i>law m / units + b '
        f'<i class="within"></i>within {profile.tolerance:.0%} of the best <i class="line knee"></i>knee</p>'
    )


def _panels(profile: Profiled) -> str:
    return "".join(
        f"<figure><figcaption><b>{escape(panel.name)}</b><br>{escape(panel.detail)}</figcaption>"
        f"{draw_panel(panel, profile.tolerance)}</figure>"
        for panel in panels(profile)
    )


def _table(profile: Profiled) -> str:
    heads = "".join(
        f'<th aria-sort="none"{NUMBER if column.is_number else ""} title="{escape(column.note)}">'
        f'<button type="button">{column.title}</button></th>'
        for column in COLUMNS
    )
    rows = "\n".join(map(_row, profile.layers))
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _row(layer: Layer) -> str:
    knee = layer.knee
    cells = (  # what to sort by, what to show
        (layer.index, str(layer.index)),
        (layer.name, layer.name),
        (layer.op, print_op(layer.op)),
        (layer.shape, layer.shape),
        (layer.flops, print_count(layer.flops)),
        (layer.bytes, print_count(layer.bytes, "B")),
        (knee.best_us, print_us(knee.best_us)),
        (knee.units, f"{knee.units} of {knee.best_units}"),
        (knee.saved_units, f"{knee.saved_units:.0%}"),
        (knee.confidence, f"{knee.confidence:.0%}"),
        (layer.bound, layer.bound),
    )
    return "<tr>" + "".join(map(_cell, COLUMNS, cells)) + "</tr>"


def _cell(column: Column, cell: tuple[object, str]) -> str:
    key, text = cell
    if column.is_number:
        return f'<td class="number" data-key="{key}">{escape(text)}</td>'
    mark = f'<i class="{escape(text)}"></i>' if column.title == "bound" else ""
    return f'<td class="{column.title}">{mark}{escape(text)}</td>'


def _details(profile: Profiled, details: Mapping[str, str]) -> str:
    facts = {"device": profile.device, "method": profile.method, "tolerance": f"{profile.tolerance:.0%}", **details}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    return f"<h2>How</h2><dl>{rows}</dl>"


_FILLS = "".join(f".{bound}{{fill:{colour};background:{colour}}}" for bound, colour in COLOURS.items())

STYLE = (
    """
:root{color-scheme:light dark;--ink:#20242a;--faint:#5a616b;--rule:#e2e5e9;--ground:#fff;--raised:#f6f7f9;
--blue:#3568b2;--grey:#9aa1ab;--red:#c8352b;--green:#2b8a3e33}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--faint:#a4abb5;--rule:#343a42;--ground:#15181c;--raised:#1e2228;
--blue:#7aa7ea;--grey:#7d858f;--red:#ff7468;--green:#4cc26a40}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:1180px;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2rem 0 .3rem}
header p,.keys,figcaption,dt{color:var(--faint)}header p{margin:.2rem 0 1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:.8rem}
.tiles div{background:var(--raised);border-radius:8px;padding:.7rem .9rem;color:var(--faint)}
.tiles b{display:block;font-size:1.5rem;color:var(--ink)}
.keys{font-size:.85rem;margin:.2rem 0}
i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .4em 0 .2em;vertical-align:-.05em}
.keys i:not(:first-child){margin-left:1em}
i.line{height:0;width:1.6em;background:none;border-top:2px solid;vertical-align:.25em;border-radius:0}
i.fit{border-color:var(--blue)}i.law{border-top-style:dashed;border-color:var(--grey)}
i.knee{border-top-style:dotted;border-color:var(--red)}i.within{background:var(--green)}
figure{margin:0}.wide svg{min-width:760px}
figcaption{font-size:.85rem;overflow-wrap:anywhere}figcaption b{color:var(--ink)}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:1.2rem 1rem;margin-top:.6rem}
svg{display:block;width:100%;height:auto;font:11px system-ui,sans-serif}
svg text{fill:var(--ink)}svg .middle{text-anchor:middle}svg .end{text-anchor:end}
svg .inside{fill:#fff;text-anchor:middle;font-size:10px;pointer-events:none}
.grid{stroke:var(--rule)}.axis{stroke:var(--grey)}.outline{fill:none;stroke:var(--ink);stroke-width:.5;opacity:.7;pointer-events:none}
.step:hover{opacity:.75}.level{stroke:var(--ink);stroke-width:1.4;pointer-events:none}
.level.whole{stroke:var(--red);stroke-dasharray:7 4}.level.mean{stroke-dasharray:2 3}svg text.whole{fill:var(--red)}
.fit,.law{fill:none;stroke:var(--blue);stroke-width:1.8}.law{stroke:var(--grey);stroke-dasharray:5 3;stroke-width:1.3}
.dot{fill:var(--blue)}.spread{stroke:var(--blue)}.within{fill:var(--green)}
line.knee{stroke:var(--red);stroke-dasharray:3 3}.knee-dot{fill:var(--ground);stroke:var(--red);stroke-width:2}
svg .knee-name{fill:var(--red);paint-order:stroke;stroke:var(--ground);stroke-width:4px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;width:100%}
th{text-align:left;border-bottom:1px solid var(--grey);white-space:nowrap;position:sticky;top:0;
background:var(--ground)}
th button{font:inherit;font-weight:600;color:inherit;background:none;border:0;padding:.35rem .5rem;cursor:pointer}
th[aria-sort=ascending] button::after{content:" \\25B2"}th[aria-sort=descending] button::after{content:" \\25BC"}
td{padding:.25rem .5rem;border-bottom:1px solid var(--rule);overflow-wrap:anywhere}
.name,.shape{min-width:11em}.op{min-width:6em}.number,.bound{white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.85rem}
dd{margin:0;overflow-wrap:anywhere}
input{font:inherit;padding:.2rem .5rem}
"""
    + _FILLS
)

_SCRIPT = """
const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("th")];
const rows = [...body.rows];
const key = (row, column) => {
  const cell = row.cells[column], number = cell.dataset.key;
  return number === undefined ? cell.textContent : Number(number);
};
heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
  const isNumber = rows.length && rows[0].cells[column].dataset.key !== undefined;
  const first = isNumber && column > 0 ? "descending" : "ascending";
  const now = head.getAttribute("aria-sort");
  const next = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
  heads.forEach(other => other.setAttribute("aria-sort", other === head ? next : "none"));
  const sign = next === "ascending" ? 1 : -1;
  const compare = isNumber
    ? (a, b) => key(a, column) - key(b, column)
    : (a, b) => key(a, column).localeCompare(key(b, column), undefined, {numeric: true});
  body.append(...rows.sort((a, b) => sign * compare(a, b)));
}));
const find = document.getElementById("find"), shown = document.getElementById("shown");
const count = () => { shown.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} layers`; };
find.addEventListener("input", () => {
  const wanted = find.value.toLowerCase();
  rows.forEach(row => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
  count();
});
count();
"""
