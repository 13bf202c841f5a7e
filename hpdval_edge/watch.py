"""Whether a bundle on disk is still the one that was read."""

from pathlib import Path

from hpdval_edge.bundle import MANIFEST, Bundle, load_bundle
from hpdval_edge.errors import BadData

Stamp = tuple[int, int, int, int]


def stamp(path: Path) -> Stamp | None:
    """What changes whenever the bundle is written anew, for the price of one stat; None where it is not there.

    Device, inode, time of the last change in nanoseconds and size of its manifest, or of the whole where it is zipped.
    """
    try:
        found = (path / MANIFEST if path.is_dir() else path).stat()
    except OSError:
        # Between the two renames of a writer; one that was killed there left the old bundle aside.
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def load_unchanged(path: Path) -> tuple[Stamp | None, Bundle]:
    """A bundle and its stamp; read again where a writer put another one in its place while it was read.

    Raises:
        UsageError, BadData: see `load_bundle`; nobody wrote meanwhile.
    """
    while True:
        before = stamp(path)
        try:
            bundle = load_bundle(path)
        except BadData:
            if stamp(path) == before:
                raise
            continue
        if stamp(path) == before:
            return before, bundle
