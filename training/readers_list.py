"""Lists in the form ``relative/path.jpg id id ...`` with a file of label names, as published for long-tailed sets."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.images import IMAGE_SUFFIXES
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.readers_rows import Row, collect, label_columns, read_lines, root_folder, tidy_path

# The last picture suffix that is followed by a blank or the end of the line closes the path, so paths may hold blanks.
LINE = re.compile(rf"(.*\.(?:{'|'.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))}))(?:\s+(.*))?", re.IGNORECASE)
NUMBERED_NAME = re.compile(r"(.*\S)\s+(\d{1,9})", re.ASCII)
LABEL_ID = re.compile(r"\d{1,9}", re.ASCII)


def read_list(path: str | Path, *, images: Path | None = None, labels: Sequence[str] | None = None) -> LabelledImages:
    """Read a list of lines ``relative/path.jpg id id ...``, ids counted from 0.

    A line without ids is a picture without labels. Blank lines do not count.

    Args:
        path: The list.
        images: Folder that the paths start from; default: the list's own.
        labels: Label names in id order; default: from the label file beside the list, see ``find_label_file``.

    Raises:
        BadData: naming file and line.
        UsageError: ``images`` is no folder, or no single label file fits.
    """
    path = Path(path)
    root = root_folder(path.parent, images)
    lines = read_lines(path)
    names = tuple(labels) if labels is not None else read_label_names(find_label_file(path))

    def rows() -> Iterator[Row]:
        for where, line in lines:
            match = LINE.fullmatch(line)
            if match is None:
                raise BadData(f"{where}: read {line[:80]!r}, expected 'relative/path.jpg id id ...'")
            yield Row(where, tidy_path(match[1], root, where), _ids(where, (match[2] or "").split(), len(names)))

    return collect(path, root, rows(), names)


def _ids(where: str, words: list[str], count: int) -> list[int]:
    for word in words:
        if not LABEL_ID.fullmatch(word) or int(word) >= count:
            raise BadData(f"{where}: read the label id {word!r}, expected whole numbers from 0 to {count - 1}")
    return [int(word) for word in words]


def read_label_names(path: str | Path) -> tuple[str, ...]:
    """Read label names in id order: lines ``name id`` in any order with ids 0..C-1, or one name per line.

    Names may hold blanks and underscores. The file counts as numbered when most of its lines end in a number; then
    every line must.
    """
    path = Path(path)
    lines = read_lines(path)
    matches = [NUMBERED_NAME.fullmatch(line) for _, line in lines]
    if 2 * sum(match is not None for match in matches) <= len(lines):
        return tuple(label_columns([line for _, line in lines], str(path)))
    names: dict[int, str] = {}
    for (where, line), match in zip(lines, matches, strict=True):
        if match is None:
            raise BadData(f"{where}: read {line!r}, expected 'name id' as on the other lines")
        number = int(match[2])
        if number >= len(lines) or number in names:
            raise BadData(f"{where}: read the id {number}, expected 0 to {len(lines) - 1}, each once")
        names[number] = match[1]
    return tuple(label_columns([names[number] for number in range(len(lines))], str(path)))


def find_label_file(path: Path) -> Path:
    """Find the label names that belong to a list.

    Beside ``coco_lt_train.txt`` that is the first there is of ``coco_lt_train_labels.txt``, ``coco_lt_labels.txt``,
    ``coco_labels.txt`` and ``labels.txt``, else the only ``*labels*.txt``.

    Raises:
        UsageError: none, or several that fit equally well.
    """
    stem = path.stem
    while stem:
        if (candidate := path.with_name(f"{stem}_labels.txt")).is_file():
            return candidate
        stem = stem.rpartition("_")[0]
    if (candidate := path.with_name("labels.txt")).is_file():
        return candidate
    found = sorted(path.parent.glob("*labels*.txt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found)
        problem = f"several files beside the list fit ({names})" if found else "no '*labels*.txt' lies beside the list"
        raise UsageError(f"{path}: its label names are needed, but {problem}; give the right one as labels")
    return found[0]
