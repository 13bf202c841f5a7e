"""A bundle at work: pictures to answers."""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hpdval_edge.errors import HpedgeError
from hpdval_edge.images import decode_rgb
from hpdval_edge.predictor import Prediction, Predictor
from hpdval_edge.serve.answers import check_options, encode, picture_result
from hpdval_edge.serve.batching import BatchQueue
from hpdval_edge.serve.editing import Editor
from hpdval_edge.serve.intake import Upload
from hpdval_edge.serve.metrics import Metrics
from hpdval_edge.serve.refusal import Refusal, refusal_of
from hpdval_edge.serve.reloading import Reloader
from hpdval_edge.serve.schema import Options
from hpdval_edge.serve.settings import Settings

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture ready for the engine. size: (width, height) upright. pixels: as ``predictor.prepare`` makes them; it
    answers this picture also where another one became current meanwhile.
    """

    size: tuple[int, int]
    pixels: np.ndarray
    predictor: Predictor


class Service:
    """What the routes of the API do. All methods belong to the event loop."""

    def __init__(self, predictor: Predictor, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.reloader = Reloader(predictor, metrics)
        self.editor = Editor(self.reloader, settings)
        self.queue: BatchQueue[Prepared, Prediction] = BatchQueue(
            self._predict,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            max_queue=settings.max_queue,
        )
        self._decoders = ThreadPoolExecutor(settings.decoders, "decode")
        self._watcher: asyncio.Task[None] | None = None
        metrics.queue.set_function(lambda: self.queue.admitted)
        metrics.labels.set_function(lambda: len(self.predictor.labels))

    def start(self) -> None:
        """Begin to answer, and to look at the bundle on disk."""
        self.queue.start()
        self._watcher = asyncio.get_running_loop().create_task(self.reloader.watch(self.settings.poll))

    async def stop(self) -> None:
        """End all threads; what still waits is refused."""
        if self._watcher:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self.queue.stop()
        await self.editor.stop()
        await self.reloader.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._decoders.shutdown)

    @property
    def predictor(self) -> Predictor:
        """What answers new requests."""
        return self.reloader.current

    async def classify(self, uploads: Sequence[Upload], options: Options) -> bytes:
        """A ClassifyAnswer as JSON.

        Raises:
            Refusal: 422 a picture or an option is wrong, 429 the queue is full, 504 it took too long.
        """
        if not uploads:
            raise Refusal(422, "the request holds no picture; send one or several as files called 'file'.")
        if len(uploads) > self.settings.max_pictures:
            raise Refusal(413, f"{len(uploads)} pictures, but a request may hold {self.settings.max_pictures}.")
        predictor = self.predictor
        check_options(options, predictor.labels)
        with self.queue.admit(len(uploads)):
            try:
                return await asyncio.wait_for(self._classify(predictor, uploads, options), self.settings.timeout)
            except asyncio.TimeoutError:
                raise Refusal(504, f"there was no answer within {self.settings.timeout:g} s.") from None

    async def _classify(self, predictor: Predictor, uploads: Sequence[Upload], options: Options) -> bytes:
        made = [self.in_pool(functools.partial(self._prepare, predictor, upload)) for upload in uploads]
        # All are waited for, so that of several broken pictures the first is named, and none is left behind.
        prepared = await asyncio.gather(*made, return_exceptions=True)
        for found in prepared:
            if isinstance(found, BaseException):
                raise found
        predictions = await asyncio.gather(*map(self.queue.submit, prepared))
        self.metrics.pictures.inc(len(uploads))
        return await self.in_pool(lambda: _answer(predictor, uploads, prepared, predictions, options))

    async def in_pool(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in a decoder thread; what it finds wrong becomes a Refusal."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, work)
        except HpedgeError as error:
            raise refusal_of(error) from None

    def _prepare(self, predictor: Predictor, upload: Upload) -> Prepared:
        picture = decode_rgb(upload.data, upload.name, self.settings.max_pixels)
        return Prepared(picture.size, predictor.prepare([picture]), predictor)

    def _predict(self, batch: list[Prepared]) -> list[Prediction]:
        """One engine call for each predictor that the pictures were made for; in the engine's thread."""
        answers: dict[int, Prediction] = {}
        for predictor in {id(prepared.predictor): prepared.predictor for prepared in batch}.values():
            own = [index for index, prepared in enumerate(batch) if prepared.predictor is predictor]
            started = time.perf_counter()
            predictions = predictor.predict_images(np.concatenate([batch[index].pixels for index in own]))
            self.metrics.engine.observe(time.perf_counter() - started)
            self.metrics.batch.observe(len(own))
            answers.update(zip(own, predictions, strict=True))
        return [answers[index] for index in range(len(batch))]


def _answer(
    predictor: Predictor,
    uploads: Sequence[Upload],
    prepared: Sequence[Prepared],
    predictions: Sequence[Prediction],
    options: Options,
) -> bytes:
    results = [
        picture_result(upload.name, picture.size, prediction, options)
        for upload, picture, prediction in zip(uploads, prepared, predictions, strict=True)
    ]
    return encode(predictor.bundle.manifest.name, results)
