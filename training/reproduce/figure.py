"""figure.png and figure.svg: one panel a group of classes and data set, ours filled, the paper's hollow."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpdval_edge.atomic import write_file
from hpdval_edge.training.reproduce.cells import Experiment
from hpdval_edge.training.reproduce.paper_numbers import BEST, PAPER, PAPER_NAMES, paper_dataset, printed
from hpdval_edge.training.reproduce.results import MEANS, Row

# Okabe and Ito's colours, which people with any colour vision tell apart.
OURS, PAPERS, LINE = "#0072B2", "#D55E00", "#999999"
GROUP_COLOURS = {"mAP": "#000000", "head": "#0072B2", "medium": "#009E73", "tail": "#D55E00"}
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path"}


def draw(experiment: Experiment, rows: Sequence[Row], out: Path) -> None:
    """Write both files; nothing before the first number is there."""
    rows = [row for row in rows if row.numbers["mAP"] is not None]
    if not rows:
        return
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    with mpl.rc_context(STYLE):
        figure = _sweep(experiment, rows, datasets) if experiment.axis else _panels(experiment, rows, datasets)
        for kind in ("png", "svg"):
            write_file(out / f"figure.{kind}", lambda partial, kind=kind: figure.savefig(partial, format=kind, dpi=150))


def _panels(experiment: Experiment, rows: Sequence[Row], datasets: Sequence[str]) -> Figure:
    """Dots: cells from top to bottom, four panels side by side; an ablation shows differences to its base."""
    own = [[row for row in rows if row.dataset == dataset] for dataset in datasets]
    compared = [_compared(experiment, part) for part in own]
    shown = ("mAP",) if all(row.numbers["head"] is None and row.numbers["tail"] is None for row in rows) else MEANS
    heights = [0.28 * max(len(part), 1) + 0.9 for part in compared]
    figure = Figure(figsize=(11 if len(shown) > 1 else 6, sum(heights) + 0.7), layout="constrained")
    axes = figure.subplots(len(datasets), len(shown), squeeze=False, height_ratios=heights)
    for line, dataset, part in zip(axes, datasets, compared, strict=True):
        for axis, number in zip(line, shown, strict=True):
            _dots(axis, experiment, part, number)
            axis.set_yticks(range(len(part)), [row.title for row in part] if axis is line[0] else [])
            axis.set_ylim(max(len(part), 1) - 0.5, -0.5)
        line[0].set_title(dataset, loc="left", fontweight="bold")
    _legend(figure, experiment, datasets)
    return figure


def _compared(experiment: Experiment, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if experiment.name != "ablation" or row.differences["mAP"] is not None]


def _dots(axis: Axes, experiment: Experiment, rows: Sequence[Row], number: str) -> None:
    ablation = experiment.name == "ablation"
    for place, row in enumerate(rows):
        paper = printed(experiment.name, row.cell, row.dataset)
        value = None if paper is None else getattr(paper, number)
        if value is not None:
            axis.plot(value, place, "D", markerfacecolor="none", markeredgecolor=PAPERS, markersize=7)
        ours = row.differences[number] if ablation else row.numbers[number]
        if ours is not None:
            axis.errorbar(ours.mean, place, xerr=ours.std, fmt="o", color=OURS, capsize=3, markersize=5)
    if ablation:
        axis.axvline(0, color=LINE, linewidth=1)
    axis.set_xlabel(f"{number}, difference to base" if ablation else f"{number} in %")
    axis.grid(axis="y", color="#E5E5E5")
    axis.set_axisbelow(True)


def _legend(figure: Figure, experiment: Experiment, datasets: Sequence[str]) -> None:
    label = "mean of the pairs, with its spread over seeds" if experiment.name == "ablation" else "this code"
    ours = mpl.lines.Line2D([], [], color=OURS, marker="o", linestyle="none", label=label)
    handles = [ours]
    if experiment.name in PAPER:
        columns = ", ".join(dict.fromkeys(PAPER_NAMES[paper_dataset(experiment.name, name)] for name in datasets))
        marker = {"marker": "D", "markerfacecolor": "none", "markeredgecolor": PAPERS, "linestyle": "none"}
        handles.append(mpl.lines.Line2D([], [], label=f"paper, {columns}", **marker))
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    figure.suptitle(experiment.title, x=0.01, ha="left", fontsize=12)


def _sweep(experiment: Experiment, rows: Sequence[Row], datasets: Sequence[str]) -> Figure:
    """Lines over the swept value, one panel a data set, each line named at its end."""
    figure = Figure(figsize=(5.2 * len(datasets) + 0.6, 4), layout="constrained")
    for axis, dataset in zip(figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True):
        own = sorted((row for row in rows if row.dataset == dataset), key=lambda row: float(row.value))
        values = [float(row.value) for row in own]
        ends = {number: end for number in MEANS if (end := _curve(axis, own, number)) is not None}
        if values[0] > 0 and values[-1] >= 8 * values[0]:
            axis.set_xscale("log", base=2)
            axis.minorticks_off()
        _name_ends(axis, ends)
        if not experiment.notes:
            _mark_best(axis, BEST[experiment.name.removesuffix("-eval")], values)
        axis.set_xticks(values, [row.value for row in own])
        axis.set_xlabel(experiment.axis)
        axis.set_ylabel("AP in %")
        axis.set_title(dataset, loc="left", fontweight="bold")
    figure.suptitle(experiment.title, x=0.01, ha="left", fontsize=12)
    return figure


def _curve(axis: Axes, rows: Sequence[Row], number: str) -> tuple[float, float] | None:
    """Draw one line and return where it ends; None without numbers."""
    there = [row for row in rows if row.numbers[number] is not None]
    if not there:
        return None
    values, means = [float(row.value) for row in there], [row.numbers[number].mean for row in there]
    errors = [row.numbers[number].std or 0.0 for row in there]
    whiskers = errors if any(errors) else None
    axis.errorbar(values, means, yerr=whiskers, color=GROUP_COLOURS[number], marker="o", markersize=4, capsize=3)
    return values[-1], means[-1]


def _name_ends(axis: Axes, ends: dict[str, tuple[float, float]]) -> None:
    """Names at the lines' ends, moved up where two would overlap; a strip below the lines stays free."""
    low, high = axis.get_ylim()
    axis.set_ylim(low - 0.1 * (high - low), high)
    gap, last = 0.055 * (high - low), float("-inf")
    for number, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        last = max(y, last + gap)
        axis.annotate(
            number,
            (x, y),
            xytext=(1.02, last),
            textcoords=axis.get_yaxis_transform(),
            color=GROUP_COLOURS[number],
            va="center",
        )


def _mark_best(axis: Axes, best: float, values: Sequence[float]) -> None:
    if not values[0] <= best <= values[-1]:
        return
    axis.axvline(best, color=LINE, linestyle=":", linewidth=1)
    where = {"xycoords": ("data", "axes fraction"), "xytext": (4, 4), "textcoords": "offset points"}
    axis.annotate("paper's best", (best, 0), color="#666666", fontsize=8, **where)
