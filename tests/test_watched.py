"""Folders that are watched: each picture once, whole, as it comes."""

import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.errors import BadData
from hpdval_edge.sources.watched import WatchedFolders

LONG = 60.0


def save(path, level=10):
    Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(path)
    return path


def settle(path, seconds=100):
    """Make a file look as if it had been written ``seconds`` ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def watched(tmp_path):
    """Frames of a watched folder that looks ever again without a pause, and calls what a test puts into ``between``."""
    source = WatchedFolders([str(tmp_path)], interval=0.0, quiet=50.0)
    source.between = []
    deadline = time.monotonic() + LONG

    def wait(seconds):
        if source.between:
            source.between.pop(0)()
        if time.monotonic() > deadline:
            source.close()

    source._stop.wait = wait
    return source


def names(frames, count):
    return [os.path.basename(next(frames).name) for _ in range(count)]


def test_what_is_there_and_what_comes_each_once(watched, tmp_path):
    """Mistakes: pictures named twice, new folders not looked into, hidden names, other files."""
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.png", "sub/c.png", ".hidden.png"):
        settle(save(tmp_path / name))
    (tmp_path / "words.txt").touch()
    frames = iter(watched)
    assert names(frames, 3) == ["a.png", "b.png", "c.png"]

    def more():
        (tmp_path / "new" / "deeper").mkdir(parents=True)
        settle(save(tmp_path / "new" / "deeper" / "d.png"))
        settle(save(tmp_path / "sub" / "e.png"))

    watched.between = [more]
    assert names(frames, 2) == ["d.png", "e.png"]
    assert watched.summary() == f"5 pictures seen in {tmp_path}"


def test_half_written_files_are_waited_for(watched, tmp_path):
    """Mistakes: a file read while it is written, an empty file taken for a picture."""
    whole = save(tmp_path / "whole.png").read_bytes()
    (tmp_path / "whole.png").unlink()
    growing, looks = tmp_path / "growing.png", []

    def step(content, seconds):
        def write():
            looks.append(len(content))
            growing.write_bytes(content)
            settle(growing, seconds)

        return write

    growing.touch()
    settle(growing)
    watched.between = [step(b"", 100), step(whole[:20], 0), step(whole[:40], 0), step(whole, 1), step(whole, 100)]
    frame = next(iter(watched))
    assert frame.read(8).size == (4, 4) and looks == [0, 20, 40, len(whole), len(whole)]


def test_a_clock_that_is_wrong_does_not_keep_a_picture_back(tmp_path):
    """A file server's clock may be ahead of ours; then a file that does not change for a while is whole."""
    settle(save(tmp_path / "a.png"), -10_000)
    source = WatchedFolders([str(tmp_path)], interval=0.01, quiet=0.05)
    deadline = threading.Timer(LONG, source.close)
    deadline.start()
    assert names(iter(source), 1) == ["a.png"]
    deadline.cancel()


def test_a_picture_put_in_anothers_place_is_new(watched, tmp_path):
    """Mistakes: cameras that write one name again and again seen once."""
    settle(save(tmp_path / "now.png"))
    frames = iter(watched)
    assert names(frames, 1) == ["now.png"]

    def replace():
        settle(save(tmp_path / "next.tmp.png", 30))
        (tmp_path / "next.tmp.png").replace(tmp_path / "now.png")

    watched.between = [replace]
    frame = next(frames)
    assert np.asarray(frame.read(8))[0, 0, 0] == 30


def test_a_folder_that_goes_and_comes_again_has_new_pictures(watched, tmp_path, tmp_path_factory):
    """File systems give inodes again. Planted mistake: folders that are gone remembered, as many as ever were."""
    day, kept = tmp_path / "day", tmp_path_factory.mktemp("kept") / "a.png"
    day.mkdir()
    settle(save(day / "a.png"))
    frames = iter(watched)
    assert names(frames, 1) == ["a.png"]

    def go():
        (day / "a.png").rename(kept)
        day.rmdir()

    def come():
        assert str(day) not in watched._seen
        save(kept, 30)
        day.mkdir()
        settle(kept.rename(day / "a.png"))

    watched.between = [go, come]
    assert np.asarray(next(frames).read(8))[0, 0, 0] == 30


def test_old_pictures_cost_nothing(watched, tmp_path, monkeypatch):
    """Mistakes: a million files listed four times a second."""
    settle(save(tmp_path / "a.png"))
    settle(tmp_path)
    frames = iter(watched)
    names(frames, 1)
    listed = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or real(path))

    def come():
        settle(save(tmp_path / "b.png"))

    watched.between = [lambda: None] * 20 + [come]
    assert names(frames, 1) == ["b.png"]
    assert len(listed) < 5


def test_a_picture_that_goes_before_it_is_whole_is_forgotten(watched, tmp_path):
    save(tmp_path / "temporary.png")
    watched.between = [(tmp_path / "temporary.png").unlink, lambda: settle(save(tmp_path / "b.png"))]
    assert names(iter(watched), 1) == ["b.png"]


def test_a_folder_that_goes_away_is_named(watched, tmp_path):
    watched.between = [tmp_path.rmdir]
    with pytest.raises(BadData, match=r"the folder can no longer be listed \(No such file or directory\)"):
        next(iter(watched))


def test_close_ends_the_waiting(tmp_path):
    source = WatchedFolders([str(tmp_path)], interval=LONG)
    thread = threading.Thread(target=lambda: list(source))
    thread.start()
    source.close()
    thread.join(LONG)
    assert not thread.is_alive()


def test_infer_watch_takes_new_pictures_and_new_labels(run_hpedge, tiny_bundle, tmp_path, monkeypatch):
    """Mistakes: --watch that ends, labels that stay as they were when the bundle changed, a bundle that cannot be used
    for a moment that ends it, told with every frame.
    """
    from hpdval_edge.bundle import load_bundle
    from hpdval_edge.labels import rename_labels
    from hpdval_edge.predictor import Predictor

    model, inbox = tmp_path / "model.hpedge", tmp_path / "inbox"
    shutil.copytree(tiny_bundle, model)
    inbox.mkdir()
    for name in "abcd":
        settle(save(inbox / f"{name}.png"))
    real, looks = Predictor.reload, []

    def reload(predictor):
        looks.append(1)
        if len(looks) == 2:
            rename_labels(load_bundle(model), {"red": "crimson"})
        if len(looks) > 2:
            raise BadData("model.hpedge: not whole.")
        return real(predictor)

    monkeypatch.setattr(Predictor, "reload", reload)
    watch = ("infer", inbox, "--watch", "--max-frames", "4", "--model", model)
    code, out, err = run_hpedge(*watch, "--format", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [record["path"] for record in records] == [f"{inbox}/{name}.png" for name in "abcd"]
    assert ["crimson" in record["scores"] for record in records] == [False, True, True, True]
    assert records[0]["bundle"] != records[1]["bundle"]
    assert err.count("loaded again, 4 labels") == 1 and err.count("not whole; the labels stay as they are") == 1
    code, _, err = run_hpedge(*watch, "--format", "csv")
    assert code == 2 and "--watch may change the labels" in err
