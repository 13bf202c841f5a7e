"""Odd pictures become upright RGB or one sentence; arguments become files; resizing and normalising are exact."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hpdval_edge import images
from hpdval_edge.errors import BadData
from hpdval_edge.images import IMAGE_SUFFIXES, ORIENTATION_TAG, find_images, normalise, open_rgb, resize_squash

# Four quarters of different colours, so that every rotation and mirroring shows.
QUARTERS = np.zeros((32, 48, 3), np.uint8)
QUARTERS[:16, :24], QUARTERS[:16, 24:], QUARTERS[16:, :24], QUARTERS[16:, 24:] = (
    (250, 0, 0),
    (0, 250, 0),
    (0, 0, 250),
    (250, 250, 0),
)


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    image = open_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + struct.pack(">I", 1) + b"IDAT"


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "gif"])
def test_exact_formats(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(Image.fromarray(QUARTERS), tmp_path / f"a.{suffix}", **options)
    np.testing.assert_array_equal(pixels(path), QUARTERS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_turns_the_pixels(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(QUARTERS), tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    got = pixels(path)
    np.testing.assert_array_equal(got, expected)
    if orientation == 6:
        # Taken with the camera turned: the stored left column is the top row, from right to left.
        assert got.shape == (48, 32, 3)
        assert got[2, 2, 2] > 200 and got[2, -3, 0] > 200


def test_broken_exif_counts_as_upright(tmp_path):
    path = saved(Image.fromarray(QUARTERS), tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x00\x01")
    assert pixels(path).shape == (32, 48, 3)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_modes(tmp_path, mode):
    image = Image.fromarray(QUARTERS).convert(mode)
    np.testing.assert_array_equal(pixels(saved(image, tmp_path / "a.png")), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_has_the_colours_of_its_rgb_source(tmp_path):
    # Pillow stores CMYK JPEG inverted with an Adobe marker, as Photoshop does.
    path = saved(Image.fromarray(QUARTERS).convert("CMYK"), tmp_path / "a.jpg", quality=95)
    assert b"Adobe" in path.read_bytes()
    assert np.abs(pixels(path)[8:12, 8:12].astype(int) - QUARTERS[8, 8]).max() < 12
    assert np.abs(pixels(path)[24:28, 36:40].astype(int) - QUARTERS[24, 36]).max() < 12


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_by_the_full_range(tmp_path, suffix):
    grey = np.array([[0, 257, 1000, 32896, 65535]], np.uint16)
    path = saved(Image.fromarray(grey), tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(pixels(path)[0, :, 0], [0, 1, 4, 128, 255])


def test_16_bit_pgm_is_scaled_by_the_full_range(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 3 1 65535\n" + struct.pack(">HHH", 0, 32896, 65535))
    np.testing.assert_array_equal(pixels(path)[0, :, 1], [0, 128, 255])


@pytest.mark.parametrize(("values", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 2.0, 255.0], [0, 2, 255])])
def test_float_tiff(tmp_path, values, expected):
    path = saved(Image.fromarray(np.array([values], np.float32)), tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels(path)[0, :, 0], expected)


@pytest.mark.parametrize("values", [[0.0, np.nan], [-1.0, 1.0], [0.0, 1e6]])
def test_float_tiff_without_a_meaning_is_refused(tmp_path, values):
    path = saved(Image.fromarray(np.array([values], np.float32)), tmp_path / "a.tif")
    with pytest.raises(BadData, match=r"mode F pixels from .* expected 0 to"):
        open_rgb(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P bytes", "RGB key", "L key"])
def test_transparent_pixels_are_white(tmp_path, mode):
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (4, 2), (0, 0, 0, 255) if mode == "RGBA" else (0, 255))
        image.putpixel((0, 0), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
        options = {}
    else:
        image = Image.new(mode.split()[0], (4, 2), 1 if mode != "RGB key" else (1, 1, 1))
        image.putpixel((0, 0), 0 if mode != "RGB key" else (0, 0, 9))
        if image.mode == "P":
            image.putpalette([9, 9, 9, 1, 1, 1])
        options = {"transparency": {"P": 0, "P bytes": b"\x00\xff", "RGB key": (0, 0, 9), "L key": 0}[mode]}
    got = pixels(saved(image, tmp_path / "a.png", **options))
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[1:].max() <= 1


def test_16_bit_grey_with_a_transparent_level(tmp_path):
    # Pillow writes no such file, so the chunk is put in front of the pixels by hand.
    data = saved(Image.fromarray(np.array([[300, 65535, 0]], np.uint16)), tmp_path / "a.png").read_bytes()
    chunk = b"tRNS" + struct.pack(">H", 300)
    at = data.index(b"IDAT") - 4
    (tmp_path / "b.png").write_bytes(
        data[:at] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]
    )
    np.testing.assert_array_equal(pixels(tmp_path / "b.png")[0, :, 0], [255, 255, 0])


def broken_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.jpg"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("hello, this is no picture")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("jpeg", "png"):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        whole = io.BytesIO()
        Image.fromarray(noise).save(whole, kind)
        path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    elif kind == "bomb":
        path.write_bytes(png_header(20_000, 20_000))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "there is no such file"),
        ("empty", "an empty file (0 bytes)"),
        ("text", "not a picture in a format that can be read (JPEG, PNG,"),
        ("folder", "a folder, not a picture"),
        ("pipe", "not a regular file"),
        ("jpeg", "damaged or truncated ("),
        ("png", "damaged or truncated ("),
        ("bomb", "400000000 pixels, more than the limit of 178956970"),
    ],
)
def test_broken_files_are_one_sentence(tmp_path, kind, reason):
    path = broken_file(tmp_path, kind)
    with pytest.raises(BadData) as caught:
        open_rgb(path)
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert "\n" not in str(caught.value)


def test_limit_on_pixels_is_ours(tmp_path, monkeypatch):
    path = saved(Image.fromarray(QUARTERS), tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 32 * 48 - 1)
    with pytest.raises(BadData, match="1536 pixels, more than the limit of 1535"):
        open_rgb(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 32 * 48)
    assert pixels(path).shape == (32, 48, 3)


def test_content_is_read_as_the_file_is(tmp_path):
    """Planted mistakes: the limit of `open_rgb` used, so that a caller's own lets anything through; EXIF left out."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.fromarray(QUARTERS), tmp_path / "a.png", exif=exif)
    data = path.read_bytes()
    np.testing.assert_array_equal(np.asarray(images.decode_rgb(data, "a.png", 32 * 48)), pixels(path))
    for content, reason in {
        data: "upload: 1536 pixels, more than the limit of 1535",
        b"": "upload: an empty file (0 bytes)",
        data[:60]: "upload: damaged or truncated (",
        b"hello": "upload: not a picture in a format that can be read (JPEG,",
    }.items():
        with pytest.raises(BadData) as caught:
            images.decode_rgb(content, "upload", 1535)
        assert str(caught.value).startswith(reason)


def test_large_pictures_below_the_limit_do_not_warn_even_in_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = saved(Image.fromarray(QUARTERS), tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert all(image.size == (48, 32) for image in pool.map(open_rgb, [path] * 64))
    assert warnings.filters == before


def test_unreadable_file(tmp_path, monkeypatch):
    path = saved(Image.fromarray(QUARTERS), tmp_path / "a.png")

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(BadData, match=r"a\.png: no permission to read it"):
        open_rgb(path)


def test_impossible_names():
    for name in ("a\0b.jpg", "a" * 5000 + ".jpg"):
        with pytest.raises(BadData, match="not a usable file name"):
            open_rgb(name)
    with pytest.raises(TypeError, match="str or a Path, got int"):
        open_rgb(3)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["jpeg", "png", "gif", "tiff", "webp", "bmp", "ppm"]), st.data())
def test_damaged_bytes_never_raise_anything_else(tmp_path_factory, kind, data):
    whole = io.BytesIO()
    Image.fromarray(QUARTERS).save(whole, kind)
    damaged = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))
    try:
        assert open_rgb(path).mode == "RGB"
    except BadData as error:
        assert str(error).startswith(f"{path}: ")


def test_real_photos(shared_data):
    for path in find_images([shared_data / "photos"]):
        with Image.open(path) as stored:
            np.testing.assert_array_equal(pixels(path), np.asarray(stored.convert("RGB")))


@pytest.mark.parametrize(("side", "expected"), [(40, (100, 80)), (41, (200, 160)), (101, (400, 320)), (21, (100, 80))])
def test_a_large_jpeg_is_decoded_smaller_but_not_below_what_is_asked(tmp_path, side, expected):
    """Planted mistakes: the draft after the load; 2 * at_least. Both sides count, the shorter one decides."""
    path = saved(Image.new("RGB", (400, 320), "red"), tmp_path / "a.jpg")
    assert open_rgb(path).size == (400, 320)
    assert open_rgb(path, 2 * side).size == expected
    assert open_rgb(saved(Image.new("RGB", (400, 320)), tmp_path / "a.png"), 2 * side).size == (400, 320)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_smaller_jpeg_is_upright_too(tmp_path, orientation):
    """Planted mistake: EXIF asked for before the draft, which drops it in some versions of Pillow."""
    image = Image.fromarray(np.repeat(np.repeat(QUARTERS, 16, 0), 16, 1))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    path = saved(image, tmp_path / "a.jpg", exif=exif, quality=95)
    exact, small = open_rgb(path), open_rgb(path, 64)
    assert small.size == (exact.width // 8, exact.height // 8)
    got, expected = np.asarray(small, int), np.asarray(exact.resize(small.size, Image.Resampling.BOX), int)
    assert abs(got - expected).mean() < 3
    np.testing.assert_array_equal(small, open_rgb(path, 64))


def test_suffixes_are_lower_case_with_a_dot():
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in IMAGE_SUFFIXES)


def test_resize_squash_is_pillows_antialiased_bicubic():
    image = Image.fromarray(QUARTERS)
    got = resize_squash(image, 10)
    assert got.shape == (10, 10, 3) and got.dtype == np.uint8 and got.flags.writeable and got.flags.c_contiguous
    np.testing.assert_array_equal(got, np.asarray(image.resize((10, 10), Image.Resampling.BICUBIC)))
    # Not cropped: all four colours reach their corners.
    assert got[0, 0].tolist() == [250, 0, 0] and got[-1, -1].tolist() == [250, 250, 0]
    with pytest.raises(ValueError, match="mode RGB, got L"):
        resize_squash(image.convert("L"), 10)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        resize_squash(image, 0)


def test_normalise():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    batch = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    got = normalise(batch, mean, std)
    assert got.dtype == np.float32 and got.shape == (2, 3, 4, 5) and got.flags.c_contiguous
    exact = np.moveaxis((batch / 255 - np.array(mean)) / np.array(std), -1, -3)
    np.testing.assert_allclose(got, exact, atol=1e-6)
    np.testing.assert_array_equal(normalise(batch[0], mean, std), got[0])


@pytest.mark.parametrize(
    ("batch", "mean", "std"),
    [
        (np.zeros((2, 2, 3), np.float32), (0, 0, 0), (1, 1, 1)),
        (np.zeros((3, 2, 2), np.uint8), (0, 0, 0), (1, 1, 1)),
        (np.zeros((2, 3), np.uint8), (0, 0, 0), (1, 1, 1)),
        (np.zeros((2, 2, 3), np.uint8), (0, 0), (1, 1, 1)),
        (np.zeros((2, 2, 3), np.uint8), (0, 0, 0), (1, 1, 0)),
    ],
)
def test_normalise_refuses(batch, mean, std):
    with pytest.raises(ValueError, match="must"):
        normalise(batch, mean, std)
