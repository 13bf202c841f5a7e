"""The folder of a run: configuration, metrics, weights and the state that resuming needs (DESIGN section 3)."""

import json
import platform
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpdval_edge.atomic import disk_errors, new_folder, put_back, write_file, write_text
from hpdval_edge.config import Config, as_table, load_config, read_toml
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.stages import Cursor

RUNS = Path("runs")
LAST = RUNS / "last"
CACHE = RUNS / ".cache"
# The teacher's row among the stages of metrics.json.
ZERO_SHOT = "teacher zero-shot"
# Keys that version 0.1.0 did not write, at what it did; what it did not know is off.
FIRST_VERSION = {"prompt.residual": False, "train.wise": "off"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and files of one run."""

    path: Path

    @property
    def name(self) -> str:
        """Folder name, as ``runs/last`` holds it."""
        return self.path.name

    def weights(self, which: str) -> Path:
        """``last``, ``best`` or ``stage1`` weights."""
        return self.path / "weights" / f"{which}.safetensors"

    @property
    def golden(self) -> Path:
        """Pictures that an export verifies itself on: ``images`` uint8 [n, S, S, 3]."""
        return self.path / "golden.npz"

    def config(self) -> Config:
        """The resolved configuration of the run; BadData where there is none."""
        path = self.path / "config.toml"
        if not path.is_file():
            raise BadData(f"{self.path} is not a run: it has no config.toml.")
        values = {**FIRST_VERSION, **read_toml(path)}
        return load_config(preset=values.pop("preset", None), values=values)

    def write_config(self, config: Config) -> None:
        """config.toml and env.json."""
        write_text(self.path / "config.toml", tomli_w.dumps(as_table(config)))
        packages = ("hpdval-edge", "torch", "timm", "open_clip_torch", "numpy", "pillow")
        environment = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "machine": platform.machine(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "packages": {name: version(name) for name in packages},
        }
        self.write_json("env.json", environment)

    def write_json(self, name: str, content: Any) -> None:
        """One JSON document beside the others."""
        write_text(self.path / name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Content of a JSON file of the run; BadData if it is missing or damaged."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise BadData(f"{self.path / name} cannot be read: {error}.") from error

    def reports(self) -> dict[str, dict[str, Any]]:
        """metrics.json, by stage in the order they finished; nothing before the first report."""
        return self.read_json("metrics.json") if (self.path / "metrics.json").is_file() else {}

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl; an epoch that was trained again after an interruption replaces its line."""
        here = (entry["stage"], entry["epoch"])
        kept = [line for line in self._logged() if (line["stage"], line["epoch"]) != here]
        self._write_log([*kept, dict(entry)])

    def forget(self, stages: Collection[str]) -> None:
        """Drop the lines of ``stages`` from metrics.jsonl, because they are trained anew."""
        lines = self._logged()
        kept = [line for line in lines if line["stage"] not in stages]
        if len(kept) < len(lines):
            self._write_log(kept)

    def _logged(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def _write_log(self, lines: list[dict[str, Any]]) -> None:
        write_text(self.path / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))

    def save_state(self, tensors: Mapping[str, Tensor], cursor: Cursor) -> None:
        """The resume state, replaced as a whole."""
        content = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        with new_folder(self.path / "state") as folder:
            save_file(content, folder / "state.safetensors")
            (folder / "cursor.json").write_text(json.dumps(asdict(cursor)), encoding="utf-8")

    def load_state(self) -> tuple[dict[str, Tensor], Cursor] | None:
        """What ``save_state`` wrote, or None where nothing was saved yet."""
        folder = self.path / "state"
        put_back(folder)
        if not folder.is_dir():
            return None
        try:
            tensors = load_file(folder / "state.safetensors")
            cursor = json.loads((folder / "cursor.json").read_text(encoding="utf-8"))
            return tensors, Cursor(**cursor)
        except (SafetensorError, OSError, json.JSONDecodeError, TypeError) as error:
            raise BadData(f"{folder} is damaged ({error}); delete it to train this run from its start.") from error

    def save_golden(self, images: np.ndarray) -> None:
        """Keep pictures, uint8 [n, S, S, 3], for the export's own check."""

        def save(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez_compressed(file, images=images)

        write_file(self.golden, save)

    def make_last(self) -> None:
        """Let ``runs/last`` name this run."""
        write_text(self.path.parent / LAST.name, self.name + "\n")


def create_run(name: str | None, default: str) -> RunFolder:
    """A new folder ``runs/<name>``; without a name ``default``, numbered when it is taken.

    Raises:
        UsageError: ``name`` is taken or no file name.
    """
    if name is not None:
        if not NAME.fullmatch(name):
            raise UsageError(f"--name {name!r} may hold only letters, digits, dot, dash and underscore.")
        if _is_taken(RUNS / name):
            raise UsageError(
                f"run {RUNS / name} exists; continue it with --resume --name {name}, or choose another name."
            )
        path = RUNS / name
    else:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", default).strip("-.") or "run"
        number = 1
        while _is_taken(path := RUNS / (stem if number == 1 else f"{stem}-{number}")):
            number += 1
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path)


def _is_taken(path: Path) -> bool:
    """Whether a run or a file is there; a folder without config.toml is what a run that never began has left."""
    return path.is_file() or (path / "config.toml").is_file()


def selected_weights(config: Config) -> str:
    """Which weights file ``eval.select`` stands for once a stage has finished."""
    return "last" if config.eval.select == "last" else "best"


def last_report(run: RunFolder) -> tuple[str, dict[str, Any]]:
    """Name and report of the stage that finished last; UsageError where none has."""
    finished = {name: report for name, report in run.reports().items() if name != ZERO_SHOT}
    if not finished:
        raise UsageError(
            f"{run.path} has no finished stage to report on; go on with `hpedge train --resume --name {run.name}`."
        )
    return list(finished.items())[-1]


def reported_weights(run: RunFolder) -> Path:
    """The weights that the last report, the thresholds and the calibration of a run belong to.

    While a later stage trains, ``best`` and ``last`` are already its own; ``stage1`` stays what it was.

    Raises:
        UsageError: no stage has finished. BadData: the weights are damaged, or none of them is the report's.
    """
    stage, report = last_report(run)
    for which in (selected_weights(run.config()), "stage1"):
        path = run.weights(which)
        if not path.is_file():
            continue
        metadata = weights_metadata(path)
        if (metadata.get("stage"), metadata.get("epoch")) == (stage, str(report["epoch"])):
            return path
    raise BadData(
        f"{run.path / 'weights'} holds no weights of {stage}, epoch {report['epoch']}, which metrics.json reports on; "
        f"finish the run with `hpedge train --resume --name {run.name}`."
    )


def weights_metadata(path: Path) -> dict[str, str]:
    """What a weights file says beside its tensors, see ``save_weights``; BadData if it cannot be read."""
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BadData(f"{path} is not a readable weights file: {error}; train again or pass another run.") from error


def find_run(name: str | None) -> RunFolder:
    """The run called ``name`` (a name or a path), or the last one; UsageError says what is there."""
    if name is None:
        if not LAST.is_file():
            raise UsageError(f"there is no run here yet ({LAST} is missing); run `hpedge train` first.")
        name = LAST.read_text(encoding="utf-8").strip()
    for path in (RUNS / name, Path(name)):
        if (path / "config.toml").is_file():
            return RunFolder(path)
    known = sorted(path.parent.name for path in RUNS.glob("*/config.toml"))
    raise UsageError(f"{name!r} is no run; runs here: {', '.join(known) or 'none'}.")
