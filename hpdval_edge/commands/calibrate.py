"""``hpedge calibrate``."""

import json
from typing import Annotated

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import Images, Json, RunOrBundle


def calibrate(
    model: RunOrBundle = None,
    objective: Annotated[
        str | None,
        typer.Option(help="f1, precision=P or recall=R; else that of the last fit, f1 at first.", show_default=False),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Validation pictures; else the run's own validation split.", show_default=False)
    ] = None,
    images: Images = None,
    json_: Json = False,
) -> None:
    """Fit thresholds and probabilities on validation pictures, for a run and its bundle, and store them there.

    Thresholds are one a label, drawn towards a common one where validation positives are few. The figures called
    cross-fitted are from pictures that the fit did not see.

    Examples:

      hpedge calibrate

      hpedge calibrate runs/birds --objective precision=0.9

      hpedge calibrate birds.hpedge --data photos/val.csv --objective recall=0.8 --json
    """
    module = import_from("train", "training.calibration_run")
    result = module.calibrate(model, objective=objective, data=data, images=images)
    if json_:
        typer.echo(json.dumps(result))
        return
    for fitted in result["fits"]:
        typer.echo(module.summary(fitted))
