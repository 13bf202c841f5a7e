"""``hpedge sweep``."""

from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import Json, Set, Student, Teacher
from hpdval_edge.commands.reproduce import Cells, Data, Preset, Seeds, experiment_options, finish


def sweep(
    axis: Annotated[str, typer.Argument(help="alpha, topk or prompt-length.")],
    eval_only: Annotated[
        bool, typer.Option("--eval-only", help="Train once and score with each value of alpha or topk.")
    ] = False,
    data: Data = None,
    teacher: Teacher = None,
    student: Student = None,
    preset: Preset = None,
    seeds: Seeds = 1,
    cells: Cells = None,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; else reproduce/sweep-AXIS, or -eval with --eval-only.")
    ] = None,
    json_: Json = False,
) -> None:
    """Run the paper's sweep over alpha, k or the prompt length (Figs 4 and 5), a run a value.

    A finished value is not run again, so the same command goes on after an interruption.

    Examples:

      hpedge sweep alpha --eval-only

      hpedge sweep topk --data voc-lt=photos --preset paper

      hpedge sweep prompt-length --seeds 3
    """
    module = import_from("train", "training.reproduce.experiment")
    options = experiment_options(module, data, teacher, student, preset, seeds, cells, set_, out)
    finish(lambda: module.sweep_values(axis, options, eval_only=eval_only), json_)
