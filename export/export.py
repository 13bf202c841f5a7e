"""``hpedge export``: write a bundle from a run, verify it on real pictures, only then put it in its place."""

import json
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as save_safetensors

from hpdval_edge.atomic import new_folder, write_text
from hpdval_edge.bundle import (
    CARD,
    GOLDEN,
    KERNELS,
    MANIFEST,
    MODEL,
    PT2,
    REFERENCE,
    SCHEMA,
    TEXT,
    TEXT_SPACE,
    THRESHOLDS,
    TORCHSCRIPT,
    Bundle,
    Manifest,
    load_bundle,
    sha256,
    thresholds_text,
    write_manifest,
    write_thresholds,
)
from hpdval_edge.errors import BadData, CheckFailed, MissingDependency, UsageError
from hpdval_edge.export import aot, serving
from hpdval_edge.export.deployed import Deployed
from hpdval_edge.export.graph import write_onnx, write_pt2, write_torchscript
from hpdval_edge.export.int8 import Int8Report, make_int8
from hpdval_edge.images import INPUTS
from hpdval_edge.kernels.head_launch import MAX_PATCHES
from hpdval_edge.monitor.reference import reference_json
from hpdval_edge.progress import say
from hpdval_edge.runtimes import EngineOptions, load_engine
from hpdval_edge.training.calibration_run import bundle_scores, fit_bundle
from hpdval_edge.training.evaluate import engine_scorer, model_scorer
from hpdval_edge.training.measure import own_pictures
from hpdval_edge.training.model import DualView, load_model
from hpdval_edge.training.run_folder import RUNS, RunFolder, reported_weights
from hpdval_edge.training.text_banks import text_space
from hpdval_edge.training.thresholds import parse_objective

ENGINES = ("onnx", "torchscript", "pt2")
TARGETS = (*ENGINES, *serving.TARGETS)
LAST_EXPORT = RUNS / "last-export"
# Largest |score - float32 PyTorch's score| that an export may show on its golden pictures. Of int8 it finds what is
# broken; the budget of mAP says what is good (docs/export.md).
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3, "int8": 1e-1, "int8-fp16": 1e-1}
ADVICE = {"fp16": " Export without --fp16.", "int8": " Export with --fp16.", "int8-fp16": " Export with --fp16."}


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and how far each engine's scores lie from float32 PyTorch on ``pictures`` real pictures.

    kernels: chips whose GPU kernels are inside, e.g. sm_87. served: folder of each server's target. int8: how an int8
    model was made; None of others.
    """

    path: Path
    precision: str
    max_error: dict[str, float]
    label_flips: dict[str, int]
    pictures: int
    megabytes: float
    kernels: tuple[str, ...] = ()
    served: dict[str, str] = field(default_factory=dict)
    int8: Int8Report | None = None

    @property
    def tolerance(self) -> float:
        """Largest error allowed at this precision."""
        return TOLERANCE[self.precision]


def export(
    run: RunFolder,
    *,
    precision: str,
    targets: tuple[str, ...],
    out: Path | None,
    chips: str = "",
    image_dtype: str = "float32",
    int8_budget: float = 1.0,
) -> ExportReport:
    """Write and verify ``out`` (default ``runs/<name>/model.hpedge``).

    Args:
        image_dtype: What the model's image input is, one of `images.INPUTS`.
        chips: What the GPU kernels are compiled for, as `aot.build` takes it; none where empty.
        int8_budget: Points of mAP that an int8 precision may lose on the run's validation pictures.

    Raises:
        UsageError: an unknown target or chip, a run that cannot be exported.
        MissingDependency: no triton that knows the chips, a full disk.
        BadData: a damaged or unfinished run.
        CheckFailed: the written model's scores differ too much, or int8 does not pay; nothing is left at ``out`` but
            what was there.
    """
    out = out or run.path / "model.hpedge"
    _check_request(precision, targets, out, chips, image_dtype)
    servers = tuple(dict.fromkeys(target for target in targets if target in serving.TARGETS))
    targets = tuple(dict.fromkeys(("onnx", *(target for target in targets if target in ENGINES))))
    model, labels, metadata = load_model(reported_weights(run))
    images = _golden_images(run)
    expected = model_scorer(model, torch.device("cpu"))(images)
    manifest = replace(_manifest(run, model, labels, metadata, precision), input=image_dtype)
    with new_folder(out) as folder:
        if chips:
            _write_kernels(folder / KERNELS, manifest, chips)
        int8 = _write_files(folder, run, model, manifest, targets, images, expected, int8_budget)
        report = replace(verify(folder, images, expected, targets), int8=int8)
        _check_scores(report)
        refitted = _fit_anew(folder, run)
    if refitted:
        run.write_json(THRESHOLDS, {**run.read_json(THRESHOLDS), precision: refitted})
    write_text(LAST_EXPORT if run.path.parent == RUNS else run.path.parent / LAST_EXPORT.name, f"{out}\n")
    return _serve(replace(report, path=out), servers)


def _check_scores(report: ExportReport) -> None:
    """CheckFailed where an engine's scores are too far off, or no numbers."""
    for target, error in report.max_error.items():
        if not error <= report.tolerance:
            raise CheckFailed(
                f"{target} at {report.precision} differs from float32 PyTorch by {error:.1e} on pictures, "
                f"{report.tolerance:.0e} is allowed; nothing was written.{ADVICE.get(report.precision, '')}"
            )


def _serve(report: ExportReport, servers: tuple[str, ...]) -> ExportReport:
    """Write ``servers``' folders beside the bundle; the report with theirs."""
    if not servers:
        return report
    bundle = load_bundle(report.path)
    done = [serving.write(bundle, target, report.tolerance) for target in servers]
    return replace(
        report,
        max_error={**report.max_error, **{served.target: served.max_error for served in done}},
        label_flips={**report.label_flips, **{served.target: served.label_flips for served in done}},
        served={served.target: str(served.path) for served in done},
    )


def _check_request(precision: str, targets: tuple[str, ...], out: Path, chips: str, image_dtype: str) -> None:
    """Refuse what cannot be, before anything takes time; the errors of `export`."""
    if not targets:
        raise UsageError(f"--to names no format; it takes {', '.join(TARGETS)}.")
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise UsageError(
            f"--to {unknown[0]!r} is not one of {', '.join(TARGETS)}; TensorRT engines are made by `hpedge build`."
        )
    if precision.startswith("int8") and {*targets} - {"onnx", *serving.TARGETS}:
        raise UsageError(
            f"precision {precision} is for onnx, {' and '.join(serving.TARGETS)}; export other formats with --fp16."
        )
    if image_dtype not in INPUTS:
        raise UsageError(f"--input {image_dtype!r} is not one of {', '.join(INPUTS)}.")
    if out.suffix != ".hpedge":
        raise UsageError(f"--out {out} must end in .hpedge.")
    if out.exists() and not (out / MANIFEST).is_file():
        raise UsageError(f"--out {out} exists and is no bundle; choose another name.")
    serving.check_folders(out, tuple(target for target in targets if target in serving.TARGETS))
    if chips:
        aot.check_targets(chips)


def is_half(precision: str) -> bool:
    """Whether what is not in integers computes in float16."""
    return precision.endswith("fp16")


def _golden_images(run: RunFolder) -> np.ndarray:
    try:
        with np.load(run.golden, allow_pickle=False) as archive:
            return archive["images"]
    except (OSError, KeyError, ValueError) as error:
        raise BadData(f"{run.golden} cannot be read ({error}); the run is not complete, train again.") from error


def _manifest(run: RunFolder, model: DualView, labels: tuple[str, ...], metadata: dict, precision: str) -> Manifest:
    spec = model.student.spec
    provenance = {
        "run": run.name,
        "stage": metadata["stage"],
        "epoch": int(metadata["epoch"]),
        "encoder": spec.name,
        "class_counts": json.loads(metadata["class_counts"]),
        "teacher": run.config().teacher.spec,
        "preset": run.config().preset,
        "hpedge": version("hpdval-edge"),
        "torch": torch.__version__,
        **_text_space(run),
    }
    return Manifest(
        schema=SCHEMA,
        name=run.name,
        labels=labels,
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        alpha=model.alpha,
        topk=min(model.topk, model.student.num_patches),
        grid=model.student.grid,
        embed_dim=model.text_global.shape[1],
        logit_scale=model.logit_scale.item(),
        precision=precision,
        provenance=provenance,
        files={},
    )


def _text_space(run: RunFolder) -> dict[str, str]:
    """The provenance's fingerprint of the text space; none where the teacher is not at hand, so that no label fits."""
    try:
        return {TEXT_SPACE: text_space(run).fingerprint}
    except (BadData, UsageError, MissingDependency) as error:
        say(f"note: `hpedge labels add` will refuse this bundle, which cannot say its text space: {error}")
        return {}


def _write_kernels(folder: Path, manifest: Manifest, chips: str) -> None:
    """PTX, cubins and their manifest for ``chips``, at the model's precision, width and number of patches."""
    patches = manifest.grid[0] * manifest.grid[1]
    if patches > MAX_PATCHES:
        raise UsageError(f"the GPU kernels take at most {MAX_PATCHES:,} patches and this model has {patches:,}.")
    dtype = "fp16" if is_half(manifest.precision) else "fp32"
    aot.build(targets=chips, dtype=dtype, width=manifest.embed_dim, patches=patches, out=folder, patch_scores=True)


def _write_files(
    folder: Path,
    run: RunFolder,
    model: DualView,
    manifest: Manifest,
    targets: tuple[str, ...],
    images: np.ndarray,
    expected: np.ndarray,
    int8_budget: float,
) -> Int8Report | None:
    banks = {"global": model.text_global, "local": model.text_local}
    unit = {name: torch.nn.functional.normalize(bank.float(), dim=1, eps=1e-12).numpy() for name, bank in banks.items()}
    (folder / TEXT).write_bytes(save_safetensors(unit))
    np.savez_compressed(folder / GOLDEN, images=images, scores=expected)
    (folder / CARD).write_text((run.path / CARD).read_text(encoding="utf-8"), encoding="utf-8")
    deployed = Deployed(model, half=is_half(manifest.precision), image_dtype=manifest.input)
    writers = {
        "onnx": (write_onnx, MODEL),
        "torchscript": (write_torchscript, TORCHSCRIPT),
        "pt2": (write_pt2, PT2),
    }
    for target in targets:
        write, name = writers[target]
        write(deployed, folder / name, image_size=manifest.image_size, embed_dim=manifest.embed_dim)
    int8 = None
    if manifest.precision.startswith("int8"):
        inputs = {f"text_{name}": bank for name, bank in unit.items()}
        int8 = make_int8(folder / MODEL, run, manifest, inputs, int8_budget)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in files}
    fitted = {**run.read_json(THRESHOLDS)["fp32"], "fitted_at": "fp32"}
    write_thresholds(folder, replace(manifest, files=digests), fitted)
    return int8


def _fit_anew(folder: Path, run: RunFolder) -> dict[str, Any] | None:
    """Score the run's validation pictures with the bundle in ``folder`` and write there what follows from it.

    That is the reference of scores and, where the precision is not float32's, thresholds and calibration, which are
    returned. Where the pictures are not at hand, the bundle keeps those of float32, marked as such, and the result is
    None.
    """
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    try:
        _, pictures = own_pictures(run, manifest.labels, ("val",))
        if manifest.precision == "fp32":
            entry = None
            reference = reference_json(
                bundle_scores(bundle, pictures), bundle.thresholds, manifest.labels, manifest.precision
            )
        else:
            entry, reference = fit_bundle(bundle, pictures, parse_objective(bundle.objective))
    except (BadData, UsageError) as error:
        lost = "it has no reference to tell drift by"
        if manifest.precision != "fp32":
            lost = f"thresholds and probabilities stay those fitted at fp32, and {lost}"
        say(f"note: {lost}, for the validation pictures cannot be read: {str(error).splitlines()[0]}")
        return None
    files = (
        {REFERENCE: reference}
        if entry is None
        else {REFERENCE: reference, THRESHOLDS: thresholds_text(manifest, entry)}
    )
    for name, data in files.items():
        (folder / name).write_bytes(data)
    write_manifest(folder, manifest, files)
    return entry


def verify(folder: Path, images: np.ndarray, expected: np.ndarray, targets: tuple[str, ...]) -> ExportReport:
    """Run the bundle in ``folder`` through each engine it was written for and compare with float32 PyTorch.

    Args:
        images: uint8 [n, S, S, 3]. expected: float32 [n, C].
    """
    bundle = load_bundle(folder)
    names = {"onnx": "onnxruntime", "torchscript": "torchscript", "pt2": "pt2"}
    errors, flips = {}, {}
    for target in targets:
        # What was written, whatever is faster on this machine.
        scores = engine_scorer(bundle, load_engine(bundle, names[target], EngineOptions(head="graph")))(images)
        errors[target] = float(np.abs(scores.astype(np.float64) - expected).max())
        flips[target] = int(((scores >= bundle.thresholds) != (expected >= bundle.thresholds)).sum())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return ExportReport(folder, bundle.manifest.precision, errors, flips, len(images), size / 1e6, kernel_chips(bundle))


def kernel_chips(bundle: Bundle) -> tuple[str, ...]:
    """Chips whose GPU kernels the bundle holds."""
    name = f"{KERNELS}/{aot.MANIFEST}"
    if name not in bundle.manifest.files:
        return ()
    return tuple(entry["target"] for entry in json.loads(bundle.read(name))["kernels"])
