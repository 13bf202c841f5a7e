"""The outputs that the options of ``hpedge infer`` ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from hpdval_edge.atomic import check_folder, disk_errors
from hpdval_edge.bundle import Bundle
from hpdval_edge.errors import MissingDependency, UsageError
from hpdval_edge.monitor.record import Monitor
from hpdval_edge.outputs.heat_maps import HeatMaps, check_labels
from hpdval_edge.outputs.messages import open_output
from hpdval_edge.outputs.output import ModelInfo, Output, close_all
from hpdval_edge.outputs.overlays import Overlays
from hpdval_edge.outputs.text import FORMATS, text_output

# Suffix of --output -> format.
FILES = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
# What --resume can add to.
RESUMABLE = (".jsonl", ".csv")


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """The options, as ``hpedge infer --help`` explains them."""

    format_: str = "table"
    output: Path | None = None
    overlay: Path | None = None
    maps: Path | None = None
    map_labels: Sequence[str] = ()
    map_raw: bool = False
    to: Sequence[str] = ()
    monitor: Path | None = None
    monitor_copies: bool = False
    resume: bool = False

    def check(self) -> None:
        """Refuse what cannot be, without a model, so that it comes at once.

        Raises:
            UsageError: of values and combinations. MissingDependency: of a folder that cannot be written to.
        """
        if self.format_ not in FORMATS:
            raise UsageError(f"--format {self.format_!r} is not one of {', '.join(FORMATS)}.")
        if self.output is not None and self.output.suffix.lower() not in FILES:
            raise UsageError(f"--output {self.output} must end in one of {', '.join(FILES)}.")
        if self.resume and (self.output is None or self.output.suffix.lower() not in RESUMABLE):
            raise UsageError(f"--resume goes on with a file: pass --output FILE, ending in {' or '.join(RESUMABLE)}.")
        if self.map_raw and self.maps is None:
            raise UsageError("--map-raw belongs to --maps DIR.")
        if self.map_labels and self.maps is None and self.overlay is None:
            raise UsageError("--map-label belongs to --maps DIR or --overlay DIR.")
        if self.monitor_copies and self.monitor is None:
            raise UsageError("--monitor-copies belongs to --monitor DIR.")
        if self.output is not None and self.output.is_dir():
            raise UsageError(f"--output {self.output} is a folder; name a file.")
        for folder in (self.overlay, self.maps, self.monitor, self.output and self.output.parent):
            if folder is not None:
                check_folder(folder)

    def has_columns(self) -> bool:
        """Whether the records go where each label has a column, so that the labels must stay."""
        kind = self.format_ if self.output is None else FILES[self.output.suffix.lower()]
        return kind in ("csv", "parquet")


def open_outputs(options: OutputOptions, bundle: Bundle, model: ModelInfo, stdout: TextIO) -> list[Output]:
    """Open them all, for results of ``bundle``; those that were opened are closed again where one cannot be.

    Raises:
        UsageError, MissingDependency: of the output that cannot be opened.
    """
    check_labels(options.map_labels, model.labels)
    outputs: list[Output] = []
    try:
        for url in options.to:
            outputs.append(open_output(url, model))
        if options.monitor is not None:
            outputs.append(Monitor(options.monitor, bundle, copies=options.monitor_copies))
        if options.overlay is not None:
            label = next(iter(options.map_labels), None)
            outputs.append(Overlays(options.overlay, model, label, keep=options.resume))
        if options.maps is not None:
            outputs.append(HeatMaps(options.maps, model, options.map_labels, raw=options.map_raw, keep=options.resume))
        # The last, also to be written: of what is recorded --resume makes nothing again.
        outputs.append(_records(options, model, stdout))
    except BaseException:
        close_all(outputs)
        raise
    return outputs


def _records(options: OutputOptions, model: ModelInfo, stdout: TextIO) -> Output:
    """Where the records go: the file of --output, else stdout."""
    if options.output is None:
        return text_output(options.format_, stdout, model)
    kind = FILES[options.output.suffix.lower()]
    if kind == "parquet":
        return _parquet(options.output, model)
    with disk_errors(options.output):
        options.output.parent.mkdir(parents=True, exist_ok=True)
        file = options.output.open("a" if options.resume else "w", encoding="utf-8", newline="")
        return text_output(kind, file, model, begun=file.tell() > 0)


def _parquet(target: Path, model: ModelInfo) -> Output:
    try:
        from hpdval_edge.outputs.parquet import Parquet
    except ImportError as error:
        raise MissingDependency(
            f"{error.name} is not installed, which writes {target}; run: pip install 'hpdval-edge[parquet]'."
        ) from error
    return Parquet(target, model)
