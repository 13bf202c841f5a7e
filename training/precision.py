"""Device and precision of training: CUDA where there is one; bf16 only where the hardware multiplies it."""

import contextlib
import os
from pathlib import Path

import torch

from hpdval_edge.errors import MissingDependency, UsageError


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA if PyTorch sees it, else the CPU; MissingDependency where a named device is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"train.device={name!r} is not a device of PyTorch; use auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingDependency(f"train.device={name!r}, but PyTorch sees no CUDA device here; use train.device=cpu.")
    return device


def set_threads(count: int) -> None:
    """``train.threads``: 0 leaves PyTorch's own choice."""
    if count:
        torch.set_num_threads(count)


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 products run in hardware: CUDA from Ampere on, x86 with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager:
    """bf16 autocast for ``bf16``, or for ``auto`` where the hardware has it; else no change of precision."""
    enabled = amp == "bf16" or (amp == "auto" and has_native_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
