"""Search the launch table of the GPU head (`kernels/head_launch.py`) on the GPU at hand.

    python benchmarks/head_tune.py --json head_tune.json
    python benchmarks/head_tune.py --patches 196 --dtype float16

For every number of patches and dtype each candidate is compiled in a pool of processes and timed in CUDA graphs at
`SIZES`, all in one process and interleaved. Printed are, per size, the fastest candidates, and for each group of sizes
the candidate with the smallest geometric mean of time over fastest time: a row of the table. Exit code 4 without an
NVIDIA GPU.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Any

from head_gpu import captured, microseconds

from hpdval_edge.kernels import head_gpu
from hpdval_edge.kernels.head_launch import Launch

# (images, classes): launches that leave much of a large GPU idle, and those that fill it many times.
SIZES = {"few": ((1, 20), (1, 80), (8, 80), (1, 1000), (32, 80)), "many": ((8, 1000), (32, 1000), (8, 10000))}
TILES = {49: (64, 0), 100: (128, 0), 196: (256, 0), 400: (512, 0), 576: (512, 64), 729: (512, 256), 1024: (1024, 0)}
CALLS, ROUNDS = 10, 5


def candidates(patches: int, itemsize: int) -> list[Launch]:
    """Launches whose accumulators and buffers a multiprocessor can hold."""
    block_n, tail_n = TILES[patches]
    columns = block_n + tail_n
    found = []
    for block_c, block_e, warps, stages in product((8, 16, 32, 64, 128), (16, 32, 64, 128), (4, 8, 16), (2, 3)):
        accumulators = block_c * columns / (32 * warps)
        buffers = stages * itemsize * block_e * (columns + block_c)
        fits = 16 <= accumulators <= 160 and 16 << 10 <= buffers <= 160 << 10
        # Tensor cores take 16 classes at least; plain multiply-adds gain nothing from wide steps.
        usual = block_c >= 16 if itemsize == 2 else block_e <= 32
        if fits and usual and (warps < 16 or columns == 1024):
            found.append(Launch(block_c, block_n, tail_n, block_e, warps, stages))
    return found


def arrays(images: int, patches: int, classes: int, width: int, dtype: str) -> tuple:
    """cls, patches, text_global, text_local of normal numbers."""
    import torch

    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((images, width), (images, patches, width), (classes, width), (classes, width))
    return tuple(torch.randn(s, device="cuda", generator=generator).to(getattr(torch, dtype)) for s in shapes)


def use(launch: Launch) -> None:
    """Make `head_gpu` launch this one."""
    head_gpu.tuned_for = lambda *_: launch


def compiled(job: tuple[Launch, int, str, int]) -> str | None:
    """Compile one launch into triton's cache; what went wrong, or None."""
    from triton.errors import TritonError

    launch, patches, dtype, width = job
    use(launch)
    try:
        head_gpu.run(arrays(1, patches, 16, width, dtype), 32, 0.4, False)
    except (TritonError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def measured(job: tuple[Launch, int, str, int], images: int, classes: int) -> tuple:
    """Replay of a graph of `CALLS` launches, as head_gpu.captured gives, and the tensors that it reads."""
    launch, patches, dtype, width = job
    use(launch)
    inputs = arrays(images, patches, classes, width, dtype)
    return captured(lambda: head_gpu.run(inputs, 32, 0.4, False), CALLS), inputs


def times(jobs: list[tuple], images: int, classes: int) -> list[float]:
    """Median microseconds of every job at one size, rounds interleaved."""
    graphs = [measured(job, images, classes) for job in jobs]
    rounds = [[microseconds(replay, CALLS) for replay, _ in graphs] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def search(patches: int, dtype: str, jobs: list[tuple]) -> dict[str, Any]:
    """Best launch per group of sizes for one number of patches."""
    result: dict[str, Any] = {"patches": patches, "dtype": dtype, "sizes": [], "best": {}}
    by_size = {size: times(jobs, *size) for group in SIZES.values() for size in group}
    for size, column in by_size.items():
        order = sorted(range(len(jobs)), key=column.__getitem__)
        result["sizes"].append([*size, {str(jobs[i][0]): column[i] for i in order}])
        print(f"N={patches} {dtype} B={size[0]} C={size[1]}")
        for i in order[:4]:
            print(f"  {column[i]:8.1f} us {jobs[i][0]}")
    for group, sizes in SIZES.items():
        loss = [
            statistics.fmean(math.log(by_size[size][i] / min(by_size[size])) for size in sizes)
            for i in range(len(jobs))
        ]
        best = min(range(len(jobs)), key=loss.__getitem__)
        result["best"][group] = [str(jobs[best][0]), math.exp(loss[best])]
        print(f"N={patches} {dtype} {group}: {jobs[best][0]}, {math.exp(loss[best]):.2f} of the fastest", flush=True)
    return result


def main() -> int:
    """Search, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=lambda text: [int(x) for x in text.split(",")], default=list(TILES))
    parser.add_argument("--dtype", default="float16,float32")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--json", help="file to write the results to")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available() or torch.version.hip:
        print("head_tune: this measures on an NVIDIA GPU and there is none; nothing was run.", file=sys.stderr)
        return 4
    jobs = [
        (launch, patches, dtype, options.width)
        for dtype in options.dtype.split(",")
        for patches in options.patches
        for launch in candidates(patches, getattr(torch, dtype).itemsize)
    ]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        faults = dict(zip(jobs, pool.map(compiled, jobs), strict=True))
    print(f"{torch.cuda.get_device_name()}: {len(jobs)} candidates", flush=True)
    for job, fault in faults.items():
        if fault:
            print(f"left out: {job[0]} at N={job[1]} {job[2]}: {fault.splitlines()[0]}", flush=True)
    results = []
    for dtype, patches in product(options.dtype.split(","), options.patches):
        fit = [job for job in jobs if job[1:3] == (patches, dtype) and faults[job] is None]
        if not fit:
            print(f"N={patches} {dtype}: no candidate compiles")
            continue
        results.append(search(patches, dtype, fit))
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump({"gpu": torch.cuda.get_device_name(), "results": results}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
