"""libhpedge against Python's Predictor, on the same pixels: every input and format, threads, wrapper and example."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import save

from hpdval_edge import Predictor, load_bundle
from hpdval_edge.bundle import MODEL, TEXT, THRESHOLDS, rewrite
from hpdval_edge.engine_onnxruntime import BORDER
from hpdval_edge.images import INPUTS, open_rgb
from hpdval_edge.kernels import compiled, preprocess

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "hpdval_edge" / "libhpedge"
PROGRAMS = ROOT / "tests" / "cpp" / "libhpedge"
FORMATS = {"rgb": 0, "bgr": 1, "rgbx": 2, "bgrx": 3, "nv12": 4}
pytestmark = pytest.mark.slow


class Picture:
    """A picture as RGB uint8 [H, W, 3], and the driver's argument for it in some format, with rows apart or upside
    down."""

    def __init__(self, rgb, layout="rgb", gap=0, bottom_up=False):
        self.rgb, self.layout = rgb, layout
        height, width = rgb.shape[:2]
        pixels = rgb[..., ::-1] if layout.startswith("bgr") else rgb
        if layout.endswith("x"):
            pixels = np.dstack([pixels, np.full((height, width), 77, np.uint8)])
        rows = pixels.reshape(height, -1)
        stride = rows.shape[1] + gap
        rows = np.pad(rows, ((0, 0), (0, gap)), constant_values=99)[:: -1 if bottom_up else 1]
        # Nothing lies behind the last row.
        self.data = rows.tobytes()[: rows.size - gap]
        offset = (height - 1) * stride if bottom_up else 0
        shown_stride = -stride if bottom_up else stride if gap else 0
        self.fields = [FORMATS[layout], width, height, shown_stride, 0, offset]

    def argument(self, folder):
        path = folder / f"picture{len([*folder.glob('picture*')])}"
        path.write_bytes(self.data)
        return f"picture={','.join(map(str, self.fields))},{path}"


class Nv12(Picture):
    """Luma and chroma planes, both with rows apart."""

    def __init__(self, width, height, gap, seed):
        rng = np.random.default_rng(seed)
        luma, chroma = (rng.integers(0, 256, (rows, width), dtype=np.uint8) for rows in (height, height // 2))
        self.rgb = preprocess.resize((luma, chroma), (height, width), layout="nv12")
        wide = [np.pad(plane, ((0, 0), (0, gap))).tobytes() for plane in (luma, chroma)]
        self.data = b"".join(wide)[: len(wide[0]) + len(wide[1]) - gap]
        stride = width + gap if gap else 0
        self.fields = [FORMATS["nv12"], width, height, stride, stride, len(wide[0])]


def check(driver, bundle, pictures, thread=0, **options):
    """Every output of a thread, against Predictor on the same pixels.

    Within 1e-6 and not equal: unoptimised, as these tests build the head, it fuses no multiplications with additions,
    and other compilers fuse others. The graph's own head is further away in half precision.
    """
    predictor = Predictor(bundle, "onnxruntime", threads=1, **options)
    predictions = predictor([picture.rgb for picture in pictures])
    for name in ("scores", "probabilities", "patch_scores"):
        values = np.stack([getattr(prediction, name) for prediction in predictions])
        np.testing.assert_allclose(driver.output(name, values.shape, thread), values, atol=1e-6, rtol=0)
    shape = len(pictures), len(predictor.labels)
    for row, prediction in zip(driver.output("chosen", shape, thread), predictions, strict=True):
        chosen = [predictor.labels.index(label) for label in prediction.labels]
        assert row.tolist() == chosen + [-1] * (len(row) - len(chosen))
    return predictor


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def jpegs(tmp_path_factory, tiny):
    """Decoded pictures: a tall, a wide and a small JPEG, and PNGs of the test split."""
    folder = tmp_path_factory.mktemp("jpegs")
    for width, height in ((33, 301), (500, 41), (9, 7)):
        smooth = Image.fromarray(noise(5, 5, width)).resize((width, height))
        smooth.save(folder / f"{width}.jpg")
    return [np.asarray(open_rgb(path)) for path in [*sorted(folder.iterdir()), *sorted((tiny / "test").iterdir())[:3]]]


@pytest.mark.parametrize("kind", INPUTS)
def test_scores_are_those_of_python(driver, bundles, jpegs, kind):
    """Golden pictures and decoded ones, one batch of many sizes.

    Planted: the horizontal pass always first, halves cut instead of rounded; each failed.
    """
    golden, expected = load_bundle(bundles[kind]).golden()
    pictures = [Picture(pixels) for pixels in [*golden, *jpegs]]
    printed = driver(bundles[kind], pictures)
    predictor = check(driver, bundles[kind], pictures)
    scores = driver.output("scores", (len(pictures), len(predictor.labels)))
    assert np.abs(scores[: len(golden)] - expected).max() < 2e-3
    shown = [f"label {t:.9g} {name}" for t, name in zip(predictor.thresholds, predictor.labels, strict=True)]
    assert re.findall("^label .*", printed, re.MULTILINE) == shown
    assert "backend onnxruntime grid 4 4\n" in printed


def test_formats(driver, tiny_bundle):
    """Rows apart or from the bottom up, each order of channels, NV12. Planted: BGR read as RGB; failed."""
    pixels = noise(46, 38)
    pictures = [Picture(pixels, layout, gap, up) for layout in [*FORMATS][:4] for gap, up in ((0, 0), (5, 0), (3, 1))]
    pictures += [Nv12(48, 30, 0, 1), Nv12(66, 38, 7, 2), Picture(noise(1, 1)), Picture(noise(3, 200), "bgrx")]
    driver(tiny_bundle, pictures)
    check(driver, tiny_bundle, pictures)


def test_real_photos(driver, tiny_bundle, shared_data):
    photos = sorted((shared_data / "photos").rglob("*.jpg"))[:4]
    pictures = [Picture(np.asarray(open_rgb(path))) for path in photos]
    driver(tiny_bundle, pictures)
    check(driver, tiny_bundle, pictures)


@pytest.mark.parametrize("options", [{"threshold": -0.25}, {"top": 2}, {"top": 4}], ids=str)
def test_which_labels_are_chosen(driver, tiny_bundle, options):
    pictures = [Picture(noise(40, 40, seed)) for seed in range(4)]
    driver(tiny_bundle, pictures, **options)
    check(driver, tiny_bundle, pictures, **options)


def test_outputs_that_are_not_wanted(driver, tiny_bundle):
    pictures = [Picture(noise(40, 40))]
    driver(tiny_bundle, pictures)
    whole = {name: driver.output(name, -1) for name in ("scores", "probabilities", "patch_scores", "chosen")}
    for name, letter in zip(whole, "splc", strict=True):
        driver(tiny_bundle, pictures, want=letter)
        for other, values in whole.items():
            np.testing.assert_array_equal(driver.output(other, -1), values if other == name else [])


@pytest.mark.parametrize("handles", [1, 2])
def test_threads(driver, tiny_bundle, handles):
    """Two threads, with a predictor each or one together."""
    pictures = [Picture(noise(40 + 30 * i, 50, i)) for i in range(3)]
    driver(tiny_bundle, pictures, callers=2, handles=handles, rounds=20)
    for thread in range(2):
        check(driver, tiny_bundle, pictures, thread)


@pytest.fixture
def altered(tiny_bundle, tmp_path):
    """A copy of the bundle with other keys in its manifest and other files, whose sha256 fit."""

    def alter(files, **changes):
        bundle = load_bundle(shutil.copytree(tiny_bundle, tmp_path / "altered.hpedge"))
        rewrite(bundle, replace(bundle.manifest, **changes), files)
        return bundle.path

    return alter


def labels_files(count, width):
    """Text banks and thresholds of so many labels, at random."""
    rng = np.random.default_rng(0)
    banks = {name: rng.normal(size=(count, width)).astype(np.float32) for name in ("global", "local")}
    names = tuple(f"label {i}" for i in range(count))
    entry = {"labels": names, "values": [0.0] * count, "temperature": 2.0, "bias": 0.5, "fitted_at": "fp16"}
    return names, {TEXT: save(banks), THRESHOLDS: json.dumps({"fp16": entry}).encode()}


@pytest.mark.parametrize("topk", [3, 50], ids=["some patches", "more than there are"])
def test_many_labels(driver, tiny_bundle, altered, topk):
    """Panels of the text bank, the last one not full, and more than one thread of the head.

    Planted: alpha of the local view; k not clamped; the rows of a panel that is not full left out.
    """
    names, files = labels_files(1003, load_bundle(tiny_bundle).manifest.embed_dim)
    bundle = altered(files, labels=names, topk=topk, alpha=0.7)
    pictures = [Picture(noise(40 + i, 50, i)) for i in range(14)]
    driver(bundle, pictures, callers=2, threads=2)
    for thread in range(2):
        check(driver, bundle, pictures, thread)


def test_a_graph_that_names_no_border_has_its_own_head(driver, tiny_bundle, altered):
    """As bundles of earlier versions, and so has Python's engine. Planted: such bundles refused; the outputs left in
    the bytes."""
    model = onnx.load_from_string(load_bundle(tiny_bundle).read(MODEL))
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [f"{name}_" if name in BORDER else name for name in values]
    del model.graph.value_info[:]
    bundle = altered({MODEL: model.SerializeToString()})
    pictures = [Picture(noise(46, 38, seed)) for seed in range(3)]
    driver(bundle, pictures)
    predictor = check(driver, bundle, pictures)
    assert predictor.engine.head == "graph"
    of_graph = driver.output("scores", -1)
    driver(tiny_bundle, pictures)
    assert np.abs(of_graph - driver.output("scores", -1)).max() > 1e-6
    driver(bundle, pictures, want="s")
    np.testing.assert_array_equal(driver.output("scores", -1), of_graph)


def test_instruction_sets(driver, tiny_bundle):
    """HPEDGE_ISA names one, as in Python, or is refused. Planted: names of other machines taken for the fastest."""
    pictures = [Picture(noise(46, 38)), Nv12(48, 30, 0, 1)]
    here = compiled._cpu.isas()
    for isa in here:
        driver(tiny_bundle, pictures, environment={"HPEDGE_ISA": isa})
        check(driver, tiny_bundle, pictures)
    absent = next(name for name in compiled.INCLUDES if name not in here)
    listed = f"must name an instruction set of this machine ({', '.join(here)}), got '{absent}'; unset it.\n"
    assert driver(tiny_bundle, code=2, environment={"HPEDGE_ISA": absent}) == f"status 2: HPEDGE_ISA {listed}"
    printed = driver(tiny_bundle, code=2, environment={"HPEDGE_ISA": "sse"})
    assert printed == f"status 2: HPEDGE_ISA must be one of {', '.join(compiled.INCLUDES)}, got 'sse'; unset it.\n"


def test_it_stays_loaded(install, tools):
    """For threads of the head wait in it. Planted: linked without nodelete."""
    program = (
        "import _ctypes, ctypes, sys; _ctypes.dlclose(ctypes.CDLL(sys.argv[1])._handle); "
        "print('libhpedge' in open('/proc/self/maps').read())"
    )
    library = install("plain") / "lib" / "libhpedge.so.1"
    assert tools.run(sys.executable, "-c", program, library) == "True\n"


def test_nulls(driver, tools):
    assert "nulls are refused" in tools.run(driver.program, "nulls", "bundle=x")


def test_the_wrapper(install, tiny_bundle, onnxruntime, tools):
    assert tools.run(install("plain") / "programs" / "wrapper", tiny_bundle, onnxruntime) == "right\n"


def test_the_example(install, tiny_bundle, tiny, tmp_path, onnxruntime, tools):
    """Built against the installed package, from a PPM to labels; pkg-config leads to the same."""
    tree = install("plain")
    source = sorted((tiny / "test").iterdir())[1]
    Image.open(source).save(tmp_path / "picture.ppm")
    tools.cmake(LIBRARY / "example", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={tree}")
    expected = Predictor(tiny_bundle, "onnxruntime")(source)
    lines = tools.run(tmp_path / "build" / "classify", tiny_bundle, tmp_path / "picture.ppm", onnxruntime).splitlines()
    scores = [float(line.split()[-2]) for line in lines if not line.startswith("chosen")]
    np.testing.assert_allclose(scores, expected.scores, atol=1e-6)
    assert lines[len(scores) :] == [f"chosen {label}" for label in expected.labels]
    (tmp_path / "short.ppm").write_bytes((tmp_path / "picture.ppm").read_bytes()[:-1])
    assert "is cut off" in tools.run(tmp_path / "build" / "classify", tiny_bundle, tmp_path / "short.ppm", code=3)
    assert "no PPM" in tools.run(tmp_path / "build" / "classify", tiny_bundle, source, code=3)
    assert (LIBRARY / "example" / "classify.cpp").read_text() in (ROOT / "docs" / "libhpedge.md").read_text()
    if shutil.which("pkg-config"):
        flags = tools.run("pkg-config", "--cflags", "--libs", "hpedge", PKG_CONFIG_PATH=str(tree / "lib" / "pkgconfig"))
        tools.run("g++", "-std=c++17", LIBRARY / "example" / "classify.cpp", *flags.split(), "-o", tmp_path / "linked")


def test_in_the_python_package(install, tmp_path, tiny_bundle, onnxruntime, tools):
    """It is found there, links and runs. Planted: a wheel that leaves out hpdval_edge/libhpedge/ altogether."""
    install("plain")  # or skips
    tree = tools.wheel(tmp_path) / "hpdval_edge" / "libhpedge" / "installed"
    tools.cmake(PROGRAMS, tmp_path / "programs", f"-DCMAKE_PREFIX_PATH={tree}")
    assert tools.run(tmp_path / "programs" / "wrapper", tiny_bundle, onnxruntime) == "right\n"


def test_only_the_c_functions_are_exported(install, tools):
    """Not the kernel's, not the standard library's."""
    listed = tools.run("nm", "-D", "--defined-only", install("plain") / "lib" / "libhpedge.so")
    names = {line.split()[-1].split("@")[0] for line in listed.splitlines()} - {"HPEDGE_1"}
    declared = set(re.findall(r"HPEDGE_API [^;(]*?(hpedge_\w+)\(", (LIBRARY / "include" / "hpedge.h").read_text()))
    assert names == declared and len(names) == 11
    assert "libhpedge.so.1" in tools.run("readelf", "-d", install("plain") / "lib" / "libhpedge.so")


def test_under_sanitizers(drivers, bundles, altered, tools):
    """The same program on blocks of exactly their size: every format, input and instruction set, threads."""
    driver = drivers("sanitized")
    pictures = [Picture(noise(46, 38), layout, 3) for layout in [*FORMATS][:4]]
    pictures += [Nv12(48, 30, 2, 1), Picture(noise(33, 301)), Picture(noise(1, 1))]
    for kind, bundle in bundles.items():
        driver(bundle, pictures, callers=2, handles=2 if kind == "uint8" else 1)
        check(driver, bundle, pictures, 1)
    names, files = labels_files(70, 24)
    pictures = pictures[:2]
    bundle = altered(files, labels=names)
    for isa in compiled._cpu.isas():
        driver(bundle, pictures, environment={"HPEDGE_ISA": isa})
        check(driver, bundle, pictures)
    assert "nulls are refused" in tools.run(driver.program, "nulls", "bundle=x")


def test_positions_in_onnxruntime_s_table(tools):
    """Against its real header; that all of them work, the other tests show."""
    folders = [
        folder
        for folder in ("/usr/include/onnxruntime", "/usr/include/onnxruntime/core/session", "/usr/local/include")
        if (Path(folder) / "onnxruntime_c_api.h").exists()
    ]
    if not shutil.which("g++") or not folders:
        pytest.skip("no g++ or no onnxruntime_c_api.h: apt install g++ libonnxruntime-dev")
    tools.run(
        "g++",
        "-std=c++17",
        "-fsyntax-only",
        f"-I{folders[0]}",
        f"-I{LIBRARY / 'src'}",
        ROOT / "tests/cpp/libhpedge/onnxruntime_api_test.cpp",
    )
