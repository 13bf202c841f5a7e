"""CSV tables: ``path,labels`` with ``a;b`` in the second column, or one 0/1 column per label."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

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

PATH_HEADERS = ("path", "image", "file")
LABEL_HEADERS = ("label", "labels")
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True}
EXPECTED = "'path,labels' or 'path' and one column per label"


def read_csv(path: str | Path, *, images: Path | None = None, labels: Sequence[str] | None = None) -> LabelledImages:
    """Read a CSV table; its header decides which of the two layouts it is.

    ``path,labels``: names separated by ``;``, an empty cell is a picture without labels. ``path,cat,dog,...``: 0 or 1
    in every cell. ``image`` or ``file`` may stand for ``path``, ``label`` for ``labels``, in capitals or not.

    Args:
        path: The table: commas, UTF-8, quotes around a cell that holds a comma.
        images: Folder that the paths start from; default: the table's own.
        labels: Label names in column order; default: sorted names of the first layout, header order of the second.

    Raises:
        BadData: naming file and line.
        UsageError: ``images`` is no folder.
    """
    path = Path(path)
    root = root_folder(path.parent, images)
    table = list(_cells(path))
    if not table:
        raise BadData(f"{path}: an empty table, expected the header {EXPECTED}")
    header = [cell.strip() for cell in table[0][1]]
    lowered = [name.lower() for name in header]
    path_at = [index for index, name in enumerate(lowered) if name in PATH_HEADERS]
    labels_at = [index for index, name in enumerate(lowered) if name in LABEL_HEADERS]
    if len(path_at) != 1 or len(header) < 2 or (labels_at and len(header) > 2):
        raise BadData(f"{table[0][0]}: read the header {','.join(header)[:80]!r}, expected {EXPECTED}")
    for where, cells in table[1:]:
        if len(cells) != len(header):
            raise BadData(f"{where}: read {len(cells)} cells, expected {len(header)} as in the header")
    pictures = [(where, tidy_path(cells[path_at[0]], root, where)) for where, cells in table[1:]]
    if labels_at:
        texts = [[part.strip() for part in cells[labels_at[0]].split(";") if part.strip()] for _, cells in table[1:]]
        names = tuple(sorted({name for row in texts for name in row})) if labels is None else tuple(labels)
    else:
        del header[path_at[0]]
        columns = label_columns(header, table[0][0])
        names = tuple(header if labels is None else labels)
        _check_same_labels(table[0][0], columns, names)
        texts = [_flagged(where, cells, path_at[0], header) for where, cells in table[1:]]
    return collect(path, root, _rows(pictures, texts, names), names)


def _cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield ``(file:line, cells)`` of every row that is not blank."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    first = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"{path}:{first}", cells
            # A quoted cell may run over several lines; the row is named by its first.
            first = reader.line_num + 1
    except csv.Error as error:
        raise BadData(f"{path}:{reader.line_num}: not a CSV row ({error})") from error


def _flagged(where: str, cells: list[str], path_at: int, header: list[str]) -> list[str]:
    """Names of the columns that hold 1."""
    flags = cells[:path_at] + cells[path_at + 1 :]
    for name, flag in zip(header, flags, strict=True):
        if flag.strip() not in FLAGS:
            raise BadData(f"{where}: read {flag!r} in the column {name!r}, expected 0 or 1")
    return [name for name, flag in zip(header, flags, strict=True) if FLAGS[flag.strip()]]


def _check_same_labels(where: str, columns: dict[str, int], names: Sequence[str]) -> None:
    for name in columns:
        if name not in names:
            raise unknown_label(where, name, names)
    for name in names:
        if name not in columns:
            raise BadData(f"{where}: there is no column for the label {name!r}")


def _rows(pictures: list[tuple[str, str]], texts: list[list[str]], names: Sequence[str]) -> Iterator[Row]:
    columns = {name: index for index, name in enumerate(names)}
    for (where, picture), row in zip(pictures, texts, strict=True):
        for name in row:
            if name not in columns:
                raise unknown_label(where, name, names)
        yield Row(where, picture, [columns[name] for name in row])
