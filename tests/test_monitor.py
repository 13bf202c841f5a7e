"""The monitor: its counts, its list for review, its page."""

import json
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.bundle import MANIFEST, REFERENCE, Bundle, Calibration, Manifest, load_bundle, sha256
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.monitor import record
from hpdval_edge.monitor.counts import DAY, KEPT, read_counts
from hpdval_edge.monitor.page import render
from hpdval_edge.monitor.record import Monitor
from hpdval_edge.monitor.reference import BINS, read_reference, reference_json
from hpdval_edge.monitor.review import ReviewQueue
from hpdval_edge.monitor.summary import summarise
from hpdval_edge.monitor.table import table
from hpdval_edge.outputs.output import Result
from hpdval_edge.predictor import Prediction, Predictor
from hpdval_edge.sources.frame import Frame
from hpdval_edge.training.readers_csv import read_csv

LABELS = ("red", "<green>", "blue")
THRESHOLDS = np.float32([0.55, 0.55, 0.55])
NOON = 20_000 * DAY + DAY / 2


def scored(pictures):
    """A model of three lines: each label's score is its channel's mean level."""
    return (pictures.reshape(len(pictures), -1, 3).mean(axis=1) / 255).astype(np.float32)


def pictures(count, seed, tint=(0, 0, 0)):
    """uint8 [count, 4, 4, 3] of uniform levels that differ from picture to picture."""
    rng = np.random.default_rng(seed)
    level = rng.normal(120, 20, (count, 1, 1, 3)) + rng.normal(0, 10, (count, 4, 4, 3)) + tint
    return level.clip(0, 255).astype(np.uint8)


@pytest.fixture
def make_bundle(tmp_path):
    """Writes what a monitor needs of a bundle of that model; returns it."""

    def make(name="m.hpedge", reference=None, labels=LABELS, precision="fp16"):
        folder = tmp_path / name
        folder.mkdir()
        files = {}
        if reference is not None:
            (folder / REFERENCE).write_bytes(reference)
            files[REFERENCE] = sha256(reference)
        manifest = Manifest(
            schema=1, name=name, labels=labels, image_size=4, mean=(0, 0, 0), std=(1, 1, 1), alpha=0.4, topk=1,
            grid=(1, 1), embed_dim=1, logit_scale=20.0, precision=precision, provenance={}, files=files,
        )  # fmt: skip
        (folder / MANIFEST).write_text(manifest.to_json())
        bank = np.ones((len(labels), 1), np.float32)
        calibration = Calibration(20.0, 2.0, 11.0)
        return Bundle(folder, manifest, bank, bank, THRESHOLDS[: len(labels)], calibration, precision, "f1")

    return make


@pytest.fixture
def reference():
    return reference_json(scored(pictures(2000, 0)), THRESHOLDS, LABELS, "fp16")


@pytest.fixture
def bundle(make_bundle, reference):
    return make_bundle(reference=reference)


def watch(folder, bundle, levels, *, when=NOON, name="{:05}.jpg", copies=False, seed=0):
    """Let a monitor see pictures uint8 [n, 4, 4, 3]; ``when``: seconds since 1970 of all, or of each."""
    times = np.broadcast_to(when, len(levels)).tolist()
    monitor = Monitor(folder, bundle, copies=copies, clock=lambda: times[0])
    monitor.queue.random.seed(seed)
    for number, (row, level) in enumerate(zip(scored(levels), levels, strict=True)):
        chances = bundle.calibration.probabilities(row)
        prediction = Prediction((), row, np.zeros((1, 1, len(row)), np.float32), chances)
        monitor.write(Result(Frame(name.format(number), lambda side: None), prediction, Image.fromarray(level)))
        times.pop(0) if len(times) > 1 else None
    monitor.close()


def by_label(summary):
    return {use.label: use for use in summary.labels}


def test_pictures_like_the_validation_ones_are_stable(bundle, tmp_path):
    watch(tmp_path / "w", bundle, pictures(2000, 1))
    summary = summarise([tmp_path / "w"])
    assert all(use.psi < 0.1 and use.reading == "stable" for use in summary.labels)
    for use in summary.labels:
        assert use.rates[30] == pytest.approx(use.expected, abs=0.05)
        assert sum(use.shares) == pytest.approx(1)
    assert summary.drifted == ()


def test_redder_pictures_shift_red_alone(bundle, tmp_path):
    """Planted mistakes: another label's bins, the reference in another order of labels."""
    watch(tmp_path / "w", bundle, pictures(1000, 1, tint=(20, 0, 0)))
    summary = summarise([tmp_path / "w"])
    assert [use.label for use in summary.drifted] == ["red"]
    uses = by_label(summary)
    assert uses["red"].psi > 0.5
    assert max(uses["<green>"].psi, uses["blue"].psi) < 0.1
    assert uses["red"].rates[1] > uses["red"].expected + 0.2
    assert table(summary).splitlines()[3].startswith("red")


def test_few_pictures_are_not_called_a_shift(bundle, tmp_path):
    watch(tmp_path / "w", bundle, pictures(20, 3))
    readings = {use.reading for use in summarise([tmp_path / "w"]).labels}
    assert readings <= {"stable", "within chance"}


def test_only_the_last_days_are_compared_where_asked(bundle, tmp_path):
    """Planted mistake: an old healthy time hides a new shift."""
    watch(tmp_path / "w", bundle, pictures(3000, 1), when=NOON - 10 * DAY)
    watch(tmp_path / "w", bundle, pictures(300, 2, tint=(0, 0, -30)), when=NOON)
    assert summarise([tmp_path / "w"]).drifted == ()
    recent = summarise([tmp_path / "w"], days=7)
    assert [use.label for use in recent.drifted] == ["blue"]
    assert recent.pictures == 300
    assert by_label(recent)["blue"].rates[7] < by_label(recent)["blue"].rates[30]


def test_runs_add_up_and_so_do_devices(bundle, tmp_path):
    """Planted mistakes: a run begins anew; a day of two devices stands there twice."""
    levels = pictures(90, 1)
    watch(tmp_path / "one", bundle, levels)
    for part in np.split(levels, 3):
        watch(tmp_path / "three", bundle, part)
    one, three = (read_counts(tmp_path / name) for name in ("one", "three"))
    for name in ("days", "pictures", "named", "bins", "seen"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))
    both = summarise([tmp_path / "one", tmp_path / "three"])
    assert (both.pictures, both.days) == (180, (20_000,))
    assert by_label(both)["red"].named == 2 * int(one.named[:, 0].sum())
    with pytest.raises(UsageError, match="was named twice"):
        summarise([tmp_path / "one", tmp_path / "one" / ".." / "one"])


def test_days_are_bounded_and_may_come_in_any_order(bundle, tmp_path):
    """Planted mistakes: the oldest stay, a clock set back makes a second row of a day."""
    order = [*range(KEPT + 5), 3, KEPT + 4, 10]
    watch(tmp_path / "w", bundle, pictures(len(order), 1), when=[NOON + DAY * day for day in order])
    counts = read_counts(tmp_path / "w")
    assert counts.days.tolist() == [20_000 + day for day in range(5, KEPT + 5)]
    assert counts.pictures.tolist() == [2 if day in (KEPT + 4, 10) else 1 for day in range(5, KEPT + 5)]
    assert counts.bins.sum(axis=2).tolist() == [[n] * 3 for n in counts.pictures.tolist()]
    assert counts.first == NOON
    assert counts.last == NOON + DAY * (KEPT + 4)


def test_a_label_that_is_not_seen_is_told(bundle, tmp_path):
    """Across runs. Planted mistake: days from the newest picture to now, when the camera was only off."""
    red, dark = pictures(1, 1, tint=(120, -100, -100)), pictures(1, 1, tint=(-100, -100, -100))
    watch(tmp_path / "w", bundle, red, when=NOON)
    watch(tmp_path / "w", bundle, dark, when=NOON + 8 * DAY)
    summary = summarise([tmp_path / "w"])
    uses = by_label(summary)
    assert (uses["red"].seen, uses["red"].unseen) == (NOON, 8)
    assert np.isnan(uses["blue"].seen)
    assert len(summary.unseen) == 3
    assert summarise([tmp_path / "w"], unseen_days=9).unseen == ()
    assert "2024-10-04, 8 days ago" in table(summary)


def test_the_time_is_the_frames_own_where_it_is_one_of_day(bundle, tmp_path):
    """Planted mistake: a film's seconds taken for 1970."""
    monitor = Monitor(tmp_path / "w", bundle, copies=False, clock=lambda: NOON)
    prediction = Prediction((), np.zeros(3, np.float32), np.zeros((1, 1, 3)), np.zeros(3, np.float32))
    for index, time in enumerate((12.5, NOON + 2 * DAY)):
        monitor.write(Result(Frame("x", lambda side: None, index, time), prediction))
    monitor.close()
    assert read_counts(tmp_path / "w").days.tolist() == [20_000, 20_002]


def test_another_process_is_refused_while_one_writes(bundle, tmp_path):
    first = Monitor(tmp_path / "w", bundle, copies=False)
    with pytest.raises(UsageError, match="another process writes to --monitor"):
        Monitor(tmp_path / "w", bundle, copies=False)
    first.close()
    Monitor(tmp_path / "w", bundle, copies=False).close()


def test_what_does_not_fit_is_named(make_bundle, bundle, reference, tmp_path):
    watch(tmp_path / "w", bundle, pictures(3, 1))
    other = make_bundle("other.hpedge", reference, precision="fp32")
    with pytest.raises(UsageError, match=r"watched another bundle .* than .*other\.hpedge; take a new folder"):
        Monitor(tmp_path / "w", other, copies=False)
    watch(tmp_path / "v", other, pictures(3, 1))
    with pytest.raises(UsageError, match="look at one at a time"):
        summarise([tmp_path / "w", tmp_path / "v"])
    with pytest.raises(UsageError, match=r"holds no monitor \(counts\.npz is missing\)"):
        summarise([tmp_path])
    for name, message in {
        "counts.npz": "remove it to begin anew",
        "review.jsonl": "remove it to begin the queue",
    }.items():
        (tmp_path / "v" / name).write_bytes((tmp_path / "v" / name).read_bytes()[:-40])
        with pytest.raises(BadData, match=message):
            Monitor(tmp_path / "v", other, copies=False)
        (tmp_path / "v" / name).unlink()
    Monitor(tmp_path / "v", other, copies=False).close()


def test_a_bundle_without_reference_says_so(make_bundle, reference, tmp_path, capsys):
    """Also one whose reference is of another precision. Planted mistake: compared with that."""
    for name, content in {"old": None, "other": reference}.items():
        bundle = make_bundle(f"{name}.hpedge", content, precision="int8")
        watch(tmp_path / name, bundle, pictures(50, 1))
        assert "has no reference of validation scores" in capsys.readouterr().err
        summary = summarise([tmp_path / name])
        assert {use.reading for use in summary.labels} == {"no reference"}
        assert "no reference" in table(summary)
        assert "Export it again" in render(summary)
        # Its bins are those of the probability.
        counts = read_counts(tmp_path / name)
        chances = bundle.calibration.probabilities(scored(pictures(50, 1)))
        np.testing.assert_array_equal(counts.bins[0, 0], np.histogram(chances[:, 0], BINS, (0, 1))[0])


def test_references_follow_their_labels(make_bundle, reference):
    """Labels were reordered, one added, one renamed. Planted mistake: taken by place."""
    changed = read_reference(make_bundle("c.hpedge", reference, labels=("blue", "new", "red")))
    original = read_reference(make_bundle("o.hpedge", reference))
    np.testing.assert_array_equal(changed.edges[[0, 2]], original.edges[[2, 0]])
    assert changed.counts.sum(axis=1).tolist() == [2000, 0, 2000]
    assert np.abs(original.counts - 200).max() < 10
    with pytest.raises(BadData, match=r"reference\.json cannot be read"):
        read_reference(make_bundle("d.hpedge", reference.replace(b'"edges": [[', b'"edges": [[1, ')))


def test_the_list_can_be_trained_on(bundle, tmp_path, monkeypatch):
    """Copies and paths. Planted mistakes: copies of pictures that left stay; paths from another folder; a name that is
    no UTF-8 ends it.
    """
    monkeypatch.setattr("hpdval_edge.monitor.record.ReviewQueue", lambda *a, **k: ReviewQueue(*a, **k, size=5))
    (tmp_path / "w" / "review").mkdir(parents=True)
    (tmp_path / "w" / "review" / "000900.jpg").write_bytes(b"of a run that was killed")
    for run in range(3):
        watch(tmp_path / "w", bundle, pictures(40, run), copies=True, name=f"{run}-{{}}.jpg")
    data = read_csv(tmp_path / "w" / "review.csv", labels=LABELS)
    assert len(data) == 5
    copies = sorted(path.relative_to(tmp_path / "w").as_posix() for path in (tmp_path / "w" / "review").iterdir())
    assert sorted(data.paths) == copies
    with Image.open(data.absolute(0)) as picture:
        assert picture.size == (4, 4)
    monkeypatch.chdir(tmp_path)
    watch(tmp_path / "v", bundle, pictures(4, 1), name="photos/{}.jpg")
    watch(tmp_path / "v", bundle, pictures(1, 2), name="photos/\udce4{}.jpg")
    assert sorted(Path(path).name for path in read_csv("v/review.csv", labels=LABELS).paths) == [
        f"{n}.jpg" for n in range(4)
    ]
    assert read_csv("v/review.csv", labels=LABELS).absolute(0).resolve().parent == tmp_path / "photos"


KILLED = """
import os, signal, sys
import numpy as np
from hpdval_edge.monitor import record
from hpdval_edge.outputs.output import Result
from hpdval_edge.predictor import Prediction, Predictor
from hpdval_edge.sources.frame import Frame
record.INTERVAL = 0
predictor = Predictor(sys.argv[1], threads=1)
monitor = record.Monitor(__import__("pathlib").Path(sys.argv[2]), predictor.bundle, copies=False)
prediction = predictor(np.zeros((40, 40, 3), np.uint8))
for number in range(25):
    monitor.write(Result(Frame(f"{number}.jpg", None), prediction))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_outright_it_goes_on_from_what_was_saved(tiny_bundle, tmp_path):
    """Planted mistakes: written at the end alone; the lock outlives its process."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tiny_bundle), str(tmp_path / "w")])
    assert done.returncode == -signal.SIGKILL
    assert summarise([tmp_path / "w"]).pictures == 25
    Monitor(tmp_path / "w", load_bundle(tiny_bundle), copies=False).close()


def test_it_writes_now_and_then(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "INTERVAL", 1e9)
    saved = []
    monkeypatch.setattr(record.Counts, "save", lambda self, folder: saved.append(int(self.pictures.sum())))
    watch(tmp_path / "w", bundle, pictures(5, 1))
    assert saved == [5]


class Page(HTMLParser):
    """Collects addresses and complains about tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.images = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_sound_and_loads_nothing(bundle, tmp_path):
    """Planted mistakes: a label's sign taken for a tag; a picture by its path; light alone."""
    watch(tmp_path / "w", bundle, pictures(40, 1, tint=(60, 0, 0)), copies=True)
    text = render(summarise([tmp_path / "w"]))
    page = Page(text)
    assert all(address.startswith("data:") for address in page.addresses)
    assert len(page.images) == 12
    assert all(values["alt"] for values in page.images)
    assert "&lt;green&gt;" in text
    assert "<green>" not in text
    assert "prefers-color-scheme: dark" in text
    assert re.search(r'<tr class="large"><th scope="row">red</th>', text)
    assert "default-src 'none'" in text


def test_from_the_command_line(run_hpedge, tiny, tiny_bundle, tmp_path, monkeypatch):
    """Infer twice, look, fail a check. Planted mistakes: exit code 0 beyond the limit, thresholds of --threshold."""
    monkeypatch.chdir(tmp_path)
    infer = ["infer", tiny / "test", "--model", tiny_bundle, "--monitor", "w", "--threshold", "-1"]
    for _ in range(2):
        code, _, err = run_hpedge(*infer, "--monitor-copies")
        assert code == 0, err
    code, out, _ = run_hpedge("monitor", "w", "--json")
    told = json.loads(out)
    assert (code, told["pictures"], told["validation_pictures"]) == (0, 32, 16)
    bundle = load_bundle(tiny_bundle)
    scores = np.stack([prediction.scores for prediction in Predictor(bundle)(sorted((tiny / "test").iterdir()))])
    for column, row in enumerate(told["labels"]):
        assert row["named"] == 2 * int((scores[:, column] >= bundle.thresholds[column]).sum())
    assert told["bundle"] == sha256((tiny_bundle / "manifest.json").read_bytes())
    code, out, err = run_hpedge("monitor", "w", "--page", "out/w.html")
    assert code == 0
    assert "16 pictures to look at: w/review.csv" in out
    assert Page(Path("out/w.html").read_text(encoding="utf-8")).images
    assert run_hpedge("monitor", "absent")[0] == 2
    assert run_hpedge("infer", tiny / "test", "--model", tiny_bundle, "--monitor-copies")[0] == 2


def test_a_limit_makes_it_a_check(run_hpedge, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    watch(Path("w"), bundle, pictures(400, 1, tint=(30, 0, 0)))
    assert run_hpedge("monitor", "w")[0] == 0
    assert run_hpedge("monitor", "w", "--limit", "0.25")[0] == 1
    assert run_hpedge("monitor", "w", "--limit", "50")[0] == 0


def test_a_page_that_is_a_folder_is_one_sentence(run_hpedge, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    watch(Path("w"), bundle, pictures(1, 1))
    for page in (".", ""):
        code, _, err = run_hpedge("monitor", "w", "--page", page)
        assert (code, err) == (2, "hpedge: --page . is a folder; name a file.\n")


def test_a_limit_without_a_reference_is_no_check(run_hpedge, make_bundle, tmp_path, monkeypatch):
    """Planted mistake: exit code 0, as if nothing had shifted, where nothing could be compared."""
    monkeypatch.chdir(tmp_path)
    watch(Path("w"), make_bundle(), pictures(20, 1))
    code, out, err = run_hpedge("monitor", "w", "--limit", "0.25")
    assert code == 2 and "no reference" in out
    assert "--limit 0.25 has nothing to compare with" in err
