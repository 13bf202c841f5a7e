"""Which carrier of the dual-view head an engine gets: PTX inside it, a plugin's library, or plain operators."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpdval_edge import kernels
from hpdval_edge.bundle import Bundle
from hpdval_edge.errors import UsageError
from hpdval_edge.trt.flavour import Flavour
from hpdval_edge.trt.kernel_files import KernelFile, find_kernels

# Fastest first; plain operators are the reference and always there.
MODES = ("qdp-aot", "plugin-so", "onnx")
LIBRARY = "libhpedge_head_plugin.so"


@dataclass(frozen=True, slots=True)
class Head:
    """A chosen carrier. kernels: those it may launch. library: the plugin's, of mode plugin-so."""

    mode: str
    kernels: tuple[KernelFile, ...] = ()
    library: Path | None = None


def choose_heads(
    flavour: Flavour, bundle: Bundle, wanted: str, capabilities: Sequence[int], dtype: str
) -> tuple[Head, ...]:
    """All of `MODES` that may work, in their order, or the one that is ``wanted``, which never falls back.

    Args:
        wanted: auto or one of `MODES`.
        dtype: of the head's inputs, fp16 or fp32.

    Raises:
        UsageError: an unknown mode, or one that does not work here, with the reason.
    """
    if wanted not in ("auto", *MODES):
        raise UsageError(f"--head {wanted!r} is not one of auto, {', '.join(MODES)}.")
    supported = flavour.head_modes(capabilities)
    heads, reasons = [], []
    for mode in MODES if wanted == "auto" else (wanted,):
        reason = supported[mode]
        if reason is None:
            try:
                heads.append(_head(mode, bundle, capabilities, dtype))
            except UsageError as error:
                reason = str(error).rstrip(".")
        if reason:
            reasons.append(f"--head {mode}: {reason}")
    if not heads:
        raise UsageError("; ".join(reasons) + ".")
    return tuple(heads)


def _head(mode: str, bundle: Bundle, capabilities: Sequence[int], dtype: str) -> Head:
    if mode == "onnx":
        return Head(mode)
    if mode == "qdp-aot":
        return Head(mode, find_kernels(bundle, capabilities[0], dtype=dtype, patch_scores=True, kind="ptx"))
    # A driver loads its chip's cubin whatever its age; only text serves several chips.
    kinds = ("cubin", "ptx") if len(capabilities) == 1 else ("ptx",)
    library, chip = plugin_library(), min(capabilities)
    for kind in kinds:
        try:
            return Head(mode, find_kernels(bundle, chip, dtype=dtype, patch_scores=True, kind=kind), library)
        except UsageError:
            if kind == kinds[-1]:
                raise
    raise AssertionError("the last kind either returns or raises")


def plugin_library() -> Path:
    """The plugin's shared library, which is built where TensorRT's headers are.

    Raises:
        UsageError: it was not built with this installation.
    """
    for folder in kernels.__path__:
        if (path := Path(folder, LIBRARY)).is_file():
            return path
    raise UsageError(
        f"{LIBRARY} was not built; install hpdval-edge from source with -C cmake.define.HPEDGE_TENSORRT_PLUGIN=ON "
        "(docs/tensorrt.md)"
    )
