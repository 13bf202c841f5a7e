"""Compile the dual-view head to PTX and cubin without a GPU: Triton writes the PTX, its own ptxas assembles it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpdval_edge.errors import CheckFailed, UsageError
from hpdval_edge.export.aot_targets import Target
from hpdval_edge.kernels.gpu import interpreted
from hpdval_edge.kernels.head_launch import Launch, launch_for

# Name on the command line -> Triton's type, bytes.
DTYPES = {"fp16": ("fp16", 2), "bf16": ("bf16", 2), "fp32": ("fp32", 4)}
INPUTS = {"cls_ptr": "[B, E]", "patches_ptr": "[B, N, E]", "text_global_ptr": "[C, E]", "text_local_ptr": "[C, E]"}
SCALARS = ("n_patches", "n_classes", "k", "alpha_bits")
OUTPUTS = {"scores_ptr": "[B, C]", "patch_scores_ptr": "[B, N, C]"}
ENTRY = re.compile(r"(\.entry\s+(\w+)\s*\()([^)]*)(\))", re.DOTALL)
REGISTERS = re.compile(r"Used (\d+) registers")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True, slots=True)
class Variant:
    """What one binary is compiled for; C and B are free, N is up to ``patches``."""

    target: Target
    dtype: str
    width: int
    patches: int
    patch_scores: bool = False

    @property
    def launch(self) -> Launch:
        """Tile sides, warps, stages."""
        return launch_for(self.patches, DTYPES[self.dtype][1], self.target.capability)

    @property
    def stem(self) -> str:
        """File name without suffix."""
        output = "_patch_scores" if self.patch_scores else ""
        return f"head_sm{self.target.capability}_{self.dtype}_e{self.width}_n{self.launch.patches}{output}"

    def arguments(self) -> list[dict[str, str]]:
        """Name, type and shape of each kernel argument, in order."""
        element = DTYPES[self.dtype][0]
        outputs = {name: shape for name, shape in OUTPUTS.items() if self.patch_scores or name != "patch_scores_ptr"}
        return [
            *({"name": name, "type": f"*{element}", "shape": shape} for name, shape in INPUTS.items()),
            *({"name": name, "type": "i32", "shape": ""} for name in SCALARS),
            *({"name": name, "type": "*fp32", "shape": shape} for name, shape in outputs.items()),
        ]


@dataclass(frozen=True, slots=True)
class Binary:
    """What the compiler made of a `Variant`; sizes in bytes."""

    ptx: bytes
    cubin: bytes
    facts: dict[str, Any]


def drop_scratch(ptx: str, arguments: int) -> str:
    """Remove the pointers to scratch memory that Triton appends to the kernel's ``arguments``.

    Raises:
        CheckFailed: The kernel reads one of them, so that it cannot be launched without.
    """
    found = ENTRY.search(ptx)
    if found is None:
        raise CheckFailed("Triton's PTX holds no kernel entry.")
    parameters = [line.strip() for line in found.group(3).split(",") if line.strip()]
    if len(parameters) < arguments:
        raise CheckFailed(f"Triton's PTX takes {len(parameters)} parameters, {arguments} were written.")
    for parameter in parameters[arguments:]:
        symbol = parameter.split()[-1]
        if len(re.findall(rf"\b{re.escape(symbol)}\b", ptx)) != 1:
            raise CheckFailed(f"the kernel reads its scratch parameter {symbol}; it must run without scratch memory.")
    kept = "\n\t" + ",\n\t".join(parameters[:arguments]) + "\n"
    return ENTRY.sub(lambda match: match.group(1) + kept + match.group(4), ptx, count=1)


def assemble(ptx: str, target: Target) -> tuple[bytes, dict[str, int]]:
    """Cubin of ``ptx``, and its registers a thread, stack and spill bytes as ptxas reports them."""
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "head.ptx"), Path(folder, "head.cubin")
        source.write_text(ptx)
        # The register allocator's level is the one that Triton itself asks for.
        command = [get_ptxas(target.capability).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={target.architecture}"]
        done = subprocess.run([*command, str(source), "-o", str(cubin)], capture_output=True, text=True)
        if done.returncode:
            raise CheckFailed(f"ptxas does not assemble the kernel for {target.name}: {done.stderr.strip()}")
        stack, stores, loads = (int(x) for x in SPILLS.search(done.stderr).groups())
        registers = int(REGISTERS.search(done.stderr).group(1))
        facts = {"registers": registers, "stack_bytes": stack, "spill_bytes": stores + loads}
        return cubin.read_bytes(), facts


def _compiled(variant: Variant) -> Any:
    """Triton's own result; its cache stays in a temporary folder, ours is keyed by what matters to us."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hpdval_edge.kernels.head_triton import head

    types = {argument["name"]: argument["type"] for argument in variant.arguments()}
    constants = {"E": variant.width, **variant.launch.constants, "scales_ptr": None, "OVERLAP": False}
    if not variant.patch_scores:
        constants["patch_scores_ptr"] = None
    signature = {name: types.get(name, "constexpr") for name in head.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(head.arg_names) if signature[name].startswith("*")
    }
    source = ASTSource(fn=head, signature=signature, constexprs=constants, attrs=aligned)
    launch = variant.launch
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "ptx_version": variant.target.ptx}
    knobs = triton.knobs
    # Line information would carry the paths of this machine.
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir, knobs.compilation.disable_line_info = folder, True
        with contextlib.redirect_stdout(sys.stderr):
            return triton.compile(source, target=GPUTarget("cuda", variant.target.capability, 32), options=options)


def compile_variant(variant: Variant) -> Binary:
    """PTX and cubin with the same parameters, `Variant.arguments`, and what the launch needs to know.

    Raises:
        CheckFailed: The compiler gave something that cannot be launched as promised.
        UsageError: TRITON_INTERPRET is set, under which triton compiles nothing.
    """
    if interpreted():
        raise UsageError("TRITON_INTERPRET=1 is set, under which triton compiles nothing; unset it.")
    compiled = _compiled(variant)
    ptx = drop_scratch(compiled.asm["ptx"], len(variant.arguments()))
    cubin, facts = assemble(ptx, variant.target)
    written = re.search(r"\.version (\S+)", ptx).group(1)
    if written != variant.target.ptx_version:
        raise CheckFailed(
            f"PTX {written} was written for {variant.target.name}, {variant.target.ptx_version} asked for."
        )
    facts = {**facts, "shared_bytes": compiled.metadata.shared, "entry": ENTRY.search(ptx).group(2)}
    return Binary(ptx.encode(), cubin, facts)
