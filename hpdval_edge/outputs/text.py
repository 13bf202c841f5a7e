"""Results as lines of text: a table for people, JSON lines, CSV."""

import csv
import json
from typing import TextIO

from hpdval_edge.outputs.output import Output, Result

FORMATS = ("table", "jsonl", "csv")


class _Text:
    pictures = False

    def __init__(self, stream: TextIO, labels: tuple[str, ...]) -> None:
        self.stream = stream
        self.labels = labels

    def close(self) -> None:
        """Every line was flushed when it was written."""


class Table(_Text):
    """A line a picture: its name, the chosen labels and their scores."""

    def write(self, result: Result) -> None:
        """Write the line."""
        prediction = result.prediction
        chosen = [f"{label} {prediction.scores[self.labels.index(label)]:.3f}" for label in prediction.labels]
        print(f"{result.frame.name}  {', '.join(chosen) or '-'}", file=self.stream, flush=True)


class JsonLines(_Text):
    """A JSON object a picture: path, labels, scores by label."""

    def write(self, result: Result) -> None:
        """Write the object on a line of its own."""
        prediction = result.prediction
        scores = {label: round(float(score), 6) for label, score in zip(self.labels, prediction.scores, strict=True)}
        record = {"path": result.frame.source, "labels": list(prediction.labels), "scores": scores}
        print(json.dumps(record), file=self.stream, flush=True)


class Csv(_Text):
    """A row a picture: path, labels joined by semicolons, the score of each label."""

    def __init__(self, stream: TextIO, labels: tuple[str, ...]) -> None:
        super().__init__(stream, labels)
        self.rows = csv.writer(stream, lineterminator="\n")
        self.rows.writerow(["path", "labels", *labels])

    def write(self, result: Result) -> None:
        """Write the row."""
        prediction = result.prediction
        scores = (f"{score:.6f}" for score in prediction.scores)
        self.rows.writerow([result.frame.source, ";".join(prediction.labels), *scores])


def text_output(format_: str, stream: TextIO, labels: tuple[str, ...]) -> Output:
    """The output for one of FORMATS; labels: all, in score order."""
    return {"table": Table, "jsonl": JsonLines, "csv": Csv}[format_](stream, labels)
