"""Pictures a second of `hpedge infer` beside its engine alone, a plain script and an all-torch pipeline.

    python benchmarks/throughput.py --out build/bench [--docs docs/benchmarks.md] [--cells "vit_tiny int8 80 640x480"]

Students with random weights, which speed does not depend on; drawn JPEG photos. Each way (throughput_ways.py) is a
process of its own that is started once a cell and works while the others wait, in turns; a ratio is of two runs of one
turn. Written to OUT/throughput.json, and as a table between the marks of DOCS.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from hpdval_edge.bundle import GOLDEN, MODEL, TEXT, Manifest, sha256, write_thresholds

ENCODERS = {"vit_tiny": "vit_tiny_patch16_224", "vit_base": "vit_base_patch16_224"}
SIZE, EMBED_DIM, TOPK, ALPHA, HALF = 224, 512, 32, 0.4, (0.5, 0.5, 0.5)
CELLS = (
    *("vit_base fp32 80 640x480", "vit_base fp32 1000 640x480", "vit_tiny fp32 80 640x480"),
    *("vit_tiny fp32 1000 640x480", "vit_tiny int8 80 640x480", "vit_tiny int8 1000 640x480"),
    *("vit_tiny int8 80 1920x1080",),
)
WAYS = ("hpedge", "engine", "engine x CPUs", "script", "torch")
# A folder holds as many pictures as a way works through in about so many seconds, a multiple of this many.
STEP = 16
MARKS = ("<!-- table: benchmarks/throughput.py -->", "<!-- end -->")


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table."""

    encoder: str
    precision: str
    labels: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> "Cell":
        encoder, precision, labels, size = text.split()
        return cls(encoder, precision, int(labels), *map(int, size.split("x")))

    @property
    def goals(self) -> dict[str, float]:
        """Least pictures a second of hpedge, in those of the other ways."""
        found = {"engine": 0.9 if self.encoder == "vit_base" else 0.75, "torch": 5.0}
        if self.precision == "int8":
            found["script"] = 1.25 if self.labels < 1000 else 1.6
        return found


def model_file(cell: Cell, work: Path) -> Path:
    """The student's model.onnx, made once."""
    path = work / f"{cell.encoder}-{cell.precision}.onnx"
    if not path.exists():
        import onnx
        from int8 import deployed, quantised

        from hpdval_edge.export.graph import write_onnx

        name = ENCODERS[cell.encoder]
        write_onnx(deployed(name, SIZE, False), path, image_size=SIZE, embed_dim=EMBED_DIM)
        if cell.precision == "int8":
            rng = np.random.default_rng(0)
            bank = rng.standard_normal((80, EMBED_DIM)).astype(np.float32)
            image = rng.standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
            _, rounded = quantised(path, False, {"image": image, "text_global": bank, "text_local": bank})
            onnx.save(rounded, path)
    return path


def make_bundle(cell: Cell, work: Path) -> Path:
    """A bundle with random text banks."""
    from safetensors.numpy import save

    folder = work / f"{cell.encoder}-{cell.precision}-{cell.labels}.hpedge"
    if folder.exists():
        return folder
    folder.mkdir()
    os.link(model_file(cell, work), folder / MODEL)
    bank = np.random.default_rng(0).standard_normal((cell.labels, EMBED_DIM)).astype(np.float32)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    (folder / TEXT).write_bytes(save({"global": bank, "local": bank}))
    np.savez(folder / GOLDEN, images=np.zeros((1, SIZE, SIZE, 3), np.uint8), scores=np.zeros((1, cell.labels)))
    labels = tuple(f"label {index}" for index in range(cell.labels))
    manifest = Manifest(
        schema=1, name=ENCODERS[cell.encoder], labels=labels, image_size=SIZE, mean=HALF, std=HALF, alpha=ALPHA,
        topk=TOPK, grid=(14, 14), embed_dim=EMBED_DIM, logit_scale=20.0, precision=cell.precision, provenance={},
        files={path.name: sha256(path.read_bytes()) for path in folder.iterdir()},
    )  # fmt: skip
    write_thresholds(folder, manifest, {"labels": labels, "values": [0.2] * len(labels), "fitted_at": cell.precision})
    return folder


def draw(folder: Path, width: int, height: int, count: int = 24) -> list[Path]:
    """JPEG files of quality 90 with shapes of all sizes and a little grain, about as large as photos are."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:03}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        if not path.exists():
            rng = np.random.default_rng(index)
            canvas = Image.new("RGB", (width, height))
            for cells in (4, 16, 64):
                layer = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
                layer = layer.resize((width, height), Image.Resampling.BICUBIC)
                canvas = Image.blend(canvas, layer, 0.5)
            grain = Image.fromarray(rng.normal(128, 6, (height, width)).clip(0, 255).astype(np.uint8))
            grain = grain.filter(ImageFilter.GaussianBlur(0.6)).convert("RGB")
            Image.blend(canvas, grain, 0.3).save(path, quality=90)
    return paths


def folder_of(pictures: list[Path], count: int, work: Path) -> Path:
    """A folder with ``count`` of them, as links, again and again."""
    folder = work / f"{pictures[0].parent.name}-{count}"
    if not folder.exists():
        folder.mkdir()
        for index in range(count):
            os.link(pictures[index % len(pictures)], folder / f"{index:05}.jpg")
    return folder


class Way:
    """A process that works through folders when it is told to."""

    def __init__(self, name: str, bundle: Path) -> None:
        program = Path(__file__).with_name("throughput_ways.py")
        command = [sys.executable, str(program), name, str(bundle)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak = 0.0

    def rate(self, folder: Path) -> float:
        """Pictures a second."""
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        self.peak = told["peak"]
        return told["pictures"] / told["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def first_result(bundle: Path, folder: Path, runs: int = 5) -> list[float]:
    """Seconds from the start of a fresh `hpedge infer` to its first line, in order; the first start is not counted.

    The backend is named: choosing it would import what CUDA packages a developer's machine has.
    """
    options = ["--model", str(bundle), "--format", "jsonl", "--backend", "onnxruntime"]
    command = [sys.executable, "-m", "hpdval_edge", "infer", str(folder), *options]
    found = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            process.stdout.readline()
            found.append(time.perf_counter() - start)
            process.kill()
    return sorted(found[1:])


def measure(cell: Cell, work: Path, rounds: int, seconds: float) -> dict:
    """Rates, ratios, peaks and the time to the first result of one cell."""
    bundle, pictures = make_bundle(cell, work), draw(work / f"{cell.width}x{cell.height}", cell.width, cell.height)
    ways = {name: Way(name, bundle) for name in WAYS}
    try:
        folders = {}
        for name, way in ways.items():
            speed = way.rate(folder_of(pictures, STEP, work))
            folders[name] = folder_of(pictures, max(1, round(speed * seconds / STEP)) * STEP, work)
        rates = [{name: way.rate(folders[name]) for name, way in ways.items()} for _ in range(rounds)]
        peaks = {name: way.peak for name, way in ways.items()}
    finally:
        for way in ways.values():
            way.close()
    megabytes = sum(path.stat().st_size for path in pictures) / len(pictures) / 1e6
    start = first_result(bundle, folder_of(pictures, STEP, work)) if cell.encoder == "vit_tiny" else None
    return {"cell": cell_name(cell), "rates": rates, "peaks": peaks, "first_result": start, "megabytes": megabytes}


def cell_name(cell: Cell) -> str:
    return f"{cell.encoder} {cell.precision} {cell.labels} {cell.width}x{cell.height}"


def ratios(result: dict, name: str) -> list[float]:
    """hpedge's rate over another way's, turn by turn, sorted; of the engine, the faster of its two arrangements."""
    names = ("engine", "engine x CPUs") if name == "engine" else (name,)
    return sorted(turn["hpedge"] / max(turn[other] for other in names) for turn in result["rates"])


def row(result: dict) -> str:
    """A line of the table."""
    goals = Cell.parse(result["cell"]).goals
    medians = [f"{statistics.median(turn[name] for turn in result['rates']):.1f}" for name in WAYS]
    told = []
    for name in ("engine", "script", "torch"):
        found = ratios(result, name)
        goal = f", goal {goals[name]:g}" if name in goals else ""
        told.append(f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f}){goal}")
    alone = max(result["peaks"][name] for name in ("engine", "engine x CPUs"))
    memory = f"{result['peaks']['hpedge']:.0f} / {alone:.0f} MB = {result['peaks']['hpedge'] / alone:.2f}"
    first = f"{statistics.median(result['first_result']):.2f}" if result["first_result"] else "-"
    return "| " + " | ".join((result["cell"], *medians, *told, memory, first)) + " |"


def table(results: list[dict], machine: str) -> str:
    """Markdown."""
    head = ("cell", *WAYS, "x engine", "x script", "x torch", "memory", "first result, s")
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1), *map(row, results)]
    return "\n".join((machine, "", *lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder for throughput.json.")
    parser.add_argument("--docs", type=Path, help="Page with the marks of the table.")
    parser.add_argument("--work", type=Path, help="Folder that keeps models and pictures for the next time.")
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="Of each way's work in a round.")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "torch", "pillow", "numpy"))
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, {versions}."
    results = []
    for text in arguments.cells:
        results.append(measure(Cell.parse(text), work, arguments.rounds, arguments.seconds))
        print(row(results[-1]), flush=True)
    if not arguments.work:
        shutil.rmtree(work)
    arguments.out.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine, "results": results}
    (arguments.out / "throughput.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    if arguments.docs:
        page = arguments.docs.read_text(encoding="utf-8")
        before, _, rest = page.partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        content = f"{before}{MARKS[0]}\n\n{table(results, machine)}\n\n{MARKS[1]}{after}"
        arguments.docs.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
