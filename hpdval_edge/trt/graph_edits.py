"""What a build changes in a bundle's model.onnx: the carrier of the head, and the rungs of the precision ladder."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from hpdval_edge.errors import BadData, MissingDependency
from hpdval_edge.trt.kernel_files import KernelFile

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

BANKS = ("text_global", "text_local")
BORDER = ("cls", "patches")
# Of the plugin that carries the head (kernels/plugin).
NODE, DOMAIN = "DualViewScores", "hpdval_edge"
FLOAT, UINT8, FLOAT16 = 1, 2, 10


def read_model(data: bytes) -> "ModelProto":
    """The graph in a file's bytes.

    Raises:
        MissingDependency: no onnx package.
        BadData: no ONNX model, or one whose head cannot be told from its encoder.
    """
    try:
        import onnx
    except ImportError:
        raise MissingDependency(
            "building an engine edits the ONNX graph: pip install 'hpdval-edge[tensorrt]' (it brings onnx)."
        ) from None
    try:
        model = onnx.load_from_string(data)
    except Exception as error:
        # protobuf's own errors differ by its version and backend and have no common base.
        raise BadData(f"model.onnx cannot be parsed ({error}); export the bundle again.") from error
    made = {name for node in model.graph.node for name in node.output}
    if not {*BORDER} <= made:
        raise BadData("model.onnx does not name the head's inputs (cls, patches); export the bundle again.")
    return model


def has_unsigned(model: "ModelProto") -> bool:
    """Whether activations are rounded to uint8, which TensorRT would read as int8 and clip at half their range."""
    unsigned = {tensor.name for tensor in model.graph.initializer if tensor.data_type == UINT8}
    return any(node.op_type == "QuantizeLinear" and {*node.input} & unsigned for node in model.graph.node)


def element_type(model: "ModelProto") -> str:
    """The head's input type: fp16 or fp32."""
    half = any(tensor.data_type == FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if half else "fp32"


def with_head_node(model: "ModelProto", kernel: KernelFile, *, topk: int, alpha: float) -> "ModelProto":
    """A copy in which one node of the plugin stands for the plain head, with the kernel inside its attributes.

    Text banks stay float32 inputs; they and, on the float32 rung, the rows are cast to the kernel's type. Without
    ``kernel.patch_scores`` the model has one output, scores.
    """
    from onnx import helper

    edited = encoder_only(model)
    graph = edited.graph
    wide = () if kernel.dtype == "fp32" else BANKS if element_type(model) == "fp16" else (*BORDER, *BANKS)
    inputs = [f"{name}_half" if name in wide else name for name in (*BORDER, *BANKS)]
    graph.node.extend(helper.make_node("Cast", [name], [f"{name}_half"], to=FLOAT16) for name in wide)
    outputs = ["scores", "patch_scores"] if kernel.patch_scores else ["scores"]
    graph.node.append(
        helper.make_node(
            NODE, inputs, outputs, name="dual_view_scores", domain=DOMAIN,
            plugin_version="1", plugin_namespace=DOMAIN, topk=topk, alpha=alpha, patch_scores=int(kernel.patch_scores),
            kernel=kernel.data, entry=kernel.entry, block_c=kernel.block_c, threads=kernel.threads,
            shared_bytes=kernel.shared_bytes, max_patches=kernel.max_patches, width=kernel.width, dtype=kernel.dtype,
        )
    )  # fmt: skip
    del graph.output[:]
    graph.output.extend(value for value in model.graph.output if value.name in outputs)
    graph.input.extend(value for value in model.graph.input if value.name in BANKS)
    edited.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return edited


def encoder_only(model: "ModelProto") -> "ModelProto":
    """A copy that ends at the head's inputs, which become its outputs, at the model's own type."""
    from onnx import helper

    edited = type(model)()
    edited.CopyFrom(model)
    graph = edited.graph
    kept = _needed(graph.node, BORDER)
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    for field in (graph.initializer, graph.input):
        left = [entry for entry in field if entry.name in used]
        del field[:]
        field.extend(left)
    del graph.value_info[:]
    del graph.output[:]
    kind = FLOAT16 if element_type(model) == "fp16" else FLOAT
    shapes = {"cls": ("batch", None), "patches": ("batch", None, None)}
    graph.output.extend(helper.make_tensor_value_info(name, kind, shapes[name]) for name in BORDER)
    return edited


def _needed(nodes: Iterable["NodeProto"], outputs: Iterable[str]) -> list["NodeProto"]:
    """The nodes that ``outputs`` depend on, in their order."""
    wanted, kept = {*outputs}, []
    for node in reversed(list(nodes)):
        if wanted & {*node.output}:
            kept.append(node)
            wanted |= {*node.input}
    return kept[::-1]


def with_float32_attention(model: "ModelProto") -> "ModelProto":
    """A copy whose attention scores and softmax are float32, the rung after half precision.

    It casts the two factors of the product in front of each softmax, and the softmax's result back.
    """
    from onnx import helper

    edited = type(model)()
    edited.CopyFrom(model)
    graph = edited.graph
    maker = {name: node for node in graph.node for name in node.output}
    products = {node.input[0] for node in graph.node if node.op_type == "Softmax"}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.output[0] in products:
            for place, name in enumerate(node.input):
                wide = f"{name}_float32"
                nodes.append(helper.make_node("Cast", [name], [wide], to=FLOAT))
                node.input[place] = wide
            nodes.append(node)
        elif node.op_type == "Softmax" and maker[node.input[0]].op_type == "MatMul":
            result = node.output[0]
            node.output[0] = f"{result}_float32"
            nodes += [node, helper.make_node("Cast", [node.output[0]], [result], to=FLOAT16)]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    # Types of values in between are the parser's to infer again.
    del graph.value_info[:]
    return edited


def with_float32(model: "ModelProto") -> "ModelProto":
    """A copy that computes in float32 with the same (rounded) weights, the last rung; its inputs keep their types."""
    from onnx import numpy_helper

    edited = type(model)()
    edited.CopyFrom(model)
    graph = edited.graph
    for tensor in graph.initializer:
        if tensor.data_type == FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT16:
                attribute.i = FLOAT
            elif attribute.name == "value" and attribute.t.data_type == FLOAT16:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    halves = [value.name for value in graph.input if value.type.tensor_type.elem_type == FLOAT16]
    _widen_inputs(edited, halves)
    del graph.value_info[:]
    return edited


def _widen_inputs(model: "ModelProto", names: list[str]) -> None:
    """Cast the named half inputs to float32 where they are used."""
    from onnx import helper

    for name in names:
        wide = f"{name}_float32"
        for node in model.graph.node:
            for place, used in enumerate(node.input):
                if used == name:
                    node.input[place] = wide
        model.graph.node.insert(0, helper.make_node("Cast", [name], [wide], to=FLOAT))


# The precision ladder: each rung's name and what makes it of the exported graph (None: nothing). The next one is tried
# where an engine's scores lie too far from the bundle's golden ones; a graph without half precision has the first only.
LADDER = (
    ("as exported", None),
    ("float32 attention", with_float32_attention),
    ("float32", with_float32),
)


def rungs(model: "ModelProto") -> tuple[str, ...]:
    """Names of the rungs that differ for this graph."""
    names = tuple(name for name, _ in LADDER)
    return names if element_type(model) == "fp16" else names[:1]


def on_rung(model: "ModelProto", name: str) -> "ModelProto":
    """The graph of a rung."""
    edit = dict(LADDER)[name]
    return edit(model) if edit else model
