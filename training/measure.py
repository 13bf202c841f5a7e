"""``hpedge eval``: the report of DESIGN section 6 on a run's weights or on an exported bundle."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpdval_edge.bundle import MANIFEST, THRESHOLDS, Calibration, read_calibration
from hpdval_edge.config import load_config
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.predictor import Predictor
from hpdval_edge.presets import DEMO
from hpdval_edge.progress import say
from hpdval_edge.training.dataset import LabelledImages, Splits
from hpdval_edge.training.evaluate import Scorer, engine_scorer, model_scorer, report, score_pictures
from hpdval_edge.training.model import load_model
from hpdval_edge.training.precision import choose_device
from hpdval_edge.training.protocols.longtail import protocol_values, split_argument
from hpdval_edge.training.readers import load_splits
from hpdval_edge.training.readers_layout import file_layout
from hpdval_edge.training.run_folder import RunFolder, find_run, reported_weights
from hpdval_edge.training.session import load_data

BOOTSTRAP = 1000


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that scores pictures, with what the report needs of it.

    class_counts: training positives int64 [C]. unfitted: labels whose thresholds are not their own.
    """

    name: str
    scorer: Scorer
    labels: tuple[str, ...]
    class_counts: np.ndarray
    image_size: int
    calibration: Calibration
    thresholds: np.ndarray
    unfitted: tuple[str, ...]
    post: str


def measure(model: str | None, *, data: str | None, images: str | None, backend: str = "auto") -> dict:
    """Report on ``model``, a run or a bundle; None is the last run.

    Args:
        data: a labelled file of any reader, a folder with a test part, or ``demo``; None is the run's own test split.

    Returns:
        ``multilabel_report`` with ``model``, ``split`` and ``unfitted`` added, the labels whose thresholds OF1 and CF1
        take though no validation picture showed them.

    Raises:
        UsageError, BadData: no such model or data; labels that the model does not know.
    """
    bundle = is_bundle(model)
    if bundle and data is None:
        raise UsageError(f"a bundle has no pictures of its own: pass --data, e.g. hpedge eval {model} --data test.csv.")
    run = None if bundle else find_run(model)
    subject = _bundle(model, backend) if bundle else run_subject(run)
    split, pictures = _pictures(run, data, images, subject.labels)
    result = report(
        score_pictures(subject.scorer, pictures, subject.image_size),
        pictures,
        subject.class_counts,
        post=subject.post,
        thresholds=subject.thresholds,
        calibration=subject.calibration,
        bootstrap=BOOTSTRAP,
    )
    if subject.unfitted:
        say(
            f"note: thresholds not fitted, but counted in OF1 and CF1: {', '.join(subject.unfitted)}; fit them with "
            f"hpedge calibrate {subject.name} --data LIST"
        )
    return {"model": subject.name, "split": split, "unfitted": list(subject.unfitted), **result}


def is_bundle(model: str | None) -> bool:
    """Whether the name stands for a bundle and not for a run."""
    return model is not None and (model.endswith(".hpedge") or (Path(model) / MANIFEST).is_file())


def _bundle(path: str, backend: str) -> Subject:
    predictor = Predictor(path, backend)
    bundle = predictor.bundle
    return Subject(
        name=path,
        scorer=engine_scorer(bundle, predictor.engine),
        labels=predictor.labels,
        class_counts=np.array(bundle.manifest.provenance["class_counts"]),
        image_size=bundle.manifest.image_size,
        calibration=bundle.calibration,
        thresholds=bundle.thresholds,
        unfitted=tuple(label for label in predictor.labels if label in bundle.unfitted),
        post="none",
    )


def run_subject(run: RunFolder) -> Subject:
    """A run's selected weights in PyTorch; BadData where the run is not complete."""
    config = run.config()
    model, labels, metadata = load_model(reported_weights(run))
    device = choose_device(config.train.device)
    fitted = run.read_json(THRESHOLDS)["fp32"]
    return Subject(
        name=str(run.path),
        scorer=model_scorer(model.to(device), device),
        labels=labels,
        class_counts=np.array(json.loads(metadata["class_counts"])),
        image_size=model.student.spec.image_size,
        calibration=read_calibration(fitted, model.logit_scale.item()),
        thresholds=np.array(fitted["values"], np.float32),
        unfitted=tuple(label for label, own in zip(labels, fitted["fitted"], strict=True) if not own),
        post=config.eval.post,
    )


def _pictures(
    run: RunFolder | None, data: str | None, images: str | None, labels: tuple[str, ...]
) -> tuple[str, LabelledImages]:
    if data is not None:
        return named_pictures(data, images, labels, "test")
    check_images(images)
    return own_pictures(run, labels, ("test", "val"))


def check_images(images: str | None) -> None:
    """UsageError for a folder of pictures without a list: a run knows where its own are."""
    if images is not None:
        raise UsageError(f"--images {images} belongs to a --data list; a run knows where its own pictures are.")


def own_pictures(run: RunFolder, labels: tuple[str, ...], parts: tuple[str, ...]) -> tuple[str, LabelledImages]:
    """Name and content of the first of ``parts`` that a run has, read anew from where its configuration says.

    Raises:
        UsageError, BadData: the data are not there any more, or have other labels.
    """
    splits = own_splits(run, labels)
    return next((part, getattr(splits, part)) for part in parts if getattr(splits, part) is not None)


def own_splits(run: RunFolder, labels: tuple[str, ...]) -> Splits:
    """All parts of a run's data, read anew; the errors of `own_pictures`."""
    config = run.config()
    splits = load_data(config)
    if splits.train.labels != labels:
        raise BadData(f"the labels of {config.data.path} are no longer the run's labels, or in another order.")
    return splits


def named_pictures(data: str, images: str | None, labels: tuple[str, ...], part: str) -> tuple[str, LabelledImages]:
    """Name and content of a labelled file, or of the part ``val`` or ``test`` of a folder, protocol or the demo set.

    Raises:
        UsageError: there is no such part, or ``images`` beside what brings its own. BadData: other labels.
    """
    path, protocol = Path(data), split_argument(data)
    if data == DEMO or protocol:
        if images is not None:
            raise UsageError(f"--data {data} brings its own pictures; leave --images out.")
        splits = load_data(load_config(values=protocol_values(*protocol) if protocol else {"data.path": DEMO}))
        if splits.train.labels != labels:
            raise BadData(f"the labels of {data} are not the model's labels, or in another order.")
    elif path.is_file():
        layout = file_layout(path, "auto", {"train": None, "val": None, "test": None})
        return path.name, layout.train(images=images, labels=labels)
    else:
        splits = load_splits(path, images=images, labels=labels)
    if getattr(splits, part) is None or (part == "val" and splits.held_out):
        name = {"val": "validation", "test": "test"}[part]
        raise UsageError(f"--data {data} has no {name} part; pass a list or CSV file of labelled pictures.")
    return part, getattr(splits, part)
