"""The GPU kernels of the dual-view head: interpreted on any machine, compiled and run where there is a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from hpdval_edge.kernels import dual_view_scores, gpu, head_gpu
from hpdval_edge.kernels.head import eager_scores, numpy_scores
from hpdval_edge.kernels.head_launch import TUNED, Launch, launch_for

NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def make(shape, dtype=torch.float32, device="cpu"):
    """cls, patches, text_global, text_local of one [B, N, C, E]."""
    b, n, c, e = shape
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(s, generator=generator).to(device, dtype) for s in ((b, e), (b, n, e), (c, e), (c, e)))


@pytest.mark.slow
@NEEDS_TRITON
def test_in_the_interpreter():
    """Runs interpreted_head.py, which says what it proves; by itself, for the interpreter changes triton for good."""
    inner = Path(__file__).with_name("interpreted_head.py")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(inner)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_it_needs_neither_torch_nor_triton(tmp_path):
    code = "import sys, hpdval_edge.kernels.head_gpu; print({'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_triton_too_old_for_narrow_tiles_is_refused(monkeypatch):
    """Triton 3.6 on a GPU cannot compile the gradient at 1,024 float32 patches: a product there needs 16 columns."""
    monkeypatch.setattr(head_gpu, "device_refuses", lambda tensor: None)
    monkeypatch.setattr(head_gpu, "installation_refuses", lambda: None)
    monkeypatch.setattr(head_gpu, "triton_release", lambda: (3, 7))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = "float32 with 1,024 patches needs triton 3.8 and 3.7 is installed; float16 does not"
    wide = make((1, 1024, 3, 4))
    assert head_gpu.refuses(wide) == reason
    assert head_gpu.refuses(tuple(x.half() for x in wide)) is None
    assert head_gpu.refuses(make((1, 576, 3, 4))) is None
    monkeypatch.setattr(head_gpu, "triton_release", lambda: (3, 8))
    assert head_gpu.refuses(wide) is None


def test_refusals_say_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tensors = make((2, 5, 3, 4))
    assert head_gpu.refuses(tuple(x.numpy() for x in tensors)) == (
        "it takes torch tensors on an NVIDIA GPU and these are numpy arrays"
    )
    assert head_gpu.refuses(tensors) == "it needs an NVIDIA GPU and the tensors are on cpu"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    double = tuple(x.double() for x in tensors)
    assert head_gpu.refuses(double) == "it computes in float32 and an input is float64"
    many = (tensors[0], torch.zeros(2, 1025, 4), *tensors[2:])
    assert head_gpu.refuses(many) == "it takes at most 1,024 patches and these are 1,025"
    wide = (torch.zeros(1, 1).expand(65536, 1), torch.zeros(1, 1, 1).expand(65536, 1, 1), *tensors[2:])
    assert head_gpu.refuses(wide) == "it takes at most 65,535 images at once and these are 65,536"
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    gpu.installation_refuses.cache_clear()
    assert head_gpu.refuses(tensors) == "triton is not installed; install 'hpdval-edge[export]'"
    gpu.installation_refuses.cache_clear()


def test_no_c_compiler_is_said_before_a_launch_fails(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(gpu, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    gpu.installation_refuses.cache_clear()
    assert "needs a C compiler" in gpu.installation_refuses()
    gpu.installation_refuses.cache_clear()


def jit_cases():
    """Kernel and launch as head_gpu starts them on sm_90: both columns of the tuned table, one tile and two."""
    tuned = {few.patches: (few, many) for few, many in TUNED[90, 2]}
    yield "prepare", Launch(16, 64, 0, 64, 4, 3)
    yield from (("head", launch) for n in (256, 576) for launch in tuned[n])
    yield "head_shares", launch_for(196, 2, 90)


@pytest.mark.slow
@NEEDS_TRITON
@pytest.mark.parametrize(("name", "launch"), list(jit_cases()), ids=str)
def test_what_torch_launches_compiles_and_waits_once(name, launch):
    """Planted mistakes: no wait for `prepare`; one in `prepare` itself; a launch of more registers than there are."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hpdval_edge.kernels import head_triton

    kernel = getattr(head_triton, name)
    halves = ("cls_ptr", "patches_ptr", "text_global_ptr", "text_local_ptr")
    constants = {"E": 512, "OVERLAP": True, **launch.constants, "patch_scores_ptr": None}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    types = {argument: "*fp16" if argument in halves else "*fp32" for argument in kernel.arg_names}
    signature = {
        argument: "constexpr" if argument in constants else types[argument] if argument.endswith("_ptr") else "i32"
        for argument in kernel.arg_names
    }
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    starts, waits = (ptx.count(f"griddepcontrol.{verb}") for verb in ("launch_dependents", "wait"))
    assert (starts, waits) == ((1, 0) if name == "prepare" else (0, 1))


# Both columns of the tuned table, and E that no tile divides.
SHAPES = [
    (1, 1, 1, 1),
    (3, 49, 20, 129),
    (8, 196, 80, 512),
    (2, 576, 1000, 768),
    (32, 196, 200, 512),
    (8, 576, 1000, 512),
    (8, 1024, 600, 512),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_the_gpu(shape, dtype):
    """No worse than twice eager's error at the same dtype; ties, gradients and NaN; few scores and many."""
    arrays = make(shape, dtype, "cuda" if torch.cuda.is_available() else "cpu")
    if reason := head_gpu.refuses(arrays):
        pytest.skip(reason)
    expected, expected_patches = numpy_scores(*(x.double().cpu().numpy() for x in arrays), k=32, alpha=0.4)
    eager, _ = eager_scores(*arrays, k=32, alpha=0.4)
    scores, patch_scores = head_gpu.run(arrays, 32, 0.4, True)
    error = np.abs(scores.double().cpu().numpy() - expected).mean()
    assert error <= 2 * np.abs(eager.double().cpu().numpy() - expected).mean() + np.finfo(np.float32).eps
    np.testing.assert_allclose(patch_scores.cpu().numpy(), expected_patches, atol=2e-6, rtol=0)
    leaves = [x.clone().requires_grad_() for x in arrays]
    references = [x.double().requires_grad_() for x in arrays]
    dual_view_scores(*leaves, k=32, alpha=0.4, backend="triton").square().sum().backward()
    eager_scores(*references, k=32, alpha=0.4)[0].square().sum().backward()
    for leaf, reference in zip(leaves, references, strict=True):
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(leaf.grad.double(), reference.grad, atol=2e-5, rtol=2 * tolerance)
    arrays[1][0, 0, 0] = torch.nan
    assert head_gpu.run(arrays, 1, 1.0, False)[0].isnan()[0].all()
