"""``hpedge train``: run the stages of a configuration, select, report, keep everything resumable."""

import csv
import io
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpdval_edge.atomic import new_folder, write_text
from hpdval_edge.bundle import THRESHOLDS, read_calibration
from hpdval_edge.config import Config, override, validate
from hpdval_edge.errors import BadData, HpedgeError, UsageError
from hpdval_edge.presets import DEMO
from hpdval_edge.progress import progress, say
from hpdval_edge.training import model_card
from hpdval_edge.training.calibration import fit_entry
from hpdval_edge.training.evaluate import model_scorer, report, score_store
from hpdval_edge.training.metrics import GROUPS
from hpdval_edge.training.model import read_weights, restore_trained, save_weights
from hpdval_edge.training.run_folder import ZERO_SHOT, RunFolder, create_run, find_run, selected_weights
from hpdval_edge.training.session import Session, prepare, warm_up
from hpdval_edge.training.stages import Stage, StageTrainer, plan_stages
from hpdval_edge.training.thresholds import F1

GOLDEN_PICTURES = 16
EXAMPLE_PICTURES = 12
EXAMPLES = Path("images")
RESUMABLE_KEYS = ("train.stage1.epochs", "train.stage2.epochs", "train.threads", "eval.report")


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What the command line adds to a configuration."""

    name: str | None = None
    stage: str = "all"
    resume: bool = False
    stop_after: int | None = None


class StopRequest:
    """Turns the first Ctrl-C (SIGINT, SIGTERM) into a question between steps; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle signals inside the block; only the main thread can."""
        previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("stopping after this step; once more to stop at once")

    def __call__(self) -> bool:
        return self.asked


def train(config: Config | None, options: TrainOptions, values: dict[str, str]) -> RunFolder:
    """Train a new run, or continue one.

    Args:
        config: the resolved configuration; None with ``options.resume`` or stage 2, which take the run's own.
        values: overrides for a continued run, only of RESUMABLE_KEYS.

    Raises:
        Interrupted: stopped by a signal or ``stop_after``; ``--resume`` goes on exactly there.
        UsageError, BadData, MissingDependency, CheckFailed: see their messages.
    """
    if options.resume or options.stage == "2":
        run = find_run(options.name)
        config = _continued_config(run, values, options)
    _check_prompts(config, options)
    session = prepare(config)
    if options.resume or options.stage == "2":
        say(f"continuing {run.path}")
    else:
        warm_up(session)
        if any(stage.trains_prompts for stage in _chosen_stages(session.config, options)):
            # A length or labels that no prompt can have fail here, and not after stage 1.
            session.prompt_learner()
        run = create_run(options.name, default=f"{_data_name(config)}-{config.preset}")
    run.write_config(session.config)
    run.make_last()
    _keep_golden(session, run)
    with StopRequest().listening() as stop:
        _run_stages(session, run, options, stop)
    if session.config.data.path == DEMO:
        _leave_examples(session)
    if session.config.eval.report:
        _write_report(run)
    return run


def _continued_config(run: RunFolder, values: dict[str, str], options: TrainOptions) -> Config:
    allowed = RESUMABLE_KEYS if options.resume else (*RESUMABLE_KEYS, "train.stage2.lr")
    for key in values:
        if key not in allowed:
            raise UsageError(
                f"{key} cannot change in a run that goes on; only {', '.join(allowed)} can. Start a new run."
            )
    config = validate(override(run.config(), values))
    if options.stage == "2" and config.train.mode == "joint":
        raise UsageError(
            f"{run.path} trains everything in one joint stage, there is no stage 2; leave --stage out, or start a new "
            "run with train.mode=two_stage."
        )
    return config


def _check_prompts(config: Config, options: TrainOptions) -> None:
    """UsageError where stage 2, asked for, would have nothing to learn: stage 1 would be trained first."""
    fixed = config.prompt.global_ == config.prompt.local == "fixed"
    if fixed and config.train.mode == "two_stage" and options.stage != "1":
        raise UsageError(
            "prompt.global and prompt.local are both fixed, so stage 2 has nothing to learn; set one of them to learn, "
            "or use --stage 1."
        )


def _chosen_stages(config: Config, options: TrainOptions) -> tuple[Stage, ...]:
    """The stages of a resolved configuration that ``--stage`` asks for; a joint run has its one, whatever it says."""
    plan = plan_stages(config)
    return tuple(stage for stage in plan if options.stage in ("all", str(stage.number)) or stage.name == "joint")


def _write_report(run: RunFolder) -> None:
    """A run that is done stays done where its report cannot be written; a note says why."""
    # The charts' packages load only where a report is drawn.
    from hpdval_edge.training.report.write import build_report

    try:
        say(f"report: {build_report(run).path}")
    except HpedgeError as error:
        say(f"note: no report: {str(error).splitlines()[0]} Try: hpedge report {run.name}")


def _data_name(config: Config) -> str:
    return "scenes-lt" if config.data.path == DEMO else Path(config.data.path).stem


def _keep_golden(session: Session, run: RunFolder) -> None:
    store = session.stores["val"]
    rows = np.unique(np.linspace(0, len(store) - 1, GOLDEN_PICTURES).astype(int))
    run.save_golden(store[rows])


def _leave_examples(session: Session) -> None:
    """Copy a few demo test pictures to ./images, so that `hpedge infer images/` has something to look at."""
    if EXAMPLES.exists():
        return
    test = session.splits.test
    with new_folder(EXAMPLES) as folder:
        for row in np.linspace(0, len(test) - 1, EXAMPLE_PICTURES).astype(int):
            source = test.absolute(int(row))
            (folder / source.name).write_bytes(source.read_bytes())
    say(f"{EXAMPLE_PICTURES} pictures of the demo's test split are in {EXAMPLES}/")


def _run_stages(session: Session, run: RunFolder, options: TrainOptions, stop: StopRequest) -> None:
    saved = run.load_state() if options.resume else None
    reports = run.reports()
    _report_zero_shot(session, run, reports)
    budget = [options.stop_after]
    for stage in _chosen_stages(session.config, options):
        begun = saved is not None and saved[1].stage == stage.name
        if options.resume and stage.name in reports and not begun:
            continue
        if stage.number == 2:
            _load_stage1(session, run)
        outdated = [reports.pop(name, None) for name in _from(stage, session.config)]
        if any(outdated) and not begun:
            _publish_stage1(session, run, reports)
        if stage.trains_prompts:
            learns = (session.config.prompt.global_ == "learn", session.config.prompt.local == "learn")
            session.model.attach_prompts(session.prompt_learner(), session.teacher.text, learns=learns)
        trainer = StageTrainer(
            stage, session.model, session.training_data(), session.loss(), config=session.config, device=session.device
        )
        if begun:
            _restore(trainer, saved, run)
        _train_stage(session, trainer, run, stop, budget)
        _finish_stage(session, trainer, run, reports)


def _from(stage: Stage, config: Config) -> tuple[str, ...]:
    """Names of ``stage`` and of what follows it, all of which is void when it is trained anew."""
    return tuple(later.name for later in plan_stages(config) if later.number >= stage.number)


def _restore(trainer: StageTrainer, saved: tuple, run: RunFolder) -> None:
    try:
        trainer.restore(*saved)
    except (KeyError, RuntimeError) as error:
        raise BadData(
            f"{run.path / 'state'} does not fit this run ({error}); delete it to start the stage again."
        ) from error


def _load_stage1(session: Session, run: RunFolder) -> None:
    path = run.weights("stage1")
    if not path.is_file():
        raise UsageError(f"{run.path} has no finished stage 1; run `hpedge train --resume --name {run.name}` first.")
    restore_trained(session.model, read_weights(path)[0])


def _train_stage(session: Session, trainer: StageTrainer, run: RunFolder, stop: StopRequest, budget: list) -> None:
    stage, cursor = trainer.stage, trainer.cursor
    say(f"{stage.name}: {stage.schedule.epochs} epochs of {trainer.steps_per_epoch} steps on {session.device}")
    if cursor.epoch == 0 and cursor.step == 0:
        # First of all, because best and last are about to change: what ends in between resumes in this stage.
        run.save_state(trainer.tensors(), cursor)
        run.forget(_from(stage, session.config))
        _validate(session, trainer, run, losses={})
    while cursor.epoch < stage.schedule.epochs:
        if budget[0] == 0:
            stop.asked = True
        with progress(
            f"{stage.name} epoch {cursor.epoch + 1}/{stage.schedule.epochs}", trainer.steps_per_epoch
        ) as update:
            finished = trainer.train_epoch(stop=stop, on_progress=update)
        if not finished:
            run.save_state(trainer.tensors(), cursor)
            raise Interrupted(f"state saved after epoch {cursor.epoch}, step {cursor.step} of {stage.name}")
        losses = trainer.finish_epoch()
        _validate(session, trainer, run, losses=losses)
        if budget[0] is not None:
            budget[0] -= 1
        run.save_state(trainer.tensors(), cursor)


def _validate(session: Session, trainer: StageTrainer, run: RunFolder, *, losses: dict[str, float]) -> None:
    """Score the selecting split, log it, keep ``last`` and, where it is the best so far, ``best``."""
    cursor, stage = trainer.cursor, trainer.stage
    split, data = session.selection_split()
    results = {}
    for share in trainer.shares if losses else (1.0,):
        with trainer.evaluating(share):
            result = report(
                trainer.scores(split),
                data,
                session.class_counts,
                post=session.config.eval.post,
                logit_scale=session.model.logit_scale.item(),
            )
            results[share] = {key: result[key] for key in ("mAP", *GROUPS)}
            notes = {"stage": stage.name, "epoch": str(cursor.epoch), f"{split}_mAP": f"{result['mAP']:.4f}"}
            if share == 1:
                _save_weights(session, run, "last", notes)
            if result["mAP"] > cursor.best:
                cursor.best, cursor.best_epoch = result["mAP"], cursor.epoch
                _save_weights(session, run, "best", {**notes, "share": str(share)})
    best = max(results, key=lambda share: results[share]["mAP"])
    entry = {"stage": stage.name, "epoch": cursor.epoch, split: results[best]}
    if trainer.line:
        entry["share"] = best
    run.log({**entry, **{f"loss_{name}": value for name, value in losses.items()}})
    loss = f"  loss {losses['loss']:.4f}" if losses else ""
    place = f", {best:g} of the way from its start" if best != 1 else ""
    where = f"{stage.name} epoch {cursor.epoch}/{stage.schedule.epochs}"
    say(f"{where}  {split} mAP {results[best]['mAP']:.2f}{place}{loss}")


def _finish_stage(session: Session, trainer: StageTrainer, run: RunFolder, reports: dict) -> None:
    """Load what ``eval.select`` keeps, fit thresholds on validation, report on the test split, write it all."""
    chosen = run.weights(selected_weights(session.config))
    tensors, metadata = read_weights(chosen)
    model = session.model
    restore_trained(model, tensors)
    model.eval()
    scale = model.logit_scale.item()
    entry = fit_entry(trainer.scores("val"), session.splits.val, logit_scale=scale, objective=F1, precision="fp32")
    split, data = session.evaluation_split()
    result = report(
        trainer.scores(split),
        data,
        session.class_counts,
        post=session.config.eval.post,
        thresholds=np.array(entry["values"], np.float32),
        calibration=read_calibration(entry, scale),
        bootstrap=session.config.eval.bootstrap,
        seed=session.config.seed,
    )
    selection = session.config.eval.select
    reports[trainer.stage.name] = {"split": split, "epoch": int(metadata["epoch"]), "select": selection, **result}
    _publish(session, run, reports, entry)
    if trainer.stage.name == "stage1":
        own = ("stage", "epoch", "share", "val_mAP", "test_mAP")
        _save_weights(session, run, "stage1", {key: metadata[key] for key in own if key in metadata})


def _publish(session: Session, run: RunFolder, reports: dict, entry: dict) -> None:
    """Write ``reports`` and what describes the last of them; entry: its thresholds and calibration."""
    run.write_json("metrics.json", reports)
    run.write_json(THRESHOLDS, {"fp32": entry})
    _write_per_class(session, run, list(reports.values())[-1])
    model_card.write(run.path / "MODEL_CARD.md", session, reports)


def _publish_stage1(session: Session, run: RunFolder, reports: dict) -> None:
    """Let the run's files describe the finished stage 1, whose weights the model has, while stage 2 is trained anew."""
    model = session.model.eval()
    scores = score_store(model_scorer(model, session.device), session.stores["val"])
    scale = model.logit_scale.item()
    entry = fit_entry(scores, session.splits.val, logit_scale=scale, objective=F1, precision="fp32")
    _publish(session, run, reports, entry)


def _save_weights(session: Session, run: RunFolder, which: str, notes: dict[str, str]) -> None:
    save_weights(
        run.weights(which),
        session.model,
        labels=session.labels,
        class_counts=session.class_counts.tolist(),
        config=session.config,
        notes=notes,
    )


def _report_zero_shot(session: Session, run: RunFolder, reports: dict) -> None:
    """The teacher's own cosine with "a photo of a {class}." on the same pictures, for comparison."""
    split, data = session.evaluation_split()
    result = report(
        session.zero_shot[split],
        data,
        session.class_counts,
        post=session.config.eval.post,
        logit_scale=session.teacher.clip.logit_scale.exp().item(),
        bootstrap=session.config.eval.bootstrap,
        seed=session.config.seed,
    )
    reports[ZERO_SHOT] = {"split": split, "epoch": 0, **result}
    run.write_json("metrics.json", reports)


def _write_per_class(session: Session, run: RunFolder, result: dict) -> None:
    """per_class.csv: label, training positives, AP in percent (empty where the split has no positive)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "train_positives", "ap"])
    for label, count, ap in zip(session.labels, session.class_counts.tolist(), result["per_class"], strict=True):
        writer.writerow([label, count, "" if ap is None else f"{ap:.4f}"])
    write_text(run.path / "per_class.csv", text.getvalue())
