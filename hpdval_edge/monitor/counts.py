"""What a monitor counts: per day and label, how often it was named and how its scores were spread."""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpdval_edge.atomic import write_file
from hpdval_edge.bundle import Bundle
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.monitor.reference import BINS, Reference, bin_of

# Days (UTC) that are kept, the newest; older ones are forgotten, so that a monitor never grows.
KEPT = 30
DAY = 86_400
FILE = "counts.npz"


@dataclass(slots=True)
class Counts:
    """Counts of one bundle's results.

    labels: C names. bundle: its manifest's sha256. precision: what it computes in. reference: what to compare with.
    days: int64 [D], days since 1970, rising. pictures: int64 [D]. named: int64 [D, C], scores at or above the bundle's
    own threshold. bins: int64 [D, C, BINS]. seen: float64 [C], when each label was last named, seconds since 1970, NaN
    for never. first, last: when the first and the last picture came; NaN before that.
    """

    labels: tuple[str, ...]
    bundle: str
    precision: str
    reference: Reference
    days: np.ndarray
    pictures: np.ndarray
    named: np.ndarray
    bins: np.ndarray
    seen: np.ndarray
    first: float = np.nan
    last: float = np.nan

    @classmethod
    def of(cls, bundle: Bundle, reference: Reference) -> "Counts":
        """Nothing counted yet."""
        manifest = bundle.manifest
        return cls.empty(manifest.labels, bundle.fingerprint(), manifest.precision, reference)

    @classmethod
    def empty(cls, labels: tuple[str, ...], bundle: str, precision: str, reference: Reference) -> "Counts":
        """Nothing counted yet, of a model that these describe."""
        zeros = np.zeros(0, np.int64), np.zeros(0, np.int64)
        tables = np.zeros((0, len(labels)), np.int64), np.zeros((0, len(labels), BINS), np.int64)
        return cls(labels, bundle, precision, reference, *zeros, *tables, np.full(len(labels), np.nan))

    def add(self, scores: np.ndarray, named: np.ndarray, when: float) -> None:
        """Count one picture: scores float32 [C], named bool [C], when in seconds since 1970."""
        row = self.row_of(int(when // DAY))
        self.first, self.last = float(np.fmin(self.first, when)), float(np.fmax(self.last, when))
        self.seen[named] = np.fmax(self.seen[named], when)
        if row is None:
            return
        self.pictures[row] += 1
        self.named[row] += named
        self.bins[row, np.arange(len(self.labels)), bin_of(scores, self.reference.edges)] += 1

    def row_of(self, day: int) -> int | None:
        """Row of a day, made where it is new; None of one older than all that are kept."""
        row, full = int(np.searchsorted(self.days, day)), len(self.days) == KEPT
        if row < len(self.days) and self.days[row] == day:
            return row
        if full and row == 0:
            return None
        for name in ("days", "pictures", "named", "bins"):
            values = np.insert(getattr(self, name), row, day if name == "days" else 0, axis=0)
            setattr(self, name, values[full:])
        return row - full

    def save(self, folder: Path) -> None:
        """Write counts.npz, whole or not at all.

        Raises:
            MissingDependency: a full disk; the file stays as it was.
        """
        facts = {
            "labels": self.labels,
            "bundle": self.bundle,
            "precision": self.precision,
            "reference": self.reference.pictures,
        }
        arrays = {name: getattr(self, name) for name in ("days", "pictures", "named", "bins", "seen")}
        own = self.reference
        arrays |= {"edges": own.edges, "expected": own.counts, "rates": own.rates}
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, facts=np.array(json.dumps(facts)), between=np.array([self.first, self.last]), **arrays
        )
        write_file(folder / FILE, lambda partial: partial.write_bytes(buffer.getvalue()))


def read_counts(folder: Path) -> Counts:
    """The counts in a monitor's folder.

    Raises:
        UsageError: there are none. BadData: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no monitor ({FILE} is missing); `hpedge infer … --monitor {folder}` keeps one."
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            facts = json.loads(str(archive["facts"]))
            reference = Reference(facts["reference"], archive["edges"], archive["expected"], archive["rates"])
            counted = [archive[name] for name in ("days", "pictures", "named", "bins", "seen")]
            first, last = archive["between"].tolist()
        labels = tuple(facts["labels"])
        if counted[3].shape != (len(counted[0]), len(labels), BINS):
            raise ValueError(f"bins {counted[3].shape} of {len(labels)} labels")
        return Counts(labels, facts["bundle"], facts["precision"], reference, *counted, first, last)
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise BadData(f"{path} is damaged ({error}); remove it to begin anew.") from error


def merge(monitors: Sequence[tuple[Path, Counts]]) -> Counts:
    """The counts of several monitors of one bundle, added up; the newest days of all.

    Raises:
        UsageError: they are of different bundles.
    """
    (first_path, first), *others = monitors
    total = Counts.empty(first.labels, first.bundle, first.precision, first.reference)
    for path, _ in others:
        if path.resolve() == first_path.resolve():
            raise UsageError(f"{path} was named twice.")
    for path, counts in others:
        if counts.bundle != first.bundle:
            raise UsageError(
                f"{path} watched bundle {counts.bundle[:12]}, {first_path} {first.bundle[:12]}; look at one at a time."
            )
    for _, counts in monitors:
        for day in range(len(counts.days)):
            if (row := total.row_of(int(counts.days[day]))) is not None:
                total.pictures[row] += counts.pictures[day]
                total.named[row] += counts.named[day]
                total.bins[row] += counts.bins[day]
        total.seen = np.fmax(total.seen, counts.seen)
        total.first, total.last = float(np.fmin(total.first, counts.first)), float(np.fmax(total.last, counts.last))
    return total
