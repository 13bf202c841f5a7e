"""The GPU kernels that an export compiled into a bundle, and which of them a chip runs."""

import json
from dataclasses import dataclass
from typing import Any

from hpdval_edge.bundle import KERNELS, Bundle
from hpdval_edge.errors import BadData, UsageError

KERNEL_MANIFEST = f"{KERNELS}/manifest.json"
PATCH_SCORES = "patch_scores_ptr"


@dataclass(frozen=True, slots=True)
class KernelFile:
    """One binary of the dual-view head and how it is launched.

    target: e.g. sm_87. kind: cubin, or ptx, which the driver translates. dtype: fp16 or fp32, of the inputs. width: E.
    One block of ``threads`` takes ``block_c`` labels of one picture of up to ``max_patches`` patches.
    """

    target: str
    kind: str
    data: bytes
    sha256: str
    entry: str
    dtype: str
    width: int
    block_c: int
    threads: int
    shared_bytes: int
    max_patches: int
    patch_scores: bool


def find_kernels(
    bundle: Bundle, capability: int, *, dtype: str, patch_scores: bool, kind: str
) -> tuple[KernelFile, ...]:
    """The bundle's kernels for a chip, its own ones or those of the closest older chip that it can run.

    Several are several launches of one chip, among which TensorRT may time.

    Args:
        capability: times 10, e.g. 87.
        kind: cubin, or ptx, which the driver translates and every later chip runs too.

    Raises:
        UsageError: the bundle has none that fits; says what it has.
        BadData: the manifest of the kernels is not what an export writes.
    """
    entries = _entries(bundle)
    try:
        fitting = [
            entry for entry in entries
            if _fits(entry, bundle, dtype, patch_scores) and _runs(entry, capability, kind)
        ]  # fmt: skip
        best = max((_capability(entry) for entry in fitting), default=None)
        if best is not None:
            return tuple(_kernel(bundle, entry, kind) for entry in fitting if _capability(entry) == best)
        held = ", ".join(sorted({f"{entry['target']} at {entry['dtype']}" for entry in entries})) or "none"
    except (KeyError, TypeError, ValueError) as error:
        raise BadData(
            f"bundle {bundle.path}: {KERNEL_MANIFEST} is not as written ({error!r}); export again."
        ) from error
    raise UsageError(
        f"bundle {bundle.path} holds no GPU kernel for sm_{capability} at {dtype} (it holds {held}); export again with "
        f"--target sm_{capability}, or sm_80, which every later chip runs; or build with --head onnx."
    )


def _entries(bundle: Bundle) -> list[dict[str, Any]]:
    if KERNEL_MANIFEST not in bundle.manifest.files:
        return []
    return json.loads(bundle.read(KERNEL_MANIFEST))["kernels"]


def _fits(entry: dict[str, Any], bundle: Bundle, dtype: str, patch_scores: bool) -> bool:
    manifest = bundle.manifest
    return (
        entry["dtype"] == dtype
        and entry["constants"]["E"] == manifest.embed_dim
        and entry["launch"]["max_patches"] >= manifest.grid[0] * manifest.grid[1]
        and _writes_patch_scores(entry) == patch_scores
    )


def _writes_patch_scores(entry: dict[str, Any]) -> bool:
    return any(argument["name"] == PATCH_SCORES for argument in entry["launch"]["arguments"])


def _runs(entry: dict[str, Any], capability: int, kind: str) -> bool:
    """Whether a chip runs it; code for an exact chip (sm_90a) serves no other, cubins serve their family only."""
    own = _capability(entry)
    if own == capability:
        return True
    older = own < capability and not entry["architecture"].endswith("a")
    return older and (kind == "ptx" or own // 10 == capability // 10)


def _capability(entry: dict[str, Any]) -> int:
    return int(entry["target"].removeprefix("sm_"))


def _kernel(bundle: Bundle, entry: dict[str, Any], kind: str) -> KernelFile:
    launch = entry["launch"]
    return KernelFile(
        target=entry["target"],
        kind=kind,
        # Checked against the bundle's manifest, which holds a sha256 of every file.
        data=bundle.read(f"{KERNELS}/{entry[kind]['file']}"),
        sha256=entry[kind]["sha256"],
        entry=launch["entry"],
        dtype=entry["dtype"],
        width=entry["constants"]["E"],
        block_c=entry["constants"]["BLOCK_C"],
        threads=launch["block"][0],
        shared_bytes=launch["shared_bytes"],
        max_patches=launch["max_patches"],
        patch_scores=_writes_patch_scores(entry),
    )
