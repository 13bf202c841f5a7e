"""``hpedge build``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.commands.options import Json
from hpdval_edge.errors import UsageError


def build(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle; else the last export.")] = None,
    backend: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.")] = "tensorrt",
    head: Annotated[str, typer.Option(help="auto, qdp-aot, plugin-so or onnx.")] = "auto",
    batch: Annotated[int, typer.Option(help="Most pictures a step.", min=1)] = 8,
    labels: Annotated[int, typer.Option(help="Most labels, 0 for twice the bundle's, at least 1024.", min=0)] = 0,
    workspace: Annotated[int, typer.Option(help="MiB that TensorRT may take for its trials.", min=16)] = 1024,
    level: Annotated[int, typer.Option(help="TensorRT's optimisation level.", min=0, max=5)] = 3,
    timeout: Annotated[float, typer.Option(help="Seconds after which a build is stopped.", min=1)] = 3600,
    target: Annotated[str, typer.Option(help="tensorrt-rtx: chips, e.g. sm_86,sm_89; needs no GPU.")] = "",
    engines: Annotated[Path | None, typer.Option(help="Folder for engines; else beside the bundle.")] = None,
    json_: Json = False,
) -> None:
    """Build the TensorRT engine of a bundle on this machine, check it on real pictures, and keep it.

    An engine already built for this bundle, TensorRT, GPU and driver is found again, not built.

    Examples:

      hpedge build

      hpedge build birds.hpedge --batch 16 --head onnx

      hpedge build birds.hpedge --backend tensorrt-rtx --target sm_86,sm_89
    """
    from hpdval_edge.infer import last_export
    from hpdval_edge.trt.build import BuildOptions, build_engine
    from hpdval_edge.trt.flavour import MODULES
    from hpdval_edge.watch import load_unchanged

    if backend not in MODULES:
        raise UsageError(f"--backend {backend!r} is not one of {', '.join(MODULES)}.")
    options = BuildOptions(backend, head, batch, labels, workspace, level, timeout, target, engines)
    built = build_engine(load_unchanged(bundle or last_export())[1], options)
    record = built.record
    if json_:
        typer.echo(
            json.dumps(
                {
                    "engine": str(built.plan.path),
                    "cached": built.cached,
                    "verified": bool(record.golden),
                    **asdict(record),
                }
            )
        )
        return
    typer.echo(
        f"{record.key.software}, {', '.join(record.key.chips)}, head {record.key.head.split()[0]}, {record.rung}: "
        + ("found, built before" if built.cached else f"built in {record.seconds:.0f} s at level {record.level}")
    )
    if record.golden:
        typer.echo(f"max |score difference| {record.max_error:.1e}; {record.label_flips} labels change")
    else:
        typer.echo("not checked: there is no GPU here; `hpedge infer` checks it on the first GPU that it runs on")
    typer.echo(f"engine {built.plan.path} ({built.plan.path.stat().st_size / 1e6:.1f} MB)")
