"""A monitor as an HTML page that needs no network, and the part of it that a run's report takes in."""

import base64
import io
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

from hpdval_edge import __version__
from hpdval_edge.errors import BadData
from hpdval_edge.images import open_rgb
from hpdval_edge.monitor.drift import DRIFTED, MODERATE, SHIFTED, UNKNOWN
from hpdval_edge.monitor.review import Doubt
from hpdval_edge.monitor.summary import LabelUse, Summary

ASSETS = files("hpdval_edge") / "assets"
CLASSES = {DRIFTED: "large", SHIFTED: "moderate"}
# Pictures of the review queue on the page, and the longest side they are shown at.
SHOWN, SIDE = 12, 320
# Share of pictures at which a bar of a histogram reaches the top.
TOP = 0.4
HEIGHT = 34


def style(name: str) -> str:
    """A style sheet of the package's: ``page`` for all pages, ``monitor``, ``dark``."""
    return (ASSETS / f"{name}.css").read_text(encoding="utf-8")


def render(summary: Summary) -> str:
    """The whole page; every text from outside is escaped, nothing in it loads anything."""
    name = escape(", ".join(folder.name or str(folder) for folder in summary.folders))
    figures = [
        (f"{summary.pictures:,}", "pictures"),
        (str(len(summary.drifted)), "labels with a large shift"),
        (str(len(summary.unseen)), f"labels not seen for {summary.unseen_days:g} days"),
        (str(len(summary.doubts)), "pictures to look at"),
    ]
    headline = "".join(f"<li><b>{value}</b><span>{escape(what)}</span></li>" for value, what in figures)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{name}: monitor</title>
<link rel="icon" href="data:,">
<style>
{style("page")}{style("monitor")}{style("dark")}</style>
</head>
<body>
<header><div><p class="run">Monitor</p><h1>{name}</h1><ul class="figures">{headline}</ul></div></header>
<main>
{section(summary)}
</main>
<footer><div>Written by hpedge {__version__}. This file needs no network.</div></footer>
</body>
</html>
"""


def section(summary: Summary) -> str:
    """What the page shows below its header, as HTML: facts, labels, pictures to look at."""
    facts = {
        "Model": f"{summary.precision} bundle {summary.bundle[:12]}",
        "Pictures": f"{summary.pictures:,} on {len(summary.days)} days",
        "From": _when(summary.first),
        "To": _when(summary.last),
        "Against": f"{summary.reference:,} validation pictures" if summary.reference else "no reference",
        "Chance": f"PSI up to {summary.chance:.3f}" if math.isfinite(summary.chance) else "-",
    }
    told = "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
    return f"""<div class="use">
<dl class="summary">{told}</dl>
{_note(summary)}<h2 id="labels-in-use">Labels in use</h2>
<p class="lead">Named is the share of pictures at or above the bundle's threshold; the dashed line is that share on the
validation pictures. Scores are sorted into ten bins that hold a tenth of the validation pictures each: bars at the
dashed line are as they were there. PSI sums the differences up; by convention up to {MODERATE:g} is stable and from
{summary.limit:g} a large shift, and what chance alone can make with so few pictures is not called a shift.</p>
<div class="scroll"><table>
<thead><tr><th scope="col" class="text">Label</th><th scope="col">Named, 1 day</th><th scope="col">7 days</th>
<th scope="col">30 days</th><th scope="col">Validation</th><th scope="col" class="text">By day</th>
<th scope="col" class="text">Scores</th><th scope="col">PSI</th><th scope="col" class="text">Reading</th>
<th scope="col">Last named</th></tr></thead>
<tbody>
{"".join(_row(use, summary) for use in worst_first(summary.labels))}</tbody>
</table></div>
{_pictures(summary.doubts)}</div>
"""


def worst_first(labels: Sequence[LabelUse]) -> list[LabelUse]:
    """Labels with a large shift, then a moderate one, then the rest, each by falling PSI; without one last."""
    order = {DRIFTED: 0, SHIFTED: 1, UNKNOWN: 3}
    return sorted(labels, key=lambda use: (order.get(use.reading, 2), -use.psi if math.isfinite(use.psi) else 0))


def _note(summary: Summary) -> str:
    if summary.reference:
        return ""
    return (
        '<section class="note" aria-label="Notes"><p><strong>Note:</strong> the bundle has no reference of validation '
        "scores, so that drift cannot be told. Export it again and take a new folder.</p></section>\n"
    )


def _row(use: LabelUse, summary: Summary) -> str:
    rates = "".join(f"<td>{percent(rate)}</td>" for rate in (*use.rates.values(), use.expected))
    away = use.unseen >= summary.unseen_days
    seen = "never" if math.isnan(use.seen) else _when(use.seen, day_only=True)
    late = f'<span class="away">{seen}</span>' if away else seen
    drift = "-" if math.isnan(use.psi) else f"{use.psi:.3f}"
    return (
        f'<tr class="{CLASSES.get(use.reading, "steady")}"><th scope="row">{escape(use.label)}</th>{rates}'
        f"<td>{_by_day(use)}</td><td>{_histogram(use)}</td><td>{drift}</td>"
        f'<td class="text"><span class="chip">{use.reading}</span></td><td>{late}</td></tr>\n'
    )


def percent(share: float) -> str:
    """A share as per cent; a dash where there is none."""
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _histogram(use: LabelUse) -> str:
    """Shares of pictures in the bins, against those of the validation pictures."""
    if math.isnan(use.shares[0]):
        return "-"
    alt = "shares by bin: " + ", ".join(percent(share) for share in use.shares)
    reference = [share if math.isfinite(share) else None for share in use.reference]
    return _bars(use.shares, TOP, reference, 9, alt)


def _by_day(use: LabelUse) -> str:
    """Rates by day, against the validation pictures' rate."""
    known = [rate for rate in (*use.daily, use.expected) if math.isfinite(rate)]
    if not known:
        return "-"
    alt = "named by day: " + ", ".join(percent(rate) for rate in use.daily)
    expected = use.expected if math.isfinite(use.expected) else None
    return _bars(use.daily, max([*known, 0.02]), [expected] * len(use.daily), 5, alt)


def _bars(values: Sequence[float], top: float, marks: Sequence[float | None], width: int, alt: str) -> str:
    """Bars side by side, cut off at ``top``, with a dashed mark across each."""

    def height(value: float) -> float:
        return HEIGHT * min(value, top) / top

    parts = []
    for place, (value, mark) in enumerate(zip(values, marks, strict=True)):
        left = place * (width + 1)
        if math.isfinite(value):
            tall = max(height(value), 0.5)
            parts.append(f'<rect class="bar" x="{left}" y="{HEIGHT - tall:.1f}" width="{width}" height="{tall:.1f}"/>')
        if mark is not None:
            y = HEIGHT - height(mark)
            parts.append(f'<line class="mark" x1="{left}" x2="{left + width + 1}" y1="{y:.1f}" y2="{y:.1f}"/>')
    wide = len(values) * (width + 1)
    base = f'<line class="base" x1="0" x2="{wide}" y1="{HEIGHT}" y2="{HEIGHT}"/>'
    return f'<svg width="{wide}" height="{HEIGHT}" role="img" aria-label="{alt}">{base}{"".join(parts)}</svg>'


def _pictures(doubts: Sequence[tuple[Path, Doubt]]) -> str:
    if not doubts:
        return ""
    cards = "".join(_card(folder, doubt) for folder, doubt in doubts[:SHOWN])
    return f"""<h2 id="pictures-in-doubt">Pictures to look at</h2>
<p class="lead">The model was nearly undecided about one label of each. review.csv lists all {len(doubts)} with the
labels it named, ready to be put right and to train on.</p>
<ul class="doubts">
{cards}</ul>
"""


def _card(folder: Path, doubt: Doubt) -> str:
    name = Path(doubt.path).name if doubt.frame is None else f"{Path(doubt.path).name}#{doubt.frame}"
    source = (
        None if doubt.copy is None and doubt.frame is not None else folder / (doubt.copy or Path(doubt.path).absolute())
    )
    picture = "" if source is None else _thumbnail(source, name)
    return (
        f"<li>{picture}<b>{escape(doubt.label)}?</b><small>{doubt.score:+.3f}, threshold {doubt.threshold:+.3f}"
        f"</small><small>{escape(name)}</small></li>\n"
    )


def _thumbnail(path: Path, name: str) -> str:
    try:
        picture = open_rgb(path)
    except BadData:
        return ""
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    address = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{address}" alt="{escape(name)}">'


def _when(seconds: float, *, day_only: bool = False) -> str:
    if math.isnan(seconds):
        return "-"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d" if day_only else "%Y-%m-%d %H:%M UTC")
