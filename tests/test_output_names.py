"""File names of outputs: none is given twice, and remembering them takes the same memory however many there are."""

import sys
from pathlib import Path

import pytest

from hpdval_edge.outputs import names as module
from hpdval_edge.outputs.names import FileNames, safe, source_stem
from hpdval_edge.sources.frame import Frame


def test_names_hold_no_password_and_no_folder(tmp_path):
    assert source_stem("rtsp://user:secret@cam.local:554/hall/one?token=secret") == "cam.local_hall_one"
    assert safe("../a/b: c.") == "a_b_c"
    assert safe("...") == "_"
    assert FileNames(tmp_path)("/dev/video0") == tmp_path / "video0"


def names_of(frames):
    given = FileNames(Path())
    return [given.of_frame(Frame(source, None, index)).name for source, index in frames]


def test_pictures_that_share_a_stem_are_numbered():
    """Planted mistakes: a number left out; 1 for the second; names told apart by their case, which a disk may not."""
    sources = [f"{number}/a.jpg" for number in range(70)]
    assert names_of((source, None) for source in sources) == ["a", *(f"a-{number}" for number in range(2, 71))]
    assert names_of([("x/a.jpg", None), ("y/A.jpg", None), ("a-2.png", None)]) == ["a", "A-2", "a-2-2"]


def test_what_lies_in_the_folder_is_kept(tmp_path):
    """Planted mistakes: names up to their last dot alone; a name that no file has; a folder that is not there yet."""
    assert FileNames(tmp_path / "later", keep=True)("a.jpg").name == "a"
    for name in ("a.png", "film.mp4", "map.red.png", "map.red.v2.png", "A B.png"):
        (tmp_path / name).touch()
    given = FileNames(tmp_path, keep=True)
    sources = ("a.jpg", "b.jpg", "x/film.mp4", "map.jpg", "map.red.jpg", "a b.jpg", "a.png")
    assert [given(source).name for source in sources] == ["a-2", "b", "film-2", "map-2", "map.red-2", "a b-2", "a-3"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_frame_and_a_picture_that_is_called_like_it(turned):
    """As the frames are that somebody took out of the film. Planted mistake: names of frames given unseen."""
    frames = [("film.mp4", 0), ("film.mp4", 1), ("film-000001.jpg", None), ("other/film.mp4", 1)]
    found = names_of(reversed(frames) if turned else frames)
    assert len({*found}) == 4
    assert found == (
        ["film-000001", "film-000001-2", "film-2-000001", "film-2-000000"]
        if turned
        else ["film-000000", "film-000001", "film-000001-2", "film-2-000001"]
    )


def test_no_name_is_given_twice_in_a_full_filter(monkeypatch):
    """Of 64 bytes, which takes most names for known ones. Planted mistake: the first number tried given unseen."""
    monkeypatch.setattr(module, "FILTER_BYTES", 64)
    found = names_of((f"{number % 7}.jpg", None) for number in range(60))
    assert len({*found}) == 60


def test_memory_does_not_grow_with_names():
    """Planted mistake: a set of all names."""
    given = FileNames(Path())

    def size():
        return sum(map(sys.getsizeof, vars(given).values()))

    given("first.jpg")
    before = size()
    for number in range(3000):
        given(f"{number}.jpg")
        given.of_frame(Frame(f"{number}.mp4", None, 0))
    assert size() <= before + sys.getsizeof(("", ""))
