"""Time int8 against float32 in ONNX Runtime for students with random weights, which speed does not depend on.

    python benchmarks/int8.py [vit_tiny_patch16_224:224 vit_base_patch16_224:224 ...] [--keep DIR]

Interleaved in one process, as `hpedge export --int8` does it: one picture, median and quartiles of the ratio. --keep
writes the models there, int8 and int8-fp16, for other engines to try.
"""

import argparse
import os
import platform
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import torch

from hpdval_edge.export import int8
from hpdval_edge.export.calibrate_int8 import histograms
from hpdval_edge.export.deployed import Deployed
from hpdval_edge.export.graph import write_onnx
from hpdval_edge.export.quantise import CPU, TENSORRT, layers, load_graph, quantise, quantised_tensors
from hpdval_edge.training.student import EncoderSpec, Student, build_encoder

EMBED_DIM, LABELS, TOPK, ALPHA = 512, 80, 32, 0.4
HALF = (0.5, 0.5, 0.5)


def deployed(name: str, size: int, half: bool) -> Deployed:
    """A student of timm's architecture ``name`` with random weights, and the head."""
    torch.manual_seed(0)
    spec = EncoderSpec(name, size, HALF, HALF)
    student = Student(spec, build_encoder(spec), embed="clip_proj", embed_act="none", embed_dim=EMBED_DIM)
    return Deployed(SimpleNamespace(kind="cosine", student=student, alpha=ALPHA, topk=TOPK), half=half)


def quantised(path: Path, half: bool, feed: dict[str, np.ndarray]) -> tuple[onnx.ModelProto, ...]:
    """The float model in the file and its int8 version, with ranges of one random picture."""
    rules = TENSORRT if half else CPU
    model = load_graph(str(path))
    banks = {name: bank for name, bank in feed.items() if name != "image"}
    found = histograms(model, quantised_tensors(model, rules), iter([feed["image"]]), banks)
    limits = {name: histogram.percentile(99.99) for name, histogram in found.items()}
    unsigned = {name for name, histogram in found.items() if not histogram.negative}
    return model, quantise(model, limits, unsigned=unsigned, rules=rules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["vit_tiny_patch16_224:224", "vit_base_patch16_224:224"])
    parser.add_argument("--keep", type=Path, help="Folder for the models.")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs")
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((LABELS, EMBED_DIM)).astype(np.float32)
    for text in arguments.models:
        name, _, size = text.partition(":")
        size = int(size or 224)
        image = rng.standard_normal((1, 3, size, size)).astype(np.float32)
        feed = {"image": image, "text_global": bank, "text_local": bank}
        for half in (False, True) if arguments.keep else (False,):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                write_onnx(deployed(name, size, half), path, image_size=size, embed_dim=EMBED_DIM)
                exact, rounded = quantised(path, half, feed)
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                onnx.save(rounded, arguments.keep / f"{name}-{'int8-fp16' if half else 'int8'}.onnx")
            sizes = f"{exact.ByteSize() / 1e6:.1f} -> {rounded.ByteSize() / 1e6:.1f} MB"
            verdict = "not timed" if half else int8.measure_speed(exact, rounded, feed)
            print(f"{name} {size} px, {len(layers(exact))} layers, {sizes}: {verdict}", flush=True)


if __name__ == "__main__":
    main()
