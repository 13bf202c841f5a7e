"""What libhpedge refuses: bundles, with Python's load_bundle beside it, options and pictures."""

import json
import re
import shutil

import numpy as np
import pytest

from hpdval_edge import Predictor, load_bundle
from hpdval_edge.bundle import THRESHOLDS, sha256
from hpdval_edge.errors import BadData, UsageError

pytestmark = pytest.mark.slow


class Odd:
    """Fields of hpedge_image as they are given, on a file of 12,000 bytes, or on none."""

    def __init__(self, *fields, data=True):
        self.fields, self.data = fields, data

    def argument(self, folder):
        (folder / "odd").write_bytes(bytes(12000))
        return f"picture={','.join(map(str, self.fields))},{folder / 'odd' if self.data else ''}"


GOOD_PICTURE = Odd(0, 20, 20, 0, 0, 0)


def edit(bundle, changes):
    """Change keys of the manifest; None removes one."""
    path = bundle / "manifest.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def replace_file(bundle, name, data):
    """A file with other content and the manifest's sha256 to match."""
    (bundle / name).write_bytes(data)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit(bundle, {"files": {**files, name: sha256(data)}})


def edit_thresholds(bundle, **changes):
    values = json.loads((bundle / THRESHOLDS).read_text())
    replace_file(bundle, THRESHOLDS, json.dumps({key: {**entry, **changes} for key, entry in values.items()}).encode())


def banks(header, data=bytes(768)):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


GOOD = {"dtype": "F32", "shape": [4, 24], "data_offsets": [0, 384]}
LOCAL = {**GOOD, "data_offsets": [384, 768]}
TEXTS = {
    "bank of another size": banks({"global": {**GOOD, "shape": [3, 24], "data_offsets": [0, 288]}, "local": LOCAL}),
    "bank of halves": banks({"global": {**GOOD, "dtype": "F16", "data_offsets": [0, 192]}, "local": LOCAL}),
    "bank missing": banks({"global": GOOD}, bytes(384)),
    "bank beyond the file": banks({"global": GOOD, "local": LOCAL}, bytes(767)),
    "bank with other offsets": banks({"global": {**GOOD, "data_offsets": [0, 380]}, "local": LOCAL}),
    "bank from end to begin": banks({"global": {**GOOD, "data_offsets": [384, 0]}, "local": LOCAL}),
    "header beyond the file": b"\xff" * 8 + b"{}",
    "no header": b"\1\0\0",
    "header that is no JSON": banks({})[:8] + b"{,",
}


def append(path):
    path.write_bytes(path.read_bytes() + b"x")


# Both refuse them; what libhpedge says.
REFUSED = {
    "altered file": (lambda b: append(b / "model.onnx"), "model.onnx was altered (its sha256 is not"),
    "altered picture": (lambda b: append(b / "golden.npz"), "golden.npz was altered"),
    "missing file": (lambda b: (b / "model.onnx").unlink(), "model.onnx cannot be read (No such file or directory)"),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "is no bundle: manifest.json cannot be read"),
    "not JSON": (lambda b: (b / "manifest.json").write_text("{"), "manifest.json is not JSON ("),
    "a list": (lambda b: (b / "manifest.json").write_text("[1]"), "has schema null, this version reads 1"),
    "other schema": (lambda b: edit(b, {"schema": 2}), "has schema 2, this version reads 1; export it again or update"),
    "unknown key": (lambda b: edit(b, {"speed": 1}), "does not fit schema 1 (keys: speed)"),
    "missing key": (lambda b: edit(b, {"grid": None}), "does not fit schema 1 (keys: grid)"),
    "no text": (lambda b: edit(b, {"files": {}}), "lists no model.onnx; export it again"),
    "label order": (lambda b: edit_thresholds(b, labels=["green", "red", "blue", "bright square"]), "label order"),
    "thresholds": (lambda b: edit_thresholds(b, values=[0.5]), "thresholds.json has 1 thresholds for 4 labels"),
    "temperature": (lambda b: edit_thresholds(b, temperature=0), "has a temperature that is not positive"),
    "precision": (lambda b: edit(b, {"precision": "fp8"}), "thresholds.json is not what schema 1 holds ("),
    "thresholds of text": (lambda b: edit_thresholds(b, values=["x"] * 4), "thresholds.json is not what schema 1"),
    **{
        name: (lambda b, data=data: replace_file(b, "text.safetensors", data), "text.safetensors ")
        for name, data in TEXTS.items()
    },
}


def refuse(driver, bundle, change, message):
    change(bundle)
    printed = driver(bundle, code=3)
    assert re.match(r"status 3: .*\.\n", printed) and message in printed, printed
    assert str(bundle) in printed


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_bundles_that_python_refuses(driver, tiny_bundle, tmp_path, change, message):
    """Planted: no comparison of sha256; failed."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "copy.hpedge")
    refuse(driver, bundle, change, message)
    with pytest.raises(BadData):
        load_bundle(bundle)


# Python refuses them in other words, the model when an engine loads it.
ODD = {
    "input": (lambda b: edit(b, {"input": "int8"}), "manifest.json has input 'int8', which is none of float32"),
    "size": (lambda b: edit(b, {"image_size": 10**9}), "has an image_size or a grid that is not 1 to 8192"),
    "no size": (lambda b: edit(b, {"image_size": 0}), "has an image_size or a grid that is not 1 to 8192"),
    "negative size": (lambda b: edit(b, {"image_size": -32}), "has an image_size or a grid that is not 1 to 8192"),
    "grid": (lambda b: edit(b, {"grid": [4]}), "manifest.json has 1 numbers where it should have 2"),
    "no grid": (lambda b: edit(b, {"grid": [4, 0]}), "has an image_size or a grid that is not 1 to 8192"),
    "part of a size": (lambda b: edit(b, {"image_size": 32.5}), "has 32.5 where it should have a whole number"),
    "part of a grid": (lambda b: edit(b, {"grid": [4, 4.5]}), "has 4.5 where it should have a whole number"),
    "width": (lambda b: edit(b, {"embed_dim": 0}), "manifest.json has embed_dim 0"),
    "negative width": (lambda b: edit(b, {"embed_dim": -24}), "has a text bank 'global' that is F32 [4, 24]"),
    "width that is true": (lambda b: edit(b, {"embed_dim": True}), "has true where it should have a whole number"),
    "topk": (lambda b: edit(b, {"topk": 0}), "has a topk that is not 1 or more or an alpha that is not 0 to 1"),
    "negative topk": (lambda b: edit(b, {"topk": -1}), "has a topk that is not 1 or more"),
    "part of a topk": (lambda b: edit(b, {"topk": 1.5}), "has 1.5 where it should have a whole number"),
    "alpha": (lambda b: edit(b, {"alpha": 1.5}), "an alpha that is not 0 to 1"),
    "negative alpha": (lambda b: edit(b, {"alpha": -0.1}), "an alpha that is not 0 to 1"),
    "infinite mean": (lambda b: edit(b, {"mean": [0, 0, 1e39]}), "has a mean or a std that is not finite"),
    "infinite deviation": (lambda b: edit(b, {"std": [1, 1e39, 1]}), "has a mean or a std that is not finite"),
    "deviation": (lambda b: edit(b, {"std": [1, 0, 1]}), "a std that is not positive"),
    "labels": (lambda b: edit(b, {"labels": [1, 2, 3, 4]}), "manifest.json is not what schema 1 holds ("),
    "model": (lambda b: replace_file(b, "model.onnx", b"no model"), "/model.onnx: "),
}


@pytest.mark.parametrize("change, message", ODD.values(), ids=ODD)
def test_bundles_that_are_odd(driver, tiny_bundle, tmp_path, change, message):
    """Planted: each check of topk, alpha, embed_dim, image_size, grid, mean and std left out; 1.5 cut to 1."""
    refuse(driver, shutil.copytree(tiny_bundle, tmp_path / "copy.hpedge"), change, message)


def test_bundles_of_older_versions(driver, tiny_bundle, tmp_path):
    """Without what came later: calibration, fitted_at, input. The precision of the fit is then another one."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "copy.hpedge")
    edit(bundle, {"input": None})
    old = json.loads((bundle / THRESHOLDS).read_text())["fp16"]
    kept = {key: old[key] for key in ("labels", "values")}
    replace_file(bundle, THRESHOLDS, json.dumps({"fp16": kept}).encode())
    printed = driver(bundle, [GOOD_PICTURE])
    with pytest.warns(UserWarning) as caught:
        expected = Predictor(bundle, "onnxruntime")(np.zeros((20, 20, 3), np.uint8))
    assert f"warning {caught[0].message}\n" in printed
    np.testing.assert_allclose(driver.output("probabilities", -1), expected.probabilities, atol=1e-6)


def test_what_is_no_folder(driver, tiny_bundle, tmp_path):
    assert "status 2: bundle" in driver(tmp_path / "absent.hpedge", code=2)
    with pytest.raises(UsageError, match="does not exist"):
        load_bundle(tmp_path / "absent.hpedge")
    (tmp_path / "zipped.hpedge").touch()
    assert "is no folder; if it is zipped, unpack it for" in driver(tmp_path / "zipped.hpedge", code=2)


OPTIONS = {
    "backend": ({"backend": "openvino"}, 2, "backend 'openvino' is not one of auto, onnxruntime, tensorrt."),
    "tensorrt": ({"backend": "tensorrt"}, 4, "built without TensorRT; build it with -DHPEDGE_TENSORRT=ON, or use"),
    "top": ({"top": 5}, 2, "top is 5, but the bundle has 4 labels; choose 1 to 4."),
    "negative top": ({"top": -1}, 2, "top is -1, but"),
    "threshold": ({"threshold": "nan"}, 2, "threshold is not a number; give one, or NULL for the bundle's own."),
    "threads": ({"threads": -1}, 2, "threads is -1; give 0 or more."),
    "size": ({"size": 8}, 2, "set it to sizeof(hpedge_options), of this library's own header."),
    "engine": ({"engine": "x"}, 2, "engine is a TensorRT plan and backend is onnxruntime; leave one of them out."),
    "library": ({"onnxruntime": "/absent.so"}, 4, "ONNX Runtime cannot be loaded (/absent.so: cannot open shared"),
    "other library": ({"onnxruntime": "libm.so.6"}, 4, "libm.so.6 is not ONNX Runtime: it has no OrtGetApiBase"),
}


@pytest.mark.parametrize("keys, code, message", OPTIONS.values(), ids=OPTIONS)
def test_options_that_cannot_be_honoured(driver, tiny_bundle, keys, code, message):
    """Planted: a threshold that is not a number taken, so that nothing is chosen; failed."""
    printed = driver(tiny_bundle, code=code, **keys)
    assert printed.startswith(f"status {code}: ") and message in printed


def test_auto_is_onnxruntime_without_tensorrt(driver, tiny_bundle):
    assert "backend onnxruntime" in driver(tiny_bundle, backend=None)


# format, width, height, stride, chroma stride, offset.
PICTURES = {
    "width": (Odd(0, 0, 9, 0, 0, 0), "it is 0 x 9 pixels; sides are 1 to 65535"),
    "height": (Odd(0, 9, -1, 0, 0, 0), "it is 9 x -1 pixels"),
    "long": (Odd(0, 65536, 1, 0, 0, 0), "it is 65536 x 1 pixels"),
    "format": (Odd(5, 9, 9, 0, 0, 0), "format 5 is none of hpedge_format, 0 to 4"),
    "data": (Odd(0, 9, 9, 0, 0, 0, data=False), "its data is NULL"),
    "stride": (Odd(2, 9, 9, 35, 0, 0), "stride is 35 bytes and a row has 36; 0 says that rows touch"),
    "negative stride": (Odd(0, 9, 9, -26, 0, 0), "stride is -26 bytes and a row has 27"),
    "odd NV12": (Odd(4, 9, 8, 0, 0, 100), "it is 9 x 8 pixels; NV12 has even sides"),
    "no chroma": (Odd(4, 8, 8, 0, 0, 0), "it is NV12 and its chroma is NULL"),
    "chroma stride": (Odd(4, 8, 8, 0, 7, 64), "chroma_stride is 7 bytes and a row has 8"),
}


@pytest.mark.parametrize("odd, message", PICTURES.values(), ids=PICTURES)
def test_pictures_that_are_none(driver, tiny_bundle, odd, message):
    """Planted: strides not checked; failed."""
    printed = driver(tiny_bundle, [GOOD_PICTURE, odd], code=3)
    assert f"status 3: picture 1: {message}" in printed


def test_refused_under_sanitizers(drivers, tiny_bundle, tmp_path):
    driver = drivers("sanitized")
    for name in ("altered file", "not JSON", "a list", "label order", *TEXTS):
        bundle = shutil.copytree(tiny_bundle, tmp_path / f"{name}.hpedge")
        refuse(driver, bundle, *REFUSED[name])
    driver(tiny_bundle, [GOOD_PICTURE, PICTURES["stride"][0]], code=3)
