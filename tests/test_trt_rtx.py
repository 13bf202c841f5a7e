"""Real TensorRT-RTX builds, without a GPU, of what `hpedge export --fp16` writes: it parses, types and fuses.

Nothing was run on a GPU; the engines' structure is read from their text.
"""

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hpdval_edge.export.deployed import Deployed
from hpdval_edge.export.graph import write_onnx
from hpdval_edge.export.quantise import TENSORRT, load_graph, quantise, quantised_tensors
from hpdval_edge.training.model import DualView
from hpdval_edge.training.student import EncoderSpec, Student, build_encoder
from hpdval_edge.trt import graph_edits
from hpdval_edge.trt.builder import Job
from hpdval_edge.trt.child import Failure, run_job
from hpdval_edge.trt.kernel_files import KernelFile

WIDTH, TOPK, ALPHA = 512, 32, 0.35
MODELS = {"ViT-Ti": "vit_tiny_patch16_224", "ViT-B": "vit_base_patch16_224"}
RTX = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="no tensorrt_rtx: pip install 'hpdval-edge[rtx]'"
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def model(request, tmp_path_factory):
    """The fp16 graph of a whole random ViT, as an export writes it."""
    torch.manual_seed(0)
    spec = EncoderSpec(request.param, 224, (0.5,) * 3, (0.5,) * 3)
    student = Student(spec, build_encoder(spec), embed="mlp", embed_act="tanh", embed_dim=WIDTH)
    dual = DualView(student, torch.randn(40, WIDTH), torch.randn(40, WIDTH), alpha=ALPHA, topk=TOPK)
    path = tmp_path_factory.mktemp("vit") / "model.onnx"
    write_onnx(Deployed(dual, half=True), path, image_size=224, embed_dim=WIDTH)
    return graph_edits.read_model(path.read_bytes())


def run_onnx(model, images=2, labels=5):
    rng = np.random.default_rng(0)
    feed = {"image": rng.standard_normal((images, 3, 224, 224)).astype(np.float32)}
    feed |= {name: rng.standard_normal((labels, WIDTH)).astype(np.float32) for name in ("text_global", "text_local")}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["scores", "patch_scores"], feed)


def test_every_rung_of_the_ladder_computes_the_same(model):
    """Planted mistakes: the softmax cast but not its product; a rung that changes nothing."""
    onnx.checker.check_model(model, full_check=True)
    expected = run_onnx(model)
    for name in graph_edits.rungs(model)[1:]:
        edited = graph_edits.on_rung(model, name)
        onnx.checker.check_model(edited, full_check=True)
        for ours, theirs in zip(run_onnx(edited), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
        kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in onnx.shape_inference.infer_shapes(edited).graph.value_info
        }
        softmax = [node for node in edited.graph.node if node.op_type == "Softmax"]
        assert len(softmax) == 12
        assert {kinds[node.input[0]] for node in softmax} == {onnx.TensorProto.FLOAT}
        halves = [tensor for tensor in edited.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
        assert bool(halves) == (name == "float32 attention")


def structure(plan: bytes) -> dict[str, int]:
    """Kernels of an engine in all, those of products, fused attention, a plugin, rounding to 8 bits, and a top-k.

    Read from the engine's text, which is undocumented: good for a smoke test, no word on speed.
    """
    text = b"\n".join(re.findall(rb"[\x20-\x7e\t]{6,}", plan)).decode()
    kernels = Counter(re.findall(r"^\s*function=\{ name=([A-Za-z_0-9]+)", text, re.MULTILINE))
    return {
        "kernels": sum(kernels.values()),
        "products": len(re.findall(r"^\s*fully_connected=\{", text, re.MULTILINE)),
        "attention": kernels["_gemm_mha_v2"],
        "plugin": len(re.findall(r"^\s*custom_layer=\{", text, re.MULTILINE)),
        "rounding": sum(count for name, count in kernels.items() if "MinMaxRoun" in name),
        "topk": sum(count for name, count in kernels.items() if "topk" in name.lower()),
    }


def build(model, folder, **options):
    """The engine of a graph for two chips, with any number of pictures up to 8 and of labels up to 1,024."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    bank = [[1, WIDTH], [40, WIDTH], [1024, WIDTH]]
    shapes = {"image": [[n, 3, 224, 224] for n in (1, 1, 8)], "text_global": bank, "text_local": bank}
    job = Job("tensorrt-rtx", str(path), str(folder / "plan"), "", shapes, 1024, 3, capabilities=[86, 89], **options)
    done = run_job(job, timeout_s=600)
    plan = Path(job.plan).read_bytes()
    assert done["bytes"] == len(plan)
    return structure(plan)


@RTX
def test_engines_hold_what_the_graph_says(model, tmp_path, plugin, kernel):
    """Attention is fused in half precision, not on the rung after it; the plugin's head is one layer more.

    Planted mistakes: the plain head left in front of the plugin; attention scaled twice, which is not fused.
    """
    encoder = build(graph_edits.encoder_only(model), tmp_path)
    plain = build(model, tmp_path)
    assert (encoder["attention"], plain["attention"]) == (12, 12)
    assert (encoder["topk"], plain["topk"]) == (0, 1)
    assert plain["products"] == encoder["products"] + 2
    assert plain["rounding"] == 0
    # Once is enough for these: ViT-B's builds take their time.
    for rung in graph_edits.rungs(model)[1:] if model.ByteSize() < 50e6 else ():
        careful = build(graph_edits.on_rung(model, rung), tmp_path)
        assert (careful["attention"], careful["products"]) == (0, plain["products"] + 24)
    fused = graph_edits.with_head_node(model, kernel, topk=TOPK, alpha=ALPHA)
    carried = build(fused, tmp_path, plugins=[str(plugin)], embed=True)
    assert carried["plugin"] == encoder["plugin"] + 1
    assert (carried["attention"], carried["topk"], carried["products"]) == (12, 0, encoder["products"])
    plan = (tmp_path / "plan").read_bytes()
    assert kernel.data in plan and plugin.read_bytes()[:4096] in plan


@RTX
def test_eight_bits_build_and_round_inside_other_kernels(model, tmp_path):
    """Attention stays fused, in half precision. Planted mistake: a graph without its Q/DQ."""
    (tmp_path / "halves.onnx").write_bytes(model.SerializeToString())
    halves = load_graph(str(tmp_path / "halves.onnx"))
    limits = dict.fromkeys(quantised_tensors(halves, TENSORRT), 6.0)
    rounded = build(quantise(halves, limits, unsigned=(), rules=TENSORRT), tmp_path)
    assert rounded["rounding"] >= 24
    assert rounded["attention"] == 12


@RTX
def test_a_refused_graph_is_explained(model, tmp_path):
    """Planted mistake: the parser's words are lost."""
    broken = graph_edits.encoder_only(model)
    next(node for node in broken.graph.node if node.op_type == "Softmax").op_type = "NoSuchOperator"
    with pytest.raises(Failure, match=r"the ONNX parser refuses the graph: .*NoSuchOperator"):
        build(broken, tmp_path)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """libhpedge_head_plugin.so, compiled with the tests' declarations of TensorRT's classes."""
    if not shutil.which("g++"):
        pytest.skip("no g++: apt install g++")
    root = Path(__file__).resolve().parents[1]
    library = tmp_path_factory.mktemp("plugin") / "libhpedge_head_plugin.so"
    headers = root / "tests" / "cpp" / "nvinfer_declarations"
    sources = sorted((root / "kernels" / "plugin").glob("*.cpp"))
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-isystem", headers]
    subprocess.run(["g++", *flags, *sources, "-o", library, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """PTX of the head for sm_80, which every later chip runs, with patch scores."""
    pytest.importorskip("triton")
    from hpdval_edge.export import aot

    folder = tmp_path_factory.mktemp("kernels")
    report = aot.build(targets="sm_80", dtype="fp16", width=WIDTH, patches=196, out=folder, patch_scores=True)
    (entry,) = report.manifest["kernels"]
    launch = entry["launch"]
    return KernelFile(
        "sm_80", "ptx", (folder / entry["ptx"]["file"]).read_bytes(), entry["ptx"]["sha256"], launch["entry"], "fp16",
        WIDTH, entry["constants"]["BLOCK_C"], launch["block"][0], launch["shared_bytes"], launch["max_patches"], True,
    )  # fmt: skip
