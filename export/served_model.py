"""The bundle's model as a server takes it: the text banks inside, so that a client sends pictures only."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hpdval_edge.bundle import MODEL, Bundle
from hpdval_edge.errors import UsageError
from hpdval_edge.export.preprocess_graph import normalisation

IMAGE_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)


def image_type(bundle: Bundle) -> int:
    """ONNX element type of model.onnx's ``image``.

    Raises:
        UsageError: it is none that preprocessing here can give.
    """
    return _checked_type(_graph_input(onnx.load_from_string(bundle.read(MODEL)), "image"))


def served_model(bundle: Bundle, *, levels: bool = False) -> onnx.ModelProto:
    """model.onnx with both banks as constants: ``image`` [B, 3, S, S] -> scores [B, C], patch_scores [B, N, C].

    Args:
        levels: Take ``pixels`` float32 [B, 3, S, S], RGB levels of 0 to 255, instead of ``image``, and normalise them
            inside, for servers that can scale all channels by one factor only.
    """
    manifest = bundle.manifest
    model = onnx.load_from_string(bundle.read(MODEL))
    graph = model.graph
    for name, bank in (("text_global", bundle.text_global), ("text_local", bundle.text_local)):
        given = _graph_input(model, name)
        dtype = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        graph.input.remove(given)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(bank.astype(dtype)), name))
    classes, patches = len(manifest.labels), manifest.grid[0] * manifest.grid[1]
    shapes = {"scores": ("batch", classes), "patch_scores": ("batch", patches, classes)}
    outputs = [
        helper.make_tensor_value_info(output.name, output.type.tensor_type.elem_type, shapes[output.name])
        for output in graph.output
    ]
    del graph.output[:]
    graph.output.extend(outputs)
    # Shapes noted inside still speak of any number of labels.
    del graph.value_info[:]
    if levels:
        _take_levels(model, bundle)
    onnx.checker.check_model(model, full_check=True)
    return model


def _take_levels(model: onnx.ModelProto, bundle: Bundle) -> None:
    """Put normalising before the first node; the input is called ``pixels`` then."""
    manifest, graph = bundle.manifest, model.graph
    image = _graph_input(model, "image")
    dtype = _checked_type(image)
    size = manifest.image_size
    nodes, constants = normalisation("pixels", "image", mean=manifest.mean, std=manifest.std, dtype=dtype)
    graph.input.remove(image)
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, size, size]))
    graph.initializer.extend(constants)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _graph_input(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    return next(value for value in model.graph.input if value.name == name)


def _checked_type(image: onnx.ValueInfoProto) -> int:
    dtype = image.type.tensor_type.elem_type
    if dtype not in IMAGE_TYPES:
        raise UsageError(
            f"{MODEL} takes images as {TensorProto.DataType.Name(dtype)}; a server can be set up for FLOAT or FLOAT16."
        )
    return dtype
