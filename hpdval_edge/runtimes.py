"""Engines that run a bundle's model. Each takes pictures and the text banks, and gives scores."""

import copy
import importlib.util
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from hpdval_edge.bundle import MODEL, PT2, TORCHSCRIPT, Bundle
from hpdval_edge.errors import HpedgeError, MissingDependency, UsageError


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to load an engine.

    threads: of the CPU that one call may use, 0 for the engine's own choice. build: whether TensorRT may build an
    engine now. engines: folder of its engines; None is beside the bundle. head: ``auto`` scores with the fastest head
    that is there, ``graph`` with the one that the exported model holds.
    """

    threads: int = 0
    build: bool = True
    engines: Path | None = None
    head: str = "auto"


class Engine(Protocol):
    """A loaded model. Threads may share it."""

    name: str

    def __call__(self, images: np.ndarray, patch_scores: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        """Images as `images.model_input` makes them -> scores float32 [B, C], patch cosines float32 [B, N, C].

        Without ``patch_scores`` these may be None.
        """
        ...

    def with_banks(self, bundle: Bundle) -> "Engine | None":
        """The same loaded model with the text banks of ``bundle``; None where it does not take so many labels.

        This engine stays as it is, also while other threads run it.
        """
        ...


Loaded = TypeVar("Loaded")


def with_other_banks(engine: Loaded, banks: Any) -> Loaded:
    """A copy of an engine that shares all but its text banks, the attribute ``banks``."""
    other = copy.copy(engine)
    other.banks = banks
    return other


class TorchEngine(ABC):
    """What a bundle holds beside the ONNX model for users of PyTorch, on the CPU; needs torch."""

    name: str
    file: str

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        try:
            import torch
        except ImportError:
            raise MissingDependency(
                f"backend {self.name} needs PyTorch: pip install 'hpdval-edge[export]'; or use --backend onnxruntime."
            ) from None
        if options.threads:
            torch.set_num_threads(options.threads)
        with warnings.catch_warnings():
            # PyTorch deprecates TorchScript; `hpedge export --help` says so, a warning here helps nobody.
            warnings.simplefilter("ignore")
            self.module = self.load(io.BytesIO(bundle.read(self.file)))
        self.banks = _torch_banks(bundle)

    @abstractmethod
    def load(self, file: io.BytesIO) -> Callable:
        """The module in ``file``."""

    def __call__(self, images: np.ndarray, patch_scores: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        import torch

        with torch.no_grad():
            scores, cosines = self.module(torch.from_numpy(images), *self.banks)
        return scores.numpy(), cosines.numpy() if patch_scores else None

    def with_banks(self, bundle: Bundle) -> "TorchEngine":
        """The same module with the text banks of ``bundle``."""
        return with_other_banks(self, _torch_banks(bundle))


def _torch_banks(bundle: Bundle) -> tuple[Any, Any]:
    import torch

    return torch.from_numpy(bundle.text_global), torch.from_numpy(bundle.text_local)


class TorchScriptEngine(TorchEngine):
    """TorchScript; a bundle exported with ``--to torchscript``."""

    name, file = "torchscript", TORCHSCRIPT

    def load(self, file: io.BytesIO) -> Callable:
        import torch

        return torch.jit.load(file, map_location="cpu")


class Pt2Engine(TorchEngine):
    """A program of torch.export; a bundle exported with ``--to pt2``."""

    name, file = "pt2", PT2

    def load(self, file: io.BytesIO) -> Callable:
        import torch

        return torch.export.load(file).module()


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to run a bundle: ``refuses`` says why it cannot, or None; ``lacks`` the same of the machine."""

    name: str
    load: Callable[[Bundle, EngineOptions], Engine]
    refuses: Callable[[Bundle], str | None]
    lacks: Callable[[], str | None] = lambda: None


def _needs_file(name: str, option: str) -> Callable[[Bundle], str | None]:
    def refuses(bundle: Bundle) -> str | None:
        return None if name in bundle.manifest.files else f"the bundle holds no {name}; export with {option}"

    return refuses


def _load_onnxruntime(bundle: Bundle, options: EngineOptions) -> Engine:
    from hpdval_edge.engine_onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, options)


def _load_openvino(name: str) -> Callable[[Bundle, EngineOptions], Engine]:
    def load(bundle: Bundle, options: EngineOptions) -> Engine:
        from hpdval_edge.engine_openvino import OpenVINOEngine

        return OpenVINOEngine(bundle, options, name)

    return load


def _for_openvino(bundle: Bundle) -> str | None:
    """Weights of 8 bits overflow its sums on CPUs without VNNI without a word; --int8 has 7."""
    tensorrts = bundle.manifest.precision == "int8-fp16"
    return "8 bits are for TensorRT here; export with --int8" if tensorrts else _HAS_ONNX(bundle)


def _lacks_module(name: str, install: str) -> Callable[[], str | None]:
    def lacks() -> str | None:
        missing = importlib.util.find_spec(name) is None
        return f"its Python module {name} is not installed; pip install {install}" if missing else None

    return lacks


def _load_tensorrt(name: str) -> Callable[[Bundle, EngineOptions], Engine]:
    def load(bundle: Bundle, options: EngineOptions) -> Engine:
        from hpdval_edge.trt.build import BuildOptions, build_engine
        from hpdval_edge.trt.engine import TensorRTEngine
        from hpdval_edge.trt.flavour import load_flavour

        # However it was built: `hpedge build` has options that this has not.
        built = build_engine(bundle, BuildOptions(name, folder=options.engines), allow=options.build, any_=True)
        return TensorRTEngine(bundle, built.plan, load_flavour(name))

    return load


def _lacks_tensorrt(name: str) -> Callable[[], str | None]:
    def lacks() -> str | None:
        from hpdval_edge.trt.cuda import open_cuda
        from hpdval_edge.trt.flavour import MODULES, REMEDIES, load_flavour

        if importlib.util.find_spec(MODULES[name]) is None:
            return f"its Python module {MODULES[name]} is not installed; {REMEDIES[name]}"
        if importlib.util.find_spec("onnx") is None:
            return "it needs onnx; pip install 'hpdval-edge[tensorrt]'"
        try:
            facts, flavour = open_cuda().facts(), load_flavour(name)
            flavour.network_flags()
        except HpedgeError as error:
            return str(error).rstrip(".")
        modes = flavour.head_modes((facts.capability,))
        return None if None in modes.values() else modes["onnx"]

    return lacks


def _for_cpus(bundle: Bundle) -> str | None:
    """8 bits for CPUs may be unsigned, which TensorRT reads as signed; --int8 --fp16 is what it takes."""
    return "8 bits are for CPUs here; export with --int8 --fp16" if bundle.manifest.precision == "int8" else None


_HAS_ONNX = _needs_file(MODEL, "--to onnx")
_LACKS_OPENVINO = _lacks_module("openvino", "'hpdval-edge[openvino]'")
# Fastest first; docs/cpu.md has what was measured of those for CPUs.
BACKENDS = (
    Backend("tensorrt", _load_tensorrt("tensorrt"), _for_cpus, _lacks_tensorrt("tensorrt")),
    Backend("tensorrt-rtx", _load_tensorrt("tensorrt-rtx"), _for_cpus, _lacks_tensorrt("tensorrt-rtx")),
    Backend("onnxruntime", _load_onnxruntime, _HAS_ONNX, _lacks_module("onnxruntime", "hpdval-edge")),
    Backend("openvino", _load_openvino("openvino"), _for_openvino, _LACKS_OPENVINO),
    Backend("openvino-bf16", _load_openvino("openvino-bf16"), _for_openvino, _LACKS_OPENVINO),
    Backend("torchscript", TorchScriptEngine, _needs_file(TORCHSCRIPT, "--to torchscript")),
    Backend("pt2", Pt2Engine, _needs_file(PT2, "--to pt2")),
)


def load_engine(bundle: Bundle, backend: str = "auto", options: EngineOptions | None = None) -> Engine:
    """Load ``bundle`` with the named backend, or with the first that takes it; a named one never falls back.

    Raises:
        UsageError: unknown backend, or a named one that refuses the bundle, with its reason.
        MissingDependency: a named backend's package or device is absent.
    """
    known = [candidate.name for candidate in BACKENDS]
    if backend not in ("auto", *known):
        raise UsageError(f"backend {backend!r} is not one of auto, {', '.join(known)}.")
    reasons = []
    for candidate in BACKENDS:
        if backend not in ("auto", candidate.name):
            continue
        if lack := candidate.lacks():
            if backend != "auto":
                raise MissingDependency(f"backend {backend}: {lack}.")
            reasons.append(f"{candidate.name}: {lack}")
        elif reason := candidate.refuses(bundle):
            reasons.append(f"{candidate.name}: {reason}")
        else:
            return candidate.load(bundle, options or EngineOptions())
    raise UsageError("; ".join(reasons) + ".")
