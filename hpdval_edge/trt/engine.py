"""Runs an engine on numpy and cuda-python alone: pinned memory, two streams, CUDA graphs; threads may share it."""

import copy
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpdval_edge.bundle import Bundle
from hpdval_edge.errors import MissingDependency
from hpdval_edge.progress import say
from hpdval_edge.trt.cuda import Buffer, Cuda, Graph, OutOfMemory, Stream, open_cuda
from hpdval_edge.trt.flavour import Flavour, runtime_logger

# While one batch computes, the next is copied.
SLOTS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """A built engine's file and how to read it.

    batch, labels: the most that it takes. host_code: a plugin's library is inside, which is executable code; such a
    plan is only read where its sha256 was checked.
    """

    path: Path
    batch: int
    labels: int
    host_code: bool = False


class TensorRTEngine:
    """A plan on the GPU, with the bundle's text banks.

    Raises:
        MissingDependency: no GPU, a plan that this TensorRT or this GPU refuses, too little memory.
    """

    def __init__(self, bundle: Bundle, plan: Plan, flavour: Flavour) -> None:
        self.name = flavour.name
        self.batch, self.most_labels = plan.batch, plan.labels
        self.cuda = open_cuda()
        trt = flavour.module
        logger = runtime_logger(trt)
        self.runtime = trt.Runtime(logger)
        if plan.host_code:
            self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(plan.path.read_bytes())
        if self.engine is None:
            raise MissingDependency(
                f"{flavour.title} cannot load {plan.path} on this GPU ({logger.last or 'it gave no reason'}); unless "
                "memory is short, delete the file and run `hpedge build` here."
            )
        self._take_banks(bundle)

    def with_banks(self, bundle: Bundle) -> "TensorRTEngine | None":
        """The same engine with the text banks of ``bundle``; None where it was built for fewer labels.

        Raises:
            MissingDependency: too little memory for both.
        """
        if len(bundle.manifest.labels) > self.most_labels:
            return None
        other = copy.copy(self)
        other._take_banks(bundle)
        return other

    def _take_banks(self, bundle: Bundle) -> None:
        """Put the bundle's text banks on the GPU, and make slots that use them."""
        shared = self.cuda.facts().integrated
        self.banks = {
            name: self._bank(bank, shared)
            for name, bank in (("text_global", bundle.text_global), ("text_local", bundle.text_local))
        }
        self.slots: queue.LifoQueue[_Slot] = queue.LifoQueue()
        for index in range(SLOTS):
            try:
                self.slots.put(_Slot(self, bundle, shared))
            except OutOfMemory as error:
                if index == 0:
                    raise
                say(f"note: one batch in flight instead of {SLOTS} ({error})")

    def close(self) -> None:
        """Free what it holds on the GPU; it must not be called afterwards."""
        while not self.slots.empty():
            self.slots.get().close()
        for bank in self.banks.values():
            bank.close()

    def _bank(self, bank: np.ndarray, shared: bool) -> Buffer:
        buffer = Buffer(self.cuda, bank.shape, bank.dtype, shared=shared)
        buffer.host[:] = bank
        stream = Stream(self.cuda)
        buffer.to_device(len(bank), stream.handle)
        self.cuda("cudaStreamSynchronize", stream.handle)
        return buffer

    def __call__(self, images: np.ndarray, patch_scores: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Images as `images.model_input` makes them, one or more -> scores [B, C], patch cosines [B, N, C], float32.

        The engine computes both, whether ``patch_scores`` are wanted or not.
        """
        parts = [images[start : start + self.batch] for start in range(0, len(images), self.batch)]
        results: list[tuple[np.ndarray, ...]] = []
        with self._slot() as first:
            second = self._free_slot() if len(parts) > 1 else None
            try:
                slots = [first, second] if second else [first]
                for index, part in enumerate(parts):
                    slot = slots[index % len(slots)]
                    if index >= len(slots):
                        results.append(slot.collect())
                    slot.start(part)
                for index in range(len(results), len(parts)):
                    results.append(slots[index % len(slots)].collect())
            finally:
                if second:
                    self.slots.put(second)
        scores, cosines = (np.concatenate(column) for column in zip(*results, strict=True))
        return scores, cosines

    @contextmanager
    def _slot(self) -> Iterator["_Slot"]:
        """A free slot; waits where other threads hold them all."""
        slot = self.slots.get()
        try:
            yield slot
        finally:
            self.slots.put(slot)

    def _free_slot(self) -> "_Slot | None":
        try:
            return self.slots.get_nowait()
        except queue.Empty:
            return None


class _Slot:
    """A stream, an execution context and the buffers of one batch in flight."""

    def __init__(self, owner: TensorRTEngine, bundle: Bundle, shared: bool) -> None:
        manifest, batch = bundle.manifest, owner.batch
        self.cuda: Cuda = owner.cuda
        self.stream = Stream(self.cuda)
        self.context = owner.engine.create_execution_context()
        if self.context is None:
            raise OutOfMemory(
                "the GPU has no memory left for a batch; close other programs or build for a smaller one."
            )
        size, labels = manifest.image_size, len(manifest.labels)
        patches = manifest.grid[0] * manifest.grid[1]
        image = (batch, size, size, 3) if manifest.input == "uint8" else (batch, 3, size, size)
        self.image = Buffer(self.cuda, image, manifest.input, shared=shared)
        self.outputs = {
            "scores": Buffer(self.cuda, (batch, labels), "float32", shared=shared),
            "patch_scores": Buffer(self.cuda, (batch, patches, labels), "float32", shared=shared),
        }
        for name, bank in owner.banks.items():
            self._set_shape(name, bank.host.shape)
        for name, buffer in {**owner.banks, "image": self.image, **self.outputs}.items():
            if not self.context.set_tensor_address(name, int(buffer.device)):
                raise MissingDependency(f"the engine has no tensor {name}; delete it and run `hpedge build`.")
        self.count, self.graph, self.graphs = 0, None, True

    def start(self, images: np.ndarray) -> None:
        """Put a batch on the way."""
        count = len(images)
        self.image.host[:count] = images
        if count == self.count and self.graphs:
            self.graph = self.graph or self._capture()
        else:
            self._drop_graph()
            self.count = count
            self._set_shape("image", (count, *self.image.host.shape[1:]))
        if self.graph:
            self.cuda("cudaGraphLaunch", self.graph.handle, self.stream.handle)
        else:
            self._enqueue()

    def collect(self) -> tuple[np.ndarray, ...]:
        """Wait for the batch; its scores and patch cosines, copied."""
        self.cuda("cudaStreamSynchronize", self.stream.handle)
        return tuple(buffer.host[: self.count].copy() for buffer in self.outputs.values())

    def close(self) -> None:
        """Free what it holds."""
        self._drop_graph()
        del self.context
        for freed in (self.image, *self.outputs.values(), self.stream):
            freed.close()

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self.context.set_input_shape(name, shape):
            raise MissingDependency(f"the engine does not take {name} of shape {shape}; build it with more.")

    def _drop_graph(self) -> None:
        graph, self.graph = self.graph, None
        if graph:
            graph.close()

    def _enqueue(self) -> None:
        self.image.to_device(self.count, self.stream.handle)
        if not self.context.execute_async_v3(self.stream.address):
            raise MissingDependency("TensorRT could not run the batch, see its message above; `hpedge doctor`.")
        for buffer in self.outputs.values():
            buffer.to_host(self.count, self.stream.handle)

    def _capture(self) -> Graph | None:
        """The batch's work as a CUDA graph; taken at its second run, for the first one sets TensorRT up."""
        runtime = self.cuda.runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        try:
            self.cuda("cudaStreamBeginCapture", self.stream.handle, mode)
            try:
                self._enqueue()
            except BaseException:
                # Also Ctrl-C: a stream left in capture would fail for good.
                runtime.cudaStreamEndCapture(self.stream.handle)
                raise
            graph = self.cuda("cudaStreamEndCapture", self.stream.handle)
            try:
                return Graph(self.cuda, self.cuda("cudaGraphInstantiate", graph, 0))
            finally:
                self.cuda("cudaGraphDestroy", graph)
        except MissingDependency as error:
            self.graphs = False
            say(f"note: this engine runs without CUDA graphs ({error})")
            return None
