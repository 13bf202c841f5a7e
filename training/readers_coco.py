"""COCO instances JSON: a label is present when at least one of its boxes is."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpdval_edge.errors import BadData
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.readers_rows import (
    Row,
    collect,
    label_columns,
    read_text,
    root_folder,
    tidy_path,
    unknown_label,
)

NUMBER = (int, float)


def read_coco(
    path: str | Path, *, images: Path | None = None, labels: Sequence[str] | None = None, crowds: bool = True
) -> LabelledImages:
    """Read a COCO instances file.

    A box counts unless it is marked ``ignore``, is narrower or lower than 1 pixel or has an area of 0. An annotation
    without a box is a label of the whole picture. Pictures without annotations stay, without labels. The pictures keep
    the order of the file.

    Args:
        path: The JSON file, usually ``annotations/instances_train2017.json``.
        images: Folder that the paths start from; default: the folder above ``annotations``, or the file's own. Pictures
            lie in its subfolder ``train2017`` or ``images/train2017`` when there is one, for a file
            ``instances_train2017.json``, else directly in it.
        labels: Label names in column order; default: by rising category id.
        crowds: Whether annotations marked ``iscrowd`` count.

    Raises:
        BadData: naming file and line, or file and entry.
        UsageError: ``images`` is no folder.
    """
    path = Path(path)
    root = root_folder(path.parent.parent if path.parent.name == "annotations" else path.parent, images)
    content = _load(path)
    categories = _by_id(path, content, "categories", "name")
    names = tuple(categories[number] for number in sorted(categories)) if labels is None else tuple(labels)
    columns = label_columns(names, str(path))
    for name in categories.values():
        if name not in columns:
            raise unknown_label(f"{path} categories", name, names)
    files = _by_id(path, content, "images", "file_name")
    present = {number: set() for number in files}
    notes = content["annotations"]
    for picture, category in _boxes(path, notes, files, categories, crowds=crowds):
        present[picture].add(columns[categories[category]])
    prefix = _picture_folder(root, path.stem)

    def rows() -> Iterator[Row]:
        for number, name in files.items():
            where = f"{path} image id {number}"
            yield Row(where, tidy_path(prefix + name, root, where), present[number])

    return collect(path, root, rows(), names)


def _load(path: Path) -> dict[str, list]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise BadData(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
    # Python refuses to read numbers of thousands of digits, and lists nested as deep.
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path}: not a COCO instances file ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            got = f"keys {', '.join(map(str, content))[:60]}" if isinstance(content, dict) else type(content).__name__
            raise BadData(f"{path}: read {got}, expected a COCO instances file with a list {key!r}")
    return content


def _field(where: str, entry: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = {int: "a whole number", str: "text"}.get(kind, "a number")
        raise BadData(f"{where}: {key} is {value!r}, expected {wanted}")
    return value


def _by_id(path: Path, content: dict[str, list], part: str, key: str) -> dict[int, str]:
    """Map ids to the text ``key`` of the entries of ``part``; an id twice is BadData."""
    texts: dict[int, str] = {}
    for index, entry in enumerate(content[part]):
        where = f"{path} {part}[{index}]"
        number = _field(where, entry, "id", int)
        if number in texts:
            raise BadData(f"{where}: the id {number} is there twice")
        texts[number] = _field(where, entry, key, str)
    return texts


def _boxes(
    path: Path, annotations: list[Any], files: dict[int, str], categories: dict[int, str], *, crowds: bool
) -> Iterator[tuple[int, int]]:
    """Yield the picture id and the category id of every annotation that counts."""
    for index, note in enumerate(annotations):
        where = f"{path} annotations[{index}]"
        picture, category = _field(where, note, "image_id", int), _field(where, note, "category_id", int)
        if picture not in files or category not in categories:
            unknown = f"image_id {picture}" if picture not in files else f"category_id {category}"
            raise BadData(f"{where}: {unknown} is not listed in the file")
        if _counts(where, note) and (crowds or not note.get("iscrowd")):
            yield picture, category


def _counts(where: str, note: dict[str, Any]) -> bool:
    if note.get("ignore"):
        return False
    if "bbox" not in note:
        return True
    box = note["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, NUMBER) for side in box):
        raise BadData(f"{where}: bbox is {box!r}, expected [x, y, width, height]")
    width, height = box[2:]
    area = _field(where, note, "area", NUMBER) if "area" in note else width * height
    return width >= 1 and height >= 1 and area > 0


def _picture_folder(root: Path, stem: str) -> str:
    part = stem.rpartition("_")[2]
    return next((f"{folder}/" for folder in (part, f"images/{part}") if (root / folder).is_dir()), "")
