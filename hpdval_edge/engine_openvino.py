"""OpenVINO on the CPU, in a precision that is named and checked: its own choice is bfloat16 on some CPUs."""

import queue
from typing import Any

import numpy as np

from hpdval_edge.bundle import MODEL, Bundle
from hpdval_edge.errors import BadData, CheckFailed, MissingDependency
from hpdval_edge.golden import compare
from hpdval_edge.kernels.head_cpu import usable_cpus
from hpdval_edge.runtimes import EngineOptions, with_other_banks

# Backend -> openvino.Type that the graph's floats are computed in; integers of --int8 stay integers.
PRECISIONS = {"openvino": "f32", "openvino-bf16": "bf16"}
# Largest |score - golden score| in bfloat16: eight times what an export in float16 may show, whose steps are an eighth.
# Of int8 it is what an export may show, which is more.
BF16_TOLERANCE = {"fp32": 1.6e-2, "fp16": 1.6e-2, "int8": 1e-1}
# Each needs memory of its own for activations; `hpedge infer` has no more workers.
MOST_STREAMS = 4


class OpenVINOEngine:
    """OpenVINO on the CPU. Threads may share it: as many calls run side by side as there are streams.

    Args:
        name: key of PRECISIONS.

    Raises:
        BadData: a model that OpenVINO cannot load.
        MissingDependency: a CPU that OpenVINO does not take bfloat16 on, where that is asked for.
        CheckFailed: in bfloat16 the scores of the bundle's golden pictures are too far off.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions, name: str = "openvino") -> None:
        import openvino

        self.name = name
        core, version = openvino.Core(), openvino.__version__.partition("-")[0]
        settings = _settings(name, options.threads)
        try:
            model = core.compile_model(core.read_model(bundle.read(MODEL)), "CPU", settings)
        except RuntimeError as error:
            last = ([line for line in str(error).splitlines() if line.strip()] or [""])[-1]
            raise BadData(f"OpenVINO {version} cannot load {bundle.path}/{MODEL}: {last}") from error
        # What a CPU cannot do is taken for a hint and left out without a word.
        taken = model.get_property("INFERENCE_PRECISION_HINT")
        if taken != getattr(openvino.Type, PRECISIONS[name]):
            raise MissingDependency(
                f"backend {name} needs a CPU with instructions for bfloat16 (AVX512_BF16, AMX); on this one OpenVINO "
                f"{version} computes in {taken.to_dtype().name}, use --backend openvino."
            )
        # A request serves one call at a time.
        self.requests: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(settings["NUM_STREAMS"]):
            self.requests.put(model.create_infer_request())
        self.banks = _banks(bundle)
        if name == "openvino-bf16":
            self._check(bundle)

    def __call__(self, images: np.ndarray, patch_scores: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        request = self.requests.get()
        try:
            # Inputs are read where they lie, so that large banks are not copied; outputs are copies.
            found = request.infer({"image": images, **self.banks}, share_inputs=True)
        finally:
            self.requests.put(request)
        return found["scores"], found["patch_scores"] if patch_scores else None

    def with_banks(self, bundle: Bundle) -> "OpenVINOEngine":
        """The same compiled model with the text banks of ``bundle``."""
        return with_other_banks(self, _banks(bundle))

    def _check(self, bundle: Bundle) -> None:
        error, flips = compare(bundle, self)
        allowed = BF16_TOLERANCE[bundle.manifest.precision]
        if error > allowed:
            raise CheckFailed(
                f"in bfloat16 the scores of {bundle.path} differ from the golden ones by {error:.1e} ({flips} labels "
                f"change), {allowed:.1e} is allowed; use --backend openvino."
            )


def _banks(bundle: Bundle) -> dict[str, np.ndarray]:
    return {"text_global": bundle.text_global, "text_local": bundle.text_local}


def _settings(name: str, threads: int) -> dict[str, str | int | bool]:
    """One stream of all threads, or where ``threads`` are for each call, so many streams that all CPUs may have work.

    Threads are not pinned to cores, where two processes would both take the first.
    """
    streams = min(MOST_STREAMS, max(1, usable_cpus() // threads)) if threads else 1
    return {
        "INFERENCE_PRECISION_HINT": PRECISIONS[name],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads * streams,
        "ENABLE_CPU_PINNING": False,
    }
