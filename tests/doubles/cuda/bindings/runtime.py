"""TEST DOUBLE of cuda-python's runtime API: device memory is host memory, streams run at once, graphs replay calls.

Environment: DOUBLE_GPU (name), DOUBLE_CC (e.g. 87), DOUBLE_INTEGRATED (1: a Jetson), DOUBLE_MEMORY (bytes that
cudaMalloc has in all), DOUBLE_NO_GPU, DOUBLE_NO_GRAPHS, DOUBLE_OLD_DRIVER. ``live`` counts what was made and not freed.
"""

import ctypes
import enum
import os
from types import SimpleNamespace

cudaHostAllocDefault, cudaHostAllocMapped = 0, 2
cudaStreamNonBlocking = 1


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrIntegrated = 18
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess
memory, streams, log = {}, {}, []
live = {"streams": 0, "graphs": 0, "executables": 0}


def cudaGetDevice():
    if os.environ.get("DOUBLE_OLD_DRIVER"):
        return cudaError_t.cudaErrorInsufficientDriver, None
    return (cudaError_t.cudaErrorNoDevice, None) if os.environ.get("DOUBLE_NO_GPU") else (OK, 0)


def cudaDeviceGetAttribute(attribute, device):
    capability = int(os.environ.get("DOUBLE_CC", "87"))
    return OK, {18: int(os.environ.get("DOUBLE_INTEGRATED", "0")), 75: capability // 10, 76: capability % 10}[attribute]


def cudaDriverGetVersion():
    return OK, 12060


def cudaRuntimeGetVersion():
    return OK, 13000


def cudaMemGetInfo():
    return OK, 6 << 30, 8 << 30


def cudaGetDeviceProperties(device):
    return OK, SimpleNamespace(name=os.environ.get("DOUBLE_GPU", "Double Orin").encode())


def _allocate(size):
    block = ctypes.create_string_buffer(size + 256)
    address = (ctypes.addressof(block) + 255) // 256 * 256
    memory[address] = (block, size)
    return address


def cudaMalloc(size):
    limit = int(os.environ.get("DOUBLE_MEMORY", str(1 << 40)))
    if sum(taken for _, taken in memory.values()) + size > limit:
        return cudaError_t.cudaErrorMemoryAllocation, None
    return OK, _allocate(size)


def cudaHostAlloc(size, flags):
    log.append(("cudaHostAlloc", flags))
    return OK, _allocate(size)


def cudaHostGetDevicePointer(address, flags):
    return OK, address


def cudaFree(address):
    del memory[address]
    return (OK,)


cudaFreeHost = cudaFree


def cudaStreamCreateWithFlags(flags):
    assert flags == cudaStreamNonBlocking
    live["streams"] += 1
    handle = len(streams) + 1
    streams[handle] = None
    return OK, handle


def cudaStreamDestroy(stream):
    live["streams"] -= 1
    return (OK,)


def cudaStreamSynchronize(stream):
    return (OK,)


def enqueue(stream, name, call):
    """Run ``call`` now, or keep it where the stream is being captured."""
    log.append((name, int(stream)))
    if streams[int(stream)] is None:
        call()
    else:
        streams[int(stream)].append(call)


def cudaMemcpyAsync(target, source, size, kind, stream):
    for address in (target, source):
        if memory[address][1] < size:
            raise AssertionError(f"a copy of {size} bytes from or to {memory[address][1]}")
    enqueue(stream, kind.name, lambda: ctypes.memmove(target, source, size))
    return (OK,)


def cudaStreamBeginCapture(stream, mode):
    if os.environ.get("DOUBLE_NO_GRAPHS"):
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    streams[int(stream)] = []
    return (OK,)


def cudaStreamEndCapture(stream):
    calls, streams[int(stream)] = streams[int(stream)], None
    live["graphs"] += 1
    return OK, calls


def cudaGraphInstantiate(graph, flags):
    live["executables"] += 1
    return OK, graph


def cudaGraphDestroy(graph):
    live["graphs"] -= 1
    return (OK,)


def cudaGraphExecDestroy(graph):
    live["executables"] -= 1
    return (OK,)


def cudaGraphLaunch(graph, stream):
    log.append(("cudaGraphLaunch", int(stream)))
    for call in graph:
        call()
    return (OK,)
