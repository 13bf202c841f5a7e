"""What the figures of a run mean, in sentences."""

from pathlib import Path

import numpy as np

from hpdval_edge.config import Config
from hpdval_edge.presets import DEMO
from hpdval_edge.training.report.curves import Decisions, Reliability
from hpdval_edge.training.report.facts import RunFacts
from hpdval_edge.training.run_folder import ZERO_SHOT

GROUP_MEANS = {
    "head": "with 100 training pictures or more",
    "medium": "with 20 to 99 training pictures",
    "tail": "with fewer than 20 training pictures",
}
# By eval.select, what the reported split has chosen: on test pictures, and where there is no test split.
SEEN = {
    ("test", "last"): "test split, which chose nothing in training",
    ("test", "best_val"): "test split, which chose nothing in training",
    ("test", "best_test"): "test split, WHICH ALSO CHOSE THE EPOCH (eval.select=best_test), so that they flatter",
    ("val", "last"): "validation split, which also chose the thresholds, so that those flatter",
    ("val", "best_val"): "validation split, which also chose the epoch and the thresholds, so that they flatter",
}
# The split whose mAP the epochs were compared by.
COMPARED_ON = {"val": "validation", "test": "test"}
# Differences smaller than this, in percent, are called no change.
SAME = 0.05


def number(value: float | None, digits: int = 1) -> str:
    """A figure for the page; a dash where there is none."""
    return "-" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def data_name(config: Config) -> str:
    """Short name of the data set, without this machine's folders."""
    if config.data.path == DEMO:
        return "scenes-lt, the built-in demo set"
    path = Path(config.data.path)
    return path.name if not path.suffix or not path.parent.name else f"{path.parent.name}/{path.name}"


def teacher_name(config: Config) -> str:
    """The teacher's spec without this machine's folders."""
    if config.teacher.spec == DEMO:
        return "the built-in demo teacher"
    name, colon, weights = config.teacher.spec.partition(":")
    return f"{Path(name).name}{colon}{Path(weights).name}"


def selection(config: Config) -> str:
    """Which epoch was kept, as the page's section on learning says it."""
    if config.eval.select == "last":
        return "The last epoch is kept whatever it scores."
    split = "validation split" if config.eval.select == "best_val" else "TEST SPLIT (eval.select=best_test)"
    return f"The epoch of the highest mAP on the {split} is kept."


def meaning(facts: RunFacts, decisions: Decisions | None, calibration: Reliability | None) -> list[str]:
    """Sentences about the last stage's report; those that need scores are left out where there are none."""
    sentences = [
        _overall(facts),
        *_against_teacher(facts),
        *_against_stage1(facts),
        *_kept_starts(facts),
        *_groups(facts),
    ]
    if decisions is not None:
        sentences.append(_decisions(facts, decisions))
    if calibration is not None:
        sentences.append(_calibration(calibration))
    return sentences


def _overall(facts: RunFacts) -> str:
    result = facts.result
    seen, interval = SEEN[result["split"], facts.config.eval.select], _interval(facts, facts.stage)
    sure = f" With other pictures it would mostly lie in {interval[0]:.1f} to {interval[1]:.1f}." if interval else ""
    return (
        f"Mean average precision (mAP) is {number(result['mAP'])} of 100 on {result['n_images']} pictures of the "
        f"{seen}. 100 means that, for every label, each picture that shows it scores above each that "
        f"does not.{sure}"
    )


def _interval(facts: RunFacts, stage: str) -> list[float] | None:
    return (facts.reports[stage].get("interval") or {}).get("mAP")


def _against_teacher(facts: RunFacts) -> list[str]:
    if ZERO_SHOT not in facts.reports or facts.result["mAP"] is None:
        return []
    teacher = facts.reports[ZERO_SHOT]["mAP"]
    sentence = (
        f"The teacher alone, without any training, reaches {number(teacher)}; {_change(facts.result['mAP'] - teacher)}"
    )
    ours, theirs = _interval(facts, facts.stage), _interval(facts, ZERO_SHOT)
    if ours and theirs:
        apart = ours[0] > theirs[1] or ours[1] < theirs[0]
        sentence += "; their 95 % intervals do not overlap" if apart else "; their 95 % intervals overlap"
    return [sentence + "."]


def _change(difference: float) -> str:
    if abs(difference) < SAME:
        return "this run is within 0.1 of that"
    return f"this run is {abs(difference):.1f} {'above' if difference > 0 else 'below'} that"


def _against_stage1(facts: RunFacts) -> list[str]:
    if facts.stage != "stage2" or "stage1" not in facts.reports:
        return []
    difference = facts.result["mAP"] - facts.reports["stage1"]["mAP"]
    if abs(difference) < SAME:
        return ["Learning the prompts (stage 2) left mAP where stage 1 had brought it."]
    return [f"Learning the prompts (stage 2) {'added' if difference > 0 else 'cost'} {abs(difference):.1f} of that."]


def _kept_starts(facts: RunFacts) -> list[str]:
    """Stages that changed nothing: their best mAP on the selecting split came before the first step."""
    split = COMPARED_ON[facts.selected_on]
    return [
        f"In {name} no epoch raised the {split} mAP, so what it started from was kept."
        for name, report in facts.reports.items()
        if name != ZERO_SHOT and report["epoch"] == 0
    ]


def _groups(facts: RunFacts) -> list[str]:
    told = [
        f"{facts.result['groups'][group]} {group} labels ({means}) {number(facts.result[group])}"
        for group, means in GROUP_MEANS.items()
        if facts.result[group] is not None
    ]
    absent = facts.result["n_absent"]
    missing = f" {absent} labels have no picture to be measured on and are left out of every mean." if absent else ""
    return [f"By how often training saw a label: {'; '.join(told)}.{missing}"] if told else []


def _decisions(facts: RunFacts, decisions: Decisions) -> str:
    pictures = facts.result["n_images"]
    chosen, hits, positives = (int(values.sum()) for values in (decisions.chosen, decisions.hits, decisions.positives))
    right = f"{100 * hits / chosen:.0f} % of those are right, and it finds" if chosen else "it finds"
    return (
        f"At its thresholds the model names {chosen / pictures:.1f} labels a picture, where "
        f"{positives / pictures:.1f} are true; {right} {100 * hits / max(1, positives):.0f} % of the true ones."
    )


def _calibration(calibration: Reliability) -> str:
    said, true = calibration.averages
    honest = abs(said - true) < 0.02 and calibration.error < 0.05
    advice = (
        "on pictures like these they can be read as chances"
        if honest
        else "decide by the thresholds, and do not read them as chances"
    )
    return f"Its probabilities average {said:.2f} where {true:.2f} of all picture-label pairs are true: {advice}."
