"""One few-shot episode: start from the base run, fine-tune on the support set, evaluate on the novel test pictures."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpdval_edge.config import Config
from hpdval_edge.progress import progress
from hpdval_edge.training.evaluate import model_scorer, report, score_store
from hpdval_edge.training.model import load_student, read_weights
from hpdval_edge.training.session import Session, prepare
from hpdval_edge.training.stages import Stage, StageTrainer, plan_stages

# Stages of an episode by fsl.tune (METHOD section 11).
TUNES = {"student": (1,), "prompts": (2,), "both": (1, 2)}


def run_episode(config: Config, base_weights: Path, *, tune: str) -> dict:
    """Fine-tune and evaluate; nothing of an earlier episode is left, since every part is made anew.

    The last epoch counts (its moving average where ``train.ema`` is on): no picture is left to select another one on.

    Args:
        config: Of the episode: the support set as ``data.path`` and, unused for any choice, as ``data.val``; novel test
            pictures as ``data.test``.
        base_weights: Weights of the base run's stage 1. Its student and logit scale are taken, its text banks not.
        tune: A key of TUNES.

    Returns:
        mAP in percent, per_class {label: AP in percent or None}, pictures (of the support set), test_pictures,
        scores_sha256 (of the test scores, float32: equal for equal episodes).
    """
    session = prepare(config)
    tensors, _ = read_weights(base_weights)
    load_student(session.model.student, tensors)
    session.model.log_scale.data.copy_(tensors["log_scale"])
    for stage in plan_stages(session.config):
        if stage.number in TUNES[tune]:
            _fine_tune(session, stage)
    session.model.eval()
    with progress("scoring novel test pictures", len(session.stores["test"])) as update:
        scores = score_store(model_scorer(session.model, session.device), session.stores["test"], on_progress=update)
    result = report(
        scores,
        session.splits.test,
        session.class_counts,
        post=session.config.eval.post,
        logit_scale=session.model.logit_scale.item(),
    )
    return {
        "mAP": result["mAP"],
        "per_class": dict(zip(session.labels, result["per_class"], strict=True)),
        "pictures": len(session.splits.train),
        "test_pictures": len(session.splits.test),
        "scores_sha256": hashlib.sha256(np.ascontiguousarray(scores, np.float32).tobytes()).hexdigest(),
    }


def _fine_tune(session: Session, stage: Stage) -> None:
    model, prompt = session.model, session.config.prompt
    if stage.trains_prompts:
        learns = (prompt.global_ == "learn", prompt.local == "learn")
        model.attach_prompts(session.prompt_learner(), session.teacher.text, learns=learns)
    trainer = StageTrainer(
        stage, model, session.training_data(), session.loss(), config=session.config, device=session.device
    )
    epochs = stage.schedule.epochs
    with progress(f"{stage.name} of {len(session.splits.train)} pictures", epochs) as update:
        while trainer.cursor.epoch < epochs:
            trainer.train_epoch(stop=lambda: False, on_progress=lambda done, total: None)
            trainer.finish_epoch()
            update(trainer.cursor.epoch, epochs)
    if trainer.ema is not None:
        with trainer.ema.applied(model):
            averaged = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(averaged)


def summed(config: Config, *, pictures: int, labels: int) -> Config:
    """Weights under which AdamW makes the steps of the SUM of ASL over a batch plus the other terms as configured.

    ``make_loss`` takes means. The sum is B * C times the mean, and AdamW does not see a factor that all terms share, so
    the other terms (eqs 2 and 10) are divided by B * C instead: the same minimum, and the same steps up to Adam's eps.
    Other losses stay means.

    Args:
        pictures: Training pictures; B is the smaller of them and ``train.batch_size``.
        labels: C.
    """
    if config.loss.name != "asl":
        return config
    share = 1 / (min(config.train.batch_size, pictures) * labels)
    return replace(
        config,
        kd=replace(config.kd, weight=str(float(config.kd.weight) * share), patches=config.kd.patches * share),
        sc=replace(config.sc, weight=config.sc.weight * share),
    )
