"""The Triton kernels of the dual-view head, interpreted on the CPU; `test_head_triton.py` runs this file.

It needs a process of its own: TRITON_INTERPRET=1 must be set before triton is imported, and changes it for good. The
interpreter computes in NumPy. So this proves algebra, masks and order of arguments, not tensor-core rounding, layouts,
races or shared memory. bfloat16 is left out: NumPy has no such type, and triton 3.8 multiplies its bit patterns.

Each test was seen to fail on the planted mistakes that its docstring names, unless it says otherwise.
"""

import pytest
import torch

from hpdval_edge.kernels import dual_view_scores, head_gpu
from hpdval_edge.kernels.gpu import interpreted
from hpdval_edge.kernels.head import eager_scores, numpy_scores
from hpdval_edge.kernels.head_launch import TABLE, TUNED, Launch, launch_for, tuned_for
from hpdval_edge.kernels.head_triton import head

assert interpreted(), "run this file with TRITON_INTERPRET=1, as test_head_triton.py does"

DTYPES = [torch.float32, torch.float16]
ONE_TILE = Launch(block_c=16, block_n=64, tail_n=0, block_e=32, warps=4, stages=2)
TWO_TILES = Launch(block_c=16, block_n=32, tail_n=32, block_e=16, warps=4, stages=2)


def make(shape, dtype=torch.float32, seed=0):
    """cls, patches, text_global, text_local of one [B, N, C, E]."""
    b, n, c, e = shape
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, generator=generator).to(dtype) for s in ((b, e), (b, n, e), (c, e), (c, e)))


def exact(arrays, k, alpha):
    """float64 scores and patch cosines."""
    return (torch.from_numpy(x) for x in numpy_scores(*(x.double().numpy() for x in arrays), k=k, alpha=alpha))


def assert_no_worse_than_twice_eager(found, eager, expected):
    assert found.dtype == torch.float32
    unavoidable = (eager.double() - expected).abs().mean()
    assert (found.double() - expected).abs().mean() <= 2 * unavoidable + torch.finfo(torch.float32).eps
    assert (found.double() - expected).abs().max() <= 2e-6


@pytest.fixture(autouse=True)
def fresh_memory_holds_nan(monkeypatch):
    """A score that the kernel forgets to write shows up, whatever the memory held before."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(torch.nan))


@pytest.fixture(params=[ONE_TILE, TWO_TILES], ids=["one tile", "two tiles"])
def tiles(request, monkeypatch):
    """Small tiles, so that small shapes reach every mask."""
    monkeypatch.setattr(head_gpu, "tuned_for", lambda *_: request.param)
    monkeypatch.setattr(head_gpu, "launch_for", lambda *_: request.param)


# [B, N, C, E], k, alpha, dtype: single, odd, one past and one short of a tile's side; few, for the interpreter is slow.
CASES = [
    ((1, 1, 1, 1), 1, 1.0, torch.float32),
    ((2, 3, 5, 7), 500, 0.4, torch.float16),
    ((1, 49, 20, 129), 7, 0.4, torch.float32),
    ((1, 49, 17, 33), 49, 0.4, torch.float16),
    ((2, 31, 3, 65), 1, 0.0, torch.float32),
    ((1, 33, 16, 32), 32, 0.4, torch.float16),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(tiles, case):
    """Mistakes: columns past E unmasked, patches past N taken for real, the second tile not counted, k not clamped."""
    shape, k, alpha, dtype = case
    arrays = make(shape, dtype)
    assert head_gpu.refuses(arrays) is None
    expected, expected_patches = exact(arrays, k, alpha)
    eager, eager_patches = eager_scores(*arrays, k=k, alpha=alpha)
    scores, patch_scores = head_gpu.run(arrays, k, alpha, True)
    assert_no_worse_than_twice_eager(scores, eager, expected)
    assert_no_worse_than_twice_eager(patch_scores, eager_patches, expected_patches)
    alone, nothing = head_gpu.run(arrays, k, alpha, False)
    assert nothing is None and torch.equal(alone, scores)


@pytest.mark.parametrize(("patches", "dtype"), [(196, torch.float16), (576, torch.float32), (1024, torch.float16)])
def test_agrees_with_float64_at_the_sizes_of_the_launch_table(patches, dtype):
    """Mistake: the last row of the table serves fewer patches than it says."""
    arrays = make((1, patches, 5, 96), dtype)
    expected, expected_patches = exact(arrays, 32, 0.4)
    eager, eager_patches = eager_scores(*arrays, k=32, alpha=0.4)
    scores, patch_scores = head_gpu.run(arrays, 32, 0.4, True)
    assert_no_worse_than_twice_eager(scores, eager, expected)
    assert_no_worse_than_twice_eager(patch_scores, eager_patches, expected_patches)


def test_ties_do_not_change_the_result(tiles):
    """Mistakes: all ties at the k-th key counted; none."""
    cls, patches, text_global, text_local = make((2, 12, 3, 16))
    once, _ = head_gpu.run((cls, patches, text_global, text_local), 2, 0.4, False)
    tied = patches.repeat_interleave(4, dim=1)
    scores, _ = head_gpu.run((cls, tied, text_global, text_local), 8, 0.4, False)
    torch.testing.assert_close(scores, once, atol=2e-7, rtol=0)
    for k in (5, 11):
        expected, _ = exact((cls, tied, text_global, text_local), k, 0.4)
        scores, _ = head_gpu.run((cls, tied, text_global, text_local), k, 0.4, False)
        torch.testing.assert_close(scores.double(), expected, atol=2e-6, rtol=0)


def test_zero_tiny_and_long_rows(tiles):
    """Mistake: a norm's lower bound of 1e-30."""
    cls, patches, text_global, text_local = make((2, 40, 3, 16))
    cls[0] = 0
    patches[1] = 0
    patches[0, 5:30] = 0
    text_local[2] *= 1e-30
    text_global[1] *= 1e15
    text_local[0] *= 5e-13 / text_local[0].norm()
    for k in (2, 20):
        expected, _ = exact((cls, patches, text_global, text_local), k, 0.4)
        scores, _ = head_gpu.run((cls, patches, text_global, text_local), k, 0.4, False)
        torch.testing.assert_close(scores.double(), expected, atol=2e-6, rtol=0)


# NumPy warns where the GPU would not.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_nan_reaches_exactly_the_scores_it_enters(alpha, monkeypatch):
    """Mistake: nothing added for a patch row of either tile whose cosine is NaN, which then falls out of the top k."""
    monkeypatch.setattr(head_gpu, "tuned_for", lambda *_: TWO_TILES)
    monkeypatch.setattr(head_gpu, "launch_for", lambda *_: TWO_TILES)
    arrays = make((4, 40, 18, 16))
    clean, _ = head_gpu.run(arrays, 2, alpha, False)
    cls, patches, text_global, text_local = arrays
    cls[0, 3] = torch.nan
    patches[1, 38, 2] = torch.inf
    patches[2, 4, 2] = -torch.nan
    text_local[3, 0] = torch.nan
    text_global[17, 1] = -torch.inf
    expected = torch.zeros(4, 18, dtype=torch.bool)
    expected[:3] = True
    expected[:, [3, 17]] = True
    scores, _ = head_gpu.run(arrays, 2, alpha, False)
    assert torch.equal(scores.isnan(), expected)
    torch.testing.assert_close(scores[~expected], clean[~expected], atol=0, rtol=0)


def test_values_of_every_size_are_ordered(tiles):
    """Mistake: the sign bit not flipped in the key of a negative float."""
    cls, patches, text_global, text_local = make((1, 60, 4, 1))
    patches[0, :, 0] = torch.cat([10.0 ** -torch.arange(0, 30), -(10.0 ** -torch.arange(0, 30))])
    arrays = (cls, patches, text_global, text_local)
    for k in (1, 17, 31, 43):
        expected, _ = exact(arrays, k, 0.0)
        scores, _ = head_gpu.run(arrays, k, 0.0, False)
        torch.testing.assert_close(scores.double(), expected, atol=2e-7, rtol=0)


def test_mixed_widths_and_strides():
    """Mistake: inputs passed on without being made contiguous."""
    cls, patches, text_global, text_local = make((2, 33, 5, 24))
    expected, _ = head_gpu.run((cls, patches, text_global, text_local), 3, 0.4, False)
    strided = tuple(x.repeat_interleave(2, dim=-1)[..., ::2] for x in (cls, patches, text_global, text_local))
    assert not strided[1].is_contiguous()
    assert torch.equal(head_gpu.run(strided, 3, 0.4, False)[0], expected)
    mixed = (cls.half(), patches, text_global.half(), text_local)
    assert torch.equal(
        head_gpu.run(mixed, 3, 0.4, False)[0], head_gpu.run(tuple(x.float() for x in mixed), 3, 0.4, False)[0]
    )


@pytest.mark.parametrize("shape", [(0, 4, 3, 8), (2, 4, 0, 8)], ids=str)
def test_empty_batches_and_label_lists(shape):
    """Not seen to fail: the interpreter accepts an empty grid, which a GPU refuses."""
    arrays = [x.requires_grad_() for x in make(shape)]
    scores, patch_scores = dual_view_scores(*arrays, k=2, backend="triton", return_patch_scores=True)
    assert scores.shape == (shape[0], shape[2]) and patch_scores.shape == (shape[0], shape[1], shape[2])
    (scores.sum() + patch_scores.sum()).backward()
    assert all(x.grad.abs().sum() == 0 for x in arrays)


def both_gradients(arrays, k, alpha, wanted=(True,) * 4, of_patches=False):
    """Gradients of one random weighting of the outputs: by the kernels, and by eager in float64."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(len(arrays[0]), len(arrays[2]), generator=generator)
    patch_weights = torch.randn(*arrays[1].shape[:2], len(arrays[2]), generator=generator)
    results = []
    for by_kernel in (True, False):
        leaves = [
            (x if by_kernel else x.double()).clone().requires_grad_(w) for x, w in zip(arrays, wanted, strict=True)
        ]
        if by_kernel:
            found = dual_view_scores(*leaves, k=k, alpha=alpha, backend="triton", return_patch_scores=of_patches)
            scores, patch_scores = found if of_patches else (found, None)
        else:
            scores, patch_scores = eager_scores(*leaves, k=k, alpha=alpha)
        loss = (scores * weights).sum()
        if of_patches:
            loss = loss + (patch_scores * patch_weights).sum()
        loss.backward()
        results.append([x.grad for x in leaves])
    return results


@pytest.mark.parametrize("of_patches", [False, True], ids=["scores", "scores and patch scores"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 49, 17, 33)], ids=str)
def test_gradient_is_that_of_eager(tiles, shape, of_patches):
    """Mistakes: 1 - alpha left out; the second tile's shares left unwritten."""
    for k, alpha in ((1, 0.4), (7, 0.0)):
        found, expected = both_gradients(make(shape), k, alpha, of_patches=of_patches)
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x.double(), y, atol=2e-6, rtol=1e-5)


def test_gradient_has_the_dtype_of_its_input():
    """Mistake: the gradient taken of the units rounded to float16, not float32."""
    found, expected = both_gradients(make((2, 20, 5, 24), torch.float16), 4, 0.4)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == torch.float16
        torch.testing.assert_close(x.double(), y, atol=1e-6, rtol=torch.finfo(torch.float16).eps)


@pytest.mark.parametrize("wanted", [(True, False, False, False), (False, True, False, True)], ids=str)
def test_only_what_is_needed_gets_a_gradient(wanted):
    """Mistake: the first two of ``needed`` swapped."""
    found, expected = both_gradients(make((2, 20, 5, 24)), 4, 0.4, wanted)
    for x, y, asked in zip(found, expected, wanted, strict=True):
        assert (x is not None) == asked == (y is not None)
        if asked:
            torch.testing.assert_close(x.double(), y, atol=2e-6, rtol=1e-5)


def test_tied_patches_share_the_gradient_evenly(tiles):
    """Mistake: every tied patch given a whole share."""
    cls, patches, text_global, text_local = make((1, 10, 1, 8))
    tied = patches.repeat_interleave(4, dim=1).requires_grad_()
    dual_view_scores(cls, tied, text_global, text_local, k=6, alpha=0.0, backend="triton").sum().backward()
    leaf = patches.clone().requires_grad_()
    cosines = eager_scores(cls, leaf, text_global, text_local, k=1, alpha=0.0)[1][0, :, 0]
    best, second = cosines.topk(2).values
    ((4 * best + 2 * second) / 6).backward()
    grouped = tied.grad.view(1, 10, 4, 8)
    assert torch.equal(grouped, grouped[:, :, :1].expand_as(grouped))
    torch.testing.assert_close(grouped.sum(dim=2), leaf.grad, atol=2e-7, rtol=1e-5)


def test_autocast_does_not_narrow_the_gradient():
    """Mistake: autocast left on in the backward."""
    arrays = make((2, 20, 3, 64))
    clear, _ = both_gradients(arrays, 4, 0.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = both_gradients(arrays, 4, 0.4)
    for x, y in zip(found, clear, strict=True):
        assert torch.equal(x, y)


def test_launch_table_serves_every_number_of_patches():
    """Mistake: a row of the table out of order."""
    for itemsize in (2, 4):
        rows = [launch_for(n, itemsize, 87) for n in range(1, 1025)]
        assert all(row.patches >= n for n, row in enumerate(rows, 1))
        assert list(dict.fromkeys(row.patches for row in rows)) == [row.patches for row in TABLE[itemsize]]


def test_tuned_table_serves_every_number_of_patches():
    """Mistakes: a row of the table out of order; few scores and many swapped."""
    for (capability, itemsize), rows in TUNED.items():
        for n in range(1, 1025):
            few, many = (tuned_for(n, itemsize, capability, scores) for scores in (1, 1 << 20))
            assert min(few.patches, many.patches) >= n
            assert few.block_c <= many.block_c
        assert [few.patches for few, _ in rows] == sorted({few.patches for few, _ in rows})
    assert tuned_for(196, 2, 87, 20) == launch_for(196, 2, 87)


@pytest.mark.parametrize("shape", [(2, 49, 20, 129), (1, 64, 33, 40)], ids=str)
def test_one_launch_gives_what_two_give(tiles, shape):
    """What is compiled ahead of time has no `prepare`. Mistakes: a length left out; the lengths of another row."""
    arrays = make(shape)
    arrays[1][0, 3] = 0
    expected, _ = head_gpu.run(arrays, 7, 0.4, False)
    found = torch.empty_like(expected)
    launch = head_gpu.launch_for(shape[1], 4, 80)
    head_gpu._start(head, launch, (*arrays, None), arrays[1], shape[2], 7, 0.4, (found, None))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    arrays[1][0, 5, 2] = torch.nan
    head_gpu._start(head, launch, (*arrays, None), arrays[1], shape[2], 7, 0.4, (found, None))
    assert found[0].isnan().all()
    assert not found[1:].isnan().any()
