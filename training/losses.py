"""Classification losses on scaled similarities: DB* of the paper, its ancestor DB, and four comparisons.

The paper's formulas are read as follows (its own numbers; B images, c classes, n_i positives of class i among n
training images, s the logits, that is scale * similarity):

    p_i = (1/n_i) / sum_j (1/n_j),    r_i = tau + sigmoid(beta (p_i - mu))                       eq. 11
    v_i = kappa log(n/n_i - 1)                                                                   eq. 12
    DB  = mean_bi r [ y softplus(-z)     + (1-y)/lambda softplus(lambda z) ],   z = s - v        eq. 13
    w_i = n_i / max_j n_j                                                                        eq. 14
    DB* = mean_bi r [ y softplus(-w_i z) + (1-y)/lambda softplus(lambda z) ]                     eq. 15

Misprints of the paper: eq. 11 uses i both as the free and as the summed index (the summed one is j here); eq. 12 writes
the two minus signs "-kappa x -log", which is v_i above, larger for rarer classes; the sums of eqs 13 and 15 run over
"i = 0 ... c", which would be c + 1 classes, and lack their closing bracket. The mean over the batch is implied.
log(1 + e^t) is never computed as printed: it overflows in float16 at scale 20 and in float32 at scale 100.
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES = ("dbstar", "db", "bce", "mls", "cb_focal", "asl")
REBALANCE = ("class", "instance", "none")
KAPPA_MODES = ("paper", "code")
POS_SCALES = ("eq14", "one_plus", "none")
FOCAL = ("none", "element", "batch")
REDUCTIONS = ("mean", "none")

FOCAL_GAMMA = 2
FOCAL_BALANCE = 2.0
CB_BETA = 0.9
ASL_GAMMA_NEGATIVE = 4
ASL_CLIP = 0.05
ASL_EPS = 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class ClassStats:
    """How often each class occurs in the training list.

    Attributes:
        n_i: [C] float64 on the CPU, training images that hold class i; whole numbers in 0..n.
        n: number of training images, at least 1.
    """

    n_i: Tensor
    n: int

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"num_images must be a whole number of at least 1, got {self.n!r}")
        if self.n_i.ndim != 1 or self.n_i.numel() == 0:
            raise ValueError(f"class_counts must have shape [C] with C >= 1, got {list(self.n_i.shape)}")
        wrong = ~((self.n_i >= 0) & (self.n_i <= self.n) & (self.n_i == self.n_i.floor()))
        if wrong.any():
            first = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"class_counts must be whole numbers in 0..{self.n} (the number of images), "
                f"got {self.n_i[first].item():g} for class {first}"
            )

    @property
    def r_i(self) -> Tensor:
        """[C] float64, the class weights of eq. 11 at tau 0.1, beta 10, mu 0.3."""
        return self.rebalance(tau=0.1, beta=10.0, mu=0.3)

    @property
    def v_i(self) -> Tensor:
        """[C] float64, the class biases of eq. 12 at kappa 0.05."""
        return self.bias(kappa=0.05)

    @property
    def w_i(self) -> Tensor:
        """[C] float64 in 0..1, n_i / max_j n_j (eq. 14); all 0 when no class has a positive."""
        return self.n_i / self.n_i.max().clamp_min(1)

    @property
    def inverse_counts(self) -> Tensor:
        """[C] float64, 1/n_i with n_i clamped to at least 1, so that a class never seen counts like one seen once."""
        return 1 / self.n_i.clamp_min(1)

    def rebalance(self, *, tau: float, beta: float, mu: float) -> Tensor:
        """Return r_i = tau + sigmoid(beta (p_i - mu)), [C] float64 (eq. 11, the sum over all classes)."""
        inverse = self.inverse_counts
        return tau + torch.sigmoid(beta * (inverse / inverse.sum() - mu))

    def bias(self, *, kappa: float) -> Tensor:
        """Return v_i = kappa log(n/n_i - 1), [C] float64 (eq. 12).

        n_i is clamped to 1..n-1, so that a class in no image or in every image has a finite bias; with a single
        training image v_i is 0.
        """
        if self.n == 1:
            return torch.zeros_like(self.n_i)
        return kappa * torch.log(self.n / self.n_i.clamp(1, self.n - 1) - 1)


def class_stats(class_counts, num_images: int) -> ClassStats:
    """Collect the training counts that the losses need.

    Args:
        class_counts: [C] whole numbers (list, NumPy array or tensor): training images that hold each class, n_i.
            Always of the TRAINING list, never of a batch or of the test list.
        num_images: number of training images, n.

    Raises:
        ValueError: a count is not a whole number in 0..n, the shape is not [C], or n < 1.
    """
    counts = torch.as_tensor(class_counts).detach().to("cpu", torch.float64, copy=True)
    # NumPy integers become Python ones; anything else is left for ClassStats to name.
    if isinstance(num_images, Integral) and not isinstance(num_images, bool):
        num_images = int(num_images)
    return ClassStats(counts, num_images)


class MultiLabelLoss(nn.Module):
    """What all six losses share: checks, working precision, reduction. A subclass gives `elements`.

    Call as ``loss(logits, targets, reduction="mean")``:
        logits: [B,C] any float dtype, scale * similarity. float16 and bfloat16 are computed in float32, float64 stays.
            Never modified.
        targets: [B,C] bool, any integer or any float dtype; every value 0 or 1.
        reduction: "mean" over images and classes -> scalar, or "none" -> [B,C].

    Raises:
        ValueError: a shape, a dtype, a target value or the reduction is wrong.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def elements(self, logits: Tensor, positive: Tensor) -> Tensor:
        """Return the loss of every image and class, [B,C], from logits [B,C] and positive [B,C] bool."""
        raise NotImplementedError

    def constant(self, name: str, values: Tensor) -> None:
        """Keep values [C] as a buffer: it follows `.to(device)` but is not saved, since the statistics define it."""
        self.register_buffer(name, values.clone(), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        _check_choice("reduction", reduction, REDUCTIONS)
        positive = self._checked(logits, targets)
        # Elementwise arithmetic and sums only, which autocast leaves in float32; a matrix product it would not.
        losses = self.elements(logits.to(torch.promote_types(logits.dtype, torch.float32)), positive)
        return losses.mean() if reduction == "mean" else losses

    def _checked(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return targets as bool [B,C] after checking both arguments."""
        if logits.ndim != 2 or logits.shape[0] == 0 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"logits must have shape [B,{self.num_classes}] with B >= 1 (the statistics hold "
                f"{self.num_classes} classes), got {list(logits.shape)}"
            )
        if not logits.dtype.is_floating_point:
            raise ValueError(f"logits must be floating point, got {logits.dtype}")
        if targets.shape != logits.shape:
            raise ValueError(f"targets must have the shape of logits {list(logits.shape)}, got {list(targets.shape)}")
        positive = targets == 1
        wrong = ~(positive | (targets == 0))
        if wrong.any():
            raise ValueError(f"targets must be 0 or 1, got {targets[wrong][0].item()}")
        return positive


class DistributionBalanced(MultiLabelLoss):
    """DB (eq. 13, w = 1) and DB* (eq. 15), with the variants of the DB-loss release.

    Options, as in `make_loss`. With `rebalance="instance"` the sum of eq. 11 runs over the positives of image b,
        p_bi = (1/n_i) / sum_j y_bj (1/n_j),
    and an image without positives has p = inf, that is r = tau + 1.
    Focal, with t = -w z for positives and lambda z for negatives, p_t = sigmoid(-t), BCE = softplus(t) (unweighted) and
    u = r for positives, r/lambda for negatives:
        element: 2 (1 - p_t)^2 u BCE for each image and class, as in the DB-loss release;
        batch:   2 (1 - exp(-mean BCE))^2 u BCE, one factor for the whole batch, as in later copies of it.
    Gradients flow through both factors.
    """

    def __init__(
        self,
        stats: ClassStats,
        *,
        positive_scale: Tensor,
        rebalance: str,
        focal: str,
        tau: float,
        beta: float,
        mu: float,
        kappa: float,
        lam: float,
    ) -> None:
        super().__init__(stats.n_i.numel())
        self.rebalance, self.focal = rebalance, focal
        self.tau, self.beta, self.mu, self.lam = tau, beta, mu, lam
        self.constant("class_weight", stats.rebalance(tau=tau, beta=beta, mu=mu))
        self.constant("inverse_counts", stats.inverse_counts)
        self.constant("bias", stats.bias(kappa=kappa))
        self.constant("positive_scale", positive_scale)

    def weights(self, positive: Tensor, dtype: torch.dtype) -> Tensor:
        """Return r for positive [B,C] bool: [1,C] class-wise or constant, [B,C] for "instance"."""
        if self.rebalance == "none":
            return torch.ones_like(self.class_weight, dtype=dtype)[None]
        if self.rebalance == "class":
            return self.class_weight.to(dtype)[None]
        inverse = self.inverse_counts.to(dtype)
        total = torch.where(positive, inverse, 0).sum(dim=1, keepdim=True)
        mapped = torch.sigmoid(self.beta * (inverse / total - self.mu))
        # An empty image has p = inf, which sigmoid takes to 1, save where beta is 0.
        return self.tau + torch.where(total == 0, 1, mapped)

    def elements(self, logits: Tensor, positive: Tensor) -> Tensor:
        z = logits - self.bias.to(logits.dtype)
        margin = torch.where(positive, -self.positive_scale.to(z.dtype) * z, self.lam * z)
        bce = softplus(margin)
        weight = self.weights(positive, z.dtype)
        losses = torch.where(positive, weight, weight / self.lam) * bce
        if self.focal == "element":
            # 1 - p_t = 1 - sigmoid(-margin), without the cancellation
            losses = FOCAL_BALANCE * torch.sigmoid(margin) ** FOCAL_GAMMA * losses
        elif self.focal == "batch":
            losses = FOCAL_BALANCE * (-torch.expm1(-bce.mean())) ** FOCAL_GAMMA * losses
        return losses


class BinaryCrossEntropy(MultiLabelLoss):
    """softplus(-s) for positives, softplus(s) for negatives.

    Serves "bce" and "mls": MultiLabelSoftMargin takes the mean over classes, then over images, of the same numbers.
    """

    def elements(self, logits: Tensor, positive: Tensor) -> Tensor:
        return softplus(torch.where(positive, -logits, logits))


class ClassBalancedFocal(MultiLabelLoss):
    """Class-balanced focal loss: 2 (1 - p_t)^2 BCE * (1 - 0.9) / (1 - 0.9^n_i), n_i clamped to at least 1.

    Plain logits: no bias v and no lambda.
    """

    def __init__(self, stats: ClassStats) -> None:
        super().__init__(stats.n_i.numel())
        self.constant("class_weight", (1 - CB_BETA) / (1 - CB_BETA ** stats.n_i.clamp_min(1)))

    def elements(self, logits: Tensor, positive: Tensor) -> Tensor:
        margin = torch.where(positive, -logits, logits)
        focal = FOCAL_BALANCE * torch.sigmoid(margin) ** FOCAL_GAMMA
        return self.class_weight.to(logits.dtype) * focal * softplus(margin)


class Asymmetric(MultiLabelLoss):
    """Asymmetric loss: gamma+ 0, gamma- 4, clip 0.05, eps 1e-8.

    With p = sigmoid(s) and q = min(1 - p + clip, 1):
        positives: -log max(p, eps);    negatives: -(1 - q)^gamma- log q
    The factor (1 - q)^gamma- is outside the graph, so the gradient is that of the logarithm alone, times the factor.
    """

    def elements(self, logits: Tensor, positive: Tensor) -> Tensor:
        of_positives = softplus(-logits).clamp_max(-math.log(ASL_EPS))
        rest = (torch.sigmoid(-logits) + ASL_CLIP).clamp_max(1)
        factor = (1 - rest.detach()) ** ASL_GAMMA_NEGATIVE
        return torch.where(positive, of_positives, -factor * torch.log(rest))


def make_loss(
    name: str,
    stats: ClassStats,
    rebalance: str = "class",
    kappa_mode: str = "paper",
    pos_scale: str | float = "eq14",
    focal: str = "none",
    tau: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.3,
    kappa: float = 0.05,
    lam: float = 5.0,
) -> nn.Module:
    """Build a loss, called as ``loss(logits [B,C], targets [B,C], reduction="mean"|"none")``.

    Args:
        name: dbstar (eq. 15), db (eq. 13: dbstar with w_i = 1 whatever `pos_scale` says), bce, mls, cb_focal, asl.
            Every option below is checked for every name, and used by dbstar and db only.
        stats: training counts, from `class_stats`.
        rebalance: r per "class" (eq. 11 as printed), per "instance" (the DB-loss release), or 1 ("none").
        kappa_mode: "paper" v_i = kappa log(n/n_i - 1) (eq. 12); "code" divides it by lambda, as the release does.
        pos_scale: w_i of eq. 15: "eq14" n_i / max n_j, "one_plus" 1 + that, "none" 1, or a positive number. Literal
            eq. 14 multiplies the gradient of the rarest classes' positives by about 0.005: they hardly learn.
        focal: "none" (the paper), "element" or "batch"; see `DistributionBalanced`.
        tau, beta, mu: lift, slope and centre of the map to r (mu: VOC-LT 0.3, COCO-LT 0.2).
        kappa: scale of the bias v. lam: lambda, the scale of negatives (VOC-LT 5, COCO-LT 2).

    Raises:
        ValueError: an unknown name or option, or a number out of range.
    """
    _check_choice("name", name, NAMES)
    _check_choice("rebalance", rebalance, REBALANCE)
    _check_choice("kappa_mode", kappa_mode, KAPPA_MODES)
    _check_choice("focal", focal, FOCAL)
    tau, beta = _number("tau", tau, at_least=0), _number("beta", beta, at_least=0)
    mu, kappa, lam = _number("mu", mu), _number("kappa", kappa, at_least=0), _number("lam", lam, above=0)
    scale = _positive_scale(pos_scale, stats)
    if name in ("bce", "mls"):
        return BinaryCrossEntropy(stats.n_i.numel())
    if name == "cb_focal":
        return ClassBalancedFocal(stats)
    if name == "asl":
        return Asymmetric(stats.n_i.numel())
    return DistributionBalanced(
        stats,
        positive_scale=torch.ones_like(scale) if name == "db" else scale,
        rebalance=rebalance,
        focal=focal,
        tau=tau,
        beta=beta,
        mu=mu,
        kappa=kappa if kappa_mode == "paper" else kappa / lam,
        lam=lam,
    )


def softplus(t: Tensor) -> Tensor:
    """Return log(1 + e^t), finite for every finite t."""
    # F.softplus turns linear above 20, which costs float64 its last digits; logsigmoid does not.
    return -F.logsigmoid(-t)


def _positive_scale(pos_scale: str | float, stats: ClassStats) -> Tensor:
    """Return w_i of eq. 15, [C] float64, for one value of `pos_scale`."""
    if isinstance(pos_scale, str):
        if pos_scale not in POS_SCALES:
            raise ValueError(f"pos_scale must be one of {', '.join(POS_SCALES)} or a number, got {pos_scale!r}")
        if pos_scale == "none":
            return torch.ones_like(stats.n_i)
        return stats.w_i if pos_scale == "eq14" else 1 + stats.w_i
    return torch.full_like(stats.n_i, _number("pos_scale", pos_scale, above=0))


def _check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")


def _number(option: str, value: Real, at_least: float = -math.inf, above: float = -math.inf) -> float:
    """Return value, Python's or NumPy's, as a float; ValueError if it is no finite number in range."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{option} must be a finite number, got {value!r}")
    if value < at_least or value <= above:
        bound = f"at least {at_least}" if value < at_least else f"above {above}"
        raise ValueError(f"{option} must be {bound}, got {value!r}")
    return float(value)
