"""ONNX Runtime on the CPU, with the compiled head where the model lets it in."""

from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from hpdval_edge.bundle import MODEL, Bundle
from hpdval_edge.errors import BadData
from hpdval_edge.kernels import TextBank, compiled
from hpdval_edge.runtimes import EngineOptions, with_other_banks

# The head's inputs inside the graph (export/graph.py); no outputs of the model as it is written.
BORDER = ("cls", "patches")
_FAILURES = (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NotImplemented)
# Tags of the fields in protobuf: ModelProto.graph, GraphProto.output, ValueInfoProto.name, each with a length.
_GRAPH, _OUTPUT, _NAME = 7 << 3 | 2, 12 << 3 | 2, 1 << 3 | 2


class OnnxRuntimeEngine:
    """A session of ONNX Runtime.

    head: ``c++``, the compiled kernel (docs/kernels.md), which takes the head's inputs out of the graph, whose own head
    then does not run; or ``graph``, that own head: where it was asked for, in bundles that do not name the head's
    inputs, and where the compiled module is missing.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        # 3: errors only; its warnings about nodes left on the CPU would land between the user's lines.
        settings.log_severity_level = 3
        self.threads = options.threads
        self.topk, self.alpha = bundle.manifest.topk, bundle.manifest.alpha
        self.head, self.session = "graph", None
        if options.head == "auto" and not compiled.missing():
            self.session = _with_border(bundle.read(MODEL), settings)
        if self.session:
            self.head = "c++"
        else:
            self.session = _session(bundle, settings)
        self.path = onnxruntime.RunOptions()
        self.path.only_execute_path_to_fetches = True
        self.banks = self._prepared(bundle)

    def __call__(self, images: np.ndarray, patch_scores: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        banks, packed = self.banks
        if packed is None:
            wanted = ["scores", "patch_scores"] if patch_scores else ["scores"]
            return (*self.session.run(wanted, {"image": images, **banks}, self.path), None)[:2]
        cls, patches = self.session.run(BORDER, {"image": images, **banks}, self.path)
        found = packed.scores(cls, patches, self.topk, self.alpha, return_patch_scores=patch_scores)
        return found if patch_scores else (found, None)

    def with_banks(self, bundle: Bundle) -> "OnnxRuntimeEngine":
        """The same session with the text banks of ``bundle``."""
        return with_other_banks(self, self._prepared(bundle))

    def _prepared(self, bundle: Bundle) -> tuple[dict[str, np.ndarray], TextBank | None]:
        """The graph's inputs besides the image, and the banks as the compiled head takes them."""
        rows = {"text_global": bundle.text_global, "text_local": bundle.text_local}
        if self.head == "graph":
            return rows, None
        packed = TextBank(bundle.text_global, bundle.text_local, threads=self.threads)
        # The graph's own head does not run, but its inputs must be there.
        return {name: bank[:1] for name, bank in rows.items()}, packed


def _session(bundle: Bundle, settings: Any) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(bundle.read(MODEL), settings, providers=["CPUExecutionProvider"])
    except _FAILURES as error:
        raise BadData(f"ONNX Runtime {onnxruntime.__version__} cannot load {bundle.path}/{MODEL}: {error}.") from error


def _with_border(model: bytes, settings: Any) -> onnxruntime.InferenceSession | None:
    """A session that also gives BORDER; None where the graph has no values of these names, or cannot be loaded."""
    # Under the same name, for large models: the shorter one is freed before the session doubles the other.
    model = with_outputs(model, BORDER)
    try:
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except _FAILURES:
        return None


def with_outputs(model: bytes, names: tuple[str, ...]) -> bytes:
    """A serialised ModelProto whose graph gives the values ``names``, short ones, as further outputs.

    Messages in protobuf may be written in pieces that follow one another: readers put them together again.
    """
    values = (_field(_NAME, name.encode()) for name in names)
    return b"".join((model, *(_field(_GRAPH, _field(_OUTPUT, value)) for value in values)))


def _field(tag: int, content: bytes) -> bytes:
    # One byte holds lengths up to 127.
    assert len(content) < 128
    return bytes((tag, len(content))) + content
