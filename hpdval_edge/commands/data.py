"""``hpedge data``: look at labelled pictures before training on them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.commands.options import Images, Json, Labels

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check, split and convert labelled pictures; check a folder against VOC-LT or COCO-LT.",
)
Source = Annotated[str, typer.Argument(metavar="PATH", help="What hpedge train --data takes.", show_default=False)]
Folder = Annotated[Path, typer.Option("--images", help="Folder with the downloaded pictures.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Folder to write to.", show_default=False)]
To = Annotated[str, typer.Option(help="csv or list.")]


@data.command("voc-lt")
def voc_lt(images: Folder, json_: Json = False) -> None:
    """Is every picture of VOC-LT there? Exit code 1 if some are missing, 3 if some cannot be read.

    Examples:

      hpedge data voc-lt --images ~/pascal
    """
    _check_protocol("voc-lt", images, json_)


@data.command("coco-lt")
def coco_lt(images: Folder, json_: Json = False) -> None:
    """Is every picture of COCO-LT there? Exit code 1 if some are missing, 3 if some cannot be read.

    Examples:

      hpedge data coco-lt --images ~/coco --json
    """
    _check_protocol("coco-lt", images, json_)


@data.command()
def check(path: Source, images: Images = None, labels: Labels = None, json_: Json = False) -> None:
    """What would training read? Exit code 3 if it cannot, or if a picture cannot be read.

    Examples:

      hpedge data check photos/train.csv

      hpedge data check voc-lt=pascal
    """
    from hpdval_edge.training import readers_check

    report = readers_check.check_data(_config(path, images, labels))
    typer.echo(json.dumps(report) if json_ else "\n".join(readers_check.describe(report)))
    raise typer.Exit(3 if report["unreadable"] else 0)


@data.command()
def split(
    path: Source,
    out: Out,
    fraction: Annotated[float | None, typer.Option(help="Share of validation; else data.val_fraction, 0.15.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides the split; else the configuration's, 0.")] = None,
    to: To = "csv",
    images: Images = None,
    labels: Labels = None,
) -> None:
    """Write the training and validation parts that training would make, and the test part where there is one.

    Examples:

      hpedge data split photos/all.csv --out photos/split --fraction 0.2
    """
    from hpdval_edge.progress import say
    from hpdval_edge.training.readers_check import read_configured
    from hpdval_edge.training.readers_write import write_parts

    chosen = {"data.val_fraction": fraction, "seed": seed}
    values = {key: str(value) for key, value in chosen.items() if value is not None}
    splits = read_configured(_config(path, images, labels, **values))
    for note in splits.notes:
        say(f"note: {note}")
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    _echo_files(write_parts(out, {name: part for name, part in parts.items() if part is not None}, to))


@data.command()
def convert(path: Source, out: Out, to: To = "csv", images: Images = None, labels: Labels = None) -> None:
    """Write the parts that are there, of any layout, as CSV tables or lists.

    Examples:

      hpedge data convert coco/annotations/instances_val2017.json --out tables

      hpedge data convert VOCdevkit/VOC2007 --out lists --to list
    """
    from hpdval_edge.training.readers_check import configured_parts
    from hpdval_edge.training.readers_write import write_parts

    _echo_files(write_parts(out, configured_parts(_config(path, images, labels)), to))


def _config(path: str, images: str | None, labels: str | None, **values: str):
    """Configuration of a run on ``path``, with what the project file says."""
    from hpdval_edge.commands.train import data_values
    from hpdval_edge.config import PROJECT_FILE, load_config

    sources = data_values({"data.path": path, "data.images": images, "data.labels": labels})
    return load_config(project=Path(PROJECT_FILE), values={**sources, **values})


def _check_protocol(name: str, images: Path, json_: bool) -> None:
    from hpdval_edge.training.protocols.check import check_protocol, describe

    report = check_protocol(name, images)
    typer.echo(json.dumps(report) if json_ else "\n".join(describe(report)))
    missing = any(count["missing"] for count in report["splits"].values())
    if not json_ and not missing and not report["unreadable"]:
        typer.echo(f"all there; next: hpedge train --data {name}={images}")
    raise typer.Exit(3 if report["unreadable"] else 1 if missing else 0)


def _echo_files(files: list[Path]) -> None:
    for file in files:
        typer.echo(str(file))
