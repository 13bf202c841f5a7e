"""Pictures to network input: antialiased bicubic resize, (x / 255 - mean) / std, channel first.

`preprocess_spec` is the specification; the compiled kernel gives the same numbers to the last bit. It writes
the result in one pass: rows get their final width, a ring of them gives the output rows, a table of 256 entries per
channel normalises. `choose` is the one place that decides between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from numbers import Integral
from typing import Any

import numpy as np
from PIL import Image

from hpdval_edge.kernels import compiled
from hpdval_edge.kernels.compiled import _cpu
from hpdval_edge.kernels.preprocess_spec import (
    Geometry,
    Source,
    numpy_normalize,
    pillow_resize,
    pillow_resize_normalize,
    plan_geometry,
)

MODES = ("squash", "crop")
LAYOUTS = ("rgb", "bgr", "nv12")
DTYPES = ("float32", "float16")
# Sides of a result; an array of the largest has 805 MB.
MAX_SIZE = 8192
# Sides of a picture that the compiled kernel takes, those of a JPEG.
MAX_SIDE = 65535
# Pixels of a whole picture after resizing in mode "crop", as many as Pillow reads of a file: 2 x 89,478,485.
MAX_PIXELS = 178_956_970
# Pillow keeps large pictures in several pieces; copies of this many bytes stay in the cache until they are read.
BAND_BYTES = 1 << 19


@dataclass(frozen=True, slots=True)
class Job:
    """Checked arguments. ``table`` [3, 256] is what each level of R, G and B becomes, None to keep uint8 pixels."""

    source: Source
    layout: str
    mode: str
    geometry: Geometry
    table: np.ndarray | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    out: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the result."""
        size = self.geometry.out_height, self.geometry.out_width
        return (*size, 3) if self.table is None else (3, *size)


def _run_cpu(job: Job) -> np.ndarray:
    g = job.geometry
    out = job.out
    if out is None:
        out = np.empty(job.shape, np.uint8 if job.table is None else job.table.dtype)
    isa = compiled.instruction_set(_cpu.preprocess_isas())
    picture = _cpu.PreprocessPicture(_plan(g), isa, out, job.table, job.layout == "bgr")
    if job.layout == "nv12":
        picture.push_nv12(*job.source)
    elif isinstance(job.source, np.ndarray):
        picture.push(job.source)
    else:
        _push_image(picture, job.source, _plan(g))
    return out


@lru_cache(maxsize=32)
def _plan(g: Geometry) -> Any:
    return _cpu.PreprocessPlan(**asdict(g))


def _push_image(picture: Any, image: Image.Image, plan: Any) -> None:
    """Hand over Pillow's own memory where it is in one piece, else copies of a few rows at a time."""
    image.load()
    if _push_arrow(picture, image):
        return
    rows = max(BAND_BYTES // (4 * image.width) // 4 * 4, 4)
    for top in range(0, plan.end_row, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        if not _push_arrow(picture, band):
            picture.push(np.asarray(band))


def _push_arrow(picture: Any, image: Image.Image) -> bool:
    try:
        capsules = image.__arrow_c_array__()
    except (AttributeError, ValueError):
        # Pillow before 11.2, or a picture in several pieces.
        return False
    return picture.push_arrow(*capsules)


def _cpu_refuses(job: Job) -> str | None:
    longest = max(job.geometry.width, job.geometry.height)
    if longest > MAX_SIDE:
        return f"it takes sides of at most {MAX_SIDE} pixels, not {longest}"
    return compiled.missing()


def _run_pillow(job: Job) -> np.ndarray:
    size = (job.geometry.out_height, job.geometry.out_width)
    if job.table is None:
        return pillow_resize(job.source, size, mode=job.mode, layout=job.layout)
    options = {"mode": job.mode, "layout": job.layout, "dtype": job.table.dtype}
    result = pillow_resize_normalize(job.source, size, mean=job.mean, std=job.std, **options)
    if job.out is None:
        return result
    job.out[:] = result
    return job.out


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation: ``run(job)`` gives the result; ``refuses(job)`` says why it cannot, or None."""

    name: str
    run: Callable[[Job], np.ndarray]
    refuses: Callable[[Job], str | None]


BACKENDS = (  # fastest first; pillow, the specification, accepts everything
    Backend("cpu", _run_cpu, _cpu_refuses),
    Backend("pillow", _run_pillow, lambda job: None),
)


def choose(job: Job, backend: str) -> Backend:
    """The first backend that takes ``job``; a named one is never replaced.

    Raises:
        ValueError: The backend is unknown or refuses, the message gives its reason; or HPEDGE_ISA asks for a compiled
            kernel that is not there.
    """
    names = ("auto", *(b.name for b in BACKENDS))
    if backend not in names:
        raise ValueError(f"backend must be one of {', '.join(names)}, got {backend!r}")
    for candidate in BACKENDS:
        if backend in ("auto", candidate.name):
            reason = candidate.refuses(job)
            if reason is None:
                return candidate
            if backend != "auto":
                raise ValueError(f"backend {backend!r} cannot take this picture: {reason}")
    raise AssertionError("pillow takes every picture")


def _check_pixels(pixels: object, layout: str) -> tuple[int, int]:
    """Width and height of a source of `resize`."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "nv12":
        return _check_nv12(pixels)
    if isinstance(pixels, Image.Image):
        if pixels.mode != "RGB" or layout != "rgb":
            raise ValueError(
                f"an image must have mode RGB and layout 'rgb', got {pixels.mode} and {layout!r}; "
                "read it with open_rgb or convert it with image.convert('RGB')"
            )
        height, width = pixels.height, pixels.width
    else:
        if not isinstance(pixels, np.ndarray):
            raise TypeError(f"pixels must be a numpy array or a PIL image, got {type(pixels).__name__}")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"pixels must be uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
        height, width = pixels.shape[:2]
    if not width or not height:
        raise ValueError(f"pixels must hold at least one pixel, got {height} rows of {width}")
    return width, height


def _check_nv12(planes: object) -> tuple[int, int]:
    if not isinstance(planes, tuple) or len(planes) != 2 or not all(isinstance(p, np.ndarray) for p in planes):
        raise TypeError(
            f"nv12 pixels must be a tuple of two numpy arrays, luma and chroma, got {type(planes).__name__}"
        )
    luma, chroma = planes
    even = luma.ndim == 2 and luma.size and luma.shape[0] % 2 == luma.shape[1] % 2 == 0
    if not even or luma.dtype != np.uint8:
        raise ValueError(f"luma must be uint8 [H, W], H and W even and not 0, got {luma.dtype} {list(luma.shape)}")
    height, width = luma.shape
    if chroma.dtype != np.uint8 or chroma.shape != (height // 2, width):
        raise ValueError(
            f"chroma must be uint8 [H / 2, W] = [{height // 2}, {width}], got {chroma.dtype} {list(chroma.shape)}"
        )
    return width, height


def _checked_size(size: object) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, Integral) else size
    if (
        not isinstance(sides, (tuple, list))
        or len(sides) != 2
        or not all(isinstance(s, Integral) and not isinstance(s, bool) and 1 <= s <= MAX_SIZE for s in sides)
    ):
        raise ValueError(
            f"size must be an integer or (height, width), each at least 1 and at most {MAX_SIZE}, got {size!r}"
        )
    return int(sides[0]), int(sides[1])


def checked_geometry(width: int, height: int, size: object, mode: object) -> Geometry:
    """Where pixels go; ValueError where size or mode is none of what `resize` takes, or the cover is too large."""
    sides = _checked_size(size)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    geometry = plan_geometry(width, height, sides, mode)
    if geometry.resized_width * geometry.resized_height > MAX_PIXELS:
        raise ValueError(
            f"a picture of {width} x {height} pixels is too long for mode 'crop': resized it would have "
            f"{geometry.resized_width} x {geometry.resized_height}; use mode 'squash'"
        )
    return geometry


@lru_cache(maxsize=16)
def _table(mean: tuple[float, ...], std: tuple[float, ...], dtype: str) -> np.ndarray:
    """What `numpy_normalize` makes of every level, [3, 256]."""
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (1, 256, 3))
    return np.ascontiguousarray(numpy_normalize(levels, mean, std, dtype)[:, 0])


def checked_table(mean: object, std: object, dtype: object) -> tuple[tuple[float, ...], tuple[float, ...], np.ndarray]:
    """mean, std and what they make of every level, dtype [3, 256]; ValueError where they are not as wanted."""
    try:
        centre, spread = (np.asarray(x, np.float32) for x in (mean, std))
        good = centre.shape == spread.shape == (3,) and np.isfinite([centre, spread]).all() and (spread > 0).all()
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"mean and std must hold 3 finite numbers each, std positive, got {mean} and {std}")
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name}")
    centre, spread = tuple(centre.tolist()), tuple(spread.tolist())
    return centre, spread, _table(centre, spread, name)


def _job(pixels: Source, size: object, mode: str, layout: str, normalisation: tuple | None) -> Job:
    width, height = _check_pixels(pixels, layout)
    geometry = checked_geometry(width, height, size, mode)
    if isinstance(pixels, np.ndarray) and (pixels.strides[2] != 1 or pixels.strides[1] != 3):
        pixels = np.ascontiguousarray(pixels)
    elif isinstance(pixels, tuple):
        pixels = tuple(p if p.strides[1] == 1 else np.ascontiguousarray(p) for p in pixels)
    mean, std, table = normalisation or ((), (), None)
    return Job(pixels, layout, mode, geometry, table, mean, std)


def _check_out(out: object, job: Job) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, got {type(out).__name__}")
    if out.shape != job.shape or out.dtype != job.table.dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(
            f"out must be {job.table.dtype} {list(job.shape)}, C-contiguous and writable, got {out.dtype} "
            f"{list(out.shape)} with strides {list(out.strides)}, writable: {out.flags.writeable}"
        )


def resize(
    pixels: Source,
    size: int | tuple[int, int],
    *,
    mode: str = "squash",
    layout: str = "rgb",
    backend: str = "auto",
) -> np.ndarray:
    """Resize a picture: Pillow's antialiased bicubic, the same levels from every backend.

    Args:
        pixels: uint8 [H, W, 3], rows with any stride, read-only or not; a PIL image of mode RGB; for "nv12" a tuple of
            luma uint8 [H, W] and chroma uint8 [H / 2, W], H and W even, see `preprocess_spec.numpy_nv12_to_rgb`.
        size: One side for a square, or (height, width); 1 to 8192.
        mode: "squash" fills ``size`` whatever the picture's shape; "crop" keeps the shape, covers ``size`` and cuts off
            what stands out, equally on both sides.
        layout: Order of the input's channels, "rgb", "bgr" or "nv12".
        backend: "auto" (the first of `BACKENDS` that can), "cpu" (C++) or "pillow".

    Returns:
        uint8 [height, width, 3] RGB, contiguous and writable.

    Raises:
        TypeError: ``pixels`` is neither an array, nor an image, nor a tuple of two arrays for "nv12".
        ValueError: A shape, a dtype or an option is not as above, the named backend cannot run, or HPEDGE_ISA names
            what this machine cannot run, see `compiled.instruction_set`.
    """
    job = _job(pixels, size, mode, layout, None)
    return choose(job, backend).run(job)


def resize_normalize(
    pixels: Source,
    size: int | tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mode: str = "squash",
    dtype: np.dtype | str = "float32",
    layout: str = "rgb",
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> np.ndarray:
    """Resize a picture as `resize` does and compute (x / 255 - mean) / std in float32, channel first, in one pass.

    Args:
        mean: 3 numbers, R, G, B, for levels in [0, 1].
        std: 3 positive numbers.
        dtype: "float32", or "float16", rounded from it.
        out: Where to write, such as one row of a batch: dtype [3, height, width], C-contiguous, writable; default new.

    The others are those of `resize`, and so are the errors.

    Returns:
        dtype [3, height, width], contiguous; ``out`` where it was given.
    """
    job = _job(pixels, size, mode, layout, checked_table(mean, std, dtype))
    if out is not None:
        _check_out(out, job)
        job = replace(job, out=out)
    return choose(job, backend).run(job)
