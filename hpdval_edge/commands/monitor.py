"""``hpedge monitor``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.commands.options import Json


def monitor(
    folders: Annotated[list[Path], typer.Argument(help="Folders of --monitor.", show_default=False)],
    days: Annotated[int, typer.Option(help="Compare the scores of the last N days.", min=1, max=30)] = 30,
    limit: Annotated[
        float | None, typer.Option(help="Exit with 1 where a label's PSI is this large, and not by chance.", min=0.1)
    ] = None,
    unseen: Annotated[float, typer.Option(help="Days after which a label counts as not seen.", min=0)] = 7.0,
    page: Annotated[Path | None, typer.Option(help="HTML file to write.")] = None,
    json_: Json = False,
) -> None:
    """Tell what a model met in use: how often each label is named, and how far its scores moved from validation.

    Folders of several devices with one bundle are added up. See docs/monitor.md.

    Examples:

      hpedge monitor watch

      hpedge monitor watch --page watch.html

      hpedge monitor door/ gate/ --days 7 --limit 0.25 --json
    """
    from hpdval_edge.atomic import write_text
    from hpdval_edge.errors import UsageError
    from hpdval_edge.monitor.drift import LARGE
    from hpdval_edge.monitor.page import render
    from hpdval_edge.monitor.summary import summarise
    from hpdval_edge.monitor.table import table
    from hpdval_edge.progress import say

    if page is not None and page.is_dir():
        raise UsageError(f"--page {page} is a folder; name a file.")
    summary = summarise(folders, days=days, limit=LARGE if limit is None else limit, unseen_days=unseen)
    typer.echo(json.dumps(summary.to_json()) if json_ else table(summary))
    if page is not None:
        write_text(page, render(summary))
        say(f"page {page}; open it in a browser")
    if limit is not None and not summary.reference:
        raise UsageError(
            f"--limit {limit:g} has nothing to compare with, for the bundle kept no validation scores; export it "
            "again, or calibrate it, and take a new folder."
        )
    raise typer.Exit(1 if limit is not None and summary.drifted else 0)
