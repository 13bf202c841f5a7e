"""The C++ head: every instruction set of this machine, its text bank, half precision, threads and limits."""

import multiprocessing
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdval_edge.kernels import TextBank, _cpu, dual_view_scores
from hpdval_edge.kernels.head import numpy_scores
from hpdval_edge.kernels.head_cpu import PRODUCTS_PER_THREAD, threads_for

ISAS = _cpu.isas()
ON_ARM = platform.machine() in ("aarch64", "arm64")
TOLERANCE = 2e-6


def int16_tolerance(width):
    """The largest error that rounding two unit rows to multiples of 1 / 32767 can give a cosine."""
    return TOLERANCE + np.sqrt(width) / 32767


def make(shape, seed=0):
    """cls, patches, text_global, text_local of one [B, N, C, E]."""
    b, n, c, e = shape
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in ((b, e), (b, n, e), (c, e), (c, e))]


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("HPEDGE_ISA", request.param)
    return request.param


# Every number of classes around one and two panels of 8 to 48, and every remainder of patches around 24 rows.
@pytest.mark.parametrize("classes", [*range(1, 34), 47, 48, 49, 97])
def test_every_width_of_the_last_panel(isa, classes):
    """Planted: a last panel of up to VECTORS + 2 vectors, and one of VECTORS + 1 taken for one of 1; both failed."""
    arrays = make((2, 9, classes, 13))
    expected, _ = numpy_scores(*arrays, k=3, alpha=0.4)
    np.testing.assert_allclose(dual_view_scores(*arrays, k=3, backend="cpu"), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("patches", range(1, 50))
def test_every_remainder_of_rows(isa, patches):
    """Planted: `rows_of` leaving out the last halving; failed."""
    arrays = make((1, patches, 33, 24))
    expected, cosines = numpy_scores(*arrays, k=5, alpha=0.4)
    scores, got = dual_view_scores(*arrays, k=5, backend="cpu", return_patch_scores=True)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(got, cosines, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("width", [1, 3, 255, 256, 257, 512, 1000, 1153])
def test_every_remainder_of_depth(isa, width):
    """Planted: sums that start from zero at each slice of the depth; failed."""
    arrays = make((2, 13, 21, width))
    expected, _ = numpy_scores(*arrays, k=4, alpha=0.4)
    np.testing.assert_allclose(dual_view_scores(*arrays, k=4, backend="cpu"), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("values", ["gaussian", "tied", "rising", "falling", "equal", "with zeros"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 100, 195, 196])
def test_the_k_largest_are_exact(isa, k, values):
    """One-hot texts read the patches' coordinates back, so the sum is that of chosen numbers and nothing else.

    Planted: two halves merged without turning one round, the last merge left out, `>=` for `>` in the bit search's
    sum; each failed.
    """
    rng = np.random.default_rng(k)
    column = rng.standard_normal((196, 24)).astype(np.float32) / 50
    if values == "tied":
        column = np.round(column * 100) / 100
    elif values in ("rising", "falling"):
        column = np.sort(column, axis=0)[:: 1 if values == "rising" else -1]
    elif values == "equal":
        column[:] = column[:1]
    elif values == "with zeros":
        column[rng.random(column.shape) < 0.7] = 0
    # The last coordinate makes every row a unit row.
    patches = np.concatenate([column, np.sqrt(1 - (column**2).sum(axis=1, keepdims=True))], axis=1)[None]
    text = np.eye(25, dtype=np.float32)[:24]
    cls = np.ones((1, 25), np.float32)
    expected = np.sort(column.astype(np.float64), axis=0)[-k:].mean(axis=0)
    scores = dual_view_scores(cls, patches.astype(np.float32), text, text, k=k, alpha=0.0, backend="cpu")
    np.testing.assert_allclose(scores[0], expected, atol=3e-8, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_is_widened_exactly(isa, dtype):
    """All 65,536 bit patterns, each beside a 1 in a patch: the cosines with the two axes have the number as ratio.

    Planted: a shift by 12 for 13 and no case for infinity in widen.hpp; both failed. A wrong power of two alone would
    scale whole rows, which no cosine sees.
    """
    numbers = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    # float32 rows must be shorter than 1.8e19.
    numbers = numbers[~(numbers.isfinite() & (numbers.abs() > 1e19))]
    patches = torch.stack([numbers, torch.ones_like(numbers)], dim=1)[:, None]
    axes = torch.eye(2, dtype=dtype)
    got = dual_view_scores(torch.ones(len(numbers), 2, dtype=dtype), patches, axes, axes, k=1, alpha=0.0, backend="cpu")
    ratio = torch.where(numbers.isfinite(), got[:, 0] / got[:, 1], torch.nan)
    expected = torch.where(numbers.isfinite(), numbers.float(), torch.nan)
    torch.testing.assert_close(ratio, expected, atol=0, rtol=3e-7, equal_nan=True)
    assert got[~numbers.isfinite()].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_patches(isa, dtype):
    arrays = [torch.from_numpy(x).to(dtype) for x in make((3, 50, 37, 130))]
    expected, _ = numpy_scores(*(x.double().numpy() for x in arrays), k=8, alpha=0.4)
    np.testing.assert_allclose(dual_view_scores(*arrays, k=8, backend="cpu"), expected, atol=TOLERANCE, rtol=0)
    if dtype == torch.float16:
        narrow = [x.numpy() for x in arrays]
        np.testing.assert_allclose(dual_view_scores(*narrow, k=8, backend="cpu"), expected, atol=TOLERANCE, rtol=0)
        np.testing.assert_array_equal(
            dual_view_scores(narrow[0], narrow[1][:, ::2], *narrow[2:], k=8, backend="cpu"),
            dual_view_scores(narrow[0], narrow[1][:, ::2].copy(), *narrow[2:], k=8, backend="cpu"),
        )


def test_a_text_bank_is_packed_once_and_scores_many_batches(isa):
    cls, patches, text_global, text_local = make((4, 30, 45, 20))
    bank = TextBank(text_global, text_local)
    assert (bank.classes, bank.width, bank.isa) == (45, 20, isa)
    expected, cosines = dual_view_scores(
        cls, patches, text_global, text_local, k=7, alpha=0.3, backend="cpu", return_patch_scores=True
    )
    text_global[:] = text_local[:] = 0
    for part in (slice(0, 1), slice(1, 4)):
        scores, got = bank.scores(cls[part], patches[part], k=7, alpha=0.3, return_patch_scores=True)
        np.testing.assert_array_equal(scores, expected[part])
        np.testing.assert_array_equal(got, cosines[part])
    tensor = bank.scores(torch.from_numpy(cls), torch.from_numpy(patches), k=7, alpha=0.3)
    np.testing.assert_array_equal(tensor.numpy(), expected)


def rounded_cosines(patches, text_local):
    """[B, N, C]: what int16 makes of the cosines, from integers that float64 holds exactly."""
    rows = [x.astype(np.float64) for x in (patches, text_local)]
    whole = [np.rint(32767 * x / np.linalg.norm(x, axis=-1, keepdims=True)) for x in rows]
    return whole[0] @ whole[1].T / 32767**2


@pytest.mark.skipif(ON_ARM, reason="int16 is not faster on Arm and refused there")
@pytest.mark.parametrize(
    "shape", [(2, 9, n, 13) for n in range(1, 50)] + [(1, n, 33, 512) for n in range(1, 26)], ids=str
)
def test_int16_is_the_rounded_product_exactly(isa, shape):
    """Every width of the last panel and every remainder of rows; text and patches differ by one rounding at most.

    Planted: the second of a pair left out, rounding towards zero; both failed.
    """
    cls, patches, text_global, text_local = make(shape)
    bank = TextBank(text_global, text_local, precision="int16")
    assert bank.precision == "int16"
    scores, cosines = bank.scores(cls, patches, k=5, return_patch_scores=True)
    expected = rounded_cosines(patches, text_local)
    # float32 may round a number halfway between two integers the other way: one step of one row, and seldom.
    np.testing.assert_allclose(cosines, expected, atol=0.8 / 32767, rtol=0)
    assert np.abs(cosines - expected).mean() < 5e-7
    best = -np.sort(-cosines.astype(np.float64), axis=1)[:, :5].mean(axis=1)
    whole, _ = numpy_scores(cls, patches, text_global, text_local, k=5, alpha=1.0)
    np.testing.assert_allclose(scores, 0.4 * whole + 0.6 * best, atol=TOLERANCE, rtol=0)


@pytest.mark.skipif(ON_ARM, reason="int16 is not faster on Arm and refused there")
@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 31, 255, 511, 512, 513, 1026, 1153])
@pytest.mark.parametrize("rows", ["gaussian", "one-hot", "constant", "one large"])
def test_int16_error_is_as_stated(isa, rows, width):
    """At most sqrt(E) / 32767 whatever the rows, 1.3e-5 as a root mean square of random ones, and no overflow.

    Planted: 65535 for 32767 (one-hot rows overflow), the first pass's sums taken for floats; both failed. A depth
    rounded down divided by zero at E = 1.
    """
    arrays = make((2, 40, 30, width))
    if rows != "gaussian":
        for x in arrays:
            flat = x.reshape(-1, width)
            flat[:] = 1 if rows == "constant" else flat * (1e-3 if rows == "one large" else 0)
            flat[np.arange(len(flat)), np.arange(len(flat)) % width] += rows != "constant"
    bank = TextBank(*arrays[2:], precision="int16")
    scores, cosines = bank.scores(*arrays[:2], k=7, return_patch_scores=True)
    expected, exact = numpy_scores(*arrays, k=7, alpha=0.4)
    np.testing.assert_allclose(cosines, exact, atol=int16_tolerance(width), rtol=0)
    np.testing.assert_allclose(scores, expected, atol=int16_tolerance(width), rtol=0)
    assert rows != "gaussian" or np.sqrt(np.square(cosines - exact).mean()) < 1.3e-5


@pytest.mark.skipif(ON_ARM, reason="int16 is not faster on Arm and refused there")
@pytest.mark.parametrize("threads", [1, 3])
def test_int16_with_threads_and_half_precision(isa, monkeypatch, threads):
    """Planted: scratch without room for the rounded patches; crashed."""
    monkeypatch.setattr("hpdval_edge.kernels.head_cpu.threads_for", lambda products: threads)
    cls, patches, text_global, text_local = make((3, 500, 97, 515))
    bank = TextBank(text_global, text_local, precision="int16")
    narrow = torch.from_numpy(patches).to(torch.bfloat16)
    got = bank.scores(torch.from_numpy(cls).bfloat16(), narrow)
    wide = bank.scores(torch.from_numpy(cls).bfloat16().float(), narrow.float())
    np.testing.assert_array_equal(got.numpy(), wide.numpy())
    expected, _ = numpy_scores(cls, patches, text_global, text_local, k=32, alpha=0.4)
    np.testing.assert_allclose(bank.scores(cls, patches), expected, atol=int16_tolerance(515), rtol=0)


@pytest.mark.skipif(not ON_ARM, reason="needs an Arm processor, where int16 is not faster")
def test_int16_is_refused_where_it_is_not_faster(isa):
    _, _, text_global, text_local = make((1, 1, 3, 4))
    with pytest.raises(ValueError, match="use precision='float32'"):
        TextBank(text_global, text_local, precision="int16")


def test_a_text_bank_names_mistakes(monkeypatch):
    cls, patches, text_global, text_local = make((2, 5, 3, 4))
    bank = TextBank(text_global, text_local)
    with pytest.raises(ValueError, match=r"number of classes C, got 3 and 2"):
        TextBank(text_global, text_local[:2])
    with pytest.raises(ValueError, match=r"text's width E = 4, got 3"):
        bank.scores(cls[:, :3], patches[..., :3])
    with pytest.raises(ValueError, match=r"images B, got 1 and 2"):
        bank.scores(cls[:1], patches)
    with pytest.raises(ValueError, match=r"precision must be one of float32, int16, got 'int8'"):
        TextBank(text_global, text_local, precision="int8")
    with pytest.raises(ValueError, match=r"k must be an integer of at least 1, got 0"):
        bank.scores(cls, patches, k=0)
    with pytest.raises(ValueError, match=r"CPU memory, got tensors on meta"):
        bank.scores(torch.zeros(2, 4, device="meta"), torch.zeros(2, 5, 4, device="meta"))
    monkeypatch.setattr("hpdval_edge.kernels.compiled.MISSING", "not built")
    with pytest.raises(ImportError, match="not built"):
        TextBank(text_global, text_local)


def test_sizes_that_no_memory_holds_are_refused(isa):
    one = np.float32(1)
    endless = np.broadcast_to(one, (1, 1 << 44, 4))
    with pytest.raises(MemoryError, match="Unable to allocate"):
        dual_view_scores(np.ones((1, 4), np.float32), endless, *[np.ones((2, 4), np.float32)] * 2, backend="cpu")
    with pytest.raises(MemoryError, match="Unable to allocate"):
        TextBank(np.broadcast_to(one, (1 << 44, 4)), np.broadcast_to(one, (1 << 44, 4)))


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 70), st.integers(0, 70), st.integers(1, 70)),
    k=st.integers(1, 90),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 99),
    poison=st.sampled_from([None, np.nan, np.inf, -np.inf, 0.0, 1e-30, 1e18]),
)
def test_any_shape_and_any_value(shape, k, alpha, seed, poison):
    """Zero, tiny, huge, infinite and NaN rows at random places follow the specification, NaN included.

    Planted: bad patches not counted, bad text rows not counted; both failed, the first with int16, too. Patch scores of
    int16 were finite for such rows, and failed.
    """
    arrays = make(shape, seed)
    rng = np.random.default_rng(seed)
    if poison is not None:
        for x in arrays:
            if x.size and rng.random() < 0.5:
                x.reshape(-1, x.shape[-1])[rng.integers(x.size // x.shape[-1]), rng.integers(x.shape[-1])] = poison
    expected, _ = numpy_scores(*arrays, k=k, alpha=alpha)
    for isa in ISAS:
        os.environ["HPEDGE_ISA"] = isa
        try:
            scores = dual_view_scores(*arrays, k=k, alpha=alpha, backend="cpu")
            bank = None if ON_ARM else TextBank(*arrays[2:], precision="int16")
        finally:
            del os.environ["HPEDGE_ISA"]
        wanted = _with_nan(expected, arrays)
        np.testing.assert_allclose(scores, wanted, atol=TOLERANCE, rtol=0)
        if bank:
            near, maps = bank.scores(*arrays[:2], k=k, alpha=alpha, return_patch_scores=True)
            np.testing.assert_allclose(near, wanted, atol=int16_tolerance(shape[3]), rtol=0)
            bad_patch = ~np.isfinite(arrays[1]).all(axis=2)
            bad_text = ~np.isfinite(arrays[3]).all(axis=1)
            assert np.array_equal(np.isnan(maps), bad_patch[:, :, None] | bad_text[None, None, :])


def _with_nan(expected, arrays):
    """NaN wherever a row with a NaN or an infinity enters, whatever alpha and k."""
    bad = [~np.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in arrays]
    expected = expected.copy()
    expected[bad[0] | bad[1]] = np.nan
    expected[:, bad[2] | bad[3]] = np.nan
    return expected


def test_many_callers_at_once_and_many_threads_inside():
    shape = (16, 49, 40, 64)
    inputs = [make(shape, seed=seed) for seed in range(8)]
    expected = [numpy_scores(*arrays, k=32, alpha=0.4)[0] for arrays in inputs]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda arrays: dual_view_scores(*arrays, backend="cpu"), inputs * 4))
    for i, scores in enumerate(results):
        np.testing.assert_allclose(scores, expected[i % 8], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("shape", [(301, 49, 40, 128), (1, 196, 1003, 64), (3, 50, 500, 64)], ids=str)
@pytest.mark.parametrize("threads", [0, 1, 2, 3, 64])
def test_splitting_work_over_threads_changes_nothing(monkeypatch, threads, shape):
    """Large enough for threads to overlap. Planted: one scratch for all threads, a panel left out; both failed."""
    arrays = make(shape)
    expected = dual_view_scores(*arrays, backend="cpu")
    monkeypatch.setattr("hpdval_edge.kernels.head_cpu.threads_for", lambda products: threads)
    for _ in range(3):
        np.testing.assert_array_equal(dual_view_scores(*arrays, backend="cpu"), expected)


def test_thread_count_obeys_the_environment_and_the_affinity(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)), raising=False)
    huge = 100 * PRODUCTS_PER_THREAD
    for setting, expected in (("", 6), ("2", 2), ("3,4", 3), ("64", 6), ("0", 6), ("many", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
        assert threads_for(huge) == expected, setting
    assert threads_for(PRODUCTS_PER_THREAD - 1) == 1, "small work starts no thread"


FORKING = """
import os, sys
import numpy as np
from hpdval_edge.kernels import dual_view_scores, head_cpu
head_cpu.threads_for = lambda products: 3
rng = np.random.default_rng(0)
arrays = [rng.standard_normal(s, dtype=np.float32) for s in ((8, 32), (8, 49, 32), (40, 32), (40, 32))]
expected = dual_view_scores(*arrays, backend="cpu")
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(dual_view_scores(*arrays, backend="cpu"), expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_forked_child_has_threads_of_its_own():
    """Data loaders fork. Planted: the pool kept over the fork; the child waited for ever and the test failed."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], check=True, timeout=60)


def test_compiled_module_checks_shapes_itself():
    cls, patches, text_global, text_local = make((2, 5, 3, 4))
    text = _cpu.PackedText(text_global, text_local, "generic")
    scores = np.empty((2, 3), np.float32)
    cases = (
        (dict(k=6), ValueError, "1 <= k <= N"),
        (dict(scores=scores[:1]), ValueError, r"scores is not \[B, C\]"),
        (dict(patches=patches[:, :, :2].copy()), ValueError, r"shapes are not"),
        (dict(patches=patches[:, ::2]), ValueError, "contiguous"),
        (dict(dtype="float16"), ValueError, "uint16 bits"),
        (dict(dtype="int8", patches=patches.astype(np.uint16)), ValueError, "float32, float16 or bfloat16"),
        (dict(patch_scores=np.empty((2, 5, 2), np.float32)), ValueError, r"patch_scores is not \[B, N, C\]"),
        (dict(cls=cls.astype(float)), TypeError, "incompatible function arguments"),
    )
    good = dict(cls=cls, patches=patches, dtype="float32", text=text, k=1, alpha=0.4, scores=scores)
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            _cpu.head(**{**good, "patch_scores": None, "threads": 1, **change})
    with pytest.raises(ValueError, match="no instruction set 'sse9'"):
        _cpu.PackedText(text_global, text_local, "sse9")
    with pytest.raises(ValueError, match=r"both be \[C, E\]"):
        _cpu.PackedText(text_global, text_local[:2], "generic")
