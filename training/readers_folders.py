"""A folder per label; a picture that lies in several of them has several labels."""

import filecmp
from collections.abc import Sequence
from pathlib import Path

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.images import images_below, is_image_name
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.readers_rows import Row, collect, unknown_label


def read_folders(path: str | Path, *, images: None = None, labels: Sequence[str] | None = None) -> LabelledImages:
    """Read ``<path>/<label>/.../picture.jpg``.

    Files with the same name and the same content under several labels are one picture with those labels, read from the
    first; files with the same name but other content are different pictures. Hidden names and other suffixes are left
    out.

    Args:
        path: Folder that holds one folder per label.
        images: Must be None: the folders hold the pictures themselves.
        labels: Label names in column order, some of which may have no folder here; default: the folder names, sorted.

    Raises:
        BadData: pictures outside every label folder, an unknown or an empty label folder, no folder at all.
        UsageError: ``images`` is given.
    """
    root = Path(path)
    if images is not None:
        raise UsageError(f"images is {str(images)!r}, but label folders hold the pictures themselves; leave it out")
    folders = label_folders(root)
    names = tuple(folder.name for folder in folders) if labels is None else tuple(labels)
    columns = {name: index for index, name in enumerate(names)}
    # Name below the label folder -> the distinct pictures of that name and their labels.
    pictures: dict[Path, list[tuple[Path, set[int]]]] = {}
    for folder in folders:
        if folder.name not in columns:
            raise unknown_label(str(folder), folder.name, names)
        found = images_below(folder)
        if not found and labels is None:
            raise BadData(f"{folder}: holds no picture, expected pictures of the label {folder.name!r}")
        for picture in found:
            twins = pictures.setdefault(picture.relative_to(folder), [])
            same = next((ids for first, ids in twins if _same_content(first, picture)), None)
            if same is None:
                twins.append((picture, {columns[folder.name]}))
            else:
                same.add(columns[folder.name])
    distinct = sorted(twin for twins in pictures.values() for twin in twins)
    rows = (Row(str(picture), picture.relative_to(root).as_posix(), ids) for picture, ids in distinct)
    return collect(root, root, rows, names)


def label_folders(root: Path) -> list[Path]:
    """Sorted folders directly below ``root``, hidden ones left out; a picture directly below ``root`` is BadData."""
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise BadData(f"{root}: the folder cannot be listed ({error.strerror})") from error
    loose = next((entry for entry in entries if entry.is_file() and is_image_name(entry.name)), None)
    if loose is not None:
        raise BadData(f"{loose}: lies outside every label folder; expected {root}/<label>/{loose.name}")
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _same_content(first: Path, second: Path) -> bool:
    try:
        return filecmp.cmp(first, second, shallow=False)
    except OSError as error:
        raise BadData(f"{error.filename}: cannot be read ({error.strerror})") from error
