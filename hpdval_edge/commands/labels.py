"""``hpedge labels``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import Json
from hpdval_edge.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from hpdval_edge.bundle import Bundle
    from hpdval_edge.labels import NewLabels

labels = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, add, rename, remove and reorder the labels of a bundle; the model and its engines stay as they are.",
)
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, unpacked.", show_default=False)]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Label names.", show_default=False)]
RunOption = Annotated[str | None, typer.Option(help="The run that the bundle was exported from.", show_default=False)]


@labels.command("list")
def list_(bundle: BundlePath, json_: Json = False) -> None:
    """Labels in the order of the scores, with their thresholds and whether these are fitted.

    Examples:

      hpedge labels list birds.hpedge

      hpedge labels list birds.hpedge --json
    """
    from dataclasses import asdict

    from hpdval_edge.bundle import TEXT_SPACE
    from hpdval_edge.labels import list_labels
    from hpdval_edge.watch import load_unchanged

    loaded = load_unchanged(bundle)[1]
    rows = list_labels(loaded)
    if json_:
        space = loaded.manifest.provenance.get(TEXT_SPACE)
        typer.echo(json.dumps({"bundle": str(bundle), TEXT_SPACE: space, "labels": [asdict(row) for row in rows]}))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        typer.echo(f"{row.name:<{width}}  {row.threshold:+.4f}{'' if row.fitted else '  not fitted'}")


@labels.command()
def add(
    bundle: BundlePath,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Label names.")] = None,
    run: RunOption = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="A file of `hpedge labels embed`, in place of names.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Public key that the file must be signed with.")] = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Take the file without a look at a signature.")] = False,
) -> None:
    """Add labels without training: their names are embedded with the prompts and the text tower of the bundle's run.

    Their thresholds are not fitted until `hpedge calibrate BUNDLE --data LIST` sees pictures of them.

    Examples:

      hpedge labels add runs/birds/model.hpedge heron "grey wagtail"

      hpedge labels add birds.hpedge --from new.labels --key labels.key.pub
    """
    from hpdval_edge.labels import add_labels
    from hpdval_edge.labels_file import read_labels
    from hpdval_edge.watch import load_unchanged

    if bool(names) == (from_ is not None):
        raise UsageError("name the labels to add, or pass --from with a file of them.")
    if from_ is None and (key or unsigned):
        raise UsageError("--key and --unsigned belong to --from.")
    if from_ is not None and run:
        raise UsageError(f"--run {run} embeds names; the labels of {from_} are embedded already.")
    loaded = load_unchanged(bundle)[1]
    new = read_labels(from_, key, unsigned=unsigned) if from_ else _embedded(loaded, names, run)
    _report(add_labels(loaded, new), f"added {', '.join(new.names)}")


@labels.command()
def rename(
    bundle: BundlePath,
    old: Annotated[str, typer.Argument(help="Its name now.", show_default=False)],
    new: Annotated[str, typer.Argument(help="Its name from now on.", show_default=False)],
) -> None:
    """Call a label by another name; what it recognises stays as it was learnt.

    Examples:

      hpedge labels rename birds.hpedge robin "European robin"
    """
    from hpdval_edge.labels import rename_labels
    from hpdval_edge.watch import load_unchanged

    _report(rename_labels(load_unchanged(bundle)[1], {old: new}), f"{old} is {new} now")


@labels.command()
def remove(bundle: BundlePath, names: Names) -> None:
    """Drop labels.

    Examples:

      hpedge labels remove birds.hpedge gull "grey wagtail"
    """
    from hpdval_edge.labels import remove_labels
    from hpdval_edge.watch import load_unchanged

    _report(remove_labels(load_unchanged(bundle)[1], names), f"removed {', '.join(names)}")


@labels.command()
def reorder(bundle: BundlePath, names: Names) -> None:
    """Put the named labels first, in this order; the others follow as they were.

    Examples:

      hpedge labels reorder birds.hpedge heron robin
    """
    from hpdval_edge.labels import reorder_labels
    from hpdval_edge.watch import load_unchanged

    changed = reorder_labels(load_unchanged(bundle)[1], names)
    _report(changed, f"the first are {', '.join(changed.manifest.labels[: len(names)])}")


@labels.command()
def embed(
    names: Names,
    out: Annotated[Path, typer.Option(help="File to write, e.g. new.labels.", show_default=False)],
    run: Annotated[str | None, typer.Option(help="The bundle's run; else the last one.", show_default=False)] = None,
    key: Annotated[Path | None, typer.Option(help="Private key to sign with.")] = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Write a file that nobody can check.")] = False,
) -> None:
    """Embed names on a workstation and write them as one small signed file, for `hpedge labels add --from` on a device.

    Examples:

      hpedge labels embed heron "grey wagtail" --run birds --out new.labels --key labels.key
    """
    from hpdval_edge.labels_file import write_labels

    if unsigned == (key is not None):
        raise UsageError("pass either --key with a private key of `hpedge labels keygen`, or --unsigned.")
    module = import_from("train", "training.text_banks")
    new = module.new_labels(module.find_run(run), names)
    write_labels(out, new, key)
    typer.echo(f"{out}: {', '.join(names)}, {'unsigned' if unsigned else 'signed'}, text space {new.fingerprint[:12]}")


@labels.command()
def keygen(out: Annotated[Path, typer.Argument(help="File for the private key.", show_default=False)]) -> None:
    """Make a pair of keys: the private one signs and stays here, the public one beside it (.pub) goes to the devices.

    Examples:

      hpedge labels keygen labels.key
    """
    from hpdval_edge.labels_file import make_keys

    typer.echo(f"{out} signs, keep it to yourself; {make_keys(out)} checks, copy it to the devices")


def _embedded(bundle: "Bundle", names: list[str], run: str | None) -> "NewLabels":
    """New labels by name, in the text space of the bundle's run."""
    from hpdval_edge.labels import check_names

    # Before torch and the teacher are loaded.
    check_names((*bundle.manifest.labels, *names))
    try:
        module = import_from("train", "training.text_banks")
    except MissingDependency as error:
        raise MissingDependency(
            f"{error} Or make them with `hpedge labels embed` on a workstation, and add them --from its file."
        ) from error
    return module.new_labels(module.bundle_run(bundle, run), names)


def _report(bundle: "Bundle", what: str) -> None:
    count, unfitted = len(bundle.manifest.labels), len(bundle.unfitted)
    typer.echo(f"{bundle.path}: {what}; {count} labels")
    if unfitted:
        typer.echo(f"thresholds of {unfitted} are not fitted; next: hpedge calibrate {bundle.path} --data LIST")
