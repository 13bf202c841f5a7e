"""Whole lines, whatever happens while one is written."""

import contextlib
from pathlib import Path
from typing import TextIO

from hpdval_edge.atomic import append_whole, disk_errors


class WholeLines:
    """Writes text to ``stream`` so that a file never ends in half a line: a write that fails is taken back.

    Only a machine that stops, or a reader at the other end of a pipe, can see half a line.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.name = Path(getattr(stream, "name", "the output"))
        stream.flush()
        self.descriptor: int | None = None
        # A stream of a test or a notebook has none.
        with contextlib.suppress(OSError):
            self.descriptor = stream.fileno()

    def write(self, text: str) -> None:
        """Write ``text``, one line or several, at once.

        Raises:
            MissingDependency: the disk is full. BrokenPipeError: the reader has left.
        """
        if self.descriptor is None:
            self.stream.write(text)
            self.stream.flush()
            return
        with disk_errors(self.name):
            # Past Python's buffers, which would keep what failed and write it later.
            # File names that are no UTF-8 are written as they are.
            append_whole(self.descriptor, text.encode("utf-8", "surrogateescape"))

    def close(self) -> None:
        """Close a file; stdout and what has no descriptor are others' to close."""
        if self.descriptor is not None and self.descriptor > 2:
            self.stream.close()
