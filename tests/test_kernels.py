"""The dual-view head agrees with float64 NumPy, whichever backend computes it (METHOD section 5)."""

import numpy as np
import pytest
import torch

from hpdval_edge.kernels import BACKENDS, dual_view_scores
from hpdval_edge.kernels.head import eager_scores, numpy_scores

# The GPU's backend takes no NumPy arrays; test_head_triton.py is about it.
NAMES = [backend.name for backend in BACKENDS if backend.name != "triton"]
# B, N, C, E: single, odd, one past and one short of a vector or a tile, and the sizes of a real student.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 49, 20, 129), (1, 196, 33, 512), (5, 31, 65, 127), (2, 8, 32, 256)]
# float32 rounding of the largest shape, measured below 2e-7; the limit is the issue's.
TOLERANCE = 2e-6


def make(shape, seed=0, dtype=np.float32):
    """cls, patches, text_global, text_local of one [B, N, C, E]."""
    b, n, c, e = shape
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(dtype) for s in ((b, e), (b, n, e), (c, e), (c, e))]


@pytest.fixture(autouse=True)
def fresh_memory_holds_nan(monkeypatch):
    """A score that a backend forgets to write shows up, whatever the memory held before."""
    empty = np.empty

    def nan_filled(shape, dtype=float, *args, **kwargs):
        out = empty(shape, dtype, *args, **kwargs)
        if out.dtype.kind == "f":
            out.fill(np.nan)
        return out

    monkeypatch.setattr(np, "empty", nan_filled)


def by_definition(cls, patches, text_global, text_local, k, alpha):
    """Loops and float64 only, written without looking at either specification."""

    def cos(a, b):
        a, b = a.astype(float), b.astype(float)
        return float(a @ b) / max(np.sqrt(a @ a), 1e-12) / max(np.sqrt(b @ b), 1e-12)

    scores = np.zeros((len(cls), len(text_global)))
    for b, c in np.ndindex(scores.shape):
        best = sorted((cos(text_local[c], patch) for patch in patches[b]), reverse=True)[:k]
        scores[b, c] = alpha * cos(text_global[c], cls[b]) + (1 - alpha) * sum(best) / len(best)
    return scores


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("k", [1, 7, 500])
def test_specifications_follow_the_definition(k, alpha):
    arrays = make((3, 9, 4, 6))
    expected = by_definition(*arrays, k, alpha)
    scores, patch_scores = numpy_scores(*arrays, k=k, alpha=alpha)
    np.testing.assert_allclose(scores, expected, atol=1e-14)
    wide = [torch.from_numpy(x).double() for x in arrays]
    eager, eager_patches = eager_scores(*wide, k=k, alpha=alpha)
    np.testing.assert_allclose(eager.numpy(), expected, atol=1e-14)
    np.testing.assert_allclose(eager_patches.numpy(), patch_scores, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("k", [1, 7, "N", 500])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_backend_agrees_with_float64(name, shape, k, alpha):
    arrays = make(shape)
    k = shape[1] if k == "N" else k
    expected, expected_patches = numpy_scores(*arrays, k=k, alpha=alpha)
    scores, patch_scores = dual_view_scores(*arrays, k=k, alpha=alpha, backend=name, return_patch_scores=True)
    assert scores.dtype == patch_scores.dtype == np.float32
    assert patch_scores.shape == (shape[0], shape[1], shape[2])
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(patch_scores, expected_patches, atol=TOLERANCE, rtol=0)
    np.testing.assert_array_equal(dual_view_scores(*arrays, k=k, alpha=alpha, backend=name), scores)


@pytest.mark.parametrize("name", ["auto", "cpu", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_torch_in_torch_out(name, dtype):
    tensors = [torch.from_numpy(x).to(dtype) for x in make((2, 17, 5, 40))]
    expected, expected_patches = numpy_scores(*(x.double().numpy() for x in tensors), k=4, alpha=0.4)
    scores, patch_scores = dual_view_scores(*tensors, k=4, backend=name, return_patch_scores=True)
    assert isinstance(scores, torch.Tensor) and isinstance(patch_scores, torch.Tensor)
    assert scores.dtype == patch_scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy(), expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(patch_scores.numpy(), expected_patches, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_float16_and_mixed_widths_are_widened_first(name):
    arrays = make((2, 5, 3, 8), dtype=np.float16)
    arrays[2] = arrays[2].astype(np.float32)
    expected, _ = numpy_scores(*arrays, k=2, alpha=0.4)
    scores = dual_view_scores(*arrays, k=2, backend=name)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE, rtol=0)


def test_autocast_does_not_narrow_the_specification():
    tensors = [torch.from_numpy(x) for x in make((2, 9, 3, 64))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow, _ = eager_scores(*tensors, k=3, alpha=0.4)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, eager_scores(*tensors, k=3, alpha=0.4)[0], atol=0, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_ties_do_not_change_the_result(name):
    cls, patches, text_global, text_local = make((2, 4, 3, 16))
    tied = np.repeat(patches, 3, axis=1)
    once = dual_view_scores(cls, patches, text_global, text_local, k=2, backend=name)
    np.testing.assert_allclose(
        dual_view_scores(cls, tied, text_global, text_local, k=6, backend=name), once, atol=2e-7, rtol=0
    )
    equal = np.repeat(patches[:, :1], 11, axis=1)
    one = dual_view_scores(cls, equal[:, :1], text_global, text_local, k=1, backend=name)
    for k in (1, 5, 11):
        scores = dual_view_scores(cls, equal, text_global, text_local, k=k, backend=name)
        np.testing.assert_allclose(scores, one, atol=2e-7, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_alpha_weighs_the_global_view(name):
    arrays, others = make((3, 9, 4, 16)), make((3, 9, 4, 16), seed=1)
    whole = np.einsum("be,ce->bc", *(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (arrays[0], arrays[2])))
    only_global = dual_view_scores(*arrays, k=3, alpha=1, backend=name)
    np.testing.assert_allclose(only_global, whole, atol=3e-7)
    moved = dual_view_scores(arrays[0], others[1], arrays[2], others[3], k=3, alpha=1, backend=name)
    np.testing.assert_array_equal(moved, only_global)
    only_local = dual_view_scores(*arrays, k=3, alpha=0, backend=name)
    moved = dual_view_scores(others[0], arrays[1], others[2], arrays[3], k=3, alpha=0, backend=name)
    np.testing.assert_array_equal(moved, only_local)
    assert np.abs(only_local - only_global).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_top_k_is_per_class_over_patches(name):
    cls, patches, text_global, text_local = make((2, 13, 37, 24))
    rng = np.random.default_rng(2)
    scores = dual_view_scores(cls, patches, text_global, text_local, k=5, backend=name)
    shuffled = patches[:, rng.permutation(13)]
    np.testing.assert_allclose(
        dual_view_scores(cls, shuffled, text_global, text_local, k=5, backend=name), scores, atol=2e-7, rtol=0
    )
    order = rng.permutation(37)
    permuted = dual_view_scores(cls, patches, text_global[order], text_local[order], k=5, backend=name)
    np.testing.assert_allclose(permuted, scores[:, order], atol=2e-7, rtol=0)
    _, cosines = dual_view_scores(
        cls, patches, text_global, text_local, alpha=0, backend=name, return_patch_scores=True
    )
    largest = dual_view_scores(cls, patches, text_global, text_local, k=1, alpha=0, backend=name)
    np.testing.assert_array_equal(largest, cosines.max(axis=1))
    mean = dual_view_scores(cls, patches, text_global, text_local, k=13, alpha=0, backend=name)
    np.testing.assert_allclose(mean, cosines.mean(axis=1), atol=2e-7, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_zero_tiny_and_long_rows(name):
    cls, patches, text_global, text_local = make((2, 6, 3, 16))
    cls[0] = 0
    patches[1] = 0
    text_local[2] *= np.float32(1e-30)
    text_global[1] *= np.float32(1e15)
    expected, _ = numpy_scores(cls, patches, text_global, text_local, k=2, alpha=0.4)
    scores = dual_view_scores(cls, patches, text_global, text_local, k=2, backend=name)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE, rtol=0)
    assert abs(scores[0, 2]) < 1e-10, "a zero image row and a text row far below eps score nothing"


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_divided_by_their_norm_or_1e_12(name):
    arrays = make((1, 4, 3, 16))
    whole = dual_view_scores(*arrays, backend=name)
    units = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in arrays]
    # Just above eps a row still counts in full, below it fades in proportion; both views, both sides.
    for factor in (np.float32(1e-11), np.float32(5e-13)):
        share = min(1.0, float(factor) / 1e-12)
        for side in ([0, 1], [2, 3]):
            scaled = [x * factor if i in side else x for i, x in enumerate(units)]
            scores = dual_view_scores(*scaled, backend=name)
            np.testing.assert_allclose(scores, share * whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_nan_reaches_exactly_the_scores_it_enters(name):
    cls, patches, text_global, text_local = make((3, 6, 40, 16))
    clean = dual_view_scores(cls, patches, text_global, text_local, k=2, backend=name)
    cls[0, 3] = np.nan
    patches[1, 4, 2] = np.inf
    text_local[33, 0] = np.nan
    scores = dual_view_scores(cls, patches, text_global, text_local, k=2, backend=name)
    expected = np.zeros((3, 40), bool)
    expected[:2] = True
    expected[:, 33] = True
    np.testing.assert_array_equal(np.isnan(scores), expected)
    np.testing.assert_allclose(scores[~expected], clean[~expected], atol=2e-7, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_does_not_matter_and_inputs_stay(name):
    arrays = make((2, 7, 3, 10))
    expected = dual_view_scores(*arrays, k=3, backend=name)
    strided = [np.repeat(x, 2, axis=-1)[..., ::2] for x in arrays]
    reversed_ = [np.ascontiguousarray(x[::-1])[::-1] for x in arrays]
    fortran = [np.asfortranarray(x) for x in arrays]
    swapped = [x.astype(">f4") for x in arrays]
    for variant in (strided, reversed_, fortran, swapped):
        np.testing.assert_array_equal(dual_view_scores(*variant, k=3, backend=name), expected)
    frozen = [x.copy() for x in arrays]
    for x in frozen:
        x.flags.writeable = False
    np.testing.assert_array_equal(dual_view_scores(*frozen, k=3, backend=name), expected)
    for x, original in zip(arrays, make((2, 7, 3, 10)), strict=True):
        np.testing.assert_array_equal(x, original)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 4, 3, 8), (2, 4, 0, 8), (0, 4, 0, 8)], ids=str)
def test_empty_batches_and_label_lists(name, shape):
    scores, cosines = dual_view_scores(*make(shape), backend=name, return_patch_scores=True)
    assert scores.shape == (shape[0], shape[2]) and scores.dtype == np.float32
    assert cosines.shape == (shape[0], 4, shape[2])


def test_gradient():
    inputs = [torch.from_numpy(x).double().requires_grad_() for x in make((2, 5, 3, 4))]
    for alpha, k in ((0.4, 2), (0.4, 9), (0.0, 1)):
        assert torch.autograd.gradcheck(lambda *x, a=alpha, k=k: eager_scores(*x, k=k, alpha=a), inputs)


BAD = {
    "cls ndim": ({"cls": np.zeros(4, np.float32)}, r"cls must have shape \[B, E\], got \[4\]"),
    "patches ndim": ({"patches": np.zeros((2, 4), np.float32)}, r"patches must have shape \[B, N, E\], got \[2, 4\]"),
    "E": ({"text_local": np.zeros((3, 5), np.float32)}, r"one width E.*cls \[2, 4\].*text_local \[3, 5\]"),
    "B": ({"cls": np.zeros((7, 4), np.float32)}, r"number of images B, got 7 and 2"),
    "C": ({"text_local": np.zeros((9, 4), np.float32)}, r"number of classes C, got 3 and 9"),
    "N = 0": ({"patches": np.zeros((2, 0, 4), np.float32)}, r"at least one patch \(N >= 1\), got shape \[2, 0, 4\]"),
    "float64": ({"cls": np.zeros((2, 4))}, r"cls must be one of float32, float16, bfloat16, got float64"),
    "integers": ({"patches": np.zeros((2, 5, 4), np.uint8)}, r"patches must be one of .*, got uint8"),
    "mixed": ({"cls": torch.zeros(2, 4)}, r"not both, got cls torch, patches numpy"),
    "k zero": ({"k": 0}, r"k must be an integer of at least 1, got 0"),
    "k not whole": ({"k": 2.5}, r"k must be an integer of at least 1, got 2\.5"),
    "alpha above": ({"alpha": 1.5}, r"alpha must be a number between 0 and 1, got 1\.5"),
    "alpha nan": ({"alpha": float("nan")}, r"alpha .* got nan"),
    "backend": ({"backend": "cuda"}, r"backend must be one of auto, triton, cpu, numpy, eager, got 'cuda'"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_named(name):
    arguments = dict(zip(("cls", "patches", "text_global", "text_local"), make((2, 5, 3, 4)), strict=True))
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        dual_view_scores(**{**arguments, **change})


def test_zero_width_is_refused():
    with pytest.raises(ValueError, match="one width E >= 1"):
        dual_view_scores(*make((2, 5, 3, 0)))


def test_lists_are_refused():
    with pytest.raises(TypeError, match="cls must be a numpy array or a torch tensor, got list"):
        dual_view_scores([[1.0]], *make((1, 1, 1, 1))[1:])


def test_tensors_on_two_devices_are_refused():
    tensors = [torch.from_numpy(x) for x in make((2, 5, 3, 4))]
    with pytest.raises(ValueError, match=r"one device, got cpu, meta, cpu, cpu"):
        dual_view_scores(tensors[0], tensors[1].to("meta"), *tensors[2:])


def test_a_named_backend_is_never_replaced(monkeypatch):
    tensors = [torch.from_numpy(x) for x in make((2, 5, 3, 4))]
    with pytest.raises(ValueError, match=r"backend 'numpy' cannot .*torch tensors"):
        dual_view_scores(*tensors, backend="numpy")
    with pytest.raises(ValueError, match=r"backend 'cpu' cannot .*on meta"):
        dual_view_scores(*(x.to("meta") for x in tensors), backend="cpu")
    monkeypatch.setattr("hpdval_edge.kernels.compiled.MISSING", "not built")
    with pytest.raises(ValueError, match=r"backend 'cpu' cannot .*not built"):
        dual_view_scores(*make((2, 5, 3, 4)), backend="cpu")
    np.testing.assert_array_equal(
        dual_view_scores(*make((2, 5, 3, 4))), dual_view_scores(*make((2, 5, 3, 4)), backend="numpy")
    )
