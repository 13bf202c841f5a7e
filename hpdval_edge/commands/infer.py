"""``hpedge infer``."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.commands.options import MOST_THREADS
from hpdval_edge.errors import UsageError


def infer(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, folders, globs, zip and tar archives, films, camera:0, csi:0, rtsp:// or http:// streams.",
            show_default=False,
        ),
    ],
    model: Annotated[Path | None, typer.Option(help="A bundle; else the last export.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="auto, tensorrt, tensorrt-rtx, onnxruntime, openvino, openvino-bf16, torchscript, pt2."),
    ] = None,
    threshold: Annotated[str | None, typer.Option(help="'fitted' (on validation) or one score for all labels.")] = None,
    top: Annotated[int | None, typer.Option(help="The N best labels, whatever their scores.", min=1)] = None,
    format_: Annotated[str, typer.Option("--format", help="table, jsonl or csv.")] = "table",
    output: Annotated[Path | None, typer.Option(help="File for the results: .jsonl, .csv or .parquet.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --output FILE: leave out what it holds, add the rest.")
    ] = False,
    overlay: Annotated[
        Path | None, typer.Option(help="Folder for pictures with labels and heat maps, and for films with labels.")
    ] = None,
    maps: Annotated[Path | None, typer.Option(help="Folder for heat maps, a PNG a picture and label.")] = None,
    map_label: Annotated[
        list[str] | None, typer.Option(help="Label of the heat maps; else each picture's best. Repeatable.")
    ] = None,
    map_raw: Annotated[bool, typer.Option("--map-raw", help="Also the maps' float32 values, as .npz.")] = False,
    to: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Send results to mqtt[s]://HOST/TOPIC or POST them to http[s]://…"),
    ] = None,
    monitor: Annotated[Path | None, typer.Option(help="Folder that counts what comes, see `hpedge monitor`.")] = None,
    monitor_copies: Annotated[
        bool, typer.Option("--monitor-copies", help="Keep copies of the pictures that the monitor wants looked at.")
    ] = False,
    batch: Annotated[int | None, typer.Option(help="Pictures a step; else 8 on a GPU and 2 on a CPU.", min=1)] = None,
    threads: Annotated[int, typer.Option(help="CPU threads, 0 for all.", min=0, max=MOST_THREADS)] = 0,
    exact_decode: Annotated[
        bool, typer.Option("--exact-decode", help="Decode large JPEG files at full size, see docs/preprocess.md.")
    ] = False,
    build: Annotated[
        bool, typer.Option("--build/--no-build", help="Build the TensorRT engine where there is none yet.")
    ] = True,
    engines: Annotated[Path | None, typer.Option(help="Folder of TensorRT engines; else beside the bundle.")] = None,
    every: Annotated[int, typer.Option(help="Each N-th frame of films, cameras and streams.", min=1)] = 1,
    fps: Annotated[
        float | None, typer.Option(help="At most so many frames a second of them.", min=0.001, max=1e6)
    ] = None,
    duration: Annotated[float | None, typer.Option(help="So many seconds of them.", min=0.001)] = None,
    max_frames: Annotated[int | None, typer.Option(help="Pictures and frames in all.", min=1, max=sys.maxsize)] = None,
    retries: Annotated[
        int | None, typer.Option(help="Attempts to reach a camera or stream again; endless if not given.", min=0)
    ] = None,
    stall: Annotated[float, typer.Option(help="Seconds without a frame after which a stream is lost.", min=0.1)] = 10.0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Take pictures as they appear in folders; follow a bundle that changes.")
    ] = False,
    gstreamer: Annotated[
        bool, typer.Option("--gstreamer", help="Cameras and streams through GStreamer, on a Jetson its hardware.")
    ] = False,
) -> None:
    """Name what pictures show. A folder is searched for pictures; a bad picture is reported and the rest goes on.

    Examples:

      hpedge infer images/

      hpedge infer photo.jpg --model birds.hpedge --top 3 --overlay overlays

      hpedge infer images/ --output labels.parquet

      hpedge infer images/ --output labels.jsonl --resume

      hpedge infer images/ --maps maps --map-label pizza --map-raw

      hpedge infer clip.mp4 --fps 2

      hpedge infer rtsp://user:password@camera/stream --fps 5 --to mqtt://broker.local/cameras/door --monitor watch
    """
    from hpdval_edge import infer as module
    from hpdval_edge.config import PROJECT_FILE, load_config
    from hpdval_edge.outputs.chosen import OutputOptions, open_outputs
    from hpdval_edge.outputs.output import ModelInfo
    from hpdval_edge.pipeline import schedule
    from hpdval_edge.predictor import Predictor
    from hpdval_edge.progress import say
    from hpdval_edge.sources.open import open_source
    from hpdval_edge.sources.options import SourceOptions

    # Services are stopped with it; then all is kept that Ctrl-C keeps.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = OutputOptions(
        format_, output, overlay, maps, map_label or (), map_raw, to or (), monitor, monitor_copies, resume
    )
    options.check()
    if watch and options.has_columns():
        raise UsageError("--watch may change the labels, which are columns of CSV and Parquet; take jsonl instead.")
    taken = SourceOptions(every, fps, duration, retries, stall, gstreamer, watch, exact_decode)
    source = open_source(images, taken, max_frames)
    plan = schedule(threads, source.live)
    project = load_config(project=Path(PROJECT_FILE)).infer
    predictor = Predictor(
        model or module.last_export(),
        project.backend if backend is None else backend,
        threshold=project.threshold if threshold is None else threshold,
        top=top,
        threads=plan.engine_threads,
        build=build,
        engines=engines,
    )
    info = ModelInfo.of(predictor.bundle, predictor.thresholds)
    frames = source
    if resume:
        from hpdval_edge.outputs.resume import remaining

        frames = remaining(source, output, info, top)
    outputs = open_outputs(options, predictor.bundle, info, sys.stdout)
    try:
        done, failed = module.infer(predictor, frames, outputs, plan=plan, batch=batch, watch=watch)
    finally:
        for line in source.summaries():
            say(line)
    summary = f"{done} of {done + failed} pictures"
    if resume:
        summary += f", {frames.left_out} more were in {output} already"
    say(f"{summary}, overlays in {overlay}/" if overlay else summary)
    if to:
        from hpdval_edge.outputs.messages import check_arrival

        check_arrival(outputs)
    raise typer.Exit(3 if failed else 0)
