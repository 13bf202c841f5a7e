"""How the GPU kernels of the dual-view head are launched: tile sides, warps and pipeline stages.

`TABLE` follows from what the compiler reports for sm_80 to sm_120 (registers, no spills, at most 48 KB of shared
memory, a limit that a plugin cannot raise; `tests/test_aot.py` holds it to that). It serves what is compiled ahead of
time, and chips that nobody timed. `TUNED` was searched on the chip by benchmarks/head_tune.py and serves the
forward inside torch. Nothing is searched when a user calls the kernel.
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
    def triton(self) -> tuple[int, int]:
        """The oldest Triton that compiles it: before 3.8 a product needs 16 columns, of float32 as well."""
        return (3, 8) if self.block_e < 16 else (3, 6)

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
    # One tile of 1,024 spills 8 to 28 bytes on these.
    (90, 2, 1024): Launch(16, 512, 512, 16, 16, 2),
    (80, 4, 1024): Launch(8, 512, 512, 8, 16, 2),
    (100, 4, 1024): Launch(8, 512, 512, 8, 16, 2),
    (110, 4, 1024): Launch(8, 512, 512, 8, 16, 2),
}


# Scores (B x C) up to which a launch leaves much of a large GPU idle: between the searched sizes of 2,560 and 8,000.
FEW_SCORES = 4096
# (compute capability, bytes of an element) -> rows in order of N: for few scores, for many.
TUNED = {
    # H200, E = 512 (docs/kernels-gpu.md); 512 for many scores is what is best at 576.
    (90, 2): (
        (Launch(16, 64, 0, 128, 4, 3), Launch(64, 64, 0, 64, 4, 3)),
        (Launch(16, 128, 0, 64, 4, 2), Launch(64, 128, 0, 64, 4, 3)),
        (Launch(16, 256, 0, 64, 4, 3), Launch(64, 256, 0, 32, 4, 3)),
        (Launch(16, 512, 0, 64, 4, 2), Launch(64, 512, 0, 32, 8, 3)),
        (Launch(16, 512, 64, 64, 4, 2), Launch(64, 512, 64, 32, 8, 3)),
        (Launch(16, 512, 256, 32, 4, 3), Launch(32, 512, 256, 32, 8, 3)),
        (Launch(16, 1024, 0, 32, 8, 2), Launch(32, 1024, 0, 32, 8, 2)),
    ),
    # The first two rows are TABLE's, not searched.
    (90, 4): (
        (Launch(8, 64, 0, 32, 4, 2), Launch(8, 64, 0, 32, 4, 2)),
        (Launch(8, 128, 0, 16, 4, 2), Launch(8, 128, 0, 16, 4, 2)),
        (Launch(8, 256, 0, 32, 4, 2), Launch(32, 256, 0, 16, 4, 3)),
        (Launch(8, 512, 64, 16, 4, 3), Launch(32, 512, 64, 16, 4, 2)),
        (Launch(8, 1024, 0, 16, 8, 2), Launch(16, 1024, 0, 16, 4, 2)),
    ),
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


def tuned_for(patches: int, itemsize: int, capability: int, scores: int) -> Launch:
    """As `launch_for`, for a launch inside torch that computes ``scores`` (B x C) scores."""
    rows = TUNED.get((capability, itemsize))
    if rows is None:
        return launch_for(patches, itemsize, capability)
    few, many = next(pair for pair in rows if pair[0].patches >= patches)
    return few if scores <= FEW_SCORES else many
