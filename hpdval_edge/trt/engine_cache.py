"""Engines already built: beside the bundle, found again by everything that they depend on."""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hpdval_edge.atomic import disk_errors, new_folder
from hpdval_edge.progress import say

PLAN, RECORD, LOCK = "engine.plan", "engine.json", ".lock"


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine was built of and for; two engines with the same key are the same.

    model: sha256 of model.onnx. software: TensorRT and its version. gpu and driver: empty for TensorRT-RTX, whose
    engines fit every GPU of the chips named. chips: e.g. sm_87. head: its carrier, with the sha256 of its kernel and of
    its library. flags: everything else that was asked for.
    """

    model: str
    software: str
    gpu: str
    driver: str
    chips: tuple[str, ...]
    head: str
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Name of the engine's folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def serves(self, wanted: "EngineKey") -> bool:
        """Whether it is ``wanted``, or the same for more chips."""
        return {*wanted.chips} <= {*self.chips} and replace(self, chips=wanted.chips) == wanted

    def runs(self, wanted: "EngineKey") -> bool:
        """Whether a runtime that asks for ``wanted`` may use it, however it was built."""
        return replace(self, head=wanted.head, flags=wanted.flags).serves(wanted)


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """engine.json.

    rung: of the precision ladder. level: optimisation level it was built at. batch, labels: the most that it takes.
    golden: sha256 of the pictures that it was checked on, with max_error the largest |score difference| and label_flips
    the labels that change; empty and None where no GPU was at hand. host_code: the plugin's library is in the plan.
    """

    key: EngineKey
    sha256: str
    rung: str
    level: int
    batch: int
    labels: int
    seconds: float
    host_code: bool = False
    golden: str = ""
    max_error: float | None = None
    label_flips: int | None = None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other process builds in ``folder``, which is made where it is not there; another one is waited for.

    Raises:
        MissingDependency: the folder cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process builds in {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def engines_folder(bundle: Path) -> Path:
    """Where a bundle's engines lie: ``birds.engines`` beside ``birds.hpedge``."""
    return (bundle if bundle.name else bundle.resolve()).with_suffix(".engines")


def find_engine(folder: Path, fits: Callable[[EngineRecord], bool]) -> tuple[Path, EngineRecord] | None:
    """The newest engine below ``folder`` whose record fits, and the record.

    One whose record or plan is damaged is told and left out.
    """
    for path in sorted(folder.glob(f"*/{RECORD}"), key=lambda path: -path.stat().st_mtime):
        try:
            record = _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            say(f"note: {path} is not readable ({error}) and is left out")
            continue
        if not fits(record):
            continue
        if _digest(path.with_name(PLAN)) == record.sha256:
            return path.parent, record
        say(f"note: {path.with_name(PLAN)} is not what was built (its sha256 differs); it is built again")
    return None


def keep_engine(folder: Path, plan: Path, record: EngineRecord) -> Path:
    """Put a plan and its record into ``folder``/<digest of its key>; that folder."""
    data = plan.read_bytes()
    target = folder / record.key.digest
    with new_folder(target) as partial:
        (partial / PLAN).write_bytes(data)
        kept = replace(record, sha256=hashlib.sha256(data).hexdigest())
        (partial / RECORD).write_text(json.dumps(asdict(kept), indent=2) + "\n", encoding="utf-8")
    return target


def _read(path: Path) -> EngineRecord:
    values = json.loads(path.read_text(encoding="utf-8"))
    key = values.pop("key")
    return EngineRecord(key=EngineKey(**{**key, "chips": tuple(key["chips"])}), **values)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
