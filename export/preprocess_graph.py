"""Preprocessing as an ONNX graph, for servers that take pictures of any size and know nothing of hpedge."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# The first whose Resize is antialiased.
OPSET = 18
# Pillow's bicubic; without exclude_outside the border would be mixed with black.
PILLOW = {"mode": "cubic", "antialias": 1, "cubic_coeff_a": -0.5, "exclude_outside": 1}
# Of each of `images.INPUTS`.
ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def preprocess_graph(*, image_size: int, mean: Sequence[float], std: Sequence[float], kind: str) -> onnx.ModelProto:
    """`images.model_input` of one picture: ``picture`` uint8 [H, W, 3] RGB -> ``image`` as the model takes it, B = 1.

    In ONNX Runtime the resized levels are the kernel's to 1 grey level, for weights there are float32.

    Args:
        kind: One of `images.INPUTS`.
    """
    picture = helper.make_tensor_value_info("picture", TensorProto.UINT8, ["height", "width", 3])
    nodes, constants = _resize(image_size)
    if kind == "uint8":
        nodes.append(helper.make_node("Transpose", ["pixels"], ["image"], perm=[0, 2, 3, 1]))
    else:
        more = normalisation("pixels", "image", mean=mean, std=std, dtype=ELEMENT_TYPES[kind])
        nodes, constants = nodes + more[0], constants + more[1]
    image = helper.make_tensor_value_info("image", ELEMENT_TYPES[kind], [1, *image_shape(kind, image_size)])
    graph = helper.make_graph(nodes, "preprocess", [picture], [image], initializer=constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="hpedge")
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


def image_shape(kind: str, size: int) -> tuple[int, int, int]:
    """Of one image as a model that takes ``kind`` wants it."""
    return (size, size, 3) if kind == "uint8" else (3, size, size)


def normalisation(
    source: str, target: str, *, mean: Sequence[float], std: Sequence[float], dtype: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants of (x / 255 - mean) / std, in float32: ``source`` [B, 3, S, S], levels of any type, RGB."""
    by_channel = {"mean": mean, "std": std}
    constants = [
        _constant("normalise.levels", np.float32(255)),
        *(_constant(f"normalise.{name}", np.float32(x).reshape(1, 3, 1, 1)) for name, x in by_channel.items()),
    ]
    nodes = [
        helper.make_node("Cast", [source], ["normalise.real"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["normalise.real", "normalise.levels"], ["normalise.unit"]),
        helper.make_node("Sub", ["normalise.unit", "normalise.mean"], ["normalise.centred"]),
        helper.make_node("Div", ["normalise.centred", "normalise.std"], ["normalise.done"]),
        helper.make_node("Cast", ["normalise.done"], [target], to=dtype),
    ]
    return nodes, constants


def _resize(size: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """``picture`` uint8 [H, W, 3] -> ``pixels`` uint8 [1, 3, S, S] in the two passes of `preprocess_spec`.

    Levels are rounded after each pass, so their order shows; it is `plan_geometry`'s.
    """
    constants = [
        _constant("size", np.array([size])),
        _constant("zero", np.array([0])),
        _constant("two", np.array([2])),
        _constant("front", np.array([1, 3])),
        _constant("final", np.array([1, 3, size, size])),
    ]
    nodes = [
        helper.make_node("Transpose", ["picture"], ["planes"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["planes", "zero"], ["batch"]),
        helper.make_node("Shape", ["picture"], ["height"], start=0, end=1),
        helper.make_node("Shape", ["picture"], ["width"], start=1, end=2),
        helper.make_node("Sub", ["height", "size"], ["shrink"]),
        helper.make_node("Sub", ["width", "size"], ["narrow"]),
        # vertical_first = shrink > max(2 * narrow, 0) and narrow != 0
        helper.make_node("Mul", ["narrow", "two"], ["twice"]),
        helper.make_node("Max", ["twice", "zero"], ["least"]),
        helper.make_node("Greater", ["shrink", "least"], ["tall"]),
        helper.make_node("Cast", ["narrow"], ["wide"], to=TensorProto.BOOL),
        helper.make_node("And", ["tall", "wide"], ["vertical_first"]),
        helper.make_node("Where", ["vertical_first", "size", "height"], ["height_between"]),
        helper.make_node("Where", ["vertical_first", "width", "size"], ["width_between"]),
        helper.make_node("Concat", ["front", "height_between", "width_between"], ["between"], axis=0),
        helper.make_node("Resize", ["batch", "", "", "between"], ["once"], **PILLOW),
        helper.make_node("Resize", ["once", "", "", "final"], ["pixels"], **PILLOW),
    ]
    return nodes, constants


def _constant(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)
