"""Pictures that a person had better look at: those of which the model was least sure, spread over all it saw."""

import csv
import heapq
import io
import json
import math
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hpdval_edge.atomic import write_file, write_text
from hpdval_edge.errors import BadData
from hpdval_edge.sources.frame import Frame

SIZE = 100
# A margin that weighs a picture down by e, in log-odds: p from 0.5 to 0.62.
SCALE = 0.5
# What stands for a byte of a file's name that is no UTF-8.
SURROGATE = re.compile("[\ud800-\udfff]")
LIST, TABLE, COPIES = "review.jsonl", "review.csv", "review"


@dataclass(frozen=True, slots=True, order=True)
class Doubt:
    """A picture in the queue.

    key: what it is kept by. path, frame, time: as in its record. label: of which the model was least sure, with its
    score, threshold and probability. margin: how far the score lies from the threshold, in log-odds. labels: those
    named. copy: the picture beside the list; None where none was asked for.
    """

    key: float
    path: str
    frame: int | None
    time: float
    label: str
    score: float
    threshold: float
    probability: float
    margin: float
    labels: tuple[str, ...]
    copy: str | None


class ReviewQueue:
    """A reservoir of SIZE pictures, drawn from all without replacement, each weighed by exp(-margin / SCALE).

    Efraimidis and Spirakis (Information Processing Letters 97, 2006): the SIZE highest log(u) / weight, u uniform, are
    such a sample, however long the stream, and samples go on where they stopped.

    Args:
        folder: the monitor's; what lies there of earlier runs is taken over. copies: keep the pictures as well.
    """

    def __init__(self, folder: Path, *, copies: bool, size: int = SIZE, seed: int | None = None) -> None:
        self.folder, self.copies, self.size = folder, copies, size
        self.random = random.Random(seed)
        self.heap = read_review(folder)
        heapq.heapify(self.heap)
        self.held = {(doubt.path, doubt.frame) for doubt in self.heap}
        kept = {doubt.copy for doubt in self.heap}
        for path in sorted((folder / COPIES).glob("*.jpg")):
            # Of a run that was killed before it wrote the list.
            if f"{COPIES}/{path.name}" not in kept:
                path.unlink(missing_ok=True)
        self.number = max((int(Path(name).stem) for name in kept if name), default=-1) + 1

    def offer(self, frame: Frame, doubt: dict, picture: Image.Image | None) -> None:
        """Take a picture in, or not. doubt: the fields of Doubt from ``label`` to ``labels``; picture: RGB."""
        if (frame.source, frame.index) in self.held:
            return
        # 1 - u is never 0.
        key = math.log(1 - self.random.random()) / math.exp(-min(doubt["margin"] / SCALE, 500))
        if len(self.heap) == self.size and key <= self.heap[0].key:
            return
        copy = None
        if self.copies and picture is not None:
            copy = f"{COPIES}/{self.number:06}.jpg"
            self.number += 1
            write_file(self.folder / copy, lambda partial: picture.save(partial, "JPEG", quality=90))
        entry = Doubt(key=key, path=frame.source, frame=frame.index, copy=copy, **doubt)
        self.held.add((frame.source, frame.index))
        if len(self.heap) < self.size:
            heapq.heappush(self.heap, entry)
            return
        gone = heapq.heapreplace(self.heap, entry)
        self.held.discard((gone.path, gone.frame))
        if gone.copy:
            (self.folder / gone.copy).unlink(missing_ok=True)

    def save(self) -> None:
        """Write the list, least sure first, and the table that `hpedge train --data` reads once it is put right."""
        doubts = sorted(self.heap, key=lambda doubt: doubt.margin)
        write_text(self.folder / LIST, "".join(json.dumps(asdict(doubt)) + "\n" for doubt in doubts))
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["path", "labels"])
        for doubt in doubts:
            path = doubt.copy or (str(Path(doubt.path).absolute()) if doubt.frame is None else None)
            # A table in UTF-8 cannot name a file whose name is none.
            if path and not SURROGATE.search(path):
                rows.writerow([path, ";".join(doubt.labels)])
        write_text(self.folder / TABLE, table.getvalue())


def read_review(folder: Path) -> list[Doubt]:
    """The queue in a monitor's folder, least sure first; empty where there is none.

    Raises:
        BadData: the list is damaged.
    """
    path = folder / LIST
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Doubt(**{**line, "labels": tuple(line["labels"])}) for line in lines]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BadData(f"{path} is damaged ({error}); remove it to begin the queue anew.") from error


def least_sure(scores: np.ndarray, thresholds: np.ndarray, slope: float) -> tuple[int, float]:
    """Column and margin of the label whose score is nearest its threshold; slope: log-odds a unit of score."""
    margins = np.abs(scores - thresholds) * slope
    column = int(margins.argmin())
    return column, float(margins[column])
