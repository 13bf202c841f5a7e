"""Records, lines, tables, maps and films: what is written, and what is left when the writing stops in the middle."""

import csv
import errno
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import av
import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hpdval_edge.errors import MissingDependency, UsageError
from hpdval_edge.outputs import parquet
from hpdval_edge.outputs.chosen import OutputOptions, open_outputs
from hpdval_edge.outputs.film import Film
from hpdval_edge.outputs.heat_maps import HeatMaps, check_labels
from hpdval_edge.outputs.overlays import Overlays
from hpdval_edge.outputs.record import SCHEMA_FILE, record
from hpdval_edge.outputs.text import text_output


@pytest.fixture(scope="module")
def schema():
    content = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def full_after(count, function):
    """``function``, which finds the disk full from its ``count``-th call on."""
    calls = iter(range(count))

    def call(*arguments):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*arguments)

    return call


def test_records_fit_the_schema(schema, make_result, two_labels):
    """Planted mistakes: float32 numbers, which JSON does not take; a key that the schema does not name."""
    for result in (make_result(), make_result("film.mp4", index=3, time=0.12), make_result(scores=(0, 0))):
        schema.validate(json.loads(json.dumps(record(result, two_labels))))
    still = record(make_result(), two_labels)
    assert still["labels"] == ["red"]
    assert still["scores"] == {"red": 0.3, "dark, green": 0.1}
    with pytest.raises(jsonschema.ValidationError):
        schema.validate({**still, "extra": 1})


def test_lines_and_tables_hold_the_same_records(schema, make_result, two_labels, tmp_path):
    """Planted mistakes: a probability under the name of a score, frames and times lost, rows out of order."""
    results = [make_result(), make_result("film.mp4", (0.1, 0.4), 7, 0.28), make_result('ü,"q".png', (-0.1, 0.1))]
    kinds = ("jsonl", "csv", "parquet")
    for kind in kinds:
        (output,) = open_outputs(OutputOptions(output=tmp_path / "new" / f"r.{kind}"), None, two_labels, sys.stdout)
        for result in results:
            output.write(result)
        output.close()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(f"r.{kind}" for kind in kinds)
    lines = [json.loads(line) for line in (tmp_path / "new" / "r.jsonl").read_text().splitlines()]
    assert lines == [record(result, two_labels) for result in results]
    rows = pq.read_table(tmp_path / "new" / "r.parquet").to_pylist()
    with (tmp_path / "new" / "r.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    for line, row, cell in zip(lines, rows, cells, strict=True):
        schema.validate(row)
        for key in ("scores", "probabilities"):
            assert row[key] == pytest.approx(line[key], abs=1e-6)
            row[key] = line[key]
        assert row == line
        assert cell["path"] == line["path"]
        assert [label for label in cell["labels"].split(";") if label] == line["labels"]
        assert cell["frame"] == ("" if line["frame"] is None else str(line["frame"]))
        assert float(cell["dark, green"]) == line["scores"]["dark, green"]
        assert float(cell["probability red"]) == line["probabilities"]["red"]
        assert (cell["bundle"], cell["precision"]) == (line["bundle"], "fp16")


def test_names_that_are_no_utf_8_end_nothing(make_result, two_labels, tmp_path):
    """As a Linux file may be called. Planted mistake: what only JSON can hold given to Arrow."""
    output = parquet.Parquet(tmp_path / "r.parquet", two_labels)
    output.write(make_result("\udce4ä.jpg"))
    output.close()
    assert pq.read_table(tmp_path / "r.parquet")["path"].to_pylist() == ["\\udce4ä.jpg"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_full_disk_leaves_whole_lines(make_result, two_labels, tmp_path, monkeypatch, kind):
    """Planted mistake: what was written of the last line stays."""
    path = tmp_path / "r.txt"
    output = text_output(kind, path.open("w", newline=""), two_labels)
    output.write(make_result())
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", full_after(1, lambda descriptor, data: write(descriptor, data[:50])))
    with pytest.raises(MissingDependency, match=r"no space left to write .*r\.txt"):
        output.write(make_result())
    output.close()
    assert path.read_bytes() == before
    assert before.endswith(b"\n")


def test_a_stream_without_a_descriptor_takes_lines(make_result, two_labels):
    """Planted mistake: a line feed in a file's name makes two lines."""
    stream = io.StringIO()
    output = text_output("table", stream, two_labels)
    output.write(make_result("film.mp4", index=2))
    output.write(make_result("a\nb.jpg"))
    output.close()
    assert stream.getvalue() == "film.mp4#2  red 0.300\na?b.jpg  red 0.300\n"


def test_a_full_disk_leaves_the_row_groups_before(make_result, two_labels, tmp_path, monkeypatch):
    """Planted mistakes: no footer, no renaming, room taken after the rows are written."""
    monkeypatch.setattr(parquet, "VALUES_A_GROUP", 11 * 10)
    monkeypatch.setattr(os, "posix_fallocate", full_after(3, os.posix_fallocate))
    output = parquet.Parquet(tmp_path / "r.parquet", two_labels)
    with pytest.raises(MissingDependency, match=r"no space left to write .*r\.parquet"):
        for number in range(100):
            output.write(make_result(f"{number}.jpg"))
    output.close()
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["path"] for row in rows] == [f"{number}.jpg" for number in range(20)]


def test_an_old_table_stays_until_the_new_one_is_whole(make_result, two_labels, tmp_path, monkeypatch):
    target = tmp_path / "r.parquet"
    target.write_text("old")
    output = parquet.Parquet(target, two_labels)
    output.write(make_result())
    assert target.read_text() == "old"
    output.close()
    assert pq.read_metadata(target).num_rows == 1
    monkeypatch.setattr(os, "posix_fallocate", full_after(0, None))
    with pytest.raises(MissingDependency, match="no space left"):
        parquet.Parquet(target, two_labels)
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_maps_are_the_local_view(make_result, two_labels, tmp_path):
    """Planted mistakes: the other label's map; transposed; file names that labels lead out of the folder."""
    output = HeatMaps(tmp_path, replace(two_labels, labels=("red", "../green")), ["../green"], raw=True)
    result = make_result()
    output.write(result)
    output.write(make_result("film.mp4", index=12))
    output.close()
    assert {path.name for path in tmp_path.iterdir()} == {
        "photo.green.png", "photo.npz", "film-000012.green.png", "film-000012.npz",
    }  # fmt: skip
    with np.load(tmp_path / "photo.npz", allow_pickle=False) as raw:
        assert raw["labels"].tolist() == ["../green"]
        assert raw["maps"].dtype == np.float32
        np.testing.assert_array_equal(raw["maps"][0], result.prediction.patch_scores[:, :, 1])
    with Image.open(tmp_path / "photo.green.png") as picture:
        # The map rises from the upper left to the lower right, where it covers the picture's red most.
        assert picture.size == (40, 30)
        assert sum(picture.getpixel((38, 28))) > sum(picture.getpixel((1, 1)))


def test_maps_of_labels_with_like_names_stay_apart(make_result, two_labels, tmp_path):
    """Planted mistake: the second is written over the first."""
    model = replace(two_labels, labels=("a b", "A_b"))
    HeatMaps(tmp_path, model, model.labels, raw=False).write(make_result())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.A_b-1.png", "photo.a_b.png"]


def test_without_a_label_the_map_is_the_best_one(make_result, two_labels, tmp_path):
    HeatMaps(tmp_path, replace(two_labels, labels=("red", "green")), (), raw=False).write(
        make_result(scores=(0.1, 0.3))
    )
    assert [path.name for path in tmp_path.iterdir()] == ["photo.green.png"]
    with pytest.raises(UsageError, match=r"--map-label 'pink' is no label of the model; it has red, green\."):
        check_labels(["red", "pink"], ("red", "green"))


def frames_of(path):
    with av.open(str(path)) as film:
        return [(frame.time, frame.to_image()) for frame in film.decode(video=0)]


def test_a_film_becomes_a_film_and_a_picture_a_picture(make_result, two_labels, tmp_path):
    """Planted mistakes: times lost, labels not drawn, two films in one file, each kept open until the end."""
    output = Overlays(tmp_path, two_labels)
    output.write(make_result())
    for source, scores in {"in/door.mp4": (0.3, 0.1), "other/door.mp4": (0.1, 0.1)}.items():
        for index in range(5):
            output.write(make_result(source, scores, index, 10 + index / 2, size=(161, 121)))
    assert len(frames_of(tmp_path / "door.mp4")) == 5
    output.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["door-2.mp4", "door.mp4", "photo.png"]
    named, nameless = frames_of(tmp_path / "door.mp4"), frames_of(tmp_path / "door-2.mp4")
    assert [round(time, 2) for time, _ in named] == [0, 0.5, 1, 1.5, 2]
    for (_, picture), (_, plain) in zip(named, nameless, strict=True):
        assert picture.size == (160, 120)
        difference = np.abs(np.asarray(picture, int) - np.asarray(plain, int)).max(axis=2)
        assert difference[90:, :60].max() > 80
        assert difference[:60].max() < 40


def test_a_heat_map_in_a_film(make_result, two_labels, tmp_path):
    for name, label in {"plain": None, "warm": "red"}.items():
        output = Overlays(tmp_path / name, two_labels, label)
        output.write(make_result("door.mp4", (0.1, 0.1), 0, 0.0, size=(160, 120)))
        output.close()
    plain, warm = (frames_of(tmp_path / name / "door.mp4")[0][1] for name in ("plain", "warm"))
    assert sum(warm.getpixel((155, 115))) > sum(plain.getpixel((155, 115))) + 100


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))


def test_a_film_can_be_played_before_it_is_closed(tmp_path):
    """As after a crash. Planted mistakes: no fragments; parts written in pieces."""
    film = Film(tmp_path / "a.mp4")
    for index in range(101):
        film.add(noise(index), index, None)
    assert len(frames_of(tmp_path / "a.mp4")) == 100
    film.close()
    assert len(frames_of(tmp_path / "a.mp4")) == 101


def test_a_full_disk_leaves_a_film_that_plays(tmp_path, monkeypatch):
    """Planted mistake: half of the last part stays, which players take for damage."""
    film = Film(tmp_path / "a.mp4")
    write = os.write
    monkeypatch.setattr(os, "write", full_after(4, lambda descriptor, data: write(descriptor, data[:40_000])))
    with pytest.raises(MissingDependency, match=r"no space left to write .*a\.mp4"):
        for index in range(500):
            film.add(noise(index), index, None)
    film.close()
    # The encoder starts a part at every second, or at every other.
    count = len(frames_of(tmp_path / "a.mp4"))
    assert count > 0
    assert count % 25 == 0


def test_a_clock_set_back_and_another_size_do_not_stop_a_film(tmp_path):
    """A camera that came back. Planted mistake: the error of a frame that does not fit is raised."""
    film = Film(tmp_path / "a.mp4")
    film.add(noise(0), 0, 100.0)
    film.add(noise(1).resize((30, 90)), 1, 50.0)
    film.add(noise(2), 2, 101.0)
    film.close()
    frames = frames_of(tmp_path / "a.mp4")
    assert [picture.size for _, picture in frames] == [(64, 64)] * 3
    assert [round(time, 3) for time, _ in frames] == [0, 0, 1]


class Counting(http.server.BaseHTTPRequestHandler):
    """Counts POSTs; the server's ``enough`` is set at the twentieth."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.count += 1
        if self.server.count == 20:
            self.server.enough.set()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def counting_server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    server.count, server.enough = 0, threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_ctrl_c_leaves_what_was_done(tiny, tiny_bundle, tmp_path, counting_server, kind):
    """A real process and a real signal. Planted mistakes: outputs not closed, rows that wait thrown away."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(6000):
        (pictures / f"{number:04}.png").symlink_to(tiny / "test" / f"{number % 16:02}.png")
    target = tmp_path / f"r.{kind}"
    address = f"http://127.0.0.1:{counting_server.server_port}/"
    command = [sys.executable, "-m", "hpdval_edge", "infer", str(pictures), "--model", str(tiny_bundle)]
    process = subprocess.Popen(
        [*command, "--output", str(target), "--to", address, "--batch", "4"], stderr=subprocess.PIPE, text=True
    )
    assert counting_server.enough.wait(60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    if kind == "parquet":
        paths = pq.read_table(target)["path"].to_pylist()
    else:
        assert target.read_bytes().endswith(b"\n")
        lines = target.read_text().splitlines()
        paths = [row["path"] for row in (csv.DictReader(lines) if kind == "csv" else map(json.loads, lines))]
    assert 20 <= len(paths) < 6000
    assert paths == [f"{pictures.as_posix()}/{number:04}.png" for number in range(len(paths))]
    assert not list(tmp_path.glob(".*"))
