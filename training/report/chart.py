"""How figures look, and how one is drawn twice: for a wide page and for a telephone."""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

INK, MUTED, GRID = "#1f2733", "#5b6573", "#e1e5ea"
# "High contrast" of Paul Tol's colour schemes: apart for every kind of colour vision, and in print without colour.
GROUP_COLOURS = {"head": "#004488", "medium": "#ddaa33", "tail": "#bb5566"}
ALL_COLOUR = INK
# Inches at 72 units each; both are shown about 1.4 times as large, so 9 pt becomes 13 pixels on either.
WIDE, NARROW = 10.0, 3.7
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "white",
    # A label may hold dollar signs.
    "text.parse_math": False,
    "svg.fonttype": "path",
    # The same run gives the same file.
    "svg.hashsalt": "hpedge",
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure as two SVG files. alt: what it shows, in words. notes: what could not be drawn well."""

    name: str
    alt: str
    wide: bytes
    narrow: bytes
    notes: tuple[str, ...] = ()


def draw(name: str, alt: str, paint: Callable[[bool], Figure]) -> Chart:
    """Let ``paint(narrow)`` make the figure for both widths, in the common style."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wide, narrow = _svg(paint(False)), _svg(paint(True))
    missing = any("Glyph" in str(warning.message) for warning in caught)
    for warning in caught:
        if "Glyph" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    notes = ("some letters of the labels are in no font of the figures and show as boxes there",) if missing else ()
    return Chart(name, alt, wide, narrow, notes)


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def new_figure(narrow: bool, height: float, layout: str = "constrained") -> Figure:
    """An empty figure of the page's or the telephone's width, ``height`` inches high."""
    return Figure(figsize=(NARROW if narrow else WIDE, height), layout=layout)


def plain_log(axis: Axis) -> None:
    """A logarithmic axis, once its data are drawn, with a few numbers written out."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    if decades < 1:
        axis.set_major_locator(MaxNLocator(4))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades < 2 else (1.0,), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}" if value >= 1e4 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def short(text: str, length: int) -> str:
    """``text``, cut to ``length`` letters with an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move places apart until neighbours are ``gap`` from each other, keeping their order and their centre."""
    order = np.argsort(places, kind="stable")
    moved = np.array(places, float)[order]
    for _ in range(100):
        overlaps = gap - np.diff(moved)
        if (overlaps <= 1e-9).all():
            break
        for i in np.flatnonzero(overlaps > 0):
            step = (gap - (moved[i + 1] - moved[i])) / 2
            if step > 0:
                moved[i] -= step
                moved[i + 1] += step
    result = np.empty(len(moved))
    result[order] = moved
    return result.tolist()


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, str]], gap: float) -> None:
    """Write (text, height, colour) at the right edge of ``axes``, in data heights, ``gap`` apart."""
    for (text, _, colour), place in zip(ends, spread([height for _, height, _ in ends], gap), strict=True):
        axes.annotate(
            text,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )
