"""What must be so before an engine is built, and what should be."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from hpdval_edge.diagnosis import power_notes
from hpdval_edge.errors import MissingDependency
from hpdval_edge.machine import Machine
from hpdval_edge.platforms import dotted, find_jetpack, parse_version, tensorrt_notes
from hpdval_edge.trt.cuda import GpuFacts
from hpdval_edge.trt.flavour import Flavour

# Memory of a build: its process and, without a GPU of its own, the GPU's share. TensorRT-RTX was seen to take 300 MB
# and 3.1 times the model (ViT-Ti and ViT-B, fp16 and fp32); an estimate for everything else.
BASE_MIB, PER_MODEL = 300, 3.1
CMA_MIB = 64


def check(
    machine: Machine, gpu: GpuFacts | None, flavour: Flavour, *, model_bytes: int, workspace_mib: int, folder: Path
) -> list[str]:
    """What a user should know before the build, a sentence each.

    Args:
        machine: of this machine. gpu: None where nothing but the CPU is needed.
        folder: where the engine goes.

    Raises:
        MissingDependency: too little memory or disk; names both figures and the remedy.
    """
    needed = int(BASE_MIB + PER_MODEL * model_bytes / 2**20)
    if gpu is not None and gpu.integrated:
        needed += workspace_mib
    available, swap = _memory(machine)
    if available is not None and available + swap < needed:
        raise MissingDependency(
            f"building needs about {needed:,} MiB of memory, {available:,} MiB and {swap:,} MiB of swap are free; "
            "close other programs, add swap (on a Jetson: a swap file, zram off) or pass a smaller --workspace."
        )
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < 3 * model_bytes:
        raise MissingDependency(
            f"building needs {3 * model_bytes / 1e6:.0f} MB of disk at {existing}, {free / 1e6:.0f} MB are free."
        )
    return list(_notes(machine, gpu, flavour, available, needed))


def _notes(
    machine: Machine, gpu: GpuFacts | None, flavour: Flavour, available: int | None, needed: int
) -> Iterator[str]:
    if available is not None and available < needed:
        yield f"memory is short ({available:,} MiB free of about {needed:,}), so that swap will be used and take long"
    cma = _meminfo(machine).get("CmaFree")
    if machine.l4t and cma is not None and cma < CMA_MIB:
        yield f"{cma} MiB of contiguous memory (CMA) are free; if the build fails for want of memory, restart the board"
    yield from power_notes(machine)
    capabilities = [gpu.capability] if gpu else []
    if not flavour.rtx:
        yield from (f"{flavour.title} {text}" for text in tensorrt_notes(flavour.version, capabilities))
    jetpack = find_jetpack(machine.l4t) if machine.l4t else None
    if jetpack and jetpack.tensorrt and flavour.version[:2] != jetpack.tensorrt[:2]:
        yield f"{flavour.title} is installed, JetPack {jetpack.name} brings {dotted(jetpack.tensorrt)}"
    if jetpack and jetpack.cuda and gpu and parse_version(gpu.driver) < jetpack.cuda:
        yield f"the driver serves CUDA {gpu.driver}, JetPack {jetpack.name} brings {dotted(jetpack.cuda)}"


def _memory(machine: Machine) -> tuple[int | None, int]:
    """MiB of memory that can be had, and of free swap."""
    facts = _meminfo(machine)
    return facts.get("MemAvailable"), facts.get("SwapFree", 0)


def _meminfo(machine: Machine) -> dict[str, int]:
    """MiB by name of /proc/meminfo."""
    try:
        text = Path(machine.root, "proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    rows = (line.split() for line in text.splitlines())
    return {row[0].rstrip(":"): int(row[1]) >> 10 for row in rows if len(row) > 1 and row[1].isdigit()}
