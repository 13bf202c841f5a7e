"""Results of an experiment: kept after every cell, summed up over seeds, compared with the base."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpdval_edge.atomic import write_text
from hpdval_edge.errors import BadData
from hpdval_edge.training.reproduce.ablation import BASE
from hpdval_edge.training.reproduce.runner import Result

CELLS = "cells.json"
MEANS = ("mAP", "head", "medium", "tail")
NUMBERS = (*MEANS, "var", "std", "var_groups")
COLUMNS = ("cell", "dataset", "seed", "report", "split", "epoch", *NUMBERS, "seconds", "run", "error")


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over seeds and sample standard deviation, None with fewer than two seeds; few-shot rows: over episodes."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


@dataclass(frozen=True, slots=True)
class Row:
    """A cell on a data set over its seeds. numbers and differences (to the base, seed by seed) by name of a mean."""

    cell: str
    title: str
    dataset: str
    value: str
    numbers: dict[str, Spread | None]
    differences: dict[str, Spread | None]
    errors: tuple[str, ...]


def as_entry(result: Result) -> dict[str, Any]:
    """A result as cells.json holds it."""
    plan = result.plan
    return {
        "cell": plan.cell.name,
        "title": plan.cell.title,
        "dataset": plan.dataset,
        "seed": plan.seed,
        "reads": plan.cell.reads,
        "run": result.run,
        "weights": result.weights,
        "seconds": round(result.seconds, 1),
        "error": result.error,
        "settings": plan.settings(),
        "report": result.report,
    }


def read_entries(out: Path) -> dict[str, dict]:
    """cells.json of an earlier call by plan name; empty before the first; BadData when it is damaged."""
    path = out / CELLS
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadData(f"{path} cannot be read ({error}); remove it, the finished runs are kept elsewhere.") from error


def write_entries(out: Path, entries: dict[str, dict]) -> None:
    """cells.json: everything known so far, calls with other data or rows included."""
    write_text(out / CELLS, json.dumps({"cells": entries}, indent=1) + "\n")


def as_csv(results: Sequence[Result]) -> str:
    """One line a cell, data set and seed; empty fields where there is no number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        entry, report = as_entry(result), result.report or {}
        numbers = {key: f"{report[key]:.4f}" for key in NUMBERS if report.get(key) is not None}
        place = {key: report[key] for key in ("split", "epoch") if key in report}
        own = {key: entry[key] for key in ("cell", "dataset", "seed", "seconds", "run", "error")}
        writer.writerow({**own, "report": entry["reads"], **place, **numbers})
    return text.getvalue()


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and sample standard deviation of what is there; None where nothing is."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(statistics.fmean(there), statistics.stdev(there) if len(there) > 1 else None)


def summarise(results: Sequence[Result], axis: str = "") -> list[Row]:
    """Rows in the order of their first result. axis: the key of a sweep, whose value a row then carries."""
    rows = []
    for dataset, cell in dict.fromkeys((r.plan.dataset, r.plan.cell.name) for r in results):
        own = [r for r in results if (r.plan.dataset, r.plan.cell.name) == (dataset, cell)]
        base = {r.plan.seed: r.report for r in results if r.plan.dataset == dataset and r.plan.cell.name == BASE}
        numbers = {key: spread([(r.report or {}).get(key) for r in own]) for key in NUMBERS}
        if own[0].report and "std_episodes" in own[0].report:
            numbers["mAP"] = Spread(own[0].report["mAP"], own[0].report["std_episodes"])
        differences = {key: spread([_difference(r, base.get(r.plan.seed), key) for r in own]) for key in MEANS}
        first = own[0].plan.cell
        errors = tuple(f"seed {r.plan.seed}: {r.error}" for r in own if r.error)
        rows.append(Row(cell, first.title, dataset, first.values.get(axis, ""), numbers, differences, errors))
    return rows


def _difference(result: Result, base: dict | None, key: str) -> float | None:
    here, there = (result.report or {}).get(key), (base or {}).get(key)
    return None if here is None or there is None or result.plan.cell.name == BASE else here - there
