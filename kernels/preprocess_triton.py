"""Pillow's antialiased resize for NVIDIA GPUs, one pass a launch; `preprocess_gpu.py` is what the package imports.

`preprocess_spec.py` is the specification. The arithmetic is Pillow's: weights rounded to 22 bits, 32-bit sums, 8 bits
between the passes; so the levels are the same to the last one.
"""

import triton
import triton.language as tl

# Fraction bits of a weight: 32, less 8 for the level and 2 for weights that overshoot.
PRECISION = tl.constexpr(22)
LINES = 16
OUTPUTS = 32


@triton.jit
def _level(sums, shift: tl.constexpr):
    """Fixed point to 0..255, rounded."""
    return tl.minimum(tl.maximum(((sums >> (shift - 1)) + 1) >> 1, 0), 255)


@triton.jit
def _nv12(luma_ptr, chroma_ptr, row, column, channel, width, mask):
    """One channel of BT.601 limited range, as `preprocess_spec.numpy_nv12_to_rgb`."""
    y = tl.load(luma_ptr + row * width + column, mask=mask, other=0).to(tl.int32)
    pair = chroma_ptr + (row // 2) * width + (column // 2) * 2
    u = tl.load(pair, mask=mask, other=0).to(tl.int32) - 128
    v = tl.load(pair + 1, mask=mask, other=0).to(tl.int32) - 128
    by_u = tl.where(channel == 0, 0, tl.where(channel == 1, -409993, 2116026))
    by_v = tl.where(channel == 0, 1673527, tl.where(channel == 1, -852492, 0))
    return _level(1220542 * tl.maximum(y - 16, 0) + by_u * u + by_v * v, 20)


@triton.jit(do_not_specialize=["n_lines", "n_outputs", "n_taps", "height", "width", "first_line"])
def resize_pass(
    pixels_ptr,  # uint8 [B, H, W, 3]; for NV12 luma [B, H, W]
    chroma_ptr,  # uint8 [B, H / 2, W], or None
    starts_ptr,  # [O] int32: the first pixel that enters each output
    weights_ptr,  # [O, T] int32, zero where a window is shorter
    table_ptr,  # [3, 256] float32 or float16: what becomes of each level, or None to keep uint8
    out_ptr,  # uint8 [B, H', W', 3], or with a table its dtype [B, 3, H', W']
    n_lines,  # rows of a horizontal pass, columns of a vertical one
    n_outputs,  # O
    n_taps,  # T
    height,
    width,
    first_line,  # the line of the input that the output's line 0 is made of
    VERTICAL: tl.constexpr,
    BGR: tl.constexpr,
    LINES: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """One pass along rows or columns; grid (ceil(n_lines / LINES), ceil(O / OUTPUTS), 3 B)."""
    channel = tl.program_id(2) % 3
    image = (tl.program_id(2) // 3).to(tl.int64)
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)[:, None]
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)[None, :]
    there = (line < n_lines) & (output < n_outputs)
    start = tl.load(starts_ptr + output, mask=output < n_outputs, other=0)
    side = height if VERTICAL else width
    sums = tl.zeros([LINES, OUTPUTS], dtype=tl.int32)
    for tap in tl.range(0, n_taps):
        weight = tl.load(weights_ptr + output * n_taps + tap, mask=output < n_outputs, other=0)
        # In 64 bits, for a frame may have more than 2^31 bytes.
        along = tl.minimum(start + tap, side - 1).to(tl.int64)
        across = (line + first_line).to(tl.int64)
        row, column = (along, across) if VERTICAL else (across, along)
        if chroma_ptr is None:
            source = 2 - channel if BGR else channel
            at = pixels_ptr + image * height * width * 3 + (row * width + column) * 3 + source
            level = tl.load(at, mask=there, other=0).to(tl.int32)
        else:
            luma_ptr = pixels_ptr + image * height * width
            colours_ptr = chroma_ptr + image * (height // 2) * width
            level = _nv12(luma_ptr, colours_ptr, row, column, channel, width, there)
        sums += level * weight
    level = _level(sums, PRECISION)
    rows, columns = (n_outputs, n_lines) if VERTICAL else (n_lines, n_outputs)
    row, column = (output, line) if VERTICAL else (line, output)
    if table_ptr is None:
        at = out_ptr + image * rows * columns * 3 + (row * columns + column) * 3 + channel
        tl.store(at, level.to(tl.uint8), mask=there)
    else:
        at = out_ptr + (image * 3 + channel) * rows * columns + row * columns + column
        tl.store(at, tl.load(table_ptr + channel * 256 + level), mask=there)
