"""Explicit INT8 in an ONNX graph: QuantizeLinear and DequantizeLinear around the layers with constant weights."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

LAYERS = ("MatMul", "Gemm", "Conv")
ACTIVATIONS = ("Relu", "Clip")
# Of a channel whose weights, or a tensor whose values, are all 0. Half precision holds it, and no scale may be 0.
SMALLEST_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class Rules:
    """What a runtime wants of the integers.

    weight_top: largest integer in a weight. unsigned: tensors that are never negative are uint8. chains: what a
    convolution gives is rounded too, so that the next one starts from integers.
    """

    weight_top: int
    unsigned: bool
    chains: bool


# ONNX Runtime. x86 without VNNI adds two 8-bit products into 16 bits: 8-bit weights overflow them, 7 bits never do.
CPU = Rules(weight_top=63, unsigned=True, chains=True)
TENSORRT = Rules(weight_top=127, unsigned=False, chains=False)


@dataclass(frozen=True, slots=True)
class Layer:
    """A MatMul, Gemm or Conv with a constant weight, which reads the activation ``node.input[0]``.

    weight: as stored. axis: of its output channels.
    """

    node: NodeProto
    weight: np.ndarray
    axis: int

    @property
    def activation(self) -> str:
        """Name of the tensor that the layer reads."""
        return self.node.input[0]


def load_graph(path: str) -> ModelProto:
    """Read a model; transposes of constants are carried out, so that every layer's weight is a constant."""
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Transpose" and node.input[0] in constants:
            order = {attribute.name: attribute.ints for attribute in node.attribute}.get("perm")
            turned = np.transpose(numpy_helper.to_array(constants[node.input[0]]), order)
            set_constant(model, node.output[0], turned)
            model.graph.node.remove(node)
    return model


def set_constant(model: ModelProto, name: str, value: np.ndarray) -> str:
    """Add a constant to the graph and return its name."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
    return name


def drop_unused_constants(model: ModelProto) -> None:
    """Take constants that nothing reads out of the graph."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def layers(model: ModelProto) -> list[Layer]:
    """What is quantised: all layers with constant weights but the convolution that reads the picture.

    The head's similarities and the products of attention have none; the picture's own convolution is a small share of
    the work and takes pixels, which 8 bits more would blur.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type not in LAYERS or node.input[1] not in constants or _reads_picture(node, makers):
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if node.op_type == "Conv" or weight.ndim == 2:
            found.append(Layer(node, weight, 0 if turned or node.op_type == "Conv" else 1))
    return found


def _reads_picture(node: NodeProto, makers: Mapping[str, NodeProto]) -> bool:
    """Whether there is no other layer before this convolution."""
    if node.op_type != "Conv":
        return False
    source = makers.get(node.input[0])
    while source is not None and source.op_type not in LAYERS:
        source = makers.get(source.input[0])
    return source is None


def quantised_tensors(model: ModelProto, rules: Rules) -> list[str]:
    """Names of the tensors that get a scale: what the layers read, and with ``chains`` what convolutions give.

    A ReLU belongs to its convolution.
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    names: dict[str, None] = {}
    for layer in layers(model):
        names[layer.activation] = None
        if rules.chains and layer.node.op_type == "Conv":
            name = layer.node.output[0]
            after = readers.get(name, [])
            names[after[0].output[0] if len(after) == 1 and after[0].op_type in ACTIVATIONS else name] = None
    return list(names)


def round_weight(weight: np.ndarray, axis: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers int8 in -top..top of the weight's shape, and a scale for each channel, [channels] in its float type."""
    wide = weight.astype(np.float32)
    others = tuple(index for index in range(weight.ndim) if index != axis)
    scale = np.maximum(np.abs(wide).max(axis=others) / top, SMALLEST_SCALE).astype(weight.dtype)
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    steps = np.rint(wide / scale.astype(np.float32).reshape(shape))
    return np.clip(steps, -top, top).astype(np.int8), scale


def quantise(model: ModelProto, limits: Mapping[str, float], *, unsigned: Collection[str], rules: Rules) -> ModelProto:
    """A copy of the model in which every layer reads integers through Q/DQ.

    Args:
        model: from `load_graph`, float32 or float16; the rest of the copy stays so, and its scales have that type.
        limits: largest magnitude represented of each of `quantised_tensors`.
        unsigned: those of them that are never negative; by the rules they may be uint8. The zero point is 0.
    """
    model = _copy(model)
    graph = model.graph
    found = {layer.node.output[0]: layer for layer in layers(model)}
    dtype = next(iter(found.values())).weight.dtype
    nodes: list[NodeProto] = []
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in limits:
                node.input[position] = f"{name}_rounded"
        if node.output[0] in found:
            nodes.append(_round_constant(model, found[node.output[0]], rules.weight_top))
        nodes.append(node)
        for name in node.output:
            if name in limits:
                nodes += _round_tensor(model, name, limits[name], rules.unsigned and name in unsigned, dtype)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    drop_unused_constants(model)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model)
    return model


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _round_tensor(model: ModelProto, name: str, limit: float, unsigned: bool, dtype: np.dtype) -> Iterator[NodeProto]:
    integers, top = (np.uint8, 255) if unsigned else (np.int8, 127)
    scale = set_constant(model, f"{name}_scale", np.array(max(limit / top, SMALLEST_SCALE), dtype))
    zero = set_constant(model, f"{name}_zero", np.array(0, integers))
    yield helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_integers"], name=f"{name}_quantise")
    yield helper.make_node(
        "DequantizeLinear", [f"{name}_integers", scale, zero], [f"{name}_rounded"], name=f"{name}_dequantise"
    )


def _round_constant(model: ModelProto, layer: Layer, top: int) -> NodeProto:
    name = layer.node.output[0]
    integers, scale = round_weight(layer.weight, layer.axis, top)
    inputs = [
        set_constant(model, f"{name}_weight_integers", integers),
        set_constant(model, f"{name}_weight_scale", scale),
        set_constant(model, f"{name}_weight_zero", np.zeros(scale.shape, np.int8)),
    ]
    layer.node.input[1] = f"{name}_weight_rounded"
    return helper.make_node(
        "DequantizeLinear", inputs, [layer.node.input[1]], name=f"{name}_weight_dequantise", axis=layer.axis
    )
