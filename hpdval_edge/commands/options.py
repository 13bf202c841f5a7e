"""Options that several verbs share."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a configuration key, e.g. loss.name=db; repeatable."),
]
Images = Annotated[str | None, typer.Option(help="Folder that the paths in the lists start from.")]
