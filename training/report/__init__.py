"""The report of a run: one self-contained HTML file and its figures."""

from hpdval_edge.training.report.write import Report, build_report

__all__ = ["Report", "build_report"]
