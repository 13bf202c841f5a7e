"""Rows that need no training: the teacher alone, and one run's weights under other values of alpha or k."""

from collections.abc import Sequence

import numpy as np
import torch

from hpdval_edge.config import Config
from hpdval_edge.errors import UsageError
from hpdval_edge.progress import progress
from hpdval_edge.training.evaluate import Scorer, report, score_store
from hpdval_edge.training.model import DualView, load_model
from hpdval_edge.training.precision import choose_device
from hpdval_edge.training.run_folder import RunFolder, reported_weights
from hpdval_edge.training.session import load_data, make_stores, prepare
from hpdval_edge.training.student import make_student
from hpdval_edge.training.teacher import load_teacher


def zero_shot_report(config: Config, post: str) -> dict:
    """The teacher's own cosine with "a photo of a {class}." on the evaluation split.

    post: ``none``, or ``softmax`` over the classes of CLIP's logits, cosine times its own logit scale, as LMPT has it.
    """
    session = prepare(config)
    split, data = session.evaluation_split()
    result = report(
        session.zero_shot[split],
        data,
        session.class_counts,
        post=post,
        logit_scale=session.teacher.clip.logit_scale.exp().item(),
        bootstrap=config.eval.bootstrap,
        seed=config.seed,
    )
    return {"split": split, "epoch": 0, **result}


def teacher_sha256(config: Config) -> str:
    """sha256 of the teacher's weights and preprocessing."""
    return load_teacher(config.teacher.spec, torch.device("cpu")).fingerprint


def sweep_reports(run: RunFolder, axis: str, values: Sequence[str], *, device: str) -> list[dict]:
    """Reports of the run's selected weights, one for each value of ``fuse.alpha`` or ``fuse.topk``.

    The pictures pass through the student once for all values, on ``device`` (as ``train.device`` names it).
    """
    config = run.config()
    model, labels, metadata = load_model(reported_weights(run))
    chosen = choose_device(device)
    splits = load_data(config)
    split = "test" if splits.test is not None else "val"
    data = getattr(splits, split)
    if data.labels != labels:
        raise UsageError(f"the labels of {config.data.path} are no longer those {run.path} was trained with.")
    store = make_stores(config, splits, model.student.spec.image_size, (split,))[split]
    with progress("scoring", len(store)) as update:
        scores = score_store(sweep_scorer(model.to(chosen), chosen, axis, values), store, on_progress=update)
    epoch = int(metadata["epoch"])
    return [
        {
            "split": split,
            "epoch": epoch,
            **report(
                block,
                data,
                splits.class_counts,
                post=config.eval.post,
                logit_scale=model.logit_scale.item(),
                bootstrap=config.eval.bootstrap,
                seed=config.seed,
            ),
        }
        for block in np.split(scores, len(values), axis=1)
    ]


def sweep_scorer(model: DualView, device: torch.device, axis: str, values: Sequence[str]) -> Scorer:
    """uint8 [B, S, S, 3] -> float32 [B, V*C]: the scores under each of the V values of ``axis``, side by side."""

    def score(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            cls, patches = model.student(images)
            banks = model.banks()
            blocks = []
            for value in values:
                if axis == "fuse.alpha":
                    model.alpha = float(value)
                else:
                    model.topk = int(value)
                blocks.append(model.score(cls, patches, *banks)[0])
        return torch.cat(blocks, dim=1).cpu().numpy()

    return score


def patch_count(config: Config) -> int:
    """N of the student that the configuration leads to, before anything is trained."""
    teacher = load_teacher(config.teacher.spec, torch.device("cpu"))
    student, _ = make_student(config.student, teacher)
    return student.num_patches
