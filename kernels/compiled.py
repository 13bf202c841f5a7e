"""The compiled kernels of a CPU: whether they can be loaded, and the instruction set that each runs with.

The environment variable HPEDGE_ISA names one for all of them; it is read here alone, and in libhpedge for C and C++.
"""

from __future__ import annotations

import os

from hpdval_edge.errors import UsageError

try:
    from hpdval_edge.kernels import _cpu
except ImportError as error:
    _cpu = None
    MISSING = f"the compiled module hpdval_edge.kernels._cpu cannot be loaded: {error}"
else:
    MISSING = None


class WrongInstructionSet(UsageError, ValueError):
    """HPEDGE_ISA asks for what cannot be; the command line shows the sentence alone."""


# What HPEDGE_ISA may name, and the best that each includes: its machines run the code of that one, too.
INCLUDES = {"avx512": "avx2", "avx2": "generic", "neon": "generic", "generic": None}


def missing() -> str | None:
    """Why no compiled kernel can run, or None.

    Raises:
        WrongInstructionSet: None can run, and HPEDGE_ISA asks for one.
    """
    if MISSING and os.environ.get("HPEDGE_ISA"):
        raise WrongInstructionSet(f"HPEDGE_ISA is set, but {MISSING}; unset it to do without")
    return MISSING


def instruction_set(files: list[str]) -> str:
    """The one that a kernel runs with: HPEDGE_ISA's, or the best of ``files`` that it includes; unset, the fastest.

    Args:
        files: Those that the kernel has a file for and this machine runs, fastest first, "generic" among them.

    Raises:
        WrongInstructionSet: HPEDGE_ISA names an unknown one, or one that this machine lacks.
    """
    isa = os.environ.get("HPEDGE_ISA")
    if not isa:
        return files[0]
    if isa not in INCLUDES:
        raise WrongInstructionSet(f"HPEDGE_ISA must be one of {', '.join(INCLUDES)}, got {isa!r}")
    # The head has a file for each of them.
    here = _cpu.isas()
    if isa not in here:
        raise WrongInstructionSet(
            f"HPEDGE_ISA must name an instruction set of this machine ({', '.join(here)}), got {isa!r}"
        )
    while isa not in files:
        isa = INCLUDES[isa]
    return isa
