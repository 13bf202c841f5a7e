"""Pictures of many requests share engine calls: a bounded queue before one worker thread."""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from hpdval_edge.serve.refusal import Refusal

Item = TypeVar("Item")
Answer = TypeVar("Answer")
# How much the last batch weighs in the running mean of seconds per picture.
NEWEST = 0.2
LONGEST_RETRY = 60


# Told apart by identity: arrays cannot be compared.
@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[Item, Answer]):
    item: Item
    answer: "asyncio.Future[Answer]"
    since: float


class BatchQueue(Generic[Item, Answer]):
    """Runs items in batches; ``run`` takes a list of items in the worker thread and returns their answers in order.

    A batch starts when ``max_batch`` items wait, when all admitted ones wait, or when the oldest has waited
    ``max_wait`` seconds; while the engine is busy the queue fills by itself. All methods belong to the event loop.
    """

    def __init__(
        self, run: Callable[[list[Item]], Sequence[Answer]], *, max_batch: int, max_wait: float, max_queue: int
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "engine")
        self._worker: asyncio.Task[None] | None = None
        self._seconds_per_item = 0.0
        self.admitted = 0

    @property
    def alive(self) -> bool:
        """Whether items that are submitted will be run."""
        return self._worker is not None and not self._worker.done()

    @property
    def full(self) -> bool:
        """Whether not one item more is admitted now."""
        return self.admitted >= self._max_queue

    def start(self) -> None:
        """Begin to run items."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Refuse what still waits, and end the thread after the call that it is in."""
        if self._worker:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                waiting.answer.set_exception(Refusal(503, "the server is shutting down."))
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    @contextlib.contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Hold ``count`` places, from before an item is made until its answer is out; Refusal 429 if there are none."""
        if self.admitted + count > self._max_queue:
            raise self.busy()
        self.admitted += count
        self._arrived.set()
        try:
            yield
        finally:
            self.admitted -= count
            self._arrived.set()

    def busy(self) -> Refusal:
        """Refusal 429 that tells when the pictures admitted now should be through."""
        seconds = min(LONGEST_RETRY, max(1, math.ceil(self.admitted * self._seconds_per_item)))
        return Refusal(
            429,
            f"{self.admitted} pictures are being worked on and the limit is {self._max_queue}; "
            f"try again in {seconds} s.",
            retry_after=seconds,
        )

    async def submit(self, item: Item) -> Answer:
        """The answer to ``item``; what ``run`` raises is raised here."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(item, loop.create_future(), loop.time())
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            return await waiting.answer
        finally:
            # One whose time ran out gave its place back, and must not stay here while a call of the engine lasts.
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._collect()
            started = loop.time()
            done = loop.run_in_executor(self._thread, self._run, [waiting.item for waiting in batch])
            await asyncio.wait([done])
            error = done.exception()
            answers = [None] * len(batch) if error else done.result()
            for waiting, answer in zip(batch, answers, strict=True):
                # A request that ran out of time, or whose client left, takes no answer any more.
                if not waiting.answer.done():
                    waiting.answer.set_exception(error) if error else waiting.answer.set_result(answer)
            if batch:
                seconds = (loop.time() - started) / len(batch)
                self._seconds_per_item += NEWEST * (seconds - self._seconds_per_item)

    async def _collect(self) -> list[_Waiting[Item, Answer]]:
        """Wait for items; up to ``max_batch`` of them, oldest first."""
        loop = asyncio.get_running_loop()
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        start = self._waiting[0].since + self._max_wait
        while len(self._waiting) < min(self._max_batch, self.admitted) and loop.time() < start:
            self._arrived.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), start - loop.time())
        batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
        return [waiting for waiting in batch if not waiting.answer.done()]
