"""Bundles: opening, refusing, zipped ones; engines and the Predictor."""

import errno
import json
import math
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval_edge import Predictor, load_bundle
from hpdval_edge.bundle import replace_thresholds, sha256
from hpdval_edge.errors import BadData, MissingDependency, UsageError
from hpdval_edge.predictor import PrecisionWarning


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "copy.hpedge")


def edit_manifest(bundle, **changes):
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("change", [{"labels": 5}, {"grid": None}])
def test_a_manifest_whose_lists_are_none_is_named(copy, change):
    """Planted mistake: a TypeError, after which a server would look at its bundle no more."""
    edit_manifest(copy, **change)
    with pytest.raises(BadData, match=r"manifest\.json has (labels = 5|grid = None), which is no list"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("labels", [1]), ("labels", []), ("image_size", 32.0), ("image_size", 0), ("mean", [0, 0]), ("mean", "abc")),
        *(("std", [1, 0, 1]), ("std", [1, math.inf, 1]), ("alpha", 1.5), ("alpha", -0.1), ("alpha", None)),
        *(("topk", 0), ("topk", 1.5), ("topk", True), ("grid", [4]), ("grid", [4, 0]), ("embed_dim", "24")),
        *(("logit_scale", math.nan), ("logit_scale", "x"), ("files", []), ("input", "int8")),
    ],
)
def test_a_manifest_with_a_value_that_cannot_be_is_refused(copy, key, value):
    """Planted mistake: such values met by the first picture, as errors of other libraries or none."""
    edit_manifest(copy, **{key: value})
    with pytest.raises(BadData, match=f"has {key} = .*, which cannot be; export it again"):
        load_bundle(copy)


def test_engines_agree(tiny_bundle, tiny):
    """Every engine gives the scores that PyTorch gave, for any number of pictures."""
    images, expected = load_bundle(tiny_bundle).golden()
    for backend in ("onnxruntime", "torchscript", "pt2"):
        alone = Predictor(tiny_bundle, backend=backend).predict_pixels(images[:1])
        np.testing.assert_allclose(alone[0].scores, expected[0], atol=2e-3)
        predictions = Predictor(tiny_bundle, backend=backend).predict_pixels(images)
        np.testing.assert_allclose([p.scores for p in predictions], expected, atol=2e-3)


def test_all_kinds_of_pictures(tiny_bundle, tiny):
    predictor = Predictor(tiny_bundle)
    path = tiny / "test" / "00.png"
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
        from_image = predictor(picture)
    from_path, from_pixels = predictor([path, pixels])
    for prediction in (from_image, from_path, from_pixels, predictor(str(path))):
        assert prediction.scores.dtype == np.float32
        np.testing.assert_allclose(prediction.scores, from_path.scores, atol=1e-6)
        assert prediction.patch_scores.shape == (4, 4, 4)
    assert predictor([]) == []


def test_labels_are_chosen_by_threshold_or_rank(tiny_bundle, tiny):
    path = tiny / "test" / "01.png"
    scores = Predictor(tiny_bundle)(path).scores
    ranked = [Predictor(tiny_bundle).labels[i] for i in np.argsort(-scores)]
    assert list(Predictor(tiny_bundle, top=3)(path).labels) == ranked[:3]
    assert list(Predictor(tiny_bundle, threshold=-1)(path).labels) == ranked
    assert Predictor(tiny_bundle, threshold="0.99")(path).labels == ()
    bundle = load_bundle(tiny_bundle)
    fitted = {label for label, s, t in zip(bundle.manifest.labels, scores, bundle.thresholds, strict=True) if s >= t}
    assert set(Predictor(tiny_bundle)(path).labels) == fitted


def edit_thresholds(bundle, drop=(), **changes):
    """Change the one entry of thresholds.json and keep the manifest's digest right."""
    path = bundle / "thresholds.json"
    entry = {**json.loads(path.read_text())["fp16"], **changes}
    path.write_text(json.dumps({"fp16": {key: value for key, value in entry.items() if key not in drop}}))
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit_manifest(bundle, files={**files, path.name: sha256(path.read_bytes())})


def test_probabilities_are_the_bundle_s_calibration(copy, tiny):
    """Planted mistakes: temperature times the logit, the bias outside the quotient, another picture's."""
    edit_thresholds(copy, temperature=0.5, bias=3.0)
    scale = load_bundle(copy).manifest.logit_scale
    for prediction in Predictor(copy)([tiny / "test" / f"0{i}.png" for i in range(3)]):
        expected = 1 / (1 + np.exp(-(scale * prediction.scores.astype(np.float64) - 3) / 0.5))
        assert prediction.probabilities.dtype == np.float32
        np.testing.assert_allclose(prediction.probabilities, expected, rtol=1e-5)


def test_bundles_from_before_calibration_load(copy, tiny):
    """Their thresholds were those of float32 scores. Planted mistake: KeyError, or silence about the precision."""
    edit_thresholds(copy, drop=("temperature", "bias", "fitted_at", "objective"))
    bundle = load_bundle(copy)
    assert (bundle.calibration.temperature, bundle.calibration.bias) == (1, 0)
    assert (bundle.fitted_at, bundle.objective) == ("fp32", "f1")
    with pytest.warns(
        PrecisionWarning, match=r"computes in fp16, .* were fitted at fp32; fit them anew with `hpedge cal"
    ):
        prediction = Predictor(copy)(tiny / "test" / "00.png")
    plain = 1 / (1 + np.exp(-bundle.manifest.logit_scale * prediction.scores.astype(np.float64)))
    np.testing.assert_allclose(prediction.probabilities, plain, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), "warm", None])
def test_a_temperature_that_is_none_is_refused(copy, temperature):
    edit_thresholds(copy, temperature=temperature)
    with pytest.raises(BadData, match=r"thresholds\.json is not what schema 1 holds"):
        load_bundle(copy)


def test_replaced_thresholds_keep_every_other_file(copy):
    """Planted mistakes: folders of the bundle lost, the manifest's digest left as it was."""
    (copy / "kernels").mkdir()
    (copy / "kernels" / "head.ptx").write_text("ptx")
    before = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    bundle = load_bundle(copy)
    entry = json.loads((copy / "thresholds.json").read_text())["fp16"]
    replace_thresholds(bundle, {**entry, "values": [0.5, 0.25, 0.125, 0.0]})
    after = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    changed = {name.name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    assert changed == {"manifest.json", "thresholds.json"}
    assert load_bundle(copy).thresholds.tolist() == [0.5, 0.25, 0.125, 0.0]
    assert not list(copy.parent.glob(".*partial"))


KILLED_BETWEEN_THE_RENAMES = """
import os, signal, sys
from pathlib import Path
from hpdval_edge.bundle import load_bundle, replace_thresholds

def rename(self, target, original=Path.rename):
    if self.name.endswith(".partial") and not self.name.endswith(".old.partial"):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, target)

bundle = load_bundle(sys.argv[1])
Path.rename = rename
replace_thresholds(bundle, {})
"""


@pytest.fixture
def moved_aside(copy):
    """Where the bundle was, whose replacement was killed when it had just been moved aside."""
    done = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_THE_RENAMES, str(copy)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not copy.exists()
    return copy


def test_a_bundle_moved_aside_comes_back(moved_aside, tiny_bundle):
    """Planted mistakes: it is not looked for; the half-written new one is taken."""
    before = {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}
    assert load_bundle(moved_aside).path == moved_aside
    assert {path.name: path.read_bytes() for path in moved_aside.iterdir()} == before


def test_a_bundle_moved_aside_where_nothing_can_be_renamed_is_named(moved_aside, monkeypatch):
    """Planted mistake: PermissionError let through."""

    def denied(self, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", denied)
    message = r"moved aside .* \(Permission denied\); rename .*\.copy\.hpedge\..*\.old\.partial to .*copy\.hpedge"
    with pytest.raises(MissingDependency, match=message):
        load_bundle(moved_aside)


def test_zipped_bundles_are_the_same(tiny_bundle, tiny, tmp_path):
    archive = tmp_path / "model.hpedge"
    with zipfile.ZipFile(archive, "w") as file:
        for path in tiny_bundle.iterdir():
            file.write(path, f"model.hpedge/{path.name}")
    path = tiny / "test" / "02.png"
    np.testing.assert_array_equal(Predictor(archive)(path).scores, Predictor(tiny_bundle)(path).scores)


def test_a_manifest_older_than_its_newest_key_is_read(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["input"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert load_bundle(copy).manifest.input == "float32"
    del manifest["alpha"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadData, match=r"does not fit schema 1 \(keys: alpha\)"):
        load_bundle(copy)


def test_altered_files_are_refused(copy):
    text = (copy / "text.safetensors").read_bytes()
    (copy / "text.safetensors").write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    with pytest.raises(BadData, match=r"text\.safetensors was altered"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "has schema 99, this version reads 1"),
        ({"labels": ["green", "red", "blue", "bright square"]}, "label order of thresholds.json differs"),
        ({"extra": 1}, r"does not fit schema 1 \(keys: extra\)"),
        ({"embed_dim": 25}, r"text bank 'global' is float32 \(4, 24\)"),
        ({"precision": "int8"}, "thresholds.json is not what schema 1 holds"),
        ({"files": {}}, r"lists no model\.onnx"),
    ],
)
def test_manifests_that_do_not_fit(copy, changes, message):
    edit_manifest(copy, **changes)
    with pytest.raises(BadData, match=message):
        load_bundle(copy)


def test_no_bundle(tmp_path):
    with pytest.raises(UsageError, match="does not exist; `hpedge export` writes one"):
        load_bundle(tmp_path / "absent.hpedge")
    (tmp_path / "text.hpedge").write_text("hello")
    with pytest.raises(BadData, match="is no bundle"):
        load_bundle(tmp_path / "text.hpedge")
    with pytest.raises(BadData, match=r"manifest\.json cannot be read"):
        load_bundle(tmp_path)


def test_a_missing_file_is_named(copy):
    (copy / "golden.npz").unlink()
    with pytest.raises(BadData, match=r"golden\.npz cannot be read"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "tensorrt"}, MissingDependency, "backend tensorrt: its Python module tensorrt is not installed"),
        ({"backend": "cuda"}, UsageError, "'cuda' is not one of auto, tensorrt, tensorrt-rtx, onnx"),
        ({"threshold": "high"}, UsageError, "neither 'fitted' nor a finite float32 number"),
        ({"threshold": "nan"}, UsageError, "threshold 'nan' is neither 'fitted' nor a finite float32 number"),
        ({"top": 9}, UsageError, "the bundle has 4 labels"),
    ],
)
def test_wrong_options(tiny_bundle, options, error, message):
    with pytest.raises(error, match=message):
        Predictor(tiny_bundle, **options)


@pytest.mark.parametrize(("backend", "file"), [("torchscript", "model.ts"), ("pt2", "model.pt2")])
def test_a_backend_that_refuses_says_why(copy, backend, file):
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edit_manifest(copy, files={name: digest for name, digest in files.items() if name != file})
    with pytest.raises(UsageError, match=rf"{backend}: the bundle holds no {file}; export with --to {backend}"):
        Predictor(copy, backend=backend)


def test_arrays_that_are_no_pictures(tiny_bundle):
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got float64 \(4, 4, 3\)"):
        Predictor(tiny_bundle)(np.zeros((4, 4, 3)))


def test_inference_never_imports_torch(tiny_bundle, tiny):
    """The runtime's promise: on a board without PyTorch everything below works."""
    code = (
        "import sys; from hpdval_edge import Predictor; from hpdval_edge.cli import main; "
        f"Predictor({str(tiny_bundle)!r})({str(tiny / 'test' / '00.png')!r}); "
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'timm', 'open_clip', 'torchvision')]; "
        "print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_preprocessing_is_the_same_in_training_and_at_the_edge(tiny_bundle, shared_data):
    """One file through the training store and through the runtime: equal to 1 grey level (here exactly)."""
    from hpdval_edge.images import open_rgb, resize_squash
    from hpdval_edge.training.augment import augment
    from hpdval_edge.training.dataset import LabelledImages
    from hpdval_edge.training.image_store import ImageStore

    folder = shared_data / "photos" / "val2017"
    names = tuple(sorted(path.name for path in folder.glob("*.jpg")))
    data = LabelledImages(folder, names, np.ones((len(names), 1), np.uint8), ("x",))
    store = ImageStore(data, 224, cache=None)
    trained_on = augment(store[np.arange(len(names))], "none", seed=0, epoch=0, indices=range(len(names))).numpy()
    for row, name in enumerate(names):
        at_the_edge = resize_squash(open_rgb(folder / name), 224).transpose(2, 0, 1) / np.float32(255)
        np.testing.assert_allclose(trained_on[row], at_the_edge, atol=1 / 255)
