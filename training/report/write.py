"""``hpedge report``: collect what a run can tell, draw it, write the page and the figures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpdval_edge.atomic import write_file, write_text
from hpdval_edge.errors import HpedgeError, UsageError
from hpdval_edge.monitor.summary import summarise
from hpdval_edge.progress import say
from hpdval_edge.training.dataset import Splits
from hpdval_edge.training.report import curves
from hpdval_edge.training.report.chart import Chart
from hpdval_edge.training.report.facts import RunFacts, read_facts
from hpdval_edge.training.report.figures_quality import (
    calibration_chart,
    groups_chart,
    per_class_chart,
    precision_recall_chart,
)
from hpdval_edge.training.report.figures_training import co_occurrence_chart, learning_chart
from hpdval_edge.training.report.page import Page, render
from hpdval_edge.training.report.pictures import best_and_worst
from hpdval_edge.training.report.scored import Scored, score_run
from hpdval_edge.training.run_folder import RunFolder
from hpdval_edge.training.session import load_data

CHARTS = ("groups", "learning", "per_class", "precision_recall", "co_occurrence", "calibration")
# The same weights on the same pictures differ by less than this, in percent, on any hardware.
SAME = 0.1


@dataclass(frozen=True, slots=True)
class Report:
    """A written report. notes: what could not be shown and why, in sentences."""

    path: Path
    plots: tuple[Path, ...]
    notes: tuple[str, ...]


def build_report(run: RunFolder, out: Path | None = None, monitors: Sequence[Path] = ()) -> Report:
    """Write ``report.html`` and ``plots/*.svg`` of a run.

    Pictures that are gone cost the parts that need them; the page and stderr say so.

    Args:
        out: the HTML file; else ``report.html`` in the run's folder. The figures always lie in its ``plots``.
        monitors: folders of ``hpedge infer --monitor``, whose summary the page takes in.

    Raises:
        UsageError: no stage of the run has finished; ``out`` is a folder. BadData: a file of the run is damaged.
        MissingDependency: the disk is full, or the folder may not be written.
    """
    out = out or run.path / "report.html"
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file, e.g. {out / 'report.html'}.")
    facts = read_facts(run)
    use = summarise(monitors) if monitors else None
    notes: list[str] = []
    splits, scored = _read_pictures(facts, notes)
    page = _collect(facts, splits, scored, notes)
    plots = _write_plots(run, page.charts)
    write_text(out, render(replace(page, monitor=use)))
    for note in notes:
        say(f"note: {note}")
    return Report(out, plots, tuple(notes))


def _read_pictures(facts: RunFacts, notes: list[str]) -> tuple[Splits | None, Scored | None]:
    """Labels and scores as far as they can still be had; what cannot is noted with its reason."""
    try:
        splits = load_data(facts.config)
    except HpedgeError as error:
        notes.append(
            "the data set cannot be read any more, so what needs its labels or pictures is left out: "
            f"{_sentence(error)}"
        )
        return None, None
    try:
        return splits, score_run(facts, splits)
    except HpedgeError as error:
        notes.append(f"the pictures cannot be scored any more, so what needs them is left out: {_sentence(error)}")
        return splits if splits.train.labels == facts.labels else None, None


def _sentence(error: HpedgeError) -> str:
    first = str(error).splitlines()[0].rstrip(".: ")
    return f"{first}."


def _collect(facts: RunFacts, splits: Splits | None, scored: Scored | None, notes: list[str]) -> Page:
    charts = [groups_chart(facts), learning_chart(facts), per_class_chart(facts)]
    decisions = calibration = None
    best, worst = [], []
    if splits is not None:
        charts.append(co_occurrence_chart(facts, splits.train.targets))
    if scored is not None:
        thresholds = np.array(facts.thresholds["values"], np.float32)
        decisions = curves.decide(scored.scores, scored.positive, thresholds)
        charts.append(precision_recall_chart(facts, scored.ranking(facts.config.eval.post), scored.positive))
        series = _calibration_series(facts, scored)
        charts.append(calibration_chart(series))
        calibration = next(reversed(series.values()))
        best, worst = best_and_worst(scored, thresholds)
        notes += _changes(facts, scored, decisions)
    for chart in charts:
        notes += [note for note in chart.notes if note not in notes]
    return Page(
        facts=facts,
        splits=splits,
        charts={chart.name: chart for chart in charts},
        decisions=decisions,
        calibration=calibration,
        best=best,
        worst=worst,
        notes=notes,
    )


def _calibration_series(facts: RunFacts, scored: Scored) -> dict[str, curves.Reliability]:
    """Reliability of the plain probabilities and, after ``hpedge calibrate``, of the calibrated ones."""
    series = {"as trained": curves.reliability(scored.probabilities(), scored.positive)}
    if "temperature" in facts.thresholds:
        fitted = scored.probabilities(temperature=facts.thresholds["temperature"], bias=facts.thresholds["bias"])
        series["calibrated"] = curves.reliability(fitted, scored.positive)
    return series


def _changes(facts: RunFacts, scored: Scored, decisions: curves.Decisions) -> list[str]:
    """Notes where the pictures or the thresholds of today are not those that metrics.json reports on."""
    ap = curves.mean_average_precision(scored.ranking(facts.config.eval.post), scored.positive)
    recorded = facts.result
    if len(scored.data) != recorded["n_images"] or abs(ap - recorded["mAP"]) >= SAME:
        return [
            f"the pictures have changed since training: curves and pictures are of {len(scored.data)} with mAP "
            f"{ap:.2f}, the tables of {recorded['n_images']} with mAP {recorded['mAP']:.2f}."
        ]
    if "OF1" in recorded and abs(decisions.overall_f1 - recorded["OF1"]) >= SAME:
        return [
            "the thresholds have been fitted anew since training: with those of today OF1 is "
            f"{decisions.overall_f1:.1f}, the table of stages has {recorded['OF1']:.1f} with those of then."
        ]
    return []


def _write_plots(run: RunFolder, charts: dict[str, Chart]) -> tuple[Path, ...]:
    """plots/<name>.svg; one of an earlier report that can no longer be drawn is taken away."""
    written = []
    for name in CHARTS:
        path = run.path / "plots" / f"{name}.svg"
        if name not in charts:
            path.unlink(missing_ok=True)
            continue
        content = charts[name].wide
        write_file(path, lambda partial, content=content: partial.write_bytes(content))
        written.append(path)
    return tuple(written)
