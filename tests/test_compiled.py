"""HPEDGE_ISA means the same to every compiled kernel: the set that it names, or one sentence about the mistake."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hpdval_edge.kernels import _cpu, dual_view_scores
from hpdval_edge.kernels.compiled import INCLUDES
from hpdval_edge.kernels.head import choose
from hpdval_edge.kernels.preprocess import resize

SOURCES = Path(__file__).resolve().parents[1] / "kernels" / "cpu"
# What `isas` and `preprocess_isas` give there.
MACHINES = {
    "AVX-512": (["avx512", "avx2", "generic"], ["avx2", "generic"]),
    "AVX2": (["avx2", "generic"], ["avx2", "generic"]),
    "Arm": (["neon", "generic"], ["generic"]),
    "other": (["generic"], ["generic"]),
}
ROWS, PIXELS = np.eye(2, dtype=np.float32), np.zeros((4, 4, 3), np.uint8)
KERNELS = {
    "head": lambda: dual_view_scores(ROWS, ROWS[None].repeat(2, 0), ROWS, ROWS),
    "head on tensors": lambda: dual_view_scores(*map(torch.from_numpy, (ROWS, ROWS[None].repeat(2, 0), ROWS, ROWS))),
    "preprocess": lambda: resize(PIXELS, 2),
}


class AskedFor(Exception):
    """The compiled module was asked for this instruction set."""


@pytest.fixture
def machine(monkeypatch):
    """Pretend another machine, of which the kernels ask for an instruction set and get no further."""

    def pretend(name):
        head, preprocess = MACHINES[name]
        monkeypatch.setattr(_cpu, "isas", lambda: head)
        monkeypatch.setattr(_cpu, "preprocess_isas", lambda: preprocess)

    def stop(*args, **options):
        raise AskedFor(*(arg for arg in args if isinstance(arg, str)))

    monkeypatch.setattr(_cpu, "PackedText", stop)
    monkeypatch.setattr(_cpu, "PreprocessPicture", stop)
    return pretend


@pytest.mark.parametrize("name, value, head, preprocess", [
    ("AVX-512", "avx512", "avx512", "avx2"), ("AVX-512", "avx2", "avx2", "avx2"),
    ("AVX-512", "generic", "generic", "generic"), ("AVX-512", None, "avx512", "avx2"),
    ("AVX2", "avx2", "avx2", "avx2"), ("AVX2", "generic", "generic", "generic"), ("AVX2", "", "avx2", "avx2"),
    ("Arm", "neon", "neon", "generic"), ("Arm", "generic", "generic", "generic"), ("Arm", None, "neon", "generic"),
    ("other", "generic", "generic", "generic"), ("other", "", "generic", "generic"),
])  # fmt: skip
def test_what_each_kernel_runs_with(machine, monkeypatch, name, value, head, preprocess):
    """Planted: the fastest file instead of the named one, `avx512` that includes `generic`, "" taken for a name,
    either kernel deaf to the variable; each failed."""
    machine(name)
    if value is None:
        monkeypatch.delenv("HPEDGE_ISA", raising=False)
    else:
        monkeypatch.setenv("HPEDGE_ISA", value)
    for kernel, expected in (("head", head), ("head on tensors", head), ("preprocess", preprocess)):
        with pytest.raises(AskedFor, match=f"^{expected}$"):
            KERNELS[kernel]()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name, value, message", [
    ("AVX2", "mmx", "HPEDGE_ISA must be one of avx512, avx2, neon, generic, got 'mmx'"),
    ("Arm", "neon_dot", "HPEDGE_ISA must be one of avx512, avx2, neon, generic, got 'neon_dot'"),
    ("AVX2", "avx512", "HPEDGE_ISA must name an instruction set of this machine (avx2, generic), got 'avx512'"),
    ("AVX2", "neon", "HPEDGE_ISA must name an instruction set of this machine (avx2, generic), got 'neon'"),
    ("Arm", "avx2", "HPEDGE_ISA must name an instruction set of this machine (neon, generic), got 'avx2'"),
    ("other", "avx2", "HPEDGE_ISA must name an instruction set of this machine (generic), got 'avx2'"),
])  # fmt: skip
def test_mistakes_are_named_alike(machine, monkeypatch, kernel, name, value, message):
    """Planted: no check of the name, none of the machine, names cut at "_"; each failed."""
    machine(name)
    monkeypatch.setenv("HPEDGE_ISA", value)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        KERNELS[kernel]()


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_other_backend_stands_in_for_a_named_instruction_set(monkeypatch, kernel):
    """Planted: `missing` that never raises; failed."""
    monkeypatch.setattr("hpdval_edge.kernels.compiled.MISSING", "no module")
    KERNELS[kernel]()
    monkeypatch.setenv("HPEDGE_ISA", "generic")
    with pytest.raises(ValueError, match=r"^HPEDGE_ISA is set, but no module; unset it to do without$"):
        KERNELS[kernel]()


def test_what_needs_no_compiled_kernel_does_not_look(monkeypatch):
    """Planted: the head asked for its module before the tensors' device and dtype; failed."""
    monkeypatch.setattr("hpdval_edge.kernels.compiled.MISSING", "no module")
    monkeypatch.setenv("HPEDGE_ISA", "mmx")
    arrays = (ROWS, ROWS[None].repeat(2, 0), ROWS, ROWS)
    for change in ({"device": "meta"}, {"dtype": torch.float64}):
        assert choose(tuple(torch.from_numpy(x).to(**change) for x in arrays), "auto").name == "eager"
    assert dual_view_scores(*arrays, backend="numpy").shape == (2, 2)
    assert resize(PIXELS, 2, backend="pillow").shape == (2, 2, 3)


def test_the_head_has_a_file_for_each():
    """And so its list is the machine's. Planted: `neon` left out of INCLUDES; failed."""
    assert {path.stem.removeprefix("head_") for path in SOURCES.glob("head_*.cpp")} == set(INCLUDES)
    assert set(_cpu.isas()) <= set(INCLUDES)


def test_the_command_line_shows_the_sentence_alone(tiny_bundle, tiny, run_hpedge, monkeypatch):
    """Planted mistake: a plain ValueError, whose traceback the command line prints."""
    monkeypatch.setenv("HPEDGE_ISA", "mmx")
    code, _, stderr = run_hpedge("infer", tiny / "test" / "00.png", "--model", tiny_bundle)
    assert code == 2
    assert "hpedge: HPEDGE_ISA must be one of avx512, avx2, neon, generic, got 'mmx'" in stderr
