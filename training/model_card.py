"""MODEL_CARD.md: what a run is, what it saw and how well it does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpdval_edge import __version__
from hpdval_edge.atomic import write_text
from hpdval_edge.labels import card_section
from hpdval_edge.report_table import table
from hpdval_edge.training.session import Session

_FITTED = "thresholds, temperature and bias were chosen on the validation split"
# By eval.select.
CHOSEN = {
    "last": f"The last epoch was kept; {_FITTED}.",
    "best_val": f"Epoch, {_FITTED}.",
    "best_test": f"The epoch was CHOSEN ON THE TEST SPLIT, so that the figures flatter; {_FITTED}.",
}


def write(path: Path, session: Session, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the card of a run whose reports so far are ``reports``, by stage."""
    config, splits = session.config, session.splits
    lines = [
        f"# {path.parent.name}",
        "",
        f"A multi-label image recogniser with {len(session.labels)} labels, made by hpedge {__version__}.",
        "",
        f"- student: {config.student.name} ({config.student.init}), {config.student.image_size} px",
        f"- teacher: {config.teacher.spec}",
        f"- preset {config.preset}, seed {config.seed}; every setting stands in config.toml",
        f"- pictures: {len(splits.train)} to train, {len(splits.val)} to validate"
        + (
            f", {len(splits.test)} to test"
            if splits.test is not None
            else ", no test split: the figures below are on val"
        ),
        "",
        "## Quality",
        "",
        "```",
        table(reports),
        "```",
        "",
        "Head, medium and tail are labels with at least 100, 20 to 99 and fewer than 20 training positives. Scores are "
        "cosines; thresholds.json holds the temperature and the bias that make probabilities of them. "
        + CHOSEN[config.eval.select],
        "",
        card_section(session.labels, session.class_counts.tolist()),
    ]
    write_text(path, "\n".join(lines))
