"""COCO few-shot as in LaSO: 64 base and 16 novel classes of COCO 2014, ten published episodes of 1 and of 5 shots.

The user supplies ``annotations/instances_train2014.json``, ``annotations/instances_val2014.json`` and the pictures in
``train2014/`` and ``val2014/``. Crowds do not count, nor do boxes below 1 pixel, as in LaSO.
"""

import random
from functools import partial
from pathlib import Path

import numpy as np

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.protocols.fewshot_splits import FewShot, shipped_episode, showing_any
from hpdval_edge.training.protocols.longtail import LISTS
from hpdval_edge.training.readers_coco import read_coco
from hpdval_edge.training.readers_list import read_label_names

BASE_CLASSES = 64
EPISODES_FILE = "coco_fewshot.txt"


def base_and_novel() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The 64 base and 16 novel names, in COCO order: LaSO draws the base classes with Python's generator at seed 0."""
    names = read_label_names(LISTS / "coco_labels.txt")
    base = set(random.Random(0).sample(range(len(names)), BASE_CLASSES))
    split = ([], [])
    for index, name in enumerate(names):
        split[index not in base].append(name)
    return tuple(split[0]), tuple(split[1])


def coco_protocol(root: Path) -> FewShot:
    """Read both annotation files; a test picture counts once, if it shows at least one label of its part.

    Raises:
        UsageError: an annotation file is missing.
        BadData: contents that are not COCO 2014.
    """
    train, test = (_read(root, part) for part in ("train2014", "val2014"))
    base, novel = base_and_novel()
    return FewShot(
        base_train=showing_any(train, base),
        base_test=showing_any(test, base),
        novel_test=showing_any(test, novel),
        support=partial(coco_support, train, novel),
    )


def _read(root: Path, part: str) -> LabelledImages:
    file = root / "annotations" / f"instances_{part}.json"
    if not file.is_file():
        raise UsageError(
            f"{file} is missing; few-shot on COCO needs annotations/instances_train2014.json and "
            "annotations/instances_val2014.json with the pictures in train2014 and val2014 below one folder."
        )
    return read_coco(file, labels=read_label_names(LISTS / "coco_labels.txt"), crowds=False)


def coco_support(train: LabelledImages, novel: tuple[str, ...], shots: int, episode: int) -> LabelledImages:
    """Support set of a published episode: 12-16 pictures for 1 shot, 56-64 for 5, some labels more often than that.

    LaSO numbers pictures by their place in the annotation file; labels that it recorded are checked, so that another
    order of the file does not pass for the episode.

    Args:
        train: All of train2014 in the order of the file, with the 80 labels.
    """
    rows = []
    for place, ids in shipped_episode(EPISODES_FILE, shots, episode):
        row, columns = int(place), [int(word) for word in ids.split()]
        if row >= len(train) or not train.targets[row, columns].all():
            shown = "is not there" if row >= len(train) else f"does not show {train.labels[columns[0]]!r}"
            raise BadData(
                f"instances_train2014.json: picture {row} of {len(train)} {shown}, which episode {episode} of "
                f"{shots} shots needs; use the published file with its 82,783 pictures in their order."
            )
        rows.append(row)
    return showing_any(train.subset(np.array(rows)), novel)
