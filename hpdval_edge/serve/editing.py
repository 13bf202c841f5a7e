"""Edits of a bundle's labels, from the page and from other clients: one at a time, each with a limit on its time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from hpdval_edge.bundle import Bundle
from hpdval_edge.errors import HpedgeError
from hpdval_edge.progress import say
from hpdval_edge.serve.additions import EDITS_ARE_OFF
from hpdval_edge.serve.refusal import Refusal, refusal_of
from hpdval_edge.serve.reloading import Reloader, error_line
from hpdval_edge.serve.settings import Settings

Result = TypeVar("Result")
Change = Callable[[Bundle], Callable[[], object]]
NOTHING_YET = (
    "nothing was changed, and will not be. Try again; where it takes that long, start with a larger --edit-timeout."
)
WRITING = "it is being written, whole or not at all; look at the labels (GET /v1/labels) before you send it again."
WRITTEN = "it is written, and the old labels answer until the engine is ready; GET /v1/labels says when."


@dataclass(slots=True)
class _Edit:
    """How far an edit is, told if its time is over; an abandoned one writes nothing any more."""

    reached: str = NOTHING_YET
    abandoned: bool = False


class Editor:
    """Lets labels be edited as ``settings`` say; ``reloader`` takes over what was written. For the event loop."""

    def __init__(self, reloader: Reloader, settings: Settings) -> None:
        self._reloader = reloader
        self._settings = settings
        self._busy = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "edit")

    async def edit(self, change: Change) -> None:
        """Make an edit; ``change`` takes the bundle and makes all ready, and what it returns writes the bundle anew.

        Raises:
            Refusal: 403 edits are off, 422 what ``change`` refuses, 503 what is missing here, the bundle on disk cannot
            be used, or another edit does not end, 504 it took too long.
        """
        if not self._settings.edit:
            raise Refusal(403, EDITS_ARE_OFF)
        loop, limit = asyncio.get_running_loop(), self._settings.edit_timeout
        end = loop.time() + limit
        try:
            await asyncio.wait_for(self._busy.acquire(), limit)
        except asyncio.TimeoutError:
            raise Refusal(
                503,
                f"an edit sent before did not end within {limit:g} s; nothing was changed, try again.",
                retry_after=1,
            ) from None
        edit = _Edit()
        # Not ended with the request: a thread goes on, and the next edit must not begin before it has ended.
        task = loop.create_task(self._make(change, edit))
        await asyncio.wait([task], timeout=end - loop.time())
        if not task.done():
            edit.abandoned = True
            task.add_done_callback(_told)
            raise Refusal(504, f"the edit did not end within {limit:g} s: {edit.reached}")
        if error := task.exception():
            raise refusal_of(error) if isinstance(error, HpedgeError) else error

    async def _make(self, change: Change, edit: _Edit) -> None:
        try:
            # Also what another program wrote since the last look is there before the change is made.
            await self._look("nothing was changed")
            bundle = self._reloader.current.bundle
            write = await self._in_thread(lambda: change(bundle))
            if edit.abandoned:
                return
            edit.reached = WRITING
            await self._in_thread(write)
            edit.reached = WRITTEN
            await self._look("the labels were written all the same")
        finally:
            self._busy.release()

    async def _look(self, reached: str) -> None:
        """Take over what is on disk; where that cannot be, it is the server's trouble, not the request's."""
        try:
            await self._reloader.look()
        except HpedgeError as error:
            raise Refusal(503, f"{reached}, but the bundle on disk cannot be used: {error}") from None

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def stop(self) -> None:
        """End the thread, after what it is writing."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)


def _told(task: asyncio.Task[None]) -> None:
    """What became of an edit whose client was told that it takes too long."""
    if not task.cancelled() and (error := task.exception()):
        say(f"hpedge: an edit of labels that took too long failed: {error_line(error)}")
