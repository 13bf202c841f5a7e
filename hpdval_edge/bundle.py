"""The bundle: what an export writes and every device reads (DESIGN section 4).

A folder ``NAME.hpedge/`` or the same zipped. It is refused, saying why, when its schema is unknown, a file is missing
or altered, or labels, text banks and thresholds disagree.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from hpdval_edge.errors import BadData, UsageError

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
TORCHSCRIPT = "model.ts"
TEXT = "text.safetensors"
THRESHOLDS = "thresholds.json"
GOLDEN = "golden.npz"
CARD = "MODEL_CARD.md"
REQUIRED = (MODEL, TEXT, THRESHOLDS, GOLDEN)


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json.

    labels: in the order of all columns. image_size: pixels a side; pictures are squashed to it, antialiased bicubic.
    mean, std: RGB, of pictures in [0, 1]. alpha weighs the global view, topk patches make the local one. grid: rows and
    columns of patches. logit_scale: sigmoid(logit_scale * s) is the uncalibrated probability. files: sha256 of each.
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

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle.

    text_global, text_local: unit rows float32 [C, E]. thresholds: float32 [C] for the bundle's precision.
    """

    path: Path
    manifest: Manifest
    text_global: np.ndarray
    text_local: np.ndarray
    thresholds: np.ndarray

    def read(self, name: str) -> bytes:
        """Content of one file of the bundle, checked against the manifest; BadData if it is not there."""
        return _checked(self.path, name, self.manifest.files)

    def golden(self) -> tuple[np.ndarray, np.ndarray]:
        """Pictures uint8 [n, S, S, 3] and their expected scores float32 [n, C]."""
        with np.load(io.BytesIO(self.read(GOLDEN)), allow_pickle=False) as archive:
            return archive["images"], archive["scores"]


def load_bundle(path: str | Path) -> Bundle:
    """Open and verify a bundle.

    Raises:
        UsageError: no such folder or file.
        BadData: names the schema, file, label or shape that does not fit.
    """
    path = Path(path)
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
        banks = text["global"], text["local"]
    except (SafetensorError, KeyError, json.JSONDecodeError, TypeError) as error:
        raise BadData(
            f"bundle {path}: {TEXT} or {THRESHOLDS} is not what schema {SCHEMA} holds ({error!r})."
        ) from error
    shape = (len(manifest.labels), manifest.embed_dim)
    for name, bank in zip(("global", "local"), banks, strict=True):
        if bank.shape != shape or bank.dtype != np.float32:
            raise BadData(
                f"bundle {path}: text bank {name!r} is {bank.dtype} {bank.shape}, the manifest says float32 {shape}."
            )
    if values.shape != shape[:1]:
        raise BadData(f"bundle {path}: {len(values)} thresholds for {shape[0]} labels.")
    return Bundle(path, manifest, *banks, values)


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
    names = {field.name for field in fields(Manifest)}
    if values.keys() != names:
        odd = ", ".join(sorted(values.keys() ^ names))
        raise BadData(f"bundle {path}: {MANIFEST} does not fit schema {SCHEMA} (keys: {odd}).")
    for key in ("labels", "mean", "std", "grid"):
        values[key] = tuple(values[key])
    return Manifest(**values)


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
