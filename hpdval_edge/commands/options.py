"""Options that several verbs share."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a configuration key, e.g. loss.name=db; repeatable."),
]
Images = Annotated[str | None, typer.Option(help="Folder that the paths in the lists start from.")]
Labels = Annotated[str | None, typer.Option(help="File of label names, one a line, in column order.")]
Teacher = Annotated[str | None, typer.Option(help="demo, NAME:TAG, NAME:FILE or CONFIG.json:FILE of open_clip.")]
Student = Annotated[str | None, typer.Option(help="A timm model NAME or NAME:FILE; else chosen by the preset.")]
Run = Annotated[str | None, typer.Argument(help="A run; else the last one.")]
# Threads that a run asks for are all started: far beyond the CPUs of any machine they only stop it.
MOST_THREADS = 1024
RunOrBundle = Annotated[str | None, typer.Argument(help="A run or a bundle; else the last run.")]
