"""What differs between a run here and the paper's protocol, in plain words."""

from collections.abc import Sequence
from pathlib import Path

from hpdval_edge.config import Config, StudentConfig, as_table, flatten, load_config
from hpdval_edge.config_keys import FREE_KEYS, PLACE_KEYS, among, same_value
from hpdval_edge.presets import DEMO
from hpdval_edge.training.reproduce.paper_numbers import PAPER_NAMES, paper_dataset
from hpdval_edge.training.reproduce.plans import LONG_TAILED, Plan
from hpdval_edge.training.reproduce.runner import Result
from hpdval_edge.training.run_folder import RunFolder

PAPER_TEACHER = "ViT-B-16-quickgelu:openai"
PAPER_STUDENT = "vit_base_patch16_224.augreg_in1k"
# Told in words, or of no influence on a result.
TOLD = ("preset", "seed", *PLACE_KEYS, *FREE_KEYS, "teacher.", "student.", "eval.select", "eval.bootstrap")
TOLD += ("train.stage1.epochs", "train.stage2.epochs", "train.batch_size")
SCHEDULE = (
    "Schedule: the paper prints 20 + 10 epochs of batch 32; the logs whose numbers its tables repeat come from an "
    "80-epoch schedule that was stopped at its best epoch."
)
SELECTION = {
    "last": "Selection: the last epoch here; the authors' logs keep the best one on the test set.",
    "best_val": "Selection: the best epoch on validation pictures here, on the test set in the authors' logs.",
    "best_test": "Selection: the best epoch ON THE TEST SPLIT, as in the authors' logs; such figures flatter.",
}


def differences(results: Sequence[Result], plan: Plan) -> list[str]:
    """Sentences on data, teacher, student, epochs, selection and settings of ``plan``'s data set.

    The resolved configuration is read from the first run there; without one, that of the plan is taken.
    """
    config, plan = _resolved(results, plan)
    lines = [_data(plan, results), _teacher(config.teacher.spec), _student(config.student)]
    train = config.train
    epochs = f"{train.stage1.epochs} + {train.stage2.epochs}"
    lines.append(f"Epochs: {epochs}, batch {train.batch_size} (the paper: 20 + 10, batch 32).")
    lines += [SCHEDULE, SELECTION[config.eval.select], "Seeds: the paper names none."]
    settings = _settings(config, plan)
    if settings:
        lines.append(f"Settings of preset {config.preset} that are not preset paper's: {'; '.join(settings)}.")
    return lines


def _resolved(results: Sequence[Result], plan: Plan) -> tuple[Config, Plan]:
    for result in results:
        if result.plan.dataset == plan.dataset and result.run:
            return RunFolder(Path(result.run)).config(), result.plan
    return plan.config, plan


def _data(plan: Plan, results: Sequence[Result]) -> str:
    column = paper_dataset(plan.experiment, plan.dataset)
    own = [r.report for r in results if r.report and r.plan.dataset == plan.dataset]
    counted = {report["n_images"] for report in own if "n_images" in report}
    pictures = f" ({', '.join(f'{count:,}' for count in sorted(counted))} pictures scored)" if counted else ""
    if column == plan.dataset:
        return f"Data: {PAPER_NAMES[column]}, as in the paper{pictures}."
    kind = "drawn pictures of the built-in demo" if plan.config.data.path == DEMO else "pictures of your own"
    beside = f"; the paper's column is {PAPER_NAMES[column]}, to compare the order of rows only" if column else ""
    return f"Data: {plan.dataset}, {kind}{pictures}{beside}."


def _teacher(spec: str) -> str:
    same = spec.split(":")[0] == PAPER_TEACHER.split(":")[0]
    shown = ":".join(Path(part).name for part in spec.split(":"))
    return f"Teacher: {shown}" + (", the paper's architecture." if same else " (the paper: OpenAI's CLIP ViT-B/16).")


def _student(student: StudentConfig) -> str:
    start = {"clip": "the teacher's weights", "imagenet": "ImageNet weights", "random": "random weights"}
    begins = start.get(student.init, "weights still to be resolved")
    if student.name == PAPER_STUDENT and student.init == "imagenet":
        return "Student: ViT-B/16 from ImageNet-1K, as the paper prints."
    return (
        f"Student: {student.name} from {begins} (the paper prints ViT-B/16 from ImageNet-1K; its parameter count and "
        "the authors' code point to CLIP's own image tower)."
    )


def _settings(config: Config, plan: Plan) -> list[str]:
    """Keys that differ from preset ``paper``, without those that the rows vary or the data set brings."""
    told = (*TOLD, *plan.cell.values, *(("loss.mu", "loss.lam") if plan.dataset in LONG_TAILED else ()))
    here = flatten(as_table(config))
    values = {key: here[key] for key in here if key.startswith(("data.", "teacher.", "student."))}
    paper = flatten(as_table(load_config(preset="paper", values=values)))
    changed = [key for key in here if not same_value(here[key], paper[key]) and not among(key, told)]
    return [f"{key} {here[key]} (paper {paper[key]})" for key in changed]
