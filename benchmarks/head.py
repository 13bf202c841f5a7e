"""The dual-view head against what a user could take instead, on a CPU: interleaved pairs in one process.

    python benchmarks/head.py --out head.json          measure, print the table, draw head.png
    python benchmarks/head.py --table head.json        print the table of an earlier run
    python benchmarks/head.py --scaling 2              time on one thread over that on two, N 196
    python benchmarks/head.py --memory ours            MB that one call adds at C 10,000, N 196, B 8 (or a rival's name)

Each round calls every engine in a new random order, once untimed and once timed, so that all meet the same noise and a
warm cache; a ratio is the median over rounds of rival / ours, with its quartiles. Texts are prepared beforehand by
every engine. Rivals that are not installed are "not run". Run it alone on an idle machine, OMP_NUM_THREADS set.
"""

import argparse
import ctypes
import importlib.util
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from hpdval_edge.kernels import TextBank, head_cpu
from hpdval_edge.kernels.head import numpy_scores

WIDTH, K, ALPHA = 512, 32, 0.4
RIVALS = ("numpy", "torch", "torch medium", "torch.compile", "ONNX Runtime", "OpenVINO", "ours, int16")
THREADS = int(os.environ.get("OMP_NUM_THREADS", "0")) or len(os.sched_getaffinity(0))
Engine = Callable[[], np.ndarray]


def make_inputs(images: int, patches: int, classes: int) -> list[np.ndarray]:
    """cls [B, E], patches [B, N, E] that share a direction as a real image's do, unit texts [C, E] twice; float32."""
    rng = np.random.default_rng(0)
    cls = rng.standard_normal((images, WIDTH), np.float32)
    tokens = rng.standard_normal((images, patches, WIDTH), np.float32)
    tokens += 1.5 * rng.standard_normal((images, 1, WIDTH), np.float32)
    texts = [rng.standard_normal((classes, WIDTH), np.float32) for _ in range(2)]
    return [cls, tokens, *(x / np.linalg.norm(x, axis=1, keepdims=True) for x in texts)]


def numpy_engine(arrays: list[np.ndarray]) -> Engine:
    """OpenBLAS and np.partition, all in float32."""
    cls, patches, text_global, text_local = arrays

    def run() -> np.ndarray:
        unit_cls = cls / np.linalg.norm(cls, axis=-1, keepdims=True)
        unit = patches / np.linalg.norm(patches, axis=-1, keepdims=True)
        cosines = text_local @ unit.transpose(0, 2, 1)
        best = np.partition(cosines, -K, axis=-1)[..., -K:].mean(-1)
        return ALPHA * (unit_cls @ text_global.T) + (1 - ALPHA) * best

    return run


def torch_module(arrays: list[np.ndarray]):
    """A module of (cls, patches) that holds the texts; cosines as [B, C, N], which torch.topk reads in order."""
    import torch
    from torch.nn.functional import normalize

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("text_global", torch.from_numpy(arrays[2]))
            self.register_buffer("text_local", torch.from_numpy(arrays[3]))

        def forward(self, cls, patches):
            cosines = self.text_local @ normalize(patches, dim=-1).transpose(1, 2)
            best = cosines.topk(K, dim=-1, sorted=False).values.mean(-1)
            return ALPHA * normalize(cls, dim=-1) @ self.text_global.T + (1 - ALPHA) * best

    return Head().eval()


def torch_engine(arrays: list[np.ndarray], name: str) -> Engine:
    import torch

    torch.set_num_threads(THREADS)
    module = torch_module(arrays)
    call = torch.compile(module, dynamic=False) if name == "torch.compile" else module
    inputs = [torch.from_numpy(x) for x in arrays[:2]]
    # "medium" lets oneDNN round the factors to bfloat16, where it is faster.
    precision = "medium" if name == "torch medium" else "highest"

    def run() -> np.ndarray:
        torch.set_float32_matmul_precision(precision)
        with torch.inference_mode():
            return call(*inputs).numpy()

    return run


def onnx_engine(arrays: list[np.ndarray], name: str) -> Engine:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "head.onnx")
        inputs = tuple(torch.from_numpy(x) for x in arrays[:2])
        names = ["cls", "patches"]
        torch.onnx.export(torch_module(arrays), inputs, path, input_names=names, dynamo=True, external_data=False)
        if name == "OpenVINO":
            import openvino

            settings = {"INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
            request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
            return lambda: next(iter(request.infer(arrays[:2], share_inputs=True).values()))
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(zip(names, arrays[:2], strict=True)))[0]


def make_engines(arrays: list[np.ndarray], rivals: list[str]) -> dict[str, Engine]:
    cls, patches, text_global, text_local = arrays
    bank = TextBank(text_global, text_local)
    engines: dict[str, Engine] = {
        "ours": lambda: bank.scores(cls, patches, k=K, alpha=ALPHA),
        # Nearly no selection: what the products alone cost.
        "ours, k = 1": lambda: bank.scores(cls, patches, k=1, alpha=ALPHA),
    }
    for name in rivals:
        if name == "numpy":
            engines[name] = numpy_engine(arrays)
        elif name == "ours, int16":
            engines[name] = partial(TextBank(*arrays[2:], precision="int16").scores, cls, patches, k=K, alpha=ALPHA)
        elif name.startswith("torch"):
            engines[name] = torch_engine(arrays, name)
        else:
            engines[name] = onnx_engine(arrays, name)
    return engines


def installed(rival: str) -> bool:
    modules = {"torch": "torch", "ONNX": "onnxruntime", "OpenVINO": "openvino", "numpy": "numpy", "ours": "numpy"}
    return importlib.util.find_spec(next(m for start, m in modules.items() if rival.startswith(start))) is not None


def load_peak(folder: str) -> Callable[[], float]:
    """GFLOP/s of the multiply-add units, of one core."""
    library = Path(folder) / "fma_peak.so"
    source = Path(__file__).with_name("fma_peak.cpp")
    subprocess.run(["g++", "-O3", "-march=native", "-shared", "-fPIC", source, "-o", library], check=True)
    function = ctypes.CDLL(str(library)).fma_peak
    function.restype = ctypes.c_double
    return lambda: function(400_000)


def measure(size: tuple[int, int, int], rivals: list[str], seconds: float, peak: Callable[[], float]) -> dict:
    classes, patches, images = size
    arrays = make_inputs(images, patches, classes)
    engines = make_engines(arrays, rivals)
    exact, _ = numpy_scores(arrays[0][:1], arrays[1][:1], *arrays[2:], k=K, alpha=ALPHA)
    errors = {name: float(np.abs(run()[:1] - exact).max()) for name, run in engines.items() if "k =" not in name}
    times: dict[str, list[float]] = {name: [] for name in engines}
    peaks = []
    until = time.perf_counter() + seconds
    while len(peaks) < 5 or (time.perf_counter() < until and len(peaks) < 100):
        for name in random.sample(list(engines), len(engines)):
            engines[name]()
            begin = time.perf_counter()
            engines[name]()
            times[name].append(time.perf_counter() - begin)
        peaks.append(peak())
    ours = times["ours"]
    return {
        "classes": classes,
        "patches": patches,
        "images": images,
        "rounds": len(peaks),
        "ours_ms": 1e3 * statistics.median(ours),
        "of_peak": statistics.median(
            2 * images * (patches + 1) * classes * WIDTH / t / 1e9 / p for t, p in zip(ours, peaks, strict=True)
        ),
        "errors": errors,
        "ratios": {
            name: np.percentile(np.divide(values, ours), [25, 50, 75]).tolist()
            for name, values in times.items()
            if name != "ours"
        },
    }


def added_memory(name: str) -> float:
    """MB that one call adds to this process at its peak (Linux)."""

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024

    engine = make_engines(make_inputs(8, 196, 10_000), [] if name == "ours" else [name])[name]
    before = status("VmRSS")
    # Sets the peak back to what the process holds now.
    Path("/proc/self/clear_refs").write_text("5")
    engine()
    return status("VmHWM") - before


def scaling(classes: int, images: int, threads: int, rounds: int = 30) -> str:
    """Time on one thread over time on ``threads``, median and quartiles of interleaved pairs, N = 196."""
    cls, patches, text_global, text_local = make_inputs(images, 196, classes)
    bank = TextBank(text_global, text_local)
    times: dict[int, list[float]] = {1: [], threads: []}
    for _ in range(rounds):
        for count in random.sample([1, threads], 2):
            head_cpu.threads_for = lambda products, count=count: count
            bank.scores(cls, patches, k=K, alpha=ALPHA)
            begin = time.perf_counter()
            bank.scores(cls, patches, k=K, alpha=ALPHA)
            times[count].append(time.perf_counter() - begin)
    low, middle, high = np.percentile(np.divide(times[1], times[threads]), [25, 50, 75])
    return f"C {classes} B {images}: {1e3 * statistics.median(times[1]):.3g} ms, {middle:.2f} [{low:.2f}, {high:.2f}]"


def table(report: dict) -> str:
    names = ["ours, k = 1", *report["rivals"]]
    lines = [
        "| C | N | B | ours, ms | of the FMA peak | " + " | ".join(names) + " |",
        "|" + " ---: |" * (5 + len(names)),
    ]
    for row in report["sizes"]:
        ratios = [row["ratios"].get(name) for name in names]
        cells = ["not run" if r is None else f"{r[1]:.2f} [{r[0]:.2f}, {r[2]:.2f}]" for r in ratios]
        head = [row["classes"], row["patches"], row["images"], f"{row['ours_ms']:.3g}", f"{row['of_peak']:.0%}"]
        lines.append("| " + " | ".join(map(str, [*head, *cells])) + " |")
    return "\n".join(lines)


def draw(report: dict, path: Path) -> None:
    """One line a size, one mark a rival: how many times as long it takes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = report["sizes"]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.3 * len(rows)), layout="constrained")
    for i, name in enumerate(report["rivals"]):
        points = [(row["ratios"][name][1], y) for y, row in enumerate(rows) if name in row["ratios"]]
        axes.scatter(*zip(*points, strict=True), label=name, marker="osD^vP"[i % 6], s=28, zorder=3)
    axes.axvline(1, color="0.4", lw=1)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 3, 5, 10], ["1", "2", "3", "5", "10"])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [f"C {r['classes']:,}  N {r['patches']:,}  B {r['images']}" for r in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    axes.set_xlabel(f"time of the rival / time of ours, {report['isa']}, {report['threads']} thread(s)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=150)


def describe(rivals: list[str]) -> dict:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in ("numpy", "torch", "onnxruntime", "openvino"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    isa = TextBank(*(np.eye(2, dtype=np.float32),) * 2).isa
    return {"cpu": cpu, "isa": isa, "threads": THREADS, "width": WIDTH, "k": K, "versions": versions, "rivals": rivals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 80, 1000, 10_000])
    parser.add_argument("--patches", type=int, nargs="+", default=[196, 576, 1024])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--seconds", type=float, default=5.0, help="for each size; at least 5 rounds are made")
    parser.add_argument("--out", type=Path, default=Path("head.json"))
    parser.add_argument("--table", type=Path, help="only print the table of this file")
    parser.add_argument("--memory", choices=("ours", *RIVALS), help="only measure the memory of this one")
    parser.add_argument("--scaling", type=int, metavar="THREADS", help="only measure threads against one")
    options = parser.parse_args()
    if options.scaling:
        for classes, images in itertools.product(options.classes, options.images):
            print(scaling(classes, images, options.scaling), flush=True)
        return
    if options.memory:
        print(f"{options.memory}: {added_memory(options.memory):.1f} MB")
        return
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    rivals = [name for name in options.rivals if installed(name)]
    report = describe(rivals) | {"sizes": []}
    with tempfile.TemporaryDirectory() as folder:
        peak = load_peak(folder)
        for size in itertools.product(options.classes, options.patches, options.images):
            report["sizes"].append(measure(size, rivals, options.seconds, peak))
            options.out.write_text(json.dumps(report, indent=1))
            print(*size, f"{report['sizes'][-1]['ours_ms']:.3g} ms", file=sys.stderr, flush=True)
    print(table(report))
    draw(report, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
