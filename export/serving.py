"""``hpedge export --to triton-repo`` and ``--to deepstream``: folders beside the bundle that those servers open."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import onnx
import onnxruntime

from hpdval_edge.atomic import new_folder
from hpdval_edge.bundle import Bundle
from hpdval_edge.errors import CheckFailed, UsageError
from hpdval_edge.export import serving_configs as configs
from hpdval_edge.export.preprocess_graph import image_shape, preprocess_graph
from hpdval_edge.export.served_model import served_model

README = "README.md"
# The largest batch of every configuration and trtexec line written.
MAX_BATCH = 32
# Triton's, of each of `images.INPUTS`.
TYPE_NAMES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}


@dataclass(frozen=True, slots=True)
class Served:
    """A folder written for a server, and how far its models' scores lie from float32 PyTorch's on golden pictures."""

    target: str
    path: Path
    max_error: float
    label_flips: int


def folder_of(bundle: Path, target: str) -> Path:
    """Where ``target`` of ``NAME.hpedge`` is written: ``NAME.triton-repo`` or ``NAME.deepstream``."""
    return bundle.with_suffix(f".{target}")


def check_folders(bundle: Path, targets: tuple[str, ...]) -> None:
    """UsageError where a folder that is to be written is there and does not come from an export."""
    for target in targets:
        path = folder_of(bundle, target)
        if path.exists() and not _is_ours(path, target):
            raise UsageError(f"{path} exists and was not written by --to {target}; move it away or use another --out.")


def _is_ours(path: Path, target: str) -> bool:
    try:
        return f"Written by `hpedge export --to {target}`" in (path / README).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def write(bundle: Bundle, target: str, tolerance: float) -> Served:
    """Write ``target`` beside the bundle, run its models on the golden pictures, only then put it in its place.

    Raises:
        CheckFailed: scores differ from the golden ones by more than ``tolerance``; an older folder stays.
    """
    path = folder_of(bundle.path, target)
    write_files, run = TARGETS[target]
    with new_folder(path) as folder:
        write_files(folder, bundle)
        images, expected = bundle.golden()
        scores = run(folder, bundle, images)
        error = float(np.abs(scores.astype(np.float64) - expected).max())
        if not error <= tolerance:
            raise CheckFailed(
                f"the models of {target} differ from float32 PyTorch by {error:.1e} on pictures, {tolerance:.0e} is "
                f"allowed; {path} was not written, the bundle was."
            )
    flips = int(((scores >= bundle.thresholds) != (expected >= bundle.thresholds)).sum())
    return Served(target, path, error, flips)


def _write_triton(folder: Path, bundle: Bundle) -> None:
    manifest, size, kind = bundle.manifest, bundle.manifest.image_size, bundle.manifest.input
    values = {**_values(bundle, "image", kind), "labels": json.dumps(_labels(bundle))}
    graph = preprocess_graph(image_size=size, mean=manifest.mean, std=manifest.std, kind=kind)
    preprocess = folder / values["preprocess"]
    _write_text(preprocess / "config.pbtxt", configs.PREPROCESS, {**values, "name": preprocess.name})
    _save(graph, preprocess)
    _write_recogniser(folder, bundle, served_model(bundle), values)
    ensemble = folder / manifest.name
    _write_text(ensemble / "config.pbtxt", configs.ENSEMBLE, values)
    _write_label_file(ensemble, bundle)
    # An ensemble has no file of its own, and stores without folders would lose an empty one.
    (ensemble / "1").mkdir()
    (ensemble / "1" / ".keep").touch()
    _write_text(folder / README, configs.TRITON_README, values)


def _write_deepstream(folder: Path, bundle: Bundle) -> None:
    values = _values(bundle, "pixels", "float32")
    _write_recogniser(folder / "models", bundle, served_model(bundle, levels=True), values)
    _write_text(folder / "nvinferserver.txt", configs.DEEPSTREAM, values)
    _write_text(folder / README, configs.DEEPSTREAM_README, values)
    (folder / "labels.json").write_text(_labels(bundle) + "\n", encoding="utf-8")


def _write_recogniser(repository: Path, bundle: Bundle, model: onnx.ModelProto, values: dict[str, object]) -> None:
    """The model with a configuration for ONNX Runtime, and in configs/ one for a TensorRT engine in its place."""
    folder = repository / values["recogniser"]
    values = {**values, "name": folder.name}
    by_file = {
        "config.pbtxt": {"platform": "onnxruntime_onnx", "kind": "KIND_AUTO"},
        "configs/tensorrt.pbtxt": {"platform": "tensorrt_plan", "kind": "KIND_GPU"},
    }
    for name, engine in by_file.items():
        _write_text(folder / name, configs.RECOGNISER, {**values, **engine})
    _write_label_file(folder, bundle)
    _save(model, folder)


def _values(bundle: Bundle, image: str, kind: str) -> dict[str, object]:
    """What the texts of both targets name; ``image`` is the recogniser's input, of ``kind``."""
    manifest = bundle.manifest
    shape = image_shape(kind, manifest.image_size)
    return {
        "input": image,
        "type_name": TYPE_NAMES[kind],
        "dims": ", ".join(map(str, shape)),
        "shape": "x".join(map(str, shape)),
        "name": manifest.name,
        "preprocess": f"{manifest.name}_preprocess",
        "recogniser": f"{manifest.name}_recogniser",
        "bundle": bundle.path.name,
        "precision": manifest.precision,
        "classes": len(manifest.labels),
        "patches": manifest.grid[0] * manifest.grid[1],
        "width": manifest.embed_dim,
        "max_batch": MAX_BATCH,
    }


def _labels(bundle: Bundle) -> str:
    """JSON in ASCII: labels, thresholds in their order, and the numbers of `Calibration`."""
    calibration = bundle.calibration
    return json.dumps(
        {
            "labels": bundle.manifest.labels,
            # The shortest decimals that read as the same float32.
            "thresholds": [float(str(value)) for value in bundle.thresholds],
            "logit_scale": calibration.logit_scale,
            "temperature": calibration.temperature,
            "bias": calibration.bias,
        }
    )


def _write_text(path: Path, text: Template, values: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.substitute(values), encoding="utf-8")


def _write_label_file(folder: Path, bundle: Bundle) -> None:
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in bundle.manifest.labels), encoding="utf-8")


def _save(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "1").mkdir()
    onnx.save(model, folder / "1" / "model.onnx")


def _run_triton(folder: Path, bundle: Bundle, pictures: np.ndarray) -> np.ndarray:
    """Scores float32 [n, C] of uint8 [n, S, S, 3] by the ensemble's two models, one picture a request."""
    name = bundle.manifest.name
    preprocess, recogniser = (_session(folder / f"{name}_{part}") for part in ("preprocess", "recogniser"))
    images = [preprocess.run(["image"], {"picture": picture})[0] for picture in pictures]
    return np.concatenate([recogniser.run(["scores"], {"image": image})[0] for image in images])


def _run_deepstream(folder: Path, bundle: Bundle, pictures: np.ndarray) -> np.ndarray:
    """Scores float32 [n, C] of uint8 [n, S, S, 3], handed over as nvinferserver does: levels, channel first."""
    recogniser = _session(folder / "models" / f"{bundle.manifest.name}_recogniser")
    pixels = pictures.transpose(0, 3, 1, 2).astype(np.float32)
    parts = [pixels[start : start + MAX_BATCH] for start in range(0, len(pixels), MAX_BATCH)]
    return np.concatenate([recogniser.run(["scores"], {"pixels": part})[0] for part in parts])


def _session(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # 3: errors only, as in hpdval_edge.runtimes.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model / "1" / "model.onnx", options, providers=["CPUExecutionProvider"])


# What writes a folder, and what runs its models: (folder, bundle, uint8 [n, S, S, 3]) -> float32 [n, C].
TARGETS: dict[str, tuple[Callable[[Path, Bundle], None], Callable[[Path, Bundle, np.ndarray], np.ndarray]]] = {
    "triton-repo": (_write_triton, _run_triton),
    "deepstream": (_write_deepstream, _run_deepstream),
}
