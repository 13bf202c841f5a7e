"""The bundle: what an export writes and every device reads (DESIGN section 4).

A folder ``NAME.hpedge/`` or the same zipped. It is refused, saying why, when its schema is unknown, a file is missing
or altered, or labels, text banks and thresholds disagree.
"""

import hashlib
import io
import json
import math
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from hpdval_edge.atomic import locked, new_folder, put_back
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.images import INPUTS

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
TORCHSCRIPT = "model.ts"
PT2 = "model.pt2"
TEXT = "text.safetensors"
THRESHOLDS = "thresholds.json"
GOLDEN = "golden.npz"
CARD = "MODEL_CARD.md"
# Histograms of the validation scores, which a monitor compares with; optional, see `monitor.reference`.
REFERENCE = "reference.json"
# Key of the manifest's provenance: what its text banks were made with, see `training.text_banks`.
TEXT_SPACE = "text_space"
# Folder of GPU kernels compiled ahead of time, with a manifest of their own.
KERNELS = "kernels"
REQUIRED = (MODEL, TEXT, THRESHOLDS, GOLDEN)
# What `hpedge labels` and `hpedge calibrate` write; engines depend on none of them.
LABEL_FILES = (TEXT, THRESHOLDS, GOLDEN, CARD, REFERENCE)


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json.

    labels: in the order of all columns. image_size: pixels a side; pictures are squashed to it, antialiased bicubic.
    mean, std: RGB, of pictures in [0, 1]. alpha weighs the global view, topk patches make the local one. grid: rows and
    columns of patches. logit_scale: sigmoid(logit_scale * s) is the uncalibrated probability. files: sha256 of each.
    input: what the model's image is, one of `images.INPUTS`; bundles older than this key take float32.
    """

    schema: int
    name: str
    labels: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    alpha: float
    topk: int
    grid: tuple[int, int]
    embed_dim: int
    logit_scale: float
    precision: str
    provenance: dict[str, Any]
    files: dict[str, str]
    input: str = "float32"

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt scaling of cosines: p = sigmoid((logit_scale * s - bias) / temperature).

    temperature: how much flatter than the training loss's sigmoid. bias: in units of the logit; a cosine has no natural
    zero, so that a temperature alone could not move the score at which p is 1/2. 1 and 0 leave p uncalibrated.
    """

    logit_scale: float
    temperature: float = 1.0
    bias: float = 0.0

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Float32 of any shape -> float32 of that shape, each label's probability by itself (they need not add up)."""
        logits = (self.logit_scale * np.asarray(scores, np.float64) - self.bias) / self.temperature
        # The sigmoid written as a tanh cannot overflow.
        return (0.5 + 0.5 * np.tanh(0.5 * logits)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle.

    text_global, text_local: unit rows float32 [C, E]. thresholds: float32 [C]. calibration: makes probabilities;
    uncalibrated in bundles older than calibration. fitted_at: precision of the scores that thresholds and calibration
    were fitted on; differs from the manifest's where an export could not fit them anew. objective: of the thresholds,
    as ``hpedge calibrate --objective`` takes it. unfitted: labels whose thresholds are not their own, for no validation
    picture showed them.
    """

    path: Path
    manifest: Manifest
    text_global: np.ndarray
    text_local: np.ndarray
    thresholds: np.ndarray
    calibration: Calibration
    fitted_at: str
    objective: str
    unfitted: frozenset[str] = frozenset()

    def read(self, name: str) -> bytes:
        """Content of one file of the bundle, checked against the manifest.

        Raises:
            BadData: it is not there, or was altered. UsageError: another program has changed the bundle since.
        """
        try:
            return _checked(self.path, name, self.manifest.files)
        except BadData:
            check_current(self)
            raise

    def fingerprint(self) -> str:
        """The sha256 of manifest.json, which holds those of all other files: it tells a bundle from every other."""
        return sha256(_read(self.path, MANIFEST))

    def golden(self) -> tuple[np.ndarray, np.ndarray]:
        """Pictures uint8 [n, S, S, 3] and their expected scores float32 [n, C]."""
        with np.load(io.BytesIO(self.read(GOLDEN)), allow_pickle=False) as archive:
            return archive["images"], archive["scores"]


def load_bundle(path: str | Path) -> Bundle:
    """Open and verify a bundle; one that a killed ``hpedge export`` or ``calibrate`` had moved aside is put back first.

    Raises:
        UsageError: no such folder or file.
        BadData: names the schema, file, label or shape that does not fit.
    """
    path = Path(path)
    put_back(path)
    if not path.exists():
        raise UsageError(f"bundle {path} does not exist; `hpedge export` writes one.")
    manifest = _read_manifest(path)
    missing = [name for name in REQUIRED if name not in manifest.files]
    if missing:
        raise BadData(f"bundle {path} lists no {missing[0]}; export it again.")
    content = {name: _checked(path, name, manifest.files) for name in manifest.files}
    try:
        text = load_safetensors(content[TEXT])
        thresholds = json.loads(content[THRESHOLDS])[manifest.precision]
        if tuple(thresholds["labels"]) != manifest.labels:
            raise BadData(
                f"bundle {path}: the label order of {THRESHOLDS} differs from the manifest's; export it again."
            )
        values = np.array(thresholds["values"], np.float32)
        calibration = read_calibration(thresholds, manifest.logit_scale)
        # Exports before `hpedge calibrate` existed did not say.
        fitted = thresholds.get("fitted", [True] * len(values))
        unfitted = frozenset(label for label, own in zip(manifest.labels, fitted, strict=True) if not own)
        banks = text["global"], text["local"]
    except (SafetensorError, KeyError, json.JSONDecodeError, TypeError, ValueError) as error:
        raise BadData(
            f"bundle {path}: {TEXT} or {THRESHOLDS} is not what schema {SCHEMA} holds ({error!r})."
        ) from error
    _check_shapes(path, manifest, banks, values)
    # Exports before fitted_at existed took the F1 thresholds of float32 scores, whatever the bundle's precision.
    fitted_at, objective = thresholds.get("fitted_at", "fp32"), thresholds.get("objective", "f1")
    return Bundle(path, manifest, *banks, values, calibration, fitted_at, objective, unfitted)


def _check_shapes(path: Path, manifest: Manifest, banks: tuple[np.ndarray, np.ndarray], values: np.ndarray) -> None:
    """BadData where the text banks or the thresholds are not those of the manifest's labels."""
    shape = (len(manifest.labels), manifest.embed_dim)
    for name, bank in zip(("global", "local"), banks, strict=True):
        if bank.shape != shape or bank.dtype != np.float32:
            raise BadData(
                f"bundle {path}: text bank {name!r} is {bank.dtype} {bank.shape}, the manifest says float32 {shape}."
            )
    if values.shape != shape[:1]:
        raise BadData(f"bundle {path}: {len(values)} thresholds for {shape[0]} labels.")


def read_calibration(entry: Mapping[str, Any], logit_scale: float) -> Calibration:
    """Temperature and bias of one precision's entry in thresholds.json; uncalibrated where it has none.

    Raises:
        ValueError, TypeError: they are no such numbers.
    """
    temperature, bias = float(entry.get("temperature", 1.0)), float(entry.get("bias", 0.0))
    if not (0 < temperature < math.inf and math.isfinite(bias)):
        raise ValueError(f"temperature {temperature} must be positive and bias {bias} finite")
    return Calibration(logit_scale, temperature, bias)


def replace_thresholds(bundle: Bundle, entry: Mapping[str, Any], reference: bytes | None = None) -> None:
    """Write ``entry`` as the bundle's thresholds, for its precision, and the ``reference`` of the same scores.

    Without one, the bundle keeps what it has. The errors are those of `rewrite`.
    """
    files = {THRESHOLDS: thresholds_text(bundle.manifest, entry)}
    rewrite(bundle, bundle.manifest, files if reference is None else {**files, REFERENCE: reference})


def rewrite(bundle: Bundle, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Write the bundle anew with ``files`` in place of its own of these names, and ``manifest`` with their sha256.

    All of it or nothing: a reader sees the bundle as it was or as it will be.

    Raises:
        UsageError: a zipped bundle, or one that is no longer what ``bundle`` was read from.
        MissingDependency: a full disk; the bundle stays as it was.
    """
    if not bundle.path.is_dir():
        raise UsageError(f"bundle {bundle.path} is zipped; unpack it to change it.")
    # Another writer waits here, and then finds that the bundle is not what it read.
    with locked(bundle.path), new_folder(bundle.path) as folder:
        for source in bundle.path.rglob("*"):
            target = folder / source.relative_to(bundle.path)
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        write_manifest(folder, manifest, files)
        check_current(bundle)


def check_current(bundle: Bundle) -> None:
    """UsageError where the bundle on disk is another one by now than what ``bundle`` was read from."""
    if _read_manifest(bundle.path) != bundle.manifest:
        raise UsageError(f"bundle {bundle.path} was changed by another program meanwhile; run the same once more.")


def thresholds_text(manifest: Manifest, entry: Mapping[str, Any]) -> bytes:
    """thresholds.json with ``entry`` for the manifest's precision."""
    return (json.dumps({manifest.precision: entry}, indent=2) + "\n").encode()


def write_thresholds(folder: Path, manifest: Manifest, entry: Mapping[str, Any]) -> None:
    """thresholds.json with ``entry`` for the manifest's precision, and the manifest with its new sha256."""
    text = thresholds_text(manifest, entry)
    (folder / THRESHOLDS).write_bytes(text)
    write_manifest(folder, manifest, {THRESHOLDS: text})


def write_manifest(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """manifest.json with the sha256 of ``files`` in place of those it had for them."""
    digests = {**manifest.files, **{name: sha256(data) for name, data in files.items()}}
    (folder / MANIFEST).write_text(replace(manifest, files=digests).to_json(), encoding="utf-8")


def sha256(data: bytes) -> str:
    """Hex digest as the manifest keeps it."""
    return hashlib.sha256(data).hexdigest()


def _read_manifest(path: Path) -> Manifest:
    try:
        values = json.loads(_read(path, MANIFEST).decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadData(f"bundle {path}: {MANIFEST} is not JSON ({error}).") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else None
        raise BadData(
            f"bundle {path} has schema {found!r}, this version reads {SCHEMA}; export it again or update hpedge."
        )
    names = {field.name: field.default is MISSING for field in fields(Manifest)}
    odd = {name for name in names.keys() - values.keys() if names[name]} | values.keys() - names.keys()
    if odd:
        odd = ", ".join(sorted(odd))
        raise BadData(f"bundle {path}: {MANIFEST} does not fit schema {SCHEMA} (keys: {odd}).")
    try:
        for key in ("labels", "mean", "std", "grid"):
            values[key] = tuple(values[key])
    except TypeError:
        raise BadData(f"bundle {path}: {MANIFEST} has {key} = {values[key]!r}, which is no list.") from None
    manifest = Manifest(**values)
    _check_values(path, manifest)
    return manifest


def _check_values(path: Path, manifest: Manifest) -> None:
    """BadData for a value of the manifest that is of another type, or none that an export writes."""

    def whole(value: object) -> bool:
        return type(value) is int and value >= 1

    def finite(value: object) -> bool:
        return type(value) in (int, float) and math.isfinite(value)

    right = {
        "labels": bool(manifest.labels) and all(type(label) is str for label in manifest.labels),
        "image_size": whole(manifest.image_size) and manifest.image_size <= 8192,
        "mean": len(manifest.mean) == 3 and all(map(finite, manifest.mean)),
        "std": len(manifest.std) == 3 and all(finite(value) and value > 0 for value in manifest.std),
        "alpha": finite(manifest.alpha) and 0 <= manifest.alpha <= 1,
        "topk": whole(manifest.topk),
        "grid": len(manifest.grid) == 2 and all(map(whole, manifest.grid)),
        "embed_dim": whole(manifest.embed_dim),
        "logit_scale": finite(manifest.logit_scale),
        "files": isinstance(manifest.files, dict),
        "input": manifest.input in INPUTS,
    }
    for key, holds in right.items():
        if not holds:
            value = getattr(manifest, key)
            raise BadData(f"bundle {path}: {MANIFEST} has {key} = {value!r}, which cannot be; export it again.")


def _checked(path: Path, name: str, digests: dict[str, str]) -> bytes:
    if name not in digests:
        raise BadData(f"bundle {path} holds no {name}; it has {', '.join(sorted(digests))}.")
    data = _read(path, name)
    if sha256(data) != digests[name]:
        raise BadData(f"bundle {path}: {name} was altered (its sha256 is not the manifest's); export or copy it again.")
    return data


def _read(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            return (path / name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            names = [entry for entry in archive.namelist() if entry == name or entry.endswith(f".hpedge/{name}")]
            return archive.read(names[0])
    except (zipfile.BadZipFile, IndexError, OSError) as error:
        raise BadData(f"{path} is no bundle: {name} cannot be read ({error}).") from error
