"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

PLAIN_INTERVAL = 20.0


def say(text: str) -> None:
    """One line for people, never on stdout, which belongs to results."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Yield ``update(done, total)``; where nobody knows the total, ``update(done)``.

    On a terminal a rich bar is drawn and removed at the end; elsewhere a line is written about every 20 seconds, so
    that short work stays silent.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        if total is not None:
            columns.append(TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda done, total=None: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int | None = None) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_INTERVAL:
            last = time.monotonic()
            say(f"{description}: {done}" if total is None else f"{description}: {done} of {total}")

    yield line
