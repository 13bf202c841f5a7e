"""Results as one Parquet file, a row a picture, for pandas, DuckDB and the like."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpdval_edge.atomic import disk_errors
from hpdval_edge.outputs.output import ModelInfo, Result
from hpdval_edge.outputs.record import SCHEMA, record

# Results are kept in memory until this many numbers have come, 8 bytes each there, and written as a row group.
VALUES_A_GROUP = 2_000_000
MOST_ROWS = 10_000
# Bytes of a column in the footer, beside its name, from above: seen were about 90 in each row group.
COLUMN = 200
SLACK = 1 << 16


def arrow_schema(model: ModelInfo) -> pa.Schema:
    """The record's keys; scores and probabilities are structs with a float32 field a label."""
    by_label = pa.struct([pa.field(label, pa.float32(), nullable=False) for label in model.labels])
    fields = {
        "schema": pa.int32(),
        "path": pa.string(),
        "frame": pa.int64(),
        "time": pa.float64(),
        "labels": pa.list_(pa.string()),
        "scores": by_label,
        "probabilities": by_label,
        "bundle": pa.dictionary(pa.int32(), pa.string()),
        "precision": pa.dictionary(pa.int32(), pa.string()),
    }
    nullable = ("frame", "time")
    columns = [pa.field(name, kind, nullable=name in nullable) for name, kind in fields.items()]
    return pa.schema(columns, metadata={"hpedge.record": str(SCHEMA)})


class Parquet:
    """Writes a hidden sibling of ``target``; ``close``, also after an interruption, finishes it and renames it.

    The room for the next rows and for the file's footer is taken before they are written: a disk that fills up costs
    those rows alone, not the file. A process that is killed outright leaves only the sibling, which has no footer.

    Raises:
        MissingDependency: the disk is full, or the place cannot be written.
    """

    pictures = False

    def __init__(self, target: Path, model: ModelInfo) -> None:
        self.target = target
        self.model = model
        self.schema = arrow_schema(model)
        self.rows: list[dict[str, Any]] = []
        self.columns = 7 + 2 * len(model.labels)
        names = 2 * sum(len(label.encode()) for label in model.labels)
        # Of the footer, each row group's and as many again, twice, for the schema.
        self.footer = COLUMN * self.columns + 3 * names
        self.rows_a_group = max(1, min(MOST_ROWS, VALUES_A_GROUP // self.columns))
        self.groups = 0
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
            self.partial = Path(name)
            self.file = os.fdopen(handle, "wb")
        try:
            self._take_room(0)
            self.writer = pq.ParquetWriter(
                self.file, self.schema, compression="zstd", write_statistics=["path", "frame", "time"]
            )
        except BaseException:
            self._discard()
            raise

    def write(self, result: Result) -> None:
        """Keep the row; write a row group where enough of them wait.

        Raises:
            UsageError: its labels are others than the columns.
        """
        self.model.check_columns(result.prediction, self.target)
        row = record(result, self.model)
        # Arrow takes UTF-8 alone: other bytes of a file's name are written as JSON lines have them.
        self.rows.append({**row, "path": row["path"].encode("utf-8", "backslashreplace").decode()})
        if len(self.rows) >= self.rows_a_group:
            self._write_group()

    def close(self) -> None:
        """Write what waits and the footer, and give the file its name."""
        try:
            if self.rows:
                self._write_group()
        finally:
            self.writer.close()
            with disk_errors(self.target):
                # What room was taken and not needed lies behind the footer.
                self.file.truncate(self.file.tell())
                self.file.close()
                self.partial.chmod(0o644)
                os.replace(self.partial, self.target)

    def _write_group(self) -> None:
        rows, self.rows = self.rows, []
        table = pa.Table.from_pylist(rows, self.schema)
        # Encoded and compressed, a row group is hardly ever larger than in memory.
        self._take_room(table.nbytes + table.nbytes // 8)
        self.groups += 1
        self.writer.write_table(table)

    def _take_room(self, size: int) -> None:
        """Make sure of ``size`` bytes for rows and of the footer's behind them."""
        footer = self.footer * (self.groups + 3) + SLACK
        # Elsewhere than on Linux the room cannot be taken in advance.
        if hasattr(os, "posix_fallocate"):
            with disk_errors(self.target):
                os.posix_fallocate(self.file.fileno(), self.file.tell(), size + footer)

    def _discard(self) -> None:
        self.file.close()
        self.partial.unlink(missing_ok=True)
