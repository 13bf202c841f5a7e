"""The bundle's model as a server takes it: the text banks inside, so that a client sends pictures only."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hpdval_edge.bundle import MODEL, Bundle
from hpdval_edge.export.preprocess_graph import ELEMENT_TYPES, normalisation


def served_model(bundle: Bundle, *, levels: bool = False) -> onnx.ModelProto:
    """model.onnx with both banks as constants: ``image`` -> scores [B, C], patch_scores [B, N, C].

    Args:
        levels: Take ``pixels`` float32 [B, 3, S, S], RGB levels of 0 to 255, instead of ``image``, whatever that is,
            and normalise them inside: for servers that can scale all channels by one factor only.
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
    """Put what makes ``image`` of ``pixels`` before the first node."""
    manifest, graph = bundle.manifest, model.graph
    size, constants = manifest.image_size, []
    if manifest.input == "uint8":
        nodes = [
            helper.make_node("Transpose", ["pixels"], ["pixels.last"], perm=[0, 2, 3, 1]),
            helper.make_node("Cast", ["pixels.last"], ["image"], to=TensorProto.UINT8),
        ]
    else:
        dtype = ELEMENT_TYPES[manifest.input]
        nodes, constants = normalisation("pixels", "image", mean=manifest.mean, std=manifest.std, dtype=dtype)
    graph.input.remove(_graph_input(model, "image"))
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, size, size]))
    graph.initializer.extend(constants)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _graph_input(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    return next(value for value in model.graph.input if value.name == name)
