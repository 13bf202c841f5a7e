"""``hpedge kernels``: the GPU kernels as files."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hpdval_edge.commands.options import Json

kernels = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Compile the GPU kernels ahead of time.")


@kernels.command()
def build(
    target: Annotated[str, typer.Option(help="Chips, comma-separated, e.g. sm_87 (Orin), sm_110 (Thor).")] = "all",
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or fp32, of the inputs.")] = "fp16",
    width: Annotated[int, typer.Option(help="Width E of the embeddings.")] = 512,
    patches: Annotated[int, typer.Option(help="Patches N of a picture, up to 1024.")] = 196,
    patch_scores: Annotated[bool, typer.Option("--patch-scores", help="Also write the patch similarities.")] = False,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("kernels-built"),
    json_: Json = False,
) -> None:
    """Compile the dual-view head to PTX and cubin, with a manifest. Needs no GPU; each binary is compiled once.

    One binary serves every number of pictures and labels.

    Examples:

      hpedge kernels build

      hpedge kernels build --target sm_87,sm_110 --patches 576 --out birds-kernels

      hpedge kernels build --dtype fp32 --width 768 --json
    """
    from hpdval_edge.export.aot import build as compile_all

    report = compile_all(targets=target, dtype=dtype, width=width, patches=patches, out=out, patch_scores=patch_scores)
    if json_:
        counts = {"out": str(report.out), "compiled": report.compiled, "cached": report.cached}
        typer.echo(json.dumps({**counts, "manifest": report.manifest}))
        return
    typer.echo(as_text(report.manifest["kernels"]))
    typer.echo(f"{report.compiled} compiled, {report.cached} from the cache; written to {report.out}")


def as_text(entries: list[dict[str, Any]]) -> str:
    """A table of what the compiler reports, a line a target."""
    head = ("target", "PTX", "PTX KB", "cubin KB", "registers", "shared KB", "spills", "block", "patches", "fits")
    rows = [
        (
            entry["target"],
            entry["ptx"]["version"],
            f"{entry['ptx']['bytes'] / 1024:.0f}",
            f"{entry['cubin']['bytes'] / 1024:.0f}",
            str(entry["registers"]),
            f"{entry['shared_bytes'] / 1024:.1f}",
            str(entry["spill_bytes"]),
            str(entry["launch"]["block"][0]),
            str(entry["launch"]["max_patches"]),
            entry["fits"],
        )
        for entry in entries
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
    return "\n".join(line.rstrip() for line in lines)
