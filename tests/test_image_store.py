"""The store gives the one preprocessing's pixels, finds every bad picture at once, and never leaves half a cache."""

import collections
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.errors import BadData, MissingDependency
from hpdval_edge.images import open_rgb, resize_squash
from hpdval_edge.training import image_store
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.image_store import ImageStore, cache_key


def listed(root: Path, names: list[str]) -> LabelledImages:
    return LabelledImages(root, tuple(names), np.ones((len(names), 1), np.uint8), ("cat",))


@pytest.fixture
def data(tmp_path) -> LabelledImages:
    rng = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(10)]
    for name in names:
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 17, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    return listed(tmp_path / "photos", names)


def forbid_decoding(monkeypatch) -> None:
    def fail(path):
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(image_store, "open_rgb", fail)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("threads", [1, None])
def test_pixels(tmp_path, data, cached, threads, monkeypatch):
    monkeypatch.setattr(image_store, "BLOCK", 4)
    seen = []
    cache = tmp_path / "runs" / ".cache" if cached else None
    store = ImageStore(
        data, 8, cache=cache, threads=threads, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 10) for done in range(1, 11)]
    expected = np.stack([resize_squash(open_rgb(data.absolute(index)), 8) for index in range(10)])
    assert len(store) == 10 and store.size == 8
    got = store[[3, 0, 3]]
    np.testing.assert_array_equal(got, expected[[3, 0, 3]])
    np.testing.assert_array_equal(store[np.arange(10)], expected)
    np.testing.assert_array_equal(store[2:9:3], expected[2:9:3])
    assert type(got) is np.ndarray and got.dtype == np.uint8 and got.flags.writeable
    assert store[[]].shape == (0, 8, 8, 3)
    got[:] = 0
    np.testing.assert_array_equal(store[[3]], expected[[3]])


def test_second_store_reads_the_cache(tmp_path, data, monkeypatch):
    first = ImageStore(data, 8, cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.cache_file.name]
    forbid_decoding(monkeypatch)
    seen = []
    second = ImageStore(data, 8, cache=tmp_path / "cache", on_progress=lambda *at: seen.append(at))
    np.testing.assert_array_equal(first[range(10)], second[range(10)])
    assert seen == []


def test_key_covers_what_decides_the_pixels(data, monkeypatch):
    keys = [
        cache_key(data, 8),
        cache_key(data, 9),
        cache_key(data.subset(range(9)), 8),
        cache_key(data.subset([1, 0]), 8),
    ]
    os.utime(data.absolute(0), ns=(5, 5))
    keys.append(cache_key(data, 8))
    data.absolute(0).write_bytes(data.absolute(0).read_bytes() + b"x")
    os.utime(data.absolute(0), ns=(5, 5))
    keys.append(cache_key(data, 8))
    monkeypatch.setattr(image_store, "VERSION", image_store.VERSION + 1)
    keys.append(cache_key(data, 8))
    data.absolute(0).unlink()
    keys.append(cache_key(data, 8))
    assert len(set(keys)) == len(keys) and cache_key(data, 8) == keys[-1]


def test_a_changed_picture_is_read_again(tmp_path, data):
    ImageStore(data, 8, cache=tmp_path / "cache")
    Image.new("RGB", (20, 20), (1, 2, 3)).save(data.absolute(4))
    assert (ImageStore(data, 8, cache=tmp_path / "cache")[[4]] == [1, 2, 3]).all()


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "shape"])
def test_a_damaged_cache_is_made_again(tmp_path, data, damage):
    store = ImageStore(data, 8, cache=tmp_path / "cache")
    expected, file = store[range(10)], store.cache_file
    del store
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "shape":
        np.save(file, np.zeros((2, 8, 8, 3), np.uint8))
    else:
        file.write_bytes(b"not an array" if damage == "text" else b"")
    np.testing.assert_array_equal(ImageStore(data, 8, cache=tmp_path / "cache")[range(10)], expected)


@pytest.mark.parametrize("cached", [True, False])
def test_all_bad_pictures_are_reported_at_once(tmp_path, data, cached):
    data.absolute(2).write_bytes(data.absolute(2).read_bytes()[:200])
    data.absolute(5).unlink()
    data.absolute(7).write_text("no picture")
    with pytest.raises(BadData) as caught:
        ImageStore(data, 8, cache=tmp_path / "cache" if cached else None)
    head, *lines = str(caught.value).split("\n")
    assert head.startswith(f"3 of the 10 pictures below {data.root} cannot be used")
    reasons = ("damaged or truncated", "there is no such file", "not a picture")
    for line, number, reason in zip(lines, (2, 5, 7), reasons, strict=True):
        assert line.startswith(f"  {data.absolute(number)}: {reason}")
    assert not cached or list((tmp_path / "cache").iterdir()) == []


def test_a_long_list_of_bad_pictures_is_cut(tmp_path):
    with pytest.raises(BadData) as caught:
        ImageStore(listed(tmp_path, [f"{number}.jpg" for number in range(27)]), 8, cache=None)
    lines = str(caught.value).split("\n")
    assert len(lines) == 22 and lines[-1] == "  ... and 7 more"


def test_too_little_space_is_noticed_before_decoding(tmp_path, data, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(image_store.shutil, "disk_usage", lambda path: usage(1, 1, 10 * 8 * 8 * 3 - 1))
    forbid_decoding(monkeypatch)
    with pytest.raises(MissingDependency) as caught:
        ImageStore(data, 8, cache=tmp_path / "cache")
    expected = f"no space left in {tmp_path / 'cache'}: the picture cache needs 1920 bytes"
    assert str(caught.value).startswith(expected) and "--set data.cache=false" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_fills_up_leaves_no_partial_file(tmp_path, data, monkeypatch, code):
    def fill(_store, file):
        file.write(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ImageStore, "_write_rows", fill)
    with pytest.raises(
        MissingDependency, match=r"no space left in .*cache: the picture cache needs 1920 bytes .*data.cache=false"
    ):
        ImageStore(data, 8, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_interrupt_leaves_no_partial_file(tmp_path, data):
    def interrupt(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageStore(data, 8, cache=tmp_path / "cache", on_progress=interrupt)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("cached", [True, False])
def test_arguments(tmp_path, data, cached):
    store = ImageStore(data, 8, cache=tmp_path / "cache" if cached else None)
    for wrong in ([10], [-1]):
        with pytest.raises(IndexError, match=r"must lie in \[0, 10\)"):
            store[wrong]
    for wrong in (3, [0.0], [[0]], np.ones(10, bool)):
        with pytest.raises(TypeError, match="1-D sequence of integers"):
            store[wrong]
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        ImageStore(data, 0, cache=None)
    with pytest.raises(ValueError, match="threads must be at least 1 or None, got 0"):
        ImageStore(data, 8, cache=None, threads=0)


def test_real_photos(shared_data, tmp_path):
    names = sorted(path.name for path in (shared_data / "corel5k/images/test").iterdir())[:60]
    data = listed(shared_data / "corel5k/images/test", names)
    cached, direct = ImageStore(data, 64, cache=tmp_path), ImageStore(data, 64, cache=None)
    np.testing.assert_array_equal(cached[range(60)], direct[range(60)])
    assert cached[range(60)].std() > 20
