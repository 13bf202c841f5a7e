"""Times of calls, in turns within one process, and what they come to."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# However slow a call is, so many are timed.
FEWEST_CALLS = 10


@dataclass(frozen=True, slots=True)
class Summary:
    """Of all timed calls, none left out; milliseconds a call."""

    calls: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    images_per_s: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of the first over time of this one, pair by pair: above 1 this one is faster. Median and quartiles."""

    median: float
    low: float
    high: float
    pairs: int


def interleave(calls: Mapping[str, Callable[[], object]], times: Mapping[str, list[float]], seconds: float) -> None:
    """Call each in turns for ``seconds`` in all, FEWEST_CALLS times at least, and append the seconds it took.

    Every other round goes backwards, so that none always finds the caches of the same other.

    Args:
        times: by the same names; what is there when Ctrl-C ends the loop are whole rounds and perhaps one begun.
    """
    names = list(calls)
    ends, rounds = time.perf_counter() + seconds, 0
    while rounds < FEWEST_CALLS or time.perf_counter() < ends:
        for name in names if rounds % 2 == 0 else reversed(names):
            started = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - started)
        rounds += 1


def summarise(seconds: list[float], batch: int) -> Summary:
    """Of calls that took so many seconds each, with ``batch`` images each."""
    taken = 1e3 * np.array(seconds)
    p50, p90, p99 = np.percentile(taken, (50, 90, 99)).tolist()
    rate = 1e3 * batch * len(taken) / float(taken.sum())
    return Summary(len(taken), float(taken.mean()), p50, p90, p99, float(taken.max()), rate)


def ratio(first: list[float], this: list[float]) -> Ratio:
    """Of two that took turns; a round that was begun and not ended is left out."""
    pairs = min(len(first), len(this))
    low, median, high = np.percentile(np.array(first[:pairs]) / np.array(this[:pairs]), (25, 50, 75)).tolist()
    return Ratio(median, low, high, pairs)
