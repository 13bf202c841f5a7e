"""Runs an engine on numpy and cuda-python alone: pinned memory, two streams, CUDA graphs; threads may share it."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpdval_edge.bundle import Bundle
from hpdval_edge.errors import MissingDependency
from hpdval_edge.progress import say
from hpdval_edge.trt.cuda import Buffer, Cuda, open_cuda
from hpdval_edge.trt.flavour import Flavour

# While one batch computes, the next is copied.
SLOTS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """A built engine's file and how to read it.

    batch: its greatest. host_code: a plugin's library is inside, which is executable code; such a plan is only read
    where its sha256 was checked.
    """

    path: Path
    batch: int
    host_code: bool = False


class TensorRTEngine:
    """A plan on the GPU, with the bundle's text banks.

    Raises:
        MissingDependency: no GPU, a plan that this TensorRT or this GPU refuses, too little memory.
    """

    def __init__(self, bundle: Bundle, plan: Plan, flavour: Flavour) -> None:
        self.name = flavour.name
        self.batch = plan.batch
        self.cuda = open_cuda()
        trt = flavour.module
        self.logger = trt.Logger(trt.Logger.ERROR)
        self.runtime = trt.Runtime(self.logger)
        if plan.host_code:
            self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(plan.path.read_bytes())
        if self.engine is None:
            raise MissingDependency(
                f"{flavour.title} cannot load {plan.path} on this GPU; delete the file and run `hpedge build` here."
            )
        shared = self.cuda.facts().integrated
        self.banks = {
            name: self._bank(bank, shared)
            for name, bank in (("text_global", bundle.text_global), ("text_local", bundle.text_local))
        }
        self.slots: queue.LifoQueue[_Slot] = queue.LifoQueue()
        for _ in range(SLOTS):
            self.slots.put(_Slot(self, trt, bundle, shared))

    def _bank(self, bank: np.ndarray, shared: bool) -> Buffer:
        buffer = Buffer(self.cuda, bank.shape, bank.dtype, shared=shared)
        buffer.host[:] = bank
        stream = self.cuda("cudaStreamCreate")
        buffer.to_device(len(bank), stream)
        self.cuda("cudaStreamSynchronize", stream)
        self.cuda("cudaStreamDestroy", stream)
        return buffer

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images as `images.model_input` makes them, any number -> scores [B, C], patch cosines [B, N, C], float32."""
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
        scores, patch_scores = (np.concatenate(column) for column in zip(*results, strict=True))
        return scores, patch_scores

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

    def __init__(self, owner: TensorRTEngine, trt: Any, bundle: Bundle, shared: bool) -> None:
        manifest, batch = bundle.manifest, owner.batch
        self.cuda: Cuda = owner.cuda
        self.stream = self.cuda("cudaStreamCreate")
        self.context = owner.engine.create_execution_context()
        if self.context is None:
            raise MissingDependency("the GPU has no memory left for a second batch in flight; build a smaller --batch.")
        size, labels = manifest.image_size, len(manifest.labels)
        patches = manifest.grid[0] * manifest.grid[1]
        image = (batch, size, size, 3) if manifest.input == "uint8" else (batch, 3, size, size)
        self.image = Buffer(self.cuda, image, manifest.input, shared=shared)
        self.outputs = {
            "scores": Buffer(self.cuda, (batch, labels), "float32", shared=shared),
            "patch_scores": Buffer(self.cuda, (batch, patches, labels), "float32", shared=shared),
        }
        for name, bank in owner.banks.items():
            self.context.set_input_shape(name, bank.host.shape)
            self.context.set_tensor_address(name, int(bank.device))
        for name, buffer in (("image", self.image), *self.outputs.items()):
            self.context.set_tensor_address(name, int(buffer.device))
        self.count, self.graph, self.graphs = 0, None, True

    def start(self, images: np.ndarray) -> None:
        """Put a batch on the way."""
        count = len(images)
        self.image.host[:count] = images
        if count == self.count and self.graphs:
            self.graph = self.graph or self._capture()
        else:
            self.graph, self.count = None, count
            self.context.set_input_shape("image", (count, *self.image.host.shape[1:]))
        if self.graph:
            self.cuda("cudaGraphLaunch", self.graph, self.stream)
        else:
            self._enqueue()

    def collect(self) -> tuple[np.ndarray, ...]:
        """Wait for the batch; its scores and patch cosines, copied."""
        self.cuda("cudaStreamSynchronize", self.stream)
        return tuple(buffer.host[: self.count].copy() for buffer in self.outputs.values())

    def _enqueue(self) -> None:
        self.image.to_device(self.count, self.stream)
        if not self.context.execute_async_v3(int(self.stream)):
            raise MissingDependency("TensorRT could not run the batch, see its message above; `hpedge doctor`.")
        for buffer in self.outputs.values():
            buffer.to_host(self.count, self.stream)

    def _capture(self) -> Any:
        """The batch's work as a CUDA graph; taken at its second run, for the first one sets TensorRT up."""
        runtime = self.cuda.runtime
        mode, capturing = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal, False
        try:
            self.cuda("cudaStreamBeginCapture", self.stream, mode)
            capturing = True
            self._enqueue()
            capturing = False
            graph = self.cuda("cudaStreamEndCapture", self.stream)
            return self.cuda("cudaGraphInstantiate", graph, 0)
        except MissingDependency as error:
            if capturing:
                runtime.cudaStreamEndCapture(self.stream)
            self.graphs = False
            say(f"note: this engine runs without CUDA graphs ({error})")
            return None
