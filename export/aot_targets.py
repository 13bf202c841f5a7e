"""The chips that the GPU kernels are compiled for ahead of time, and the oldest driver that reads each one's PTX.

A driver translates PTX up to its own version only, so each target is written in the oldest version that knows the chip
or, for a Jetson, that its JetPack reads: 6.0 (CUDA 12.2) up to 8.2, 6.1 and 6.2 (12.6) up to 8.5, 7.0 and 7.1 (13.0) up
to 9.0, 7.2 (13.2) up to 9.2. From sm_90 on Triton writes code for the exact chip (sm_90a, sm_100a, ...), which no other
chip runs; the PTX of sm_80 is what every later chip can fall back on.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpdval_edge.errors import UsageError


@dataclass(frozen=True, slots=True)
class Target:
    """One chip: compute capability times 10, PTX version times 10, what reads it, the oldest Triton that knows it."""

    capability: int
    ptx: int
    fits: str
    triton: tuple[int, int] = (3, 6)

    @property
    def name(self) -> str:
        """As in ``sm_87``."""
        return f"sm_{self.capability}"

    @property
    def architecture(self) -> str:
        """As ptxas calls it; the suffix means this chip only."""
        return self.name + ("a" if self.capability >= 90 else "")

    @property
    def ptx_version(self) -> str:
        """As in ``8.2``."""
        return f"{self.ptx // 10}.{self.ptx % 10}"


TARGETS = (
    Target(80, 80, "A100; driver of CUDA 12.0 or later; its PTX runs on every later chip"),
    Target(86, 80, "RTX 30; driver of CUDA 12.0 or later"),
    Target(87, 82, "Jetson Orin; JetPack 6.0 (CUDA 12.2) or later"),
    Target(89, 80, "RTX 40; driver of CUDA 12.0 or later"),
    Target(90, 80, "H100, H200; driver of CUDA 12.0 or later"),
    Target(100, 86, "B200; driver of CUDA 12.8 or later"),
    Target(110, 90, "Jetson Thor; JetPack 7.0 (CUDA 13.0) or later", triton=(3, 7)),
    Target(120, 87, "RTX 50; driver of CUDA 12.8 or later"),
)


def find_targets(names: str) -> tuple[Target, ...]:
    """The targets named in ``names``, comma-separated ("sm_87,sm_110"); "all" for every one.

    Raises:
        UsageError: a name that is not in `TARGETS`.
    """
    if names == "all":
        return TARGETS
    known = {target.name: target for target in TARGETS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise UsageError(f"--target {unknown[0] if unknown else names!r} is not one of all, {', '.join(known)}.")
    return tuple(known[name] for name in dict.fromkeys(wanted))
