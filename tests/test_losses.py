"""Losses against the equations written out in loops, and against the likely mistakes of METHOD section 15."""

import itertools
import math

import numpy as np
import pytest
import torch

from hpdval_edge.training.losses import class_stats, make_loss

NAMES = ["dbstar", "db", "bce", "mls", "cb_focal", "asl"]
COUNTS = [40, 1, 7, 50, 12]
IMAGES = 60
TAU, BETA, MU, KAPPA, LAM = 0.1, 10.0, 0.3, 0.05, 5.0


def batch(seed=0, rows=6, scale=4.0, dtype=torch.float64):
    """Logits and targets [rows,5]; row 0 holds no label, row 1 holds all."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, len(COUNTS), generator=generator, dtype=torch.float64)
    targets = (torch.rand(rows, len(COUNTS), generator=generator) < 0.4).to(torch.uint8)
    targets[0], targets[1] = 0, 1
    return logits.to(dtype), targets


def log_one_plus_exp(t):
    return max(t, 0.0) + math.log1p(math.exp(-abs(t)))


def logistic(t):
    return 1 / (1 + math.exp(-t)) if t >= 0 else math.exp(t) / (1 + math.exp(t))


def weight_by_hand(row, i, rebalance):
    if rebalance == "none":
        return 1.0
    summed = range(len(COUNTS)) if rebalance == "class" else [j for j in range(len(COUNTS)) if row[j]]
    denominator = sum(1 / COUNTS[j] for j in summed)
    p = (1 / COUNTS[i]) / denominator if denominator else math.inf
    return TAU + (1.0 if p == math.inf else logistic(BETA * (p - MU)))


def scale_by_hand(i, pos_scale):
    share = COUNTS[i] / max(COUNTS)
    return {"eq14": share, "one_plus": 1 + share, "none": 1.0}.get(pos_scale, pos_scale)


def db_by_hand(logits, targets, rebalance, kappa_mode, pos_scale, focal):
    """Eqs 11 to 15 with Python floats; returns [B,C]."""
    losses, entropies = np.zeros(logits.shape), []
    for b, i in itertools.product(*map(range, logits.shape)):
        kappa = KAPPA if kappa_mode == "paper" else KAPPA / LAM
        z = logits[b, i].item() - kappa * math.log(IMAGES / COUNTS[i] - 1)
        r = weight_by_hand(targets[b], i, rebalance)
        t = -scale_by_hand(i, pos_scale) * z if targets[b, i] else LAM * z
        entropies.append(log_one_plus_exp(t))
        losses[b, i] = r * entropies[-1] / (1 if targets[b, i] else LAM)
        if focal == "element":
            # 1 - p_t with p_t = exp(-BCE)
            losses[b, i] *= 2 * math.expm1(-entropies[-1]) ** 2
    if focal == "batch":
        losses *= 2 * (1 - math.exp(-sum(entropies) / len(entropies))) ** 2
    return losses


@pytest.mark.parametrize("focal", ["none", "element", "batch"])
@pytest.mark.parametrize("pos_scale", ["eq14", "one_plus", "none", 5])
@pytest.mark.parametrize("kappa_mode", ["paper", "code"])
@pytest.mark.parametrize("rebalance", ["class", "instance", "none"])
def test_dbstar_equals_the_equations_in_loops(rebalance, kappa_mode, pos_scale, focal):
    """METHOD 15 rows 4 to 7: sign or lambda of v, r of the other kind, w outside the softplus, wrong focal factor."""
    logits, targets = batch()
    options = {"rebalance": rebalance, "kappa_mode": kappa_mode, "pos_scale": pos_scale, "focal": focal}
    loss = make_loss("dbstar", class_stats(COUNTS, IMAGES), **options)
    expected = db_by_hand(logits, targets, **options)
    np.testing.assert_allclose(loss(logits, targets, reduction="none").numpy(), expected, rtol=1e-10, atol=0)
    assert loss(logits, targets).item() == pytest.approx(expected.sum() / expected.size, rel=1e-10)


@pytest.mark.parametrize("pos_scale", ["eq14", "one_plus", 10.0])
def test_db_is_dbstar_without_w(pos_scale):
    """Planted mistake: pos_scale reaches DB, whose equation has no w."""
    logits, targets = batch()
    loss = make_loss("db", class_stats(COUNTS, IMAGES), pos_scale=pos_scale)
    expected = db_by_hand(logits, targets, "class", "paper", "none", "none")
    np.testing.assert_allclose(loss(logits, targets, reduction="none").numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["bce", "mls", "cb_focal", "asl"])
def test_comparison_losses_equal_their_formulas_in_loops(name):
    """Planted mistakes: focal balance 1, class weight from 1 - n_i, clip on the positives, eps forgotten."""
    logits, targets = batch(scale=10.0)
    logits[1, 0] = -30  # below log eps of asl
    expected = np.zeros(logits.shape)
    for b, i in itertools.product(*map(range, logits.shape)):
        s, y = logits[b, i].item(), int(targets[b, i])
        entropy = log_one_plus_exp(-s if y else s)
        if name == "cb_focal":
            entropy *= 2 * (1 - math.exp(-entropy)) ** 2 * (1 - 0.9) / (1 - 0.9 ** COUNTS[i])
        if name == "asl" and y:
            entropy = -math.log(max(logistic(s), 1e-8))
        elif name == "asl":
            q = min(1 - logistic(s) + 0.05, 1.0)
            entropy = -((1 - q) ** 4) * math.log(q)
        expected[b, i] = entropy
    loss = make_loss(name, class_stats(COUNTS, IMAGES))
    np.testing.assert_allclose(loss(logits, targets, reduction="none").numpy(), expected, rtol=1e-8, atol=1e-15)
    assert loss(logits, targets).item() == pytest.approx(expected.sum() / expected.size, rel=1e-9)


def test_bce_and_mls_equal_torch():
    logits, targets = batch()
    stats = class_stats(COUNTS, IMAGES)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.double())
    mls = torch.nn.functional.multilabel_soft_margin_loss(logits, targets.double())
    torch.testing.assert_close(make_loss("bce", stats)(logits, targets), bce)
    torch.testing.assert_close(make_loss("mls", stats)(logits, targets), mls)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    logits, targets = batch(scale=1.0)
    loss = make_loss(name, class_stats(COUNTS, IMAGES))
    if name != "asl":
        assert torch.autograd.gradcheck(lambda s: loss(s, targets, reduction="none"), logits.requires_grad_())
        return
    # The focal factor of asl is outside the graph by definition: only the logarithm is differentiated.
    (gradient,) = torch.autograd.grad(loss(logits.requires_grad_(), targets, reduction="none").sum(), logits)
    p = 1 / (1 + torch.exp(-logits.detach()))
    q = (1 - p + 0.05).clamp(max=1)
    expected = torch.where(targets == 1, p - 1, (1 - q) ** 4 * p * (1 - p) / q)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("focal", ["element", "batch"])
@pytest.mark.parametrize("rebalance", ["class", "instance"])
def test_gradcheck_of_the_variants(rebalance, focal):
    """Planted mistake: the focal factor detached, so that the gradient is not that of the value."""
    logits, targets = batch(scale=1.0)
    loss = make_loss("dbstar", class_stats(COUNTS, IMAGES), rebalance=rebalance, focal=focal, pos_scale="one_plus")
    assert torch.autograd.gradcheck(lambda s: loss(s, targets), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("focal", ["none", "element", "batch"])
@pytest.mark.parametrize("name", NAMES)
def test_finite_at_saturation(name, focal, dtype):
    """METHOD 15 row 3: log(1 + exp(t)) as printed, which overflows at scale 100 or in half precision."""
    logits = torch.tensor([[200.0, -200.0, 100.0, -100.0, 0.0]] * 3).to(dtype).requires_grad_()
    targets = torch.tensor([[0] * 5, [1] * 5, [1, 0, 0, 1, 1]])
    loss = make_loss(name, class_stats(COUNTS, IMAGES), rebalance="instance", focal=focal)
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype):
        value = loss(logits, targets)
    value.backward()
    assert value.dtype == torch.float32 and torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    if focal == "none" and name in ("bce", "db"):
        # A saturated mistake costs about its margin, rather than nothing.
        assert loss(logits, targets, reduction="none")[1, 1] > 20


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name):
    """Planted mistake: the sum over an image's positives as a matrix product, which autocast takes to bfloat16."""
    logits, targets = batch(dtype=torch.float32)
    loss = make_loss(name, class_stats(COUNTS, IMAGES), rebalance="instance")
    expected = loss(logits, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, targets), expected)


@pytest.mark.parametrize("name", NAMES)
def test_float32_follows_float64(name):
    """Planted mistake: statistics rounded to half precision with the logits."""
    logits, targets = batch(rows=64)
    loss = make_loss(name, class_stats(COUNTS, IMAGES), rebalance="instance", focal="element")
    assert loss(logits.float(), targets).item() == pytest.approx(loss(logits, targets).item(), rel=2e-6)
    rounded = logits.to(torch.bfloat16)
    assert loss(rounded, targets).item() == pytest.approx(loss(rounded.double(), targets).item(), rel=2e-6)


@pytest.mark.parametrize("focal", ["none", "element", "batch"])
@pytest.mark.parametrize("name", NAMES)
def test_inputs_stay_as_they_are_and_a_doubled_batch_costs_the_same(name, focal):
    """METHOD 15 row 7: the bias added to the caller's tensor; a sum where a mean belongs."""
    logits, targets = batch()
    before = logits.clone(), targets.clone()
    loss = make_loss(name, class_stats(COUNTS, IMAGES), rebalance="instance", focal=focal)
    once = loss(logits, targets)
    assert torch.equal(logits, before[0]) and torch.equal(targets, before[1])
    torch.testing.assert_close(loss(logits.repeat(2, 1), targets.repeat(2, 1)), once, rtol=1e-12, atol=0)


def test_positive_gradients_of_dbstar_and_db_differ_by_w():
    """METHOD 15 row 6: w outside the softplus (which the value at z = 0 shows), or normalised over the batch."""
    stats = class_stats(COUNTS, IMAGES)
    slopes = {}
    for name in ("db", "dbstar"):
        logits = stats.v_i.repeat(2, 1).requires_grad_()
        targets = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
        make_loss(name, stats)(logits, targets).backward()
        slopes[name] = logits.grad
    ratio = slopes["dbstar"] / slopes["db"]
    np.testing.assert_allclose(ratio[0].numpy(), [n / 50 for n in COUNTS], rtol=1e-12)
    np.testing.assert_array_equal(ratio[1].numpy(), 1)
    # The value at z = 0 does not know w at all, which tells w inside the softplus from w outside it.
    at_zero = [make_loss(name, stats)(stats.v_i[None], torch.ones(1, 5)).item() for name in ("db", "dbstar")]
    assert at_zero[0] == pytest.approx(at_zero[1], rel=1e-12)


def test_bias_grows_as_classes_get_rarer_and_code_divides_it_by_lambda():
    """METHOD 15 row 4: the sign of v, and lambda in the wrong place."""
    stats = class_stats([1, 10, 30, 59], 60)
    assert (stats.v_i.diff() < 0).all() and stats.v_i[0] > 0 > stats.v_i[3] and stats.v_i[2] == 0
    # The loss of a single positive is log 2 where its logit equals the bias.
    targets = torch.ones(1, 4)
    for mode, bias in [("paper", stats.v_i), ("code", stats.v_i / 5)]:
        loss = make_loss("db", stats, rebalance="none", kappa_mode=mode)
        values = loss(bias[None], targets, reduction="none")
        np.testing.assert_allclose(values.numpy(), math.log(2), rtol=1e-12)


def test_an_image_without_labels_weighs_tau_plus_one():
    """METHOD 15 row 5: 0/0 in the instance weights of an empty row."""
    stats = class_stats(COUNTS, IMAGES)
    logits, targets = torch.zeros(2, 5, dtype=torch.float64), torch.tensor([[0] * 5, [0, 0, 1, 0, 0]])
    weighed = make_loss("db", stats, rebalance="instance")(logits, targets, reduction="none")
    plain = make_loss("db", stats, rebalance="none")(logits, targets, reduction="none")
    np.testing.assert_allclose((weighed / plain)[0].numpy(), 1.1, rtol=1e-12)
    # A lone positive has p = 1.
    assert (weighed / plain)[1, 2].item() == pytest.approx(0.1 + logistic(10 * 0.7), rel=1e-12)
    without_slope = make_loss("db", stats, rebalance="instance", beta=0)(logits, targets, reduction="none")
    assert torch.isfinite(without_slope).all()


@pytest.mark.parametrize(("counts", "images"), [([0, 60, 30], 60), ([0, 0, 0], 9), ([1, 0, 1], 1), ([2, 1, 0], 2)])
@pytest.mark.parametrize("name", NAMES)
def test_classes_in_no_image_or_in_all_are_finite(name, counts, images):
    """Planted mistake: log(n/n_i - 1) at n_i = 0 or n, 1/n_i at 0, n_i / max n_j with no positive at all."""
    stats = class_stats(counts, images)
    for values in (stats.r_i, stats.v_i, stats.w_i):
        assert torch.isfinite(values).all()
    logits = torch.linspace(-3, 3, 6).view(2, 3).requires_grad_()
    value = make_loss(name, stats, rebalance="instance")(logits, torch.tensor([[0, 0, 0], [1, 0, 1]]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


def test_statistics_are_float64_and_the_callers_array_is_copied():
    counts = np.array([30, 3], dtype=np.int64)
    stats = class_stats(counts, np.int64(40))
    counts[0] = 0
    assert stats.n_i.tolist() == [30, 3] and stats.n == 40 and type(stats.n) is int
    assert {stats.n_i.dtype, stats.r_i.dtype, stats.v_i.dtype, stats.w_i.dtype} == {torch.float64}
    own = torch.tensor([30.0, 3.0], dtype=torch.float64)
    stats = class_stats(own, 40)
    own[0] = 0
    assert stats.n_i.tolist() == [30, 3]


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_options_may_be_numpy_numbers(kind):
    """Planted mistake: only Python's own int and float taken, so that np.float32(5) is "no finite number"."""
    logits, targets = batch()
    options = {"tau": 1, "beta": 10, "mu": 0, "kappa": 1, "lam": 5, "pos_scale": 3}
    expected = make_loss("dbstar", class_stats(COUNTS, IMAGES), **options)(logits, targets)
    as_numpy = {name: kind(value) for name, value in options.items()}
    found = make_loss("dbstar", class_stats(COUNTS, IMAGES), **as_numpy)(logits.requires_grad_(), targets)
    assert torch.equal(found, expected)
    found.backward()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32], ids=str)
def test_targets_of_any_type(dtype):
    """Planted mistake: 1 - y on bool or unsigned targets."""
    logits, targets = batch()
    for name in NAMES:
        loss = make_loss(name, class_stats(COUNTS, IMAGES))
        assert torch.equal(loss(logits, targets.to(dtype)), loss(logits, targets))


def test_statistics_follow_the_module_but_not_its_checkpoint():
    """Planted mistake: statistics as plain attributes, left behind by .to(device)."""
    for name in ("dbstar", "cb_focal"):
        loss = make_loss(name, class_stats(COUNTS, IMAGES))
        assert {values.device.type for values in loss.to("meta").buffers()} == {"meta"}
        assert not loss.state_dict()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_equals_cpu(name):
    logits, targets = batch()
    loss = make_loss(name, class_stats(COUNTS, IMAGES), rebalance="instance", focal="element")
    expected = loss(logits, targets)
    torch.testing.assert_close(loss.cuda()(logits.cuda(), targets.cuda()).cpu(), expected)
    with torch.autocast("cuda", dtype=torch.float16):
        half = loss(logits.cuda().half(), targets.cuda()).item()
    assert half == pytest.approx(expected.item(), rel=1e-2)


def counts_of(path, classes):
    """Positives per class and number of images of a list: `path id id ...` per line."""
    rows = [{int(field) for field in line.split()[1:]} for line in path.read_text().splitlines()]
    return [sum(i in row for row in rows) for i in range(classes)], rows


def test_statistics_of_voc_lt(shared_data):
    """METHOD 8.2 row 1: the ranges of class and instance r, and w = 1 at person."""
    counts, rows = counts_of(shared_data / "splits" / "voc_lt_train.txt", 20)
    names = [
        line.rsplit(maxsplit=1)[0] for line in (shared_data / "splits" / "voc_labels.txt").read_text().splitlines()
    ]
    stats = class_stats(counts, len(rows))
    assert stats.n == 1142 and (min(counts), max(counts)) == (4, 775)
    assert (round(stats.r_i.min().item(), 3), round(stats.r_i.max().item(), 3)) == (0.148, 0.355)
    assert names[int(stats.w_i.argmax())] == "person" and stats.w_i.max() == 1
    assert round(stats.w_i.min().item(), 4) == 0.0052
    targets = torch.tensor([[i in row for i in range(20)] for row in rows])
    zeros = torch.zeros(targets.shape, dtype=torch.float64)
    weighed = make_loss("db", stats, rebalance="instance")(zeros, targets, reduction="none")
    r = weighed / make_loss("db", stats, rebalance="none")(zeros, targets, reduction="none")
    assert (round(r.min().item(), 2), round(r.max().item(), 2)) == (0.15, 1.10)
    assert 0.75 < (r > 1.05).double().mean() < 0.85


def test_statistics_of_coco_lt(shared_data):
    """Planted mistake: counts of ids instead of images, or r with the map's parameters exchanged."""
    counts, rows = counts_of(shared_data / "splits" / "coco_lt_train.txt", 80)
    stats = class_stats(counts, len(rows))
    assert stats.n == 1909 and (min(counts), max(counts)) == (6, 1128)
    r = stats.rebalance(tau=0.1, beta=10.0, mu=0.2)
    assert (round(r.min().item(), 3), round(r.max().item(), 3)) == (0.219, 0.279)
    assert round(stats.w_i.min().item(), 4) == 0.0053 and stats.w_i.max() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "focal"}, "name must be one of .*'focal'"),
        ({"rebalance": "batch"}, "rebalance .*'batch'"),
        ({"kappa_mode": "both"}, "kappa_mode .*'both'"),
        ({"pos_scale": "eq15"}, "pos_scale .*'eq15'"),
        ({"pos_scale": 0}, "pos_scale must be above 0, got 0"),
        ({"pos_scale": True}, "pos_scale .*True"),
        ({"focal": True}, "focal .*True"),
        ({"lam": 0.0}, r"lam must be above 0, got 0\.0"),
        ({"tau": -1}, "tau must be at least 0, got -1"),
        ({"mu": math.nan}, "mu .*nan"),
        ({"name": "bce", "kappa": "small"}, "kappa .*'small'"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_loss(**{"name": "dbstar", "stats": class_stats(COUNTS, IMAGES), **options})


@pytest.mark.parametrize(
    ("counts", "images", "message"),
    [
        ([3, 61], 60, "0..60 .* got 61 for class 1"),
        ([-1, 3], 60, "got -1 for class 0"),
        ([0.5], 60, r"got 0\.5"),
        ([math.nan], 60, "got nan"),
        ([[1, 2]], 60, r"shape \[C\].*\[1, 2\]"),
        ([], 60, r"shape \[C\].*\[0\]"),
        ([1], 0, "num_images .* got 0"),
        ([1], 2.5, r"num_images .* got 2\.5"),
        ([1], True, "num_images .* got True"),
    ],
    ids=str,
)
def test_wrong_statistics_are_named(counts, images, message):
    with pytest.raises(ValueError, match=message):
        class_stats(counts, images)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_tensors_are_named(name):
    loss = make_loss(name, class_stats(COUNTS, IMAGES))
    logits, targets = batch()
    for wrong, message in [
        ((logits[:, :3], targets[:, :3]), r"\[B,5\].*got \[6, 3\]"),
        ((logits[:0], targets[:0]), r"B >= 1.*got \[0, 5\]"),
        ((logits[0], targets[0]), r"got \[5\]"),
        ((logits.long(), targets), r"floating point, got torch\.int64"),
        ((logits, targets[:2]), r"targets .*\[6, 5\], got \[2, 5\]"),
        ((logits, 2 * targets), "0 or 1, got 2"),
        ((logits, targets - 0.5), r"0 or 1, got (-0\.5|0\.5)"),
    ]:
        with pytest.raises(ValueError, match=message):
            loss(*wrong)
    with pytest.raises(ValueError, match="reduction must be one of mean, none, got 'sum'"):
        loss(logits, targets, reduction="sum")
