"""Figures about quality: groups, single labels, precision against recall, calibration."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hpdval_edge.training.metrics import ECE_BINS, GROUPS
from hpdval_edge.training.report.chart import (
    ALL_COLOUR,
    GROUP_COLOURS,
    INK,
    MUTED,
    Chart,
    draw,
    new_figure,
    plain_log,
    short,
)
from hpdval_edge.training.report.curves import Reliability, precision_recall
from hpdval_edge.training.report.facts import RunFacts
from hpdval_edge.training.run_folder import ZERO_SHOT

STAGES = {
    ZERO_SHOT: ("teacher, zero-shot", "#8b95a3", "D"),
    "stage1": ("after stage 1", "#6699cc", "s"),
    "stage2": ("after stage 2", "#004488", "o"),
    "joint": ("after joint training", "#004488", "o"),
}
GROUP_NAMES = {"mAP": "all labels", "head": "head", "medium": "medium", "tail": "tail"}
# More labels than this take several columns of bars on a wide page.
ONE_COLUMN, TWO_COLUMNS = 30, 80
CURVES_PER_GROUP = 3
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)))
# A bin of fewer pairs says little, and is drawn hollow.
FEW_PAIRS = 20


def groups_chart(facts: RunFacts) -> Chart:
    """Mean AP of all labels and of each group, with 95 % intervals, for the teacher and after each stage."""
    keys = [key for key in GROUP_NAMES if facts.result[key] is not None]
    told = "; ".join(f"{GROUP_NAMES[key]} {facts.result[key]:.1f}" for key in keys)
    alt = f"Points with 95 % intervals of mean AP, {STAGES[facts.stage][0]}: {told}."
    return draw("groups", alt, lambda narrow: _paint_groups(facts, keys, narrow))


def _paint_groups(facts: RunFacts, keys: list[str], narrow: bool) -> Figure:
    figure = new_figure(narrow, 0.75 + 0.62 * len(keys))
    axes = figure.subplots()
    known = [name for name in STAGES if name in facts.reports]
    for place, name in enumerate(known):
        title, colour, marker = STAGES[name]
        report = facts.reports[name]
        for row, key in enumerate(keys):
            if report[key] is None:
                continue
            y = row + 0.22 * (place - (len(known) - 1) / 2)
            interval = (report.get("interval") or {}).get(key)
            if interval:
                axes.plot(interval, (y, y), color=colour, linewidth=2.2)
            axes.plot(report[key], y, marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.8)
        axes.plot([], [], marker, color=colour, label=title, markersize=6)
    axes.set_yticks(range(len(keys)), [_group_name(facts.result, key) for key in keys])
    axes.set_ylim(len(keys) - 0.45, -0.55)
    axes.set_xlim(0, 100)
    axes.set_xlabel("mean AP, %")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=1 if narrow else 3)
    return figure


def _group_name(report: dict[str, Any], key: str) -> str:
    count = len(report["per_class"]) if key == "mAP" else report["groups"][key]
    return f"{GROUP_NAMES[key]} ({count})"


def per_class_chart(facts: RunFacts) -> Chart:
    """AP of every label as a bar, most frequent in training first, with the teacher's zero-shot AP as a mark."""
    measured = [
        (ap, label) for ap, label in zip(facts.result["per_class"], facts.labels, strict=True) if ap is not None
    ]
    best, worst = max(measured), min(measured)
    alt = (
        f"Bars of AP for {len(facts.labels)} labels in the order of their training pictures. Highest {best[1]} with "
        f"{best[0]:.1f}, lowest {worst[1]} with {worst[0]:.1f}."
    )
    return draw("per_class", alt, lambda narrow: _paint_bars(facts, narrow))


def _paint_bars(facts: RunFacts, narrow: bool) -> Figure:
    count = len(facts.labels)
    columns = 1 if narrow or count <= ONE_COLUMN else 2 if count <= TWO_COLUMNS else 3
    rows = -(-count // columns)
    figure = new_figure(narrow, 0.9 + 0.2 * rows)
    grid = figure.subplots(1, columns, squeeze=False)[0]
    teacher = facts.reports.get(ZERO_SHOT, {}).get("per_class")
    for column, axes in enumerate(grid):
        order = facts.by_frequency[column * rows : (column + 1) * rows]
        _paint_bar_column(axes, facts, order, teacher, rows, length=14 if narrow else 26 // columns + 8)
    handles = [
        Patch(color=colour, label=f"{group}") for group, colour in GROUP_COLOURS.items() if group in facts.groups
    ]
    if teacher:
        mark = Line2D([], [], color=INK, marker="|", linestyle="", markersize=9, markeredgewidth=1.6)
        mark.set_label("teacher, zero-shot")
        handles.append(mark)
    figure.legend(handles=handles, loc="outside upper left", ncols=2 if narrow else 4)
    return figure


def _paint_bar_column(
    axes: Axes, facts: RunFacts, order: np.ndarray, teacher: list | None, rows: int, length: int
) -> None:
    for row, index in enumerate(order):
        ap, before = facts.result["per_class"][index], teacher[index] if teacher else None
        if ap is None:
            axes.text(1, row, "no such picture to measure on", va="center", fontsize=7.5, color=MUTED)
            continue
        axes.barh(row, ap, height=0.72, color=GROUP_COLOURS[facts.groups[index]])
        if before is not None:
            # A white rim keeps the mark visible on a dark bar.
            axes.plot(before, row, "|", color="white", markersize=9, markeredgewidth=3.4)
            axes.plot(before, row, "|", color=INK, markersize=8, markeredgewidth=1.6)
        axes.text(max(ap, before or 0) + 1.5, row, f"{ap:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(order)), [f"{short(facts.labels[i], length)}  {facts.class_counts[i]}" for i in order])
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlim(0, 108)
    axes.set_xticks((0, 25, 50, 75, 100))
    axes.set_xlabel("AP, %")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", labelsize=8)


def precision_recall_chart(facts: RunFacts, scores: np.ndarray, positive: np.ndarray) -> Chart:
    """Precision against recall for a few labels of each group and for all; scores [n, C], positive bool [n, C]."""
    panels = [(group, _chosen(facts, positive, group)) for group in GROUPS]
    panels = [(group, chosen) for group, chosen in panels if chosen]
    told = "; ".join(f"{group}: {', '.join(facts.labels[i] for i in chosen)}" for group, chosen in panels)
    alt = f"Curves of precision against recall. Labels by group: {told}. The last panel takes all together."
    return draw(
        "precision_recall", alt, lambda narrow: _paint_precision_recall(facts, scores, positive, panels, narrow)
    )


def _chosen(facts: RunFacts, positive: np.ndarray, group: str) -> list[int]:
    """The group's labels of highest, middle and lowest AP, each once."""
    ap = facts.result["per_class"]
    members = [i for i in np.flatnonzero(facts.groups == group) if ap[i] is not None and positive[:, i].any()]
    members.sort(key=lambda i: -ap[i])
    places = np.unique(np.linspace(0, len(members) - 1, min(CURVES_PER_GROUP, len(members))).round().astype(int))
    return [int(members[place]) for place in places]


def _paint_precision_recall(
    facts: RunFacts,
    scores: np.ndarray,
    positive: np.ndarray,
    panels: list[tuple[str, list[int]]],
    narrow: bool,
) -> Figure:
    count = len(panels) + 1
    # Each panel has a strip of its own below it, which holds its legend.
    heights = (3.1, 0.75) if narrow else (2.75, 0.65)
    figure = new_figure(narrow, sum(heights) * (count if narrow else 1))
    shape = (2 * count, 1) if narrow else (2, count)
    grid = figure.subplots(*shape, height_ratios=heights * count if narrow else heights, squeeze=False)
    pairs = grid.reshape(count, 2) if narrow else grid.T
    for (axes, strip), (group, chosen) in zip(pairs, panels, strict=False):
        for style, index in zip(DASHES, chosen, strict=False):
            curve = precision_recall(scores[:, index], positive[:, index])
            name = f"{short(facts.labels[index], 18)}, AP {facts.result['per_class'][index]:.0f}"
            _paint_curve(axes, curve, GROUP_COLOURS[group], style, name)
        _finish_panel(axes, strip, f"{group.capitalize()} labels")
    curve = precision_recall(scores.ravel(), positive.ravel())
    _paint_curve(pairs[-1][0], curve, ALL_COLOUR, "-", "micro average")
    _finish_panel(*pairs[-1], "All labels together")
    for place, (axes, _) in enumerate(pairs):
        if narrow or place == 0:
            axes.set_ylabel("precision, %")
        else:
            axes.tick_params(labelleft=False)
    return figure


def _finish_panel(axes: Axes, strip: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set(xlim=(0, 102), ylim=(0, 102), xticks=(0, 50, 100), yticks=(0, 50, 100))
    axes.set_box_aspect(1)
    axes.set_xlabel("recall, %")
    axes.grid()
    strip.axis("off")
    strip.legend(*axes.get_legend_handles_labels(), loc="upper left", borderaxespad=0, borderpad=0, fontsize=8)


def _paint_curve(axes: Axes, curve: tuple[np.ndarray, np.ndarray], colour: str, style, name: str) -> None:
    recall, precision = curve
    # Between two thresholds precision is that of the lower one: the area under these steps is the AP.
    axes.step(
        100 * np.append(0, recall),
        100 * np.append(precision[0], precision),
        where="pre",
        color=colour,
        linestyle=style,
        label=name,
        linewidth=1.6,
    )


def calibration_chart(series: dict[str, Reliability]) -> Chart:
    """Reliability diagram of one or two sets of probabilities, with how often each probability is said."""
    told = "; ".join(
        f"{name}: says {said:.2f} on average where {true:.2f} is true, ECE {values.error:.3f}"
        for name, values in series.items()
        for said, true in [values.averages]
    )
    return draw("calibration", f"Reliability diagram with a histogram. {told}.", lambda narrow: _paint(series, narrow))


def _paint(series: dict[str, Reliability], narrow: bool) -> Figure:
    figure = new_figure(narrow, 6.0 if narrow else 3.9)
    shape = (2, 1) if narrow else (1, 2)
    left, right = figure.subplots(*shape, **({"height_ratios": (2, 1)} if narrow else {"width_ratios": (1, 1.3)}))
    left.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    edges = np.linspace(0, 1, ECE_BINS + 1)
    for (name, values), colour in zip(series.items(), (ALL_COLOUR, "#bb5566"), strict=False):
        full, many = values.pairs > 0, values.pairs >= FEW_PAIRS
        title = f"{name}, ECE {values.error:.3f}"
        left.plot(values.predicted[full], values.observed[full], color=colour, linewidth=1.2, label=title)
        left.plot(values.predicted[many], values.observed[many], "o", color=colour, markersize=5)
        few = full & ~many
        left.plot(values.predicted[few], values.observed[few], "o", color=colour, markersize=5, markerfacecolor="white")
        right.stairs(values.pairs, edges, color=colour, linewidth=1.6)
        right.stairs(values.pairs, edges, color=colour, alpha=0.1, fill=True, baseline=1)
    left.set_xlim(0, 1)
    left.set_ylim(-0.02, 1.02)
    left.set_aspect("equal")
    left.set_xlabel("probability that the model says")
    left.set_ylabel("share that is true")
    left.set_title("Reliability")
    plain_log(right.yaxis)
    # A little below one pair, so that its number keeps clear of the other axis.
    right.set_ylim(bottom=0.7)
    right.set_xlim(0, 1)
    right.set_xlabel("probability that the model says")
    right.set_ylabel("picture-label pairs")
    right.set_title("How often it says so")
    for axes in (left, right):
        axes.grid()
    left.legend(loc="upper left", fontsize=8, handlelength=1.4, borderpad=0.1)
    return figure
