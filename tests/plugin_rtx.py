"""Build an engine that holds the plugin with TensorRT-RTX, which needs no GPU for it. A program of its own, since the
library ends the process where it meets what it does not expect.

    python plugin_rtx.py PLUGIN.so SHIM.so MODEL.onnx OUT.plan

The one line on stdout is a JSON document: the network's layers and outputs, and the errors that were logged.
"""

import ctypes
import json
import sys
from pathlib import Path

import tensorrt_rtx as trt

CHIPS = ("SM86", "SM89")


class Logger(trt.ILogger):
    """Keeps the errors."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)


def profile(builder, network):
    """Batches of 1 to 8 images, 1 to 4,096 labels."""
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = (1, 300, 4096) if tensor.name.startswith("text") else (1, 4, 8)
        made.set_shape(tensor.name, *((size, *tensor.shape[1:]) for size in sizes))
    return made


def build(plugin, model, out):
    logger = Logger()
    builder = trt.Builder(logger)
    builder.get_plugin_registry().load_library(plugin)
    network = builder.create_network(0)
    report = {"errors": logger.errors}
    if trt.OnnxParser(network, logger).parse_from_file(model):
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        report["layers"] = [(layer.name, layer.type.name) for layer in layers]
        report["outputs"] = [(tensor.name, list(tensor.shape), tensor.dtype.name) for tensor in outputs]
        config = builder.create_builder_config()
        config.add_optimization_profile(profile(builder, network))
        config.num_compute_capabilities = len(CHIPS)
        for index, chip in enumerate(CHIPS):
            config.set_compute_capability(getattr(trt.ComputeCapability, chip), index)
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            Path(out).write_bytes(plan)
    return report


if __name__ == "__main__":
    plugin, shim, model, out = sys.argv[1:]
    # The parser loads its library as libtensorrt_rtx.so and the package holds libtensorrt_rtx.so.1 alone.
    ctypes.CDLL(shim, mode=ctypes.RTLD_GLOBAL)
    print(json.dumps(build(plugin, model, out)))
