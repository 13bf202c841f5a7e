"""INT8: ranges, smoothing, Q/DQ in the graph, the choice of pictures, and what keeps or refuses the result."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpdval_edge.bundle import load_bundle
from hpdval_edge.errors import CheckFailed, UsageError
from hpdval_edge.export import calibrate_int8, int8
from hpdval_edge.export import export as module
from hpdval_edge.export.calibrate_int8 import balanced_rows, choose_pictures
from hpdval_edge.export.deployed import Deployed
from hpdval_edge.export.graph import write_onnx
from hpdval_edge.export.quantise import CPU, TENSORRT, layers, load_graph, quantise, quantised_tensors, round_weight
from hpdval_edge.export.ranges import BINS, Histogram
from hpdval_edge.export.smooth import best_factors, norms, smooth
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.model import load_model
from hpdval_edge.training.run_folder import find_run
from hpdval_edge.training.thresholds import F1


def histogram(*parts):
    found = Histogram()
    for part in parts:
        found.add(np.asarray(part, np.float32))
    return found


def test_a_histogram_does_not_depend_on_the_order_of_its_parts():
    """Planted mistake: doubled bins whose old counts stay where they were."""
    values = np.random.default_rng(0).exponential(size=20_000).astype(np.float32)
    parts = [values[values < 0.3], values[values >= 0.3], np.zeros(5000), -values[:50]]
    grown = histogram(*parts)
    assert (grown.counts.sum(), grown.zeros, grown.negative) == (20_050, 5000, True)
    everything = np.concatenate([np.abs(part) for part in parts])
    for share in (50.0, 99.0, 99.9, 100.0):
        exact = np.percentile(everything, share, method="inverted_cdf")
        assert exact * (1 - 1e-5) <= grown.percentile(share) <= exact + 2 * grown.width
    assert grown.width <= 2 * values.max() / BINS


def test_entropy_cuts_outliers_and_keeps_what_has_none():
    """Planted mistakes: outliers left out of the clipped histogram, which then cuts everything; never clipping."""
    rng = np.random.default_rng(0)
    bulk = rng.standard_normal(200_000)
    outliers = histogram(bulk, [40.0])
    assert 2.5 < outliers.entropy(128) < 8
    assert outliers.percentile(100) == pytest.approx(40, rel=1e-3)
    even = histogram(rng.uniform(-1, 1, 200_000))
    assert even.entropy(256) > 0.97
    assert Histogram().entropy(128) == 0


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="must be finite, got inf"):
        histogram([1.0, np.inf])


def test_weights_are_rounded_channel_by_channel():
    """Planted mistakes: one scale for all, a scale of 0 for a channel of zeros, -128 among the integers."""
    weight = np.array([[1.0, 0.0, -1e-3], [-2.0, 0.0, 5e-4]], np.float32)
    integers, scale = round_weight(weight, axis=1, top=127)
    assert integers.tolist() == [[64, 0, -127], [-127, 0, 64]]
    assert scale == pytest.approx([2 / 127, 1e-6, 1e-3 / 127])
    assert round_weight(weight, axis=0, top=63)[0].min() == -63


def outlier_rows(channels=64):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((256, channels)).astype(np.float32)
    rows[:, :2] *= 60
    return rows, rng.standard_normal((channels, 96)).astype(np.float32) / 8


def test_smoothing_is_chosen_where_channels_have_outliers():
    """Planted mistakes: the factors inverted, smoothing whatever the error."""
    rows, weight = outlier_rows()
    factors = best_factors(rows, [weight], 127)
    assert factors[:2].min() > 3 * factors[2:].max()
    even = np.clip(rows[:, 2:], -1, 1)
    assert best_factors(np.sign(even), [np.sign(weight[2:])], 127) is None


@pytest.fixture(scope="module")
def float_model(tiny_run, tmp_path_factory):
    """The tiny run's float32 and float16 ONNX files, and text banks."""
    folder = tmp_path_factory.mktemp("onnx")
    paths, banks = {}, {}
    for name in ("fp32", "fp16"):
        model, _, _ = load_model(tiny_run / "runs" / "tiny" / "weights" / "best.safetensors")
        banks = {"text_global": model.text_global.numpy(), "text_local": model.text_local.numpy()}
        paths[name] = folder / f"{name}.onnx"
        write_onnx(Deployed(model, half=name == "fp16"), paths[name], image_size=32, embed_dim=24)
    return paths, banks


def run_onnx(model, image, banks, rules=CPU):
    """Scores of a model; one for TensorRT unfused, for its 8-bit weights overflow where the CPU has no VNNI."""
    options = onnxruntime.SessionOptions()
    if rules is not CPU:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["scores"], {"image": image, **banks})[0]


def largest_values(model, image, banks, rules):
    found = calibrate_int8.histograms(model, quantised_tensors(model, rules), iter([image]), banks)
    return {name: one.percentile(100) for name, one in found.items()}


@pytest.fixture
def image():
    return np.random.default_rng(1).standard_normal((5, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize(("name", "rules"), [("fp32", CPU), ("fp16", TENSORRT)])
def test_every_layer_reads_integers_and_the_head_none(float_model, image, name, rules):
    """Planted mistakes: shared weights rounded once, the embedding layer left out, scales of another float type, an
    activation's scale as a list of one, which older ONNX Runtimes refuse where they fuse additions.
    """
    paths, banks = float_model
    model = load_graph(str(paths[name]))
    before = model.SerializeToString()
    limits = largest_values(model, image, banks, rules)
    rounded = quantise(model, limits, unsigned=(), rules=rules)
    assert model.SerializeToString() == before
    onnx.checker.check_model(rounded, full_check=True)
    makers = {output: node for node in rounded.graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in rounded.graph.initializer}
    linear = [node for node in rounded.graph.node if node.op_type in ("MatMul", "Gemm")]
    quantised = [node for node in linear if node.input[1].endswith("_weight_rounded")]
    # 2 blocks of qkv, proj, fc1 and fc2, and the embedding layer of class token and patches.
    assert len(quantised) == 10
    for node in quantised:
        for position in (0, 1):
            dequantise = makers[node.input[position]]
            assert dequantise.op_type == "DequantizeLinear"
            scale = numpy_helper.to_array(constants[dequantise.input[1]])
            assert (scale.dtype, scale.ndim) == ({"fp32": np.float32, "fp16": np.float16}[name], position)
            assert not numpy_helper.to_array(constants[dequantise.input[2]]).any()
        weight = numpy_helper.to_array(constants[makers[node.input[1]].input[0]])
        assert (weight.dtype, int(np.abs(weight.astype(int)).max())) == (np.int8, rules.weight_top)
    # Attention twice in each block, and the head's two similarities.
    for node in linear:
        if node not in quantised:
            assert {makers[value].op_type for value in node.input}.isdisjoint({"DequantizeLinear"})
    assert len(linear) - len(quantised) == 6
    assert [value.name for value in rounded.graph.input] == ["image", "text_global", "text_local"]
    assert [value.name for value in rounded.graph.output] == ["scores", "patch_scores"]
    assert all(tensor.data_type != TensorProto.FLOAT or name == "fp32" for tensor in constants.values() if tensor.dims)
    difference = np.abs(run_onnx(rounded, image, banks, rules) - run_onnx(model, image, banks)).max()
    assert 0 < difference < 0.03


def test_batch_and_labels_stay_open(float_model, image):
    paths, banks = float_model
    model = load_graph(str(paths["fp32"]))
    rounded = quantise(model, largest_values(model, image, banks, CPU), unsigned=(), rules=CPU)
    bank = np.random.default_rng(0).standard_normal((300, 24)).astype(np.float32)
    for batch in (1, 3):
        scores = run_onnx(rounded, image[:batch], {"text_global": bank, "text_local": bank})
        assert scores.shape == (batch, 300)


def test_smoothing_changes_no_score(float_model, image):
    """Planted mistakes: the shift not divided, a constant that two norms share changed in place."""
    paths, banks = float_model
    model = load_graph(str(paths["fp32"]))
    expected = run_onnx(model, image, banks)
    assert len(norms(model)) == 4
    rows = calibrate_int8.sample_rows(model, iter([image]), banks)
    assert {value.shape for value in rows.values()} == {(20, 32)}
    for value in rows.values():
        value[:, 3] *= 50
    assert smooth(model, rows, 127) == 4
    assert sum("_smooth" in tensor.name for tensor in model.graph.initializer) == 4 * 3
    np.testing.assert_allclose(run_onnx(model, image, banks), expected, atol=2e-6)


def small_network():
    """Two convolutions and a ReLU each, with a shortcut, onto scores; the first reads the picture."""
    rng = np.random.default_rng(0)

    def constant(name, *shape):
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 3, name)

    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1", "bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["e"], group=4),
        helper.make_node("Add", ["e", "b"], ["f"]),
        helper.make_node("ReduceMean", ["f", "axes"], ["g"], keepdims=0),
        helper.make_node("Gemm", ["g", "w3"], ["scores"], transB=1),
    ]
    weights = [constant("w0", 8, 3, 3, 3), constant("w1", 8, 8, 3, 3), constant("bias", 8), constant("w2", 8, 2, 1, 1)]
    weights += [constant("w3", 5, 8), numpy_helper.from_array(np.array([2, 3]), "axes")]
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 5])],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_convolutions_are_rounded_and_their_chains_where_the_runtime_wants_them():
    """Planted mistakes: the picture's convolution rounded, a scale per input channel, the sum left on unrounded b."""
    model = small_network()
    assert [layer.node.output[0] for layer in layers(model)] == ["c", "e", "scores"]
    assert quantised_tensors(model, TENSORRT) == ["b", "d", "g"]
    assert quantised_tensors(model, CPU) == ["b", "d", "e", "g"]
    image = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    for rules, kind in ((CPU, TensorProto.UINT8), (TENSORRT, TensorProto.INT8)):
        limits = largest_values(model, image, {}, rules)
        rounded = quantise(model, limits, unsigned=("b", "d"), rules=rules)
        zeros = {tensor.name: tensor.data_type for tensor in rounded.graph.initializer}
        assert (zeros["b_zero"], zeros["g_zero"]) == (kind, TensorProto.INT8)
        scales = {tensor.name: tensor.dims for tensor in rounded.graph.initializer}
        assert (list(scales["e_weight_scale"]), list(scales["scores_weight_scale"])) == ([8], [5])
        add = next(node for node in rounded.graph.node if node.op_type == "Add")
        assert "b_rounded" in add.input
        expected = run_onnx(model, image, {})
        assert np.abs(run_onnx(rounded, image, {}, rules) - expected).max() < 0.05 * np.abs(expected).max()


def test_calibration_pictures_are_balanced():
    """Planted mistakes: the first pictures, one twice, only the common labels in those held out."""
    targets = np.zeros((1000, 3), np.uint8)
    targets[:900, 0] = targets[900:960, 1] = targets[960:990, 2] = 1
    rows = balanced_rows(targets, 90)
    assert len(set(rows.tolist())) == 90
    assert targets[rows].sum(axis=0).tolist() == [30, 30, 30]
    assert len(balanced_rows(targets, 2000)) == 1000
    train = LabelledImages(Path("/"), tuple(map(str, range(1000))), targets, tuple("abc"))
    seen, held_out = choose_pictures(train)
    assert (len(seen), len(held_out)) == (512, 64)
    assert not set(seen.paths) & set(held_out.paths)
    assert held_out.class_counts.min() >= 3


@pytest.fixture
def work(tiny_run, monkeypatch):
    monkeypatch.chdir(tiny_run)
    return tiny_run


@pytest.mark.slow
def test_int8_export_end_to_end(work, tmp_path, monkeypatch, run_hpedge):
    """Planted mistakes: the float model kept, the speed not looked at, no word about few pictures."""
    checked = []
    monkeypatch.setattr(int8, "measure_speed", lambda *_: int8.Speed(1.5, 1.4, 1.6, 9))
    monkeypatch.setattr(int8, "check_speed", lambda speed, _: checked.append(speed.low))
    (work / "hpedge.toml").write_text("[export]\nint8_budget = 30.0\n")
    out = tmp_path / "small.hpedge"
    code, text, err = run_hpedge("export", "tiny", "--int8", "--out", out)
    assert code == 0, err
    assert "note: int8 is calibrated with all 48 training pictures, 9 of them to choose by" in err
    assert "int8: 10 layers, " in text
    assert "1.50x the speed of float32" in text
    bundle = load_bundle(out)
    assert (bundle.manifest.precision, bundle.fitted_at) == ("int8", "int8")
    kinds = {node.op_type for node in onnx.load_from_string(bundle.read("model.onnx")).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} < kinds
    assert "int8" in find_run("tiny").read_json("thresholds.json")
    assert checked == [1.4]


@pytest.mark.slow
def test_int8_of_halves_is_not_timed(work, tmp_path, monkeypatch, run_hpedge):
    """Planted mistake: float32 weights beside the integers."""
    monkeypatch.setattr(int8, "measure_speed", None)
    (work / "hpedge.toml").write_text("[export]\nint8_budget = 30.0\n")
    out = tmp_path / "half.hpedge"
    code, text, err = run_hpedge("export", "tiny", "--int8", "--fp16", "--out", out, "--json")
    assert code == 0, err
    report = json.loads(text)
    assert (report["precision"], report["int8"]["speed"]) == ("int8-fp16", None)
    model = onnx.load_from_string(load_bundle(out).read("model.onnx"))
    matrices = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert matrices == {TensorProto.FLOAT16, TensorProto.INT8}


def test_a_loss_beyond_the_budget_is_refused():
    """Planted mistakes: the loss of both signs, the average over labels without positives."""
    targets = np.tile(np.array([[1, 0, 0], [0, 1, 0]], np.uint8), (10, 1))
    rng = np.random.default_rng(0)
    exact = (targets + 0.1 * rng.random(targets.shape)).astype(np.float32)
    worse = exact + rng.standard_normal(exact.shape).astype(np.float32)
    accuracy = int8.compare_scores(exact, worse, targets, F1)
    assert accuracy.float_map == 100
    assert accuracy.decisions == 60
    assert 0 < accuracy.flips < 60
    with pytest.raises(CheckFailed, match=r"int8 loses .* allows 1; nothing was written\. Export with --fp16\."):
        int8.check_budget(accuracy, 1.0)
    int8.check_budget(accuracy, accuracy.loss)
    int8.check_budget(replace(accuracy, float_map=50.0, int8_map=60.0), 1.0)


def test_speed_is_measured_in_pairs(monkeypatch):
    """Planted mistakes: the ratio upside down, the median in place of the lower quartile."""
    monkeypatch.setattr(int8, "SECONDS", 0.0)
    ticks = iter(range(10_000))
    monkeypatch.setattr(int8.time, "perf_counter", lambda: next(ticks))

    class Session:
        def __init__(self, model):
            self.cost = model

        def run(self, *_):
            for _ in range(self.cost):
                next(ticks)

    monkeypatch.setattr(int8, "open_session", Session)
    speed = int8.measure_speed(5, 2, {})
    assert (speed.median, speed.low, speed.high, speed.pairs) == (2, 2, 2, int8.FEWEST_PAIRS)
    int8.check_speed(speed, int8.Accuracy(50, 50, 0, 0, 1, 1))
    with pytest.raises(CheckFailed, match="not faster"):
        int8.check_speed(replace(speed, low=1.0), int8.Accuracy(50, 50, 0, 0, 1, 1))


def test_int8_is_refused_for_other_formats(work, tmp_path):
    for targets in (("onnx", "pt2"), ("torchscript",)):
        with pytest.raises(UsageError, match=r"precision int8.* is for onnx, triton-repo and deepstream"):
            module.export(find_run("tiny"), precision="int8", targets=targets, out=tmp_path / "a.hpedge")


RTX = """
import sys, tensorrt_rtx as trt
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
assert parser.parse_from_file(sys.argv[1]), [parser.get_error(i).desc() for i in range(parser.num_errors)]
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
for value in (network.get_input(i) for i in range(network.num_inputs)):
    profile.set_shape(value.name, *([n if size == -1 else size for size in value.shape] for n in (1, 2, 4)))
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
assert engine is not None
kinds = [network.get_layer(i).type for i in range(network.num_layers)]
print(kinds.count(trt.LayerType.QUANTIZE), kinds.count(trt.LayerType.DEQUANTIZE))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rules"), [("fp32", CPU), ("fp16", TENSORRT)])
def test_tensorrt_rtx_builds_it(float_model, image, tmp_path, name, rules):
    """Without a GPU; in a process of its own, for the library may abort. Planted mistake: a scale of 0."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    paths, banks = float_model
    model = load_graph(str(paths[name]))
    limits = largest_values(model, image, banks, rules)
    limits[next(iter(limits))] = 0.0
    rounded = quantise(model, limits, unsigned=(), rules=rules)
    onnx.save(rounded, tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", RTX, tmp_path / "model.onnx"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    # 10 activations and weights; the class token and the patches are two of them.
    assert done.stdout.split() == ["10", "20"]
