"""``hpedge kernels build``: the GPU kernels as files, compiled offline, each binary once per source and compiler."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hpdval_edge.atomic import disk_errors, new_folder, write_file, write_text
from hpdval_edge.errors import MissingDependency, UsageError
from hpdval_edge.export.aot_compile import DTYPES, Binary, Variant, compile_variant
from hpdval_edge.export.aot_targets import Target, find_targets
from hpdval_edge.kernels import head_launch
from hpdval_edge.kernels.head_launch import MAX_PATCHES
from hpdval_edge.progress import progress

# Part of the cache's key too: raise it when aot_compile.py makes something else of the same source.
SCHEMA = 1
MANIFEST = "manifest.json"
SOURCES = tuple(Path(head_launch.__file__).with_name(name) for name in ("head_triton.py", "head_top_k.py"))


@dataclass(frozen=True, slots=True)
class BuildReport:
    """Where the files are, how many were compiled now and how many came from the cache, and the manifest."""

    out: Path
    compiled: int
    cached: int
    manifest: dict[str, Any]


def cache_folder() -> Path:
    """Where binaries are kept between builds: $XDG_CACHE_HOME/hpedge/kernels, else under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hpedge" / "kernels"


def triton_version() -> str:
    """Version of the installed triton, without importing it.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        return version("triton")
    except PackageNotFoundError as error:
        raise MissingDependency(
            "triton is not installed, without which no GPU kernel can be compiled; run: pip install "
            "'hpdval-edge[export]' (Linux only)."
        ) from error


def _check(dtype: str, width: int, patches: int) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    if not 1 <= patches <= MAX_PATCHES:
        raise UsageError(f"--patches must be 1 to {MAX_PATCHES:,}, got {patches:,}.")
    if width < 1:
        raise UsageError(f"--width must be at least 1, got {width}.")


def _check_triton(wanted: str, oldest: tuple[int, int], installed: str) -> None:
    if tuple(int(part) for part in installed.split(".")[:2]) < oldest:
        needed = ".".join(map(str, oldest))
        raise MissingDependency(f"{wanted} needs triton {needed} or newer and {installed} is installed.")


def check_targets(names: str) -> tuple[Target, ...]:
    """The targets that ``names`` names, as `find_targets`, if the installed triton compiles for them all.

    Raises:
        UsageError: an unknown target.
        MissingDependency: no triton, or one too old.
    """
    targets = find_targets(names)
    installed = triton_version()
    for target in targets:
        _check_triton(target.name, target.triton, installed)
    return targets


def _try_folder(out: Path) -> None:
    """Make ``out`` and write to it once, before minutes are spent on compiling."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()


def _key(variant: Variant, source: str, installed: str) -> str:
    """Everything the binary depends on, hashed."""
    parts = [source, installed, variant.target.capability, variant.target.ptx, variant.dtype, variant.width]
    parts += [variant.patch_scores, asdict(variant.launch), SCHEMA]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _from_cache(folder: Path) -> Binary | None:
    """The binary kept in ``folder``; None where there is none or a file of it is damaged."""
    try:
        facts = json.loads((folder / "facts.json").read_text())
        binary = Binary((folder / "head.ptx").read_bytes(), (folder / "head.cubin").read_bytes(), facts["facts"])
        intact = (_sha256(binary.ptx), _sha256(binary.cubin)) == (facts["ptx"], facts["cubin"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return binary if intact else None


def _keep(folder: Path, binary: Binary) -> None:
    facts = {"facts": binary.facts, "ptx": _sha256(binary.ptx), "cubin": _sha256(binary.cubin)}
    with new_folder(folder) as partial:
        (partial / "head.ptx").write_bytes(binary.ptx)
        (partial / "head.cubin").write_bytes(binary.cubin)
        (partial / "facts.json").write_text(json.dumps(facts))


def _entry(variant: Variant, binary: Binary) -> dict[str, Any]:
    """The manifest's words on one binary."""
    target, launch = variant.target, variant.launch
    files = {
        kind: {"file": f"{variant.stem}.{kind}", "sha256": _sha256(data), "bytes": len(data)}
        for kind, data in (("ptx", binary.ptx), ("cubin", binary.cubin))
    }
    files["ptx"]["version"] = target.ptx_version
    return {
        "target": target.name,
        "architecture": target.architecture,
        "fits": target.fits,
        "dtype": variant.dtype,
        **files,
        **{name: binary.facts[name] for name in ("registers", "shared_bytes", "stack_bytes", "spill_bytes")},
        "launch": {
            "entry": binary.facts["entry"],
            "grid": [f"ceil(C / {launch.block_c})", "B", "1"],
            "block": [32 * launch.warps, 1, 1],
            "shared_bytes": binary.facts["shared_bytes"],
            "max_patches": launch.patches,
            "pointer_alignment": 16,
            "arguments": variant.arguments(),
        },
        "constants": {"E": variant.width, **launch.constants, "stages": launch.stages},
    }


def build(*, targets: str, dtype: str, width: int, patches: int, out: Path, patch_scores: bool = False) -> BuildReport:
    """Write a PTX, a cubin and their line in ``out``/manifest.json for each target.

    Args:
        targets: Comma-separated, e.g. "sm_87,sm_110", or "all".
        dtype: "fp16", "bf16" or "fp32", of the inputs; scores are float32.
        width: E.
        patches: N; the binary serves fewer as well, and more up to the manifest's ``max_patches``.
        out: Folder; files of other names in it stay.
        patch_scores: Compile the kernel that also writes the patch cosines.

    Raises:
        UsageError: A target, dtype or size that there is no kernel for.
        MissingDependency: No triton, or one too old; ``out`` or the cache cannot be written.
        CheckFailed: The compiler's result cannot be launched as the manifest would say.
    """
    chosen = check_targets(targets)
    _check(dtype, width, patches)
    installed = triton_version()
    _try_folder(out)
    source = _sha256(b"".join(path.read_bytes() for path in SOURCES))
    entries, compiled = [], 0
    with progress("compiling kernels", len(chosen)) as update:
        for done, target in enumerate(chosen, 1):
            variant = Variant(target, dtype, width, patches, patch_scores)
            _check_triton(f"{dtype} with {patches:,} patches", variant.launch.triton, installed)
            folder = cache_folder() / _key(variant, source, installed)
            binary = _from_cache(folder)
            if binary is None:
                binary = compile_variant(variant)
                compiled += 1
                _keep(folder, binary)
            write_file(out / f"{variant.stem}.ptx", lambda path, data=binary.ptx: path.write_bytes(data))
            write_file(out / f"{variant.stem}.cubin", lambda path, data=binary.cubin: path.write_bytes(data))
            entries.append(_entry(variant, binary))
            update(done, len(chosen))
    manifest = {"schema": SCHEMA, "kernel": "head", "source_sha256": source, "triton": installed, "kernels": entries}
    write_text(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return BuildReport(out, compiled, len(chosen) - compiled, manifest)
