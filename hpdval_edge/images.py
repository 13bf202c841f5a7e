"""Pictures from disk to pixels: the one reading, resizing and normalising of training and runtime."""

import contextlib
import glob
import heapq
import io
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.kernels import preprocess
from hpdval_edge.kernels.preprocess_spec import numpy_normalize

try:
    from PIL import AvifImagePlugin
except ImportError:
    AvifImagePlugin = None

# Names of one folder that are held at once while it is walked in sorted order, about 6 MB.
NAMES_HELD = 65536
# More pixels than this are refused before anything is decoded: 2 x 89,478,485, where Pillow's own error limit lies.
MAX_PIXELS = 178_956_970
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_OTHER_SUFFIXES = (".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".avif")
IMAGE_SUFFIXES = frozenset(_JPEG_SUFFIXES + _OTHER_SUFFIXES)
# Only formats that hold pixels: Pillow would otherwise hand EPS files to an outside program. JPEG opens MPO as well.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM") + ("AVIF",) * bool(AvifImagePlugin)
# Everything that Pillow's decoders were seen to raise on damaged files; it has no base class of its own for them.
DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError, ArithmeticError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)
# What a model's image input may be: normalised and channel first, or the levels themselves, uint8 [B, S, S, 3].
INPUTS = ("float32", "float16", "uint8")
# EXIF orientation -> what makes the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION_TAG = 0x0112
# Pillow warns while it parses headers, and silencing a warning swaps a list that all threads share, so one at a time.
_HEADER_LOCK = threading.Lock()
# Formats whose pixel decoding never warns, so that threads may decode them side by side.
_QUIET_FORMATS = frozenset(("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "PPM"))


def open_rgb(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Read a picture as upright 8-bit RGB.

    With ``at_least``, a side in pixels, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is faster, where
    both sides keep that much; the pixels are not quite those of a resized picture (docs/preprocess.md).

    EXIF orientation is applied; an unreadable EXIF block counts as "upright". Transparent pixels are laid on white.
    16-bit grey is scaled by its full range (65535 -> 255). Float pixels are taken as [0, 1] when all lie there, else as
    [0, 255]. Of an animation, the first frame counts.

    Returns:
        Image of mode RGB, pixels loaded, file closed.

    Raises:
        BadData: missing, empty, not a picture, truncated, too large or unreadable; the message is ``path: reason``.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be a str or a Path, got {type(path).__name__}")
    with _one_sentence(path):
        _check_is_file(path)
        with open(path, "rb") as file:
            return _upright_rgb(file, MAX_PIXELS, at_least)


def decode_rgb(data: bytes, name: str, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """What ``open_rgb`` makes of a file, from the file's content; more than ``max_pixels`` are never decoded.

    Raises:
        BadData: as ``open_rgb``; ``name`` stands for the path.
    """
    with _one_sentence(name):
        if not data:
            raise BadData("an empty file (0 bytes)")
        return _upright_rgb(io.BytesIO(data), max_pixels, at_least)


@contextlib.contextmanager
def _one_sentence(name: str | Path) -> Iterator[None]:
    """Inside, all that reading a picture may raise is BadData: ``name: reason``."""
    try:
        yield
    except BadData as error:
        raise BadData(f"{name}: {error}") from error.__cause__
    except UnidentifiedImageError as error:
        names = ", ".join(format_ for format_ in FORMATS if format_ != "DIB")
        raise BadData(f"{name}: not a picture in a format that can be read ({names})") from error
    except PermissionError as error:
        raise BadData(f"{name}: no permission to read it") from error
    except Image.DecompressionBombError as error:
        pixels, limit = (*re.findall(r"\d+", str(error)), "?", "?")[:2]
        raise BadData(f"{name}: {pixels} pixels, more than the limit of {limit}") from error
    except DECODE_ERRORS as error:
        raise BadData(f"{name}: damaged or truncated ({str(error) or type(error).__name__})") from error


def _upright_rgb(file: BinaryIO, max_pixels: int, at_least: int | None) -> Image.Image:
    image, orientation = _decode(file, max_pixels, at_least)
    image = _to_rgb(image)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _check_is_file(path: str | Path) -> None:
    """Raise BadData with the reason alone unless ``path`` is a regular, non-empty file."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadData("there is no such file") from error
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise BadData(f"not a usable file name ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise BadData("a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):
        raise BadData("not a regular file")
    if status.st_size == 0:
        raise BadData("an empty file (0 bytes)")


def _decode(file: BinaryIO, max_pixels: int, at_least: int | None) -> tuple[Image.Image, int]:
    """Return the decoded picture in its own mode, and its EXIF orientation (1 when it has none)."""
    with _HEADER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(file, formats=FORMATS)
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise BadData(f"{pixels} pixels, more than the limit of {max_pixels}")
        if at_least:
            # Only the JPEG decoder heeds it.
            image.draft(None, (at_least, at_least))
        if image.format not in _QUIET_FORMATS:
            image.load()
    image.load()
    with _HEADER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
        except DECODE_ERRORS:
            orientation = 1
    return image, orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode that Pillow decodes to RGB; BadData names a mode or a range that has no meaning as colour."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_wide_to_8bit(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _wide_to_8bit(image: Image.Image) -> np.ndarray:
    """Scale grey pixels of 16-bit, 32-bit or float modes to uint8 [H, W], rounded to nearest."""
    grey = np.asarray(image).astype(np.float64)
    low, high = float(grey.min()), float(grey.max())
    # Pillow opens 16-bit PGM, and in some versions PNG, as 32-bit "I", so that mode has the 16-bit range too.
    full = 65535.0 if image.mode != "F" else 1.0 if high <= 1 else 255.0
    # Written so that NaN fails.
    if not (low >= 0 and high <= full):
        raise BadData(f"mode {image.mode} pixels from {low:g} to {high:g}, expected 0 to {full:g}")
    grey = np.rint(grey * (255 / full)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[np.asarray(image) == transparent] = 255
    return grey


def find_images(paths: Sequence[str | Path]) -> Iterator[Path]:
    """Yield the pictures that files, folders and glob patterns name, each once, in the order of the arguments.

    A file is taken whatever its suffix. A folder, given or matched by a pattern, is searched recursively in sorted
    order for IMAGE_SUFFIXES, hidden names left out. A pattern (``*``, ``?``, ``[``, ``**``) yields files with
    IMAGE_SUFFIXES. Folders are listed while they are iterated, see ``walk_images``; what patterns match is held.

    Raises:
        UsageError: at once, no arguments, or an argument that matches nothing; it is named.
        BadData: a folder that may not be listed, when its turn comes.
    """
    if isinstance(paths, (str, Path)):
        raise TypeError(f"paths must be a sequence of paths, got the single {type(paths).__name__} {str(paths)!r}")
    if not paths:
        raise UsageError("no pictures were named; give files, folders or patterns such as 'photos/*.jpg'")
    places: dict[Path, None] = {}
    for argument in paths:
        matches = _match(argument)
        if not any(_holds_picture(place) for place in matches):
            kind = "holds no picture" if os.path.isdir(argument) else "matches no file or folder with pictures"
            raise UsageError(f"{str(argument)!r} {kind} ({' '.join(sorted(IMAGE_SUFFIXES))})")
        places.update(dict.fromkeys(matches))
    return _pictures_of(places)


def _match(argument: str | Path) -> list[Path]:
    """Files and folders that an argument names."""
    # An existing file may carry [ or * in its name, so it is asked for before the pattern is read.
    if os.path.exists(argument):
        return [Path(argument)]
    names = sorted(glob.glob(str(argument), recursive=True))
    return [Path(name) for name in names if os.path.isdir(name) or is_image_name(name)]


def _holds_picture(place: Path) -> bool:
    return next(walk_images(place), None) is not None if place.is_dir() else True


def _pictures_of(places: dict[Path, None]) -> Iterator[Path]:
    """The pictures of files and folders, without those that an earlier one has given."""
    files: set[Path] = set()
    folders: set[Path] = set()
    for place in places:
        is_folder = place.is_dir()
        for picture in walk_images(place) if is_folder else (place,):
            above = (folder for folder in picture.parents if folder in folders)
            if picture not in files and not any(_gives(folder, picture) for folder in above):
                yield picture
        if is_folder:
            folders.add(place)
        else:
            files.add(place)


def _gives(folder: Path, picture: Path) -> bool:
    """Whether ``walk_images(folder)`` yields ``picture``, which lies below it."""
    below = picture.relative_to(folder).parts
    if any(part.startswith(".") for part in below) or not is_image_name(picture.name):
        return False
    return not any(folder.joinpath(*below[:depth]).is_symlink() for depth in range(1, len(below)))


def is_image_name(name: str) -> bool:
    """Whether the last part of ``name`` is not hidden and ends in one of IMAGE_SUFFIXES, in either case."""
    last = os.path.basename(name)
    return not last.startswith(".") and os.path.splitext(last)[1].lower() in IMAGE_SUFFIXES


def images_below(folder: Path) -> list[Path]:
    """What ``walk_images`` yields."""
    return list(walk_images(folder))


def walk_images(folder: Path) -> Iterator[Path]:
    """Yield the pictures in ``folder`` and below it, sorted by path, hidden names left out.

    Links to folders are not followed. Memory holds at most NAMES_HELD names for each folder on the way down, whatever
    the number of pictures: a larger folder is listed once for each NAMES_HELD of its names.

    Raises:
        BadData: a folder that may not be listed, when its turn comes.
    """
    after = ""
    while True:
        names = _names_after(folder, after)
        for name, is_folder in names:
            if is_folder:
                yield from walk_images(folder / name)
            else:
                yield folder / name
        if len(names) < NAMES_HELD:
            return
        after = names[-1][0]
        # Not beside the next ones.
        del names


def _names_after(folder: Path, after: str) -> list[tuple[str, bool]]:
    """The first NAMES_HELD of the pictures and folders in ``folder`` whose names come after ``after``, sorted.

    Each with whether it is a folder.
    """
    try:
        with os.scandir(folder) as entries:
            found = ((entry.name, entry.is_dir()) for entry in entries if entry.name > after and _is_wanted(entry))
            return heapq.nsmallest(NAMES_HELD, found)
    except OSError as error:
        raise BadData(f"{error.filename}: the folder cannot be listed ({error.strerror})") from error


def _is_wanted(entry: os.DirEntry) -> bool:
    if entry.is_dir():
        return not entry.name.startswith(".") and not entry.is_symlink()
    return is_image_name(entry.name)


def resize_squash(image: Image.Image, size: int) -> np.ndarray:
    """Resize an RGB picture to a square, whatever its shape: Pillow's antialiased bicubic.

    Returns:
        uint8 [size, size, 3], contiguous and writable.
    """
    if image.mode != "RGB":
        raise ValueError(f"image must have mode RGB, got {image.mode}; read it with open_rgb")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    return preprocess.resize(image, size)


def model_input(
    pictures: Sequence[Image.Image | np.ndarray], size: int, mean: Sequence[float], std: Sequence[float], kind: str
) -> np.ndarray:
    """A batch as a model takes it: each picture's ``resize_squash``, and unless uint8 is asked for its ``normalise``.

    Args:
        pictures: B of them, RGB images or uint8 [H, W, 3].
        kind: one of INPUTS.

    Returns:
        float32 or float16 [B, 3, size, size], or uint8 [B, size, size, 3].
    """
    batch = np.empty((len(pictures), *input_shape(size, kind)), kind)
    for picture, row in zip(pictures, batch, strict=True):
        model_input_into(picture, row, size, mean, std)
    return batch


def input_shape(size: int, kind: str) -> tuple[int, int, int]:
    """Of one picture in a ``model_input`` of ``kind``."""
    return (size, size, 3) if kind == "uint8" else (3, size, size)


def model_input_into(
    picture: Image.Image | np.ndarray, row: np.ndarray, size: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Write one picture into its row of a ``model_input``, whose kind is the row's dtype."""
    if row.dtype == np.uint8:
        row[:] = preprocess.resize(picture, size)
    else:
        preprocess.resize_normalize(picture, size, mean=mean, std=std, dtype=row.dtype, out=row)


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Compute (x / 255 - mean) / std per channel, channel first.

    Args:
        pixels: uint8 [..., H, W, 3].
        mean: 3 numbers, for pixels in [0, 1].
        std: 3 positive numbers, for pixels in [0, 1].

    Returns:
        float32 [..., 3, H, W], contiguous.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels must be uint8 [..., H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    centre, spread = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if centre.shape != (3,) or spread.shape != (3,) or not (spread > 0).all():
        raise ValueError(f"mean and std must hold 3 numbers each, std positive, got {mean} and {std}")
    return numpy_normalize(pixels, mean, std)
