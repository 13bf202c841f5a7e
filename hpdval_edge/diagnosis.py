"""What the facts of a machine mean: its board, what runs there and how, what to install, whether a bundle fits."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from hpdval_edge.bundle import KERNELS, Bundle
from hpdval_edge.errors import BadData
from hpdval_edge.machine import Machine
from hpdval_edge.platforms import (
    BF16_FEATURES,
    CHIPS,
    JETPACKS,
    Chip,
    JetPack,
    Version,
    dotted,
    find_chip,
    find_jetpack,
    head_modes,
    parse_version,
    rtx_head_modes,
    tensorrt_notes,
)
from hpdval_edge.runtimes import BACKENDS

# What `hpedge export` writes, and the options that ask for it; int8 is there as ONNX alone.
PRECISIONS = {"fp32": "", "fp16": " --fp16", "int8": " --int8", "int8-fp16": " --int8 --fp16"}
FLOATS = ("fp32", "fp16")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a backend on the CPU needs: one of ``packages``, which ``install`` brings, and one of ``features``, if any.

    computes: precision of its floats, where it is not the bundle's own.
    """

    packages: tuple[str, ...]
    install: str
    precisions: tuple[str, ...] = FLOATS
    computes: str | None = None
    features: tuple[str, ...] = ()


_OPENVINO = (("openvino",), "'hpdval-edge[openvino]'", (*FLOATS, "int8"))
NEEDS = {
    "onnxruntime": Needs(("onnxruntime", "onnxruntime-gpu"), "hpdval-edge", tuple(PRECISIONS), "float32"),
    "openvino": Needs(*_OPENVINO, "float32"),
    "openvino-bf16": Needs(*_OPENVINO, "bfloat16", BF16_FEATURES),
    "torchscript": Needs(("torch",), "'hpdval-edge[export]'"),
    "pt2": Needs(("torch",), "'hpdval-edge[export]'"),
}
OLDEST_PYTHON = (3, 10)
OLDEST_TENSORRT = (10, 0)
MOUNT = "-v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"


def diagnose(machine: Machine, bundle: Bundle | None = None) -> dict[str, Any]:
    """The report of ``hpedge doctor --json``: machine (the facts), board, backends, notes, install, bundle."""
    jetpack = find_jetpack(machine.l4t) if machine.l4t else None
    chip, told_by = find_chip(machine.model, machine.l4t, machine.cpu_part)
    capabilities = _capabilities(machine, chip)
    board = {
        "jetson": bool(machine.l4t or chip),
        "l4t": dotted(machine.l4t) if machine.l4t else None,
        "jetpack": machine.jetpack_package or (jetpack.name if jetpack else None),
        "chip": chip.name if chip else None,
        "chip_told_by": told_by or None,
        "sm": [f"sm_{capability}" for capability in capabilities],
    }
    notes = [*machine.problems, *_board_notes(machine, jetpack, chip), *_tensorrt_notes(machine, jetpack, capabilities)]
    backends = [*_backends(machine), *_gpu_backends(machine, capabilities)]
    return {
        "machine": asdict(machine),
        "board": board,
        "backends": backends,
        "notes": notes,
        "install": list(_install(machine, jetpack)),
        "bundle": bundle and _bundle(bundle, backends, jetpack, capabilities),
    }


def listed(names: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = names or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _capabilities(machine: Machine, chip: Chip | None) -> list[int]:
    found = {gpu.capability for gpu in machine.gpus if gpu.capability}
    return sorted(found | ({chip.capability} if chip else set()))


def _backends(machine: Machine) -> Iterator[dict[str, Any]]:
    """What runs bundles on the CPU."""
    for name, needs in NEEDS.items():
        found = next((package for package in needs.packages if package in machine.packages), None)
        reason = None if found else f"needs {needs.packages[0]}: pip install {needs.install}"
        able = not needs.features or not {*needs.features}.isdisjoint(machine.cpu_features)
        if not able:
            reason = f"needs a CPU with {', '.join(needs.features[:-1])} or {needs.features[-1]}"
        yield {
            "name": name,
            "works": reason is None,
            "with": found and f"{found} {machine.packages[found]}",
            "reason": reason,
            "precisions": list(needs.precisions) if able else [],
            "computes": needs.computes,
            # The exported model computes the head in plain operators. Value: why it cannot be carried so.
            "head_modes": {"onnx": None} if able else {},
        }


def _gpu_backends(machine: Machine, capabilities: list[int]) -> Iterator[dict[str, Any]]:
    """What builds engines and runs them on the GPU."""
    for found in machine.tensorrt:
        version = parse_version(found.version)
        reason = _lacks_for_tensorrt(machine, version, found.module, capabilities)
        yield _gpu_row("tensorrt", f"TensorRT {dotted(version)}", head_modes(version, capabilities), reason)
    if not machine.tensorrt:
        yield _gpu_row("tensorrt", None, {}, "TensorRT was not found")
    packages = [package for package in machine.packages if package.startswith("tensorrt-rtx")]
    if packages:
        title = f"{packages[0]} {machine.packages[packages[0]]}"
        reason = _lacks_for_engines(machine, capabilities)
        yield _gpu_row("tensorrt-rtx", title, rtx_head_modes(capabilities), reason)
    else:
        yield _gpu_row("tensorrt-rtx", None, {}, "needs tensorrt-rtx-cu13: pip install 'hpdval-edge[rtx]'")


def _gpu_row(name: str, title: str | None, modes: dict[str, str | None], reason: str | None) -> dict[str, Any]:
    able = None in modes.values()
    if reason is None and not able:
        reason = next(iter(modes.values()))
    row = {"name": name, "works": reason is None, "with": title, "reason": reason}
    return {**row, "precisions": list(PRECISIONS) if able else [], "computes": None, "head_modes": modes}


def _lacks_for_tensorrt(machine: Machine, version: Version, module: bool, capabilities: list[int]) -> str | None:
    if version < OLDEST_TENSORRT:
        return f"needs TensorRT {dotted(OLDEST_TENSORRT)} or later, which keeps a graph's own types"
    if not module:
        return "its Python module is not installed here (apt: python3-libnvinfer)"
    return _lacks_for_engines(machine, capabilities)


def _lacks_for_engines(machine: Machine, capabilities: list[int]) -> str | None:
    if not capabilities:
        return "no NVIDIA GPU was found"
    ours = next((machine.packages[name] for name in ("cuda-bindings", "cuda-python") if name in machine.packages), None)
    if ours is None:
        return "needs cuda-python: pip install 'hpdval-edge[tensorrt]'"
    major, cuda = parse_version(ours)[:1], parse_version(machine.cuda or "")[:1]
    if cuda and major > cuda:
        return f"cuda-python {ours} is too new for CUDA {machine.cuda}: pip install 'cuda-python<{cuda[0] + 1}'"
    return None


def _board_notes(machine: Machine, jetpack: JetPack | None, chip: Chip | None) -> Iterator[str]:
    if machine.l4t and jetpack is None:
        known = f"R{JETPACKS[0].l4t[0]} to R{dotted(JETPACKS[-1].l4t)}"
        yield (
            f"JetPack is unknown for L4T R{dotted(machine.l4t)}, this version knows {known}; head modes go by the "
            "version of TensorRT alone."
        )
    if machine.l4t and chip is None:
        yield (
            f"The chip is unknown: neither the model {machine.model!r} nor the CPU ({machine.cpu}) tells it; "
            "run hpedge doctor outside of a container."
        )
    if chip and jetpack and chip.name not in jetpack.chips:
        yield f"L4T R{dotted(machine.l4t)} is for {' and '.join(jetpack.chips)}, this is {chip.name}; check the image."
    if machine.container and machine.l4t:
        yield f"In a container L4T may be the image's, not the board's; start it with {MOUNT} to be sure."
    alike = next((known for known in CHIPS if known.cpu_part == machine.cpu_part), None)
    if alike and not machine.l4t and chip is None:
        yield (
            f"The CPU has {alike.name}'s cores ({alike.cpu}), but there is no /etc/nv_tegra_release; if this is a "
            f"container on a Jetson, start it with {MOUNT}."
        )
    if jetpack and jetpack.python and jetpack.python < OLDEST_PYTHON:
        yield (
            f"JetPack {jetpack.name} has Python {dotted(jetpack.python)} and hpedge needs {dotted(OLDEST_PYTHON)} or "
            "later; install one beside it."
        )
    yield from power_notes(machine)


def power_notes(machine: Machine) -> Iterator[str]:
    """Whether the board could run faster, and how, by its own table."""
    name = machine.power_modes.get(machine.power_mode)
    fastest = next((number for number, mode in machine.power_modes.items() if mode.startswith("MAXN")), None)
    if name and fastest is not None and not name.startswith("MAXN"):
        yield f"Power mode {name} is below {machine.power_modes[fastest]}; `sudo nvpmodel -m {fastest}` sets that."


def _tensorrt_notes(machine: Machine, jetpack: JetPack | None, capabilities: list[int]) -> Iterator[str]:
    for engine in machine.tensorrt:
        version = parse_version(engine.version)
        yield from (f"TensorRT {dotted(version)} {text}." for text in tensorrt_notes(version, capabilities))
    ours = parse_version(machine.python or "")[:2]
    importable = any(engine.module for engine in machine.tensorrt)
    if jetpack and jetpack.python and ours and ours != jetpack.python and not importable:
        yield (
            f"JetPack {jetpack.name}'s TensorRT module is for Python {dotted(jetpack.python)}, this is {dotted(ours)}; "
            "install hpedge into that Python, in a virtual environment made with --system-site-packages."
        )


def _install(machine: Machine, jetpack: JetPack | None) -> Iterator[str]:
    if not any(package in machine.packages for package in NEEDS["onnxruntime"].packages):
        yield "pip install hpdval-edge, which brings onnxruntime: bundles run on the CPU with it."
    if machine.l4t and not machine.tensorrt:
        brings = f"; JetPack {jetpack.name} brings {dotted(jetpack.tensorrt)}" if jetpack and jetpack.tensorrt else ""
        yield f"sudo apt install nvidia-jetpack, for TensorRT (not found{brings}); on the CPU hpedge does without."


def _bundle(
    bundle: Bundle, backends: list[dict[str, Any]], jetpack: JetPack | None, capabilities: list[int]
) -> dict[str, Any]:
    kernels = _kernels(bundle)
    export = f"hpedge export{PRECISIONS.get(bundle.manifest.precision, '')}"
    takers = {backend.name for backend in BACKENDS if backend.refuses(bundle) is None}
    takers &= {row["name"] for row in backends if bundle.manifest.precision in row["precisions"]}
    runs_with = [row["name"] for row in backends if row["name"] in takers and row["works"]]
    reason = None
    if not takers:
        reason = f"this version runs {listed(PRECISIONS)} bundles; update hpedge"
    elif not runs_with:
        reason = next(row["reason"] for row in backends if row["name"] in takers)
    return {
        "path": str(bundle.path),
        "precision": bundle.manifest.precision,
        "runs_with": runs_with,
        "reason": reason,
        "kernels": [f"sm_{kernel.capability}" for kernel in kernels],
        "gpu": [_kernel_for(capability, kernels, jetpack, export) for capability in capabilities],
    }


@dataclass(frozen=True, slots=True)
class Kernel:
    """A line of the bundle's kernels/manifest.json; bound: its PTX is for the exact chip, as that of sm_90a."""

    capability: int
    ptx: Version
    bound: bool


def _kernels(bundle: Bundle) -> list[Kernel]:
    name = f"{KERNELS}/manifest.json"
    if name not in bundle.manifest.files:
        return []
    try:
        return [
            Kernel(
                int(entry["target"].removeprefix("sm_")),
                parse_version(entry["ptx"]["version"]),
                not entry["architecture"][-1].isdigit(),
            )
            for entry in json.loads(bundle.read(name))["kernels"]
        ]
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadData(
            f"bundle {bundle.path}: {name} is no manifest of kernels ({error!r}); export it again."
        ) from error


def _kernel_for(capability: int, kernels: list[Kernel], jetpack: JetPack | None, export: str) -> dict[str, Any]:
    """Which of ``kernels`` a GPU takes: its own, else PTX of an older chip that its driver can translate, else none.

    Args:
        export: The command that wrote the bundle, for a remedy.
    """
    newest = jetpack.ptx if jetpack else None
    readable = [kernel for kernel in kernels if newest is None or kernel.ptx <= newest]
    own = next((kernel for kernel in kernels if kernel.capability == capability), None)
    older = [kernel.capability for kernel in readable if kernel.capability < capability and not kernel.bound]
    chosen, chip = None, f"sm_{capability}"
    if own:
        chosen, text = f"sm_{capability}", f"GPU kernels for {chip} are inside"
        if own not in readable:
            text += f"; of these JetPack {jetpack.name} loads the cubin only, it reads PTX up to {dotted(newest)}"
    elif older:
        chosen = f"sm_{max(older)}"
        text = f"no GPU kernel for {chip} is inside, its driver would translate the PTX of {chosen}"
    else:
        held = ", ".join(f"sm_{kernel.capability}" for kernel in kernels) or "none"
        text = f"no GPU kernel fits {chip} (inside: {held}); {_remedy(capability, export)}"
    return {"sm": chip, "kernel": chosen, "text": f"{text}."}


def _remedy(capability: int, export: str) -> str:
    from hpdval_edge.export.aot_targets import TARGETS

    known = [target.capability for target in TARGETS]
    if capability in known:
        return f"add one with: {export} --target sm_{capability}"
    if capability > min(known):
        return f"add PTX that its driver translates with: {export} --target sm_{min(known)}"
    return "hpedge compiles none for it, the head stays plain ONNX"
