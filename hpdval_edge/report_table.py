"""Reports as a plain table for the terminal and for Markdown-free logs."""

from collections.abc import Mapping
from typing import Any

GROUPS = ("mAP", "head", "medium", "tail")
DIGITS = {"std": 2, "OF1": 2, "CF1": 2, "ECE": 4}


def table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of {name: report of multilabel_report}: AP in percent with its 95 % bootstrap interval, std, F1, ECE."""
    columns = ["", *GROUPS, *DIGITS]
    rows = [columns]
    for name, report in reports.items():
        rows.append(
            [
                name,
                *(_cell(report, group) for group in GROUPS),
                *(_number(report.get(key), DIGITS[key]) for key in DIGITS),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    first = next(iter(reports.values()))
    split = first.get("split", "")
    note = f"AP in percent on {first['n_images']} {split} pictures; [95 % bootstrap interval over pictures]"
    if any(report.get("select") == "best_test" for report in reports.values()):
        note += "; the epoch was CHOSEN ON THE TEST SPLIT (eval.select=best_test): not comparable with honest figures"
    if first.get("n_absent"):
        note += f"; {first['n_absent']} labels without positives left out"
    return "\n".join([*lines, note])


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cell(report: Mapping[str, Any], group: str) -> str:
    interval = (report.get("interval") or {}).get(group)
    return _number(report[group]) + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")
