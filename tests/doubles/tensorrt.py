"""TEST DOUBLE of TensorRT 10's Python module: an engine is the ONNX graph, run by ONNX Runtime.

Environment: DOUBLE_WRONG ("attention": scores are off where a softmax is half precision, "always"), DOUBLE_MEMORY_LEVEL
(building fails for want of memory above this level), DOUBLE_BUILD ("kill", "abort", "sleep"), DOUBLE_LOG (file that
every build appends its level to).
"""

import ctypes
import enum
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
from cuda.bindings import runtime as cuda

__version__ = "10.3.0.30"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2


class IProgressMonitor:
    pass


class Network:
    def __init__(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED, "types must be those of the graph"
        self.model = None

    @property
    def num_inputs(self):
        return len(self.model.graph.input)

    @property
    def num_layers(self):
        return len(self.model.graph.node)

    def get_input(self, index):
        return SimpleNamespace(name=self.model.graph.input[index].name)


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse(self, data):
        self.network.model = onnx.load_from_string(data)
        onnx.checker.check_model(self.network.model, full_check=True)
        return True


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, usual, most):
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        self.shapes[name] = (least, usual, most)


class Config:
    builder_optimization_level = 3
    progress_monitor = None

    def add_optimization_profile(self, profile):
        self.profile = profile
        return 0

    def set_memory_pool_limit(self, pool, size):
        self.workspace = size

    def create_timing_cache(self, data):
        return SimpleNamespace(serialize=lambda: b"timings", data=data)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache

    def get_timing_cache(self):
        return self.cache


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        return Network(flags)

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        level, how = config.builder_optimization_level, os.environ.get("DOUBLE_BUILD")
        with open(os.environ["DOUBLE_LOG"], "a") as log:
            log.write(f"{level}\n")
        config.progress_monitor.phase_start("Building engine", None, 2)
        config.progress_monitor.step_complete("Building engine", 0)
        if how == "sleep":
            time.sleep(60)
        if how in ("kill", "abort"):
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGABRT)
        if level > int(os.environ.get("DOUBLE_MEMORY_LEVEL", "5")):
            self.logger.log(ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 1 bytes.)")
            return None
        if _is_wrong(network.model):
            scores = next(node for node in network.model.graph.node if "scores" in node.output)
            scores.output[0] = "right"
            constant = onnx.numpy_helper.from_array(np.float32(0.5), "half")
            network.model.graph.initializer.append(constant)
            network.model.graph.node.append(onnx.helper.make_node("Add", ["right", "half"], ["scores"]))
        config.progress_monitor.phase_finish("Building engine")
        return network.model.SerializeToString()


def _is_wrong(model):
    """Whether this engine is to compute wrong scores."""
    wrong = os.environ.get("DOUBLE_WRONG")
    if wrong != "attention":
        return wrong == "always"
    known = onnx.shape_inference.infer_shapes(model).graph.value_info
    kinds = {value.name: value.type.tensor_type.elem_type for value in known}
    return any(kinds[node.input[0]] == 10 for node in model.graph.node if node.op_type == "Softmax")


class Context:
    def __init__(self, session):
        self.session, self.shapes, self.addresses = session, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        cuda.enqueue(stream, "execute", lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes, addresses):
        feed = {
            given.name: _array(addresses[given.name], shapes[given.name], TYPES[given.type])
            for given in self.session.get_inputs()
        }
        names = [made.name for made in self.session.get_outputs()]
        for name, value in zip(names, self.session.run(names, feed), strict=True):
            ctypes.memmove(addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)


def _array(address, shape, kind):
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    assert cuda.memory[address][1] >= size, "a buffer is too small for its shape"
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), kind).reshape(shape)


class Engine:
    def __init__(self, data):
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def create_execution_context(self):
        return Context(self.session)


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, data):
        return Engine(data)
