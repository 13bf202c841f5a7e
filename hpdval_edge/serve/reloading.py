"""Keeps up with a bundle on disk: what changed is loaded aside, and taken over when it is ready."""

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor

from hpdval_edge.errors import HpedgeError
from hpdval_edge.predictor import Predictor
from hpdval_edge.progress import say
from hpdval_edge.serve.metrics import Metrics


class Reloader:
    """``current`` is a Predictor whose bundle stays as it is; a bundle that changed on disk makes another one current.

    A model is loaded in a thread of its own, and the old one answers meanwhile. All methods belong to the event loop.
    """

    def __init__(self, predictor: Predictor, metrics: Metrics) -> None:
        # A copy shares the engine, and keeps it when the other is reloaded.
        self._newest, self.current = copy.copy(predictor), copy.copy(predictor)
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "load")
        self._looking = asyncio.Lock()

    async def look(self) -> None:
        """Take over what changed on disk since the last look; what keeps it from being used is raised, the old stays.

        Raises:
            HpedgeError: see `Predictor.reload`. Others: whatever a damaged file or a failing disk causes.
        """
        async with self._looking:
            if await asyncio.get_running_loop().run_in_executor(self._thread, self._newest.reload):
                self.current = copy.copy(self._newest)
                self._metrics.reloads.inc()

    async def watch(self, poll: float) -> None:
        """Look every ``poll`` seconds. What cannot be used is told in one line, and tried again when a file changes."""
        told = failed = None
        while True:
            await asyncio.sleep(poll)
            files = await asyncio.get_running_loop().run_in_executor(self._thread, self._files)
            if files == failed:
                continue
            # Not HpedgeErrors alone: half a copy can be wrong in any way, and must not end the watch.
            (error,) = await asyncio.gather(self.look(), return_exceptions=True)
            failed = files if error else None
            reason = error_line(error) if error else None
            if reason and reason != told:
                say(f"hpedge: the bundle changed and cannot be used, the old one stays: {reason}")
            told = reason

    async def stop(self) -> None:
        """End the thread, after what it is loading."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    def _files(self) -> tuple[tuple[str, int, int, int], ...] | None:
        """Name, inode, time of change and size of every file of the bundle, for a copy may bring the model last.

        None where it is not there.
        """
        path = self.current.bundle.path
        try:
            found = [(str(file), file.stat()) for file in (path, *sorted(path.rglob("*")))]
        except OSError:
            return None
        return tuple((name, status.st_ino, status.st_ctime_ns, status.st_size) for name, status in found)


def error_line(error: BaseException) -> str:
    """An error as one line, with its type where it is no sentence of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, HpedgeError) else f"{type(error).__name__}: {text}"
