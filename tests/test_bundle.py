"""Bundles: opening, refusing, zipped ones; engines and the Predictor."""

import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from hpdval_edge import Predictor, load_bundle
from hpdval_edge.errors import BadData, MissingDependency, UsageError


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "copy.hpedge")


def edit_manifest(bundle, **changes):
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_engines_agree(tiny_bundle, tiny):
    """TorchScript and ONNX Runtime give the scores that PyTorch gave."""
    images, expected = load_bundle(tiny_bundle).golden()
    for backend in ("onnxruntime", "torchscript"):
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


def test_zipped_bundles_are_the_same(tiny_bundle, tiny, tmp_path):
    archive = tmp_path / "model.hpedge"
    with zipfile.ZipFile(archive, "w") as file:
        for path in tiny_bundle.iterdir():
            file.write(path, f"model.hpedge/{path.name}")
    path = tiny / "test" / "02.png"
    np.testing.assert_array_equal(Predictor(archive)(path).scores, Predictor(tiny_bundle)(path).scores)


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
        ({"backend": "tensorrt"}, MissingDependency, "not in this version yet"),
        ({"backend": "cuda"}, UsageError, "'cuda' is not one of auto, onnxruntime, torchscript"),
        ({"threshold": "high"}, UsageError, "neither 'fitted' nor a number"),
        ({"top": 9}, UsageError, "the bundle has 4 labels"),
    ],
)
def test_wrong_options(tiny_bundle, options, error, message):
    with pytest.raises(error, match=message):
        Predictor(tiny_bundle, **options)


def test_a_backend_that_refuses_says_why(copy):
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edit_manifest(copy, files={name: digest for name, digest in files.items() if name != "model.ts"})
    with pytest.raises(UsageError, match=r"torchscript: the bundle holds no model\.ts; export with --to torchscript"):
        Predictor(copy, backend="torchscript")


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
