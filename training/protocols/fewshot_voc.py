"""VOC few-shot: 14 base and 6 novel classes of VOC2007, built from the annotations that the user supplies.

Needed: ``VOC2007/{Annotations,ImageSets/Main,JPEGImages}`` with trainval and test, in a folder or its VOCdevkit.
"""

from functools import partial
from pathlib import Path

import numpy as np

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.protocols.fewshot_splits import FewShot, shipped_episode, showing_any, showing_only
from hpdval_edge.training.protocols.longtail import LISTS
from hpdval_edge.training.readers_list import read_label_names
from hpdval_edge.training.readers_voc import read_voc

NOVEL = ("cat", "dog", "pottedplant", "sheep", "sofa", "tvmonitor")
MIXED = ("drop", "keep")
SUPPORT = ("drawn", "published")
EPISODES_FILE = "voc_fewshot.txt"
DRAWS = 100
# Decides the drawn episodes; part of the protocol, not of a run.
SEED = 0


def base_and_novel() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The 14 base and 6 novel names, alphabetical."""
    names = read_label_names(LISTS / "voc_labels.txt")
    return tuple(name for name in names if name not in NOVEL), NOVEL


def voc_protocol(root: Path, mixed: str, support: str) -> FewShot:
    """Read trainval and test of VOC2007.

    Args:
        mixed: ``drop``, the authors' release: a picture belongs to a part if all its non-difficult objects do, the
            others are left out (895 novel training and 926 novel test pictures). ``keep``: every picture with an object
            of the part, difficult ones included (1,523 novel test pictures).
        support: ``drawn``: exactly K positives of each novel class, see ``draw_support``. ``published``: the episodes
            of the authors' release.

    Raises:
        UsageError: no such folder or option.
        BadData: annotations that cannot be read.
    """
    for option, value, allowed in (("mixed", mixed, MIXED), ("support", support, SUPPORT)):
        if value not in allowed:
            raise UsageError(f"{option} is {value!r}, expected one of {', '.join(allowed)}.")
    select = showing_only if mixed == "drop" else showing_any
    names = read_label_names(LISTS / "voc_labels.txt")
    train, test = (
        read_voc(devkit(root), year=2007, image_set=part, labels=names, difficult=mixed == "keep")
        for part in ("trainval", "test")
    )
    base, novel = base_and_novel()
    return FewShot(
        base_train=select(train, base),
        base_test=select(test, base),
        novel_test=select(test, novel),
        support=partial(draw_support if support == "drawn" else published_support, select(train, novel)),
    )


def devkit(root: Path) -> Path:
    """The folder that holds VOC2007 with annotations and image sets: ``root``, its VOCdevkit, or the one above."""
    for folder in (root, root / "VOCdevkit", root.absolute().parent):
        if all((folder / "VOC2007" / name).is_dir() for name in ("Annotations", "ImageSets/Main")):
            return folder
    raise UsageError(
        f"{root} holds no VOC2007 with Annotations and ImageSets/Main; unpack VOCtrainval_06-Nov-2007.tar and "
        "VOCtest_06-Nov-2007.tar there."
    )


def draw_support(pool: LabelledImages, shots: int, episode: int) -> LabelledImages:
    """Draw pictures until each label has exactly ``shots`` positives; the same ones for the same numbers.

    Pictures are visited in random order and taken where none of their labels has enough yet.

    Args:
        pool: Novel training pictures, each with at least one label.

    Raises:
        BadData: the pool is too small for that, after 100 orders.
    """
    rng = np.random.default_rng([SEED, shots, episode])
    for _ in range(DRAWS):
        left, rows = np.full(len(pool.labels), shots), []
        for row in rng.permutation(len(pool)):
            if (left >= pool.targets[row]).all():
                left -= pool.targets[row]
                rows.append(row)
        if not left.any():
            return pool.subset(np.array(rows))
    short = ", ".join(f"{name} ({count})" for name, count in zip(pool.labels, pool.class_counts, strict=True))
    raise BadData(
        f"{pool.root}: no support set with exactly {shots} positives of each novel class was found among "
        f"{len(pool)} pictures; positives there: {short}."
    )


def published_support(pool: LabelledImages, shots: int, episode: int) -> LabelledImages:
    """Support set of the authors' release: 4-5 pictures for 1 shot, 24-25 for 5, exactly K positives per label.

    Raises:
        BadData: a picture is not in the pool, or shows less there than the release says.
    """
    rows = {Path(path).stem: row for row, path in enumerate(pool.paths)}
    chosen = []
    for picture, names in shipped_episode(EPISODES_FILE, shots, episode):
        row = rows.get(picture)
        if row is None or not pool.targets[row, [pool.labels.index(name) for name in names.split()]].all():
            raise BadData(
                f"{pool.root}: picture {picture} of episode {episode} of {shots} shots is not annotated as {names} in "
                "VOC2007 trainval; use the published annotations, or support='drawn'."
            )
        chosen.append(row)
    return pool.subset(np.array(chosen))
