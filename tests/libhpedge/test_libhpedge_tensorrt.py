"""libhpedge with TensorRT against a test double (tests/cpp/libhpedge/tensorrt_double): which engine it takes, what it
hands over and what it refuses, under sanitizers. The double is no TensorRT: nothing here shows that a real one runs."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpdval_edge import Predictor, load_bundle
from hpdval_edge.bundle import MODEL
from hpdval_edge.images import INPUTS
from hpdval_edge.trt.engine_cache import RECORD, EngineKey, EngineRecord, engines_folder, keep_engine

TYPES = {"float32": 0, "float16": 1, "uint8": 5}
pytestmark = pytest.mark.slow


class Rgb:
    """A packed picture of random levels."""

    def __init__(self, width, height, seed):
        self.pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    def argument(self, folder):
        path = folder / f"rgb{len([*folder.glob('rgb*')])}"
        path.write_bytes(self.pixels.tobytes())
        return f"picture=0,{self.pixels.shape[1]},{self.pixels.shape[0]},0,0,0,{path}"


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    """A copy, for engines lie beside a bundle."""
    return shutil.copytree(tiny_bundle, tmp_path / "model.hpedge")


@pytest.fixture
def driver(drivers):
    made = drivers("sanitized")
    made.keys["backend"] = None
    return made


@pytest.fixture
def keep(tmp_path):
    """Keep a plan of the double beside a bundle as `hpedge build` does; its folder."""

    def keep(bundle, *, batch=2, labels=8, image="", side=None, host_code=False, software="tensorrt 10.3.0.30", **key):
        manifest = load_bundle(bundle).manifest
        sides = (manifest.grid[0] * manifest.grid[1], side or manifest.image_size, manifest.embed_dim)
        plan = tmp_path / "plan"
        plan.write_text(" ".join(map(str, (batch, labels, *sides, TYPES[image or manifest.input], int(host_code)))))
        known = {"model": manifest.files[MODEL], "gpu": "Double", "driver": "12.6", "chips": ("sm_87",), "head": "onnx"}
        record = EngineRecord(EngineKey(software=software, **{**known, **key}), "", "fp16", 3, batch, labels, 1.0)
        return keep_engine(engines_folder(bundle), plan, replace(record, host_code=host_code))

    return keep


def check(driver, bundle, pictures, thread=0):
    """What the double computes, see double.cpp."""
    predictor = Predictor(bundle, "onnxruntime", threads=1)
    images = predictor.prepare([picture.pixels for picture in pictures])
    means = images.astype(np.float64).reshape(len(images), -1).mean(1)
    banks = [bank.astype(np.float64).sum(1) for bank in (predictor.bundle.text_global, predictor.bundle.text_local)]
    patches = np.arange(1, np.prod(predictor.bundle.manifest.grid) + 1)
    scores, patch_scores = np.outer(means, banks[0]), np.einsum("b,n,c->bnc", means, patches, banks[1])
    np.testing.assert_allclose(driver.output("scores", scores.shape, thread), scores, rtol=1e-4, atol=1e-5)
    found = driver.output("patch_scores", patch_scores.shape, thread)
    np.testing.assert_allclose(found, patch_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", INPUTS)
def test_batches_in_parts(driver, bundles, keep, tmp_path, kind):
    """Five pictures with an engine of two; two threads on one predictor take turns."""
    bundle = shutil.copytree(bundles[kind], tmp_path / "model.hpedge")
    keep(bundle)
    pictures = [Rgb(30 + i, 50 - i, i) for i in range(5)]
    assert "backend tensorrt grid 4 4\n" in driver(bundle, pictures, callers=2, rounds=3)
    for thread in range(2):
        check(driver, bundle, pictures, thread)
    driver(bundle, pictures, want="s")
    assert driver.output("patch_scores", -1).size == 0


def test_auto_goes_where_an_engine_is(driver, bundle, keep):
    assert "backend onnxruntime" in driver(bundle)
    keep(bundle)
    assert "backend tensorrt" in driver(bundle)
    assert "backend onnxruntime" in driver(bundle, backend="onnxruntime")
    assert "backend onnxruntime" in driver(bundle, environment={"DOUBLE_NO_GPU": "1"})
    printed = driver(bundle, code=4, backend="tensorrt", environment={"DOUBLE_NO_GPU": "1"})
    assert printed == "status 4: there is no NVIDIA GPU with a driver here; see `hpedge doctor`.\n"


def alter(folder):
    (folder / "engine.plan").write_bytes(b"2 8 16 32 24 0 0 ")


def damage(folder):
    (folder / RECORD).write_text("{")


def strip(folder):
    values = json.loads((folder / RECORD).read_text())
    del values["key"]["gpu"]
    (folder / RECORD).write_text(json.dumps(values))


OTHERS = {
    "model": ({"model": "0" * 64}, None),
    "version": ({"software": "tensorrt 10.3.1"}, None),
    "longer version": ({"software": "tensorrt 10.3.01"}, None),
    "rtx": ({"software": "tensorrt-rtx 10.3.0"}, None),
    "gpu": ({"gpu": "Orin"}, None),
    "labels": ({"labels": 3}, None),
    "altered plan": ({}, alter),
    "damaged record": ({}, damage),
    "record without a GPU": ({}, strip),
    "no plan": ({}, lambda folder: (folder / "engine.plan").unlink()),
}


@pytest.mark.parametrize("key, change", OTHERS.values(), ids=OTHERS)
def test_engines_that_are_left_out(driver, bundle, keep, key, change):
    """However new; an older one that fits is taken."""
    folder = keep(bundle, **key)
    if change:
        change(folder)
    printed = driver(bundle, code=4, backend="tensorrt")
    assert "there is no engine for this bundle, TensorRT 10.3.0 and this GPU in " in printed
    assert f"{engines_folder(bundle)}; run `hpedge build {bundle}` first." in printed
    os.utime(keep(bundle, software="tensorrt 10.3.0", driver="12.5") / RECORD, (1, 1))
    assert "backend tensorrt" in driver(f"{bundle}/")


def test_the_newest_engine_is_taken(driver, bundle, keep):
    """The older one would be refused: it is for pictures of another size."""
    os.utime(keep(bundle, side=48, driver="1") / RECORD, (1, 1))
    keep(bundle, driver="2")
    driver(bundle, [Rgb(20, 20, 1)], backend="tensorrt")


def test_code_in_a_plan(driver, bundle, keep):
    """Is run from a plan whose record says so and whose sha256 is right, never from a named one."""
    folder = keep(bundle, host_code=True)
    driver(bundle, [Rgb(20, 20, 1)], backend="tensorrt")
    assert "(host code is not allowed)" in driver(bundle, code=4, engine=folder / "engine.plan")


def test_a_named_plan(driver, bundle, keep, tmp_path):
    plan = keep(bundle).rename(tmp_path / "elsewhere") / "engine.plan"
    assert "backend onnxruntime" in driver(bundle)
    assert "backend tensorrt" in driver(bundle, engine=plan)
    printed = driver(bundle, code=2, engine=tmp_path / "absent")
    assert f"engine {tmp_path / 'absent'} cannot be read (No such file or directory).\n" in printed
    plan.write_text("no plan")
    printed = driver(bundle, code=4, engine=plan)
    assert f"TensorRT 10.3.0 cannot load {plan} on this GPU (not a plan of the double); build it here with" in printed


REFUSED = {
    "type": ({"image": "uint8"}, 3, "has no image of the bundle's type; it is not of "),
    "size": ({"side": 48}, 3, "does not take image of the bundle's shape (the double takes no such shape)."),
    "labels": ({"labels": 3}, 2, "takes at most 3 labels and the bundle has 4; run `hpedge build` with --labels."),
}


@pytest.mark.parametrize("options, code, message", REFUSED.values(), ids=REFUSED)
def test_engines_of_another_bundle(driver, bundle, keep, options, code, message):
    plan = keep(bundle, **options) / "engine.plan"
    assert message in driver(bundle, [Rgb(20, 20, 1)], code=code, engine=plan)


def test_no_memory_on_the_gpu(driver, bundle, keep):
    keep(bundle)
    printed = driver(bundle, code=4, backend="tensorrt", environment={"DOUBLE_BYTES": "100"})
    assert printed == "status 4: CUDA: cudaMalloc failed: an error of the double.\n"


def test_real_headers(tools):
    """The source compiles with TensorRT's own headers, where they are."""
    folders = [os.environ.get(name) for name in ("TENSORRT_INCLUDE_DIR", "CUDA_RUNTIME_INCLUDE_DIR")]
    if not all(folders):
        pytest.skip("TENSORRT_INCLUDE_DIR and CUDA_RUNTIME_INCLUDE_DIR do not name TensorRT's and CUDA's headers")
    source = Path(__file__).resolve().parents[2] / "hpdval_edge" / "libhpedge"
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{source / 'include'}"]
    tools.run("g++", *flags, *(f"-isystem{folder}" for folder in folders), source / "src" / "tensorrt_engine.cpp")
