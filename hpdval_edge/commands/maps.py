"""``hpedge maps``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import Json
from hpdval_edge.errors import UsageError

VIEWS = ("local", "global", "both")


def maps(
    images: Annotated[list[str], typer.Argument(help="Files, folders, globs.", show_default=False)],
    label: Annotated[str, typer.Option("--class", metavar="LABEL", help="The label to look for.", show_default=False)],
    run: Annotated[str | None, typer.Option(help="A run; else the last one.")] = None,
    view: Annotated[str, typer.Option(help="local, global or both.")] = "both",
    out: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("maps"),
    json_: Json = False,
) -> None:
    """Show where a run, and plain CLIP beside it, see a label in pictures.

    Local view: the cosine of every patch with the label's local prompt. Global view: how much every patch raises the
    class token's cosine with its global prompt.

    Examples:

      hpedge maps photo.jpg --class pizza

      hpedge maps photos/ --class pizza --view local --run runs/food --out pizza-maps
    """
    if view not in VIEWS:
        raise UsageError(f"--view {view!r} is not one of {', '.join(VIEWS)}.")
    find_run = import_from("train", "training.run_folder").find_run
    module = import_from("train", "training.maps_panel")
    written, failed = module.write_maps(find_run(run), images, label, view, out)
    if json_:
        typer.echo(json.dumps({"class": label, "maps": written, "failed": failed}))
    else:
        for entry in written:
            typer.echo(entry["map"])
    raise typer.Exit(3 if failed else 0)
