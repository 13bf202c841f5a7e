"""A monitor as text for the terminal."""

import math

from hpdval_edge.monitor.page import percent, worst_first
from hpdval_edge.monitor.summary import WINDOWS, LabelUse, Summary, date


def table(summary: Summary) -> str:
    """Facts, a line a label, and what to do next."""
    chance = f"; chance alone stays below PSI {summary.chance:.3f}" if math.isfinite(summary.chance) else ""
    against = f"against {summary.reference:,} validation pictures{chance}" if summary.reference else "no reference"
    lines = [
        f"{summary.pictures:,} pictures, {date(summary.first) or '-'} to {date(summary.last) or '-'}, "
        f"{summary.precision} bundle {summary.bundle[:12]}",
        against,
    ]
    width = max(5, *(len(use.label) for use in summary.labels))
    heads = [f"{days} d" for days in WINDOWS] + ["validation", "PSI"]
    lines.append(f"{'label':<{width}}" + "".join(f"{head:>11}" for head in heads) + f"  {'reading':<15}last named")
    lines += [_line(use, width, summary) for use in worst_first(summary.labels)]
    if summary.doubts:
        lists = ", ".join(str(folder / "review.csv") for folder in summary.folders)
        lines.append(f"{len(summary.doubts)} pictures to look at: {lists}")
    return "\n".join(lines)


def _line(use: LabelUse, width: int, summary: Summary) -> str:
    drift = "-" if math.isnan(use.psi) else f"{use.psi:.3f}"
    cells = "".join(f"{percent(rate):>11}" for rate in (*use.rates.values(), use.expected))
    seen = (date(use.seen) or "never")[:10]
    late = f", {use.unseen:.0f} days ago" if use.unseen >= summary.unseen_days and seen != "never" else ""
    return f"{use.label:<{width}}{cells}{drift:>11}  {use.reading:<15}{seen}{late}"
