"""``hpedge calibrate``: thresholds, temperature and bias of a run and of its bundle, each on its own scores."""

from typing import Any

import numpy as np

from hpdval_edge.atomic import put_back
from hpdval_edge.bundle import THRESHOLDS, Bundle, load_bundle, replace_thresholds
from hpdval_edge.errors import UsageError
from hpdval_edge.monitor.reference import reference_json
from hpdval_edge.progress import say
from hpdval_edge.runtimes import load_engine
from hpdval_edge.training.calibration import fit_entry, stored_objective
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.evaluate import engine_scorer, score_pictures
from hpdval_edge.training.measure import check_images, is_bundle, named_pictures, own_pictures, run_subject
from hpdval_edge.training.run_folder import RunFolder, find_run
from hpdval_edge.training.thresholds import Objective, parse_objective


def calibrate(model: str | None, *, objective: str | None, data: str | None, images: str | None) -> dict[str, Any]:
    """Fit and store thresholds and calibration of a run and its ``model.hpedge``, or of the bundle ``model``.

    Args:
        model: a run or a bundle; None is the last run.
        objective: see ``parse_objective``; None keeps the objective of the last fit.
        data: labelled pictures in place of a run's validation split; a bundle has none of its own.

    Returns:
        ``fits``: the entry of thresholds.json of each model fitted, with ``model``, its path.

    Raises:
        UsageError, BadData: no such model or pictures; labels that the model does not know; no positive at all.
    """
    wanted = None if objective is None else parse_objective(objective)
    if is_bundle(model):
        return {"fits": [_calibrate_named_bundle(model, data, images, wanted)]}
    run = find_run(model)
    subject = run_subject(run)
    if data is None:
        check_images(images)
        _, pictures = own_pictures(run, subject.labels, ("val",))
    else:
        _, pictures = named_pictures(data, images, subject.labels, "val")
    stored = run.read_json(THRESHOLDS)
    entry = fit_entry(
        score_pictures(subject.scorer, pictures, subject.image_size),
        pictures,
        logit_scale=subject.calibration.logit_scale,
        objective=wanted or stored_objective(stored["fp32"]),
        precision="fp32",
    )
    run.write_json(THRESHOLDS, {**stored, "fp32": entry})
    fits = [{"model": str(run.path), **entry}]
    return {"fits": fits + _calibrate_own_bundle(run, pictures, wanted or stored_objective(entry))}


def _calibrate_named_bundle(
    model: str, data: str | None, images: str | None, objective: Objective | None
) -> dict[str, Any]:
    if data is None:
        raise UsageError(
            f"a bundle has no pictures of its own: pass --data, e.g. hpedge calibrate {model} --data val.csv."
        )
    bundle = load_bundle(model)
    _, pictures = named_pictures(data, images, bundle.manifest.labels, "val")
    return _calibrate_bundle(bundle, pictures, objective)


def _calibrate_own_bundle(run: RunFolder, pictures: LabelledImages, objective: Objective) -> list[dict[str, Any]]:
    """Calibrate ``runs/<name>/model.hpedge`` where there is one with the run's labels."""
    path = run.path / "model.hpedge"
    put_back(path)
    if not path.exists():
        return []
    bundle = load_bundle(path)
    if bundle.manifest.labels != pictures.labels:
        say(f"note: {path} has other labels than the run; calibrate it with: hpedge calibrate {path} --data LIST")
        return []
    fitted = _calibrate_bundle(bundle, pictures, objective)
    if bundle.manifest.precision != "fp32":
        entry = {key: value for key, value in fitted.items() if key != "model"}
        run.write_json(THRESHOLDS, {**run.read_json(THRESHOLDS), bundle.manifest.precision: entry})
    return [fitted]


def _calibrate_bundle(bundle: Bundle, pictures: LabelledImages, objective: Objective | None) -> dict[str, Any]:
    if objective is None:
        objective = parse_objective(bundle.objective)
    entry, reference = fit_bundle(bundle, pictures, objective)
    replace_thresholds(bundle, entry, reference)
    return {"model": str(bundle.path), **entry}


def fit_bundle(bundle: Bundle, pictures: LabelledImages, objective: Objective) -> tuple[dict[str, Any], bytes]:
    """``fit_entry`` on the bundle's scores, and its reference.json of the same scores."""
    scores, manifest = bundle_scores(bundle, pictures), bundle.manifest
    entry = fit_entry(
        scores, pictures, logit_scale=manifest.logit_scale, objective=objective, precision=manifest.precision
    )
    thresholds = np.array(entry["values"], np.float32)
    return entry, reference_json(scores, thresholds, manifest.labels, manifest.precision)


def bundle_scores(bundle: Bundle, pictures: LabelledImages) -> np.ndarray:
    """Scores float32 [n, C] that the bundle gives on the CPU, where every machine has the same."""
    scorer = engine_scorer(bundle, load_engine(bundle, "onnxruntime"))
    return score_pictures(scorer, pictures, bundle.manifest.image_size)


def summary(fitted: dict[str, Any]) -> str:
    """One fit of ``calibrate`` as lines for the terminal."""
    ece = fitted["ECE"]
    lines = [
        f"{fitted['model']} ({fitted['fitted_at']}): {fitted['objective']} on {fitted['pictures']} validation "
        f"pictures, shrinkage {fitted['shrinkage']:g}",
        f"  {'':<13}" + "".join(f"{key:>8}" for key in fitted["reached"]),
        f"  {'in sample':<13}" + "".join(f"{value:8.2f}" for value in fitted["reached"].values()),
    ]
    if fitted["cross_fitted"]:
        lines.append(f"  {'cross-fitted':<13}" + "".join(f"{value:8.2f}" for value in fitted["cross_fitted"].values()))
    crossed = "" if ece["cross_fitted"] is None else f", {ece['cross_fitted']:.4f} cross-fitted"
    lines.append(
        f"  ECE {ece['before']:.4f} before, {ece['after']:.4f} after{crossed}; "
        f"temperature {fitted['temperature']:.4g}, bias {fitted['bias']:.4g}"
    )
    unfitted = [label for label, own in zip(fitted["labels"], fitted["fitted"], strict=True) if not own]
    if unfitted:
        lines.append(f"  not fitted, for no picture shows them: {', '.join(unfitted)}")
    if fitted["short"]:
        each = (f"{row['label']} {_got(row['reached'])} ({row['positives']})" for row in fitted["short"])
        lines.append(f"  below {fitted['objective']}, with what they reach (and positives): {', '.join(each)}")
    return "\n".join(lines)


def _got(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
