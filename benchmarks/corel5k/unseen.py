"""Labels added after training, on real photos: how well does a bundle find what it was never trained on?

    python benchmarks/corel5k/unseen.py DATA --vit DINOV2.safetensors --student NAME:FILE --out OUT_DIR

Leaves every COUNT-th label of Corel5k-LT out of the training lists, trains teacher and student on the others, exports,
adds the labels left out as ``hpedge labels add`` does, and prints their AP on the test split beside chance (their share
of test pictures) and beside the text of another added label in place of their own.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from minilm_teacher import make_teacher

from hpdval_edge.bundle import load_bundle
from hpdval_edge.config import load_config
from hpdval_edge.export.export import export
from hpdval_edge.labels import add_labels
from hpdval_edge.runtimes import load_engine
from hpdval_edge.training.average_precision import average_precision
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.evaluate import engine_scorer, score_pictures
from hpdval_edge.training.readers_list import read_label_names, read_list
from hpdval_edge.training.readers_write import write_parts
from hpdval_edge.training.run_folder import RUNS, RunFolder
from hpdval_edge.training.text_banks import new_labels
from hpdval_edge.training.train import TrainOptions, train


def keep_labels(data: LabelledImages, columns: np.ndarray) -> LabelledImages:
    """Pictures with a label among ``columns``, with these labels only."""
    targets = np.ascontiguousarray(data.targets[:, columns])
    labels = tuple(data.labels[column] for column in columns)
    narrowed = LabelledImages(data.root, data.paths, targets, labels)
    return narrowed.subset(np.flatnonzero(targets.any(axis=1)))


def trained_run(options: argparse.Namespace, data: LabelledImages, teacher: str) -> RunFolder:
    """The run on ``data``, trained where it is not there yet."""
    if (RUNS / "seen" / "metrics.json").is_file():
        return RunFolder(RUNS / "seen")
    folder = Path("lists")
    if not folder.is_dir():
        write_parts(folder, {"train": data}, "csv")
    name, _, weights = options.student.partition(":")
    values = {
        "data.path": str(folder / "train.csv"),
        "teacher.spec": teacher,
        "student.name": name,
        "student.weights": weights,
        "student.image_size": 160,
        "student.tune": "embed",
        "kd.weight": "1",
        "train.stage1.epochs": 8,
        "eval.report": False,
    }
    return train(load_config(values=values), TrainOptions(name="seen", stage="1"), {})


def unseen_report(scores: np.ndarray, targets: np.ndarray, names: tuple[str, ...]) -> dict:
    """AP of the added labels in percent, float32 [n, U] against uint8 [n, U], with what to compare it with."""
    ap = np.array([average_precision(scores[:, [row]].repeat(len(names), 1), targets) for row in range(len(names))])
    other = (ap.sum(axis=0) - np.diag(ap)) / (len(names) - 1)
    rows = zip(names, targets.sum(axis=0).tolist(), np.diag(ap), targets.mean(axis=0), other, strict=True)
    keys = ("label", "positives", "AP", "chance", "other_text")
    return {
        "rows": [
            dict(zip(keys, (name, count, *(100 * float(v) for v in values)), strict=True))
            for name, count, *values in rows
        ]
    }


def print_table(report: dict) -> None:
    """Markdown: a row a label, best first, and the mean."""
    rows = sorted(report["rows"], key=lambda row: -row["AP"])
    keys = ("AP", "chance", "other_text")
    mean = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    print("| added label | test positives | AP | chance | with another's text |\n| --- | ---: | ---: | ---: | ---: |")
    for row in [*rows, {"label": "mean", "positives": "", **mean}]:
        print(f"| {row['label']} | {row['positives']} | " + " | ".join(f"{row[key]:.1f}" for key in keys) + " |")
    print("\n" + ", ".join(f"{name} {value:.1f}" for name, value in report["others"].items()))


def main() -> None:
    """Parse, make what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--vit", type=Path, required=True, help="timm weights of vit_small_patch14_dinov2")
    parser.add_argument("--student", required=True, help="timm NAME:FILE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6, help="every COUNT-th label is left out")
    options = parser.parse_args()
    options.data, options.vit = options.data.absolute(), options.vit.absolute()
    name, _, weights = options.student.partition(":")
    options.student = f"{name}:{Path(weights).absolute()}"
    options.out.mkdir(parents=True, exist_ok=True)
    os.chdir(options.out)
    train_list, test = (read_list(options.data / f"corel5k_lt_{part}.txt") for part in ("train", "test"))
    labels = train_list.labels
    columns = np.arange(len(labels))
    left_out = columns % options.count == options.count // 2
    seen = keep_labels(train_list, columns[~left_out])
    vocabulary = sorted({*read_label_names(options.data / "corel5k_words374.txt"), *labels})
    teacher_files = [Path("teacher.json").absolute(), Path("teacher.safetensors").absolute()]
    teacher = ":".join(map(str, teacher_files))
    if not teacher_files[1].is_file():
        teacher = make_teacher(seen, vocabulary, options.vit, Path.cwd())
    run = trained_run(options, seen, teacher)
    bundle = load_bundle(export(run, precision="fp16", targets=("onnx",), out=None).path)
    names = tuple(labels[column] for column in columns[left_out])
    bundle = add_labels(bundle, new_labels(run, names))
    scores = score_pictures(engine_scorer(bundle, load_engine(bundle, "onnxruntime")), test, 160)
    report = unseen_report(scores[:, -len(names) :], test.targets[:, left_out], names)
    trained = average_precision(scores[:, : -len(names)], test.targets[:, ~left_out])
    report["others"] = {"mAP of the labels trained on": 100 * float(np.nanmean(trained))}
    Path("unseen.json").write_text(json.dumps(report, indent=1))
    print_table(report)


if __name__ == "__main__":
    main()
