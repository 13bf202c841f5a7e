"""Exact top-k over the rows of one or two register tiles, in Triton: part of the GPU head's source.

A row's values are in ``x`` [BLOCK_C, BLOCK_N] and ``tail`` [BLOCK_C, TAIL_N]; where TAIL_N is 0 nothing reads ``tail``.

Per row a bracket low < high, with at least k values above low and fewer above high, is halved until exactly k lie above
low, or until low and high are neighbouring floats and the rest are ties at high. The first `GUESSES` thresholds are
where the k-th of a normal distribution with the row's mean and deviation would lie; then come middles of the values
and, from `VALUE_STEPS` on, middles of the floats' order, which ends after at most 32 more.
"""

import triton
import triton.language as tl

GUESSES = tl.constexpr(4)
VALUE_STEPS = tl.constexpr(20)
# Whether any row is still open is asked after this many steps: the answer is a reduction over the block.
STEPS_PER_LOOK = tl.constexpr(2)
# Below every cosine: stands for a patch that is not there.
NOWHERE = tl.constexpr(-2.0)


@triton.jit
def _key_of(x):
    """float32 -> uint32 of the same order."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _value_of(key):
    bits = tl.where((key >> 31) != 0, key & 0x7FFFFFFF, key ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def there(cosines, valid):
    """The cosines, `NOWHERE` for no patch; a NaN is counted out, its score is NaN whatever is chosen."""
    return tl.where(valid[None, :] & (cosines == cosines), cosines, NOWHERE)


@triton.jit
def _count_above(x, tail, threshold, TAIL_N: tl.constexpr):
    """How many of a row lie above ``threshold`` [BLOCK_C], as float32."""
    count = tl.sum(tl.where(x > threshold[:, None], 1.0, 0.0), axis=1)
    if TAIL_N > 0:
        count += tl.sum(tl.where(tail > threshold[:, None], 1.0, 0.0), axis=1)
    return count


@triton.jit
def sum_above(x, tail, threshold, TAIL_N: tl.constexpr):
    """Sum of those of a row that lie above ``threshold`` [BLOCK_C]."""
    total = tl.sum(tl.where(x > threshold[:, None], x, 0.0), axis=1)
    if TAIL_N > 0:
        total += tl.sum(tl.where(tail > threshold[:, None], tail, 0.0), axis=1)
    return total


@triton.jit
def _upper_quantile(p):
    """x that a standard normal variable exceeds with probability ``p``, to 5e-4 (Abramowitz and Stegun, 26.2.23)."""
    t = tl.sqrt(-2.0 * tl.log(tl.maximum(tl.minimum(p, 1.0 - p), 1e-6)))
    above = 2.515517 + t * (0.802853 + t * 0.010328)
    x = t - above / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    return tl.where(p < 0.5, x, -x)


@triton.jit
def first_guess(cosines, tail, n_patches, k, TAIL_N: tl.constexpr):
    """Where the k-th of normally distributed cosines would lie, and a step away from there: [BLOCK_C] twice."""
    total = tl.sum(cosines, axis=1)
    squares = tl.sum(cosines * cosines, axis=1)
    if TAIL_N > 0:
        total += tl.sum(tail, axis=1)
        squares += tl.sum(tail * tail, axis=1)
    mean = total / n_patches
    deviation = tl.sqrt(tl.maximum(squares / n_patches - mean * mean, 0.0))
    return mean + _upper_quantile(k / n_patches) * deviation, 0.15 * deviation


@triton.jit
def bracket(x, tail, guess, stride, c_valid, n_patches, k, TAIL_N: tl.constexpr):
    """low, high and how many cosines lie above either, all [BLOCK_C] float32.

    Above low lie at least k, above high fewer. Exactly k lie above low, or low and high are neighbours. ``k`` is a
    float; classes that are not there are not searched.
    """
    low = tl.zeros([x.shape[0]], dtype=tl.float32) - 1.5
    high = low + 3.0
    above_low = tl.where(c_valid, tl.zeros([x.shape[0]], dtype=tl.float32) + n_patches, k)
    above_high = tl.zeros([x.shape[0]], dtype=tl.float32)
    step = 0
    while tl.max(((above_low > k) & (_key_of(high) - _key_of(low) > 1)).to(tl.int32), axis=0) > 0:
        for _ in tl.static_range(STEPS_PER_LOOK):
            key = _key_of(low)
            gap = _key_of(high) - key
            by_order = _value_of(key + (gap >> 1))
            threshold = 0.5 * low + 0.5 * high
            if step < GUESSES:
                threshold = tl.where((low < guess) & (guess < high), guess, threshold)
            if step >= VALUE_STEPS:
                threshold = by_order
            above = _count_above(x, tail, threshold, TAIL_N)
            searched = (above_low > k) & (gap > 1)
            rise = searched & (above >= k)
            fall = searched & (above < k)
            low = tl.where(rise, threshold, low)
            above_low = tl.where(rise, above, above_low)
            high = tl.where(fall, threshold, high)
            above_high = tl.where(fall, above, above_high)
            guess = tl.where(above >= k, threshold + stride, threshold - stride)
            stride *= 2.0
            step += 1
    return low, high, above_low, above_high
