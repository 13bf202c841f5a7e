"""Which pictures files, folders and patterns name, and in which order."""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hpdval_edge import images
from hpdval_edge.errors import UsageError
from hpdval_edge.images import find_images


@pytest.fixture
def photos(tmp_path, monkeypatch):
    for name in (
        "b.jpg",
        "a.PNG",
        "sub/c.webp",
        "notes.txt",
        ".hidden.jpg",
        ".cache/d.jpg",
        "x[1].jpg",
        "none/readme.md",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


LEFT_OUT = ("notes.txt", ".cache/d.jpg")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["."], ["a.PNG", "b.jpg", "sub/c.webp", "x[1].jpg"]),
        (["sub", "b.jpg"], ["sub/c.webp", "b.jpg"]),
        (["notes.txt"], ["notes.txt"]),
        (["*.jpg"], ["b.jpg", "x[1].jpg"]),
        (["*"], ["a.PNG", "b.jpg", "sub/c.webp", "x[1].jpg"]),
        (["**/*.webp", "sub/c.webp"], ["sub/c.webp"]),
        (["x[1].jpg"], ["x[1].jpg"]),
        ([Path("b.jpg"), "b.jpg"], ["b.jpg"]),
        ([".", "sub", "sub/../b.jpg"], ["a.PNG", "b.jpg", "sub/c.webp", "x[1].jpg", "sub/../b.jpg"]),
        (
            [".", ".hidden.jpg", "notes.txt", ".cache"],
            ["a.PNG", "b.jpg", "sub/c.webp", "x[1].jpg", ".hidden.jpg", *LEFT_OUT],
        ),
    ],
)
def test_find_images(photos, arguments, expected):
    assert [path.as_posix() for path in find_images(arguments)] == expected


@pytest.mark.parametrize("argument", ["nothing.jpg", "*.gif", "none", "*.txt"])
def test_an_argument_that_matches_nothing_is_named(photos, argument):
    with pytest.raises(UsageError) as caught:
        find_images(["b.jpg", argument])
    assert repr(argument) in str(caught.value)


def test_find_images_needs_a_sequence_that_is_not_empty():
    with pytest.raises(UsageError, match="no pictures were named"):
        find_images([])
    with pytest.raises(TypeError, match="sequence of paths, got the single str 'photos'"):
        find_images("photos")


def test_a_link_to_a_folder_is_not_followed_but_may_be_named(photos):
    """Planted mistakes: links left out of `_gives`, so that its pictures were taken for given; links followed."""
    (photos / "link").symlink_to("sub", target_is_directory=True)
    expected = ["a.PNG", "b.jpg", "sub/c.webp", "x[1].jpg"]
    assert [path.as_posix() for path in find_images(["."])] == expected
    assert [path.as_posix() for path in find_images([".", "link/c.webp"])] == [*expected, "link/c.webp"]


@pytest.mark.parametrize("held", [1, 2, 3, 1000])
def test_a_folder_is_sorted_whatever_is_held(photos, monkeypatch, held):
    """Planted mistakes: >= instead of > after the last name, which gives it twice; the folder's own place forgotten."""
    for name in ("sub.jpg", "sub/z.png", "sub/a/y.png", "sub-a.jpg"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).touch()
    monkeypatch.setattr(images, "NAMES_HELD", held)
    found = list(images.walk_images(photos))
    assert found == sorted(found) == sorted({*found})
    assert len(found) == 8


class Name(str):
    """A file name that is counted while it is alive."""

    alive = most = 0

    def __new__(cls, text):
        Name.alive += 1
        Name.most = max(Name.most, Name.alive)
        return super().__new__(cls, text)

    def __del__(self):
        Name.alive -= 1


def test_a_million_names_do_not_stay_in_memory(monkeypatch):
    """20,000 of them here, held by 1,000. Planted mistakes: sorted(found) of all; the last thousand kept meanwhile."""
    order = np.random.default_rng(0).permutation(20_000)

    @contextlib.contextmanager
    def scandir(folder):
        yield (SimpleNamespace(name=Name(f"{index:07}.jpg"), is_dir=lambda: False) for index in order)

    monkeypatch.setattr(images, "NAMES_HELD", 1_000)
    monkeypatch.setattr(images.os, "scandir", scandir)
    found, last = 0, ""
    for path in images.walk_images(Path("photos")):
        assert path.name > last
        found, last = found + 1, path.name
    assert found == len(order)
    assert Name.most < 1_100


def test_the_first_picture_comes_before_the_walk_ends(photos, monkeypatch):
    """Planted mistake: find_images making a list."""
    listed = []
    real = os.scandir
    monkeypatch.setattr(images.os, "scandir", lambda folder: (listed.append(str(folder)), real(folder))[1])
    found = find_images(["."])
    listed.clear()
    assert next(found) == Path("a.PNG")
    assert listed == ["."]
