"""Table II: 1 and 5 shots on VOC2007 and MS-COCO, ten episodes each, through the few-shot protocol."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpdval_edge.config import PROJECT_FILE, load_config, read_toml
from hpdval_edge.errors import UsageError
from hpdval_edge.training.protocols.fewshot import OWN_KEYS, run_fewshot
from hpdval_edge.training.reproduce.cells import Cell, Experiment
from hpdval_edge.training.reproduce.plans import FEW_SHOT, Plan
from hpdval_edge.training.reproduce.runner import Result

SHOTS = (1, 5)
PROTOCOL_NAMES = {"voc2007": "voc", "coco2014": "coco"}
TABLE2 = Experiment(
    "table2",
    "Table II: few-shot recognition",
    tuple(Cell(f"{shots}shot", f"{shots}-shot") for shots in SHOTS),
    notes=(
        "Every episode starts from the same base run and is scored once, at its end; the authors' loop carries weights "
        "and optimizer from episode to episode and keeps the best of six scores on the test set.",
    ),
)


def few_shot_roots(data: Sequence[str]) -> dict[str, Path]:
    """``["voc2007=DIR"]`` -> {"voc2007": DIR}; UsageError for anything but the two data sets of Table II."""
    roots = {}
    for text in data:
        name, equals, folder = text.partition("=")
        if not equals or name not in FEW_SHOT:
            raise UsageError(f"--data {text!r} is no few-shot protocol; table2 takes voc2007=DIR and coco2014=DIR.")
        roots[name] = Path(folder)
    if not roots:
        raise UsageError("table2 needs --data voc2007=DIR or --data coco2014=DIR; the demo set has no episodes.")
    return roots


def with_project(values: Mapping[str, str]) -> dict:
    """``values`` over those of hpedge.toml; the data keys there are no part of a few-shot run, nor is a report."""
    path = Path(PROJECT_FILE)
    project = read_toml(path) if path.is_file() else {}
    return {**{key: value for key, value in project.items() if key not in OWN_KEYS}, "eval.report": "false", **values}


def few_shot_plans(
    cells: Sequence[Cell], roots: Mapping[str, Path], *, preset: str | None, values: Mapping[str, str]
) -> list[Plan]:
    """One plan a data set and number of shots; ASL is the loss where ``values`` name no other."""
    plans = []
    for dataset, root in roots.items():
        config = load_config(preset=preset, values={"loss.name": "asl", **values, "data.path": str(root.absolute())})
        plans += [Plan("table2", cell, dataset, config) for cell in cells]
    return plans


def run_few_shot(plan: Plan, root: Path, values: Mapping[str, str], out: Path) -> Result:
    """Ten episodes of the plan's cell; finished ones are kept under ``out``."""
    started = time.monotonic()
    result = run_fewshot(
        PROTOCOL_NAMES[plan.dataset],
        root,
        shots=int(plan.cell.name.removesuffix("shot")),
        values={**values, "preset": plan.config.preset},
        out=out / "episodes",
    )
    report = {
        "split": "novel test",
        "mAP": result["mAP"],
        "std_episodes": result["std"],
        "episodes": result["episodes"],
    }
    return Result(plan, report, time.monotonic() - started)
