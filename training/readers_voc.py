"""PASCAL VOC devkits: a picture has a label when an object of that name is annotated."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpdval_edge.errors import BadData
from hpdval_edge.images import is_image_name
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.readers_rows import (
    Row,
    collect,
    label_columns,
    read_bytes,
    read_lines,
    root_folder,
    unknown_label,
)

PICTURE_ID = re.compile(r"[^\s/\\]+")


def read_voc(
    path: str | Path,
    *,
    year: int | str,
    image_set: str,
    images: Path | None = None,
    labels: Sequence[str] | None = None,
    difficult: bool = True,
) -> LabelledImages:
    """Read one image set of a devkit: ``VOC<year>/ImageSets/Main/<set>.txt`` and ``VOC<year>/Annotations/<id>.xml``.

    Every annotated object counts, difficult ones too unless ``difficult`` is False. The picture of an id is
    ``VOC<year>/JPEGImages/<id>`` with the suffix of the annotation's ``filename``, ``.jpg`` when it has none.

    Args:
        path: The devkit, the folder that holds ``VOC<year>``.
        year: Such as 2007.
        image_set: Such as "train", "val", "trainval" or "test".
        images: Folder in the place of ``path`` for pictures.
        labels: Label names in column order; default: the names of this set's objects, sorted, which for the benchmark
            gives its usual 20.
        difficult: Whether objects marked as difficult count.

    Raises:
        BadData: naming file and line.
        UsageError: ``images`` is no folder.
    """
    path = Path(path)
    root = root_folder(path, images)
    home = path / f"VOC{year}"
    listing = home / "ImageSets" / "Main" / f"{image_set}.txt"
    entries = list(_annotated(home, listing, difficult=difficult))
    if not entries:
        raise BadData(f"{listing}: no pictures are listed")
    objects = {name: where for *_, entry in entries for name, where in entry.items()}
    names = tuple(sorted(objects)) if labels is None else tuple(labels)
    columns = label_columns(names, str(listing))
    for name, where in objects.items():
        if name not in columns:
            raise unknown_label(where, name, names)
    rows = (Row(where, picture, [columns[name] for name in entry]) for where, picture, entry in entries)
    return collect(listing, root, rows, names)


def _annotated(home: Path, listing: Path, *, difficult: bool) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield ``file:line``, picture path and objects of every picture in an image set."""
    for where, picture in read_lines(listing):
        if not PICTURE_ID.fullmatch(picture):
            raise BadData(f"{where}: read {picture[:80]!r}, expected one picture id such as 2008_000023")
        annotation = home / "Annotations" / f"{picture}.xml"
        if not annotation.is_file():
            raise BadData(f"{where}: {picture!r} has no annotation {annotation}")
        suffix, objects = _read_annotation(annotation, difficult=difficult)
        yield where, f"{home.name}/JPEGImages/{picture}{suffix}", objects


def _read_annotation(path: Path, *, difficult: bool) -> tuple[str, dict[str, str]]:
    """Return the picture's suffix, and where each object name was read first."""
    try:
        tree = ElementTree.fromstring(read_bytes(path))
    except ElementTree.ParseError as error:
        raise BadData(f"{path}:{error.position[0]}: not XML ({error})") from error
    except (LookupError, ValueError) as error:
        raise BadData(f"{path}:1: the declared encoding cannot be read ({error})") from error
    if tree.tag != "annotation":
        raise BadData(f"{path}:1: the outer element is <{tree.tag}>, expected <annotation>")
    objects: dict[str, str] = {}
    for index, element in enumerate(tree.findall("object")):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise BadData(f"{path}: object {index + 1} has no <name>")
        if not difficult and (element.findtext("difficult") or "0").strip() != "0":
            continue
        objects.setdefault(name, f"{path}: object {index + 1}")
    filename = (tree.findtext("filename") or "").strip()
    return Path(filename).suffix if is_image_name(filename) else ".jpg", objects
