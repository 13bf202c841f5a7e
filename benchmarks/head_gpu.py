"""Time the fused dual-view head on a GPU against what a user could pick instead, in one process, interleaved.

    python benchmarks/head_gpu.py --json head_gpu.json
    python benchmarks/head_gpu.py --classes 20,80 --patches 196 --images 1 --dtype float16

Every contender is captured in a CUDA graph of `CALLS` calls, so that launches cost what they cost there; the graphs are
replayed in turn, a round each, and medians over rounds are compared. The text rows of the unfused contenders are
normalised beforehand, which the fused kernel does itself on every call. The roofline is

    t = max(bytes / bandwidth, 2 B C (N + 1) E / rate),   bytes = s (B E + B N E + 2 C E) + 4 B C

for inputs of s bytes, with the bandwidth of a copy and the rate of a large matrix product of the same dtype, both
measured in the same run. Exit code 4 without an NVIDIA GPU.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

CALLS = 20
ROUNDS = 15


def unit(x, dtype):
    """Rows of ``x`` at unit length, computed in float32."""
    import torch

    return torch.nn.functional.normalize(x.float(), dim=-1, eps=1e-12).to(dtype)


def unfused(cls, patches, text_global, text_local, k: int, alpha: float):
    """Two matrix products by cuBLAS, topk, mean; the text rows are unit already."""
    whole = unit(cls, cls.dtype) @ text_global.T
    cosines = unit(patches, patches.dtype) @ text_local.T
    return alpha * whole.float() + (1 - alpha) * cosines.topk(k, dim=1).values.float().mean(dim=1)


def captured(call: Callable[[], Any], calls: int = CALLS) -> Callable[[], None]:
    """Replay of a CUDA graph of ``calls`` calls, warmed up."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def microseconds(replay: Callable[[], None], calls: int = CALLS) -> float:
    """Time of one call within one replay."""
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    replay()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end) / calls


def interleaved(contenders: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Median, 10th and 90th percentile of each contender's time in microseconds, one round of each in turn."""
    replays = {name: captured(call) for name, call in contenders.items()}
    times = {name: [] for name in replays}
    for _ in range(ROUNDS):
        for name, replay in replays.items():
            times[name].append(microseconds(replay))
    return {
        name: {"median": statistics.median(values), "p10": sorted(values)[1], "p90": sorted(values)[-2]}
        for name, values in times.items()
    }


def limits(dtype) -> dict[str, float]:
    """Bandwidth of a copy in bytes a second, rate of a large matrix product in operations a second."""
    import torch

    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = captured(lambda: target.copy_(source))
    side = 8192
    left = torch.randn(side, side, device="cuda").to(dtype)
    multiply = captured(lambda: left @ left)
    copy_us = statistics.median(microseconds(copy) for _ in range(5))
    product_us = statistics.median(microseconds(multiply) for _ in range(5))
    return {"bytes_per_s": 2 * source.numel() / copy_us * 1e6, "flops_per_s": 2 * side**3 / product_us * 1e6}


def roofline_us(b: int, n: int, c: int, e: int, size: int, limit: dict[str, float]) -> float:
    """The least time that memory and arithmetic allow, in microseconds."""
    moved = size * (b * e + b * n * e + 2 * c * e) + 4 * b * c
    return 1e6 * max(moved / limit["bytes_per_s"], 2 * b * c * (n + 1) * e / limit["flops_per_s"])


def measure(b: int, n: int, c: int, e: int, dtype, limit: dict[str, float]) -> dict[str, Any]:
    """One size: times of every contender and the largest error against float64."""
    import torch

    from hpdval_edge.kernels import head_gpu
    from hpdval_edge.kernels.head import eager_scores

    k, alpha = min(32, n), 0.4
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((b, e), (b, n, e), (c, e), (c, e))
    arrays = tuple(torch.randn(s, device="cuda", generator=generator).to(dtype) for s in shapes)
    ready = (*arrays[:2], *(unit(x, dtype) for x in arrays[2:]))
    # Otherwise PyTorch gives up compiling after eight shapes and runs the function as it is.
    torch._dynamo.reset()
    compiled = torch.compile(unfused, dynamic=False)
    contenders = {
        "fused": lambda: head_gpu.run(arrays, k, alpha, False)[0],
        "unfused": lambda: unfused(*ready, k, alpha),
        "torch.compile": lambda: compiled(*ready, k, alpha),
    }
    # In float64 the similarities of the largest sizes would not fit: the first image stands for all.
    first = tuple(x[:1].double() for x in arrays[:2]) + tuple(x.double() for x in arrays[2:])
    expected = eager_scores(*first, k=k, alpha=alpha)[0]
    errors = {name: (call()[:1].double() - expected).abs().max().item() for name, call in contenders.items()}
    times = interleaved(contenders)
    roof = roofline_us(b, n, c, e, dtype.itemsize, limit)
    fused = times["fused"]["median"]
    others = {name: entry["median"] / fused for name, entry in times.items() if name != "fused"}
    size = {"images": b, "patches": n, "classes": c, "width": e}
    return {**size, "us": times, "max_error": errors, "roofline_us": roof, "of_roofline": roof / fused, "ratio": others}


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table of medians."""
    lines = ["| B | N | C | fused us | unfused us | torch.compile us | roofline us | of roofline |", "|" + " --- |" * 8]
    for row in results:
        medians = " | ".join(f"{row['us'][name]['median']:.1f}" for name in ("fused", "unfused", "torch.compile"))
        shape = f"{row['images']} | {row['patches']} | {row['classes']}"
        lines.append(f"| {shape} | {medians} | {row['roofline_us']:.1f} | {row['of_roofline']:.0%} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=numbers, default=[20, 80, 1000, 10000])
    parser.add_argument("--patches", type=numbers, default=[196, 576, 1024])
    parser.add_argument("--images", type=numbers, default=[1, 8, 32])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--json", help="file to write the results to")
    return parser.parse_args()


def main() -> int:
    """Measure every size, print a table, write JSON."""
    options = arguments()
    try:
        import torch
        import triton
    except ImportError as error:
        print(f"head_gpu: {error.name} is not installed; run: pip install 'hpdval-edge[export]'.", file=sys.stderr)
        return 4
    if not torch.cuda.is_available() or torch.version.hip:
        print("head_gpu: this measures on an NVIDIA GPU and there is none; nothing was run.", file=sys.stderr)
        return 4
    dtype = getattr(torch, options.dtype)
    limit = limits(dtype)
    results = []
    for c, n, b in product(options.classes, options.patches, options.images):
        results.append(measure(b, n, c, options.width, dtype, limit))
        print(table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    device = torch.cuda.get_device_properties(0)
    hardware = {"gpu": device.name, "capability": f"{device.major}.{device.minor}", "cuda": torch.version.cuda}
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    setting = {"dtype": options.dtype, "calls": CALLS, "rounds": ROUNDS, **hardware, **versions, "limits": limit}
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**setting, "sizes": results}, file, indent=2)
    print(f"{device.name}, {options.dtype}, torch {torch.__version__}, triton {triton.__version__}\n\n{table(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
