"""The index of drift, its bound by chance, its readings in words."""

import numpy as np
import pytest

from hpdval_edge.monitor.drift import chance, psi, reading
from hpdval_edge.monitor.reference import BINS


def test_the_index_is_its_formula():
    """Planted mistakes: log2, the shares unweighted, counts in place of shares, empty bins infinite."""
    counts, expected = np.array([30, 0, 70, 0]), np.array([25, 5, 20, 0])
    a, e = np.array([30.5, 0.5, 70.5]) / 101.5, np.array([25.5, 5.5, 20.5]) / 51.5
    assert psi(counts, expected) == pytest.approx(sum((x - y) * np.log(x / y) for x, y in zip(a, e, strict=True)))
    assert psi(expected, expected) == 0
    many = psi(np.array([[0, 0, 0], [3, 3, 3]]), np.array([[1, 2, 3], [0, 0, 0]]))
    assert np.isnan(many).all()


@pytest.mark.parametrize(("n", "m"), [(400, 400), (200, 5000)])
def test_chance_is_rarely_exceeded_by_chance(n, m):
    """Planted mistakes: one size alone, 10 for 9 degrees of freedom with the other sign, a level of 0.05."""
    rng = np.random.default_rng(0)
    draws = [rng.multinomial(size, [0.1] * BINS, 20_000) for size in (m, n)]
    exceeded = (psi(*draws) > chance(m, n, BINS, labels=1)).mean()
    assert 0.005 < exceeded < 0.015


def test_readings():
    assert [reading(value, 0.05) for value in (0.01, 0.08, 0.12, 0.3)] == [
        "stable", "stable", "moderate shift", "large shift",
    ]  # fmt: skip
    assert [reading(value, 0.4) for value in (0.01, 0.12, 0.3, np.nan)] == [
        "stable", "within chance", "within chance", "no reference",
    ]  # fmt: skip
    assert reading(0.3, 0.05, limit=0.5) == "moderate shift"
