"""``hpedge reproduce`` and ``hpedge sweep``: plan, run, and write the outputs anew after every cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpdval_edge.atomic import write_text
from hpdval_edge.errors import UsageError
from hpdval_edge.progress import say
from hpdval_edge.training.reproduce.ablation import BASE, ablation
from hpdval_edge.training.reproduce.cells import TABLES, Cell, Experiment, choose_cells, sweep
from hpdval_edge.training.reproduce.few_shot import (
    TABLE2,
    few_shot_plans,
    few_shot_roots,
    run_few_shot,
    with_project,
)
from hpdval_edge.training.reproduce.figure import draw
from hpdval_edge.training.reproduce.markdown import markdown
from hpdval_edge.training.reproduce.plans import Plan, make_plans, parse_datasets, run_owner
from hpdval_edge.training.reproduce.results import as_csv, as_entry, read_entries, summarise, write_entries
from hpdval_edge.training.reproduce.runner import Result, evaluate_plans, run_plans
from hpdval_edge.training.reproduce.scoring import patch_count

TABLE_NAMES = ("table1", "table2", "table3", "table5", "table6", "ablation")
EVAL_ONLY = ("alpha", "topk")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. values: configuration keys; cells: names of the only rows to run."""

    data: Sequence[str] = ()
    preset: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 1
    cells: Sequence[str] = ()
    changes: Sequence[str] = ()
    out: Path | None = None


class Writer:
    """Keeps the results so far and writes cells.json, results.csv, table.md and the figure after each."""

    def __init__(self, experiment: Experiment, out: Path, planned: int) -> None:
        self.experiment, self.out, self.planned = experiment, out, planned
        self.known = read_entries(out)
        self.results: list[Result] = []

    def keep(self, result: Result) -> None:
        """Add a result and write everything anew; one that an earlier call wrote waits for the next new or last one."""
        self.results.append(result)
        name, entry = result.plan.name, as_entry(result)
        if self.known.get(name) == entry and len(self.results) < self.planned:
            return
        self.known[name] = entry
        write_entries(self.out, self.known)
        write_text(self.out / "results.csv", as_csv(self.results))
        write_text(self.out / "table.md", markdown(self.experiment, self.results, self.planned))
        draw(self.experiment, summarise(self.results, self.experiment.axis), self.out)


def reproduce(table: str, options: Options) -> Writer:
    """Run the cells of a table that are missing and write its outputs.

    Raises:
        UsageError: before anything is run, for options that do not fit.
        Interrupted: cells that are done are kept, the one under way goes on with the next call.
    """
    if table not in TABLE_NAMES:
        raise UsageError(f"{table!r} is not one of {', '.join(TABLE_NAMES)}.")
    if options.changes and table != "ablation":
        raise UsageError(f"--change belongs to ablation; {table} has fixed rows.")
    if table == "table2":
        return _few_shot(options)
    if table != "ablation":
        return _run(TABLES[table], options)
    if options.preset is None:
        say("note: an ablation changes preset paper unless --preset names another")
        options = replace(options, preset="paper")
    return _run(ablation(options.changes), options)


def sweep_values(axis: str, options: Options, *, eval_only: bool) -> Writer:
    """Run a sweep: every value trained anew or, ``eval_only``, one run scored with each value of alpha or k."""
    if eval_only and axis not in EVAL_ONLY:
        raise UsageError(f"--eval-only works for {', '.join(EVAL_ONLY)}; another {axis} needs other prompts.")
    experiment = sweep(axis, _patches(options) if axis == "topk" else None)
    if not eval_only:
        return _run(experiment, options)
    return _evaluate(replace(experiment, name=f"{experiment.name}-eval"), options)


def _few_shot(options: Options) -> Writer:
    if options.seeds > 1:
        raise UsageError(f"table2 repeats over ten episodes; leave --seeds {options.seeds} out.")
    roots = few_shot_roots(options.data)
    experiment = replace(TABLE2, cells=choose_cells(TABLE2, options.cells))
    values = with_project(options.values)
    plans = few_shot_plans(experiment.cells, roots, preset=options.preset, values=values)
    writer = Writer(experiment, _place(experiment, options)[0], len(plans))
    for plan in plans:
        writer.keep(run_few_shot(plan, roots[plan.dataset], values, writer.out))
    return writer


def _patches(options: Options) -> int:
    counts = set()
    for dataset in parse_datasets(options.data):
        one = Experiment("sweep", "", (Cell(BASE, BASE),))
        (plan,) = make_plans(one, [dataset], preset=options.preset, values=options.values, seeds=1)
        counts.add(patch_count(plan.config))
    if len(counts) > 1:
        raise UsageError(f"the data sets lead to students of {sorted(counts)} patches; sweep topk on one at a time.")
    return counts.pop()


def _place(experiment: Experiment, options: Options) -> tuple[Path, str]:
    """The folder of the results, and what the names of its runs start with."""
    default = Path("reproduce") / experiment.name
    out = options.out or default
    return out, run_owner(out, default)


def _run(experiment: Experiment, options: Options) -> Writer:
    always = (BASE,) if experiment.name == "ablation" else ()
    experiment = replace(experiment, cells=choose_cells(experiment, options.cells, always=always))
    out, owner = _place(experiment, options)
    plans = _plans(experiment, options, owner)
    writer = Writer(experiment, out, len(plans))
    run_plans(plans, dict(writer.known), keep=writer.keep)
    return writer


def _plans(experiment: Experiment, options: Options, owner: str) -> list[Plan]:
    chosen = {"preset": options.preset, "values": options.values, "seeds": options.seeds}
    return make_plans(experiment, parse_datasets(options.data), **chosen, owner=owner)


def _evaluate(experiment: Experiment, options: Options) -> Writer:
    experiment = replace(experiment, cells=choose_cells(experiment, options.cells))
    out, owner = _place(experiment, options)
    plans = _plans(experiment, options, owner)
    bases = _plans(Experiment("sweep", "", (Cell(BASE, BASE),)), options, owner)
    writer = Writer(experiment, out, len(plans))
    known = dict(writer.known)
    for base in bases:
        own = [plan for plan in plans if (plan.dataset, plan.seed) == (base.dataset, base.seed)]
        evaluate_plans(base, own, axis=experiment.axis, known=known, keep=writer.keep)
    return writer
