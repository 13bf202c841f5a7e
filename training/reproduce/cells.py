"""What each experiment runs: the rows of the paper's tables and the points of its sweeps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hpdval_edge.errors import UsageError

PAPER_PATCHES = 196


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of an experiment.

    name: part of the run's name. values: configuration keys that the row sets. reads: the report that is the row's
    result, ``zero_shot`` for the teacher alone, else a stage. post: ``eval.post`` of a zero-shot row.
    """

    name: str
    title: str
    values: Mapping[str, str] = field(default_factory=dict)
    reads: Literal["zero_shot", "stage1", "stage2", "joint"] = "stage2"
    post: Literal["none", "softmax"] = "none"


@dataclass(frozen=True, slots=True)
class Experiment:
    """A table or a sweep. axis: for a sweep, the key it varies; notes: sentences that belong under the table."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    axis: str = ""
    notes: tuple[str, ...] = ()


ZERO_SHOT_ROWS = (
    Cell("clip_zs", "teacher, zero-shot", reads="zero_shot"),
    Cell("clip_zs_softmax", "teacher, zero-shot, softmax over classes", reads="zero_shot", post="softmax"),
)
LOSSES = (
    Cell("bce", "BCE", {"loss.name": "bce"}),
    Cell("mls", "MLS", {"loss.name": "mls"}),
    Cell("cb_focal", "CB focal", {"loss.name": "cb_focal"}),
    Cell("asl", "ASL", {"loss.name": "asl"}),
    Cell("db_focal_batch", "DB focal (one factor a batch)", {"loss.name": "db", "loss.focal": "batch"}),
    Cell("db_focal_element", "DB focal (a factor an element)", {"loss.name": "db", "loss.focal": "element"}),
    Cell("dbstar", "DB*", {"loss.name": "dbstar"}),
)
COMPONENTS = (
    *ZERO_SHOT_ROWS,
    Cell("dval", "DVAL (stage 1)", reads="stage1"),
    Cell("dval_hpt", "DVAL + HPT (stage 2 without SC)", {"sc.weight": "0"}),
    Cell("dval_hpt_sc", "DVAL + HPT + SC"),
    Cell("joint", "joint training", {"train.mode": "joint"}, reads="joint"),
)
PROMPTS = (
    Cell("none", "no learnt prompts (stage 1)", reads="stage1"),
    Cell("global", "global prompts learnt", {"prompt.global": "learn", "prompt.local": "fixed"}),
    Cell("local", "local prompts learnt", {"prompt.global": "fixed", "prompt.local": "learn"}),
    Cell("both", "both learnt", {"prompt.global": "learn", "prompt.local": "learn"}),
)
TABLES = {
    "table1": Experiment(
        "table1", "Table I: long-tailed recognition", (*ZERO_SHOT_ROWS, Cell("hp_dval", "HP-DVAL, this code"))
    ),
    "table3": Experiment("table3", "Table III: classification losses", LOSSES),
    "table5": Experiment("table5", "Table V: components", COMPONENTS),
    "table6": Experiment("table6", "Table VI: learnt prompts", PROMPTS),
}
ALPHAS = ("0", "0.2", "0.4", "0.6", "0.8", "1")
TOPKS = (12, 18, 24, 32, 48, 64)
LENGTHS = ("2", "4", "8", "16", "32", "64")


def sweep(axis: str, patches: int | None = None) -> Experiment:
    """``alpha``, ``topk`` (for a student of ``patches`` patches) or ``prompt-length``: one cell a value."""
    if axis == "alpha":
        return _points(axis, "Fig. 4: weight alpha of the global view", "fuse.alpha", ALPHAS)
    if axis == "topk":
        values, notes = topk_values(patches)
        return _points(axis, "Fig. 4: patches k averaged per class", "fuse.topk", map(str, values), notes)
    if axis == "prompt-length":
        return _points(axis, "Fig. 5: prompt length M", "prompt.length", LENGTHS, also={"prompt.init": "gaussian"})
    raise UsageError(f"sweep {axis!r} is not one of alpha, topk, prompt-length.")


def _points(
    axis: str,
    title: str,
    key: str,
    values: Iterable[str],
    notes: Sequence[str] = (),
    also: Mapping[str, str] | None = None,
) -> Experiment:
    short = key.partition(".")[2].replace("length", "M").replace("topk", "k")
    cells = tuple(Cell(f"{short}{value}", f"{short} = {value}", {key: value, **(also or {})}) for value in values)
    return Experiment(f"sweep-{axis}", title, cells, axis=key, notes=tuple(notes))


def topk_values(patches: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The paper's k of 196 patches; on a smaller grid the same fractions of ``patches``, and a note that says so."""
    if patches >= max(TOPKS):
        return TOPKS, ()
    values = tuple(sorted({max(1, round(k * patches / PAPER_PATCHES)) for k in TOPKS}))
    listed = ", ".join(map(str, TOPKS))
    return values, (f"The student has {patches} patches: k takes the fractions that {listed} are of {PAPER_PATCHES}.",)


def choose_cells(experiment: Experiment, names: Sequence[str], *, always: Sequence[str] = ()) -> tuple[Cell, ...]:
    """The cells called ``names`` in the experiment's order, with those of ``always``; all of them without names."""
    known = [cell.name for cell in experiment.cells]
    for name in names:
        if name not in known:
            raise UsageError(f"{name!r} is no row of {experiment.name}; its rows are {', '.join(known)}.")
    return tuple(cell for cell in experiment.cells if not names or cell.name in (*names, *always))
