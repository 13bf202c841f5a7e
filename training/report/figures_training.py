"""Figures about training: how validation and losses went, and which labels come together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hpdval_edge.training.report.chart import (
    ALL_COLOUR,
    GROUP_COLOURS,
    INK,
    MUTED,
    Chart,
    draw,
    label_ends,
    new_figure,
    plain_log,
    short,
)
from hpdval_edge.training.report.curves import co_occurrence
from hpdval_edge.training.report.facts import RunFacts
from hpdval_edge.training.report.words import COMPARED_ON

STAGE_NAMES = {"stage1": "Stage 1: student", "stage2": "Stage 2: prompts", "joint": "Joint: all at once"}
SERIES = {"mAP": ALL_COLOUR, **GROUP_COLOURS}
# Colour of letters: the middle group's is too light to read.
WRITING = {**SERIES, "medium": "#8a6100"}
LOSSES = {
    "loss_loss": ("total", INK, "-"),
    "loss_cls": ("classification", "#004488", "--"),
    "loss_kd": ("distillation", "#bb5566", "-."),
    "loss_kd_patches": ("patch distillation", "#ee99aa", (0, (1, 1, 4, 1))),
    "loss_sc": ("consistency", "#997700", ":"),
}
MOST_LABELS = 30
MOST_LABELS_NARROW = 14
NUMBERED = 20
NARROW_SIDE = 4.0
SHARES = LinearSegmentedColormap.from_list("shares", ["#f7f9fc", "#9fc0e4", "#2f6cb0", "#00264d"])


def learning_chart(facts: RunFacts) -> Chart:
    """AP on the split that chooses the epoch, by epoch, and the losses below it, one column a stage."""
    stages = list(dict.fromkeys(line["stage"] for line in facts.epochs))
    lines = {stage: [line for line in facts.epochs if line["stage"] == stage] for stage in stages}
    told = []
    for stage in stages:
        values = [line[facts.selected_on]["mAP"] for line in lines[stage]]
        told.append(f"{STAGE_NAMES.get(stage, stage)}: {values[0]:.1f} at its start, {max(values):.1f} at its best")
    alt = f"Lines of {COMPARED_ON[facts.selected_on]} mAP by epoch, with the losses below. {'; '.join(told)}."
    return draw("learning", alt, lambda narrow: _paint_learning(facts, lines, narrow))


def _paint_learning(facts: RunFacts, lines: dict[str, list[dict[str, Any]]], narrow: bool) -> Figure:
    figure = new_figure(narrow, 5.4 if narrow else 4.8)
    lengths = [max(1, group[-1]["epoch"]) for group in lines.values()]
    ratios = [max(length, 0.4 * max(lengths)) for length in lengths]
    grid = figure.subplots(2, len(lines), sharex="col", squeeze=False, width_ratios=ratios, height_ratios=(3, 1.5))
    for column, (stage, group) in enumerate(lines.items()):
        top, bottom = grid[:, column]
        if column:
            top.sharey(grid[0, 0])
            top.tick_params(labelleft=False)
        figures = [{"epoch": line["epoch"], **line[facts.selected_on]} for line in group]
        _paint_selection(top, figures, facts.reports.get(stage, {}).get("epoch"))
        _paint_losses(bottom, group)
        # A wide page has room for the full name of each stage.
        name = STAGE_NAMES.get(stage, stage)
        top.set_title(name.partition(":")[0] if narrow else name)
    grid[0, 0].set_ylabel(f"{COMPARED_ON[facts.selected_on]} AP, %")
    grid[1, 0].set_ylabel("loss")
    figure.legend(handles=_loss_handles(facts), loc="outside lower left", ncols=2 if narrow else 5)
    ends = list(lines.values())[-1][-1][facts.selected_on]
    low, high = grid[0, 0].get_ylim()
    shown = [(key, ends[key], WRITING[key]) for key in SERIES if ends.get(key) is not None]
    label_ends(grid[0, -1], shown, gap=(high - low) * (0.075 if narrow else 0.06))
    return figure


def _loss_handles(facts: RunFacts) -> list[Line2D]:
    present = {key for line in facts.epochs for key in line}
    return [
        Line2D([], [], color=colour, linestyle=style, linewidth=1.4, label=f"{name} loss")
        for key, (name, colour, style) in LOSSES.items()
        if key in present
    ]


def _paint_selection(axes: Axes, figures: list[dict[str, Any]], kept: int | None) -> None:
    """Lines of mAP and the groups over ``figures``, one entry an epoch; a mark on the epoch that was kept."""
    epochs = [line["epoch"] for line in figures]
    for key, colour in SERIES.items():
        values = [np.nan if line.get(key) is None else line[key] for line in figures]
        axes.plot(epochs, values, color=colour, linewidth=2.4 if key == "mAP" else 1.4, zorder=3 if key == "mAP" else 2)
        if key == "mAP" and kept in epochs:
            place = (kept, values[epochs.index(kept)])
            axes.plot(*place, "o", color=colour, markersize=6, zorder=4)
            side = "left" if kept == epochs[0] else "right" if kept == epochs[-1] else "center"
            axes.annotate("kept", place, xytext=(0, 7), textcoords="offset points", ha=side, fontsize=8)
    axes.grid(axis="y")
    axes.margins(x=0.04)


def _paint_losses(axes: Axes, group: list[dict[str, Any]]) -> None:
    for key, (_, colour, style) in LOSSES.items():
        drawn = [(line["epoch"], line[key]) for line in group if key in line]
        if drawn:
            axes.plot(*zip(*drawn, strict=True), color=colour, linestyle=style, linewidth=1.4)
    plain_log(axes.yaxis)
    axes.grid(axis="y")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def co_occurrence_chart(facts: RunFacts, targets: np.ndarray) -> Chart:
    """Which labels come together in the training pictures, targets uint8 [n, C]."""
    columns = facts.by_frequency[:MOST_LABELS]
    shares = co_occurrence(targets, columns)
    pairs = [np.unravel_index(i, shares.shape) for i in np.argsort(-np.nan_to_num(shares, nan=-1), axis=None)[:3]]
    told = ", ".join(
        f"{100 * shares[row, column]:.0f} % of the pictures with {facts.labels[columns[row]]} also show "
        f"{facts.labels[columns[column]]}"
        for row, column in pairs
        if not np.isnan(shares[row, column])
    )
    alt = f"Matrix of the {len(columns)} most frequent labels. Strongest: {told or 'no two labels come together'}."

    def paint(narrow: bool) -> Figure:
        count = min(len(columns), MOST_LABELS_NARROW) if narrow else len(columns)
        return _paint_matrix([facts.labels[i] for i in columns[:count]], shares[:count, :count], narrow)

    return draw("co_occurrence", alt, paint)


def _paint_matrix(labels: Sequence[str], shares: np.ndarray, narrow: bool) -> Figure:
    side = NARROW_SIDE if narrow else min(7.2, 2.0 + 0.215 * len(labels))
    figure = new_figure(narrow, side, layout="compressed")
    axes = figure.subplots()
    top = max(0.05, float(np.nanmax(shares))) if np.isfinite(shares).any() else 1.0
    axes.set_facecolor("#e9ecf0")
    picture = axes.imshow(100 * shares, cmap=SHARES, vmin=0, vmax=100 * top)
    names = [short(label, 13 if narrow else 22) for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=90)
    axes.set_yticks(range(len(labels)), names)
    axes.tick_params(labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("… also show this, %")
    axes.set_ylabel("of the pictures with this …")
    if len(labels) <= NUMBERED and not narrow:
        for row, column in np.argwhere(np.isfinite(shares)):
            share = shares[row, column]
            colour = "white" if share > 0.55 * top else INK
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(picture, ax=axes, shrink=0.5, aspect=24, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, labelcolor=MUTED)
    return figure
