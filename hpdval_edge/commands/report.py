"""``hpedge report``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import Json, Run


def report(
    run: Run = None,
    out: Annotated[Path | None, typer.Option(help="HTML file; else runs/<run>/report.html.")] = None,
    monitor: Annotated[
        list[Path] | None, typer.Option(help="Folder of `hpedge infer --monitor` to take in; repeatable.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write what a run learnt as one HTML file that needs no network, with its figures as SVG files in plots/.

    Examples:

      hpedge report

      hpedge report runs/birds --out birds.html --monitor watch
    """
    find_run = import_from("train", "training.run_folder").find_run
    written = import_from("train", "training.report").build_report(find_run(run), out, monitor or ())
    if json_:
        content = {"report": str(written.path), "plots": [str(path) for path in written.plots], "notes": written.notes}
        typer.echo(json.dumps(content))
        return
    typer.echo(f"report {written.path} ({written.path.stat().st_size / 1e6:.1f} MB); open it in a browser")
