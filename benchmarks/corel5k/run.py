"""Corel5k-LT, the whole line: both students, presets ``recommended`` and ``paper``, the teacher alone, plain BCE.

    python benchmarks/corel5k/run.py DATA --teacher DIR --student NAME:FILE [--student ...] --out OUT_DIR

Each cell is a run of its own; a cell whose result lies in OUT_DIR is not run again, an interrupted one goes on. Writes
OUT_DIR/results.json and prints the Markdown table of docs/benchmarks.md.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from bce import train_bce

from hpdval_edge.config import Config, load_config
from hpdval_edge.training.run_folder import RUNS, ZERO_SHOT
from hpdval_edge.training.session import prepare
from hpdval_edge.training.train import TrainOptions, train

GROUPS = ("mAP", "head", "medium", "tail")
METHODS = ("bce", "paper", "recommended")


def configure(options: argparse.Namespace, student: str, method: str) -> Config:
    """The configuration of one cell; the baseline borrows data, schedule and learning rates from ``recommended``."""
    name, _, weights = student.partition(":")
    teacher = options.teacher
    values = {
        "data.path": str((options.data / "corel5k_lt_train.txt").absolute()),
        "data.test": str((options.data / "corel5k_lt_test.txt").absolute()),
        "data.labels": str((options.data / "corel5k_lt_labels.txt").absolute()),
        "teacher.spec": f"{(teacher / 'teacher.json').absolute()}:{(teacher / 'teacher.safetensors').absolute()}",
        "student.name": name,
        "student.weights": str(Path(weights).absolute()),
        "student.image_size": options.image_size,
        "train.stage1.epochs": options.epochs[0],
        "train.stage2.epochs": options.epochs[1],
    }
    return load_config(preset="paper" if method == "paper" else "recommended", values=values)


def run_cell(options: argparse.Namespace, student: str, method: str) -> dict[str, dict]:
    """Reports of one cell by row name."""
    config = configure(options, student, method)
    name = student.partition(":")[0]
    if method == "bce":
        return {f"{name}, BCE fine-tuning": train_bce(prepare(config), sum(options.epochs))}
    run_name = f"{name}-{method}"
    resume = (RUNS / run_name / "state").is_dir()
    run = train(None if resume else config, TrainOptions(name=run_name, resume=resume), {})
    reports = run.read_json("metrics.json")
    rows = {"teacher, zero-shot": reports[ZERO_SHOT]}
    return rows | {f"{name}, {method}, {stage}": reports[stage] for stage in ("stage1", "stage2")}


def table(rows: dict[str, dict]) -> str:
    """Markdown, AP in percent with 95 % bootstrap intervals over test pictures."""
    lines = ["| | " + " | ".join(GROUPS) + " |", "| --- |" + " ---: |" * len(GROUPS)]
    for name, report in rows.items():
        cells = [f"{report[g]:.1f} [{report['interval'][g][0]:.1f}, {report['interval'][g][1]:.1f}]" for g in GROUPS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run the missing cells, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", type=Path, required=True, help="folder that teacher.py wrote")
    parser.add_argument("--student", action="append", required=True, help="timm NAME:FILE, repeatable")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, nargs=2, default=(5, 2), metavar=("STAGE1", "STAGE2"))
    options = parser.parse_args()
    for name in ("data", "teacher"):
        setattr(options, name, getattr(options, name).absolute())
    options.student = [f"{s.partition(':')[0]}:{Path(s.partition(':')[2]).absolute()}" for s in options.student]
    options.out.mkdir(parents=True, exist_ok=True)
    os.chdir(options.out)
    rows: dict[str, dict] = {}
    for student in options.student:
        for method in METHODS:
            cell = Path(f"cell-{student.partition(':')[0]}-{method}.json")
            if not cell.is_file():
                started = time.monotonic()
                reports = run_cell(options, student, method)
                cell.write_text(json.dumps({"seconds": time.monotonic() - started, "reports": reports}))
            rows |= json.loads(cell.read_text())["reports"]
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    settings = {"image_size": options.image_size, "epochs": list(options.epochs)}
    Path("results.json").write_text(json.dumps({"machine": machine, "settings": settings, "rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
