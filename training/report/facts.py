"""What the files of a finished run say by themselves, without its pictures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpdval_edge.config import Config
from hpdval_edge.errors import BadData
from hpdval_edge.training.metrics import class_groups
from hpdval_edge.training.run_folder import RunFolder, last_report, reported_weights, weights_metadata


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run's own files, read once.

    reports: metrics.json, by stage. stage: the last finished one. epochs: lines of metrics.jsonl. thresholds:
    thresholds.json at fp32. weights: the file that ``reports[stage]`` was measured with. class_counts: training
    positives int64 [C], in the order of ``labels``.
    """

    run: RunFolder
    config: Config
    reports: dict[str, dict[str, Any]]
    stage: str
    epochs: list[dict[str, Any]]
    environment: dict[str, Any]
    thresholds: dict[str, Any]
    weights: Path
    labels: tuple[str, ...]
    class_counts: np.ndarray

    @property
    def result(self) -> dict[str, Any]:
        """Report of the last finished stage."""
        return self.reports[self.stage]

    @property
    def selected_on(self) -> str:
        """The split whose mAP chose the epoch, by which metrics.jsonl calls its figures; see ``selection_split``."""
        return "test" if self.config.eval.select == "best_test" else "val"

    @property
    def groups(self) -> np.ndarray:
        """head, medium or tail of every label, [C]."""
        return class_groups(self.class_counts)

    @property
    def by_frequency(self) -> np.ndarray:
        """Label indices, most training positives first, int64 [C]."""
        return np.argsort(-self.class_counts, kind="stable")


def read_facts(run: RunFolder) -> RunFacts:
    """Read a run's files.

    Raises:
        UsageError: no stage of it has finished. BadData: a file is missing or damaged.
    """
    config = run.config()
    stage, report = last_report(run)
    if report["mAP"] is None:
        raise BadData(f"{run.path}: none of the {report['split']} pictures has a label, there is nothing to show.")
    weights = reported_weights(run)
    metadata = weights_metadata(weights)
    return RunFacts(
        run=run,
        config=config,
        reports=run.reports(),
        stage=stage,
        epochs=_read_lines(run.path / "metrics.jsonl"),
        environment=run.read_json("env.json"),
        thresholds=run.read_json("thresholds.json")["fp32"],
        weights=weights,
        labels=tuple(json.loads(metadata["labels"])),
        class_counts=np.array(json.loads(metadata["class_counts"]), np.int64),
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, json.JSONDecodeError) as error:
        raise BadData(f"{path} cannot be read: {error}.") from error
