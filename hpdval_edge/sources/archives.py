"""Pictures in zip and tar archives, read one after another and never unpacked to disk."""

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO

from hpdval_edge.images import decode_rgb, is_image_name
from hpdval_edge.sources.frame import Frame, Pixels, unreadable

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
# A larger member is refused: of what it unpacks to, no more than this is ever held.
MAX_MEMBER = 256 * 2**20
# What the standard library raises on archives that are damaged or use what it does not know.
_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, NotImplementedError, RuntimeError, ValueError),
)


class Archive:
    """The pictures of one archive in its order, hidden ones left out, called ``archive.zip/inner/a.jpg``.

    A member that is encrypted, damaged or too large is a frame that cannot be read, and so is the rest of an archive
    from where it is damaged. exact: `SourceOptions.exact_decode`.
    """

    live = False

    def __init__(self, path: str, *, exact: bool = False) -> None:
        self.path = path
        self.exact = exact

    def __iter__(self) -> Iterator[Frame]:
        members = _zip_members if zipfile.is_zipfile(self.path) else _tar_members
        found = False
        try:
            with closing(members(self.path)) as pictures:
                for name, content in pictures:
                    found = True
                    yield self._frame(f"{self.path}/{name}", content)
        except _ERRORS as error:
            yield unreadable(self.path, f"the archive is damaged or of an unknown kind ({_words(error)})")
            return
        if not found:
            yield unreadable(self.path, "the archive holds no pictures")

    def _frame(self, name: str, content: bytes | str) -> Frame:
        if isinstance(content, str):
            return unreadable(name, content)
        return Frame(name, partial(_decode, name, content, self.exact))

    def close(self) -> None:
        """The file is closed with the iteration."""


def _decode(name: str, content: bytes, exact: bool, size: int) -> Pixels:
    return decode_rgb(content, name, at_least=None if exact else 2 * size)


def _zip_members(path: str) -> Iterator[tuple[str, bytes | str]]:
    """Yield the name and the content of each picture, or why it has none."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not _is_picture(member.filename):
                continue
            if member.flag_bits & 1:
                yield member.filename, "encrypted; unpack the archive with its password first"
                continue
            try:
                with archive.open(member) as file:
                    content = _bounded(file, member.file_size)
            except _ERRORS as error:
                content = f"damaged in the archive ({_words(error)})"
            yield member.filename, content


def _tar_members(path: str) -> Iterator[tuple[str, bytes | str]]:
    """As ``_zip_members``; read front to back, as compressed archives must be."""
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile() and _is_picture(member.name):
                yield member.name, _bounded(archive.extractfile(member), member.size)
            # tarfile keeps all that it has passed, which a million members would feel.
            archive.members = []


def _bounded(file: BinaryIO, size: int) -> bytes | str:
    """The content, whatever its header promised, or why it is refused."""
    too_large = f"unpacks to more than the limit of {MAX_MEMBER} bytes"
    if size > MAX_MEMBER:
        return too_large
    content = file.read(MAX_MEMBER + 1)
    return content if len(content) <= MAX_MEMBER else too_large


def _is_picture(name: str) -> bool:
    hidden = any(part.startswith(".") and part not in (".", "..") for part in PurePosixPath(name).parts)
    return is_image_name(name) and not hidden


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
