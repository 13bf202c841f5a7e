"""The dual-view head for NVIDIA GPUs, one Triton source: compiled at run time inside torch, ahead of time elsewhere.

    s[b,c] = alpha * cos(G_c, cls_b) + (1 - alpha) * mean(k largest over n of cos(L_c, patch_bn))

Paper equations 4, 5, 8 and 9; `kernels/head.py` holds the specification. One program computes BLOCK_C classes of one
image; the cosines live in registers and reach memory only where they are asked for.

Lengths come from a launch of `prepare`, which reads every row once, or, where a plugin may launch but one kernel
(TensorRT ahead of time: `scales_ptr` is None), from `head` itself, which reads a row again for every block of classes.

Rounding: products of float16 and bfloat16 inputs are exact and summed in float32 on tensor cores; float32 inputs take
plain float32 multiply-adds ("ieee", never TF32). Rows are not scaled, the product is.

`head_top_k.py` holds the exact top-k.

This module imports triton; `head_gpu.py` is what the rest of the package imports. Arguments are in the order that a
TensorRT ahead-of-time plugin prescribes: pointers to inputs, int32 scalars (alpha as the bits of a float32), outputs.
"""

import triton
import triton.language as tl

from hpdval_edge.kernels.head_top_k import bracket, first_guess, sum_above, there

EPS = tl.constexpr(1e-12)
# A thread holds this many neighbouring elements of a row, so that their squares are summed without talk.
RUN = tl.constexpr(8)
# Columns per step of `prepare` and of the whole-image view.
PREPARE_E = tl.constexpr(256)
WHOLE_E = tl.constexpr(64)
# Least columns of a matrix product.
COLUMNS = tl.constexpr(16)
# Rows per program of `prepare`.
ROWS = 16
TILE = tl.constexpr(ROWS)
SCALARS = ["n_patches", "n_classes", "k", "alpha_bits"]


@triton.jit
def _scale(squares):
    """1 / length of rows, given their squared lengths; NaN where a row held a NaN or an infinity."""
    finite = tl.where(squares < float("inf"), 0.0, float("nan"))
    return tl.div_rn(1.0, tl.maximum(tl.sqrt_rn(squares), EPS)) + finite


@triton.jit
def _partial_squares(tile):
    """[R, columns] -> [R, columns / RUN], float32."""
    squares = tile.to(tl.float32) * tile.to(tl.float32)
    return tl.sum(tl.reshape(squares, [tile.shape[0], tile.shape[1] // RUN, RUN]), axis=2)


@triton.jit
def _rows(ptr, row, valid, e, E: tl.constexpr):
    """[R, columns] of a matrix of width E, zero outside."""
    return tl.load(ptr + row[:, None].to(tl.int64) * E + e[None, :], mask=valid[:, None] & (e < E)[None, :], other=0.0)


@triton.jit
def _row_scales(ptr, row, valid, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """`_scale` of rows [R]."""
    squares = tl.zeros([row.shape[0], BLOCK_E // RUN], dtype=tl.float32)
    for e0 in tl.range(0, E, BLOCK_E):
        squares += _partial_squares(_rows(ptr, row, valid, e0 + tl.arange(0, BLOCK_E), E))
    return _scale(tl.sum(squares, axis=1))


@triton.jit
def _store_scales(ptr, rows, tile, scales_ptr, E: tl.constexpr):
    """1 / length of one tile of ``rows`` rows."""
    row = tile * TILE + tl.arange(0, TILE)
    tl.store(scales_ptr + row, _row_scales(ptr, row, row < rows, E, PREPARE_E), mask=row < rows)


@triton.jit(do_not_specialize=["n_images", "n_rows", "n_classes"])
def prepare(
    cls_ptr,  # [B, E] float16, bfloat16 or float32, as the next three
    patches_ptr,  # [B * N, E]
    text_global_ptr,  # [C, E]
    text_local_ptr,  # [C, E]
    n_images,  # B
    n_rows,  # B * N
    n_classes,  # C
    scales_ptr,  # [B + B * N + 2 C] float32: 1 / length of each row, in this order
    E: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """What `head` needs of every row; grid (ceil(B / ROWS) + ceil(B N / ROWS) + 2 ceil(C / ROWS)).

    OVERLAP lets `head` start its products meanwhile (compute capability 9.0 or later).
    """
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    tile = tl.program_id(0)
    images, rows, classes = tl.cdiv(n_images, TILE), tl.cdiv(n_rows, TILE), tl.cdiv(n_classes, TILE)
    if tile < images:
        _store_scales(cls_ptr, n_images, tile, scales_ptr, E)
    elif tile < images + rows:
        _store_scales(patches_ptr, n_rows, tile - images, scales_ptr + n_images, E)
    else:
        text_scales_ptr = scales_ptr + n_images + n_rows
        tile -= images + rows
        if tile < classes:
            _store_scales(text_global_ptr, n_classes, tile, text_scales_ptr, E)
        else:
            _store_scales(text_local_ptr, n_classes, tile - classes, text_scales_ptr + n_classes, E)


@triton.jit
def _whole_product(cls_ptr, text_global_ptr, b, c, c_valid, E: tl.constexpr):
    """G_c . cls_b [BLOCK_C], by a matrix product whose other columns are zero."""
    column = tl.arange(0, COLUMNS)
    product = tl.zeros([c.shape[0], COLUMNS], dtype=tl.float32)
    for e0 in tl.range(0, E, WHOLE_E):
        e = e0 + tl.arange(0, WHOLE_E)
        text = _rows(text_global_ptr, c, c_valid, e, E)
        only = (e < E)[:, None] & (column == 0)[None, :]
        cls = tl.load(cls_ptr + b.to(tl.int64) * E + e[:, None] + 0 * column[None, :], mask=only, other=0.0)
        product = tl.dot(text, cls, acc=product, input_precision="ieee")
    return tl.sum(product, axis=1)


@triton.jit
def _patch_tile(image_ptr, n, e, n_patches, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """[BLOCK_E, rows] of one image, zero outside."""
    mask = (n < n_patches)[None, :]
    if E % BLOCK_E != 0:
        mask = mask & (e < E)[:, None]
    return tl.load(image_ptr + n[None, :] * E + e[:, None], mask=mask, other=0.0)


@triton.jit
def _products(
    image_ptr, text_local_ptr, c, c_valid, n_patches,
    E: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """L_c . patch_bn as [BLOCK_C, BLOCK_N] for the first patches and [BLOCK_C, TAIL_N] for the rest.

    Two tiles, because a tile's sides are powers of two: 576 patches are 512 + 64, not 1,024. Without a second tile its
    place is taken by the first.
    """
    n = tl.arange(0, BLOCK_N)
    product = tl.zeros([c.shape[0], BLOCK_N], dtype=tl.float32)
    if TAIL_N > 0:
        tail_n = BLOCK_N + tl.arange(0, TAIL_N)
        tail = tl.zeros([c.shape[0], TAIL_N], dtype=tl.float32)
    for e0 in tl.range(0, E, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        mask = c_valid[:, None]
        if E % BLOCK_E != 0:
            mask = mask & (e < E)[None, :]
        text = tl.load(text_local_ptr + c[:, None].to(tl.int64) * E + e[None, :], mask=mask, other=0.0)
        patches = _patch_tile(image_ptr, n, e, n_patches, E, BLOCK_E)
        product = tl.dot(text, patches, acc=product, input_precision="ieee")
        if TAIL_N > 0:
            rest = _patch_tile(image_ptr, tail_n, e, n_patches, E, BLOCK_E)
            tail = tl.dot(text, rest, acc=tail, input_precision="ieee")
    if TAIL_N > 0:
        return product, tail
    else:
        return product, product


@triton.jit
def _scales(ptr, row, valid, scales_ptr, first, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """1 / length of rows of ptr, from `prepare` where it ran; something finite for rows that are not there."""
    if scales_ptr is None:
        return _row_scales(ptr, row, valid, E, BLOCK_E)
    else:
        return tl.load(scales_ptr + first + row, mask=valid, other=0.0)


@triton.jit
def _patch_view_scales(
    image_ptr, text_local_ptr, scales_ptr, b, c, c_valid, n_patches, n_classes,
    E: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """1 / length of text rows [BLOCK_C], of the first patches [BLOCK_N] and of the rest [TAIL_N]."""
    images = tl.num_programs(1)
    first = images + images * n_patches + n_classes
    text = _scales(text_local_ptr, c, c_valid, scales_ptr, first, E, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    scale = _scales(image_ptr, n, n < n_patches, scales_ptr, images + b * n_patches, E, BLOCK_E)
    if TAIL_N > 0:
        n = BLOCK_N + tl.arange(0, TAIL_N)
        return text, scale, _scales(image_ptr, n, n < n_patches, scales_ptr, images + b * n_patches, E, BLOCK_E)
    else:
        return text, scale, scale


@triton.jit
def _patch_view(
    patches_ptr, text_local_ptr, scales_ptr, b, c, c_valid, n_patches, n_classes,
    E: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_E: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """cos(L_c, patch_bn), equation 5, in `_products`' two tiles, 0 for patches that are not there.

    The third result is [BLOCK_C]: 0, or NaN where any row holds a NaN or an infinity. Lengths are summed before the
    products, which need the registers, and loaded after them, for `prepare` may still be running.
    """
    image_ptr = patches_ptr + b.to(tl.int64) * n_patches * E
    if scales_ptr is None:
        text_scale, scale, tail_scale = _patch_view_scales(
            image_ptr, text_local_ptr, None, b, c, c_valid, n_patches, n_classes, E, BLOCK_N, TAIL_N, BLOCK_E
        )
    product, tail = _products(image_ptr, text_local_ptr, c, c_valid, n_patches, E, BLOCK_N, TAIL_N, BLOCK_E)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    if scales_ptr is not None:
        text_scale, scale, tail_scale = _patch_view_scales(
            image_ptr, text_local_ptr, scales_ptr, b, c, c_valid, n_patches, n_classes, E, BLOCK_N, TAIL_N, BLOCK_E
        )
    poison = 0.0 * text_scale + tl.sum(0.0 * scale, axis=0)
    cosines = product * text_scale[:, None] * scale[None, :]
    if TAIL_N > 0:
        poison += tl.sum(0.0 * tail_scale, axis=0)
        return cosines, tail * text_scale[:, None] * tail_scale[None, :], poison
    else:
        return cosines, cosines, poison


@triton.jit
def _whole_view(product, cls_ptr, text_global_ptr, scales_ptr, b, c, c_valid, n_patches, n_classes, E: tl.constexpr):
    """cos(G_c, cls_b) [BLOCK_C], equation 4, of `_whole_product`; NaN where either row holds a NaN or an infinity."""
    images = tl.num_programs(1)
    text_scale = _scales(text_global_ptr, c, c_valid, scales_ptr, images + images * n_patches, E, WHOLE_E)
    return product * text_scale * _scales(cls_ptr, b + 0 * c, c_valid, scales_ptr, 0, E, WHOLE_E)


@triton.jit
def _store_patch_tile(ptr, tile, b, c, n, c_valid, n_patches, n_classes):
    """[BLOCK_C, rows] into [B, N, C]."""
    row = (b.to(tl.int64) * n_patches + n[None, :]) * n_classes
    tl.store(ptr + row + c[:, None], tile, mask=c_valid[:, None] & (n < n_patches)[None, :])


@triton.jit
def _choose(cosines, tail, c_valid, n_patches, k, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr):
    """The tiles of `_patch_view` with `NOWHERE` for no patch, `bracket`'s four results, and k as a float, at most N."""
    wanted = tl.minimum(k, n_patches).to(tl.float32)
    guess, stride = first_guess(cosines, tail, n_patches, wanted, TAIL_N)
    x = there(cosines, tl.arange(0, BLOCK_N) < n_patches)
    rest = x
    if TAIL_N > 0:
        rest = there(tail, BLOCK_N + tl.arange(0, TAIL_N) < n_patches)
    low, high, above_low, above_high = bracket(x, rest, guess, stride, c_valid, n_patches, wanted, TAIL_N)
    return x, rest, low, high, above_low, above_high, wanted


@triton.jit(do_not_specialize=SCALARS)
def head(
    cls_ptr,  # [B, E] float16, bfloat16 or float32, as the next three
    patches_ptr,  # [B, N, E]
    text_global_ptr,  # [C, E]
    text_local_ptr,  # [C, E]
    scales_ptr,  # from `prepare`, or None
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
    OVERLAP: tl.constexpr,
):
    """Equations 4, 5, 8 and 9 for BLOCK_C classes of one image; grid (ceil(C / BLOCK_C), B)."""
    b = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_valid = c < n_classes
    n = tl.arange(0, BLOCK_N)
    whole = _whole_product(cls_ptr, text_global_ptr, b, c, c_valid, E)
    cosines, tail, poison = _patch_view(
        patches_ptr, text_local_ptr, scales_ptr, b, c, c_valid, n_patches, n_classes,
        E, BLOCK_N, TAIL_N, BLOCK_E, OVERLAP,
    )  # fmt: skip
    whole = _whole_view(whole, cls_ptr, text_global_ptr, scales_ptr, b, c, c_valid, n_patches, n_classes, E)
    if patch_scores_ptr is not None:
        _store_patch_tile(patch_scores_ptr, cosines, b, c, n, c_valid, n_patches, n_classes)
        if TAIL_N > 0:
            tail_n = BLOCK_N + tl.arange(0, TAIL_N)
            _store_patch_tile(patch_scores_ptr, tail, b, c, tail_n, c_valid, n_patches, n_classes)
    x, rest, low, high, above_low, above_high, wanted = _choose(cosines, tail, c_valid, n_patches, k, BLOCK_N, TAIL_N)
    exact = above_low == wanted
    total = sum_above(x, rest, tl.where(exact, low, high), TAIL_N)
    total += tl.where(exact, 0.0, (wanted - above_high) * high)
    alpha = alpha_bits.to(tl.float32, bitcast=True)
    at = scores_ptr + b.to(tl.int64) * n_classes + c
    tl.store(at, alpha * whole + (1.0 - alpha) * tl.div_rn(total, wanted) + poison, mask=c_valid)


@triton.jit
def _shares(x, low, high, above_low, above_high, k):
    """1 for a chosen patch, 0 for another; patches tied at the k-th place share what is left of k evenly."""
    share = tl.div_rn(k - above_high, tl.maximum(above_low - above_high, 1.0))
    return tl.where(x > high[:, None], 1.0, tl.where(x > low[:, None], share[:, None], 0.0))


@triton.jit(do_not_specialize=SCALARS)
def head_shares(
    patches_ptr,  # [B, N, E] float16, bfloat16 or float32, as the next
    text_local_ptr,  # [C, E]
    scales_ptr,  # from `prepare`
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
    OVERLAP: tl.constexpr,
):
    """Gradient of the loss by every cosine of equation 5, through equations 8 and 9: zero but for the chosen patches.

    The choice is made again from the same tiles in the same order as in `head`, hence it is the same choice.
    """
    b = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_valid = c < n_classes
    n = tl.arange(0, BLOCK_N)
    cosines, tail, _ = _patch_view(
        patches_ptr, text_local_ptr, scales_ptr, b, c, c_valid, n_patches, n_classes,
        E, BLOCK_N, TAIL_N, BLOCK_E, OVERLAP,
    )  # fmt: skip
    x, rest, low, high, above_low, above_high, wanted = _choose(cosines, tail, c_valid, n_patches, k, BLOCK_N, TAIL_N)
    alpha = alpha_bits.to(tl.float32, bitcast=True)
    gradient = tl.load(gradient_ptr + b.to(tl.int64) * n_classes + c, mask=c_valid, other=0.0)
    weight = (tl.div_rn(1.0 - alpha, wanted) * gradient)[:, None]
    shares = weight * _shares(x, low, high, above_low, above_high, wanted)
    _store_patch_tile(shares_ptr, shares, b, c, n, c_valid, n_patches, n_classes)
    if TAIL_N > 0:
        shares = weight * _shares(rest, low, high, above_low, above_high, wanted)
        n = BLOCK_N + tl.arange(0, TAIL_N)
        _store_patch_tile(shares_ptr, shares, b, c, n, c_valid, n_patches, n_classes)
