"""What a monitor's counts say, label by label."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from hpdval_edge.monitor.counts import DAY, KEPT, Counts, merge, read_counts
from hpdval_edge.monitor.drift import DRIFTED, LARGE, chance, psi, reading
from hpdval_edge.monitor.reference import BINS
from hpdval_edge.monitor.review import Doubt, read_review

# Windows of the rates, in days, up to the newest picture's.
WINDOWS = (1, 7, 30)


@dataclass(frozen=True, slots=True)
class LabelUse:
    """One label in use.

    named: pictures it was named in, of all days kept. rates: share of pictures it was named in, by window, NaN of a
    window without pictures. expected: the same on the validation pictures, NaN without reference. psi: over the days
    compared. reading: psi in a word. seen: when it was last named, seconds since 1970, NaN for never. unseen: days from
    then, or from the first picture, to the newest. shares, reference: of pictures in each bin. daily: rates by day.
    """

    label: str
    named: int
    rates: dict[int, float]
    expected: float
    psi: float
    reading: str
    seen: float
    unseen: float
    shares: tuple[float, ...]
    reference: tuple[float, ...]
    daily: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """All that is told of one or several monitors.

    pictures, days: those compared, and on which days since 1970. reference: validation pictures. chance: PSI that
    chance stays below. limit: PSI of a large shift. doubts: pictures to look at, with their folder.
    """

    folders: tuple[Path, ...]
    bundle: str
    precision: str
    pictures: int
    reference: int
    first: float
    last: float
    days: tuple[int, ...]
    chance: float
    limit: float
    unseen_days: float
    labels: tuple[LabelUse, ...]
    doubts: tuple[tuple[Path, Doubt], ...]

    @property
    def drifted(self) -> tuple[LabelUse, ...]:
        """Labels whose scores have shifted beyond the limit."""
        return tuple(label for label in self.labels if label.reading == DRIFTED)

    @property
    def unseen(self) -> tuple[LabelUse, ...]:
        """Labels not named for ``unseen_days`` days or more."""
        return tuple(label for label in self.labels if label.unseen >= self.unseen_days)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON's types; what is not known is null."""
        return {
            "monitors": [str(folder) for folder in self.folders],
            "bundle": self.bundle,
            "precision": self.precision,
            "pictures": self.pictures,
            "validation_pictures": self.reference,
            "first": date(self.first),
            "last": date(self.last),
            "psi_by_chance": _known(self.chance),
            "psi_limit": self.limit,
            "drifted": [label.label for label in self.drifted],
            "not_seen": [label.label for label in self.unseen],
            "review": len(self.doubts),
            "labels": [
                {
                    "label": use.label,
                    "named": use.named,
                    "rates": {f"{days}d": _known(rate) for days, rate in use.rates.items()},
                    "validation_rate": _known(use.expected),
                    "psi": _known(use.psi),
                    "reading": use.reading,
                    "last_seen": date(use.seen),
                    "days_not_seen": round(use.unseen, 2),
                    "shares": [round(share, 6) for share in use.shares],
                    "validation_shares": [round(share, 6) for share in use.reference],
                }
                for use in self.labels
            ],
        }


def _known(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def date(seconds: float) -> str | None:
    """A time as ISO 8601, UTC, to the second; None for NaN."""
    if math.isnan(seconds):
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def summarise(folders: Sequence[Path], *, days: int = KEPT, limit: float = LARGE, unseen_days: float = 7.0) -> Summary:
    """What the monitors in ``folders``, of one bundle, have seen together.

    Args:
        days: how many, up to the newest picture's, scores are compared over. limit: PSI of a large shift.
        unseen_days: after how many a label counts as not seen.

    Raises:
        UsageError: a folder without a monitor, or of another bundle. BadData: a damaged file.
    """
    counts = merge([(folder, read_counts(folder)) for folder in folders])
    inside = counts.days > counts.days.max(initial=0) - days
    pictures, expected = int(counts.pictures[inside].sum()), counts.reference.counts
    bins = counts.bins[inside].sum(axis=0)
    bound = chance(pictures, counts.reference.pictures, BINS, len(counts.labels))
    drift = psi(bins, expected)
    labels = tuple(_label(counts, column, drift[column], bins[column], bound, limit) for column in range(len(bins)))
    doubts = sorted(((f, doubt) for f in folders for doubt in read_review(f)), key=lambda entry: entry[1].margin)
    return Summary(
        folders=tuple(folders),
        bundle=counts.bundle,
        precision=counts.precision,
        pictures=pictures,
        reference=counts.reference.pictures,
        first=counts.first,
        last=counts.last,
        days=tuple(counts.days[inside].tolist()),
        chance=bound,
        limit=limit,
        unseen_days=unseen_days,
        labels=labels,
        doubts=tuple(doubts),
    )


def _label(counts: Counts, column: int, drift: float, bins: np.ndarray, bound: float, limit: float) -> LabelUse:
    newest = counts.days[-1] if len(counts.days) else 0
    named, seen = counts.named[:, column], float(counts.seen[column])
    rates = {}
    for days in WINDOWS:
        inside = counts.days > newest - days
        rates[days] = _share(int(named[inside].sum()), int(counts.pictures[inside].sum()))
    since = counts.last - (counts.first if math.isnan(seen) else seen)
    expected = counts.reference.counts[column]
    return LabelUse(
        label=counts.labels[column],
        named=int(named.sum()),
        rates=rates,
        expected=float(counts.reference.rates[column]),
        psi=float(drift),
        reading=reading(float(drift), bound, limit),
        seen=seen,
        unseen=0.0 if math.isnan(since) else since / DAY,
        shares=tuple(_share(int(count), int(bins.sum())) for count in bins),
        reference=tuple(_share(int(count), int(expected.sum())) for count in expected),
        daily=tuple(_share(int(n), int(m)) for n, m in zip(named, counts.pictures, strict=True)),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
