"""``hpedge eval``."""

import json
from typing import Annotated

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import Images, Json, RunOrBundle


def eval(
    model: RunOrBundle = None,
    data: Annotated[str | None, typer.Option(help="Labelled pictures; else the run's own test split.")] = None,
    images: Images = None,
    backend: Annotated[str, typer.Option(help="Engine for a bundle.")] = "auto",
    json_: Json = False,
) -> None:
    """Measure a run or a bundle on labelled pictures, with the same code.

    Examples:

      hpedge eval runs/birds --data photos/test.csv

      hpedge eval runs/birds/model.hpedge --data photos/test.csv --json
    """
    from hpdval_edge.report_table import table

    result = import_from("train", "training.measure").measure(model, data=data, images=images, backend=backend)
    typer.echo(json.dumps(result) if json_ else table({result["model"]: result}))
