"""The ``hpedge`` command: parse, call one function, print, set the exit code. Heavy imports stay in the commands."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import hpdval_edge
from hpdval_edge.errors import HpedgeError, MissingDependency, UsageError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a multi-label recogniser with CLIP's help, export it, run it on small boards.",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a configuration key, e.g. loss.name=db; repeatable."),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hpedge {hpdval_edge.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(
    help="""Train both stages, or continue a run. Without --data, the built-in demo set.

Examples:

  hpedge train

  hpedge train --data photos/train.csv --student tf_efficientnet_lite0

  hpedge train --teacher ViT-B-16-quickgelu:clip.safetensors --set train.stage1.epochs=10

  hpedge train --resume
"""
)
def train(
    data: Annotated[str | None, typer.Option(help="Folder or list of labelled pictures, see docs/data.md.")] = None,
    val: Annotated[str | None, typer.Option(help="Validation list; else a part of the training data.")] = None,
    test: Annotated[str | None, typer.Option(help="Test list for the report.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder that the paths in the lists start from.")] = None,
    labels: Annotated[str | None, typer.Option(help="File of label names, one a line, in column order.")] = None,
    preset: Annotated[str | None, typer.Option(help="recommended, paper or release.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="demo, NAME:TAG, NAME:FILE or CONFIG.json:FILE of open_clip.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="A timm model NAME or NAME:FILE; else chosen by the preset.")
    ] = None,
    stage: Annotated[str, typer.Option(help="1, 2 or all; 2 takes stage 1 from the last run.")] = "all",
    name: Annotated[str | None, typer.Option(help="Name of the run, a folder in runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the last run, or --name's.")] = False,
    stop_after: Annotated[int | None, typer.Option(help="Stop, resumable, after this many epochs.", min=0)] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    from hpdval_edge.config import PROJECT_FILE, load_config, parse_assignments
    from hpdval_edge.report_table import table

    if stage not in ("1", "2", "all"):
        raise UsageError(f"--stage {stage!r} is not one of 1, 2, all.")
    sources = {"data.path": data, "data.val": val, "data.test": test, "data.images": images, "data.labels": labels}
    values = _chosen(sources, teacher, student)
    assignments = parse_assignments(set_ or ())
    continued = resume or stage == "2"
    if continued and (values or preset):
        given = ", ".join([*values, *(["preset"] if preset else [])])
        raise UsageError(f"a run that goes on keeps its own {given}; leave the option out or start a new run.")
    config = None
    if not continued:
        config = load_config(preset=preset, project=Path(PROJECT_FILE), values={**values, **assignments})
    module = _training("train")
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


def _chosen(sources: dict[str, str | None], teacher: str | None, student: str | None) -> dict[str, Any]:
    """Configuration keys of the options that were given; paths become absolute."""
    values: dict[str, Any] = {key: str(Path(value).absolute()) for key, value in sources.items() if value is not None}
    if sources["data.path"] == "demo":
        values["data.path"] = "demo"
    if teacher:
        values["teacher.spec"] = teacher
    if student:
        values["student.name"], _, weights = student.partition(":")
        if weights:
            values["student.weights"] = str(Path(weights).absolute())
    return values


@app.command(
    help="""Measure a run or a bundle on labelled pictures, with the same code.

Examples:

  hpedge eval runs/birds --data photos/test.csv

  hpedge eval runs/birds/model.hpedge --data photos/test.csv --json
"""
)
def eval(
    model: Annotated[str | None, typer.Argument(help="A run or a bundle; else the last run.")] = None,
    data: Annotated[str | None, typer.Option(help="Labelled pictures; else the run's own test split.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder that the paths in the list start from.")] = None,
    backend: Annotated[str, typer.Option(help="Engine for a bundle.")] = "auto",
    json_: Json = False,
) -> None:
    from hpdval_edge.report_table import table

    result = _training("measure").measure(model, data=data, images=images, backend=backend)
    typer.echo(json.dumps(result) if json_ else table({result["model"]: result}))


@app.command(
    help="""Write a run as a bundle and verify it against PyTorch on real pictures.

Examples:

  hpedge export --fp16

  hpedge export runs/birds --to onnx,torchscript --out birds.hpedge
"""
)
def export(
    run: Annotated[str | None, typer.Argument(help="A run; else the last one.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half-precision weights, float32 where it matters.")] = False,
    to: Annotated[
        str, typer.Option(help="onnx, torchscript (deprecated by PyTorch, for users who load it), comma-separated.")
    ] = "onnx",
    out: Annotated[Path | None, typer.Option(help="NAME.hpedge; else runs/<run>/model.hpedge.")] = None,
    json_: Json = False,
) -> None:
    from hpdval_edge.config import PROJECT_FILE, load_config

    project = load_config(project=Path(PROJECT_FILE))
    precision = "fp16" if fp16 else project.export.precision
    try:
        from hpdval_edge.export import export as module
        from hpdval_edge.training.run_folder import find_run
    except ImportError as error:
        raise _missing(error, "train,export") from error
    targets = tuple(part.strip() for part in to.split(",") if part.strip())
    report = module.export(find_run(run), precision=precision, targets=targets, out=out)
    if json_:
        fields = ("precision", "max_error", "tolerance", "label_flips", "pictures", "megabytes")
        typer.echo(json.dumps({"bundle": str(report.path), **{name: getattr(report, name) for name in fields}}))
        return
    for target, error in report.max_error.items():
        typer.echo(
            f"{target} {report.precision}: max |score difference| {error:.1e} on {report.pictures} pictures, "
            f"{report.tolerance:.0e} allowed; {report.label_flips[target]} labels change"
        )
    typer.echo(f"bundle {report.path} ({report.megabytes:.1f} MB) is verified; next: hpedge infer images/")


@app.command(
    help="""Name what pictures show. A folder is searched for pictures; a bad picture is reported and the rest goes on.

Examples:

  hpedge infer images/

  hpedge infer photo.jpg --model birds.hpedge --top 3 --overlay overlays

  hpedge infer images/ --format jsonl > labels.jsonl
"""
)
def infer(
    images: Annotated[list[str], typer.Argument(help="Files, folders, globs.", show_default=False)],
    model: Annotated[Path | None, typer.Option(help="A bundle; else the last export.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, onnxruntime or torchscript.")] = None,
    threshold: Annotated[str | None, typer.Option(help="'fitted' (on validation) or one score for all labels.")] = None,
    top: Annotated[int | None, typer.Option(help="The N best labels, whatever their scores.", min=1)] = None,
    format_: Annotated[str, typer.Option("--format", help="table, jsonl or csv.")] = "table",
    overlay: Annotated[Path | None, typer.Option(help="Folder for pictures with labels and heat maps.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures a step.", min=1)] = 8,
    threads: Annotated[int, typer.Option(help="CPU threads, 0 for the engine's choice.", min=0)] = 0,
) -> None:
    from hpdval_edge import infer as module
    from hpdval_edge.config import PROJECT_FILE, load_config
    from hpdval_edge.predictor import Predictor

    if format_ not in module.FORMATS:
        raise UsageError(f"--format {format_!r} is not one of {', '.join(module.FORMATS)}.")
    project = load_config(project=Path(PROJECT_FILE)).infer
    predictor = Predictor(
        model or module.last_export(),
        backend or project.backend,
        threshold=threshold or project.threshold,
        top=top,
        threads=threads,
    )
    failed = module.infer(predictor, images, format_=format_, overlay=overlay, batch=batch)
    raise typer.Exit(3 if failed else 0)


def _training(module: str) -> Any:
    """Import ``hpdval_edge.training.<module>``; MissingDependency names the extra where its packages are absent."""
    import importlib

    try:
        return importlib.import_module(f"hpdval_edge.training.{module}")
    except ImportError as error:
        raise _missing(error, "train") from error


def _missing(error: ImportError, extra: str) -> MissingDependency:
    return MissingDependency(f"{error.name or error} is not installed; run: pip install 'hpdval-edge[{extra}]'.")


def main() -> None:
    """Entry point: every HpedgeError becomes one line on stderr and its exit code."""
    try:
        app(standalone_mode=True)
    except HpedgeError as error:
        typer.echo(f"hpedge: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("hpedge: interrupted; finished files are kept.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) has left: nothing to report, and stdout must not be flushed again.
        sys.stderr.close()
        sys.exit(0)
