"""The backend openvino against ONNX Runtime and the golden pictures, and what it refuses."""

import importlib.util
import shutil
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest

from hpdval_edge import Predictor, engine_openvino, load_bundle, runtimes
from hpdval_edge.errors import BadData, CheckFailed, MissingDependency, UsageError
from hpdval_edge.golden import compare
from hpdval_edge.images import INPUTS
from hpdval_edge.runtimes import Backend, EngineOptions, load_engine

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture(scope="session")
def bundle(tiny_bundle):
    return load_bundle(tiny_bundle)


@pytest.fixture
def engine(bundle):
    return load_engine(bundle, "openvino", EngineOptions(threads=1))


@needs_openvino
def test_agrees_with_onnx_runtime_on_golden_pictures(bundle, engine):
    """Planted mistakes: scores and patch scores swapped; OpenVINO's own precision on a CPU with bfloat16."""
    assert compare(bundle, engine)[0] <= 2e-3
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    rivals = load_engine(bundle, "onnxruntime", EngineOptions(threads=1))
    for ours, expected in zip(engine(images), rivals(images), strict=True):
        assert (ours.dtype, ours.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(ours, expected, atol=2e-3)


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize(("precision", "kind", "allowed"), [("fp32", "uint8", 1e-4), ("int8", "float16", 1e-1)])
def test_other_precisions_and_inputs_agree(tiny_run, tmp_path, monkeypatch, precision, kind, allowed):
    """The tiny bundle is fp16 and float32. Planted mistake: every input as float32."""
    from hpdval_edge.export import int8
    from hpdval_edge.export.export import export
    from hpdval_edge.training.run_folder import find_run

    assert {kind, "float32"} < {*INPUTS}
    monkeypatch.chdir(shutil.copytree(tiny_run, tmp_path / "work"))
    monkeypatch.setattr(int8, "measure_speed", lambda *_: int8.Speed(1.5, 1.4, 1.6, 9))
    out = tmp_path / "other.hpedge"
    run = find_run("tiny")
    export(run, precision=precision, targets=("onnx",), out=out, image_dtype=kind, int8_budget=100)
    other = load_bundle(out)
    errors = [compare(other, load_engine(other, name))[0] for name in ("onnxruntime", "openvino")]
    assert max(errors) <= allowed
    assert abs(errors[0] - errors[1]) <= allowed / 10


@needs_openvino
def test_batches_and_labels_of_any_number(bundle, engine):
    """Planted mistakes: the first batch's size, or the bundle's number of labels, fixed into the compiled model."""
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    whole = engine(images)[0]
    np.testing.assert_allclose(np.concatenate([engine(images[:1])[0], engine(images[1:])[0]]), whole, atol=1e-5)
    banks = {name: getattr(bundle, name)[[3, 1]] for name in ("text_global", "text_local")}
    other = engine.with_banks(replace(bundle, **banks))
    np.testing.assert_allclose(other(images)[0], whole[:, [3, 1]], atol=1e-5)
    np.testing.assert_allclose(engine(images)[0], whole, atol=1e-5)


@needs_openvino
def test_threads_share_one_engine(bundle, engine):
    """Planted mistakes: one request for all, which OpenVINO says is busy; a request that is not given back."""
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    expected, found = engine(images)[0], {}

    def work(row):
        found[row] = [engine(images[row : row + 1])[0] for _ in range(30)]

    threads = [Thread(target=work, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row, scores in found.items():
        np.testing.assert_allclose(np.concatenate(scores), np.repeat(expected[row : row + 1], 30, 0), atol=1e-5)


@needs_openvino
def test_settings_reach_openvino(bundle, monkeypatch):
    """OpenVINO takes no more threads than there are cores. Planted mistakes: all threads for each call, or one for all;
    the precision, the number of streams or that of requests is not passed on.
    """
    monkeypatch.setattr(engine_openvino, "usable_cpus", lambda: 5)
    found = [engine_openvino._settings("openvino", threads) for threads in (0, 1, 2, 7)]
    assert [settings["NUM_STREAMS"] for settings in found] == [1, 4, 2, 1]
    assert [settings["INFERENCE_NUM_THREADS"] for settings in found] == [0, 4, 4, 7]
    assert {settings["INFERENCE_PRECISION_HINT"] for settings in found} == {"f32"}
    assert engine_openvino._settings("openvino-bf16", 1)["INFERENCE_PRECISION_HINT"] == "bf16"
    engine = load_engine(bundle, "openvino", EngineOptions(threads=1))
    model = engine.requests.queue[0].get_compiled_model()
    assert model.get_property("INFERENCE_PRECISION_HINT").to_dtype() == np.float32
    assert (model.get_property("ENABLE_CPU_PINNING"), engine.requests.qsize()) == (False, 4)


@needs_openvino
def test_bfloat16_is_checked_on_golden_pictures(bundle, monkeypatch):
    """Computed in float32 here, so that any CPU will do. Planted mistake: bfloat16 without the check."""
    monkeypatch.setitem(engine_openvino.PRECISIONS, "openvino-bf16", "f32")
    assert Predictor(bundle, backend="openvino-bf16").engine.name == "openvino-bf16"
    monkeypatch.setitem(engine_openvino.BF16_TOLERANCE, "fp16", 0.0)
    with pytest.raises(CheckFailed, match=r"differ from the golden ones by .* \(\d+ labels change\), 0\.0e\+00 is"):
        Predictor(bundle, backend="openvino-bf16")


@needs_openvino
def test_bfloat16_never_falls_back(bundle):
    """Planted mistake: OpenVINO's silent float32 on a CPU without bfloat16."""
    import openvino

    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has bfloat16")
    with pytest.raises(MissingDependency, match=r"instructions for bfloat16.* computes in float32, use --backend open"):
        load_engine(bundle, "openvino-bf16")


@needs_openvino
def test_a_model_that_is_none(bundle, monkeypatch):
    """Planted mistake: OpenVINO's own exception, three lines of its source files."""
    monkeypatch.setattr(type(bundle), "read", lambda *_: b"no model")
    with pytest.raises(BadData, match=r"OpenVINO [\d.]+.* cannot load .*model\.onnx: Unable to read the model"):
        load_engine(bundle, "openvino")


def test_integers_for_tensorrt_are_refused(bundle, monkeypatch):
    """On a CPU without VNNI they were seen to be off by 0.2. Planted mistake: run as they are."""
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: True)
    odd = replace(bundle, manifest=replace(bundle.manifest, precision="int8-fp16"))
    with pytest.raises(UsageError, match="openvino: 8 bits are for TensorRT here; export with --int8"):
        load_engine(odd, "openvino")


def test_absent_openvino_names_the_extra(bundle, monkeypatch):
    """Planted mistake: an ImportError."""
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"openvino is not installed; pip install 'hpdval-edge\[openvino\]'"):
        load_engine(bundle, "openvino")


def test_auto_takes_the_first_that_is_installed(bundle, monkeypatch):
    """Planted mistakes: auto is ONNX Runtime, whatever is installed; OpenVINO before ONNX Runtime."""

    def stand_in(backend: Backend, installed: set[str]) -> Backend:
        lack = None if backend.name in installed else "absent"
        return replace(backend, load=lambda *_: backend.name, lacks=lambda: lack)

    def chosen(*installed: str) -> object:
        monkeypatch.setattr(runtimes, "BACKENDS", tuple(stand_in(backend, {*installed}) for backend in every))
        return load_engine(bundle)

    every = runtimes.BACKENDS
    assert chosen("onnxruntime", "openvino", "openvino-bf16", "pt2") == "onnxruntime"
    assert chosen("openvino", "openvino-bf16", "pt2") == "openvino"
    assert chosen("tensorrt", "onnxruntime", "openvino") == "tensorrt"
