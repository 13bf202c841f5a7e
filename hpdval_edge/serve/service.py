"""A bundle at work: pictures to answers, edits of its labels, and looks at whether it changed on disk."""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from hpdval_edge.bundle import Bundle
from hpdval_edge.errors import HpedgeError
from hpdval_edge.images import decode_rgb
from hpdval_edge.predictor import Prediction, Predictor
from hpdval_edge.progress import say
from hpdval_edge.serve.additions import EDITS_ARE_OFF
from hpdval_edge.serve.answers import check_options, encode, picture_result
from hpdval_edge.serve.batching import BatchQueue
from hpdval_edge.serve.intake import Upload
from hpdval_edge.serve.metrics import Metrics
from hpdval_edge.serve.refusal import Refusal, refusal_of
from hpdval_edge.serve.schema import Options
from hpdval_edge.serve.settings import Settings

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture ready for the engine. size: (width, height) upright. pixels: as ``Predictor.prepare`` makes them, for
    the model that ``made_for`` tells apart.
    """

    size: tuple[int, int]
    pixels: np.ndarray
    made_for: tuple[Any, ...]


class Service:
    """What the routes of the API do. All methods belong to the event loop."""

    def __init__(self, predictor: Predictor, settings: Settings, metrics: Metrics) -> None:
        self.predictor = predictor
        self.settings = settings
        self.metrics = metrics
        self.queue: BatchQueue[Prepared, Prediction | Refusal] = BatchQueue(
            self._predict,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            max_queue=settings.max_queue,
        )
        self._decoders = ThreadPoolExecutor(settings.decoders, "decode")
        self._editing = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        metrics.queue.set_function(lambda: self.queue.admitted)
        metrics.labels.set_function(lambda: len(predictor.labels))

    def start(self) -> None:
        """Begin to answer, and to look at the bundle on disk."""
        self.queue.start()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """End all threads; what still waits is refused."""
        if self._watcher:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self.queue.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._decoders.shutdown)

    @property
    def bundle(self) -> Bundle:
        """The bundle in use."""
        return self.predictor.bundle

    async def classify(self, uploads: Sequence[Upload], options: Options) -> bytes:
        """A ClassifyAnswer as JSON.

        Raises:
            Refusal: 422 a picture or an option is wrong, 429 the queue is full, 503 the bundle was just replaced, 504
            it took too long.
        """
        if not uploads:
            raise Refusal(422, "the request holds no picture; send one or several as files called 'file'.")
        if len(uploads) > self.settings.max_pictures:
            raise Refusal(413, f"{len(uploads)} pictures, but a request may hold {self.settings.max_pictures}.")
        check_options(options, self.predictor.labels)
        with self.queue.admit(len(uploads)):
            try:
                return await asyncio.wait_for(self._classify(uploads, options), self.settings.timeout)
            except asyncio.TimeoutError:
                raise Refusal(504, f"there was no answer within {self.settings.timeout:g} s.") from None

    async def _classify(self, uploads: Sequence[Upload], options: Options) -> bytes:
        made = [self.in_pool(functools.partial(self._prepare, upload)) for upload in uploads]
        # All are waited for, so that of several broken pictures the first is named, and none is left behind.
        prepared = await asyncio.gather(*made, return_exceptions=True)
        for found in prepared:
            if isinstance(found, BaseException):
                raise found
        predictions = await asyncio.gather(*map(self.queue.submit, prepared))
        self.metrics.pictures.inc(len(uploads))
        return await self.in_pool(lambda: self._answer(uploads, prepared, predictions, options))

    async def in_pool(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in a decoder thread; what it finds wrong becomes a Refusal."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, work)
        except HpedgeError as error:
            raise refusal_of(error) from None

    def _prepare(self, upload: Upload) -> Prepared:
        made_for = self._model()
        picture = decode_rgb(upload.data, upload.name, self.settings.max_pixels)
        return Prepared(picture.size, self.predictor.prepare([picture]), made_for)

    def _model(self) -> tuple[Any, ...]:
        """What the pixels that an engine takes depend on."""
        manifest = self.bundle.manifest
        return manifest.image_size, manifest.mean, manifest.std, manifest.input

    def _predict(self, batch: list[Prepared]) -> list[Prediction | Refusal]:
        """In the engine's thread, as is `reload`: the model does not change in between."""
        model = self._model()
        answers: list[Prediction | Refusal] = [
            Refusal(503, "the bundle was replaced by one with another model; send the request again.", retry_after=0)
        ] * len(batch)
        fitting = [index for index, prepared in enumerate(batch) if prepared.made_for == model]
        if fitting:
            started = time.perf_counter()
            predictions = self.predictor.predict_images(np.concatenate([batch[index].pixels for index in fitting]))
            self.metrics.engine.observe(time.perf_counter() - started)
            self.metrics.batch.observe(len(fitting))
            for index, prediction in zip(fitting, predictions, strict=True):
                answers[index] = prediction
        return answers

    def _answer(
        self,
        uploads: Sequence[Upload],
        prepared: Sequence[Prepared],
        predictions: Sequence[Prediction | Refusal],
        options: Options,
    ) -> bytes:
        results = []
        for upload, picture, prediction in zip(uploads, prepared, predictions, strict=True):
            if isinstance(prediction, Refusal):
                raise prediction
            results.append(picture_result(upload.name, picture.size, prediction, options))
        return encode(self.bundle.manifest.name, results)

    async def edit(self, change: Callable[[Bundle], object]) -> None:
        """Let ``change`` write the bundle anew, and take it over; one edit at a time.

        Raises:
            Refusal: 403 edits are off, 422 what ``change`` refuses, 503 what is missing here.
        """
        if not self.settings.edit:
            raise Refusal(403, EDITS_ARE_OFF)
        async with self._editing:
            try:
                # Also what another program wrote since the last look is there before the change is made.
                await self.reload()
                await asyncio.get_running_loop().run_in_executor(None, change, self.bundle)
                await self.reload()
            except HpedgeError as error:
                raise refusal_of(error) from None

    async def reload(self) -> None:
        """Take over what changed on disk, between two batches."""
        if await self.queue.call(self.predictor.reload):
            self.metrics.reloads.inc()

    async def _watch(self) -> None:
        """Reload whenever the bundle changes; one that cannot be used is told once and the old one stays."""
        told = None
        while True:
            await asyncio.sleep(self.settings.poll)
            try:
                await self.reload()
                told = None
            except HpedgeError as error:
                if str(error) != told:
                    told = str(error)
                    say(f"hpedge: the bundle changed and cannot be used, the old one stays: {error}")
