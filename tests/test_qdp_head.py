"""The head as PTX inside a TensorRT engine: which kernel is taken, what is refused, and a contract with TensorRT.

Contract tests run under the real Python bindings of two TensorRTs with empty libraries behind them, see
`qdp_contract.py`. They prove that TensorRT's own checks accept the plugin and what it is then told to launch. They do
not prove that TensorRT builds an engine with it or that a GPU runs it: not run.
"""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpdval_edge.errors import BadData, MissingDependency, UsageError
from hpdval_edge.export import aot
from hpdval_edge.export.aot_compile import Binary
from hpdval_edge.trt import qdp_head
from hpdval_edge.trt.kernel_files import KernelFile

SCRIPT = Path(__file__).with_name("qdp_contract.py")
# `make .venv/contract/10.16` puts them there: two versions cannot be installed side by side.
BINDINGS = Path(sys.prefix) / "contract"
VERSIONS = ("10.16", "11.4")
# Symbols that the bindings want from each library.
LIBRARIES = {
    "nvinfer": (
        *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
        *("getBuilderPluginRegistry", "getPluginRegistry"),
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
}
SCORES = {"k": 32, "alpha": 0.35}
ELEMENT = {"fp16": "DataType.HALF", "fp32": "DataType.FLOAT"}
CASES = {
    "Orin": {"dtype": "fp16", "capability": 87, "shape": (4, 196, 40, 512)},
    "Thor, many labels": {"dtype": "fp16", "capability": 110, "shape": (1, 256, 1000, 512), "alpha": 0.0},
    "one picture, one label": {"dtype": "fp16", "capability": 87, "shape": (1, 49, 1, 512), "k": 1, "alpha": 1.0},
    "float32": {"dtype": "fp32", "capability": 87, "shape": (2, 196, 41, 512)},
    "an encoder in float32": {"dtype": "fp16", "capability": 87, "shape": (2, 196, 41, 512), "network": "fp32"},
    "patch scores": {"dtype": "fp16", "capability": 87, "shape": (2, 196, 33, 512), "patch scores": True},
}
REFUSED = {
    "outputs": (
        {"border": ("scores", "patches")},
        "the network's outputs must be cls and patches, got scores, patches.",
    ),
    "patches": (
        {"shape": (1, 257, 40, 512), "bundle patches": 196},
        "the head's kernels take at most 256 patches and the model has 257.",
    ),
    "patches, known late": (
        {"shape": (1, 257, 40, 512), "bundle patches": 196, "patches known late": True},
        "the head's kernels take at most 256 patches and the model has 257.",
    ),
    "width": (
        {"shape": (1, 196, 40, 768), "bundle width": 512},
        "the head's kernels are for embeddings of 512 and the model's have 768.",
    ),
    "chip": (
        {"capability": 75},
        "holds no GPU kernel for sm_75 at fp16 (it holds sm_110 at fp16, sm_80 at fp16, sm_87",
    ),
}


def build_kernels(folder: Path) -> None:
    """The folders that cases name by dtype and patch scores."""
    sizes = {"width": 512, "patches": 196}
    aot.build(targets="sm_80,sm_87,sm_110", dtype="fp16", out=folder / "fp16", **sizes)
    aot.build(targets="sm_87", dtype="fp32", out=folder / "fp32", **sizes)
    aot.build(targets="sm_87", dtype="fp16", out=folder / "patch scores", patch_scores=True, **sizes)


@pytest.fixture(scope="module")
def fake_kernels(tmp_path_factory):
    """Folders with real manifests of kernels that are none, so that no compiler is needed."""

    def compiled(variant):
        facts = {"registers": 64, "stack_bytes": 0, "spill_bytes": 0, "shared_bytes": 17408, "entry": "head"}
        return Binary(f"ptx {variant.stem}".encode(), b"cubin", facts)

    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aot, "compile_variant", compiled)
        patch.setattr(aot, "triton_version", lambda: "3.8.0")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        build_kernels(folder)
    add_launch(folder / "fp16" / "manifest.json", "sm_87")
    return folder


def add_launch(manifest: Path, target: str) -> None:
    """Give ``target`` a second kernel, of 64 labels a block; an export writes one a chip so far."""
    content = json.loads(manifest.read_text())
    (first,) = (entry for entry in content["kernels"] if entry["target"] == target)
    ptx = f"{first['ptx']['file']}.64".encode()
    manifest.with_name(ptx.decode()).write_bytes(ptx)
    second = json.loads(json.dumps(first))
    second["ptx"] |= {"file": ptx.decode(), "sha256": hashlib.sha256(ptx).hexdigest()}
    second["constants"]["BLOCK_C"] = 64
    second["launch"]["block"] = [256, 1, 1]
    manifest.write_text(json.dumps({**content, "kernels": [*content["kernels"], second]}))


def stand_ins(folder: Path, major: str) -> Path:
    """Libraries that hold nothing, under the names that the bindings ask for."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc: the libraries behind TensorRT's bindings cannot be stood in for")
    for name, symbols in LIBRARIES.items():
        source = "".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols)
        library = f"lib{name}.so.{major}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", "-xc", "-", "-o", str(folder / library)]
        subprocess.run(command, input=source, text=True, check=True)
    return folder


def run_contract(version: str, kernels: Path, cases: dict, folder: Path) -> dict:
    """What the script answers under the bindings of ``version``."""
    bindings = BINDINGS / version
    if not bindings.is_dir():
        pytest.skip(f"no {bindings}: make .venv/contract/{version} puts TensorRT's Python bindings there")
    (folder / "cases.json").write_text(json.dumps(cases))
    libraries = stand_ins(folder, version.split(".")[0])
    command = [sys.executable, str(SCRIPT), str(bindings), str(libraries), str(kernels), str(folder / "cases.json")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=VERSIONS)
def contract(request, fake_kernels, tmp_path_factory):
    """The answers to all cases under one version."""
    refused = {name: {**SCORES, **CASES["Orin"], **changes} for name, (changes, _) in REFUSED.items()}
    cases = {**{name: {**SCORES, **case} for name, case in CASES.items()}, **refused}
    answers = run_contract(request.param, fake_kernels, cases, tmp_path_factory.mktemp("contract"))
    assert answers["version"].startswith(request.param)
    return answers


def test_contract_registers_once_and_late(contract):
    """Contract test. Planted mistakes: tensorrt imported with the module; no look at what is defined already."""
    assert not contract["imported"]
    assert contract["again"]


@pytest.mark.parametrize("name", CASES)
def test_contract_shapes_and_types(contract, name):
    """Contract test. Planted mistakes: scores of the inputs' dtype; patch scores [B, C, N]; fp16 offered for fp32."""
    answer, (b, n, c, _) = contract["cases"][name], CASES[name]["shape"]
    extra = [[b, n, c]] if "patch scores" in CASES[name] else []
    assert answer["shapes"] == [[b, c], *extra]
    assert answer["types"] == ["DataType.FLOAT"] * (1 + len(extra))
    inputs = ELEMENT[CASES[name]["dtype"]]
    assert answer["combinations"] == [[kind, "TensorFormat.LINEAR"] for kind in [inputs] * 4 + answer["types"]]


@pytest.mark.parametrize("name", CASES)
def test_contract_network(contract, name):
    """Contract test. Planted mistakes: texts not cast; cls and patches left as outputs; texts of a fixed number."""
    answer = contract["cases"][name]
    operands = ["cls", "patches", "text_global", "text_local"]
    assert answer["operands"] == [[operand, ELEMENT[CASES[name]["dtype"]]] for operand in operands]
    assert answer["inputs"] == [[text, "DataType.FLOAT", [-1, 512]] for text in operands[2:]]
    assert answer["outputs"] == ["scores", "patch_scores"][: len(answer["shapes"])]


@pytest.mark.parametrize("name", CASES)
def test_contract_launches(contract, fake_kernels, name):
    """Contract test. Planted mistakes: pictures in the grid's first side; the second kernel for the first tactic;
    alpha rounded to an integer; scalars that are no int32; labels before patches."""
    case = {**SCORES, **CASES[name]}
    b, n, c, _ = case["shape"]
    folder = fake_kernels / ("patch scores" if "patch scores" in case else case["dtype"])
    manifest = json.loads((folder / "manifest.json").read_text())
    entries = [kernel for kernel in manifest["kernels"] if kernel["target"] == f"sm_{case['capability']}"]
    launches = contract["cases"][name]["launches"]
    assert sorted(launches) == [str(i + 1) for i in range(len(entries))]
    for entry, (_, launch) in zip(entries, sorted(launches.items()), strict=True):
        labels = -(-c // entry["constants"]["BLOCK_C"])
        assert [launch[f"grid_{side}"] for side in "xyz"] == [labels, b, 1]
        assert [launch[f"block_{side}"] for side in "xyz"] == entry["launch"]["block"]
        assert launch["shared_mem"] == 17408
        assert launch["entry"] == "head"
        assert launch["ptx"] == (folder / entry["ptx"]["file"]).read_text()
        assert launch["scalars"] == [n, c, case["k"], struct.unpack("<i", struct.pack("<f", case["alpha"]))[0]]
        assert launch["scalar_types"] == ["PluginArgType.INT PluginArgDataType.INT32"]


@pytest.mark.parametrize("name", REFUSED)
def test_contract_refuses_in_one_sentence(contract, name):
    """Contract test. Planted mistakes: sizes looked at early only, and late only, where TensorRT keeps the sentence."""
    answer = contract["cases"][name]
    assert (answer["error"], answer["while"]) == ("UsageError", "building" if "late" in name else "adding")
    assert REFUSED[name][1] in answer["refused"]


@pytest.fixture(scope="module")
def compiled_kernels(tmp_path_factory):
    """The same folders as `fake_kernels`, from the compiler."""
    if not any((BINDINGS / version).is_dir() for version in VERSIONS):
        pytest.skip(f"no {BINDINGS}: make .venv/contract/10.16 puts TensorRT's Python bindings there")
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        build_kernels(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("version", VERSIONS)
def test_contract_of_compiled_kernels(version, compiled_kernels, tmp_path):
    """Contract test: entry, parameters, threads and shared memory of the PTX are those that TensorRT is told.

    Planted mistakes: 32 threads more than .reqntid; a fifth scalar.
    """
    cases = {name: {**SCORES, **case} for name, case in CASES.items()}
    answers = run_contract(version, compiled_kernels, cases, tmp_path)["cases"]
    for name, answer in answers.items():
        for launch in answer["launches"].values():
            ptx = launch["ptx"]
            assert f".visible .entry {launch['entry']}(" in ptx
            outputs = len(answer["shapes"])
            kinds = [line.split()[1] for line in ptx.split(".entry")[1].split(")")[0].splitlines() if ".param" in line]
            assert kinds == [".u64"] * 4 + [".u32"] * len(launch["scalars"]) + [".u64"] * outputs, name
            assert f".reqntid {launch['block_x']}\n" in ptx
            assert launch["block_y"] == launch["block_z"] == 1
            assert 0 < launch["shared_mem"] <= 48 * 1024


def test_import_loads_neither_tensorrt_nor_torch_nor_triton(tmp_path):
    """Planted mistake: `import tensorrt` at the top."""
    code = (
        "import sys; sys.modules['tensorrt'] = sys.modules['torch'] = sys.modules['triton'] = None;"
        "import hpdval_edge.trt.qdp_head"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    ("module", "version", "reason"),
    [
        ("tensorrt", "10.3.0.30", "needs TensorRT 10.9 or later; 10.3.0.30 is installed."),
        ("tensorrt", "10.14.1.48", "broken in TensorRT 10.14; 10.14.1.48 is installed."),
        ("tensorrt", "11.5.0", "unknown for a TensorRT newer than 11.4; 11.5.0 is installed."),
        ("tensorrt_rtx", "1.7.1.116", "TensorRT-RTX takes no PTX from Python (qdp-aot); the ways left are onnx and"),
        ("tensorrt", "10.9.0.34", None),
        ("tensorrt", "11.4.0.106", None),
    ],
)
def test_which_tensorrt(module, version, reason):
    """Planted mistake: TensorRT-RTX told by its version only."""
    trt = SimpleNamespace(__name__=module, __version__=version)
    if reason is None:
        assert qdp_head.refuses(trt) is None
        return
    assert reason in qdp_head.refuses(trt)
    with pytest.raises(MissingDependency, match="TensorRT"):
        qdp_head.register(trt)


def kernel(data: bytes, **changes) -> KernelFile:
    facts = {"target": "sm_87", "kind": "ptx", "entry": "head", "dtype": "fp16", "width": 512, "block_c": 16}
    facts |= {"threads": 128, "shared_bytes": 17408, "max_patches": 256, "patch_scores": False}
    return KernelFile(data=data, sha256=hashlib.sha256(data).hexdigest(), **{**facts, **changes})


def test_kernels_are_kept_by_their_content():
    """Planted mistake: kept by their entry's name, so that a second model's kernels replace the first's."""
    first, second = (kernel(b"first"),), (kernel(b"first", block_c=64),)
    names = [qdp_head.keep(kernels) for kernels in (first, second, first)]
    assert names[0] == names[2] != names[1]


def test_an_altered_kernel_is_refused():
    """Planted mistake: the hash not compared."""
    with pytest.raises(BadData, match="the kernel for sm_87 was altered"):
        qdp_head.keep((replace(kernel(b"ptx"), data=b"other"),))


def test_a_dtype_that_the_head_does_not_take_is_refused(monkeypatch):
    """Planted mistake: looked at after the bundle is read."""
    monkeypatch.setattr(qdp_head, "register", lambda trt: None)
    with pytest.raises(UsageError, match="the head's inputs are fp16 or fp32, got 'bf16'"):
        qdp_head.add_head(None, None, bundle="none", capability=87, dtype="bf16", patch_scores=False)
