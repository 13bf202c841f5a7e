"""Labels added after training: how well does a bundle find what it was never trained on?

    python benchmarks/corel5k/unseen.py TRAIN TEST --teacher SPEC --out OUT_DIR [--set KEY=VALUE ...]

Leaves every sixth label of a training list out, trains on the others, exports, adds the labels left out as ``hpedge
labels add`` does, and prints their AP on the test list beside chance, which is their share of the test pictures, and
beside their AP with the text of the other added labels in place of their own. What was trained is not trained again.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from hpdval_edge.bundle import load_bundle
from hpdval_edge.config import load_config
from hpdval_edge.export.export import export
from hpdval_edge.labels import add_labels
from hpdval_edge.runtimes import load_engine
from hpdval_edge.training.average_precision import average_precision
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.evaluate import engine_scorer, score_pictures
from hpdval_edge.training.readers_csv import read_csv
from hpdval_edge.training.readers_list import read_list
from hpdval_edge.training.readers_write import write_parts
from hpdval_edge.training.run_folder import RUNS, RunFolder
from hpdval_edge.training.text_banks import new_labels
from hpdval_edge.training.train import TrainOptions, train

EVERY, FIRST = 6, 3
KEYS = ("AP", "chance", "other text")


def left_out(count: int) -> np.ndarray:
    """Which of ``count`` labels are not trained on, bool [C]: the fourth, the tenth and so on."""
    return np.arange(count) % EVERY == FIRST


def without(data: LabelledImages, unseen: np.ndarray) -> LabelledImages:
    """The labels that are not ``unseen``, and the pictures that show one of them."""
    targets = np.ascontiguousarray(data.targets[:, ~unseen])
    labels = tuple(label for label, out in zip(data.labels, unseen, strict=True) if not out)
    kept = np.flatnonzero(targets.any(axis=1))
    return LabelledImages(data.root, data.paths, targets, labels).subset(kept)


def read(path: Path, labels: tuple[str, ...] | None = None) -> LabelledImages:
    """A CSV table or a list."""
    return (read_csv if path.suffix == ".csv" else read_list)(path, labels=labels)


def trained_run(data: LabelledImages, options: argparse.Namespace) -> RunFolder:
    """The run on ``data``, trained where it is not there yet."""
    run, folder = RunFolder(RUNS / "seen"), Path("lists")
    if run.reports():
        return run
    if not folder.is_dir():
        write_parts(folder, {"train": data}, "csv")
    values = {"data.path": str(folder / "train.csv"), "teacher.spec": options.teacher, "eval.report": "false"}
    chosen = dict(pair.split("=", 1) for pair in options.set)
    return train(load_config(values={**values, **chosen}), TrainOptions(name=run.name, stage="1"), {})


def report(scores: np.ndarray, targets: np.ndarray, names: tuple[str, ...]) -> list[dict]:
    """AP of the added labels in percent, scores float32 [n, U] against targets uint8 [n, U], best first."""
    # Row: whose text; column: whose pictures.
    ap = 100 * np.array([average_precision(np.repeat(column[:, None], len(names), 1), targets) for column in scores.T])
    other = (ap.sum(axis=0) - np.diag(ap)) / (len(names) - 1)
    columns = zip(names, targets.sum(axis=0), np.diag(ap), 100 * targets.mean(axis=0), other, strict=True)
    rows = [
        {"label": name, "positives": int(n), **dict(zip(KEYS, map(float, values), strict=True))}
        for name, n, *values in columns
    ]
    return sorted(rows, key=lambda row: -row["AP"])


def table(rows: list[dict]) -> str:
    """Markdown, with the mean below."""
    mean = {key: float(np.mean([row[key] for row in rows])) for key in KEYS}
    lines = ["| added label | test pictures | " + " | ".join(KEYS) + " |", "| --- |" + " ---: |" * (1 + len(KEYS))]
    for row in [*rows, {"label": "mean", "positives": "", **mean}]:
        lines.append(f"| {row['label']} | {row['positives']} | " + " | ".join(f"{row[key]:.1f}" for key in KEYS) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse, train what is missing, add, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--teacher", required=True, help="as hpedge train takes it, with absolute paths")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as hpedge train takes it")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data, test_list = read(options.train), options.test.absolute()
    unseen = left_out(len(data.labels))
    data = LabelledImages(data.root.absolute(), data.paths, data.targets, data.labels)
    options.out.mkdir(parents=True, exist_ok=True)
    os.chdir(options.out)
    run = trained_run(without(data, unseen), options)
    bundle = load_bundle(export(run, precision="fp32", targets=("onnx",), out=None).path)
    names = tuple(label for label, out in zip(data.labels, unseen, strict=True) if out)
    bundle = add_labels(bundle, new_labels(run, names))
    test = read(test_list, data.labels)
    scorer = engine_scorer(bundle, load_engine(bundle, "onnxruntime"))
    scores = score_pictures(scorer, test, bundle.manifest.image_size)
    rows = report(scores[:, -len(names) :], test.targets[:, unseen], names)
    trained_on = 100 * np.nanmean(average_precision(scores[:, : -len(names)], test.targets[:, ~unseen]))
    Path("unseen.json").write_text(json.dumps({"added": rows, "trained_on": trained_on}, indent=1))
    print(table(rows))
    print(f"\nmAP of the {(~unseen).sum()} labels trained on: {trained_on:.1f}")


if __name__ == "__main__":
    main()
