"""The report of a run: its parts, its figures' numbers, and the page in a browser."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from hpdval_edge.bundle import load_bundle
from hpdval_edge.config import override
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.monitor.record import Monitor
from hpdval_edge.outputs.output import Result
from hpdval_edge.predictor import Prediction
from hpdval_edge.sources.frame import Frame
from hpdval_edge.training import model_card
from hpdval_edge.training.report import build_report, write
from hpdval_edge.training.report.chart import GROUP_COLOURS
from hpdval_edge.training.report.facts import read_facts
from hpdval_edge.training.report.page import render
from hpdval_edge.training.report.words import meaning, selection
from hpdval_edge.training.report.write import _collect
from hpdval_edge.training.run_folder import ZERO_SHOT, RunFolder

VOID = {"meta", "link", "img", "source", "br"}
SECTIONS = ("meaning", "groups", "learning", "labels", "curves", "together", "calibration", "thresholds", "pictures",
            "configuration", "environment")  # fmt: skip
PLOTS = ("groups", "learning", "per_class", "precision_recall", "co_occurrence", "calibration")


@pytest.fixture(scope="module")
def work(tiny_run, tiny, tmp_path_factory):
    """A copy of the tiny run's folder with its own copy of the pictures in ./tiny; not yet reported on."""
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("report") / "work")
    shutil.copytree(tiny, folder / "tiny")
    config = folder / "runs" / "tiny" / "config.toml"
    config.write_text(config.read_text().replace(f'path = "{tiny}"', 'path = "tiny"'))
    return folder


@pytest.fixture(scope="module")
def reported(work):
    """The report of ``work``, made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        return work / build_report(RunFolder(Path("runs/tiny"))).path


@pytest.fixture
def own_work(work, tmp_path, monkeypatch):
    """A copy of ``work`` to break, as the current folder; returns its run."""
    folder = shutil.copytree(work, tmp_path / "own")
    monkeypatch.chdir(folder)
    shutil.rmtree(folder / "runs" / ".cache")
    return RunFolder(Path("runs/tiny"))


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are laid out but not drawn, for tests that look at other things."""
    monkeypatch.setattr("hpdval_edge.training.report.chart._svg", lambda figure: b"<svg/>")


class Page(HTMLParser):
    """Collects what the tests ask of a page; complains about tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.headings = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        self.addresses += [values[name] for name in ("src", "href", "srcset") if name in values]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_has_every_part_in_order(reported):
    text = reported.read_text(encoding="utf-8")
    places = [text.index(f'<h2 id="{section}"') for section in SECTIONS]
    assert places == sorted(places)
    assert reported.stat().st_size < 5e6
    plots = reported.parent / "plots"
    assert sorted(path.stem for path in plots.iterdir()) == sorted(PLOTS)
    for path in plots.iterdir():
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    result = json.loads((reported.parent / "metrics.json").read_text())["stage2"]
    assert f"<b>{result['mAP']:.1f}</b>" in text
    for label in result["labels"]:
        assert label in text
    assert "prompt.init" in text
    assert "open_clip_torch" in text


def test_what_the_model_met_in_use_is_a_part(own_work, undrawn, tiny_bundle, tmp_path):
    """Planted mistakes: its HTML is escaped; the part is empty in a report without it."""
    bundle = load_bundle(tiny_bundle)
    monitor = Monitor(tmp_path / "watch", bundle, copies=False)
    scores = np.zeros(4, np.float32)
    monitor.write(Result(Frame("a.jpg", None), Prediction((), scores, np.zeros((4, 4, 4)), scores)))
    monitor.close()
    text = build_report(own_work, tmp_path / "with.html", [tmp_path / "watch"]).path.read_text(encoding="utf-8")
    assert '<h2 id="in-use">' in text
    assert '<th scope="row">bright square</th><td>' in text
    assert all(address.startswith(("#", "data:")) for address in Page(text).addresses)
    with pytest.raises(UsageError, match="holds no monitor"):
        build_report(own_work, tmp_path / "with.html", [tmp_path])
    assert "in-use" not in render(_collect(read_facts(own_work), None, None, []))


def test_the_page_is_sound_and_loads_nothing(reported):
    """Planted mistakes: a picture from another host; an image without alt; a heading that skips a level."""
    text = reported.read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "script" not in {tag for tag, _ in page.tags}
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text
    assert all(values.get("alt") for tag, values in page.tags if tag == "img")
    assert page.headings[0] == 1
    assert all(deeper - level <= 1 for level, deeper in zip(page.headings, page.headings[1:], strict=False))
    assert ("html", {"lang": "en"}) in page.tags


def test_the_same_run_gives_the_same_file(reported, work, tmp_path, monkeypatch):
    """Planted mistake: no hash salt for the names inside the figures."""
    monkeypatch.chdir(work)
    out = build_report(RunFolder(Path("runs/tiny")), tmp_path / "again.html").path
    assert out.read_bytes() == reported.read_bytes()


def test_labels_are_shown_as_they_are(work, monkeypatch):
    """Planted mistake: autoescape off."""
    monkeypatch.chdir(work)
    facts = read_facts(RunFolder(Path("runs/tiny")))
    odd = ('<b>&"x"', "$\\alpha$ $100", "日本語", "a" * 80)
    notes = []
    text = render(_collect(replace(facts, labels=odd), None, None, notes))
    Page(text)
    for label in odd:
        assert escape(label) in text.replace("&#34;", "&quot;")
        assert label in unescape(text)
    assert "<b>&" not in text
    assert len(notes) == 1
    assert "in no font" in notes[0]


def test_pictures_that_are_gone_cost_their_parts_only(own_work, undrawn, capsys):
    """Planted mistakes: the stale figures of an earlier report kept; no word on the page."""
    assert len(build_report(own_work).plots) == len(PLOTS)
    (Path("tiny") / "test" / "03.png").unlink()
    shutil.rmtree("runs/.cache")
    report = build_report(own_work)
    text = report.path.read_text(encoding="utf-8")
    assert "03.png" not in text
    for section in SECTIONS:
        assert (f'id="{section}"' in text) == (section not in ("curves", "calibration", "pictures"))
    assert sorted(path.stem for path in report.plots) == ["co_occurrence", "groups", "learning", "per_class"]
    assert not (own_work.path / "plots" / "calibration.svg").exists()
    assert "cannot be scored any more" in unescape(text)
    assert "note: the pictures cannot be scored any more" in capsys.readouterr().err
    Page(text)


def test_a_data_set_that_is_gone_costs_its_parts_only(own_work, undrawn, capsys):
    shutil.rmtree("tiny")
    report = build_report(own_work)
    assert sorted(path.stem for path in report.plots) == ["groups", "learning", "per_class"]
    assert "the data set cannot be read any more" in capsys.readouterr().err
    assert "16 test" in report.path.read_text(encoding="utf-8")


def test_pictures_that_changed_are_noted(own_work, undrawn):
    rows = Path("tiny/test.csv").read_text().splitlines()
    Path("tiny/test.csv").write_text("\n".join(rows[:-3]) + "\n")
    notes = build_report(own_work).notes
    assert len(notes) == 1
    assert "are of 13 with mAP" in notes[0]


def test_thresholds_and_calibration_of_today_are_shown(own_work, undrawn, monkeypatch):
    """After ``hpedge calibrate``. Planted mistakes: no note; the calibrated series left out."""
    shown = []
    real = write.calibration_chart
    monkeypatch.setattr(write, "calibration_chart", lambda series: shown.append(series) or real(series))
    stored = own_work.read_json("thresholds.json")
    plain = {key: value for key, value in stored["fp32"].items() if key not in ("temperature", "bias")}
    own_work.write_json("thresholds.json", {"fp32": plain})
    assert build_report(own_work).notes == ()
    fitted = {**plain, "values": [5.0] * 4, "objective": "precision=0.9", "temperature": 2.0, "bias": 1.0}
    own_work.write_json("thresholds.json", {"fp32": fitted})
    report = build_report(own_work)
    assert "fitted anew since training: with those of today OF1 is 0.0" in report.notes[0]
    assert [list(series) for series in shown] == [["as trained"], ["as trained", "calibrated"]]
    assert "Thresholds aim at precision of at least 0.9" in report.path.read_text()
    assert shown[1]["calibrated"].averages[0] < shown[1]["as trained"].averages[0]


def test_weights_of_the_reported_stage_are_taken(own_work):
    """While stage 2 trains, best and last are its own. Planted mistake: always take the selected weights."""
    reports = own_work.read_json("metrics.json")
    del reports["stage2"]
    own_work.write_json("metrics.json", reports)
    facts = read_facts(own_work)
    assert facts.stage == "stage1"
    assert facts.weights.name == "stage1.safetensors"
    own_work.write_json("metrics.json", {**reports, "stage1": {**reports["stage1"], "mAP": None}})
    with pytest.raises(BadData, match="none of the test pictures has a label"):
        read_facts(own_work)
    del reports["stage1"]
    own_work.write_json("metrics.json", reports)
    with pytest.raises(UsageError, match="has no finished stage to report on; go on with `hpedge train --resume"):
        read_facts(own_work)


def test_a_run_without_test_split_or_teacher_report_says_so(own_work, undrawn):
    reports = own_work.read_json("metrics.json")
    del reports[ZERO_SHOT]
    reports["stage2"]["split"] = "val"
    own_work.write_json("metrics.json", reports)
    report = build_report(own_work)
    text = unescape(report.path.read_text(encoding="utf-8"))
    assert "validation split, which also chose the epoch" in text
    assert "teacher alone" not in text
    assert len(report.plots) == len(PLOTS)


def test_an_epoch_chosen_on_the_test_split_is_said(own_work, undrawn, monkeypatch):
    """Planted mistakes: the chart reads validation figures; the page says the split chose nothing."""
    titles = []
    real = Axes.set_ylabel
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, text, **more: titles.append(text) or real(self, text, **more))
    config, log = own_work.path / "config.toml", own_work.path / "metrics.jsonl"
    config.write_text(config.read_text().replace('select = "best_val"', 'select = "best_test"'))
    log.write_text(log.read_text().replace('"val":', '"test":'))
    report = build_report(own_work)
    text = unescape(report.path.read_text(encoding="utf-8"))
    assert len(report.plots) == len(PLOTS)
    assert "test AP, %" in titles
    assert "validation AP, %" not in titles
    assert "test split, WHICH ALSO CHOSE THE EPOCH (eval.select=best_test)" in text
    assert "AP on the test split after every epoch" in text
    assert "The epoch of the highest mAP on the TEST SPLIT (eval.select=best_test) is kept." in text


def test_a_last_epoch_was_not_chosen(own_work):
    """Planted mistake: the sentence of best_val for every selection."""
    facts = read_facts(own_work)
    facts = replace(facts, config=override(facts.config, {"eval.select": "last"}))
    assert selection(facts.config) == "The last epoch is kept whatever it scores."
    reports = {**facts.reports, facts.stage: {**facts.result, "split": "val"}}
    sentences = " ".join(meaning(replace(facts, reports=reports), None, None))
    assert "validation split, which also chose the thresholds, so that those flatter" in sentences


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ("last", " The last epoch was kept; thresholds, temperature and bias were chosen on the validation split."),
        ("best_val", " Epoch, thresholds, temperature and bias were chosen on the validation split."),
        ("best_test", " The epoch was CHOSEN ON THE TEST SPLIT, so that the figures flatter; thresholds,"),
    ],
)
def test_the_model_card_says_what_chose_the_epoch(own_work, tmp_path, select, words):
    """Planted mistake: "Epoch ... chosen on the validation split" for all."""
    facts = read_facts(own_work)
    session = SimpleNamespace(
        config=override(facts.config, {"eval.select": select}),
        splits=SimpleNamespace(train=range(48), val=range(16), test=None),
        class_counts=facts.class_counts,
        labels=facts.labels,
    )
    model_card.write(tmp_path / "MODEL_CARD.md", session, facts.reports)
    assert words in (tmp_path / "MODEL_CARD.md").read_text()


def test_sentences_follow_the_figures(work, monkeypatch):
    """Planted mistakes: "above" for a loss; "do not overlap" for intervals that do."""
    monkeypatch.chdir(work)
    facts = read_facts(RunFolder(Path("runs/tiny")))
    reports = json.loads(json.dumps(facts.reports))
    reports[ZERO_SHOT] |= {"mAP": 60.0, "interval": {"mAP": [58.0, 62.0]}}
    reports["stage1"]["mAP"] = 49.0
    reports["stage2"] |= {"epoch": 0, "mAP": 50.0, "interval": {"mAP": [48.0, 52.0]}}
    text = " ".join(meaning(replace(facts, reports=reports), None, None))
    assert "reaches 60.0; this run is 10.0 below that; their 95 % intervals do not overlap." in text
    assert "Learning the prompts (stage 2) added 1.0" in text
    assert "In stage2 no epoch raised the validation mAP" in text
    reports["stage2"] |= {"mAP": 61.0, "interval": {"mAP": [59.0, 63.0]}}
    text = " ".join(meaning(replace(facts, reports=reports), None, None))
    assert "this run is 1.0 above that; their 95 % intervals overlap." in text


def test_the_command_writes_where_it_is_told(own_work, undrawn, run_hpedge):
    code, out, err = run_hpedge("report", "--out", "here/tiny.html", "--json")
    assert code == 0, err
    written = json.loads(out)
    assert written["report"] == "here/tiny.html"
    assert written["notes"] == []
    assert len(written["plots"]) == len(PLOTS)
    assert Path("here/tiny.html").is_file()
    code, out, err = run_hpedge("report", "tiny", "--out", "here")
    assert (code, out) == (2, "")
    assert "--out here is a folder" in err
    assert run_hpedge("report", "absent")[0] == 2


def test_the_command_says_where_the_report_is(own_work, undrawn, run_hpedge):
    code, out, err = run_hpedge("report")
    assert (code, err) == (0, "")
    assert out.startswith("report runs/tiny/report.html (")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Runs headless Chromium; returns (stdout, stderr)."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    profile = tmp_path_factory.mktemp("browser")

    def run(page: Path, *options: str) -> tuple[str, str]:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command += ["--hide-scrollbars", "--disable-background-networking", "--enable-logging=stderr"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=5000", *options, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, done.stderr

    return run


def test_a_browser_shows_it_and_asks_the_network_nothing(browser, reported, tmp_path):
    """A page that asks is caught: the policy in its head makes Chromium complain on the console."""
    shot = tmp_path / "shot.png"
    _, log = browser(reported, f"--screenshot={shot}", "--window-size=1200,5000")
    assert "CONSOLE" not in log
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (5000, 1200, 3)
    # Something stands in every stretch of the page, the bars of the figures among it.
    inked = (pixels.min(axis=2) < 200).any(axis=1)
    assert all(stretch.any() for stretch in inked.reshape(-1, 250))
    groups = json.loads((reported.parent / "metrics.json").read_text())["stage2"]["groups"]
    for group in (group for group, count in groups.items() if count):
        colour = [int(GROUP_COLOURS[group][place : place + 2], 16) for place in (1, 3, 5)]
        assert (np.abs(pixels - colour).max(axis=2) < 6).sum() > 1000
    asking = tmp_path / "asking.html"
    asking.write_text(reported.read_text(encoding="utf-8").replace("<main>", '<main><img src="http://127.0.0.1:9/x">'))
    assert "CONSOLE" in browser(asking, "--dump-dom")[1]


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_sticks_out_sideways(browser, reported, tmp_path, width):
    """Planted mistake: a table outside its scrolling frame."""
    frame = tmp_path / "frame.html"
    page = escape(reported.read_text(encoding="utf-8"))
    measure = "document.title = 'width ' + this.contentDocument.documentElement.scrollWidth"
    frame.write_text(f'<iframe width="{width}" style="border: 0" srcdoc="{page}" onload="{measure}"></iframe>')
    dom, _ = browser(frame, "--dump-dom", "--window-size=1400,1000")
    assert f"<title>width {width}</title>" in dom
