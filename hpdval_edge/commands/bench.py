"""``hpedge bench``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.commands.options import MOST_THREADS, Json
from hpdval_edge.errors import UsageError


def bench(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="BUNDLE", help="One, or several to compare; else the last export."),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="As for infer; several, comma-separated, are compared.")] = None,
    batch: Annotated[str, typer.Option(help="Images a call, comma-separated.")] = "1,2,4,8",
    threads: Annotated[int, typer.Option(help="CPU threads, 0 for the engine's choice.", min=0, max=MOST_THREADS)] = 0,
    images: Annotated[list[str] | None, typer.Option(help="Files, folders, globs; repeatable.")] = None,
    jpeg: Annotated[str, typer.Option(help="Size of the pictures drawn where --images names none.")] = "640x480",
    seconds: Annotated[float, typer.Option(help="Time for each row of the table.", min=0)] = 3.0,
    warmup: Annotated[int, typer.Option(help="Calls before that are not timed.", min=0)] = 3,
    build: Annotated[
        bool, typer.Option("--build/--no-build", help="Build the TensorRT engine where there is none yet.")
    ] = True,
    engines: Annotated[Path | None, typer.Option(help="Folder of TensorRT engines; else beside the bundle.")] = None,
    json_: Json = False,
) -> None:
    """Measure the engine alone, and all from the file to the labels: times, images/s, memory, energy, conditions.

    Ctrl-C prints what was measured until then.

    Examples:

      hpedge bench

      hpedge bench model.hpedge --batch 1,8 --images photos/ --json

      hpedge bench fp16.hpedge int8.hpedge --threads 1

      hpedge bench model.hpedge --backend onnxruntime,openvino
    """
    from hpdval_edge.bench.run import BenchOptions, run, start
    from hpdval_edge.bench.text import as_text
    from hpdval_edge.config import PROJECT_FILE, load_config
    from hpdval_edge.infer import last_export

    if backend is None:
        backend = load_config(project=Path(PROJECT_FILE)).infer.backend
    started = start(
        BenchOptions(
            bundles=tuple(bundles or [last_export()]),
            backends=tuple(name.strip() for name in backend.split(",")),
            batches=_batches(batch),
            threads=threads,
            seconds=seconds,
            warmup=warmup,
            images=tuple(images or ()),
            jpeg=jpeg,
            build=build,
            engines=engines,
        )
    )
    interrupted = False
    try:
        run(started)
    except KeyboardInterrupt:
        interrupted = True
    report = started.report(interrupted=interrupted)
    typer.echo(json.dumps(report) if json_ else as_text(report))
    raise typer.Exit(130 if interrupted else 0)


def _batches(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--batch {text!r} is no list of numbers from 1 such as 1,2,4,8.")
    return tuple(map(int, parts))
