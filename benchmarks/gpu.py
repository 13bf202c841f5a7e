"""Everything about TensorRT that needs a GPU, in one command: builds by each carrier of the head, checks, timings.

    python benchmarks/gpu.py                        # random ViT-Ti and ViT-B, both TensorRTs where they are installed
    python benchmarks/gpu.py --bundle birds.hpedge

For each bundle, TensorRT and carrier: `hpedge build` with its ladder and its check on golden pictures; then all engines
of a bundle by turns in this process, from NumPy to NumPy. Ratios are against the engine whose head is plain ONNX,
call by call. What does not work is written down with its reason. The result is a dated JSON file, which docs quote.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hpdval_edge.bundle import GOLDEN, MODEL, SCHEMA, TEXT, Bundle, Manifest, load_bundle, sha256, write_thresholds
from hpdval_edge.errors import HpedgeError
from hpdval_edge.images import model_input
from hpdval_edge.trt.build import BuildOptions, Built, build_engine
from hpdval_edge.trt.cuda import GpuFacts, open_cuda
from hpdval_edge.trt.engine import TensorRTEngine
from hpdval_edge.trt.flavour import MODULES, load_flavour
from hpdval_edge.trt.heads import MODES

STUDENTS = {"vit-ti": "vit_tiny_patch16_224", "vit-b": "vit_base_patch16_224"}
SIZE, WIDTH, LABELS, GOLDENS = 224, 512, 80, 16
DOCS = Path(sys.argv[0]).resolve().parents[1] / "docs"


def random_bundle(name: str, folder: Path, capability: int) -> Bundle:
    """A whole bundle of a student with random weights, with GPU kernels for ``capability`` and golden pictures."""
    import torch
    from safetensors.numpy import save

    from hpdval_edge.export import aot
    from hpdval_edge.export.aot_targets import find_targets
    from hpdval_edge.export.deployed import Deployed
    from hpdval_edge.export.graph import write_onnx
    from hpdval_edge.training.evaluate import model_scorer
    from hpdval_edge.training.model import DualView
    from hpdval_edge.training.student import EncoderSpec, Student, build_encoder

    torch.manual_seed(0)
    spec = EncoderSpec(STUDENTS[name], SIZE, (0.5,) * 3, (0.5,) * 3)
    student = Student(spec, build_encoder(spec), embed="mlp", embed_act="tanh", embed_dim=WIDTH)
    banks = [torch.nn.functional.normalize(torch.randn(LABELS, WIDTH), dim=1) for _ in range(2)]
    model = DualView(student, *banks, alpha=0.4, topk=32).eval()
    path = folder / f"{name}.hpedge"
    path.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (GOLDENS, SIZE, SIZE, 3), np.uint8)
    scores = model_scorer(model, torch.device("cpu"))(images)
    np.savez_compressed(path / GOLDEN, images=images, scores=scores)
    (path / TEXT).write_bytes(save(dict(zip(("global", "local"), (bank.numpy() for bank in banks), strict=True))))
    grid, chip = student.grid, f"sm_{capability}"
    known = {target.name for target in find_targets("all")}
    aot.build(
        targets=chip if chip in known else "sm_80",
        dtype="fp16", width=WIDTH, patches=grid[0] * grid[1], out=path / "kernels", patch_scores=True,
    )  # fmt: skip
    write_onnx(Deployed(model, half=True), path / MODEL, image_size=SIZE, embed_dim=WIDTH)
    labels = tuple(f"label {i}" for i in range(LABELS))
    (path / "thresholds.json").write_text("{}")
    files = {file.relative_to(path).as_posix(): sha256(file.read_bytes()) for file in path.rglob("*") if file.is_file()}
    provenance = {"run": name, "weights": "random"}
    manifest = Manifest(
        SCHEMA, name, labels, SIZE, spec.mean, spec.std, 0.4, 32, grid, WIDTH, 20.0, "fp16", provenance, files
    )
    values = np.median(scores, axis=0).tolist()
    write_thresholds(path, manifest, {"labels": labels, "values": values, "fitted_at": "fp16"})
    return load_bundle(path)


def attempt(bundle: Bundle, options: BuildOptions) -> tuple[Built | None, dict[str, Any]]:
    """Build one engine; it, and what there is to say of it."""
    started = time.perf_counter()
    try:
        built = build_engine(bundle, options)
    except HpedgeError as error:
        return None, {"works": False, "reason": str(error)}
    record = asdict(built.record)
    kept = ("rung", "level", "max_error", "label_flips")
    wall = round(time.perf_counter() - started, 1)
    megabytes = round(built.plan.path.stat().st_size / 1e6, 1)
    return built, {"works": True, "wall_s": wall, "plan_mb": megabytes, **{name: record[name] for name in kept}}


def interleave(engines: dict[str, TensorRTEngine], images: np.ndarray, seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of a call by each engine in turns: p50, p90, p99, median ratio to ``onnx`` and its quartiles."""
    for engine in engines.values():
        for _ in range(5):
            engine(images)
    times: dict[str, list[float]] = {name: [] for name in engines}
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(next(iter(times.values()))) < 20:
        for name, engine in engines.items():
            started = time.perf_counter()
            engine(images)
            times[name].append(1e3 * (time.perf_counter() - started))
    result = {}
    for name, taken in times.items():
        p50, p90, p99 = np.percentile(taken, (50, 90, 99))
        result[name] = {"calls": len(taken), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
        if "onnx" in times:
            low, middle, high = np.percentile(np.array(times["onnx"]) / np.array(taken), (25, 50, 75))
            result[name] |= {"onnx_over_this": middle, "quartiles": [low, high]}
    return {name: {key: np.round(value, 4).tolist() for key, value in row.items()} for name, row in result.items()}


def run(bundle: Bundle, backend: str, batches: list[int], seconds: float, folder: Path) -> dict[str, Any]:
    """Builds and timings of one bundle by one TensorRT."""
    row: dict[str, Any] = {"builds": {}, "timings": {}}
    engines = {}
    for mode in MODES:
        options = BuildOptions(backend, head=mode, batch=max(batches), folder=folder)
        built, row["builds"][mode] = attempt(bundle, options)
        print(f"{bundle.path.name} {backend} {mode}: {json.dumps(row['builds'][mode])}", file=sys.stderr, flush=True)
        try:
            engines |= {mode: TensorRTEngine(bundle, built.plan, load_flavour(backend))} if built else {}
        except HpedgeError as error:
            row["builds"][mode] |= {"works": False, "reason": str(error)}
    manifest, pictures = bundle.manifest, bundle.golden()[0]
    for batch in batches if engines else ():
        images = [pictures[i % len(pictures)] for i in range(batch)]
        images = model_input(images, manifest.image_size, manifest.mean, manifest.std, manifest.input)
        try:
            row["timings"][f"batch {batch}"] = interleave(engines, images, seconds)
        except HpedgeError as error:
            row["timings"][f"batch {batch}"] = {"reason": str(error)}
    return row


def versions() -> dict[str, str | None]:
    """Of what took part."""
    found = {"python": platform.python_version()}
    for name in MODULES:
        try:
            found[name] = load_flavour(name).module.__version__
        except HpedgeError:
            found[name] = None
    return {**found, **{name: version(name) for name in ("hpdval-edge", "numpy")}}


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="A bundle; repeatable.")
    parser.add_argument("--batches", default="1,8", help="Pictures a call, comma-separated.")
    parser.add_argument("--seconds", type=float, default=3.0, help="Seconds of timing a batch size.")
    parser.add_argument("--out", type=Path, help="JSON file; else docs/gpu-CHIP-DATE.json.")
    arguments = parser.parse_args()
    try:
        facts: GpuFacts = open_cuda().facts()
    except HpedgeError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    batches = [int(part) for part in arguments.batches.split(",")]
    today = date.today().isoformat()
    out = arguments.out or DOCS / f"gpu-sm_{facts.capability}-{today}.json"
    report = {"date": today, "command": " ".join(["python", *sys.argv]), "gpu": asdict(facts), "versions": versions()}
    report["bundles"] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundles = [load_bundle(path) for path in arguments.bundle]
        for bundle in bundles or (random_bundle(name, folder, facts.capability) for name in STUDENTS):
            report["bundles"][str(bundle.path.name if not arguments.bundle else bundle.path)] = {
                backend: run(bundle, backend, batches, arguments.seconds, folder / f"{bundle.path.stem}.engines")
                for backend in MODULES
                if report["versions"][backend]
            }
            # After each, so that an end in the middle leaves what was measured.
            out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
