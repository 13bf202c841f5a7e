"""The population stability index: how far a label's scores have moved from the validation pictures'.

    PSI = sum over bins of (a - e) * ln(a / e)

with e and a the shares of validation pictures and of pictures in use in a bin, ten bins cut at the validation scores'
deciles. By convention (Siddiqi, Credit Risk Scorecards, 2006) below 0.1 is stable, 0.1 to 0.25 a moderate shift and
above 0.25 a large one. Half a picture is added to every bin, so that none is empty.

Few pictures alone make a PSI: it is then about (1/n + 1/m) times a chi-squared variable with 9 degrees of freedom,
for n and m pictures (Yurdakul and Naranjo, Journal of Risk Model Validation 14(4), 2020). What lies below the quantile
of that is called chance. The bound is for pictures that come one by one; frames of one film are alike and need more.
"""

import math
from statistics import NormalDist

import numpy as np

MODERATE, LARGE = 0.1, 0.25
# Of all labels together, how likely one is to seem to drift by chance alone.
FALSE_ALARM = 0.01
STABLE, SHIFTED, DRIFTED, CHANCE, UNKNOWN = "stable", "moderate shift", "large shift", "within chance", "no reference"


def psi(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """PSI of each row, float64 [...]; counts and expected [..., bins]; NaN where either has no picture."""
    used = (counts > 0) | (expected > 0)
    shares = []
    for values in (counts, expected):
        half = np.where(used, values + 0.5, 0.0)
        shares.append(half / half.sum(axis=-1, keepdims=True).clip(0.5))
    a, e = (np.where(used, share, 1.0) for share in shares)
    value = ((a - e) * np.log(a / e)).sum(axis=-1)
    return np.where((counts.sum(axis=-1) > 0) & (expected.sum(axis=-1) > 0), value, np.nan)


def chance(pictures: int, reference: int, bins: int, labels: int) -> float:
    """The PSI that chance alone stays below, for all of ``labels`` at once but in FALSE_ALARM of cases."""
    if not pictures or not reference:
        return math.inf
    z, k = NormalDist().inv_cdf(1 - FALSE_ALARM / labels), bins - 1
    # Wilson and Hilferty's quantile of chi-squared.
    return (1 / pictures + 1 / reference) * k * (1 - 2 / (9 * k) + z * math.sqrt(2 / (9 * k))) ** 3


def reading(value: float, bound: float, limit: float = LARGE) -> str:
    """A PSI in words; ``bound`` is what chance stays below, ``limit`` where a large shift begins."""
    if math.isnan(value):
        return UNKNOWN
    if value > bound:
        return DRIFTED if value >= limit else SHIFTED if value >= MODERATE else STABLE
    return STABLE if value < MODERATE else CHANCE
