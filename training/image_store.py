"""All pictures of a data set at one size: checked once, decoded once, then read from one memory-mapped array."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpdval_edge.atomic import FULL_DISK, write_file
from hpdval_edge.errors import BadData, MissingDependency
from hpdval_edge.images import open_rgb, resize_squash
from hpdval_edge.training.dataset import LabelledImages

# Part of every cache key; raise it when the pixels of an unchanged picture change.
VERSION = 2
SHOWN_PICTURES = 20
# Pictures decoded before their rows are written, so that memory stays bounded.
BLOCK = 256
MAX_THREADS = 16

Progress = Callable[[int, int], None]


class ImageStore:
    """Resized pictures by index: ``store[indices]`` is uint8 [b, S, S, 3], a fresh array.

    Making one reads every picture, unless a cache of the same files at the same size is there. The cache is one
    ``.npy`` file of n * S * S * 3 bytes, named by the sha256 of paths, file sizes, modification times, S and VERSION.

    Args:
        data: The pictures.
        size: S, side in pixels.
        cache: Folder for the cache file, made when missing; None decodes on each access instead.
        threads: Decoding threads; default: one per core this process may use, at most 16.
        on_progress: Called with (done, total) after every picture of the first pass.

    Raises:
        BadData: at least one picture cannot be read; the first 20 are listed with their reasons.
        MissingDependency: the cache folder has too little space or may not be written; no partial file stays.
    """

    def __init__(
        self,
        data: LabelledImages,
        size: int,
        *,
        cache: Path | None,
        threads: int | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1 or None, got {threads}")
        self.data = data
        self.size = size
        self._threads = threads or min(len(os.sched_getaffinity(0)), MAX_THREADS)
        self._on_progress = on_progress or (lambda done, total: None)
        self._array: np.ndarray | None = None
        self.cache_file = None if cache is None else Path(cache) / f"{cache_key(data, size)}.npy"
        if self.cache_file is None:
            self._raise_for_bad([problem for _, problem in self._decode_all() if problem])
            return
        self._array = self._load()
        if self._array is None:
            write_file(self.cache_file, self._write)
            self._array = self._load()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.data)

    def __getitem__(self, indices: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """Return pictures as uint8 [b, S, S, 3], writable.

        Args:
            indices: b integers in [0, n), repetitions allowed, or a slice.
        """
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self)))
        picked = np.asarray(indices)
        if picked.ndim != 1 or (picked.size and not np.issubdtype(picked.dtype, np.integer)):
            raise TypeError(f"indices must be a 1-D sequence of integers, got {picked.dtype} {list(picked.shape)}")
        if picked.size and not (picked.min() >= 0 and picked.max() < len(self)):
            raise IndexError(f"indices must lie in [0, {len(self)}), got {picked.min()} to {picked.max()}")
        picked = picked.astype(np.int64)
        if self._array is not None:
            return self._array[picked]
        pixels = np.empty((len(picked), self.size, self.size, 3), np.uint8)
        with ThreadPoolExecutor(self._threads) as pool:
            for row, decoded in enumerate(pool.map(self._decode, picked)):
                pixels[row] = decoded
        return pixels

    def _decode(self, index: int) -> np.ndarray:
        return resize_squash(open_rgb(self.data.absolute(index)), self.size)

    def _decode_or_explain(self, index: int) -> tuple[np.ndarray | None, str | None]:
        try:
            return self._decode(index), None
        except BadData as error:
            return None, str(error)

    def _decode_all(self) -> Iterator[tuple[np.ndarray | None, str | None]]:
        """Yield the pixels, or what is wrong, of every picture in order."""
        total, done = len(self), 0
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, total, BLOCK):
                for result in pool.map(self._decode_or_explain, range(start, min(start + BLOCK, total))):
                    done += 1
                    self._on_progress(done, total)
                    yield result

    def _raise_for_bad(self, problems: list[str]) -> None:
        if not problems:
            return
        shown = problems[:SHOWN_PICTURES]
        if len(problems) > SHOWN_PICTURES:
            shown.append(f"... and {len(problems) - SHOWN_PICTURES} more")
        raise BadData(
            f"{len(problems)} of the {len(self)} pictures below {self.data.root} cannot be used; repair them, take "
            "them out of the data set, or give the folder they lie in as images:\n  " + "\n  ".join(shown)
        )

    def _load(self) -> np.ndarray | None:
        """Map the cache file; None when there is none, or one that was cut short and must be made again."""
        try:
            mapped = np.load(self.cache_file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            return None
        # What numpy raises on a damaged header and on missing bytes.
        except (ValueError, EOFError, SyntaxError):
            return None
        # The plain array class, so that indexing returns one too.
        return mapped.view(np.ndarray) if mapped.shape == self._shape() and mapped.dtype == np.uint8 else None

    def _shape(self) -> tuple[int, int, int, int]:
        return len(self), self.size, self.size, 3

    def _write(self, partial: Path) -> None:
        """Fill ``partial`` row after row: writing to a memory map would kill the process when the disk is full."""
        needed = int(np.prod(self._shape()))
        folder = partial.parent
        try:
            if shutil.disk_usage(folder).free < needed:
                raise _no_space(folder, needed)
            with partial.open("wb") as file:
                self._write_rows(file)
        except OSError as error:
            if error.errno in FULL_DISK:
                raise _no_space(folder, needed) from error
            raise

    def _write_rows(self, file: BinaryIO) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": self._shape()}
        np.lib.format.write_array_header_1_0(file, header)
        problems: list[str] = []
        for pixels, problem in self._decode_all():
            if problem is not None:
                problems.append(problem)
            elif not problems:
                file.write(pixels.data)
        self._raise_for_bad(problems)


def _no_space(folder: Path, needed: int) -> MissingDependency:
    return MissingDependency(
        f"no space left in {folder}: the picture cache needs {needed} bytes ({needed / 2**30:.2f} GiB); free some, or "
        "run with --set data.cache=false to decode pictures on each use"
    )


def cache_key(data: LabelledImages, size: int) -> str:
    """sha256 of everything that decides the cached pixels; a missing file counts as one of size -1."""
    digest = hashlib.sha256(f"{VERSION}\n{size}\n{data.root.resolve()}\n".encode())
    for path in data.paths:
        try:
            status = os.stat(data.root / path)
            size_and_time = (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            size_and_time = (-1, -1)
        digest.update(f"{path!r} {size_and_time}\n".encode())
    return digest.hexdigest()
