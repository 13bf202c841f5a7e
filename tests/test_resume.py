"""--resume leaves out what a file holds, adds the rest, and goes on with nothing that was made otherwise."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.outputs import overlays
from hpdval_edge.outputs.chosen import OutputOptions, open_outputs
from hpdval_edge.outputs.output import close_all
from hpdval_edge.outputs.resume import BLOCK, Remaining, Written, cut_half_line, remaining
from hpdval_edge.sources.frame import Frame

KINDS = ("jsonl", "csv")


class Names:
    """A source of the pictures or frames of these names."""

    def __init__(self, *names, live=False):
        self.names, self.live = names, live

    def __iter__(self):
        for name in self.names:
            source, _, index = name.partition("#")
            yield Frame(source, None, int(index) if index else None)

    def close(self):
        pass


@pytest.fixture
def write(make_result, two_labels, tmp_path):
    """Write results of pictures into a file, or add them to it; returns its path."""

    def to(kind, *names, resume=False, thresholds=(0.2, 0.2)):
        two_labels.thresholds[:] = thresholds
        path = tmp_path / f"r.{kind}"
        (output,) = open_outputs(OutputOptions(output=path, resume=resume), None, two_labels, sys.stdout)
        for name in names:
            source, _, index = name.partition("#")
            output.write(make_result(source, index=int(index) if index else None))
        output.close()
        return path

    return to


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_left_out(write, two_labels, kind):
    """Planted mistakes: frames of a film told apart by their source alone; the CSV's header written again."""
    names = ("a.jpg", 'b "1",\n.jpg', "film.mp4#0", "film.mp4#1", "\udce4.jpg")
    path = write(kind, *names[:3])
    source = Remaining(Names(*names), Written(path, two_labels, None))
    left = [frame.name for frame in source]
    assert (left, source.left_out) == ([names[3], names[4]], 3)
    write(kind, *left, resume=True)
    assert list(Remaining(Names(*names), Written(path, two_labels, None))) == []
    whole = path.read_bytes()
    assert whole == write(kind, *names).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_line_is_cut_off(write, two_labels, kind):
    """As a machine that stopped leaves it. Planted mistake: the whole lines of the last block cut off with it."""
    path = write(kind, "a.jpg", "b.jpg")
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b"\0" * (2 * BLOCK + 3))
    assert Frame("b.jpg", None) in Written(path, two_labels, None)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-5])
    assert Frame("b.jpg", None) not in Written(path, two_labels, None)


@pytest.mark.parametrize("content", [b"", b"x" * (BLOCK + 1)])
def test_without_a_whole_line_nothing_is_left(tmp_path, content):
    """Planted mistake: a file that is one half line left as it is."""
    (tmp_path / "a").write_bytes(content)
    cut_half_line(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b""


def test_a_file_that_is_not_there_holds_nothing(two_labels, tmp_path):
    """So that one command serves for the first time too. Planted mistake: FileNotFoundError."""
    assert Frame("a.jpg", None) not in Written(tmp_path / "new.jsonl", two_labels, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "top", "message"),
    [
        ({"bundle": "cd" * 32}, None, "another choice of bundle"),
        ({"labels": ("red", "blue"), "bundle": "cd" * 32}, None, "another choice of labels"),
        ({"thresholds": np.full(2, 0.05, np.float32)}, None, "another choice of --threshold or --top"),
        ({}, 2, "another choice of --threshold or --top"),
    ],
)
def test_another_choice_is_refused_by_name(write, two_labels, kind, change, top, message):
    """Planted mistakes: the bundle compared after the labels were skipped; thresholds not looked at."""
    path = write(kind, "a.jpg")
    Written(path, two_labels, None)
    with pytest.raises(UsageError, match=message) as caught:
        Written(path, replace(two_labels, **change), top)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_labels_as_top_but_not_the_best(write, two_labels, kind):
    """One label was chosen by its threshold, another scores higher. Planted mistake: labels counted, not compared."""
    path = write(kind, "a.jpg", thresholds=(0.4, 0.05))
    with pytest.raises(UsageError, match="another choice of --threshold or --top"):
        Written(path, two_labels, 1)
    Written(write(kind, "a.jpg", thresholds=(0.2, 0.2)), two_labels, 1)


DAMAGED = [{"scores": []}, {"scores": "x"}, {"scores": {"red": 0.3}}, {"scores": {"red": None, "dark, green": 0.1}},
           {"scores": {"red": True, "dark, green": 0.1}}, {"labels": "red"}, {"labels": [1]}, {"labels": ["pink"]},
           {"labels": None}, {"path": 7}, {"path": None}, {"frame": "1"}, {"frame": True}, {"bundle": 3}]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        *(("jsonl", line) for line in ("{}", "photo", "7", "[]", "null", "[" * 100_000, f'{{"path": {"1" * 5000}}}')),
        *(("csv", line) for line in ("a,b", "a.jpg,,x,0,,,,,0,0", "a.jpg,pink,0,0,,,,,0,0", "", '"' + "x" * 200_000)),
        *(("jsonl", change) for change in DAMAGED),
    ],
)
@pytest.mark.parametrize("top", [None, 1])
def test_other_files_are_refused(write, two_labels, kind, content, top):
    """Planted mistakes: a KeyError of the first line; a ValueError of a score; types not looked at, so that the first
    use of one ended in a traceback.
    """
    labels = replace(two_labels, labels=("red", "green")) if kind == "csv" else two_labels
    path = write(kind, "a.jpg")
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_text()), **content})
    header = "path,labels,red,green,frame,time,bundle,precision,probability red,probability green\n"
    path.write_text((header if kind == "csv" else "") + content + "\n")
    with pytest.raises(BadData, match=r"line [12]: no result of hpedge infer; choose another --output\."):
        Written(path, labels, top)


def test_a_live_source_is_refused(two_labels, tmp_path):
    """Planted mistakes: frames of a camera numbered from 0 again and so left out; the file cut before the refusal."""
    path = tmp_path / "r.jsonl"
    path.write_text("half a li")
    with pytest.raises(UsageError, match="--resume is for pictures and films"):
        remaining(Names(live=True), path, two_labels, None)
    assert path.read_text() == "half a li"


@pytest.mark.parametrize("arguments", [(), ("--output", "r.parquet")])
def test_resume_needs_a_file_that_can_go_on(run_hpedge, arguments):
    """Planted mistake: the check after the bundle was loaded."""
    code, _, err = run_hpedge("infer", "x.jpg", "--resume", *arguments)
    assert code == 2 and "--resume goes on with a file: pass --output FILE, ending in .jsonl or .csv" in err


def test_pictures_made_before_stay(make_result, two_labels, tmp_path):
    """Planted mistakes: either folder's names begin anew with --resume, so that another photo.jpg is written over."""
    drawn, maps = tmp_path / "overlays", tmp_path / "maps"
    made = {}
    for turn, resume in enumerate((False, True)):
        options = OutputOptions(output=tmp_path / "r.jsonl", overlay=drawn, maps=maps, map_raw=True, resume=resume)
        outputs = open_outputs(options, None, two_labels, sys.stdout)
        for output in outputs:
            output.write(make_result(f"{turn}/photo.jpg"))
            output.write(make_result("film.mp4", index=turn, time=0.0))
        close_all(outputs)
        assert {path: path.read_bytes() for path in made} == made
        made = {path: path.read_bytes() for folder in (drawn, maps) for path in folder.iterdir()}
    assert {path.name for path in drawn.iterdir()} == {"photo.png", "photo-2.png", "film.mp4", "film-2.mp4"}
    stems = ("photo", "photo-2", "film-000000", "film-000001")
    assert {path.name for path in maps.iterdir()} == {f"{stem}.{end}" for stem in stems for end in ("red.png", "npz")}


def test_what_is_recorded_was_made(run_hpedge, tiny, tiny_bundle, tmp_path, monkeypatch):
    """Ctrl-C while a picture is drawn. Planted mistake: the record first, so that --resume makes no such picture."""
    draw, turns = overlays.draw_overlay, iter(range(2))

    def draw_two(*arguments, **options):
        if next(turns, None) is None:
            raise KeyboardInterrupt
        return draw(*arguments, **options)

    monkeypatch.setattr(overlays, "draw_overlay", draw_two)
    output, folder = tmp_path / "r.jsonl", tmp_path / "overlays"
    command = ("infer", tiny / "test", "--model", tiny_bundle, "--output", output, "--overlay", folder)
    assert run_hpedge(*command)[0] == 130
    assert len(output.read_text().splitlines()) == len([*folder.iterdir()]) == 2
    monkeypatch.undo()
    assert run_hpedge(*command, "--resume")[0] == 0
    recorded = [Path(json.loads(line)["path"]).stem for line in output.read_text().splitlines()]
    assert sorted(recorded) == sorted(path.stem for path in folder.iterdir()) and len(recorded) > 2


def test_interrupted_and_resumed_is_the_same_file(tiny, tiny_bundle, tmp_path):
    """Ctrl-C in the middle: 130, whole lines. Planted mistakes: threads that keep the program; the order lost."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(1500):
        os.link(
            shutil.copy(tiny / "test" / "00.png", tmp_path) if not index else tmp_path / "00.png",
            folder / f"{index:04}.png",
        )
    output = tmp_path / "r.jsonl"
    command = [sys.executable, "-m", "hpdval_edge", "infer", str(folder), "--model", str(tiny_bundle), "--output"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    with subprocess.Popen([*command, str(output)], env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not (output.exists() and output.stat().st_size):
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"it ended by itself: {process.wait(0.02)}")
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert "Traceback" not in told
    before = output.read_text().splitlines()
    assert 0 < len(before) < 1500
    done = subprocess.run([*command, str(output), "--resume"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{1500 - len(before)} of {1500 - len(before)} pictures, {len(before)} more were in" in done.stderr
    paths = [json.loads(line)["path"] for line in output.read_text().splitlines()]
    assert paths == [(folder / f"{index:04}.png").as_posix() for index in range(1500)]
