"""``hpedge infer --resume``: what an output file holds already, and a source without it."""

import csv
import hashlib
import json
import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpdval_edge.atomic import disk_errors
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.outputs.output import ModelInfo
from hpdval_edge.outputs.text import columns
from hpdval_edge.sources.frame import Frame, FrameSource

# Scores are written with 6 digits: that close to a threshold, either choice may be the written one's.
ROUNDING = 1e-6
BLOCK = 1 << 16


class Written:
    """Frames whose results are in a file of JSON lines or CSV, as 8 bytes each: 8 MB for a million.

    A line that a crash left half written is cut off first. Of n frames one is taken for written wrongly with a chance
    of n * n / 1.8e19: 5e-8 for a million.

    Args:
        path: the file; one that is not there yet holds nothing. top: the option with which labels are chosen.

    Raises:
        UsageError: it was written with another bundle, other labels, thresholds or top; BadData: it is no such file.
    """

    def __init__(self, path: Path, model: ModelInfo, top: int | None) -> None:
        self.path, self.model, self.top = path, model, top
        keys = array("Q")
        if path.exists():
            cut_half_line(path)
            rows = self._json_rows() if path.suffix.lower() == ".jsonl" else self._csv_rows()
            for number, row in enumerate(rows, 1):
                if number == 1:
                    self._check_choice(row)
                self._check_bundle(row, number)
                keys.append(_key(row["path"], row["frame"]))
        self.keys = np.unique(np.frombuffer(keys, np.uint64)) if keys else np.empty(0, np.uint64)

    def __contains__(self, frame: Frame) -> bool:
        key = _key(frame.source, frame.index)
        place = int(np.searchsorted(self.keys, np.uint64(key)))
        return place < len(self.keys) and int(self.keys[place]) == key

    def _json_rows(self) -> Iterator[dict[str, Any]]:
        with self.path.open(encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                # Also numbers of too many digits, and lists in lists in lists.
                except (ValueError, RecursionError) as error:
                    raise self._no_record(number) from error
                if not _is_record(row) or not self._fits(row):
                    raise self._no_record(number)
                yield row

    def _csv_rows(self) -> Iterator[dict[str, Any]]:
        expected, labels = columns(self.model), self.model.labels
        ambiguous = any(";" in label for label in labels)
        for number, row in self._csv_lines():
            if number == 1:
                if row != expected:
                    raise self._changed("labels", _difference(row, expected))
                continue
            if len(row) != len(expected):
                raise self._no_record(number)
            frame, _, bundle, _ = row[2 + len(labels) : 6 + len(labels)]
            try:
                scores = dict(zip(labels, map(float, row[2 : 2 + len(labels)]), strict=True))
                index = int(frame) if frame else None
            except ValueError as error:
                raise self._no_record(number) from error
            chosen = [] if not row[1] else None if ambiguous else row[1].split(";")
            found = {"path": row[0], "frame": index, "labels": chosen, "scores": scores, "bundle": bundle}
            if not self._fits(found):
                raise self._no_record(number)
            yield found

    def _csv_lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows of the file, each with the number of the line that it ends in; 1 is the header's."""
        with self.path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            try:
                for place, row in enumerate(rows):
                    yield rows.line_num if place else 1, row
            # A quotation mark that nothing closes, a NUL.
            except csv.Error as error:
                raise self._no_record(rows.line_num) from error

    def _fits(self, row: dict[str, Any]) -> bool:
        """Whether its chosen labels have scores and, where it is of this bundle, all labels have."""
        scores = row["scores"]
        own = row["bundle"] != self.model.bundle or [*scores] == [*self.model.labels]
        return own and (row["labels"] is None or scores.keys() >= {*row["labels"]})

    def _check_bundle(self, row: dict[str, Any], number: int) -> None:
        if row["bundle"] != self.model.bundle:
            if [*row["scores"]] != [*self.model.labels]:
                raise self._changed("labels", _difference([*row["scores"]], [*self.model.labels]))
            raise self._changed("bundle", f"line {number} is of {row['bundle'][:12]}, this is {self.model.bundle[:12]}")

    def _check_choice(self, row: dict[str, Any]) -> None:
        """Whether the options choose the same labels from the first row's scores, as far as its file tells them."""
        if row["bundle"] != self.model.bundle or row["labels"] is None:
            return
        chosen = {*row["labels"]}
        if self.top is not None:
            others = [score for label, score in row["scores"].items() if label not in chosen]
            worst = min((row["scores"][label] for label in chosen), default=-math.inf)
            same = len(chosen) == self.top and worst >= max(others, default=-math.inf) - ROUNDING
        else:
            pairs = zip(row["scores"].items(), self.model.thresholds.tolist(), strict=True)
            same = all(
                abs(score - least) <= ROUNDING or (label in chosen) == (score >= least)
                for (label, score), least in pairs
            )
        if not same:
            raise self._changed("--threshold or --top", f"they choose other labels for {row['path']}")

    def _changed(self, what: str, how: str) -> UsageError:
        return UsageError(
            f"--resume: {self.path} was written with another choice of {what} ({how}); run it as before, or choose "
            "another --output."
        )

    def _no_record(self, number: int) -> BadData:
        return BadData(f"{self.path}, line {number}: no result of hpedge infer; choose another --output.")


class Remaining:
    """A source without the frames that are written. left_out: how many these were."""

    def __init__(self, source: FrameSource, written: Written) -> None:
        self.source, self.written = source, written
        self.live, self.left_out = False, 0
        self.close = source.close

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.source:
            if frame in self.written:
                self.left_out += 1
            else:
                yield frame


def remaining(source: FrameSource, path: Path, model: ModelInfo, top: int | None) -> Remaining:
    """``source`` without the frames whose results ``path`` holds.

    Raises:
        UsageError: a live source, before the file is touched. More: see `Written`.
    """
    if source.live:
        raise UsageError("--resume is for pictures and films; a camera or stream starts anew each time.")
    return Remaining(source, Written(path, model, top))


def cut_half_line(path: Path) -> None:
    """Remove what follows the last line feed."""
    with disk_errors(path), path.open("r+b") as file:
        end = file.seek(0, 2)
        while end:
            start = max(0, end - BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                file.truncate(start + found + 1)
                return
            end = start
        file.truncate(0)


def _is_record(row: Any) -> bool:
    """Whether what JSON holds has the keys that are looked at, and of the types of record.schema.json."""
    keys = ("path", "frame", "labels", "scores", "bundle")
    if not isinstance(row, dict) or not all(key in row for key in keys):
        return False
    path, frame, labels, scores, bundle = (row[key] for key in keys)
    kinds = isinstance(path, str) and isinstance(bundle, str) and type(frame) in (int, type(None))
    if not kinds or not isinstance(labels, list) or not isinstance(scores, dict):
        return False
    # Of a thousand labels each line: the set of types is quicker than a loop. True would be an int.
    return {*map(type, labels)} <= {str} and {*map(type, scores.values())} <= {int, float}


def _key(source: str, index: int | None) -> int:
    text = source if index is None else f"{source}\0{index}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _difference(found: list[str], expected: list[str]) -> str:
    """The first place where two lists of names differ."""
    pairs = zip(found, expected, strict=False)
    return next(
        (f"{one!r} there, {other!r} here" for one, other in pairs if one != other),
        f"{len(found)} there, {len(expected)} here",
    )
