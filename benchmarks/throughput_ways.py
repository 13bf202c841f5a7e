"""The ways that `throughput.py` compares, each in a process of its own, which says how long a folder takes it.

python benchmarks/throughput_ways.py WAY BUNDLE    # a folder a line on stdin, a JSON object a line on stdout
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from hpdval_edge.bundle import MODEL, load_bundle
from hpdval_edge.predictor import Predictor

BATCH = 8


def hpedge(bundle: Path) -> Callable[[Path], None]:
    """What `hpedge infer FOLDER --format jsonl > /dev/null` does after its start."""
    from hpdval_edge.infer import infer
    from hpdval_edge.outputs.output import ModelInfo
    from hpdval_edge.outputs.text import text_output
    from hpdval_edge.pipeline import schedule
    from hpdval_edge.sources.pictures import Pictures

    plan = schedule(0, live=False)
    predictor = Predictor(bundle, "onnxruntime", threads=plan.engine_threads)
    info = ModelInfo.of(predictor.bundle, predictor.thresholds)

    def run(folder: Path) -> None:
        with open(os.devnull, "w", encoding="utf-8") as null:
            output = text_output("jsonl", null, info)
            infer(predictor, Pictures([str(folder)]), [output], plan=plan)

    return run


def engine(bundle: Path, threads: int, callers: int, batch: int) -> Callable[[Path], None]:
    """The engine of `hpedge infer` alone, on a batch that is prepared already."""
    predictor = Predictor(bundle, "onnxruntime", threads=threads)
    image = predictor.prepare([np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)] * batch)

    def run(folder: Path) -> None:
        turns = len(os.listdir(folder)) // batch // callers

        def call() -> None:
            for _ in range(turns):
                predictor.engine(image, False)

        others = [threading.Thread(target=call) for _ in range(callers - 1)]
        for thread in others:
            thread.start()
        call()
        for thread in others:
            thread.join()

    return run


def squashed(path: Path, size: int) -> Image.Image:
    """A picture as Pillow alone reads and resizes it."""
    with Image.open(path) as image:
        return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def batches(folder: Path) -> list[list[Path]]:
    """The folder's pictures, BATCH at a time."""
    paths = sorted(folder.iterdir())
    return [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]


def write(file: object, labels: tuple[str, ...], paths: list[Path], scores: np.ndarray) -> None:
    """Scores as JSON lines."""
    for path, row in zip(paths, scores.tolist(), strict=True):
        file.write(json.dumps({"path": str(path), "scores": dict(zip(labels, row, strict=True))}) + "\n")


def script(bundle: Path) -> Callable[[Path], None]:
    """As one would write it: Pillow, a batch, ONNX Runtime with all CPUs up to the head, the head in NumPy."""
    import onnxruntime

    from hpdval_edge.engine_onnxruntime import BORDER, with_outputs

    held = load_bundle(bundle)
    manifest = held.manifest
    whole, local = unit(held.text_global).T, unit(held.text_local).T
    one = {"text_global": held.text_global[:1], "text_local": held.text_local[:1]}
    session = onnxruntime.InferenceSession(with_outputs(held.read(MODEL), BORDER), providers=["CPUExecutionProvider"])
    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    mean, std = np.array(manifest.mean, np.float32), np.array(manifest.std, np.float32)

    def run(folder: Path) -> None:
        with open(os.devnull, "w", encoding="utf-8") as null:
            for paths in batches(folder):
                pixels = np.stack([np.asarray(squashed(path, manifest.image_size)) for path in paths])
                images = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
                cls, patches = session.run(BORDER, {"image": np.ascontiguousarray(images), **one}, options)
                cosines = unit(patches) @ local
                best = -np.partition(-cosines, manifest.topk - 1, axis=1)[:, : manifest.topk]
                scores = manifest.alpha * (unit(cls) @ whole) + (1 - manifest.alpha) * best.mean(axis=1)
                write(null, manifest.labels, paths, scores)

    return run


def all_torch(bundle: Path) -> Callable[[Path], None]:
    """Pillow, torchvision's transforms, timm's model in eager PyTorch with all CPUs, the head in PyTorch; float32."""
    import torch
    from torch.nn.functional import normalize
    from torchvision.transforms import v2

    from hpdval_edge.training.student import EncoderSpec, Student, build_encoder

    held = load_bundle(bundle)
    manifest = held.manifest
    spec = EncoderSpec(manifest.name, manifest.image_size, manifest.mean, manifest.std)
    student = Student(spec, build_encoder(spec), embed="clip_proj", embed_act="none", embed_dim=manifest.embed_dim)
    student.eval()
    whole, local = (normalize(torch.from_numpy(bank), dim=1).T for bank in (held.text_global, held.text_local))
    size = (manifest.image_size, manifest.image_size)
    transform = v2.Compose([v2.Resize(size, v2.InterpolationMode.BICUBIC, antialias=True), v2.ToImage()])
    scale = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(manifest.mean, manifest.std)])

    @torch.inference_mode()
    def run(folder: Path) -> None:
        with open(os.devnull, "w", encoding="utf-8") as null:
            for paths in batches(folder):
                pictures = [Image.open(path).convert("RGB") for path in paths]
                images = torch.stack([scale(transform(picture)) for picture in pictures])
                features = student.encoder.forward_features(images)
                cls, patches = student.embed_cls(features[:, 0]), student.embed_patches(features[:, 1:])
                best = (normalize(patches, dim=-1) @ local).topk(manifest.topk, dim=1).values.mean(dim=1)
                scores = manifest.alpha * (normalize(cls, dim=-1) @ whole) + (1 - manifest.alpha) * best
                write(null, manifest.labels, paths, scores.numpy())

    return run


WAYS = {
    "hpedge": hpedge,
    "engine": lambda bundle: engine(bundle, threads=0, callers=1, batch=BATCH),
    "engine x CPUs": lambda bundle: engine(bundle, threads=1, callers=len(os.sched_getaffinity(0)), batch=2),
    "script": script,
    "torch": all_torch,
}


def peak_megabytes() -> float:
    """The most memory this process held at once; unlike getrusage's, not its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    way, bundle = sys.argv[1:]
    run = WAYS[way](Path(bundle))
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        start = time.perf_counter()
        run(folder)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "pictures": len(os.listdir(folder)), "peak": peak_megabytes()}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
