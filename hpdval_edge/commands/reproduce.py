"""``hpedge reproduce``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import Json, Set, Student, Teacher
from hpdval_edge.errors import UsageError

Data = Annotated[
    list[str] | None,
    typer.Option(help="demo, voc-lt=DIR, coco-lt=DIR, or a folder or list; repeatable. Default demo."),
]
Preset = Annotated[str | None, typer.Option(help="recommended, paper or release, under every row.")]
Seeds = Annotated[int, typer.Option(help="Runs a row, with seeds 0 to N-1.", min=1)]
Cells = Annotated[str | None, typer.Option(help="Only these rows, comma-separated, e.g. bce,dbstar.")]


def reproduce(
    table: Annotated[str, typer.Argument(help="table1, table2, table3, table5, table6 or ablation.")],
    data: Data = None,
    teacher: Teacher = None,
    student: Student = None,
    preset: Preset = None,
    seeds: Seeds = 1,
    cells: Cells = None,
    change: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE[,KEY=VALUE]", help="A change of your own for ablation; repeatable."),
    ] = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; else reproduce/TABLE.")] = None,
    json_: Json = False,
) -> None:
    """Run a table of the paper cell by cell and write it beside the paper's numbers.

    A finished cell is not run again, so the same command goes on after an interruption. table2 needs
    --data voc2007=DIR or coco2014=DIR.

    Examples:

      hpedge reproduce table3

      hpedge reproduce table5 --data voc-lt=photos --preset paper --seeds 3

      hpedge reproduce ablation --seeds 3 --change kd.weight=0.5,train.ema=0.998
    """
    module = import_from("train", "training.reproduce.experiment")
    options = experiment_options(module, data, teacher, student, preset, seeds, cells, set_, out, change)
    finish(lambda: module.reproduce(table, options), json_)


def experiment_options(
    module: Any,
    data: list[str] | None,
    teacher: str | None,
    student: str | None,
    preset: str | None,
    seeds: int,
    cells: str | None,
    set_: list[str] | None,
    out: Path | None,
    change: list[str] | None = None,
) -> Any:
    """The options that reproduce and sweep share, as ``experiment.Options``."""
    from hpdval_edge.commands.train import chosen_values
    from hpdval_edge.config import parse_assignments

    names = [name.strip() for name in (cells or "").split(",") if name.strip()]
    if cells is not None and not names:
        raise UsageError(f"--cells {cells!r} names no row; give names such as bce,dbstar or leave it out.")
    return module.Options(
        data=data or (),
        preset=preset,
        values={**chosen_values({"data.path": None}, teacher, student), **parse_assignments(set_ or ())},
        seeds=seeds,
        cells=names,
        changes=change or (),
        out=out,
    )


def finish(run: Callable[[], Any], json_: bool) -> None:
    """Run an experiment, print its table or JSON; exit code 130 when interrupted, 1 when a cell has no result."""
    interrupted = import_from("train", "training.train").Interrupted
    try:
        writer = run()
    except (interrupted, KeyboardInterrupt):
        typer.echo("interrupted; finished cells are kept, go on with the same command", err=True)
        raise typer.Exit(130) from None
    if json_:
        as_entry = import_from("train", "training.reproduce.results").as_entry
        cells = [as_entry(result) for result in writer.results]
        typer.echo(json.dumps({"experiment": writer.experiment.name, "out": str(writer.out), "cells": cells}))
    else:
        typer.echo((writer.out / "table.md").read_text(encoding="utf-8"))
        typer.echo(f"written to {writer.out}: table.md, results.csv, figure.png, figure.svg, cells.json")
    raise typer.Exit(1 if any(result.error for result in writer.results) else 0)
