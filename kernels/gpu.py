"""What the GPU kernels ask of the machine before they start: triton, a C compiler, a device."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# 10 times major + minor: tensor cores for bfloat16 and asynchronous copies.
MIN_CAPABILITY = 80


def interpreted() -> bool:
    """Whether triton interprets its kernels on the CPU, as tests do: by its own environment variable."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def triton_release() -> tuple[int, int]:
    """Major and minor of the installed triton."""
    major, minor = version("triton").split(".")[:2]
    return int(major), int(minor)


@cache
def installation_refuses() -> str | None:
    """Why no kernel can be launched from this environment, whatever the GPU, or None."""
    if find_spec("triton") is None:
        return "triton is not installed; install 'hpdval-edge[export]'"
    if not interpreted() and "CC" not in os.environ and not (shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler (gcc, clang, or one named by CC) to launch kernels and there is none"
    return None


def device_refuses(tensor: Tensor) -> str | None:
    """Why kernels cannot run where ``tensor`` lies, or None."""
    import torch

    device = tensor.device
    if interpreted():
        where = f"TRITON_INTERPRET=1 interprets kernels on the CPU and the tensors are on {device}"
        return where if device.type != "cpu" else None
    if device.type != "cuda" or torch.version.hip:
        return f"it needs an NVIDIA GPU and the tensors are on {device}"
    found = capability(tensor)
    if found < MIN_CAPABILITY:
        return f"it needs compute capability 8.0 and {device} has {found // 10}.{found % 10}"
    return None


def capability(tensor: Tensor) -> int:
    """10 times major + minor of the tensor's device; of the smallest chip under the interpreter."""
    import torch

    if not tensor.is_cuda:
        return MIN_CAPABILITY
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Launch where ``tensor`` lies."""
    import torch

    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
