"""CUDA through cuda-python alone: calls that raise, the GPU's facts, and buffers that both sides see."""

import ctypes
import importlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from hpdval_edge.errors import MissingDependency
from hpdval_edge.platforms import dotted


class OutOfMemory(MissingDependency):
    """The GPU has no memory left for what was asked; everything before it stays usable."""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """The current GPU. capability times 10; driver: the newest CUDA that it serves; memory in MiB.

    integrated: CPU and GPU share one memory, as on a Jetson.
    """

    name: str
    capability: int
    driver: str
    integrated: bool
    free_mib: int
    total_mib: int


class Cuda:
    """cuda-python's runtime API; every call raises what went wrong."""

    def __init__(self, runtime: ModuleType) -> None:
        self.runtime = runtime

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call ``cudaX``: its result, or a tuple of its results, or None.

        Raises:
            OutOfMemory: no memory.
            MissingDependency: any other error, named as CUDA names it.
        """
        error, *values = getattr(self.runtime, name)(*arguments)
        errors = self.runtime.cudaError_t
        if error == errors.cudaErrorMemoryAllocation:
            raise OutOfMemory(
                f"the GPU has no memory left ({name}); close other programs or build with a smaller --batch."
            )
        if error == errors.cudaErrorInsufficientDriver:
            self._explain_driver()
        if error in (errors.cudaErrorNoDevice, errors.cudaErrorInsufficientDriver):
            raise MissingDependency("there is no NVIDIA GPU with a driver here; see `hpedge doctor`.")
        if error != errors.cudaSuccess:
            raise MissingDependency(f"CUDA: {name} failed with {errors(error).name}; see `hpedge doctor`.")
        return values[0] if len(values) == 1 else tuple(values) or None

    def _explain_driver(self) -> None:
        """Tell a driver that is too old for this cuda-python from none at all; neither call needs a driver."""
        driver, ours = self.runtime.cudaDriverGetVersion()[1], self.runtime.cudaRuntimeGetVersion()[1]
        if driver:
            major = driver // 1000
            raise MissingDependency(
                f"cuda-python is for CUDA {ours // 1000} here and the driver serves CUDA {dotted(_version(driver))}; "
                f"pip install 'cuda-python<{major + 1}'."
            )

    def facts(self) -> GpuFacts:
        """Of the current device."""
        attributes = self.runtime.cudaDeviceAttr
        device = self("cudaGetDevice")
        major = self("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, device)
        minor = self("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, device)
        integrated = self("cudaDeviceGetAttribute", attributes.cudaDevAttrIntegrated, device)
        driver = self("cudaDriverGetVersion")
        free, total = self("cudaMemGetInfo")
        name = self("cudaGetDeviceProperties", device).name
        return GpuFacts(
            name=name.decode() if isinstance(name, bytes) else str(name),
            capability=10 * major + minor,
            driver=dotted(_version(driver)),
            integrated=bool(integrated),
            free_mib=free >> 20,
            total_mib=total >> 20,
        )


def _version(number: int) -> tuple[int, int]:
    """12060 -> (12, 6)."""
    return number // 1000, number % 1000 // 10


def open_cuda() -> Cuda:
    """The runtime API on a machine with a GPU.

    Raises:
        MissingDependency: no cuda-python, or no GPU that it can use.
    """
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            runtime = importlib.import_module(name)
        except ImportError:
            continue
        cuda = Cuda(runtime)
        cuda("cudaGetDevice")
        return cuda
    raise MissingDependency("TensorRT engines need cuda-python: pip install 'hpdval-edge[tensorrt]'.")


class Buffer:
    """Memory of the host, pinned, and of the device; one memory where both share it.

    host: array of ``shape`` and ``dtype``, not to be used after `close`. device: address. Freed with the object.
    """

    def __init__(self, cuda: Cuda, shape: Sequence[int], dtype: np.dtype | str, *, shared: bool) -> None:
        self.cuda, self.shared, self.dtype = cuda, shared, np.dtype(dtype)
        self.bytes = max(prod(shape) * self.dtype.itemsize, 1)
        runtime = cuda.runtime
        flags = runtime.cudaHostAllocMapped if shared else runtime.cudaHostAllocDefault
        self.pinned = cuda("cudaHostAlloc", self.bytes, flags)
        try:
            self.device = cuda("cudaHostGetDevicePointer", self.pinned, 0) if shared else cuda("cudaMalloc", self.bytes)
        except MissingDependency:
            cuda("cudaFreeHost", self.pinned)
            raise
        self.close = freed(self, _release, cuda, self.pinned, None if shared else self.device)
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * self.bytes).from_address(int(self.pinned)))
        self.host = raw[: prod(shape) * self.dtype.itemsize].view(self.dtype).reshape(shape)

    def to_device(self, count: int, stream: Any) -> None:
        """Copy the first ``count`` rows; nothing to do in shared memory."""
        self._copy(count, stream, "cudaMemcpyHostToDevice", self.device, self.pinned)

    def to_host(self, count: int, stream: Any) -> None:
        """Copy the first ``count`` rows back."""
        self._copy(count, stream, "cudaMemcpyDeviceToHost", self.pinned, self.device)

    def _copy(self, count: int, stream: Any, kind: str, target: Any, source: Any) -> None:
        if not self.shared:
            size = count * (self.bytes // len(self.host))
            self.cuda("cudaMemcpyAsync", target, source, size, getattr(self.cuda.runtime.cudaMemcpyKind, kind), stream)


class Stream:
    """A stream that waits for no other; freed with the object. handle: for CUDA; address: for TensorRT."""

    def __init__(self, cuda: Cuda) -> None:
        self.handle = cuda("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
        self.address = int(self.handle)
        self.close = freed(self, cuda.runtime.cudaStreamDestroy, self.handle)


class Graph:
    """An executable CUDA graph, by its handle; freed with the object."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self.handle = handle
        self.close = freed(self, cuda.runtime.cudaGraphExecDestroy, handle)


def freed(owner: object, release: Callable, *arguments: Any) -> Callable[[], object]:
    """Call ``release`` when ``owner`` goes, or when the result is called; not at exit, when the driver may be gone."""
    finalizer = weakref.finalize(owner, release, *arguments)
    finalizer.atexit = False
    return finalizer


def _release(cuda: Cuda, pinned: Any, device: Any) -> None:
    # An error here has nobody to go to.
    if device is not None:
        cuda.runtime.cudaFree(device)
    cuda.runtime.cudaFreeHost(pinned)
