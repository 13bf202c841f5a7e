"""``hpedge train``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import Images, Json, Labels, Set, Student, Teacher
from hpdval_edge.errors import UsageError


def train(
    data: Annotated[
        str | None,
        typer.Option(help="Folder or list of labelled pictures, or voc-lt=DIR, coco-lt=DIR; see docs/data.md."),
    ] = None,
    val: Annotated[str | None, typer.Option(help="Validation list; else a part of the training data.")] = None,
    test: Annotated[str | None, typer.Option(help="Test list for the report.")] = None,
    images: Images = None,
    labels: Labels = None,
    preset: Annotated[str | None, typer.Option(help="recommended, paper or release.")] = None,
    teacher: Teacher = None,
    student: Student = None,
    stage: Annotated[str, typer.Option(help="1, 2 or all; 2 takes stage 1 from the last run.")] = "all",
    name: Annotated[str | None, typer.Option(help="Name of the run, a folder in runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the last run, or --name's.")] = False,
    stop_after: Annotated[int | None, typer.Option(help="Stop, resumable, after this many epochs.", min=0)] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Train both stages, or continue a run. Without --data, the built-in demo set.

    Examples:

      hpedge train

      hpedge train --data photos/train.csv --student tf_efficientnet_lite0

      hpedge train --data voc-lt=pascal --preset paper

      hpedge train --teacher ViT-B-16-quickgelu:clip.safetensors --set train.stage1.epochs=10

      hpedge train --resume
    """
    from hpdval_edge.config import PROJECT_FILE, load_config, parse_assignments
    from hpdval_edge.report_table import table

    if stage not in ("1", "2", "all"):
        raise UsageError(f"--stage {stage!r} is not one of 1, 2, all.")
    sources = {"data.path": data, "data.val": val, "data.test": test, "data.images": images, "data.labels": labels}
    values = chosen_values(sources, teacher, student)
    assignments = parse_assignments(set_ or ())
    config = None
    if resume or stage == "2":
        _refuse_settings(values, preset)
    else:
        config = load_config(preset=preset, project=Path(PROJECT_FILE), values={**values, **assignments})
    module = import_from("train", "training.train")
    options = module.TrainOptions(name=name, stage=stage, resume=resume, stop_after=stop_after)
    try:
        run = module.train(config, options, assignments)
    except module.Interrupted as stopped:
        typer.echo(f"{stopped}; continue with: hpedge train --resume", err=True)
        raise typer.Exit(130) from None
    reports = run.read_json("metrics.json")
    if json_:
        typer.echo(json.dumps({"run": str(run.path), "metrics": reports}))
        return
    typer.echo(table(reports))
    typer.echo(f"run {run.path} is done; next: hpedge export --fp16")


def _refuse_settings(values: dict[str, Any], preset: str | None) -> None:
    """UsageError for options that a run that goes on has settings of its own for."""
    given = ", ".join([*values, *(["preset"] if preset else [])])
    if given:
        raise UsageError(f"a run that goes on keeps its own {given}; leave the option out or start a new run.")


def chosen_values(sources: dict[str, str | None], teacher: str | None, student: str | None) -> dict[str, Any]:
    """Configuration keys of the options that were given; paths become absolute."""
    values: dict[str, Any] = data_values(sources)
    if teacher:
        values["teacher.spec"] = teacher
    if student:
        values["student.name"], _, weights = student.partition(":")
        if weights:
            values["student.weights"] = str(Path(weights).absolute())
    return values


def data_values(sources: dict[str, str | None]) -> dict[str, str]:
    """Configuration keys of the data options that were given; ``voc-lt=DIR`` stands for all but ``data.val``."""
    given = {key: value for key, value in sources.items() if value is not None}
    values = {key: str(Path(value).absolute()) for key, value in given.items()}
    if given.get("data.path") == "demo":
        values["data.path"] = "demo"
    if "=" not in given.get("data.path", ""):
        return values
    from hpdval_edge.training.protocols.longtail import protocol_values, split_argument

    chosen = split_argument(given["data.path"])
    if chosen is None:
        return values
    fixed = protocol_values(*chosen)
    clash = [key for key in given if key in fixed and key != "data.path"]
    if clash:
        raise UsageError(f"--data {given['data.path']} brings its own {', '.join(clash)}; leave those options out.")
    return {**values, **fixed}
