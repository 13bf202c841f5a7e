"""Writes that are there whole or not at all: a sibling is written first and renamed last."""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from hpdval_edge.errors import MissingDependency

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
NO_PLACE = (
    *(errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    errno.ENAMETOOLONG,
)


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Inside, a full disk or a place that cannot be written to is a MissingDependency that names ``target``."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise MissingDependency(
                f"no space left to write {target}; free some disk space and run the same command again, "
                "what was finished before is kept."
            ) from error
        if error.errno in NO_PLACE:
            raise MissingDependency(f"{target} cannot be written ({error.strerror}); choose another folder.") from error
        raise


def check_folder(folder: Path) -> None:
    """As ``disk_errors`` would when files are written below ``folder``, but before: nothing is made.

    Raises:
        MissingDependency: it, or what it would lie in, is a file or takes none.
    """
    with disk_errors(folder):
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_file(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary sibling, then rename it to ``target``; on any error ``target`` stays as it was."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
        os.close(handle)
        partial = Path(name)
        try:
            write(partial)
            partial.chmod(0o644)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """``write_file`` for UTF-8 text."""
    write_file(target, lambda path: path.write_text(text, encoding="utf-8"))


def append_whole(descriptor: int, data: bytes) -> None:
    """Append ``data`` to an open file, all of it or, where that fails, nothing; a pipe keeps what it took."""
    is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    before = os.fstat(descriptor).st_size
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        if left and is_file:
            os.ftruncate(descriptor, before)
            os.lseek(descriptor, before, os.SEEK_SET)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that takes ``target``'s place when the block ends well.

    An older ``target`` is moved aside first and removed last. A process killed in between leaves it under a hidden
    name, where ``put_back`` finds it; other ``.partial`` siblings are removed by the next call, except those of writers
    at work.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        put_back(target)
        for stale in _siblings(target, ".partial"):
            _remove_stale(stale)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
        partial.chmod(0o755)
        old = partial.with_suffix(".old.partial")
        with locked(partial):
            try:
                yield partial
                _exchange(target, partial, old)
            finally:
                # Also what ends between the two renames, such as Ctrl-C, leaves the old folder.
                put_back(target)
                for folder in (old, partial):
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other program is that locks ``folder``, on file systems that lock folders; NFS, for one, does not."""
    with disk_errors(folder):
        lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_stale(folder: Path) -> None:
    """Remove a ``.partial`` folder of a writer that was killed; one that is at work holds a lock on its new folder."""
    new = folder.with_name(folder.name.replace(".old.partial", ".partial"))
    try:
        lock = os.open(new if new.exists() else folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            # Of a file system without locks nobody can tell.
            pass
        # While it is locked: a writer that has just made it must not begin in the middle.
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def put_back(target: Path) -> None:
    """Rename what a killed ``new_folder`` had moved aside to ``target`` again, where no new one took its place.

    Raises:
        MissingDependency: it cannot be renamed; names both.
    """
    if target.exists():
        return
    for old in _siblings(target, ".old.partial"):
        try:
            old.rename(target)
            return
        except OSError as error:
            # A writer that is alive goes on as well, and may have been faster.
            if not target.exists():
                raise MissingDependency(
                    f"{target} was moved aside by a writer that was killed and cannot be put back ({error.strerror}); "
                    f"rename {old} to {target}."
                ) from error


def _exchange(target: Path, new: Path, old: Path) -> None:
    """Rename ``target``, where there is one, to ``old`` and ``new`` to ``target``."""
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # A reader came in between and put the old one back.
        target.rename(old)
        new.rename(target)


def _siblings(target: Path, suffix: str) -> Iterator[Path]:
    return target.parent.glob(f".{glob.escape(target.name)}.*{suffix}")
