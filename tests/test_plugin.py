"""The TensorRT plugin without TensorRT: how it calls the CUDA driver, a test double of which computes the head on the
CPU (tests/cpp/fake_libcuda.cpp), what it refuses, and, where there is a GPU, the real driver and the real kernel.
test_plugin_rtx.py has a real TensorRT library load it.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hpdval_edge.kernels import dual_view_scores

ROOT = Path(__file__).resolve().parents[1]
CPP = ROOT / "tests" / "cpp"
SOURCES = sorted((ROOT / "kernels" / "plugin").glob("*.cpp"))
DECLARATIONS = CPP / "nvinfer_declarations"
FLAGS = ("-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden")
# TensorRT's numbers.
TYPES = {"fp32": 0, "fp16": 1, "int32": 3}
SMALL = {"images": 2, "patches": 7, "classes": 5, "width": 24}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="no g++: apt install g++")]


def run(*command, **options):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, **options)


def compile_(*arguments, flags=FLAGS):
    done = run("g++", *flags, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]


def build(folder, flags=FLAGS):
    """The plugin, the driver program and, in a folder of its own, the test double of libcuda."""
    (folder / "fake").mkdir()
    headers = ("-isystem", DECLARATIONS)
    fake, plugin, driver = folder / "fake" / "libcuda.so.1", folder / "libhpedge_head_plugin.so", folder / "driver"
    compile_("-shared", CPP / "fake_libcuda.cpp", "-o", fake, "-Wl,-soname,libcuda.so.1", flags=flags)
    compile_("-shared", *headers, *SOURCES, "-o", plugin, "-ldl", flags=flags)
    compile_(*headers, CPP / "plugin_driver.cpp", "-o", driver, "-pthread", "-ldl", flags=flags)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("plugin"))


def random_inputs(dtype, images, patches, classes, width):
    rng = np.random.default_rng(images + 10 * patches + 100 * classes)
    shapes = {
        "cls": (images, width),
        "patches": (images, patches, width),
        "text_global": (classes, width),
        "text_local": (classes, width),
    }
    kind = {"fp16": np.float16, "fp32": np.float32}[dtype]
    return {name: rng.standard_normal(shape).astype(kind) for name, shape in shapes.items()}


class Call:
    """One call of the driver program, on files in a folder of its own."""

    def __init__(self, built, folder, *, data="fp16", sizes=None, patch_scores=0, **keys):
        self.built, self.folder, sizes = built, folder, SMALL | (sizes or {})
        self.inputs = random_inputs(data, **sizes)
        for name, array in self.inputs.items():
            array.tofile(folder / name)
        half, block_c = int(data == "fp16"), keys.get("block_c", 2)
        self.kernel(f"hpedge test kernel width=24 half={half} block_c={block_c} outputs={1 + patch_scores}")
        shapes = {name: (TYPES[data], *array.shape) for name, array in self.inputs.items()}
        images, count, classes = sizes["images"], sizes["patches"], sizes["classes"]
        shapes["scores"] = (TYPES["fp32"], images, classes)
        if patch_scores:
            shapes["patch_scores"] = (TYPES["fp32"], images, count, classes)
        self.shapes = {name: shape for name, (_, *shape) in shapes.items()}
        fields = {"topk": 3, "alpha": 0.4, "block_c": block_c, "threads": 128, "shared_bytes": 10240}
        fields |= {"max_patches": 64, "width": 24, "patch_scores": patch_scores, "dtype": data, "entry": "head"}
        tensors = {f"@{name}": f"{kind}:{','.join(map(str, shape))}" for name, (kind, *shape) in shapes.items()}
        self.keys = {**fields, **tensors, **keys}

    def kernel(self, text):
        (self.folder / "kernel").write_text(text)

    def run(self, cuda=None):
        """Exit code and what was printed; ``cuda`` holds libcuda.so.1, the test double otherwise."""
        keys = [f"{name}={value}" for name, value in self.keys.items() if value is not None]
        environment = {"LD_LIBRARY_PATH": str(self.built / "fake" if cuda is None else cuda)}
        plugin = self.built / "libhpedge_head_plugin.so"
        done = run(self.built / "driver", plugin, self.folder, *keys, env=environment)
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout

    def output(self, name, suffix=""):
        return np.fromfile(self.folder / (name + suffix), np.float32).reshape(self.shapes[name])


def check_outputs(driver, *, k, alpha, atol):
    """Against the specification, for every thread that ran."""
    arrays = (x.astype(np.float32) for x in driver.inputs.values())
    expected = dual_view_scores(*arrays, k=k, alpha=alpha, backend="numpy", return_patch_scores=True)
    threads = driver.keys.get("run_threads", 1) * driver.keys.get("run_contexts", 1)
    for suffix in ("", *map(str, range(1, threads))):
        np.testing.assert_allclose(driver.output("scores", suffix), expected[0], atol=atol)
        if driver.keys["patch_scores"]:
            np.testing.assert_allclose(driver.output("patch_scores", suffix), expected[1], atol=atol)


@pytest.fixture
def call(built, tmp_path):
    return lambda **keys: Call(built, tmp_path, **keys)


@pytest.mark.parametrize("patch_scores", [0, 1])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("sizes, k, alpha", [
    ({}, 3, 0.4),
    ({"images": 1, "patches": 64, "classes": 1}, 64, 1.0),
    # The kernel clamps k.
    ({"images": 3, "patches": 1, "classes": 4}, 32, 0.0),
], ids=["small", "most patches", "one patch"])  # fmt: skip
def test_scores(call, dtype, patch_scores, sizes, k, alpha):
    """Planted: the grid's sides exchanged, one block of classes too few, n_patches and n_classes exchanged, alpha as an
    integer, the outputs exchanged, the second always or never passed; each failed."""
    driver = call(data=dtype, patch_scores=patch_scores, sizes=sizes, topk=k, alpha=alpha)
    code, printed = driver.run()
    assert code == 0, printed
    check_outputs(driver, k=k, alpha=alpha, atol=1e-6)


def test_launch(call):
    """Planted: threads and shared memory exchanged, the kernel's text cut by one; each failed."""
    driver = call(block_c=4, threads=256, shared_bytes=1024)
    code, printed = driver.run()
    assert code == 0, printed
    size = (driver.folder / "kernel").stat().st_size
    assert printed.splitlines() == [
        "creator DualViewScores 1 hpdval_edge",
        "outputs 1 supported 11111",
        "configurePlugin 0",
        f"module of {size} bytes in context 1",
        "launch grid 2 2 1 block 256 1 1 shared 1024",
        "run 0",
    ]


def test_much_shared_memory_is_asked_for(call):
    """Planted: no attribute set; failed."""
    code, printed = call(shared_bytes=49153).run()
    assert code == 0, printed
    assert "attribute 8 is 49153\nlaunch" in printed
    assert "attribute" not in call(shared_bytes=49152).run()[1]
    code, printed = call(shared_bytes=200000).run()
    assert (code, "launch" in printed) == (1, False)
    assert "this GPU has no 200000 bytes of shared memory for the kernel head: CUDA error 1 (unknown)" in printed


def test_threads_share_a_module_and_contexts_do_not(call):
    """Planted: no cache, a cache blind to contexts, one for each clone; each failed."""
    driver = call(run_threads=4, run_contexts=2)
    code, printed = driver.run()
    assert code == 0, printed
    assert re.findall(r"in context (\d)", printed) == ["1", "2"]
    assert printed.count("launch") == 8
    check_outputs(driver, k=3, alpha=0.4, atol=1e-6)


def test_nothing_is_launched_for_nothing(call):
    """Planted: no test for B = 0; failed, as an empty grid is the driver's error."""
    for sizes in ({"images": 0}, {"classes": 0}):
        code, printed = call(sizes=sizes).run()
        assert (code, "launch" in printed) == (0, False), printed


# What TensorRT is told in the two phases: configurePlugin, then onShapeChange and enqueue.
REFUSED = {
    "width": ({"width": 32}, "rows have 24 numbers and the kernel takes 32; export this model again", "1 1"),
    "too many patches": (
        {"max_patches": 6},
        "an image has 7 patches and the kernel takes 1 to 6; export the model for this image size",
        "1 1",
    ),
    "no patch": ({"sizes": {"patches": 0}}, "an image has 0 patches and the kernel takes 1 to 64; export", "1 1"),
    "images": ({"sizes": {"images": 65536, "patches": 1, "classes": 0}}, "65536 images and the kernel takes", "1 1"),
    "labels": ({"@text_local": "1:4,24"}, "patches [2, 7, 24], text_global [5, 24], text_local [4, 24]", "1 1"),
    "batch": ({"@patches": "1:1,7,24"}, "got cls [2, 24], patches [1, 7, 24]", "1 1"),
    "rank": ({"@cls": "1:2,24,1"}, "inputs must be cls [B, E], patches [B, N, E], text_global [C, E]", "1 1"),
    # supportsFormatCombination has said so before.
    "dtype": ({"dtype": "fp32"}, "cls must be fp32, which the kernel takes, and is fp16; build the engine", "0 1"),
    "mixed": ({"@patches": "0:2,7,24"}, "patches must be fp16, which the kernel takes, and is fp32", "0 1"),
    "integers": ({"@cls": "3:2,24"}, "cls must be fp16, which the kernel takes, and is TensorRT's type 3", "0 1"),
    "output": ({"@scores": "1:2,5"}, "scores must be fp32 and is fp16", "0 1"),
    "alignment": ({"offset": 8}, "cls must start at a multiple of 16 bytes; give TensorRT another address", "0 1"),
    "entry": ({"entry": "tail"}, "the kernel's image has no entry tail: CUDA error 500 (unknown)", "0 1"),
}


@pytest.mark.parametrize("keys, message, codes", REFUSED.values(), ids=REFUSED)
def test_refused(call, keys, message, codes):
    """Planted, each seen to fail: each of the checks left out."""
    code, printed = call(**keys).run()
    configured, ran = codes.split()
    assert code == 1
    assert f"configurePlugin {configured}\n" in printed and f"run {ran}\n" in printed
    said = re.findall("^log 1 DualViewScores: (.*)$", printed, re.MULTILINE)
    assert len(said) == codes.count("1") and all(message in sentence for sentence in said), printed
    assert "launch" not in printed


def test_types_are_those_of_the_kernel(call):
    """Planted: any type supported that the other inputs have; failed."""
    assert "outputs 2 supported 111111" in call(patch_scores=1).run()[1]
    assert "outputs 1 supported 00001" in call(dtype="fp32").run()[1]
    assert "outputs 1 supported 10111" in call(**{"@patches": "0:2,7,24"}).run()[1]
    assert "outputs 1 supported 11110" in call(**{"@scores": "1:2,5"}).run()[1]


FIELDS = {
    "missing": ({"dtype": None}, "attribute dtype is missing; export the bundle again"),
    "dtype": ({"dtype": "bf16"}, "attribute dtype must be fp16 or fp32, got bf16"),
    "threads": ({"threads": 2048}, "attribute threads must be 1 to 1024, got 2048"),
    "alpha": ({"alpha": 1.5}, "attribute alpha must be 0 to 1, got 1.5"),
    "NaN": ({"alpha": "nan"}, "attribute alpha must be 0 to 1, got nan"),
    "k": ({"topk": 0}, "attribute topk must be 1 to 2147483647, got 0"),
    "empty": ({"entry": ""}, "attribute entry is empty; export the bundle again"),
    "outputs": ({"patch_scores": 2}, "attribute patch_scores must be 0 to 1, got 2"),
}


@pytest.mark.parametrize("keys, message", FIELDS.values(), ids=FIELDS)
def test_no_plugin_of_wrong_fields(call, keys, message):
    """Planted: NaN as an alpha, "" as an entry; each failed."""
    driver = call()
    driver.keys |= keys
    code, printed = driver.run()
    assert code == 1
    assert printed.splitlines()[1:] == [
        x for x in printed.splitlines() if x.startswith(f"log 1 DualViewScores: {message}")
    ]


def test_a_node_of_one_output_need_not_say_so(call):
    """Planted: the attribute asked for always; failed."""
    driver = call()
    del driver.keys["patch_scores"]
    code, printed = driver.run()
    assert code == 0, printed


def test_a_kernel_that_the_driver_refuses(call):
    """Planted: the driver's log left out; failed."""
    driver = call()
    driver.kernel("other text")
    code, printed = driver.run()
    assert (code, "launch" in printed) == (1, False)
    assert (
        "log 1 DualViewScores: the kernel head cannot be loaded on this GPU; export the bundle with the --target that "
        "`hpedge doctor` names; the driver says: fake log: other: CUDA_ERROR_INVALID_PTX (a PTX JIT compilation failed)"
    ) in printed


def test_no_driver(call, tmp_path):
    """Building needs none. Planted: the driver asked for in configurePlugin; failed."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "libcuda.so.1").touch()
    code, printed = call().run(tmp_path / "none")
    assert code == 1
    assert "configurePlugin 0\nlog 1 DualViewScores: the CUDA driver cannot be loaded (" in printed
    assert "install NVIDIA's driver, or start the container with --runtime nvidia\nrun 1\n" in printed


def test_a_driver_that_is_too_old(call, tmp_path):
    (tmp_path / "old").mkdir()
    source = tmp_path / "old.c"
    names = ("cuInit", "cuDeviceGet", "cuCtxCreate_v2", "cuCtxSetCurrent", "cuStreamCreate", "cuMemAlloc_v2")
    names += ("cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2", "cuStreamSynchronize", "cuModuleLoadDataEx")
    source.write_text("".join(f"int {name}() {{ return 0; }}\n" for name in names))
    compile_("-shared", "-x", "c", source, "-o", tmp_path / "old" / "libcuda.so.1", flags=("-fPIC",))
    code, printed = call().run(tmp_path / "old")
    assert code == 1
    assert "libcuda.so.1 has no cuCtxGetId; it belongs to a driver older than CUDA 12.0, install a newer" in printed


@pytest.mark.gpu
@pytest.mark.parametrize("patch_scores", [0, 1])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_on_the_gpu(call, tmp_path, monkeypatch, dtype, patch_scores):
    """The PTX of sm_80 through the real driver, in two contexts and from two threads."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    from hpdval_edge.export import aot

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {"targets": "sm_80", "dtype": dtype, "width": 24, "patches": 64, "patch_scores": bool(patch_scores)}
    (entry,) = aot.build(**options, out=tmp_path / "kernels").manifest["kernels"]
    launch = entry["launch"]
    sizes = {"images": 3, "patches": 49, "classes": 37}
    keys = {"block_c": entry["constants"]["BLOCK_C"], "threads": launch["block"][0], "entry": launch["entry"]}
    keys |= {"shared_bytes": launch["shared_bytes"], "max_patches": launch["max_patches"]}
    driver = call(data=dtype, sizes=sizes, patch_scores=patch_scores, run_threads=2, run_contexts=2, **keys)
    driver.kernel((tmp_path / "kernels" / entry["ptx"]["file"]).read_text())
    code, printed = driver.run(os.environ.get("LD_LIBRARY_PATH", ""))
    assert code == 0, printed
    check_outputs(driver, k=3, alpha=0.4, atol=1e-5)
