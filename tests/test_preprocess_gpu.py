"""Frames on a GPU to network input: interpreted on any machine, compiled for a chip, run where there is one."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from hpdval_edge.export.aot_compile import assemble
from hpdval_edge.export.aot_targets import find_targets
from hpdval_edge.kernels.preprocess import resize_normalize
from hpdval_edge.kernels.preprocess_gpu import refuses, resize_normalize_frames

NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
NORMAL = {"mean": (0.48, 0.45, 0.40), "std": (0.27, 0.26, 0.28)}


def frames(*shape, dtype=torch.uint8):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.slow
@NEEDS_TRITON
def test_in_the_interpreter():
    """Runs interpreted_preprocess.py by itself, for the interpreter changes triton for good."""
    inner = Path(__file__).with_name("interpreted_preprocess.py")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(inner)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@NEEDS_TRITON
@pytest.mark.parametrize("planes", [False, True], ids=["rgb", "nv12"])
@pytest.mark.parametrize("vertical", [False, True], ids=["horizontal", "vertical"])
def test_compiles_for_orin_without_spills(planes, vertical):
    """What the interpreter lets pass and the compiler does not. Seen to fail on sums kept in a list."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hpdval_edge.kernels.preprocess_triton import LINES, OUTPUTS, resize_pass

    types = {
        "pixels_ptr": "*u8",
        "chroma_ptr": "*u8",
        "starts_ptr": "*i32",
        "weights_ptr": "*i32",
        "table_ptr": "*fp32",
    }
    types["out_ptr"] = "*u8" if planes else "*fp32"
    constants = {"VERTICAL": vertical, "BGR": False, "LINES": LINES, "OUTPUTS": OUTPUTS}
    constants["table_ptr" if planes else "chroma_ptr"] = None
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in resize_pass.arg_names}
    source = ASTSource(fn=resize_pass, signature=signature, constexprs=constants)
    (orin,) = find_targets("sm_87")
    compiled = triton.compile(source, target=GPUTarget("cuda", 87, 32), options={"ptx_version": orin.ptx})
    _, facts = assemble(compiled.asm["ptx"], orin)
    assert facts["spill_bytes"] == 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("height", "width", "mode"),
    [(480, 640, "squash"), (1080, 1920, "crop"), (2160, 3840, "squash"), (500, 333, "squash")],
)
def test_on_the_gpu(height, width, mode):
    """Equal to the C++ kernel to the last bit."""
    pixels = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    pixels = pixels.cuda() if torch.cuda.is_available() else pixels
    if reason := refuses(pixels):
        pytest.skip(reason)
    for layout in ("rgb", "bgr"):
        found = resize_normalize_frames(pixels, 224, mode=mode, layout=layout, **NORMAL).cpu().numpy()
        expected = [resize_normalize(x, 224, mode=mode, layout=layout, **NORMAL) for x in pixels.cpu().numpy()]
        np.testing.assert_array_equal(found, np.stack(expected))
    planes = (pixels[..., 0].contiguous(), pixels[:, ::2, :, 1].contiguous())
    if height % 2 == width % 2 == 0:
        found = resize_normalize_frames(planes, 224, mode=mode, layout="nv12", **NORMAL).cpu().numpy()
        here = [x.cpu().numpy() for x in planes]
        expected = [resize_normalize(x, 224, mode=mode, layout="nv12", **NORMAL) for x in zip(*here, strict=True)]
        np.testing.assert_array_equal(found, np.stack(expected))


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (frames(1, 4, 4, 3), {}, "cannot take these frames: it needs an NVIDIA GPU and the tensors are on cpu"),
        (frames(4, 4, 3), {}, r"\[B, H, W, 3\] with at least one pixel, got \[4, 4, 3\]"),
        (frames(1, 0, 4, 3), {}, r"at least one pixel, got \[1, 0, 4, 3\]"),
        (frames(1, 4, 4, 3, dtype=torch.float32), {}, "must be uint8 on one device, got torch.float32"),
        (np.zeros((1, 4, 4, 3), np.uint8), {}, "must be a tensor for layout 'rgb', got ndarray"),
        (frames(1, 4, 4, 3), {"layout": "yuv"}, "layout must be one of rgb, bgr, nv12, got 'yuv'"),
        (frames(1, 4, 4, 3), {"layout": "nv12"}, "must be a tuple of two tensors, luma and chroma, for layout 'nv12'"),
        ((frames(1, 5, 4), frames(1, 2, 4)), {"layout": "nv12"}, r"H and W even, got \[1, 5, 4\] and \[1, 2, 4\]"),
        ((frames(2, 4, 4), frames(1, 2, 4)), {"layout": "nv12"}, r"got \[2, 4, 4\] and \[1, 2, 4\]"),
        (frames(1, 4, 4, 3), {"mode": "fit"}, "mode must be one of squash, crop, got 'fit'"),
        (frames(1, 4, 4, 3), {"size": 0}, "size must be an integer"),
        (frames(1, 1, 60000, 3), {"size": 224, "mode": "crop"}, "too long for mode 'crop'"),
        (frames(1, 4, 4, 3), {"std": (1, 1, 0)}, "std positive"),
        (frames(1, 4, 4, 3), {"dtype": "int8"}, "dtype must be one of float32, float16, got int8"),
    ],
    ids=str,
)
def test_mistakes_are_named(monkeypatch, given, options, words):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = {"size": 2, **NORMAL, **options}
    with pytest.raises((TypeError, ValueError), match=words):
        resize_normalize_frames(given, arguments.pop("size"), **arguments)
