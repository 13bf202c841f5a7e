"""``hpedge infer``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.errors import UsageError


def infer(
    images: Annotated[list[str], typer.Argument(help="Files, folders, globs.", show_default=False)],
    model: Annotated[Path | None, typer.Option(help="A bundle; else the last export.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="auto, tensorrt, tensorrt-rtx, onnxruntime, openvino, openvino-bf16, torchscript, pt2."),
    ] = None,
    threshold: Annotated[str | None, typer.Option(help="'fitted' (on validation) or one score for all labels.")] = None,
    top: Annotated[int | None, typer.Option(help="The N best labels, whatever their scores.", min=1)] = None,
    format_: Annotated[str, typer.Option("--format", help="table, jsonl or csv.")] = "table",
    overlay: Annotated[Path | None, typer.Option(help="Folder for pictures with labels and heat maps.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures a step.", min=1)] = 8,
    threads: Annotated[int, typer.Option(help="CPU threads, 0 for the engine's choice.", min=0)] = 0,
    build: Annotated[
        bool, typer.Option("--build/--no-build", help="Build the TensorRT engine where there is none yet.")
    ] = True,
    engines: Annotated[Path | None, typer.Option(help="Folder of TensorRT engines; else beside the bundle.")] = None,
) -> None:
    """Name what pictures show. A folder is searched for pictures; a bad picture is reported and the rest goes on.

    Examples:

      hpedge infer images/

      hpedge infer photo.jpg --model birds.hpedge --top 3 --overlay overlays

      hpedge infer images/ --format jsonl > labels.jsonl
    """
    from hpdval_edge import infer as module
    from hpdval_edge.config import PROJECT_FILE, load_config
    from hpdval_edge.outputs.overlays import Overlays
    from hpdval_edge.outputs.text import FORMATS, text_output
    from hpdval_edge.predictor import Predictor
    from hpdval_edge.progress import say
    from hpdval_edge.sources.pictures import Pictures

    if format_ not in FORMATS:
        raise UsageError(f"--format {format_!r} is not one of {', '.join(FORMATS)}.")
    project = load_config(project=Path(PROJECT_FILE)).infer
    predictor = Predictor(
        model or module.last_export(),
        backend or project.backend,
        threshold=threshold or project.threshold,
        top=top,
        threads=threads,
        build=build,
        engines=engines,
    )
    source = Pictures(images)
    outputs = [text_output(format_, sys.stdout, predictor.labels)]
    if overlay:
        outputs.append(Overlays(overlay, predictor.labels, predictor.thresholds))
    done, failed = module.infer(predictor, source, outputs, batch=batch)
    summary = f"{done} of {done + failed} pictures"
    say(f"{summary}, overlays in {overlay}/" if overlay else summary)
    raise typer.Exit(3 if failed else 0)
