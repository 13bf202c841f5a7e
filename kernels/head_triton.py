"""The dual-view head for NVIDIA GPUs, one Triton source: compiled at run time inside torch, ahead of time elsewhere.

    s[b,c] = alpha * cos(G_c, cls_b) + (1 - alpha) * mean(k largest over n of cos(L_c, patch_bn))

Paper equations 4, 5, 8 and 9; `kernels/head.py` holds the specification. One program computes BLOCK_C classes of one
image; the cosines live in registers and reach memory only where they are asked for.

Rounding: products of float16 and bfloat16 inputs are exact and summed in float32 on tensor cores; float32 inputs take
plain float32 multiply-adds ("ieee", never TF32). Squared lengths are summed in float32 from the tiles that the product
loads anyway; rows are not scaled, the product is.

The top k are exact. A float is mapped to an unsigned key of the same order; per class a bracket of keys, at first the
smallest and one past the largest, is halved until it holds the k-th key: the first `VALUE_STEPS` times in the middle of
the values, which takes fewer passes, then in the middle of the keys, which ends after at most 32 more. A class is done
when exactly k patches lie above, or when the bracket is one key wide and the rest are ties.

This module imports triton; `head_gpu.py` is what the rest of the package imports. Arguments are in the order that a
TensorRT ahead-of-time plugin prescribes: pointers to inputs, int32 scalars (alpha as the bits of a float32), outputs.
"""

import triton
import triton.language as tl

EPS = tl.constexpr(1e-12)
VALUE_STEPS = tl.constexpr(16)
# Columns of the whole-image view per step; it is small enough for one or two steps at usual widths.
WHOLE_E = tl.constexpr(256)
SCALARS = ["n_patches", "n_classes", "k", "alpha_bits"]


@triton.jit
def _inverse_norm(squares):
    return tl.div_rn(1.0, tl.maximum(tl.sqrt_rn(squares), EPS))


@triton.jit
def _poison(squares):
    """0, or NaN where a row held a NaN or an infinity; said by comparison so that no compiler folds it away."""
    return tl.where(squares < float("inf"), 0.0, float("nan"))


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
def _whole_view(cls_ptr, text_global_ptr, b, c, c_valid, E: tl.constexpr):
    """cos(G_c, cls_b) [BLOCK_C], equation 4; NaN where either row holds a NaN or an infinity."""
    product = tl.zeros([c.shape[0]], dtype=tl.float32)
    text_squares = tl.zeros([c.shape[0]], dtype=tl.float32)
    cls_squares = 0.0
    for e0 in tl.range(0, E, WHOLE_E):
        e = e0 + tl.arange(0, WHOLE_E)
        text = tl.load(
            text_global_ptr + c[:, None].to(tl.int64) * E + e[None, :],
            mask=c_valid[:, None] & (e < E)[None, :],
            other=0.0,
        ).to(tl.float32)
        cls = tl.load(cls_ptr + b.to(tl.int64) * E + e, mask=e < E, other=0.0).to(tl.float32)
        product += tl.sum(text * cls[None, :], axis=1)
        text_squares += tl.sum(text * text, axis=1)
        cls_squares += tl.sum(cls * cls, axis=0)
    scale = _inverse_norm(text_squares) * _inverse_norm(cls_squares)
    return product * scale + (_poison(text_squares) + _poison(cls_squares))


@triton.jit
def _patch_tile(patches_ptr, n, e, n_patches, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """[BLOCK_E, rows] of one image, zero outside."""
    mask = (n < n_patches)[None, :]
    if E % BLOCK_E != 0:
        mask = mask & (e < E)[:, None]
    return tl.load(patches_ptr + n[None, :] * E + e[:, None], mask=mask, other=0.0)


@triton.jit
def _patch_view(
    patches_ptr, text_local_ptr, b, c, c_valid, n_patches,
    E: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """cos(L_c, patch_bn), equation 5, as [BLOCK_C, BLOCK_N] for the first patches and [BLOCK_C, TAIL_N] for the rest.

    Two tiles, because a tile's sides are powers of two: 576 patches are 512 + 64, not 1,024. Without a second tile its
    place is taken by the first. The third result is [BLOCK_C]: 0, or NaN where any row holds a NaN or an infinity.
    """
    n = tl.arange(0, BLOCK_N)
    image_ptr = patches_ptr + b.to(tl.int64) * n_patches * E
    product = tl.zeros([c.shape[0], BLOCK_N], dtype=tl.float32)
    squares = tl.zeros([BLOCK_N], dtype=tl.float32)
    text_squares = tl.zeros([c.shape[0], BLOCK_E], dtype=tl.float32)
    if TAIL_N > 0:
        tail_n = BLOCK_N + tl.arange(0, TAIL_N)
        tail = tl.zeros([c.shape[0], TAIL_N], dtype=tl.float32)
        tail_squares = tl.zeros([TAIL_N], dtype=tl.float32)
    for e0 in tl.range(0, E, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = c_valid[:, None]
        if E % BLOCK_E != 0:
            mask = mask & (e < E)[None, :]
        text = tl.load(text_local_ptr + c[:, None].to(tl.int64) * E + e[None, :], mask=mask, other=0.0)
        patches = _patch_tile(image_ptr, n, e, n_patches, E, BLOCK_E)
        product = tl.dot(text, patches, acc=product, input_precision="ieee")
        squares += tl.sum(patches.to(tl.float32) * patches.to(tl.float32), axis=0)
        text_squares += text.to(tl.float32) * text.to(tl.float32)
        if TAIL_N > 0:
            rest = _patch_tile(image_ptr, tail_n, e, n_patches, E, BLOCK_E)
            tail = tl.dot(text, rest, acc=tail, input_precision="ieee")
            tail_squares += tl.sum(rest.to(tl.float32) * rest.to(tl.float32), axis=0)
    lengths = tl.sum(text_squares, axis=1)
    scale = _inverse_norm(lengths)[:, None]
    poison = _poison(lengths) + tl.sum(_poison(squares), axis=0)
    cosines = product * scale * _inverse_norm(squares)[None, :]
    if TAIL_N > 0:
        poison += tl.sum(_poison(tail_squares), axis=0)
        return cosines, tail * scale * _inverse_norm(tail_squares)[None, :], poison
    else:
        return cosines, cosines, poison


@triton.jit
def _keys(cosines, valid):
    """Keys of the cosines, 0 where there is no patch; a NaN is counted out, its score is NaN whatever is chosen."""
    return tl.where(valid[None, :] & (cosines == cosines), _key_of(cosines), 0)


@triton.jit
def _count(keys, tail_keys, floor, TAIL_N: tl.constexpr):
    count = tl.sum((keys >= floor[:, None]).to(tl.int32), axis=1)
    if TAIL_N > 0:
        count += tl.sum((tail_keys >= floor[:, None]).to(tl.int32), axis=1)
    return count


@triton.jit
def _bracket(keys, tail_keys, n_patches, TAIL_N: tl.constexpr):
    """Per class the smallest key of a patch and one past the largest: [BLOCK_C] uint32 twice."""
    n = tl.arange(0, keys.shape[1])
    smallest = tl.min(tl.where((n < n_patches)[None, :], keys, 0xFFFFFFFF), axis=1)
    largest = tl.max(keys, axis=1)
    if TAIL_N > 0:
        tail_n = keys.shape[1] + tl.arange(0, TAIL_N)
        smallest = tl.minimum(smallest, tl.min(tl.where((tail_n < n_patches)[None, :], tail_keys, 0xFFFFFFFF), axis=1))
        largest = tl.maximum(largest, tl.max(tail_keys, axis=1))
    return smallest, largest + 1


@triton.jit
def _kth_key(keys, tail_keys, n_patches, k, TAIL_N: tl.constexpr):
    """The largest key that at least k patches reach, per class, or any key that exactly k reach; and how many reach it.

    Both [BLOCK_C]. Invariant: at least k keys are >= low, fewer than k are >= high.
    """
    low, high = _bracket(keys, tail_keys, n_patches, TAIL_N)
    count = tl.zeros([keys.shape[0]], dtype=tl.int32) + n_patches
    step = 0
    while tl.max(((count > k) & (high - low > 1)).to(tl.int32), axis=0) > 0:
        open_ = (count > k) & (high - low > 1)
        middle = low + ((high - low) >> 1)
        if step < VALUE_STEPS:
            by_value = _key_of(0.5 * _value_of(low) + 0.5 * _value_of(high))
            middle = tl.minimum(tl.maximum(by_value, low + 1), high - 1)
        reached = _count(keys, tail_keys, middle, TAIL_N)
        rise = open_ & (reached >= k)
        high = tl.where(open_ & (reached < k), middle, high)
        low = tl.where(rise, middle, low)
        count = tl.where(rise, reached, count)
        step += 1
    return low, count


@triton.jit
def _sum_of_largest(keys, tail_keys, low, count, k, TAIL_N: tl.constexpr):
    """Sum of the k largest [BLOCK_C], given `_kth_key`'s result; ties at the k-th key count as often as k allows."""
    floor = tl.where(count > k, low + 1, low)
    total = tl.sum(tl.where(keys >= floor[:, None], _value_of(keys), 0.0), axis=1)
    if TAIL_N > 0:
        total += tl.sum(tl.where(tail_keys >= floor[:, None], _value_of(tail_keys), 0.0), axis=1)
    ties = k - _count(keys, tail_keys, floor, TAIL_N)
    return total + tl.where(ties > 0, ties.to(tl.float32) * _value_of(low), 0.0)


@triton.jit
def _store_patch_tile(ptr, tile, b, c, n, c_valid, n_patches, n_classes):
    """[BLOCK_C, rows] into [B, N, C]."""
    row = (b.to(tl.int64) * n_patches + n[None, :]) * n_classes
    tl.store(ptr + row + c[:, None], tile, mask=c_valid[:, None] & (n < n_patches)[None, :])


@triton.jit(do_not_specialize=SCALARS)
def head(
    cls_ptr,  # [B, E] float16, bfloat16 or float32, as the next three
    patches_ptr,  # [B, N, E]
    text_global_ptr,  # [C, E]
    text_local_ptr,  # [C, E]
    n_patches,  # N <= BLOCK_N + TAIL_N
    n_classes,  # C, any
    k,  # 1 <= k <= N, or larger: clamped to N
    alpha_bits,  # float32 as int32
    scores_ptr,  # [B, C] float32
    patch_scores_ptr,  # [B, N, C] float32, or None
    E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Equations 4, 5, 8 and 9 for BLOCK_C classes of one image; grid (ceil(C / BLOCK_C), B)."""
    b = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_valid = c < n_classes
    n = tl.arange(0, BLOCK_N)
    whole = _whole_view(cls_ptr, text_global_ptr, b, c, c_valid, E)
    cosines, tail, poison = _patch_view(
        patches_ptr, text_local_ptr, b, c, c_valid, n_patches, E, BLOCK_N, TAIL_N, BLOCK_E
    )
    if patch_scores_ptr is not None:
        _store_patch_tile(patch_scores_ptr, cosines, b, c, n, c_valid, n_patches, n_classes)
        if TAIL_N > 0:
            _store_patch_tile(
                patch_scores_ptr, tail, b, c, BLOCK_N + tl.arange(0, TAIL_N), c_valid, n_patches, n_classes
            )
    keys = _keys(cosines, n < n_patches)
    tail_keys = keys
    if TAIL_N > 0:
        tail_keys = _keys(tail, BLOCK_N + tl.arange(0, TAIL_N) < n_patches)
    k = tl.minimum(k, n_patches)
    low, count = _kth_key(keys, tail_keys, n_patches, k, TAIL_N)
    best = tl.div_rn(_sum_of_largest(keys, tail_keys, low, count, k, TAIL_N), k.to(tl.float32))
    alpha = alpha_bits.to(tl.float32, bitcast=True)
    scores = alpha * whole + (1.0 - alpha) * best + poison
    tl.store(scores_ptr + b.to(tl.int64) * n_classes + c, scores, mask=c_valid)


@triton.jit
def _shares(keys, low, count, above, k):
    """1 for a chosen patch, 0 for another; patches tied at the k-th place share what is left of k evenly."""
    share = tl.div_rn((k - above).to(tl.float32), tl.maximum(count - above, 1).to(tl.float32))
    return tl.where(keys > low[:, None], 1.0, tl.where(keys == low[:, None], share[:, None], 0.0))


@triton.jit(do_not_specialize=SCALARS)
def head_shares(
    patches_ptr,  # [B, N, E] float16, bfloat16 or float32, as the next
    text_local_ptr,  # [C, E]
    gradient_ptr,  # [B, C] float32, of the loss by the scores
    n_patches,
    n_classes,
    k,
    alpha_bits,
    shares_ptr,  # [B, N, C] float32
    E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Gradient of the loss by every cosine of equation 5, through equations 8 and 9: zero but for the chosen patches.

    The choice is made again from the same tiles in the same order as in `head`, hence it is the same choice.
    """
    b = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_valid = c < n_classes
    n = tl.arange(0, BLOCK_N)
    cosines, tail, _ = _patch_view(patches_ptr, text_local_ptr, b, c, c_valid, n_patches, E, BLOCK_N, TAIL_N, BLOCK_E)
    keys = _keys(cosines, n < n_patches)
    tail_keys = keys
    if TAIL_N > 0:
        tail_n = BLOCK_N + tl.arange(0, TAIL_N)
        tail_keys = _keys(tail, tail_n < n_patches)
    k = tl.minimum(k, n_patches)
    low, count = _kth_key(keys, tail_keys, n_patches, k, TAIL_N)
    above = _count(keys, tail_keys, low + 1, TAIL_N)
    alpha = alpha_bits.to(tl.float32, bitcast=True)
    gradient = tl.load(gradient_ptr + b.to(tl.int64) * n_classes + c, mask=c_valid, other=0.0)
    weight = (tl.div_rn((1.0 - alpha), k.to(tl.float32)) * gradient)[:, None]
    shares = weight * _shares(keys, low, count, above, k)
    _store_patch_tile(shares_ptr, shares, b, c, n, c_valid, n_patches, n_classes)
    if TAIL_N > 0:
        shares = weight * _shares(tail_keys, low, count, above, k)
        _store_patch_tile(shares_ptr, shares, b, c, tail_n, c_valid, n_patches, n_classes)
