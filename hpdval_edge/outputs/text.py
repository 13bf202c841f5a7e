"""Results as lines of text: a table for people, JSON lines, CSV."""

import csv
import json
from typing import TextIO

from hpdval_edge.outputs.lines import WholeLines
from hpdval_edge.outputs.output import ModelInfo, Output, Result
from hpdval_edge.outputs.record import record

FORMATS = ("table", "jsonl", "csv")


class _Text:
    pictures = False

    def __init__(self, stream: TextIO, model: ModelInfo) -> None:
        self.lines = WholeLines(stream)
        self.model = model

    def close(self) -> None:
        """Every line was written whole."""
        self.lines.close()


class Table(_Text):
    """A line a picture: its name, the chosen labels and their scores, and which of their thresholds are not fitted."""

    def write(self, result: Result) -> None:
        """Write the line."""
        prediction, model = result.prediction, self.model.at(result.prediction)
        scores = (prediction.scores[model.labels.index(label)] for label in prediction.labels)
        pairs = zip(prediction.labels, scores, strict=True)
        chosen = [f"{label} {score:.3f}{' (not fitted)' * model.is_unfitted(label)}" for label, score in pairs]
        # Names of files may hold line feeds.
        name = "".join("?" if letter in "\r\n" else letter for letter in result.frame.name)
        self.lines.write(f"{name}  {', '.join(chosen) or '-'}\n")


class JsonLines(_Text):
    """A JSON object a picture: its record."""

    def write(self, result: Result) -> None:
        """Write the object on a line of its own."""
        self.lines.write(json.dumps(record(result, self.model)) + "\n")


class Csv(_Text):
    """A row a picture, the record's keys as columns.

    path, labels joined by semicolons, the score of each label under its name, frame, time, bundle, precision, and each
    label's probability under ``probability LABEL``.
    """

    def __init__(self, stream: TextIO, model: ModelInfo, begun: bool = False) -> None:
        super().__init__(stream, model)
        self.rows = csv.writer(self.lines, lineterminator="\n")
        if not begun:
            self.rows.writerow(columns(model))

    def write(self, result: Result) -> None:
        """Write the row; UsageError where its labels are others than the columns."""
        self.model.check_columns(result.prediction, self.lines.name)
        row = record(result, self.model)
        scores, chances = ([f"{value:.6f}" for value in row[key].values()] for key in ("scores", "probabilities"))
        facts = [row[key] for key in ("frame", "time", "bundle", "precision")]
        self.rows.writerow([row["path"], ";".join(row["labels"]), *scores, *facts, *chances])


def columns(model: ModelInfo) -> list[str]:
    """The first row of a CSV file."""
    chances = (f"probability {label}" for label in model.labels)
    return ["path", "labels", *model.labels, "frame", "time", "bundle", "precision", *chances]


def text_output(format_: str, stream: TextIO, model: ModelInfo, *, begun: bool = False) -> Output:
    """The output for one of FORMATS; begun: the stream has its beginning already."""
    if format_ == "csv":
        return Csv(stream, model, begun)
    return {"table": Table, "jsonl": JsonLines}[format_](stream, model)
