"""table.md: ours beside the paper's numbers, footnotes for what is missing, differences of protocol below."""

from collections.abc import Sequence

from hpdval_edge.training.reproduce.cells import Experiment
from hpdval_edge.training.reproduce.paper_numbers import (
    PAPER,
    PAPER_NAMES,
    Printed,
    paper_dataset,
    printed,
    why_missing,
)
from hpdval_edge.training.reproduce.protocol import differences
from hpdval_edge.training.reproduce.results import MEANS, Row, Spread, summarise
from hpdval_edge.training.reproduce.runner import Result


class Footnotes:
    """Numbered sentences; the same sentence keeps its number."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def mark(self, sentence: str) -> str:
        """The mark that stands in a cell for ``sentence``."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)
        return f"[{self.sentences.index(sentence) + 1}]"

    def lines(self) -> list[str]:
        """The sentences as Markdown, first one first."""
        return [f"[{number}] {sentence}  " for number, sentence in enumerate(self.sentences, 1)]


def markdown(experiment: Experiment, results: Sequence[Result], planned: int) -> str:
    """The whole of table.md. planned: number of cells that the command is going to run, so that a part says so."""
    rows = summarise(results, experiment.axis)
    lines = [f"# {experiment.title}", ""]
    if len(results) < planned:
        lines += [f"**{len(results)} of {planned} cells so far.**", ""]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        notes = Footnotes()
        own = [row for row in rows if row.dataset == dataset]
        table = _differences_table(own) if experiment.name == "ablation" else _table(experiment, own, notes)
        plan = next(result.plan for result in results if result.plan.dataset == dataset)
        lines += [f"## {dataset}", "", *table, "", _caption(results, dataset), ""]
        lines += [*notes.lines(), ""] if notes.sentences else []
        lines += ["Differences of protocol:", "", *(f"- {line}" for line in differences(results, plan)), ""]
    failed = [f"- {row.dataset}, {row.title}: {error}" for row in rows for error in row.errors]
    if failed:
        lines += ["Cells without a result:", "", *failed, ""]
    return "\n".join([*lines, *(f"{note}\n" for note in experiment.notes)]).rstrip() + "\n"


def _caption(results: Sequence[Result], dataset: str) -> str:
    own = [result for result in results if result.plan.dataset == dataset]
    if any("std_episodes" in (result.report or {}) for result in own):
        return "AP in percent on the novel test pictures; mean ± standard deviation over ten episodes."
    seeds = len({result.plan.seed for result in own})
    split = next((r.report["split"] for r in own if r.report and "split" in r.report), "test")
    over = "one seed, so no spread" if seeds == 1 else f"mean ± sample standard deviation over {seeds} seeds"
    return f"AP in percent on the {split} split; {over}. var: population variance of per-class AP, percent squared."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(experiment: Experiment, rows: Sequence[Row], notes: Footnotes) -> list[str]:
    column = PAPER_NAMES.get(paper_dataset(experiment.name, rows[0].dataset), "")
    papers = [printed(experiment.name, row.cell, row.dataset) for row in rows]
    numbers = [
        number
        for number in (*MEANS, "var")
        if any(row.numbers[number] for row in rows) or any(getattr(paper, number, None) for paper in papers)
    ]
    with_paper = experiment.name in PAPER
    beside = f"paper, {column}" if with_paper else "paper"
    head = ["row", *(text for number in numbers for text in (number, beside))]
    lines = [_line(head), _line(["---", *("---:" for _ in head[1:])])]
    for row, paper in zip(rows, papers, strict=True):
        reasons = (why_missing(experiment.name, row.cell),) if paper is None else paper.notes
        marks = " ".join(notes.mark(reason) for reason in reasons)
        cells = [text for number in numbers for text in (_ours(row.numbers[number]), _papers(paper, number))]
        lines.append(_line([f"{row.title} {marks}".strip(), *cells]))
    return lines


def _ours(number: Spread | None) -> str:
    return "-" if number is None else str(number)


def _papers(paper: Printed | None, number: str) -> str:
    value = None if paper is None else getattr(paper, number)
    return "-" if value is None else f"{value:.2f}"


def _differences_table(rows: Sequence[Row]) -> list[str]:
    head = ["change", *(text for number in MEANS for text in (number, "difference"))]
    lines = [_line(head), _line(["---", *("---:" for _ in head[1:])])]
    for row in rows:
        cells = [text for number in MEANS for text in (_ours(row.numbers[number]), _signed(row.differences[number]))]
        lines.append(_line([row.title, *cells]))
    return [*lines, "", "difference: to the base with the same seed, mean ± sample standard deviation of the pairs."]


def _signed(number: Spread | None) -> str:
    return "-" if number is None else f"{number.mean:+.2f}" + ("" if number.std is None else f" ± {number.std:.2f}")
