"""Export: what is written, that it is verified, that a failed export leaves nothing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from hpdval_edge.atomic import write_text
from hpdval_edge.bundle import load_bundle
from hpdval_edge.errors import CheckFailed, UsageError
from hpdval_edge.export import export as module
from hpdval_edge.export.deployed import Deployed
from hpdval_edge.kernels import dual_view_scores
from hpdval_edge.monitor.reference import reference_json
from hpdval_edge.predictor import PrecisionWarning, Predictor
from hpdval_edge.training.evaluate import model_scorer
from hpdval_edge.training.model import load_model
from hpdval_edge.training.run_folder import find_run
from hpdval_edge.training.thresholds import Objective, fit


@pytest.fixture
def work(tiny_run, monkeypatch):
    monkeypatch.chdir(tiny_run)
    return tiny_run


def session_of(bundle):
    return onnxruntime.InferenceSession(bundle.read("model.onnx"), providers=["CPUExecutionProvider"])


def test_the_bundle_holds_what_the_contract_lists(tiny_bundle):
    names = {path.name for path in tiny_bundle.iterdir()}
    assert names == {
        "manifest.json", "model.onnx", "model.pt2", "model.ts",
        "text.safetensors", "thresholds.json", "golden.npz", "reference.json", "MODEL_CARD.md",
    }  # fmt: skip
    manifest = load_bundle(tiny_bundle).manifest
    assert manifest.precision == "fp16"
    assert manifest.labels == ("red", "green", "blue", "bright square")
    assert (manifest.image_size, manifest.grid, manifest.embed_dim, manifest.topk) == (32, (4, 4), 24, 8)
    assert manifest.provenance["run"] == "tiny"


def test_onnx_is_half_precision_with_single_precision_islands(tiny_bundle):
    """Planted mistake: normalising in half precision, where eps 1e-12 is 0."""
    model = onnx.load_from_string(load_bundle(tiny_bundle).read("model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 18
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
    assert kinds == {onnx.TensorProto.FLOAT16}
    shapes = {value.name: value.type.tensor_type for value in [*model.graph.input, *model.graph.output]}
    assert list(shapes) == ["image", "text_global", "text_local", "scores", "patch_scores"]
    assert {value.elem_type for value in shapes.values()} == {onnx.TensorProto.FLOAT}


def test_the_head_takes_what_the_graph_calls_cls_and_patches(tiny_bundle):
    """Where another carrier of the head cuts the graph. Planted mistake: name the rows after their normalisation."""
    bundle = load_bundle(tiny_bundle)
    model = onnx.load_from_string(bundle.read("model.onnx"))
    used = {name for node in model.graph.node for name in node.input}
    assert {"cls", "patches"} < used
    for name, shape in {"cls": ["batch", 24], "patches": ["batch", 16, 24]}.items():
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, shape))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    feed = {"image": image, "text_global": bundle.text_global, "text_local": bundle.text_local}
    scores, _, cls, patches = session.run(None, feed)
    assert np.abs(np.linalg.norm(cls.astype(np.float32), axis=1) - 1).min() > 0.01
    expected = dual_view_scores(
        cls, patches, bundle.text_global.astype(np.float16), bundle.text_local.astype(np.float16),
        k=bundle.manifest.topk, alpha=bundle.manifest.alpha, backend="numpy",
    )  # fmt: skip
    np.testing.assert_allclose(scores, expected, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("classes", [1, 300, 65536])
def test_text_banks_are_inputs_of_any_size(tiny_bundle, batch, classes):
    bundle = load_bundle(tiny_bundle)
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((classes, 24)).astype(np.float32)
    feed = {
        "image": rng.standard_normal((batch, 3, 32, 32)).astype(np.float32),
        "text_global": bank,
        "text_local": bank,
    }
    scores, patch_scores = session_of(bundle).run(None, feed)
    assert scores.shape == (batch, classes)
    assert patch_scores.shape == (batch, 16, classes)
    best = np.sort(patch_scores, axis=1)[:, -8:].mean(axis=1)
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    assert np.abs(scores - 0.6 * best).max() <= 0.4 + 1e-5
    again = session_of(bundle).run(None, {**feed, "text_global": unit, "text_local": 5 * bank})[0]
    np.testing.assert_allclose(again, scores, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "element", "shape"),
    [
        ("uint8", onnx.TensorProto.UINT8, ["batch", 32, 32, 3]),
        ("float16", onnx.TensorProto.FLOAT16, ["batch", 3, 32, 32]),
    ],
)
def test_the_image_may_be_levels_or_halves(work, tiny_bundle, tmp_path, kind, element, shape):
    """Planted mistakes: levels normalised in half precision, channels left last."""
    out = tmp_path / f"{kind}.hpedge"
    report = module.export(find_run("tiny"), precision="fp16", targets=("onnx", "pt2"), out=out, image_dtype=kind)
    assert max(report.max_error.values()) < 2e-3
    bundle = load_bundle(out)
    assert bundle.manifest.input == kind
    image = onnx.load_from_string(bundle.read("model.onnx")).graph.input[0].type.tensor_type
    assert image.elem_type == element
    assert [size.dim_param or size.dim_value for size in image.shape.dim] == shape
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    np.testing.assert_allclose(Predictor(bundle)(picture).scores, Predictor(tiny_bundle)(picture).scores, atol=2e-3)


def test_float32_export_is_closer_than_half(work, tmp_path):
    report = module.export(find_run("tiny"), precision="fp32", targets=("onnx",), out=tmp_path / "full.hpedge")
    assert report.max_error["onnx"] <= 1e-5
    assert report.tolerance == 1e-4
    bundle = load_bundle(tmp_path / "full.hpedge")
    assert bundle.thresholds.tolist() == find_run("tiny").read_json("thresholds.json")["fp32"]["values"]
    assert bundle.fitted_at == "fp32"


def test_an_export_that_differs_is_refused_and_the_old_bundle_stays(work, tiny_bundle, monkeypatch):
    """Planted mistake: compare the exported model with itself."""
    before = (tiny_bundle / "manifest.json").read_text()
    original = Deployed.score

    def wrong(self, *tensors):
        scores, patch_scores = original(self, *tensors)
        return scores + 0.01, patch_scores

    monkeypatch.setattr(Deployed, "score", wrong)
    with pytest.raises(CheckFailed, match=r"differs from float32 PyTorch by 1.*nothing was written"):
        module.export(find_run("tiny"), precision="fp16", targets=("onnx",), out=None)
    assert (tiny_bundle / "manifest.json").read_text() == before
    assert not list(tiny_bundle.parent.glob(".*partial"))


def test_scores_that_are_no_numbers_are_refused(work, tmp_path, monkeypatch):
    """Planted mistake: NaN is not larger than what is allowed."""
    original = Deployed.score

    def poisoned(self, *tensors):
        scores, patch_scores = original(self, *tensors)
        return scores * float("nan"), patch_scores

    monkeypatch.setattr(Deployed, "score", poisoned)
    with pytest.raises(CheckFailed, match=r"differs from float32 PyTorch by nan.*nothing was written"):
        module.export(find_run("tiny"), precision="fp16", targets=("onnx",), out=tmp_path / "nan.hpedge")
    assert not (tmp_path / "nan.hpedge").exists()
    with pytest.raises(UsageError, match="--to names no format"):
        module.export(find_run("tiny"), precision="fp16", targets=(), out=None)


def test_golden_scores_are_float32_pytorch(tiny_run, tiny_bundle):
    images, scores = load_bundle(tiny_bundle).golden()
    model, _, _ = load_model(tiny_run / "runs" / "tiny" / "weights" / "best.safetensors")
    assert np.array_equal(model_scorer(model, torch.device("cpu"))(images), scores)
    assert images.dtype == np.uint8
    assert len(images) == 16


def test_what_cannot_be_exported_is_named(work, tmp_path):
    run = find_run("tiny")
    with pytest.raises(UsageError, match="'tensorrt' is not one of onnx, torchscript, pt2"):
        module.export(run, precision="fp16", targets=("tensorrt",), out=None)
    with pytest.raises(UsageError, match="--input 'int8' is not one of float32, float16, uint8"):
        module.export(run, precision="fp16", targets=("onnx",), out=None, image_dtype="int8")
    with pytest.raises(UsageError, match=r"must end in \.hpedge"):
        module.export(run, precision="fp16", targets=("onnx",), out=tmp_path / "model.onnx")
    (tmp_path / "mine.hpedge").mkdir()
    write_text(tmp_path / "mine.hpedge" / "diary.txt", "keep")
    with pytest.raises(UsageError, match="exists and is no bundle"):
        module.export(run, precision="fp16", targets=("onnx",), out=tmp_path / "mine.hpedge")


def test_l2class_runs_are_refused(work):
    model, _, _ = load_model(find_run("tiny").weights("best"))
    model.kind = "l2class"
    with pytest.raises(UsageError, match="the deployed head is cosine"):
        Deployed(model, half=False)


def test_attention_is_explicit(work):
    """One scale on q; TensorRT 10.7 gives wrong outputs on the export of fused attention."""
    deployed = Deployed(load_model(find_run("tiny").weights("best"))[0], half=False)
    flags = [module.fused_attn for module in deployed.modules() if hasattr(module, "fused_attn")]
    assert flags == [False, False]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_reference_is_of_the_bundles_own_validation_scores(work, tiny, tiny_bundle, tmp_path, precision):
    """Planted mistakes: of another split, of float32 scores in a half precision bundle, with the old thresholds."""
    path = tiny_bundle
    if precision == "fp32":
        path = tmp_path / "full.hpedge"
        module.export(find_run("tiny"), precision="fp32", targets=("onnx",), out=path)
    bundle = load_bundle(path)
    rows = [row.split(",")[0] for row in (tiny / "val.csv").read_text().splitlines()[1:]]
    scores = np.stack([prediction.scores for prediction in Predictor(bundle)([tiny / row for row in rows])])
    expected = json.loads(reference_json(scores, bundle.thresholds, bundle.manifest.labels, precision))
    found = json.loads(bundle.read("reference.json"))
    np.testing.assert_allclose(found.pop("edges"), expected.pop("edges"), atol=1e-6)
    assert found == expected


def test_card_and_thresholds_travel(tiny_bundle):
    assert "| bright square |" in (tiny_bundle / "MODEL_CARD.md").read_text()
    thresholds = json.loads((tiny_bundle / "thresholds.json").read_text())
    assert list(thresholds) == ["fp16"]


@pytest.fixture
def copied(tiny_run, tmp_path, monkeypatch):
    """A copy of the tiny run's folder to change."""
    monkeypatch.chdir(shutil.copytree(tiny_run, tmp_path / "work"))
    return find_run("tiny")


def test_half_precision_is_fitted_on_its_own_scores(copied, tiny):
    """Planted mistakes: float32 thresholds under the name of fp16, another objective than the run's, the test split."""
    entry = {**copied.read_json("thresholds.json")["fp32"], "objective": "recall=0.7"}
    copied.write_json("thresholds.json", {"fp32": entry})
    module.export(copied, precision="fp16", targets=("onnx",), out=None)
    bundle = load_bundle("runs/tiny/model.hpedge")
    assert (bundle.fitted_at, bundle.objective) == ("fp16", "recall=0.7")
    rows = [row.split(",") for row in (tiny / "val.csv").read_text().splitlines()[1:]]
    scores = np.stack([prediction.scores for prediction in Predictor(bundle)([tiny / path for path, _ in rows])])
    targets = np.array([[label in labels.split(";") for label in bundle.manifest.labels] for _, labels in rows])
    expected = fit(scores, targets, Objective("recall", 0.7))
    np.testing.assert_allclose(bundle.thresholds, expected.values, atol=1e-6)
    stored = copied.read_json("thresholds.json")
    assert stored["fp32"] == entry
    assert stored["fp16"]["values"] == bundle.thresholds.tolist()


def test_without_the_validation_pictures_the_bundle_says_so(copied, tmp_path, capsys):
    """Planted mistakes: no word about it, fp16 as the precision of the fit."""
    config = copied.path / "config.toml"
    config.write_text(re.sub(r"(?m)^path = .*$", f'path = "{tmp_path / "gone"}"', config.read_text(), count=1))
    module.export(copied, precision="fp16", targets=("onnx",), out=None)
    err = capsys.readouterr().err
    assert "note: thresholds and probabilities stay those fitted at fp32" in err
    assert "gone" in err
    bundle = load_bundle("runs/tiny/model.hpedge")
    assert Path("runs/last-export").read_text().strip() == "runs/tiny/model.hpedge"
    assert bundle.fitted_at == "fp32"
    assert bundle.thresholds.tolist() == copied.read_json("thresholds.json")["fp32"]["values"]
    with pytest.warns(PrecisionWarning, match="computes in fp16, its thresholds and probabilities were fitted at fp32"):
        Predictor(bundle)
    code = "import sys; sys.argv = ['hpedge', 'infer', *sys.argv[1:]]; from hpdval_edge.cli import main; main()"
    Image.new("RGB", (8, 8)).save("a.png")
    done = subprocess.run(
        [sys.executable, "-c", code, "a.png", "--model", "runs/tiny/model.hpedge"], capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if "fitted at fp32" in line]
    assert len(lines) == 1
    assert lines[0].startswith("hpedge: bundle runs/tiny/model.hpedge computes in fp16")
    assert "predictor.py" not in done.stderr
