"""From an experiment and its data sets to runs: one plan a cell, data set and seed, all resolved before any is run."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpdval_edge.config import PROJECT_FILE, Config, as_table, flatten, load_config
from hpdval_edge.config_keys import FREE_KEYS, among
from hpdval_edge.errors import UsageError
from hpdval_edge.presets import DEMO
from hpdval_edge.training.reproduce.ablation import BASE
from hpdval_edge.training.reproduce.cells import Cell, Experiment

LONG_TAILED = ("voc-lt", "coco-lt")
FEW_SHOT = ("voc2007", "coco2014")
DEMO_NAME = "scenes-lt"
# Stage 1 does not read these: cells that differ in nothing else share its weights.
STAGE2_KEYS = ("prompt.length", "prompt.init", "prompt.global", "prompt.local", "sc.", "train.stage2.")


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set's name, as run names and tables show it, and the configuration keys that select it."""

    name: str
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """One cell on one data set with one seed.

    config: everything requested, ``auto`` values still unresolved. owner: see ``run_owner``.
    """

    experiment: str
    cell: Cell
    dataset: str
    config: Config
    owner: str = ""

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config.seed

    @property
    def name(self) -> str:
        """Name of the result in its experiment's folder."""
        return f"{self.experiment}-{self.dataset}-{self.cell.name}-s{self.seed}"

    @property
    def run_name(self) -> str:
        """Name of the run in ``runs/``."""
        return f"{self.owner}-{self.name}" if self.owner else self.name

    def settings(self) -> dict:
        """Dotted keys that decide the result; JSON keeps them exactly."""
        flat = flatten(as_table(self.config))
        return {key: value for key, value in flat.items() if not among(key, FREE_KEYS)}

    def stage1_settings(self) -> dict | None:
        """Those of ``settings`` that stage 1 depends on; None for a cell without a stage 1 of its own to share."""
        if self.cell.reads == "zero_shot" or self.config.train.mode == "joint":
            return None
        return {key: value for key, value in self.settings().items() if not among(key, STAGE2_KEYS)}


def run_owner(out: Path, default: Path) -> str:
    """What the runs of results in ``out`` are called first: its path from here, nothing for the ``default`` folder."""
    here = os.path.relpath(out)
    if here == os.path.relpath(default):
        return ""
    return re.sub(r"[^A-Za-z0-9._]+", "-", here.replace(os.pardir, "")).strip("-.") or "here"


def parse_dataset(text: str) -> Dataset:
    """``demo``, ``voc-lt=DIR``, ``coco-lt=DIR``, or the path of a folder or list of labelled pictures."""
    name, equals, folder = text.partition("=")
    if equals and name in FEW_SHOT:
        raise UsageError(f"--data {text} is the few-shot protocol of table2; use {name.split('2')[0]}-lt=DIR here.")
    if equals and name in LONG_TAILED:
        from hpdval_edge.training.protocols.longtail import protocol_values

        return Dataset(name, protocol_values(name, Path(folder)))
    if text == DEMO:
        return Dataset(DEMO_NAME, {"data.path": DEMO})
    path = Path(text).absolute()
    if not path.exists():
        raise UsageError(f"--data {text!r} does not exist; pass demo, voc-lt=DIR, coco-lt=DIR, a folder or a list.")
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", path.stem).strip("-.") or "data"
    return Dataset(stem, {"data.path": str(path)})


def parse_datasets(texts: Sequence[str]) -> tuple[Dataset, ...]:
    """All of ``--data``, the demo set without one; UsageError when two share a name, as their runs would."""
    datasets = tuple(parse_dataset(text) for text in texts or (DEMO,))
    names = [dataset.name for dataset in datasets]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two of --data are called {name!r}; rename one, or run them with separate commands.")
    return datasets


def make_plans(
    experiment: Experiment,
    datasets: Sequence[Dataset],
    *,
    preset: str | None,
    values: Mapping[str, str],
    seeds: int,
    owner: str = "",
) -> list[Plan]:
    """Every cell on every data set with seeds 0 to ``seeds`` - 1, in the order they are run, for one ``run_owner``.

    A change that the base configuration already has is left out of an ablation.

    Raises:
        UsageError: ``values`` set what the cells vary, or do not fit the configuration; hpedge.toml sets train.mode.
    """
    _check_user_values(experiment, values)
    plans = []
    for dataset in datasets:
        for seed in range(seeds):
            plans += [
                Plan(experiment.name, cell, dataset.name, _config(preset, dataset, values, cell, seed), owner)
                for cell in experiment.cells
            ]
    for plan in plans:
        _check_mode(plan)
    if experiment.name != "ablation":
        return plans
    base = {(plan.dataset, plan.seed): plan.settings() for plan in plans if plan.cell.name == BASE}
    return [plan for plan in plans if plan.cell.name == BASE or plan.settings() != base[plan.dataset, plan.seed]]


def _config(preset: str | None, dataset: Dataset, values: Mapping[str, str], cell: Cell, seed: int) -> Config:
    # A page for every cell would take minutes each; `hpedge report RUN` writes the one that is wanted.
    merged = {"eval.report": "false", **dataset.values, **values, **cell.values, "seed": str(seed)}
    return load_config(preset=preset, project=Path(PROJECT_FILE), values=merged)


def _check_user_values(experiment: Experiment, values: Mapping[str, str]) -> None:
    if "seed" in values:
        raise UsageError("seeds are counted from 0 here; use --seeds N instead of --set seed.")
    if "train.mode" in values:
        raise UsageError("rows read the reports of both stages; leave --set train.mode out.")
    if experiment.name == "ablation":
        return
    varied = {key for cell in experiment.cells for key in cell.values}
    for key in values:
        if key in varied:
            raise UsageError(f"{key} is what {experiment.name} varies; leave --set {key} out.")


def _check_mode(plan: Plan) -> None:
    """A cell can only read the reports of the stages that its configuration trains."""
    mode, reads = plan.config.train.mode, plan.cell.reads
    if reads != "zero_shot" and (mode == "joint") != (reads == "joint"):
        raise UsageError(
            f"{PROJECT_FILE} has train.mode={mode}, but the row {plan.cell.name} reads the report of {reads}; take "
            f"train.mode out of {PROJECT_FILE} for this command."
        )


def donor(plans: Sequence[Plan], plan: Plan) -> Plan | None:
    """The first plan before ``plan`` whose stage 1 is the same, so that it is trained once; else None."""
    own = plan.stage1_settings()
    if own is None or plan.cell.reads == "stage1":
        return None
    for earlier in plans[: plans.index(plan)]:
        if earlier.stage1_settings() == own:
            return earlier
    return None
