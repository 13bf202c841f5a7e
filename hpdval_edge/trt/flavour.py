"""Which TensorRT this Python has and what it can do: the module is asked, tables only know what NVIDIA broke."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hpdval_edge.errors import MissingDependency, UsageError
from hpdval_edge.platforms import RTX_CAPABILITIES, Version, dotted, head_modes, parse_version, rtx_head_modes
from hpdval_edge.progress import say

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
REMEDIES = {
    "tensorrt": "on a Jetson it comes with JetPack (package python3-libnvinfer; a virtual environment needs "
    "--system-site-packages), elsewhere: pip install tensorrt",
    "tensorrt-rtx": "pip install 'hpdval-edge[rtx]'",
}


@dataclass(frozen=True, slots=True)
class Flavour:
    """An imported TensorRT. name: one of `MODULES`."""

    name: str
    module: ModuleType
    version: Version

    @property
    def title(self) -> str:
        """As people say it, with its version."""
        return f"{'TensorRT-RTX' if self.rtx else 'TensorRT'} {dotted(self.version[:3])}"

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which builds without a GPU."""
        return self.name == "tensorrt-rtx"

    def network_flags(self) -> int:
        """Flags of a network whose types are those of the graph, found by name: their numbers differ by version.

        Raises:
            UsageError: a TensorRT older than strongly typed networks.
        """
        flags = self.module.NetworkDefinitionCreationFlag.__members__
        if "STRONGLY_TYPED" not in flags:
            raise UsageError(
                f"{self.title} has no strongly typed networks, in which a bundle keeps its precision; TensorRT 10 "
                "(JetPack 6.1) or later has them. Use --backend onnxruntime here."
            )
        return 1 << int(flags["STRONGLY_TYPED"])

    def head_modes(self, capabilities: Sequence[int]) -> dict[str, str | None]:
        """For each way to carry the head why it is out of reach on GPUs of ``capabilities``, or None."""
        if self.rtx:
            return rtx_head_modes(capabilities)
        modes = head_modes(self.version, capabilities)
        if modes.get("qdp-aot", "") is None and not hasattr(self.module, "QuickPluginCreationRequest"):
            modes["qdp-aot"] = f"{self.title} as installed has no ahead-of-time plugins"
        return modes

    def compute_capabilities(self, capabilities: Sequence[int]) -> list[object]:
        """TensorRT-RTX's own names of the chips that an engine is for.

        Raises:
            UsageError: a chip that it does not run on.
        """
        members = self.module.ComputeCapability.__members__
        for capability in capabilities:
            if f"SM{capability}" not in members:
                known = ", ".join(f"sm_{known}" for known in RTX_CAPABILITIES)
                raise UsageError(f"TensorRT-RTX does not run on sm_{capability}; it runs on {known}.")
        return [members[f"SM{capability}"] for capability in capabilities]


def load_flavour(name: str) -> Flavour:
    """Import a TensorRT.

    Args:
        name: one of `MODULES`.

    Raises:
        MissingDependency: it is not there or its libraries do not load.
    """
    try:
        module = importlib.import_module(MODULES[name])
    except ImportError as error:
        raise MissingDependency(f"backend {name} needs its Python module ({error}); {REMEDIES[name]}.") from None
    return Flavour(name, module, parse_version(module.__version__))


def make_logger(trt: ModuleType, tell: Callable[[str, str], None]) -> Any:
    """A logger of ``trt`` that hands "error" and "warning" with their text to ``tell``; ``last`` is the last error."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last, self.errors = "", ""

        def log(self, severity: Any, text: str) -> None:
            levels = trt.ILogger.Severity
            if severity in (levels.ERROR, levels.INTERNAL_ERROR):
                self.last, self.errors = text.strip().rstrip("."), f"{self.errors}{text}\n"
                tell("error", text)
            elif severity == levels.WARNING:
                tell("warning", text)

    return Logger()


@functools.cache
def runtime_logger(trt: ModuleType) -> Any:
    """The one logger of this process's engines: TensorRT keeps a pointer to one. Errors go to stderr."""
    return make_logger(trt, lambda level, text: say(f"TensorRT: {text.strip()}") if level == "error" else None)


def parser_library_folder(folder: Path) -> Path:
    """A folder for LD_LIBRARY_PATH in which TensorRT-RTX's parser finds the library it asks for.

    The parser opens libtensorrt_rtx.so wherever a graph holds a plugin, and the wheels hold libtensorrt_rtx.so.1 only;
    without it the whole process aborts.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    # Without the wheel the library is the system's, with all its names.
    roots = spec.submodule_search_locations if spec else []
    for path in sorted(path for root in roots for path in Path(root).glob("libtensorrt_rtx.so.*")):
        (folder / "libtensorrt_rtx.so").symlink_to(path)
        break
    return folder
