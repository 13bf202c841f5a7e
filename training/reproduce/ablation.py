"""``hpedge reproduce ablation``: one change of the base configuration at a time, compared seed by seed."""

import re
from collections.abc import Sequence

from hpdval_edge.config import parse_assignments
from hpdval_edge.errors import UsageError
from hpdval_edge.training.reproduce.cells import Cell, Experiment

BASE = "base"
# Key -> the values tried; one that equals the base's own is left out by the runner.
CHANGES = {
    "loss.pos_scale": ("one_plus", "none"),
    "loss.rebalance": ("instance", "none"),
    "loss.kappa_mode": ("code",),
    "loss.focal": ("element", "batch"),
    "prompt.init": ("words",),
    "sc.target": ("local", "both"),
    "train.ema": ("0.998",),
    "sim.logit_scale": ("1", "5", "10", "50", "100", "learn"),
    "train.stage1.head_lr_mult": ("3", "10"),
    "train.sched": ("constant",),
    "data.sampler": ("class_aware",),
    "kd.weight": ("0", "0.1", "0.3"),
}


def ablation(changes: Sequence[str] = ()) -> Experiment:
    """The base, CHANGES one at a time, and ``changes`` of the user, each "key=value" or "key=value,key=value"."""
    listed = [{key: value} for key, values in CHANGES.items() for value in values]
    own = [parse_change(text) for text in changes]
    cells = {cell.name: cell for cell in (_cell(values) for values in (*listed, *own))}
    return Experiment("ablation", "Ablation: one change at a time", (Cell(BASE, "base"), *cells.values()))


def parse_change(text: str) -> dict[str, str]:
    """ "a=1,b=2" -> {"a": "1", "b": "2"}."""
    try:
        return parse_assignments(text.split(","))
    except UsageError:
        raise UsageError(f"--change {text!r} is not of the form key=value[,key=value].") from None


def _cell(values: dict[str, str]) -> Cell:
    title = ", ".join(f"{key}={value}" for key, value in values.items())
    reads = "joint" if values.get("train.mode") == "joint" else "stage2"
    return Cell(re.sub(r"[^A-Za-z0-9._]+", "-", title), title, values, reads=reads)
