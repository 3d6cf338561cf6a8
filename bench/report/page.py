"""A report as one HTML file that needs nothing else: no network, no fonts, no libraries. Nothing else imports it.

It has the look of the profiler's page, and forbids itself every outside resource in the same way. What comes from rows
is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.report import svg
from bench.report.document import Document
from bench.report.figures import Bars, Chart, Section, Sheet
from bench.report.png import COLOURS, GREY
from spacetime.profiler.page import STYLE as PROFILER_STYLE  # one look for both pages

MOST_KINDS = 3
SHORT = 44  # letters of a cell that are not broken into lines


def html(document: Document) -> str:
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">",
            f"<title>{escape(document.title)}</title><style>{PROFILER_STYLE}{_STYLE}</style></head><body>",
            f"<header><h1>{escape(document.title)}</h1><p>{escape(document.text)}</p>{_contents(document)}</header>",
            _tiles(document),
            "" if document.answers is None else _sheet(document.answers),
            "" if document.overview is None else _sheet(document.overview),
            *map(_section, document.sections),
            _sources(document),
            "</body></html>\n",
        )
    )


def _contents(document: Document) -> str:
    links = (f'<a href="#{anchor(section)}">{escape(section.title)}</a>' for section in document.sections)
    return "<nav>" + " ".join(links) + "</nav>"


def _tiles(document: Document) -> str:
    tiles = "".join(f"<div><b>{escape(big)}</b>{escape(small)}</div>" for big, small in document.highlights)
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def anchor(section: Section) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in section.title.lower())


def _section(section: Section) -> str:
    parts = [f'<h2 id="{anchor(section)}">{escape(section.title)}</h2>', f'<p class="lead">{escape(section.text)}</p>']
    parts += map(_sheet, section.sheets)
    if section.charts:
        parts.append(f'<div class="charts">{"".join(map(_chart, section.charts))}</div>')
    if section.folded_charts:
        title = f"{len(section.folded_charts)} more pictures: {_kinds(section)}"
        charts = "".join(map(_chart, section.folded_charts))
        parts.append(f'<details><summary>{escape(title)}</summary><div class="charts">{charts}</div></details>')
    parts += [f'<div class="panels">{panel}</div>' for panel in section.drawn]
    parts += map(_sheet, section.more_sheets)
    return f"<section>{''.join(parts)}</section>"


def _kinds(section: Section) -> str:
    """What the folded pictures are: "bfloat16: GFLOP/s, Speed-up"; in short where that is long."""
    kinds: dict[str, dict[str, None]] = {}
    for chart in section.folded_charts:
        kinds.setdefault(chart.detail.partition(" on ")[0], {})[chart.title.partition(" of ")[0]] = None
    if len(kinds) > MOST_KINDS:
        return ", ".join(dict.fromkeys(title for titles in kinds.values() for title in titles))
    return "; ".join(f"{of}: {', '.join(titles)}" for of, titles in kinds.items())


def _chart(chart: Chart) -> str:
    kind = ' class="across"' if isinstance(chart, Bars) and chart.is_wide else ""
    return (
        f"<figure{kind}><figcaption><b>{escape(chart.title)}</b><br>{escape(chart.detail)}</figcaption>{svg.draw(chart)}"
        f'<p class="source">{escape(chart.source)}</p></figure>'
    )


def _sheet(sheet: Sheet) -> str:
    numeric = sheet.is_number
    heads = "".join(_cell("th", text, right) for text, right in zip(sheet.headings, numeric, strict=True))
    rows = "\n".join(_row(row, numeric) for row in sheet.rows)
    table = f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    table += f'<p class="source">{escape(sheet.source)}</p>' if sheet.source else ""
    title = escape(sheet.title)
    if sheet.is_folded:
        return f"<details><summary>{title}</summary>{table}</details>"
    return f"<h3>{title}</h3>{table}"


def _row(row: Sequence[str], numeric: Sequence[bool]) -> str:
    return "<tr>" + "".join(_cell("td", text, right) for text, right in zip(row, numeric, strict=True)) + "</tr>"


def _cell(tag: str, text: str, is_number: bool) -> str:
    kind = ' class="number"' if is_number else ' class="short"' if len(text) <= SHORT else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _sources(document: Document) -> str:
    parts = []
    for facts in document.environments:
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
        parts.append(f"<dl>{rows}</dl>")
    methods = "".join(f"<li>{escape(method)}</li>" for method in document.methods)
    how = f"<details><summary>How each figure was measured</summary><ul>{methods}</ul></details>" if methods else ""
    return f'<section><h2 id="sources">Measured on, and with</h2>{"".join(parts)}{how}</section>'


_LIGHT = "".join(f".c{index}{{color:{colour}}}" for index, colour in enumerate(COLOURS))
# The same hues, lighter, for a dark ground.
_DARK = "".join(f".c{index}{{color:color-mix(in oklab,{colour} 62%,white)}}" for index, colour in enumerate(COLOURS))

_STYLE = (
    """
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.9rem;margin:.6rem 0 1.2rem}
a{color:var(--blue);text-decoration:none}a:hover{text-decoration:underline}
h2{font-size:1.25rem;margin:3rem 0 .3rem;padding-top:.6rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.6rem 0 .3rem}
.across{grid-column:1/-1}
.lead{max-width:76ch;margin:.2rem 0 .8rem;color:var(--faint)}
.source{font-size:.75rem;line-height:1.35;color:var(--faint);margin:.35rem 0 0;max-width:100ch;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));
gap:1.8rem 1.6rem;margin-top:1.2rem}
.charts figure{min-width:0}.charts svg{margin-top:.35rem}
table{width:auto;min-width:40%}th{padding:.35rem .7rem;white-space:normal;vertical-align:bottom}
td{padding:.25rem .7rem;vertical-align:top;overflow-wrap:break-word}
th.number{text-align:right;white-space:normal;max-width:10em}td.number,td.short{white-space:nowrap}
summary{cursor:pointer;font-size:.9rem;margin:.9rem 0 .3rem;color:var(--blue)}
dl{margin:1rem 0 1.6rem}ul{font-size:.85rem;max-width:110ch;padding-left:1.2rem}li{margin:.25rem 0}
.series{fill:none;stroke:currentColor;stroke-width:1.4}.series.ours{stroke-width:2.6}
.series.limit{stroke-dasharray:6 4}.spread{stroke:currentColor;stroke-width:1;opacity:.55}
.mark{fill:currentColor;stroke:none}.hollow{fill:var(--ground);stroke:currentColor;stroke-width:1.6}
.strip{stroke:currentColor;stroke-width:2.2}.bar{fill:currentColor;opacity:.55}.bar.ours{opacity:1}.whisker{stroke:var(--ink);stroke-width:1.1}
.leader{fill:none;stroke:currentColor;stroke-width:.7;opacity:.7}
svg .name{fill:currentColor}svg .strong{font-weight:600}
svg line.goal{stroke:#c8352b;stroke-width:2.4}
svg .unit{fill:var(--faint)}svg .value{font-size:10.5px}svg line.level{stroke:var(--grey);stroke-width:1.2}
svg .value,svg .label{fill:var(--ink)}
.neutral{color:"""
    + GREY
    + "}"
    + _LIGHT
    + f"@media(prefers-color-scheme:dark){{{_DARK}}}"
)
