"""Engines for CPUs against eager PyTorch, for students with random weights, which speed does not depend on.

    python benchmarks/cpu_engines.py --out DIR [--docs docs/cpu.md] [--rounds 30] [--batch 1] [vit_tiny_patch16_224 ...]

One process, one thread, in turns: each round calls every engine once in a new random order; a ratio is the median over
rounds of PyTorch's time over the engine's, with its quartiles. Writes DIR/cpu_engines.json, prints a Markdown table and
with --docs puts it there between the markers. An engine that does not run here is "not run", with its reason. Dynamic
int8 is ONNX Runtime's own: scales of activations are computed at run time, weights have 7 bits as in --int8.
"""

import argparse
import json
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before any library reads it.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import onnx
import torch
from int8 import HALF, LABELS, deployed, quantised
from onnxruntime.quantization import QuantType, quantize_dynamic

from hpdval_edge.bundle import GOLDEN, MODEL, Bundle, Calibration, Manifest, sha256
from hpdval_edge.errors import HpedgeError
from hpdval_edge.export.graph import write_onnx
from hpdval_edge.golden import compare
from hpdval_edge.images import model_input
from hpdval_edge.machine import read_machine
from hpdval_edge.runtimes import EngineOptions, load_engine

SIZE, WIDTH, PICTURES = 224, 512, 4
FORMATS = {"fp32": "float32", "int8": "int8", "int8-dynamic": "int8, dynamic"}
ROWS = (
    *(("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino-bf16", "fp32")),
    *(("onnxruntime", "int8"), ("onnxruntime", "int8-dynamic"), ("openvino", "int8")),
)
MARKERS = "<!-- table: benchmarks/cpu_engines.py -->", "<!-- end -->"
EAGER = "PyTorch, eager, float32"
Engine = Callable[[np.ndarray], Any]


def write_models(name: str, folder: Path, banks: dict[str, np.ndarray]) -> torch.nn.Module:
    """The student's model in each of FORMATS, a folder each; returns it in PyTorch."""
    torch.manual_seed(0)
    module = deployed(name, SIZE, half=False).eval()
    for kind in FORMATS:
        (folder / kind).mkdir(parents=True)
    path = folder / "fp32" / MODEL
    write_onnx(module, path, image_size=SIZE, embed_dim=WIDTH)
    image = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    onnx.save(quantised(path, False, {"image": image, **banks})[1], folder / "int8" / MODEL)
    out = folder / "int8-dynamic" / MODEL
    weights = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
    quantize_dynamic(path, out, op_types_to_quantize=["MatMul"], **weights)
    return module


def as_bundle(
    folder: Path, kind: str, banks: dict[str, np.ndarray], pictures: np.ndarray, scores: np.ndarray
) -> Bundle:
    """What an engine loads; golden scores are PyTorch's."""
    np.savez(folder / GOLDEN, images=pictures, scores=scores)
    files = {name: sha256((folder / name).read_bytes()) for name in (MODEL, GOLDEN)}
    labels, precision = tuple(map(str, range(LABELS))), "fp32" if kind == "fp32" else "int8"
    manifest = Manifest(
        1, kind, labels, SIZE, HALF, HALF, 0.4, 32, (14, 14), WIDTH, 20.0, precision, {}, files
    )  # fmt: skip
    thresholds = np.median(scores, axis=0).astype(np.float32)
    return Bundle(folder, manifest, *banks.values(), thresholds, Calibration(20.0), precision, "f1")


def engines(name: str, folder: Path) -> tuple[dict[str, Engine], dict[str, dict[str, Any]]]:
    """What runs here by the name of its row; and of every row its size, its error or why it does not run."""
    bank = np.random.default_rng(0).standard_normal((LABELS, WIDTH)).astype(np.float32)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    banks = {"text_global": bank, "text_local": bank}
    module = write_models(name, folder, banks)
    tensors = [torch.from_numpy(bank), torch.from_numpy(bank)]

    def eager(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            return module(torch.from_numpy(images), *tensors)

    pictures = np.random.default_rng(1).integers(0, 256, (PICTURES, SIZE, SIZE, 3), np.uint8)
    scores = eager(model_input(pictures, SIZE, HALF, HALF, "float32"))[0].numpy()
    found, rows = {EAGER: eager}, {EAGER: {"max_error": 0.0}}
    for backend, kind in ROWS:
        row = "openvino, bfloat16" if backend == "openvino-bf16" else f"{backend}, {FORMATS[kind]}"
        bundle = as_bundle(folder / kind, kind, banks, pictures, scores)
        try:
            found[row] = load_engine(bundle, backend, EngineOptions(threads=1))
        except HpedgeError as error:
            rows[row] = {"reason": str(error)}
            continue
        rows[row] = {
            "max_error": compare(bundle, found[row])[0],
            "model_mb": (folder / kind / MODEL).stat().st_size / 1e6,
        }
    return found, rows


def measure(name: str, batch: int, rounds: int) -> dict[str, dict[str, Any]]:
    """The rows of one student."""
    folder = Path(tempfile.mkdtemp(prefix="cpu-engines-"))
    try:
        found, rows = engines(name, folder)
    finally:
        shutil.rmtree(folder)
    images = np.random.default_rng(2).standard_normal((batch, 3, SIZE, SIZE)).astype(np.float32)
    times: dict[str, list[float]] = {row: [] for row in found}
    draw = random.Random(0)
    # Two rounds to warm up.
    for turn in range(-2, rounds):
        for row in draw.sample(list(found), len(found)):
            started = time.perf_counter()
            found[row](images)
            if turn >= 0:
                times[row].append(time.perf_counter() - started)
    eager = np.array(times[EAGER])
    for row, taken in times.items():
        low, median, high = np.percentile(eager / np.array(taken), (25, 50, 75)).tolist()
        p50 = 1e3 * float(np.median(taken))
        rows[row] |= {"ratio": median, "quartiles": [low, high], "rounds": rounds, "p50_ms": p50}
    return rows


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    machine, students = report["machine"], report["students"]
    features = " ".join(machine["cpu_features"]) or "none of those that matter"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"{machine['cpu']} ({features}), {machine['cores']} cores, {versions}; one thread, batch {report['batch']}, "
        f"{report['rounds']} rounds, load {report['load']:.1f} when it began; {report['date']}",
        "",
        f"| engine | {' | '.join(f'{name}: ratio (quartiles) | p50 ms | max error' for name in students)} |",
        f"| --- |{' ---: | ---: | ---: |' * len(students)}",
    ]
    for row in next(iter(students.values())):
        cells = [row]
        for rows in students.values():
            found = rows[row]
            if "ratio" in found:
                low, high = found["quartiles"]
                ratio = f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"
                cells += [ratio, f"{found['p50_ms']:.0f}", f"{found['max_error']:.0e}" if found["max_error"] else "-"]
            else:
                cells += ["not run", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    reasons = {rows[row]["reason"] for rows in students.values() for row in rows if "reason" in rows[row]}
    return "\n".join([*lines, *(f"\nNot run: {reason}" for reason in sorted(reasons))])


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", default=["vit_tiny_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--out", type=Path, required=True, help="Folder for the JSON file.")
    parser.add_argument("--docs", type=Path, help="Page to put the table into.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = read_machine()
    # It advises a pass over the graph that fuses what ONNX Runtime fuses anyway when it loads a model.
    logging.disable(logging.WARNING)
    kept = ("torch", "onnxruntime", "openvino")
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "cpu_features": machine.cpu_features},
        "versions": {name: machine.packages[name] for name in kept if name in machine.packages},
        "load": os.getloadavg()[0],
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "students": {},
    }
    for name in arguments.students:
        report["students"][name] = measure(name, arguments.batch, arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cpu_engines.json").write_text(json.dumps(report, indent=2) + "\n")
    text = table(report)
    print(text)
    if arguments.docs:
        page = arguments.docs.read_text()
        before, _, rest = page.partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        arguments.docs.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}")


if __name__ == "__main__":
    main()
