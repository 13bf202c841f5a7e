"""``hpedge data check``: what training would read, and whether every picture can be."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hpdval_edge.config import Config
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.images import open_rgb
from hpdval_edge.progress import progress
from hpdval_edge.training.dataset import LabelledImages, Splits
from hpdval_edge.training.metrics import GROUPS, class_groups
from hpdval_edge.training.readers import load_splits
from hpdval_edge.training.readers_layout import Layout, file_layout, folder_layout
from hpdval_edge.training.readers_list import read_label_names

SHOWN_LABELS = 10
SHOWN_PICTURES = 20
MAX_THREADS = 16
BLOCK = 64


def read_configured(config: Config) -> Splits:
    """The splits that a run of ``config`` would train on; UsageError for the demo set, which is drawn by training."""
    data = config.data
    if data.path == "demo":
        raise UsageError("name the data to read, for instance: hpedge data check photos/train.csv")
    return load_splits(
        data.path,
        format=data.format,
        images=data.images or None,
        labels=data.labels or None,
        val=data.val or None,
        test=data.test or None,
        val_fraction=data.val_fraction,
        seed=config.seed,
    )


def configured_layout(config: Config) -> Layout:
    """Format and readers of the configured data; UsageError where there is none."""
    data = config.data
    if not Path(data.path).exists():
        raise UsageError(f"{data.path}: there is no such file or folder")
    given = {"train": None, "val": data.val or None, "test": data.test or None}
    return (folder_layout if Path(data.path).is_dir() else file_layout)(Path(data.path), data.format, given)


def configured_parts(config: Config) -> dict[str, LabelledImages]:
    """The parts (``train``, ``val``, ``test``) that the configured data brings, none of them made by splitting."""
    layout, images = configured_layout(config), config.data.images or None
    names = read_label_names(config.data.labels) if config.data.labels else layout.labels
    parts = {"train": layout.train(images=images, labels=names)}
    for name, read in (("val", layout.val), ("test", layout.test)):
        if read:
            parts[name] = read(images=images, labels=parts["train"].labels)
    return parts


def check_data(config: Config) -> dict:
    """Read the configured data as training would, and decode every picture.

    Returns:
        Plain values: path, format, labels, groups (labels in head, medium and tail by the training list as given),
        splits {split: pictures, without_labels, unreadable}, single_positive (labels with one training picture), notes
        of the readers, unreadable (``path: reason`` of all).

    Raises:
        UsageError, BadData: see ``load_splits``.
    """
    splits = read_configured(config)
    train = splits.train
    groups = class_groups(splits.class_counts)
    parts = {name: part for name in ("train", "val", "test") if (part := getattr(splits, name)) is not None}
    reasons = {name: unreadable_pictures(part.root, list(part.paths)) for name, part in parts.items()}
    return {
        "path": config.data.path,
        "format": configured_layout(config).format,
        "labels": list(train.labels),
        "groups": {group: int(np.count_nonzero(groups == group)) for group in GROUPS},
        "splits": {name: _counts(part, len(reasons[name])) for name, part in parts.items()},
        "single_positive": [train.labels[index] for index in np.flatnonzero(train.class_counts == 1)],
        "notes": list(splits.notes),
        "unreadable": [reason for found in reasons.values() for reason in found.values()],
    }


def _counts(part: LabelledImages, unreadable: int) -> dict[str, int]:
    bare = int(np.count_nonzero(part.targets.sum(axis=1) == 0))
    return {"pictures": len(part), "without_labels": bare, "unreadable": unreadable}


def unreadable_pictures(base: Path, paths: list[str]) -> dict[str, str]:
    """Decode every picture ``base / path``; returns {path: ``path: reason``} of those that cannot be."""

    def problem(path: str) -> str | None:
        try:
            open_rgb(base / path)
        except BadData as error:
            return str(error)
        return None

    reasons: dict[str, str] = {}
    threads = min(len(os.sched_getaffinity(0)), MAX_THREADS)
    with progress("checking pictures", len(paths)) as update, ThreadPoolExecutor(threads) as pool:
        # In blocks, so that Ctrl-C waits for the pictures of one block only.
        for start in range(0, len(paths), BLOCK):
            block = paths[start : start + BLOCK]
            reasons.update(
                {path: reason for path, reason in zip(block, pool.map(problem, block), strict=True) if reason}
            )
            update(start + len(block), len(paths))
    return reasons


def describe(report: dict) -> list[str]:
    """Lines for the terminal of what ``check_data`` found."""
    groups = "/".join(str(report["groups"][group]) for group in GROUPS)
    lines = [f"{report['path']}: format {report['format']}, {len(report['labels'])} labels, head/medium/tail {groups}"]
    for name, count in report["splits"].items():
        lines.append(
            f"  {name}: {count['pictures']} pictures, {count['without_labels']} without labels, "
            f"{count['unreadable']} unreadable"
        )
    single = report["single_positive"]
    if single:
        more = ", ..." if len(single) > SHOWN_LABELS else ""
        lines.append(f"  {len(single)} labels with one training picture: {', '.join(single[:SHOWN_LABELS])}{more}")
    lines += [f"  note: {note}" for note in report["notes"]]
    return lines + unreadable_lines(report["unreadable"])


def unreadable_lines(reasons: list[str]) -> list[str]:
    """The first 20 of ``path: reason``, and how many more there are."""
    surplus = len(reasons) - SHOWN_PICTURES
    lines = [f"  unreadable: {reason}" for reason in reasons[:SHOWN_PICTURES]]
    return lines + [f"  ... and {surplus} more unreadable, all in --json"] * (surplus > 0)
