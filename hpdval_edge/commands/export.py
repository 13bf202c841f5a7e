"""``hpedge export``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import Json, Run


def export(
    run: Run = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half-precision weights, float32 where it matters.")] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="8-bit layers for CPUs, kept if faster; with --fp16 for TensorRT, docs/export.md."),
    ] = False,
    to: Annotated[
        str,
        typer.Option(
            help="onnx, pt2 (torch.export), torchscript (deprecated by PyTorch); triton-repo and deepstream, folders "
            "beside the bundle for those servers; comma-separated."
        ),
    ] = "onnx",
    input_: Annotated[
        str, typer.Option("--input", help="float32, float16 or uint8 (levels; normalised inside the model).")
    ] = "float32",
    target: Annotated[
        str, typer.Option(help="Chips to put GPU kernels into the bundle for, e.g. sm_87,sm_110, or all.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="NAME.hpedge; else runs/<run>/model.hpedge.")] = None,
    json_: Json = False,
) -> None:
    """Write a run as a bundle and verify it against PyTorch on real pictures.

    Examples:

      hpedge export --fp16

      hpedge export runs/birds --to onnx,pt2 --out birds.hpedge

      hpedge export --fp16 --input uint8 --target sm_87

      hpedge export --int8

      hpedge export --fp16 --to triton-repo
    """
    from hpdval_edge.config import PROJECT_FILE, load_config

    project = load_config(project=Path(PROJECT_FILE))
    precision = "-".join(["int8"] * int8 + ["fp16"] * fp16) or project.export.precision
    module = import_from("train,export", "export.export")
    find_run = import_from("train,export", "training.run_folder").find_run
    targets = tuple(part.strip() for part in to.split(",") if part.strip())
    report = module.export(
        find_run(run),
        precision=precision,
        targets=targets,
        out=out,
        chips=target,
        image_dtype=input_,
        int8_budget=project.export.int8_budget,
    )
    if json_:
        fields = ("precision", "max_error", "tolerance", "label_flips", "pictures", "megabytes", "kernels", "served")
        result = {"bundle": str(report.path), **{name: getattr(report, name) for name in fields}}
        typer.echo(json.dumps({**result, "int8": report.int8 and asdict(report.int8)}))
        return
    for line in report.int8.lines() if report.int8 else ():
        typer.echo(line)
    for engine, error in report.max_error.items():
        typer.echo(
            f"{engine} {report.precision}: max |score difference| {error:.1e} on {report.pictures} pictures, "
            f"{report.tolerance:.0e} allowed; {report.label_flips[engine]} labels change"
        )
    if report.kernels:
        typer.echo(f"GPU kernels for {', '.join(report.kernels)} are inside, compiled and not run")
    for server, folder in report.served.items():
        typer.echo(f"{server} {folder}/ is written, not run in that server; README.md in it says how to start it")
    typer.echo(f"bundle {report.path} ({report.megabytes:.1f} MB) is verified; next: hpedge infer images/")
