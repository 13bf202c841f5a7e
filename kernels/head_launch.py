"""How the GPU kernels of the dual-view head are launched: tile sides, warps and pipeline stages.

The numbers follow from what the compiler reports for sm_80 to sm_120 (registers, no spills, at most 48 KB of shared
memory; `tests/test_aot.py` holds them to it). They are NOT tuned: no GPU was at hand, nothing here was timed. Whoever
has one runs benchmarks/head_gpu.py and changes the rows below. Nothing is searched when a user calls the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_PATCHES = 1024
# The grid's second side is the image.
MAX_IMAGES = 65535


@dataclass(frozen=True, slots=True)
class Launch:
    """Compile-time constants and launch options of one binary; it serves any B, any C and any N up to ``patches``."""

    block_c: int
    block_n: int
    tail_n: int
    block_e: int
    warps: int
    stages: int

    @property
    def patches(self) -> int:
        """Largest N."""
        return self.block_n + self.tail_n

    @property
    def constants(self) -> dict[str, int]:
        """The kernels' constexpr arguments, but for the width E."""
        return {"BLOCK_C": self.block_c, "BLOCK_N": self.block_n, "TAIL_N": self.tail_n, "BLOCK_E": self.block_e}


# (bytes of an input element) -> rows in order of N; a row serves N up to block_n + tail_n.
TABLE = {
    2: (
        Launch(16, 64, 0, 64, 4, 2),
        Launch(16, 128, 0, 64, 4, 2),
        Launch(16, 256, 0, 32, 4, 2),
        Launch(16, 512, 0, 16, 8, 2),
        Launch(16, 512, 64, 16, 8, 2),
        Launch(16, 512, 256, 16, 8, 2),
        Launch(16, 1024, 0, 16, 16, 2),
    ),
    4: (
        Launch(8, 64, 0, 32, 4, 2),
        Launch(8, 128, 0, 16, 4, 2),
        Launch(8, 256, 0, 16, 8, 2),
        Launch(8, 512, 0, 16, 8, 2),
        Launch(8, 512, 64, 16, 8, 2),
        Launch(8, 512, 256, 8, 8, 2),
        Launch(8, 1024, 0, 8, 8, 2),
    ),
}
# (compute capability, bytes of an element, patches of the row) -> a row that differs from TABLE's on that chip.
EXCEPTIONS = {
    # One tile of 1,024 spills 8 bytes on the first, 28 on the others.
    (90, 2, 1024): Launch(16, 512, 512, 16, 16, 2),
    (100, 4, 1024): Launch(8, 512, 512, 8, 16, 2),
    (110, 4, 1024): Launch(8, 512, 512, 8, 16, 2),
}


def launch_for(patches: int, itemsize: int, capability: int) -> Launch:
    """The launch for N = ``patches``, inputs of ``itemsize`` bytes (2 or 4), a chip of ``capability`` (e.g. 87).

    Raises:
        ValueError: N is not 1..1,024.
    """
    if not 1 <= patches <= MAX_PATCHES:
        raise ValueError(f"the GPU kernel takes 1 to {MAX_PATCHES:,} patches, got {patches:,}")
    row = next(row for row in TABLE[itemsize] if row.patches >= patches)
    return EXCEPTIONS.get((capability, itemsize, row.patches), row)
