"""The dual-view head inside an engine as PTX: a quickly deployable plugin of TensorRT, ahead of time (`qdp-aot`).

TensorRT's Python asks for shapes, types and launches while it builds; the engine holds the PTX and runs without Python
and without a library of ours. The PTX is what `hpedge export --target` wrote into the bundle. Nothing here imports
triton or torch, and TensorRT's plugin module only when `register` is called.
"""

# TensorRT reads the annotations of the functions in `_define_launch` and its like, hence no `from __future__`.
import hashlib
import importlib
import struct
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from hpdval_edge.bundle import load_bundle
from hpdval_edge.errors import BadData, CheckFailed, MissingDependency, UsageError
from hpdval_edge.platforms import HEAD_MODES, RTX_HEAD_MODES, dotted, parse_version
from hpdval_edge.trt.kernel_files import KernelFile, find_kernels

NAMESPACE = "hpdval_edge"
# The number of outputs belongs to a plugin's name: without and with patch scores. The library of `plugin-so` registers
# the first name too, so that one process may load only one of them.
SCORES, PATCH_SCORES = "DualViewScores", "DualViewPatchScores"
MODE = next(mode for mode in HEAD_MODES if mode.name == "qdp-aot")
# Name in the kernels' manifest -> in autotune combinations.
DTYPES = {"fp16": "FP16", "fp32": "FP32"}
# Kernels by their hash, which is how a plugin's attribute names them.
_KEPT: dict[str, tuple[KernelFile, ...]] = {}


def refuses(trt: ModuleType) -> str | None:
    """Why the TensorRT module ``trt`` cannot carry the head so, in one sentence, or None."""
    if trt.__name__.startswith("tensorrt_rtx"):
        return f"TensorRT-RTX takes no PTX from Python ({MODE.name}); the ways left are {' and '.join(RTX_HEAD_MODES)}."
    version = parse_version(trt.__version__)
    reason = MODE.refuses(version)
    return reason and f"a head as PTX inside the engine ({MODE.name}) {reason}; {dotted(version)} is installed."


def register(trt: ModuleType) -> ModuleType:
    """Make both plugins known to ``trt`` and return its plugin module; a second call changes nothing.

    Raises:
        MissingDependency: this TensorRT cannot carry the head so.
    """
    if reason := refuses(trt):
        raise MissingDependency(reason)
    plugin = importlib.import_module("tensorrt.plugin")
    defined = vars(plugin.op.define_or_get(NAMESPACE))
    if SCORES not in defined:
        _define_scores(trt, plugin)
    if PATCH_SCORES not in defined:
        _define_patch_scores(trt, plugin)
    return plugin


def add_head(trt: ModuleType, network: Any, *, bundle: str, capability: int, dtype: str, patch_scores: bool) -> None:
    """Put the head behind a network whose outputs are its inputs, cls [B, E] and patches [B, N, E].

    The network gets inputs text_global and text_local, float32 [C, E], and instead of those two the outputs scores,
    float32 [B, C], and where wanted patch_scores, float32 [B, N, C]. What is not of ``dtype`` is cast to it.

    Args:
        network: INetworkDefinition, strongly typed.
        bundle: Path of the one with the kernels, k and alpha.
        capability: Of the GPU, e.g. 87.
        dtype: fp16 or fp32, of the kernels.

    Raises:
        MissingDependency: this TensorRT cannot carry the head so.
        UsageError: the bundle has no kernel for it, or the network's sizes are not the kernels'.
        BadData: a damaged bundle.
        CheckFailed: TensorRT does not take the plugin; its log says why.
    """
    plugin = register(trt)
    if dtype not in DTYPES:
        raise UsageError(f"inside TensorRT the head's inputs are {' or '.join(DTYPES)}, got {dtype!r}.")
    opened = load_bundle(bundle)
    kernels = find_kernels(opened, capability, dtype=dtype, patch_scores=patch_scores, kind="ptx")
    inputs = [*_border(network), *_text_inputs(trt, network, kernels[0].width)]
    _check_sizes(kernels[0], [tensor.shape for tensor in inputs])
    element = {"fp16": trt.float16, "fp32": trt.float32}[dtype]
    cast = [x if x.dtype == element else network.add_cast(x, element).get_output(0) for x in inputs]
    operator = getattr(getattr(plugin.op, NAMESPACE), PATCH_SCORES if patch_scores else SCORES)
    # Attributes are text: TensorRT's Python up to 10.16 cannot read numbers with NumPy 2.4 or later.
    manifest = opened.manifest
    call = operator(*cast, kernels=keep(kernels), topk=str(manifest.topk), alpha=repr(float(manifest.alpha)))
    layer = network.add_plugin(call, aot=True)
    if layer is None:
        raise CheckFailed("TensorRT did not add the dual-view head to the network; its log says why.")
    for index, name in enumerate(("scores", "patch_scores")[: layer.num_outputs]):
        output = layer.get_output(index)
        output.name = name
        network.mark_output(output)


def _border(network: Any) -> tuple[Any, Any]:
    """The tensors cls and patches, no longer outputs."""
    outputs = {tensor.name: tensor for tensor in map(network.get_output, range(network.num_outputs))}
    if outputs.keys() != {"cls", "patches"}:
        raise UsageError(f"the network's outputs must be cls and patches, got {', '.join(outputs)}.")
    for tensor in outputs.values():
        network.unmark_output(tensor)
    return outputs["cls"], outputs["patches"]


def _text_inputs(trt: ModuleType, network: Any, width: int) -> list[Any]:
    """Float32 [C, E], C of any size."""
    return [network.add_input(name, trt.float32, (-1, width)) for name in ("text_global", "text_local")]


def keep(kernels: tuple[KernelFile, ...]) -> str:
    """Remember ``kernels`` for this process; returns the name by which a plugin's attribute asks for them.

    Raises:
        BadData: one is not what its manifest says.
    """
    for kernel in kernels:
        if hashlib.sha256(kernel.data).hexdigest() != kernel.sha256:
            raise BadData(f"the kernel for {kernel.target} was altered (its sha256 differs); export the bundle again.")
    name = hashlib.sha256(repr(kernels).encode()).hexdigest()
    _KEPT[name] = kernels
    return name


def _check_sizes(kernel: KernelFile, shapes: Sequence[Any]) -> None:
    """Of cls, patches and texts; -1 stands for a size that is not known yet: TensorRT asks again when it is."""
    patches = shapes[1][1]
    if patches > kernel.max_patches:
        raise UsageError(f"the head's kernels take at most {kernel.max_patches} patches and the model has {patches}.")
    for shape in shapes:
        if (width := shape[len(shape) - 1]) not in (-1, kernel.width):
            raise UsageError(f"the head's kernels are for embeddings of {kernel.width} and the model's have {width}.")


def _define_scores(trt: ModuleType, plugin: ModuleType) -> None:
    name, tensor = f"{NAMESPACE}::{SCORES}", plugin.TensorDesc

    @plugin.register(name, lazy_register=True)
    def describe(
        cls: tensor, patches: tensor, text_global: tensor, text_local: tensor, kernels: str, topk: str, alpha: str
    ) -> tensor:
        return _scores(trt, plugin, cls, text_global)

    _define_launch(name, plugin)


def _define_patch_scores(trt: ModuleType, plugin: ModuleType) -> None:
    name, tensor = f"{NAMESPACE}::{PATCH_SCORES}", plugin.TensorDesc

    @plugin.register(name, lazy_register=True)
    def describe(
        cls: tensor, patches: tensor, text_global: tensor, text_local: tensor, kernels: str, topk: str, alpha: str
    ) -> tuple[tensor, tensor]:
        shape = (patches.shape_expr[0], patches.shape_expr[1], text_global.shape_expr[0])
        return _scores(trt, plugin, cls, text_global), plugin.from_shape_expr(shape, trt.float32)

    _define_launch(name, plugin)


def _scores(trt: ModuleType, plugin: ModuleType, cls: Any, text_global: Any) -> Any:
    """Float32 [B, C]."""
    return plugin.from_shape_expr((cls.shape_expr[0], text_global.shape_expr[0]), trt.float32)


def _define_launch(name: str, plugin: ModuleType) -> None:
    """What both plugins have in common: types, tactics (1 is the first kernel), launch."""

    @plugin.autotune(name)
    def autotune(cls, patches, text_global, text_local, kernels, outputs) -> list[plugin.AutoTuneCombination]:
        choices = _KEPT[kernels]
        types = [DTYPES[choices[0].dtype]] * 4 + ["FP32"] * len(outputs)
        return [plugin.AutoTuneCombination(", ".join(types), "LINEAR", [i + 1 for i in range(len(choices))])]

    @plugin.aot_impl(name)
    def launch(
        cls, patches, text_global, text_local, kernels, topk, alpha, outputs, tactic
    ) -> tuple[str, bytes, plugin.KernelLaunchParams, plugin.SymIntExprs]:
        kernel = _KEPT[kernels][tactic - 1]
        shapes = [desc.shape for desc in (cls, patches, text_global, text_local)]
        _check_sizes(kernel, [shape.max if shape.is_dynamic else shape for shape in shapes])
        images, labels = patches.shape_expr[0], text_global.shape_expr[0]
        grid = {"grid_x": plugin.cdiv(labels, kernel.block_c), "grid_y": images}
        params = plugin.KernelLaunchParams(**grid, block_x=kernel.threads, shared_mem=kernel.shared_bytes)
        # Between the pointers to inputs and to outputs; there is no scalar but int32, so alpha travels as its bits.
        bits = struct.unpack("<i", struct.pack("<f", float(alpha)))[0]
        scalars = (patches.shape_expr[1], labels, int(topk), bits)
        return kernel.entry, kernel.data, params, plugin.SymIntExprs.from_tuple([plugin.SymInt32(x) for x in scalars])
