"""VOC-LT and COCO-LT: the lists that ship, and the folder of a user's pictures that they start from."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath

from hpdval_edge.errors import UsageError
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.readers_list import read_label_names, read_list

LISTS = Path(str(files("hpdval_edge.training") / "assets" / "protocols"))


@dataclass(frozen=True, slots=True)
class LongTail:
    """A published long-tailed set.

    Args:
        title: Its name in the paper.
        stem: Files are ``<stem>_train.txt`` and ``<stem>_test.txt``.
        labels: File of label names in id order.
        mu, lam: Centre of the re-balancing map and negative scale of its loss (METHOD section 1).
        pictures: What to download, for messages.
    """

    title: str
    stem: str
    labels: str
    mu: float
    lam: float
    pictures: str

    def list_file(self, split: str) -> Path:
        """List of the ``train`` or the ``test`` split."""
        return LISTS / f"{self.stem}_{split}.txt"

    def read(self, split: str, base: Path) -> LabelledImages:
        """Pictures and labels of a split; its paths start from ``base``, an existing folder."""
        return read_list(self.list_file(split), images=base, labels=read_label_names(LISTS / self.labels))


PROTOCOLS = {
    "voc-lt": LongTail(
        title="VOC-LT",
        stem="voc_lt",
        labels="voc_labels.txt",
        mu=0.3,
        lam=5.0,
        pictures="VOCtrainval_11-May-2012.tar and VOCtest_06-Nov-2007.tar, unpacked in one folder",
    ),
    "coco-lt": LongTail(
        title="COCO-LT",
        stem="coco_lt",
        labels="coco_labels.txt",
        mu=0.2,
        lam=2.0,
        pictures="train2017.zip and val2017.zip, unpacked in one folder",
    ),
}
SPLITS = ("train", "test")


def find_protocol(name: str) -> LongTail:
    """The protocol called ``name``; UsageError lists those that exist."""
    if name not in PROTOCOLS:
        raise UsageError(f"{name!r} is not a published protocol; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def split_argument(data: str) -> tuple[str, Path] | None:
    """``("voc-lt", DIR)`` for the text ``voc-lt=DIR``, else None, which is a path of the user's own data."""
    name, equals, images = data.partition("=")
    return (name, Path(images)) if equals and name in PROTOCOLS else None


def protocol_values(name: str, images: Path) -> dict[str, str]:
    """Configuration keys of a run on a published protocol.

    Args:
        name: ``voc-lt`` or ``coco-lt``.
        images: A folder of the user's pictures, see ``picture_base``.

    Returns:
        data.path, data.test, data.labels, data.images as absolute paths; loss.mu and loss.lam of the protocol.

    Raises:
        UsageError: no such protocol, no such folder, or one with none of the listed folders in it.
    """
    protocol = find_protocol(name)
    base = picture_base(protocol, images)
    if not any((base / folder).is_dir() for folder in listed_folders(protocol)):
        raise UsageError(
            f"{images} has none of the folders {', '.join(listed_folders(protocol))}; it needs {protocol.pictures}. "
            f"See: hpedge data {name} --images {images}"
        )
    return {
        "data.path": str(protocol.list_file("train")),
        "data.test": str(protocol.list_file("test")),
        "data.labels": str(LISTS / protocol.labels),
        "data.images": str(base.absolute()),
        "loss.mu": str(protocol.mu),
        "loss.lam": str(protocol.lam),
    }


def listed_folders(protocol: LongTail) -> tuple[str, ...]:
    """Folders that the paths of both lists name, sorted, such as ``VOCdevkit/VOC2007/JPEGImages``."""
    lines = (line for split in SPLITS for line in protocol.list_file(split).read_text(encoding="utf-8").splitlines())
    return tuple(sorted({str(PurePosixPath(line.split()[0]).parent) for line in lines}))


def picture_base(protocol: LongTail, images: Path) -> Path:
    """The folder that the listed paths start from, given the one that the user calls the pictures' folder.

    That is ``images`` itself, ``images/images``, or a folder above it when the user names a part of the layout, such as
    ``VOCdevkit`` or ``VOCdevkit/VOC2012``: whichever holds most of the listed folders, ``images`` among equals.

    Raises:
        UsageError: ``images`` is no folder.
    """
    images = Path(images)
    if not images.is_dir():
        raise UsageError(
            f"{images} is no folder; give the one that holds the {protocol.title} pictures ({protocol.pictures})."
        )
    folders = listed_folders(protocol)
    parts = {part for folder in folders for part in folder.split("/")}
    candidates, above = [images, images / "images"], images.absolute()
    while above.name in parts:
        above = above.parent
        candidates.append(above)
    return max(candidates, key=lambda base: sum((base / folder).is_dir() for folder in folders))
