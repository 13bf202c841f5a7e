"""What is known about boards and TensorRT, as data: `hpedge doctor` says "unknown" for what is not in these tables.

Versions are tuples of numbers, compared by their leading parts: (36, 4) stands for every R36.4.x.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

Version = tuple[int, ...]


def parse_version(text: str) -> Version:
    """The numbers at the front of ``text``, "10.3.0.30-1+cuda12.5" -> (10, 3, 0, 30); () where there are none."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def dotted(version: Version) -> str:
    """As people write it."""
    return ".".join(map(str, version))


@dataclass(frozen=True, slots=True)
class Chip:
    """A Jetson's chip. models: words of /proc/device-tree/model; cpu_part: implementer and part of /proc/cpuinfo."""

    name: str
    capability: int
    models: tuple[str, ...]
    cpu_part: tuple[str, str]
    cpu: str


CHIPS = (
    # An AGX Xavier of JetPack 4 and 5 calls itself "Jetson-AGX".
    Chip("Xavier", 72, ("Xavier", "Jetson-AGX"), ("0x4e", "0x004"), "Carmel"),
    Chip("Orin", 87, ("Orin",), ("0x41", "0xd42"), "Cortex-A78AE"),
    Chip("Thor", 110, ("Thor",), ("0x41", "0xd83"), "Neoverse-V3AE"),
)


# Flags of /proc/cpuinfo that decide how fast an engine is on a CPU: x86-64's, then AArch64's.
CPU_FEATURES = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_ne_convert", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
# Those with which products of 8-bit integers have instructions of their own, and with which OpenVINO takes bfloat16.
INT8_FEATURES = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
BF16_FEATURES = ("avx512_bf16", "amx_bf16", "avx_ne_convert")


@dataclass(frozen=True, slots=True)
class JetPack:
    """One L4T release or a family of them; what is not known of it is None.

    tensorrt, cuda, python: the versions it brings. ptx: the newest PTX that its driver reads.
    """

    l4t: Version
    name: str
    chips: tuple[str, ...]
    tensorrt: Version | None = None
    cuda: Version | None = None
    python: Version | None = None
    ptx: Version | None = None


# The more exact rows first.
JETPACKS = (
    JetPack((35, 1), "5.0.2", ("Xavier", "Orin")),
    JetPack((35,), "5.1.x", ("Xavier", "Orin"), (8, 5), (11, 4), (3, 8)),
    JetPack((36, 2), "6.0", ("Orin",), (8, 6), (12, 2), (3, 10), (8, 2)),
    JetPack((36, 3), "6.0", ("Orin",), (8, 6), (12, 2), (3, 10), (8, 2)),
    JetPack((36, 4, 0), "6.1", ("Orin",), (10, 3), (12, 6), (3, 10), (8, 5)),
    JetPack((36, 4, 3), "6.2", ("Orin",), (10, 3), (12, 6), (3, 10), (8, 5)),
    JetPack((36, 4, 4), "6.2.1", ("Orin",), (10, 3), (12, 6), (3, 10), (8, 5)),
    JetPack((36, 4), "6.x", ("Orin",)),
    JetPack((38, 2), "7.0", ("Thor",), (10, 13), (13, 0), (3, 12), (9, 0)),
    JetPack((38, 4), "7.1", ("Thor",), (10, 13), (13, 0), (3, 12), (9, 0)),
    JetPack((39, 2, 0), "7.2", ("Orin", "Thor"), (10, 16), (13, 2), (3, 12), (9, 2)),
    JetPack((39, 2, 1), "7.2.1", ("Orin", "Thor")),
    JetPack((39, 2), "7.2.x", ("Orin", "Thor")),
)


@dataclass(frozen=True, slots=True)
class HeadMode:
    """A way in which TensorRT can carry the dual-view head."""

    name: str
    since: Version = ()
    broken: tuple[Version, ...] = ()

    def refuses(self, version: Version) -> str | None:
        """Why TensorRT ``version`` cannot carry the head so, or None."""
        if self.since and version[:2] > NEWEST_TENSORRT:
            return f"unknown for a TensorRT newer than {dotted(NEWEST_TENSORRT)}"
        if version < self.since:
            return f"needs TensorRT {dotted(self.since)} or later"
        if version[:2] in self.broken:
            return f"broken in TensorRT {dotted(version[:2])}"
        return None


NEWEST_TENSORRT = (11, 4)
HEAD_MODES = (
    # Plain operators of the model itself.
    HeadMode("onnx"),
    # A shared library with an IPluginV3 in it.
    HeadMode("plugin-so", since=(10, 0)),
    # PTX inside the engine.
    HeadMode("qdp-aot", since=(10, 9), broken=((10, 14),)),
)
# TensorRT-RTX is a product of its own: it takes plugins through its ONNX parser, and runs on these GPUs only.
RTX_HEAD_MODES = ("onnx", "plugin-so")
RTX_CAPABILITIES = (75, 80, 86, 89, 120, 121)


@dataclass(frozen=True, slots=True)
class Note:
    """What is known about TensorRT from ``since`` up to and without ``before``, on the named chips or on all."""

    since: Version
    before: Version
    text: str
    capabilities: tuple[int, ...] = ()


TENSORRT_NOTES = (
    Note((7,), (9, 1), "has no strongly typed networks (9.1 has); fp16 would be best effort there, prefer fp32"),
    Note(
        (10, 3),
        (10, 4),
        "was reported to compute a vision transformer wrongly in fp16 (NVIDIA/TensorRT issue 4723); compare an engine "
        "with the bundle's golden pictures or use fp32",
    ),
    Note(
        (10, 16),
        (10, 17),
        "was reported to compute attention wrongly in fp16 on sm_120 (NVIDIA/TensorRT issue 4837); compare an engine "
        "with the bundle's golden pictures or use fp32",
        (120,),
    ),
)
# (TensorRT, chip) that there are no kernels of TensorRT's own for, and the remedy.
NO_KERNELS = {((10, 13), 87): "has no kernels for Orin; use 10.16, which JetPack 7.2 brings"}


def find_jetpack(l4t: Version) -> JetPack | None:
    """The row that ``l4t`` belongs to."""
    exact = (*l4t, 0, 0)[:3]
    return next((row for row in JETPACKS if exact[: len(row.l4t)] == row.l4t), None)


def find_chip(model: str | None, l4t: Version, cpu_part: tuple[str, str] | None) -> tuple[Chip | None, str]:
    """A Jetson's chip and what tells it; None where nothing does.

    Args:
        model: Of /proc/device-tree, which containers hide.
        l4t: () for what is no Jetson; then CPU cores alone decide nothing, other machines have the same.
        cpu_part: Implementer and part of the first core.
    """
    for chip in CHIPS:
        if model and any(word in model for word in chip.models):
            return chip, "the board's model"
    if not l4t:
        return None, ""
    for chip in CHIPS:
        if cpu_part == chip.cpu_part:
            return chip, f"its {chip.cpu} cores"
    named = {chip for row in JETPACKS if row.l4t[0] == l4t[0] for chip in row.chips}
    if len(named) == 1:
        return next(chip for chip in CHIPS if chip.name in named), f"L4T R{l4t[0]}, which is for no other chip"
    return None, ""


def head_modes(version: Version, capabilities: Sequence[int]) -> dict[str, str | None]:
    """For each way to carry the head why TensorRT ``version`` cannot on GPUs of ``capabilities``, or None."""
    lacks = [
        NO_KERNELS[version[:2], capability] for capability in capabilities if (version[:2], capability) in NO_KERNELS
    ]
    return {mode.name: lacks[0] if lacks else mode.refuses(version) for mode in HEAD_MODES}


def rtx_head_modes(capabilities: Sequence[int]) -> dict[str, str | None]:
    """As `head_modes`, for TensorRT-RTX; no capabilities stand for a machine without a GPU."""
    missing = [capability for capability in capabilities if capability not in RTX_CAPABILITIES]
    known = ", ".join(f"sm_{capability}" for capability in RTX_CAPABILITIES)
    reason = f"TensorRT-RTX runs on {known} only" if missing or not capabilities else None
    return {**dict.fromkeys(RTX_HEAD_MODES, reason), "qdp-aot": reason or "TensorRT-RTX has no such plugins"}


def tensorrt_notes(version: Version, capabilities: Sequence[int]) -> list[str]:
    """What a user of TensorRT ``version`` on GPUs of ``capabilities`` should know."""
    return [
        note.text
        for note in TENSORRT_NOTES
        if note.since <= version < note.before and (not note.capabilities or {*note.capabilities} & {*capabilities})
    ]
