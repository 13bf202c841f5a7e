"""METHOD 15, rows 3 to 7: saturation, the bias v, the re-balancing r, the positive scale w, focal and reduction.

Every check runs on the code and on mistakes planted here, which it must refuse: it is seen to fail in each run.
"""

import csv

import numpy as np
import pytest
import torch

from hpdval_edge.config import load_config
from hpdval_edge.training import losses
from hpdval_edge.training.losses import ClassStats, DistributionBalanced, MultiLabelLoss, class_stats, make_loss
from hpdval_edge.training.session import prepare

COUNTS = np.array([40.0, 1, 7, 50, 12])
IMAGES = 60
TAU, BETA, MU, KAPPA, LAM = 0.1, 10.0, 0.3, 0.05, 5.0
NAMES = ("dbstar", "db", "bce", "mls", "cb_focal", "asl")


def batch(rows=6, scale=4.0):
    """Logits float64 and labels bool [rows,5], NumPy; image 0 holds no label, image 1 all."""
    generator = np.random.default_rng(0)
    targets = generator.random((rows, 5)) < 0.4
    targets[0], targets[1] = False, True
    return scale * generator.normal(size=(rows, 5)), targets


def r_by_hand(targets, instance):
    """Eq. 11 over all classes [1,C], or over the positives of each image [B,C]."""
    total = (targets / COUNTS).sum(axis=1, keepdims=True) if instance else (1 / COUNTS).sum().reshape(1, 1)
    with np.errstate(divide="ignore"):
        return TAU + 1 / (1 + np.exp(-BETA * (1 / COUNTS / total - MU)))


def by_hand(logits, targets, *, instance=False, kappa=KAPPA, w=COUNTS / 50, focal="none"):
    """Eq. 15, [B,C]; the focal factors of METHOD 8.2, rows 6 and 11."""
    z = logits - kappa * np.log(IMAGES / COUNTS - 1)
    entropy = np.logaddexp(0, np.where(targets, -w * z, LAM * z))
    values = np.where(targets, 1, 1 / LAM) * r_by_hand(targets, instance) * entropy
    if focal == "element":
        values *= 2 * (1 - np.exp(-entropy)) ** 2
    return values * 2 * (1 - np.exp(-entropy.mean())) ** 2 if focal == "batch" else values


def loss_of(logits, targets, name="dbstar", reduction="none", **options):
    """The code's loss as NumPy float64."""
    loss = make_loss(name, class_stats(COUNTS, IMAGES), **options)
    return loss(torch.from_numpy(logits), torch.from_numpy(targets), reduction=reduction).numpy()


def agree(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def refuses(check):
    with pytest.raises(AssertionError):
        check()


def check_saturation():
    """Similarities of up to 2 at scale 100, and logits of 200 at scale 100, in every precision and under autocast."""
    targets = np.array([[0] * 5, [1] * 5, [1, 0, 0, 1, 1]], dtype=bool)
    for scale in (1, 100):
        logits = scale * np.array([[200.0, -200, 100, -100, 0]] * 3)
        agree(loss_of(logits, targets), by_hand(logits, targets))
        agree(loss_of(logits, targets, name="bce"), np.logaddexp(0, np.where(targets, -logits, logits)))
        for name in NAMES:
            for dtype in (torch.float16, torch.bfloat16, torch.float32):
                check_one_saturated(name, torch.from_numpy(logits).to(dtype), torch.from_numpy(targets))


def check_one_saturated(name, logits, targets):
    """Finite with finite gradients, and what float64 gives."""
    loss = make_loss(name, class_stats(COUNTS, IMAGES), rebalance="instance", focal="element")
    logits.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16 if logits.dtype == torch.bfloat16 else torch.float16):
        value = loss(logits, targets)
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    assert value.item() == pytest.approx(loss(logits.detach().double(), targets).item(), rel=1e-5)


def test_mistake_03_naive_log_of_one_plus_exp():
    check_saturation()


@pytest.mark.parametrize(
    "softplus",
    [
        lambda t: torch.log(1 + torch.exp(t)),
        lambda t: torch.log(1 + torch.exp(t.clamp(max=80))),
        lambda t: torch.log1p(torch.exp(t.half())).to(t.dtype),
        lambda t: -torch.log(torch.sigmoid(-t)),
    ],
    ids=["as printed", "clamped", "half", "log of sigmoid"],
)
def test_mistake_03_is_caught(monkeypatch, softplus):
    """Planted mistakes: eq. 13's logarithm as printed, with its argument cut, in float16, and as -log sigmoid."""
    monkeypatch.setattr(losses, "softplus", softplus)
    refuses(check_saturation)


def check_bias():
    """v = kappa log(n/n_i - 1): it rises as n_i falls and changes sign at n / 2; kappa_mode code divides by lambda."""
    stats = class_stats([1, 10, 30, 59], 60)
    assert stats.v_i[0] > stats.v_i[1] > stats.v_i[2] == 0 > stats.v_i[3]
    agree(stats.v_i.numpy(), 0.05 * np.log(60 / np.array([1, 10, 30, 59]) - 1))
    targets = torch.ones(1, 4)
    for mode, divisor in (("paper", 1), ("code", LAM)):
        loss = make_loss("db", stats, rebalance="none", kappa_mode=mode)
        # A positive costs log 2 where its logit is the bias.
        agree(loss(stats.v_i[None] / divisor, targets, reduction="none").numpy(), np.log(2))
    logits, labels = batch()
    released = loss_of(logits, labels, name="db", rebalance="instance", kappa_mode="code")
    agree(released, by_hand(logits, labels, instance=True, kappa=KAPPA / LAM, w=1))


def test_mistake_04_sign_or_lambda_of_v():
    check_bias()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda right, stats, kappa: -right(stats, kappa=kappa),
        lambda right, stats, kappa: right(stats, kappa=0.05),
        lambda right, stats, kappa: right(stats, kappa=kappa if kappa == 0.05 else kappa * 25),
        lambda right, stats, kappa: kappa * torch.log(stats.n / stats.n_i),
    ],
    ids=["sign", "lambda ignored", "lambda multiplied", "log of n over n_i"],
)
def test_mistake_04_is_caught(monkeypatch, wrong):
    """Planted mistakes: v of the other sign, without lambda, times lambda for divided by it, log(n/n_i)."""
    right = ClassStats.bias
    monkeypatch.setattr(ClassStats, "bias", lambda stats, *, kappa: wrong(right, stats, kappa))
    refuses(check_bias)


def check_rebalancing():
    """r of eq. 11 for "class", over the image's own positives for "instance", tau + 1 for an image without any."""
    targets = batch()[1]
    logits = np.zeros(targets.shape)
    plain = loss_of(logits, targets, rebalance="none")
    by_class, by_instance = (loss_of(logits, targets, rebalance=kind) / plain for kind in ("class", "instance"))
    agree(by_class, np.broadcast_to(r_by_hand(targets, instance=False), targets.shape))
    agree(by_instance, r_by_hand(targets, instance=True))
    agree(by_instance[0], TAU + 1)
    assert np.isfinite(loss_of(logits, targets, rebalance="instance", beta=0.0)).all()


def test_mistake_05_r_over_the_wrong_classes():
    check_rebalancing()


def of_the_other_kind(self, positive, right):
    return right({"class": "instance", "instance": "class"}.get(self.rebalance, "none"))


def masked_quotient(self, positive, right):
    if self.rebalance != "instance":
        return right(self.rebalance)
    masked = torch.where(positive, self.inverse_counts, 0)
    return self.tau + torch.sigmoid(self.beta * (masked / masked.sum(dim=1, keepdim=True) - self.mu))


def without_guard(self, positive, right):
    if self.rebalance != "instance":
        return right(self.rebalance)
    total = torch.where(positive, self.inverse_counts, 0).sum(dim=1, keepdim=True)
    return self.tau + torch.sigmoid(self.beta * (self.inverse_counts / total - self.mu))


def empty_image_at_zero(self, positive, right):
    r = right(self.rebalance)
    empty = ~positive.any(dim=1, keepdim=True)
    return torch.where(empty, self.tau, r) if self.rebalance == "instance" else r


def over_the_batch(self, positive, right):
    if self.rebalance != "instance":
        return right(self.rebalance)
    total = torch.where(positive, self.inverse_counts, 0).sum()
    return self.tau + torch.sigmoid(self.beta * (self.inverse_counts / total - self.mu))[None]


@pytest.mark.parametrize(
    "wrong",
    [of_the_other_kind, masked_quotient, without_guard, empty_image_at_zero, over_the_batch],
    ids=lambda f: f.__name__,
)
def test_mistake_05_is_caught(monkeypatch, wrong):
    """Planted mistakes, named by their functions above; two of them divide zero by zero for an empty image."""
    weights = DistributionBalanced.weights

    def planted(self, positive, dtype):
        def right(kind):
            own, self.rebalance = self.rebalance, kind
            r = weights(self, positive, dtype)
            self.rebalance = own
            return r

        return wrong(self, positive, right)

    monkeypatch.setattr(DistributionBalanced, "weights", planted)
    refuses(check_rebalancing)


def check_positive_scale():
    """DB* by elements, its gradient, and the ratio of DB* to DB gradients of positives at z = 0, which is w."""
    logits, targets = batch()
    agree(loss_of(logits, targets), by_hand(logits, targets))
    agree(loss_of(logits, targets, name="db"), by_hand(logits, targets, w=1))
    stats = class_stats(COUNTS, IMAGES)
    # Class 3 has the most positives in the training list, yet none in this batch.
    labels, slopes = torch.tensor([[1, 1, 1, 0, 1], [0, 0, 1, 0, 0]]), {}
    for name in ("db", "dbstar"):
        at_zero = stats.v_i.repeat(2, 1).requires_grad_()
        (slopes[name],) = torch.autograd.grad(make_loss(name, stats)(at_zero, labels), at_zero)
    expected = np.where(labels.numpy(), COUNTS / 50, 1)
    agree((slopes["dbstar"] / slopes["db"]).numpy(), expected)
    z, r = logits - KAPPA * np.log(IMAGES / COUNTS - 1), r_by_hand(targets, instance=False)
    w = COUNTS / 50
    slope = np.where(targets, -w / (1 + np.exp(w * z)), 1 / (1 + np.exp(-LAM * z))) * r / targets.size
    at_logits = torch.from_numpy(logits).requires_grad_()
    (gradient,) = torch.autograd.grad(make_loss("dbstar", stats)(at_logits, torch.from_numpy(targets)), at_logits)
    agree(gradient.numpy(), slope)


def test_mistake_06_w_in_the_wrong_place():
    check_positive_scale()


def outside_the_softplus(self, logits, positive, right):
    w, self.positive_scale = self.positive_scale, torch.ones_like(self.positive_scale)
    values = right(logits, positive)
    self.positive_scale = w
    return torch.where(positive, w * values, values)


def of_the_batch(self, logits, positive, right):
    if (self.positive_scale == 1).all():
        return right(logits, positive)
    counts = positive.sum(dim=0).double()
    self.positive_scale = counts / counts.max().clamp_min(1)
    return right(logits, positive)


def on_negatives_too(self, logits, positive, right):
    values, z = right(logits, positive), logits - self.bias
    return torch.where(
        positive, values, self.class_weight / self.lam * losses.softplus(self.lam * self.positive_scale * z)
    )


@pytest.mark.parametrize("wrong", [outside_the_softplus, of_the_batch, on_negatives_too], ids=lambda f: f.__name__)
def test_mistake_06_is_caught(monkeypatch, wrong):
    """Planted mistakes: w outside the softplus, n_i counted in the batch, w on negatives as well."""
    elements = DistributionBalanced.elements

    def planted(self, logits, positive):
        return wrong(self, logits, positive, lambda *arguments: elements(self, *arguments))

    monkeypatch.setattr(DistributionBalanced, "elements", planted)
    refuses(check_positive_scale)


def check_counts(session, folder):
    """The run's loss is that of the training list's own counts."""
    labels = session.labels
    with (folder / "train.csv").open(newline="") as file:
        listed = [row["labels"].split(";") for row in csv.DictReader(file)]
    counts = [sum(label in row for row in listed) for label in labels]
    logits, targets = torch.randn(8, 4), torch.arange(32).view(8, 4) % 3 == 0
    own = {"rebalance": "instance", "pos_scale": "one_plus", "kappa": 1.0}
    expected = make_loss("dbstar", class_stats(counts, len(listed)), **own)
    assert torch.equal(session.loss()(logits, targets), expected(logits, targets))


def test_mistake_06_counts_of_the_wrong_list(tiny, tiny_values, tmp_path, monkeypatch):
    """Planted mistakes: n_i from the test list; n of training and validation together."""
    monkeypatch.chdir(tmp_path)
    session = prepare(load_config(values=tiny_values))
    check_counts(session, tiny)
    with monkeypatch.context() as patch:
        wrong = session.splits.test.class_counts
        patch.setattr("hpdval_edge.training.session.class_stats", lambda counts, n: class_stats(wrong, n))
        refuses(lambda: check_counts(session, tiny))
    object.__setattr__(session.splits, "train", session.splits.train.subset(range(32)))
    refuses(lambda: check_counts(session, tiny))


def check_focal_and_reduction():
    """Both focal factors by hand, the mean, an untouched input, and a doubled batch that costs the same."""
    logits, targets = batch()
    before = logits.copy()
    for focal in ("none", "element", "batch"):
        expected = by_hand(logits, targets, focal=focal)
        agree(loss_of(logits, targets, focal=focal), expected)
        assert np.array_equal(logits, before)
        once = loss_of(logits, targets, focal=focal, reduction="mean")
        agree(once, expected.sum() / expected.size)
        agree(loss_of(np.tile(logits, (2, 1)), np.tile(targets, (2, 1)), focal=focal, reduction="mean"), once)


def test_mistake_07_focal_reduction_or_a_changed_input():
    check_focal_and_reduction()


def focal_of(kind, used):
    """An ``elements`` that takes focal mode ``used`` where ``kind`` was asked for."""
    elements = DistributionBalanced.elements

    def planted(self, logits, positive):
        self.focal = used if self.focal == kind else self.focal
        return elements(self, logits, positive)

    return planted


@pytest.mark.parametrize(("kind", "used"), [("element", "batch"), ("batch", "element"), ("none", "element")])
def test_mistake_07_focal_is_caught(monkeypatch, kind, used):
    """Planted mistakes: one factor for the batch where each element has its own, the reverse, focal never off."""
    monkeypatch.setattr(DistributionBalanced, "elements", focal_of(kind, used))
    refuses(check_focal_and_reduction)


def test_mistake_07_in_place_is_caught(monkeypatch):
    """Planted mistake: ``logits += init_bias`` as in the DB-loss release, which changes the caller's tensor."""
    elements = DistributionBalanced.elements

    def planted(self, logits, positive):
        values = elements(self, logits, positive)
        logits -= self.bias
        return values

    monkeypatch.setattr(DistributionBalanced, "elements", planted)
    refuses(check_focal_and_reduction)


@pytest.mark.parametrize(
    "reduce",
    [
        lambda values: values.sum(),
        lambda values: values.sum(dim=1).mean(),
        lambda values: values.sum() / len(values) ** 2,
    ],
    ids=["sum", "sum over classes", "over the batch twice"],
)
def test_mistake_07_reduction_is_caught(monkeypatch, reduce):
    """Planted mistakes: a sum over all, over the classes, and a second division by the batch."""
    forward = MultiLabelLoss.forward

    def planted(self, logits, targets, reduction="mean"):
        values = forward(self, logits, targets, reduction="none")
        return reduce(values) if reduction == "mean" else values

    monkeypatch.setattr(MultiLabelLoss, "forward", planted)
    refuses(check_focal_and_reduction)
