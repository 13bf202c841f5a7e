"""``hpedge build`` and its runtime against test doubles of TensorRT and CUDA (tests/doubles), each in a process.

They show the order of our calls and what we make of the answers; nothing here ran TensorRT or a GPU.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOUBLES = Path(__file__).with_name("doubles")
HPEDGE = [sys.executable, "-c", "import sys; sys.argv[0] = 'hpedge'; from hpdval_edge.cli import main; main()"]


@pytest.fixture
def board(tiny_bundle, tmp_path):
    """A folder with the tiny bundle, in which ``run(*arguments, **environment)`` is hpedge on a doubled GPU."""
    shutil.copytree(tiny_bundle, tmp_path / "tiny.hpedge")

    def run(*arguments, code=None, **environment):
        command = [sys.executable, "-c", code] if code else HPEDGE
        return subprocess.run(
            [*command, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(DOUBLES), "DOUBLE_LOG": str(tmp_path / "levels"), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    run.folder = tmp_path
    return run


def report(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def builds(board):
    """Levels of the builds that TensorRT was asked for."""
    path = board.folder / "levels"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_an_engine_is_built_checked_and_found_again(board):
    """Planted mistakes: the key without the GPU's name; a record read without the plan's sha256."""
    first = report(board("build", "tiny.hpedge", "--json"))
    assert (first["cached"], first["verified"], first["rung"], first["level"]) == (False, True, "as exported", 3)
    assert 0 <= first["max_error"] <= 4e-3
    assert first["key"]["gpu"] == "Double Orin" and first["key"]["chips"] == ["sm_87"]
    plan = board.folder / first["engine"]
    assert plan.parent.parent.name == "tiny.engines"
    assert report(board("build", "tiny.hpedge", "--json"))["cached"]
    assert not report(board("build", "tiny.hpedge", "--json", DOUBLE_GPU="Another"))["cached"]
    plan.write_bytes(plan.read_bytes() + b"x")
    again = board("build", "tiny.hpedge", "--json")
    assert not report(again)["cached"]
    assert "its sha256 differs" in again.stderr
    assert builds(board) == [3, 3, 3]
    assert (board.folder / "tiny.engines" / "timings-10.3.0.30.cache").read_bytes() == b"timings"


def test_infer_builds_on_first_use_unless_told_not_to(board, tiny):
    """Planted mistake: auto takes the CPU where a GPU is."""
    pictures = [tiny / "test" / "00.png", tiny / "test" / "01.png", tiny / "test" / "02.png"]
    arguments = ("infer", *pictures, "--model", "tiny.hpedge", "--format", "jsonl")
    refused = board(*arguments, "--no-build")
    assert refused.returncode == 2
    assert "there is no engine for this machine in tiny.engines; run `hpedge build tiny.hpedge` first" in refused.stderr
    done = board(*arguments)
    assert done.returncode == 0, done.stderr
    assert builds(board) == [3]
    expected = board(*arguments, "--backend", "onnxruntime")
    for ours, theirs in zip(done.stdout.splitlines(), expected.stdout.splitlines(), strict=True):
        mine, yours = json.loads(ours)["scores"], json.loads(theirs)["scores"]
        assert max(abs(mine[label] - yours[label]) for label in mine) <= 4e-3
    assert board(*arguments, "--no-build").returncode == 0


def test_wrong_scores_climb_down_the_ladder(board):
    """Planted mistakes: keep the first engine; leave the wrong one behind when all are wrong."""
    done = board("build", "tiny.hpedge", "--json", DOUBLE_WRONG="attention")
    assert report(done)["rung"] == "float32 attention"
    assert "the engine (as exported) differs from the golden scores by 5.0e-01" in done.stderr
    shutil.rmtree(board.folder / "tiny.engines")
    done = board("build", "tiny.hpedge", DOUBLE_WRONG="always")
    assert done.returncode == 1
    assert "the engine (float32) differs" in done.stderr and "it was not kept" in done.stderr
    assert not list((board.folder / "tiny.engines").glob("*/engine.plan"))


def test_infer_takes_what_build_made_with_other_options(board, tiny):
    """Planted mistake: look for the default options alone."""
    board("build", "tiny.hpedge", "--batch", 2, "--workspace", 512, "--engines", "kept")
    arguments = ("infer", tiny / "test" / "00.png", "--model", "tiny.hpedge", "--no-build", "--engines", "kept")
    done = board(*arguments)
    assert done.returncode == 0, done.stderr
    assert board(*arguments, DOUBLE_GPU="Another").returncode == 2
    assert builds(board) == [3]


def test_two_builds_at_once_are_one(board):
    """Planted mistake: no lock."""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: board("build", "tiny.hpedge", "--json"), range(2)))
    assert sorted(report(done)["cached"] for done in both) == [False, True]
    assert builds(board) == [3]


def test_too_little_memory_means_less_optimisation(board):
    """Planted mistake: the level that was asked for in the record."""
    done = board("build", "tiny.hpedge", "--json", DOUBLE_MEMORY_LEVEL="1")
    assert report(done)["level"] == 1
    assert builds(board) == [3, 2, 1]
    assert "memory ended at optimisation level 3" in done.stderr
    assert report(board("build", "tiny.hpedge", "--json"))["cached"]
    done = board("build", "tiny.hpedge", "--batch", 4, DOUBLE_MEMORY_LEVEL="-1")
    assert done.returncode == 4
    assert "OutOfMemory" in done.stderr and "a smaller --batch" in done.stderr
    # Not once more on the next rung.
    assert builds(board) == [3, 2, 1, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("how", "words"),
    [("kill", "the system killed the build, most likely for want of memory"), ("abort", "ended with SIGABRT")],
)
def test_a_build_that_dies_is_explained(board, how, words):
    """Planted mistake: wait for an event that never comes."""
    done = board("build", "tiny.hpedge", "--level", 0, DOUBLE_BUILD=how)
    assert done.returncode == 4
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_build_that_hangs_is_stopped(board):
    done = board("build", "tiny.hpedge", "--timeout", 5, DOUBLE_BUILD="sleep")
    assert done.returncode == 4
    assert "took longer than 5 s and was stopped; pass a larger --timeout" in done.stderr


def test_what_cannot_be_built_is_one_sentence(board):
    for arguments, environment, code, words in [
        ((), {"DOUBLE_NO_GPU": "1"}, 4, "there is no NVIDIA GPU with a driver here"),
        ((), {"DOUBLE_OLD_DRIVER": "1"}, 4, "the driver serves CUDA 12.6; pip install 'cuda-python<13'"),
        (("--engines", "tiny.hpedge/manifest.json"), {}, 4, "cannot be written"),
        (("--target", "sm_87"), {}, 2, "TensorRT builds for the GPU at hand"),
        (("--head", "qdp-aot"), {}, 2, "--head qdp-aot: needs TensorRT 10.9 or later"),
        (("--head", "plugin"), {}, 2, "'plugin' is not one of auto, qdp-aot, plugin-so, onnx"),
        (("--labels", 3), {}, 2, "--labels must be 4 (the bundle's) to 65,536, got 3"),
        (("--backend", "cuda"), {}, 2, "--backend 'cuda' is not one of tensorrt, tensorrt-rtx"),
    ]:
        done = board("build", "tiny.hpedge", *arguments, **environment)
        assert done.returncode == code, done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr
    assert builds(board) == []


def test_eight_bits_for_cpus_are_refused(tiny_bundle):
    """TensorRT reads uint8 as int8 with a warning. Planted mistake: any uint8 constant counts."""
    import onnx

    from hpdval_edge.trt.graph_edits import has_unsigned, read_model

    model = read_model((tiny_bundle / "model.onnx").read_bytes())
    zero = onnx.numpy_helper.from_array(np.uint8(0), "zero")
    model.graph.initializer.append(zero)
    assert not has_unsigned(model)
    model.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["cls", "scale", "zero"], ["rounded"]))
    assert has_unsigned(model)


ENGINE = """
import os, threading
import numpy as np
from cuda.bindings import runtime
from hpdval_edge.bundle import load_bundle
from hpdval_edge.runtimes import EngineOptions, load_engine
bundle = load_bundle("tiny.hpedge")
engine, reference = load_engine(bundle, "tensorrt"), load_engine(bundle, "onnxruntime")
images = np.random.default_rng(0).standard_normal((21, 3, 32, 32)).astype(np.float32)
expected = reference(images)
def same(got, rows=slice(None)):
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs[rows], atol=4e-3)
same(engine(images))
runtime.log.clear()
for _ in range(3):
    same(engine(images[:8]), slice(8))
names = [name for name, _ in runtime.log]
print("launches", names.count("cudaGraphLaunch"), "executes", names.count("execute"), "copies",
      names.count("cudaMemcpyHostToDevice"))
wrong = []
def work(index):
    rows = slice(index, index + 9)
    try:
        for _ in range(3):
            same(engine(images[rows]), rows)
    except AssertionError as error:
        wrong.append(error)
threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
[t.start() for t in threads]; [t.join() for t in threads]
for size in (3, 3, 3, 5, 5, 5, 3, 3):
    same(engine(images[:size]), slice(size))
print("wrong", len(wrong), "graphs", runtime.live["graphs"], runtime.live["executables"] <= 2)
slots = [engine.slots.get() for _ in range(2)]
for _ in range(2): engine.slots.put(slots.pop())
del slots
engine.close()
del engine
print("left", len(runtime.memory), runtime.live)
"""


@pytest.mark.parametrize("integrated", ["0", "1"])
def test_the_engine_replays_graphs_and_is_shared_by_threads(board, integrated):
    """Planted mistakes: two threads in one slot; a graph of another batch; copies in memory that is shared anyway; a
    buffer or a graph that is not freed."""
    done = board(code=ENGINE, DOUBLE_INTEGRATED=integrated)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    # One run that sets the batch up, one that is recorded and played, one that is played.
    copies = {"0": 2, "1": 0}[integrated]
    assert first == f"launches 2 executes 2 copies {copies}"
    assert second == "wrong 0 graphs 0 True"
    assert third == "left 0 {'streams': 0, 'graphs': 0, 'executables': 0}"


def test_without_graphs_it_says_so_once_and_runs(board):
    done = board(code=ENGINE, DOUBLE_NO_GRAPHS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "launches 0 executes 3 copies 3"
    assert "runs without CUDA graphs" in done.stderr


def test_a_full_gpu_is_one_sentence(board):
    board("build", "tiny.hpedge")
    Image.new("RGB", (8, 8)).save(board.folder / "x.png")
    done = board("infer", "x.png", "--model", "tiny.hpedge", DOUBLE_MEMORY="1000")
    assert done.returncode == 4
    assert "the GPU has no memory left (cudaMalloc); close other programs or build with a smaller" in done.stderr


def test_the_benchmark_writes_down_what_works_and_what_does_not(board):
    """Planted mistake: a carrier that does not work ends the whole run."""
    script = (Path(__file__).parents[1] / "benchmarks" / "gpu.py").read_text()
    done = board("--bundle", "tiny.hpedge", "--seconds", "0", "--out", "gpu.json", code=script)
    assert done.returncode == 0, done.stderr
    report = json.loads((board.folder / "gpu.json").read_text())
    assert report["gpu"]["name"] == "Double Orin"
    row = report["bundles"]["tiny.hpedge"]["tensorrt"]
    assert {mode: build["works"] for mode, build in row["builds"].items()} == {
        **{"qdp-aot": False, "plugin-so": False},
        "onnx": True,
    }
    assert "needs TensorRT 10.9 or later" in row["builds"]["qdp-aot"]["reason"]
    assert row["timings"]["batch 8"]["onnx"]["onnx_over_this"] == 1.0
    assert board(code=script, DOUBLE_NO_GPU="1").stderr.startswith("gpu.py: there is no NVIDIA GPU")


LABELS_CHANGE = """
import gc, numpy as np
from cuda.bindings import runtime
from hpdval_edge import Predictor, load_bundle
from hpdval_edge.labels import NewLabels, add_labels
predictor = Predictor("tiny.hpedge", "tensorrt")
bundle = load_bundle("tiny.hpedge")
images = predictor.prepare(bundle.golden()[0])
for _ in range(3):
    before = predictor.predict_images(images)
held, loaded = dict(runtime.live), predictor.engine.engine
names = tuple(f"label {i}" for i in range(int(__import__("os").environ["NEW"])))
banks = np.random.default_rng(0).standard_normal((2, len(names), 24))
bundle = add_labels(bundle, NewLabels(names, *banks, bundle.manifest.provenance["text_space"]))
print(predictor.reload(), predictor.engine.engine is loaded)
for _ in range(3):
    after = predictor.predict_images(images)
expected = bundle.golden()[1]
print(max(abs(a.scores - e).max() for a, e in zip(after, expected)) < 4e-3, len(after[0].scores))
gc.collect()
print(runtime.live == held)
"""


@pytest.mark.parametrize(("new", "same"), [(30, True), (9, False)])
def test_new_labels_in_a_running_engine(board, new, same):
    """An engine takes new text banks without a build; only where it was built for fewer labels there is another.

    Planted mistakes: the old banks kept; the old slots' streams, graphs or buffers not freed; an engine asked for more
    labels than it was built for.
    """
    if not same:
        board("build", "tiny.hpedge", "--labels", 8)
    done = board(code=LABELS_CHANGE, NEW=str(new))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"True {same}", f"True {4 + new}", "True"]
    assert builds(board) == [3] * (1 if same else 2)
