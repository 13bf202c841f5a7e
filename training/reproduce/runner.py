"""Cells one by one: what is done is not run again, what was interrupted goes on, stage 1 is trained once and shared."""

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpdval_edge.atomic import write_file
from hpdval_edge.config import as_table, flatten, load_config, override
from hpdval_edge.config_keys import FREE_KEYS, among, same_value
from hpdval_edge.errors import CheckFailed, UsageError
from hpdval_edge.progress import say
from hpdval_edge.training.reproduce.plans import Plan, donor
from hpdval_edge.training.reproduce.scoring import sweep_reports, teacher_sha256, zero_shot_report
from hpdval_edge.training.run_folder import RUNS, ZERO_SHOT, RunFolder, create_run, reported_weights
from hpdval_edge.training.train import TrainOptions, train

CELL_FILE = "cell.json"
METRICS = "metrics.json"
# What a key that a later version brought stood at before: the paper knows nothing of it.
BEFORE = flatten(as_table(load_config(preset="paper", values={"data.path": "any"})))


@dataclass(frozen=True, slots=True)
class Result:
    """A cell's outcome: its report (``multilabel_report``), or why there is none.

    run: its folder, empty without. weights: for a report that is not kept in a run, sha256 of what gave it.
    """

    plan: Plan
    report: dict[str, Any] | None
    seconds: float
    run: str = ""
    error: str = ""
    weights: str = ""


class Refused(UsageError):
    """Training does not take the settings of a cell."""


def run_plans(plans: Sequence[Plan], known: dict[str, dict], *, keep: Callable[[Result], None]) -> list[Result]:
    """Run every plan in order and hand each result to ``keep`` as soon as it is there.

    A cell whose loss is no longer finite is a result without a report, and so is one whose settings training does not
    take once another was trained (a prompt too long for the teacher, say); the others still run.

    Args:
        known: zero-shot results of an earlier call, by plan name, as ``results.as_entry`` writes them.

    Raises:
        UsageError: settings that training does not take, before any cell was trained; a run with other settings.
    """
    results = []
    for number, plan in enumerate(plans, start=1):
        say(f"cell {number} of {len(plans)}: {plan.name}")
        try:
            result = _zero_shot(plan, known) if plan.cell.reads == "zero_shot" else train_cell(plan, donor(plans, plan))
        except (CheckFailed, Refused) as failure:
            if isinstance(failure, Refused) and not any(earlier.run and earlier.report for earlier in results):
                raise
            say(f"{plan.name} has no result: {failure}")
            result = Result(plan, None, _seconds(RunFolder(RUNS / plan.run_name)), error=str(failure))
        results.append(result)
        keep(result)
    return results


def _zero_shot(plan: Plan, known: dict[str, dict]) -> Result:
    entry, weights = known.get(plan.name), teacher_sha256(plan.config)
    if _still_holds(entry, plan, weights):
        return Result(plan, entry["report"], entry["seconds"], weights=weights)
    started = time.monotonic()
    report = zero_shot_report(plan.config, plan.cell.post)
    return Result(plan, report, time.monotonic() - started, weights=weights)


def _still_holds(entry: dict[str, Any] | None, plan: Plan, weights: str) -> bool:
    """Whether an entry of cells.json is the report of ``plan`` with these weights; older ones do not say of which."""
    if entry is None or not entry["report"]:
        return False
    return entry["settings"] == plan.settings() and entry.get("weights") == weights


def train_cell(plan: Plan, giver: Plan | None) -> Result:
    """Train what is missing of the plan's run and read its report.

    Raises:
        UsageError: a run of this name was made with other settings.
        Refused: training does not take the settings.
        Interrupted: the state is kept; the same call goes on.
    """
    run = open_run(plan)
    if giver is not None:
        _adopt_stage1(run, RunFolder(RUNS / giver.run_name))
    if not is_done(run, plan):
        _take_free_values(run, plan)
        stage = "1" if plan.cell.reads == "stage1" else "all"
        started = time.monotonic()
        try:
            train(None, TrainOptions(name=run.name, stage=stage, resume=True), {})
        except UsageError as refusal:
            raise Refused(str(refusal)) from refusal
        finally:
            _add_seconds(run, time.monotonic() - started)
    return Result(plan, run.read_json(METRICS)[plan.cell.reads], _seconds(run), run=str(run.path))


def is_done(run: RunFolder, plan: Plan) -> bool:
    """Whether the run holds the report that the cell reads, and the stage-1 weights that others may start from."""
    reports = run.read_json(METRICS) if (run.path / METRICS).is_file() else {}
    return plan.cell.reads in reports and (plan.cell.reads != "stage1" or run.weights("stage1").is_file())


def open_run(plan: Plan) -> RunFolder:
    """The plan's run, made with its configuration if nothing was trained in it yet.

    Raises:
        UsageError: its training began with other settings, or it was not made by this command.
    """
    run = RunFolder(RUNS / plan.run_name)
    if (run.path / METRICS).is_file():
        _refuse_changes(run, plan)
        return run
    if not run.path.is_dir():
        run = create_run(plan.run_name, default=plan.run_name)
    run.write_json(CELL_FILE, {"settings": plan.settings(), "seconds": 0.0})
    run.write_config(plan.config)
    return run


def _refuse_changes(run: RunFolder, plan: Plan) -> None:
    if not (run.path / CELL_FILE).is_file():
        raise UsageError(f"{run.path} was not made by this command; rename or remove it.")
    before, now = {**BEFORE, **run.read_json(CELL_FILE)["settings"]}, plan.settings()
    changed = [key for key in now if not same_value(before[key], now[key])]
    if changed:
        listed = ", ".join(f"{key} was {before[key]!r}, now {now[key]!r}" for key in changed)
        raise UsageError(
            f"{run.path} began with other settings ({listed}); keep them, name another folder with --out, or remove "
            "the run's to run it anew."
        )


def _take_free_values(run: RunFolder, plan: Plan) -> None:
    """Let the rest of an unfinished run follow this call where that changes no result, e.g. its ``train.device``."""
    flat = flatten(as_table(plan.config))
    config = override(run.config(), {key: value for key, value in flat.items() if among(key, FREE_KEYS)})
    if config != run.config():
        run.write_config(config)


def _adopt_stage1(run: RunFolder, giver: RunFolder) -> None:
    """Start ``run`` from the giver's finished stage 1, unless it has begun or the giver has none."""
    if (run.path / METRICS).is_file() or not giver.weights("stage1").is_file():
        return
    reports = giver.read_json(METRICS)
    say(f"stage 1 is that of {giver.path}")
    write_file(run.weights("stage1"), lambda partial: shutil.copyfile(giver.weights("stage1"), partial))
    # Last, because a run with this file counts as begun.
    run.write_json(METRICS, {name: reports[name] for name in (ZERO_SHOT, "stage1")})


def _seconds(run: RunFolder) -> float:
    return float(run.read_json(CELL_FILE)["seconds"])


def _add_seconds(run: RunFolder, seconds: float) -> None:
    content = run.read_json(CELL_FILE)
    run.write_json(CELL_FILE, {**content, "seconds": content["seconds"] + seconds})


def evaluate_plans(
    base: Plan, plans: Sequence[Plan], *, axis: str, known: dict[str, dict], keep: Callable[[Result], None]
) -> list[Result]:
    """Train ``base`` once, then score its weights with each plan's value of ``axis``; nothing is trained again.

    Args:
        axis: ``fuse.alpha`` or ``fuse.topk``.
        known: results of an earlier call by plan name, used where the weights and the value are the same.
    """
    trained = train_cell(base, None)
    run = RunFolder(Path(trained.run))
    weights = hashlib.sha256(reported_weights(run).read_bytes()).hexdigest()
    stored = [known.get(plan.name) for plan in plans]
    if not all(_still_holds(entry, plan, weights) for entry, plan in zip(stored, plans, strict=True)):
        say(f"scoring {run.path} with {len(plans)} values of {axis}")
        started = time.monotonic()
        reports = sweep_reports(run, axis, [plan.cell.values[axis] for plan in plans], device=base.config.train.device)
        share = (time.monotonic() - started) / len(plans)
        stored = [{"report": report, "seconds": share} for report in reports]
    results = [
        Result(plan, entry["report"], entry["seconds"], run=str(run.path), weights=weights)
        for plan, entry in zip(plans, stored, strict=True)
    ]
    for result in results:
        keep(result)
    return results
