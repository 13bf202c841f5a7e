"""The HTML page of a report: its tables as rows of text, and its template."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hpdval_edge import __version__
from hpdval_edge.monitor.page import section, style
from hpdval_edge.monitor.summary import Summary
from hpdval_edge.training.dataset import Splits
from hpdval_edge.training.report.chart import GROUP_COLOURS, Chart
from hpdval_edge.training.report.curves import Decisions, Reliability
from hpdval_edge.training.report.differences import differences
from hpdval_edge.training.report.facts import RunFacts
from hpdval_edge.training.report.pictures import Card
from hpdval_edge.training.report.words import COMPARED_ON, data_name, meaning, number, selection, teacher_name
from hpdval_edge.training.run_folder import ZERO_SHOT

ASSETS = files("hpdval_edge.training") / "assets"
STAGE_TITLES = {ZERO_SHOT: "Teacher, zero-shot", "stage1": "Stage 1", "stage2": "Stage 2", "joint": "Joint"}
STARTS = {"clip": "the teacher's weights", "imagenet": "ImageNet weights", "random": "random weights"}
# Rows of the table of stages: key of multilabel_report, name, digits.
MEASURES = (
    ("mAP", "mAP, all labels", 1),
    ("head", "head", 1),
    ("medium", "medium", 1),
    ("tail", "tail", 1),
    ("std", "spread of AP over labels (std)", 1),
    ("OF1", "F1 of all decisions (OF1)", 1),
    ("CF1", "F1 by label (CF1)", 1),
    ("ECE", "calibration error (ECE, 0 to 1)", 3),
)
# Longer tables of thresholds start folded.
OPEN_ROWS = 25


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template shows; None and empty lists are parts that could not be made."""

    facts: RunFacts
    splits: Splits | None
    charts: Mapping[str, Chart]
    decisions: Decisions | None
    calibration: Reliability | None
    best: Sequence[Card]
    worst: Sequence[Card]
    notes: Sequence[str]
    monitor: Summary | None = None


def render(page: Page) -> str:
    """The whole page as HTML; every text from outside is escaped, nothing in it loads anything."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((ASSETS / "report.html").read_text(encoding="utf-8"))
    facts = page.facts
    return template.render(
        version=__version__,
        css=Markup(style("page") + (ASSETS / "report.css").read_text(encoding="utf-8") + style("monitor")),
        monitor=None if page.monitor is None else Markup(section(page.monitor)),
        name=facts.run.name,
        headline=_headline(page),
        interval=(facts.result.get("interval") or {}).get("mAP"),
        summary=_summary(page),
        meaning=meaning(facts, page.decisions, page.calibration),
        notes=page.notes,
        stages=_stages(facts),
        charts={name: _picture(chart) for name, chart in page.charts.items()},
        groups={group: colour for group, colour in GROUP_COLOURS.items() if group in facts.groups},
        thresholds=_thresholds(page),
        threshold_note=_threshold_note(facts),
        thresholds_open=len(facts.labels) <= OPEN_ROWS,
        best=page.best,
        worst=page.worst,
        differences=differences(facts.config),
        environment=_environment(facts.environment),
        split=facts.result["split"],
        compared_on=COMPARED_ON[facts.selected_on],
        selection=selection(facts.config),
    )


def _headline(page: Page) -> list[tuple[str, str]]:
    """The large figures: (value, what it is)."""
    facts = page.facts
    values = [(number(facts.result["mAP"]), "mAP of 100")]
    if ZERO_SHOT in facts.reports:
        values.append((number(facts.reports[ZERO_SHOT]["mAP"]), "teacher alone"))
    if facts.result["tail"] is not None:
        values.append((number(facts.result["tail"]), "tail labels"))
    if "OF1" in facts.result:
        values.append((number(facts.result["OF1"]), "F1 of decisions"))
    return values


def _summary(page: Page) -> list[tuple[str, str]]:
    facts, config = page.facts, page.facts.config
    epochs = [f"{STAGE_TITLES[name].lower()}: {_epochs(facts, name)}" for name in facts.reports if name != ZERO_SHOT]
    pictures = f"{facts.result['n_images']} {facts.result['split']}"
    if page.splits is not None:
        parts = {"train": page.splits.train, "val": page.splits.val, "test": page.splits.test}
        pictures = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if part is not None)
    return [
        ("Data", f"{data_name(config)}, {len(facts.labels)} labels"),
        ("Pictures", pictures),
        ("Student", f"{config.student.name}, {config.student.image_size} px, from {STARTS[config.student.init]}"),
        ("Teacher", teacher_name(config)),
        ("Preset", f"{config.preset}, seed {config.seed}"),
        ("Epochs", "; ".join(epochs)),
    ]


def _epochs(facts: RunFacts, stage: str) -> str:
    trained = max((line["epoch"] for line in facts.epochs if line["stage"] == stage), default=0)
    return f"{trained}, number {facts.reports[stage]['epoch']} kept"


def _stages(facts: RunFacts) -> dict[str, Any]:
    """Table of stages: titles, and rows of (measure, [(value, interval or None)])."""
    reports = [facts.reports[name] for name in STAGE_TITLES if name in facts.reports]
    rows = []
    for key, name, digits in MEASURES:
        if all(report.get(key) is None for report in reports):
            continue
        count = facts.result["groups"].get(key)
        title = f"{name}, {count} labels" if count is not None else name
        cells = []
        for report in reports:
            interval = (report.get("interval") or {}).get(key)
            between = f"{interval[0]:.1f} to {interval[1]:.1f}" if interval else None
            cells.append((number(report.get(key), digits), between))
        rows.append((title, cells))
    titles = [title for name, title in STAGE_TITLES.items() if name in facts.reports]
    return {"titles": titles, "rows": rows}


def _picture(chart: Chart) -> dict[str, str]:
    """Addresses of a chart's two versions and its description."""
    address = "data:image/svg+xml;base64,"
    wide, narrow = (address + base64.b64encode(svg).decode("ascii") for svg in (chart.wide, chart.narrow))
    return {"wide": wide, "narrow": narrow, "alt": chart.alt}


def _thresholds(page: Page) -> list[dict[str, Any]]:
    """Rows of the table of labels, most frequent in training first."""
    facts, decisions, rows = page.facts, page.decisions, []
    for index in facts.by_frequency:
        measured = {"positives": "-", "precision": "-", "recall": "-", "f1": "-"}
        if decisions is not None:
            measured = {key: number(float(getattr(decisions, key)[index])) for key in ("precision", "recall", "f1")}
            measured["positives"] = str(int(decisions.positives[index]))
        rows.append(
            {
                "label": facts.labels[index],
                "group": facts.groups[index],
                "count": int(facts.class_counts[index]),
                "ap": number(facts.result["per_class"][index]),
                "threshold": f"{facts.thresholds['values'][index]:.3f}",
                "own": bool(facts.thresholds["fitted"][index]),
                **measured,
            }
        )
    return rows


def _threshold_note(facts: RunFacts) -> str:
    objective = facts.thresholds.get("objective", "f1")
    aim = "the best F1" if objective == "f1" else objective.replace("=", " of at least ")
    common = len(facts.labels) - int(np.sum(facts.thresholds["fitted"]))
    rest = f" {common} labels have too few positives there and take a common one." if common else ""
    return f"Thresholds aim at {aim} on the validation split.{rest}"


def _environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            rows += [(str(inner), str(version)) for inner, version in value.items()]
        else:
            rows.append((key, str(value)))
    return rows
