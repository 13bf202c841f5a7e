"""Learning rate over the declared epochs (METHOD section 9, schedule), a function of the step alone."""

import math

ONECYCLE_WARMUP = 0.1
ONECYCLE_START = 1 / 25
ONECYCLE_END = 1e-4


def learning_rate_factor(step: int, total: int, sched: str) -> float:
    """Multiplier of the base rate at ``step`` of ``total``: PyTorch's one-cycle with cosine arms, or 1."""
    if sched == "constant" or total <= 1:
        return 1.0
    peak = ONECYCLE_WARMUP * total - 1
    if step <= peak:
        start, end, part = ONECYCLE_START, 1.0, step / peak if peak else 1.0
    else:
        start, end, part = 1.0, ONECYCLE_START * ONECYCLE_END, (step - peak) / (total - 1 - peak)
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
