"""The TensorRT plugin as CMake builds it, loaded by a real TensorRT library: TensorRT-RTX parses a node, has the plugin
say its shapes and types, and writes it into an engine, all without a GPU. Nothing is launched.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DECLARATIONS = ROOT / "tests" / "cpp" / "nvinfer_declarations"
# cmake of this environment, also when it is not activated.
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
MISSING = [tool for tool in ("cmake", "g++") if not shutil.which(tool, path=PATH)]
TOOLS = pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)}: pip install cmake, apt install g++")
pytestmark = [pytest.mark.slow, TOOLS]
PATCHES, WIDTH = 49, 64


def run(*command, **options):
    environment = {**os.environ, "PATH": PATH}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, env=environment, **options)


def configure(folder, *options):
    return run("cmake", "-S", ROOT / "kernels" / "plugin", "-B", folder, "-G", "Unix Makefiles", *options)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """libhpedge_head_plugin.so, compiled with the tests' declarations."""
    folder = tmp_path_factory.mktemp("cmake")
    done = configure(folder, f"-DTENSORRT_INCLUDE_DIR={DECLARATIONS}", f"-DCUDA_RUNTIME_INCLUDE_DIR={DECLARATIONS}")
    assert done.returncode == 0, done.stderr
    done = run("cmake", "--build", folder)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return folder / "libhpedge_head_plugin.so"


def test_library_shows_two_names_and_needs_no_other_library(plugin):
    """Planted: default visibility, libcuda linked; each failed."""
    if not shutil.which("readelf"):
        pytest.skip("no readelf: apt install binutils")
    dynamic = run("readelf", "--dynamic", plugin).stdout
    needed = {name.split(".")[0] for name in re.findall(r"NEEDED.*\[(.*)\]", dynamic)}
    assert needed <= {"libstdc++", "libm", "libgcc_s", "libc", "libdl", "libpthread"}
    symbols = run("readelf", "--dyn-syms", "--wide", plugin).stdout
    defined = [line.split()[-1] for line in symbols.splitlines() if re.search(r"(GLOBAL|WEAK) +DEFAULT +\d+ ", line)]
    assert {name for name in defined if not name.startswith("_Z")} == {"getCreators", "setLoggerFinder"}
    # Templates of the standard library may be there.
    assert not [name for name in defined if re.match("_Z(TV|TI|TS)?NK?6hpdval", name)]


NO_HEADERS = {
    "nowhere": (
        [],
        "NvInferRuntime.h of TensorRT 10.0 or later was not found; on a Jetson run: apt install libnvinfer",
    ),
    "no CUDA": (
        [f"-DTENSORRT_INCLUDE_DIR={DECLARATIONS}"],
        "cuda_runtime_api.h was not found, which TensorRT's headers",
    ),
    "old": (["-DTENSORRT_INCLUDE_DIR=old"], "holds the headers of a TensorRT before 10.0, which has no IPluginV3"),
    "wrong": (["-DTENSORRT_INCLUDE_DIR=empty"], "NvInferRuntime.h of TensorRT 10.0 or later was not found; on a"),
}


@pytest.mark.parametrize("options, message", NO_HEADERS.values(), ids=NO_HEADERS)
def test_headers_that_are_missing(tmp_path, options, message):
    """Planted: no check of the version; failed, as CMake was content."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "NvInferRuntime.h").write_text("class IPluginCreator;\n")
    options = [option.replace("=old", f"={tmp_path}/old").replace("=empty", f"={tmp_path}") for option in options]
    # As on a machine that has none: nothing outside an empty folder is searched.
    options += [f"-DCMAKE_FIND_ROOT_PATH={tmp_path}", "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY"]
    done = configure(tmp_path / "build", *options)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """Folder of the head's binaries for sm_80, and the manifest's line on them."""
    pytest.importorskip("triton")
    from hpdval_edge.export import aot

    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.delenv("TRITON_INTERPRET", raising=False)
        report = aot.build(targets="sm_80", dtype="fp16", width=WIDTH, patches=PATCHES, out=folder, patch_scores=True)
    (entry,) = report.manifest["kernels"]
    return folder, entry


def attributes(kernel, kind):
    """Of the node, for the PTX or the cubin."""
    folder, entry = kernel
    launch = entry["launch"]
    return {
        "plugin_version": "1",
        "plugin_namespace": "hpdval_edge",
        "topk": 8,
        "alpha": 0.4,
        "kernel": (folder / entry[kind]["file"]).read_bytes(),
        "entry": launch["entry"],
        "block_c": entry["constants"]["BLOCK_C"],
        "threads": launch["block"][0],
        "shared_bytes": launch["shared_bytes"],
        "max_patches": launch["max_patches"],
        "width": WIDTH,
        "patch_scores": 1,
        "dtype": entry["dtype"],
    }


def write_model(path, values, width=WIDTH):
    """One ordinary node, and the plugin's behind it."""
    from onnx import TensorProto, helper, save

    def tensor(name, *shape, kind=TensorProto.FLOAT16):
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [tensor("cls", "B", width), tensor("tokens", "B", PATCHES, width)]
    inputs += [tensor("text_global", "C", width), tensor("text_local", "C", width)]
    outputs = [tensor("scores", "B", "C", kind=TensorProto.FLOAT)]
    outputs += [tensor("patch_scores", "B", PATCHES, "C", kind=TensorProto.FLOAT)]
    names = ["cls", "patches", "text_global", "text_local"]
    nodes = [
        helper.make_node("Neg", ["tokens"], ["patches"], name="neg"),
        helper.make_node(
            "DualViewScores", names, ["scores", "patch_scores"], name="head", domain="hpdval_edge", **values
        ),
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("hpdval_edge", 1)]
    graph = helper.make_graph(nodes, "head", inputs, outputs)
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """An empty library that is called libtensorrt_rtx.so and loads libtensorrt_rtx.so.1."""
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    if found is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'hpdval-edge[rtx]'")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").touch()
    real = Path(found.submodule_search_locations[0])
    made = folder / "libtensorrt_rtx.so"
    name = "-Wl,--no-as-needed,-soname,libtensorrt_rtx.so"
    done = run("gcc", "-shared", "-fPIC", folder / "shim.c", "-o", made, name, f"-L{real}", "-l:libtensorrt_rtx.so.1")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def build_engine(plugin, shim, tmp_path):
    """Build an engine of a node with these attributes; returns the report and the plan, None where there is none."""

    def build(values, **options):
        write_model(tmp_path / "model.onnx", values, **options)
        plan = tmp_path / "out.plan"
        done = run(sys.executable, ROOT / "tests" / "plugin_rtx.py", plugin, shim, tmp_path / "model.onnx", plan)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1]), plan.read_bytes() if plan.exists() else None

    return build


@pytest.mark.parametrize("kind", ["ptx", "cubin"])
def test_an_engine_holds_the_plugin_and_its_kernel(build_engine, kernel, kind):
    """Planted: a function of the declarations in another place (the process died), dimensions declared as int32, the
    kernel's field cut by two bytes (the last is the parser's NUL), scores of the inputs' type; each failed."""
    values = attributes(kernel, kind)
    report, plan = build_engine(values)
    assert not report["errors"]
    assert report["layers"] == [["neg", "UNARY"], ["head", "PLUGIN_V3"]]
    assert report["outputs"] == [["scores", [-1, -1], "FLOAT"], ["patch_scores", [-1, PATCHES, -1], "FLOAT"]]
    assert values["kernel"] in plan
    assert b"DualViewScores" in plan and b"hpdval_edge" in plan


def test_refusals_reach_the_logger(build_engine, kernel):
    """Planted: the logger's interface declared as TensorRT 10 has it; failed, nothing was logged."""
    values = attributes(kernel, "ptx")
    report, plan = build_engine(values, width=2 * WIDTH)
    assert plan is None
    message = f"DualViewScores: rows have {2 * WIDTH} numbers and the kernel takes {WIDTH}; export this model again"
    assert report["errors"][0] == message
    del values["dtype"]
    report, plan = build_engine(values)
    assert plan is None and "layers" not in report
    assert report["errors"][0] == "DualViewScores: attribute dtype is missing; export the bundle again"
