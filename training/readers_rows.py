"""What every reader shares: text files with a line number for each mistake, picture paths, and rows to targets."""

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.dataset import LabelledImages

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class Row(NamedTuple):
    """One picture: where it was read (``file:line``), its path below the root, and its label ids in [0, C)."""

    where: str
    path: str
    ids: Iterable[int]


def read_bytes(path: Path) -> bytes:
    """Whole file, or BadData that says why it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadData(f"{path}: there is no such file") from error
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: Path) -> str:
    """UTF-8 text with or without BOM, line ends of any system turned into ``\\n``; other encodings are BadData."""
    raw = read_bytes(path)
    if raw.startswith(UTF16_MARKS):
        raise BadData(f"{path}:1: the file is UTF-16, expected UTF-8; save it again as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        raise BadData(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; save the file again as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[tuple[str, str]]:
    """``(file:line, stripped text)`` of every line that is not blank."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(f"{path}:{number}", line.strip()) for number, line in lines if line.strip()]


def root_folder(default: Path, images: Path | None) -> Path:
    """Folder that picture paths start from: ``images`` when given, which must exist, else ``default``."""
    if images is None:
        return default
    if not Path(images).is_dir():
        raise UsageError(
            f"images is {str(images)!r}, which is no folder; give the folder that picture paths start from"
        )
    return Path(images)


def tidy_path(text: str, root: Path, where: str) -> str:
    """Return a picture path relative to ``root`` with forward slashes; absolute and Windows spellings are accepted."""
    path = text.strip().replace("\\", "/")
    if re.match(r"[A-Za-z]:/", path):
        raise BadData(f"{where}: {text!r} names a Windows drive; give the path relative to {root}")
    if path.startswith("/"):
        path = os.path.relpath(path, root.absolute())
    path = posixpath.normpath(path) if path else ""
    if path in ("", ".", "..") or path.endswith("/.."):
        raise BadData(f"{where}: {text!r} is no picture path")
    return path


def label_columns(labels: Sequence[str], where: str) -> dict[str, int]:
    """Map every label name to its column; BadData for no label, an empty one or one named twice."""
    if isinstance(labels, str):
        raise TypeError(f"labels must be a sequence of names, got the single string {labels!r}")
    columns: dict[str, int] = {}
    for name in labels:
        if not isinstance(name, str) or not name.strip():
            raise BadData(f"{where}: a label name is {name!r}, expected text")
        if name in columns:
            raise BadData(f"{where}: the label {name!r} is there twice")
        columns[name] = len(columns)
    if not columns:
        raise BadData(f"{where}: no labels")
    return columns


def unknown_label(where: str, name: str, labels: Iterable[str]) -> BadData:
    """Build the error for a label that is not among ``labels``."""
    known = list(labels)
    shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
    return BadData(f"{where}: unknown label {name!r}, expected one of the {len(known)} labels {shown}")


def collect(source: Path, root: Path, rows: Iterable[Row], labels: Sequence[str]) -> LabelledImages:
    """Turn rows into LabelledImages; BadData for no row at all or a picture on two of them."""
    label_columns(labels, str(source))
    listed = list(rows)
    if not listed:
        raise BadData(f"{source}: no pictures are listed")
    seen: dict[str, str] = {}
    targets = np.zeros((len(listed), len(labels)), np.uint8)
    for index, row in enumerate(listed):
        if row.path in seen:
            raise BadData(f"{row.where}: {row.path!r} is there twice, first at {seen[row.path]}; give it one entry")
        seen[row.path] = row.where
        targets[index, list(row.ids)] = 1
    return LabelledImages(Path(root), tuple(seen), targets, tuple(labels))
