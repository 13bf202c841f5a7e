"""Temperature and bias against a general minimiser, and `hpedge calibrate` on a run and on bundles."""

import errno
import json
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hpdval_edge import Predictor, cli, load_bundle
from hpdval_edge.bundle import Calibration, sha256
from hpdval_edge.errors import UsageError
from hpdval_edge.training.calibration import calibration_quality, fit_calibration, fit_entry
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.evaluate import report, score_store
from hpdval_edge.training.measure import check_images, named_pictures
from hpdval_edge.training.metrics import calibration_error
from hpdval_edge.training.thresholds import F1, Objective, fit


def example(seed=0, images=3000, classes=6, temperature=0.6, bias=4.0, scale=20.0):
    """Cosines whose labels were drawn with the probabilities of a known calibration."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(0.15, 0.1, (images, classes)).astype(np.float32)
    truth = Calibration(scale, temperature, bias)
    return scores, generator.random(scores.shape) < truth.probabilities(scores), truth


def platt_loss(scores, targets, calibration):
    """Mean log-loss against Platt's targets, as the paper writes it."""
    positives, negatives = targets.sum(), (~targets).sum()
    wanted = np.where(targets, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    logits = (calibration.logit_scale * scores.astype(np.float64) - calibration.bias) / calibration.temperature
    return np.mean(np.logaddexp(0, logits) - wanted * logits)


def test_a_known_calibration_is_found():
    """Planted mistakes: the bias with the wrong sign, the bias not divided by T, T for 1 / T."""
    scores, targets, truth = example(images=20_000)
    found = fit_calibration(scores, targets, 20.0)
    assert found.temperature == pytest.approx(truth.temperature, rel=0.05)
    assert found.bias == pytest.approx(truth.bias, rel=0.05)


@pytest.mark.parametrize("case", ["spread", "separable", "few", "far from zero", "tiny scores", "huge scores"])
def test_nothing_nearby_has_a_lower_loss(case, monkeypatch):
    """Planted mistakes: targets of 0 and 1 (no minimum where separable), a full step that overshoots, a block lost."""
    scores, targets, _ = example(images=200)
    if case == "separable":
        targets = scores > 0.2
    if case == "few":
        targets = np.zeros_like(targets)
        targets[3, 0] = True
    scores = scores + np.float32(0.8 * (case == "far from zero"))
    scores = scores * np.float32({"tiny scores": 1e-2, "huge scores": 50}.get(case, 1))
    whole = fit_calibration(scores, targets, 20.0)
    lowest = platt_loss(scores, targets, whole)
    for factor in (0.99, 1.01):
        # Along the bias, and along T with the decision boundary held where it is.
        assert platt_loss(scores, targets, Calibration(20.0, whole.temperature, factor * whole.bias)) > lowest
        assert platt_loss(scores, targets, Calibration(20.0, factor * whole.temperature, whole.bias)) > lowest
    monkeypatch.setattr("hpdval_edge.training.average_precision.PAIRS", 100)
    blocks = fit_calibration(scores, targets, 20.0)
    assert (blocks.temperature, blocks.bias) == pytest.approx((whole.temperature, whole.bias), rel=1e-5)


def test_scores_that_tell_nothing_or_the_contrary_give_flat_probabilities():
    """Planted mistakes: a negative temperature, which turns the ranking round; a singular system on equal scores."""
    scores = np.linspace(-1, 1, 41)[:, None]
    turned = fit_calibration(scores, scores < 0, 20.0)
    assert turned.temperature > 0
    assert np.ptp(turned.probabilities(scores)) < 0.05
    equal = fit_calibration(np.full((40, 1), 0.3), np.arange(40)[:, None] < 10, 20.0)
    np.testing.assert_allclose(equal.probabilities(np.array([0.3])), 11 / 42, atol=0.01)


def test_probabilities_never_overflow():
    """Planted mistake: 1 / (1 + exp(-z)), whose warning is an error here."""
    steep = Calibration(100.0, temperature=1e-3, bias=5.0)
    values = steep.probabilities(np.array([[-1, 0, 1]], np.float32))
    assert values.dtype == np.float32
    assert values.tolist() == [[0.0, 0.0, 1.0]]
    plain = Calibration(20.0).probabilities(np.array([0.1]))
    assert plain.item() == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_calibration_error_falls_and_is_cross_fitted():
    """Planted mistakes: before and after exchanged; the cross-fitted figure from probabilities of the whole fit."""
    scores, targets, _ = example(images=300)
    found = fit_calibration(scores, targets, 20.0)
    quality = calibration_quality(scores, targets, found)
    assert quality["before"] > 0.3 > 0.05 > quality["after"]
    assert 0 < quality["cross_fitted"] < 0.05
    assert quality["cross_fitted"] != quality["after"]
    assert calibration_quality(scores[:1], targets[:1], found)["cross_fitted"] is None


def labelled(targets, tmp_path):
    names = tuple(f"{row}.png" for row in range(len(targets)))
    labels = tuple(f"label {column}" for column in range(targets.shape[1]))
    return LabelledImages(tmp_path, names, targets.astype(np.uint8), labels)


@pytest.mark.parametrize("name", ["precision", "recall"])
def test_labels_below_the_level_are_named_with_what_they_reach(name, tmp_path):
    """Planted mistakes: recall named for precision, labels without positives passed over."""
    scores, targets, _ = example(images=60)
    targets[:, 4] = False
    targets[:, 5] = False
    targets[scores[:, 5].argmin(), 5] = True
    objective = Objective(name, 0.9)
    entry = fit_entry(scores, labelled(targets, tmp_path), logit_scale=20.0, objective=objective, precision="fp32")
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert entry["objective"] == f"{name}=0.9"
    predicted = scores >= np.float32(entry["values"])
    expected = []
    for c in range(6):
        hits = (predicted[:, c] & targets[:, c]).sum()
        of = (predicted if name == "precision" else targets)[:, c].sum()
        if of == 0 or hits / of < 0.9:
            reached = pytest.approx(hits / of) if of else None
            expected.append({"label": f"label {c}", "positives": targets[:, c].sum(), "reached": reached})
    assert entry["short"] == expected
    assert "label 4" in [row["label"] for row in entry["short"]]
    plain = fit_entry(scores, labelled(targets, tmp_path), logit_scale=20.0, objective=F1, precision="fp32")
    assert plain["short"] == []


def test_reports_take_probabilities_from_raw_scores(tmp_path):
    """Planted mistakes: probabilities of softmaxed scores, of the uncalibrated sigmoid where there is a calibration."""
    scores, targets, truth = example(images=90)
    data = labelled(targets, tmp_path)
    for post in ("none", "softmax"):
        found = report(scores, data, data.class_counts, post=post, calibration=truth)["ECE"]
        assert found == pytest.approx(calibration_error(truth.probabilities(scores), targets))
    plain = report(scores, data, data.class_counts, calibration=Calibration(20.0))["ECE"]
    assert plain == pytest.approx(calibration_error(Calibration(20.0).probabilities(scores), targets))
    assert "ECE" not in report(scores, data, data.class_counts)


class Store:
    """Pictures of one number each: their row."""

    def __len__(self):
        return 3000

    def __getitem__(self, rows):
        return rows


def peaks(scorer, data):
    """Most bytes held while ``data`` are scored, and while they are reported on with the scores there."""
    tracemalloc.start()
    try:
        scores = score_store(scorer, Store(), batch=70)
        alone = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        plain = Calibration(5.0)
        report(scores, data, data.class_counts, thresholds=np.zeros(400, np.float32), calibration=plain)
        return alone, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_scores_are_held_once(tmp_path, monkeypatch):
    """Planted mistakes: the parts and their concatenation together, float64 probabilities of all images."""
    monkeypatch.setattr("hpdval_edge.training.average_precision.PAIRS", 1 << 14)
    noise = np.random.default_rng(0).standard_normal(400, dtype=np.float32)

    def scorer(rows):
        return np.sin(rows.astype(np.float32)[:, None] + noise)

    scores = score_store(scorer, Store(), batch=70)
    np.testing.assert_array_equal(scores, scorer(np.arange(3000)))
    assert scores.dtype == np.float32
    data = labelled(scores > 0.9, tmp_path)
    # What else allocates in the process is not there every time; what the code holds is.
    alone, reported = np.min([peaks(scorer, data) for _ in range(3)], axis=0)
    assert alone < 1.3 * scores.nbytes
    # The targets as bool are a quarter; float64 probabilities alone would be twice the scores.
    assert reported < 1.75 * scores.nbytes


@pytest.fixture
def work(tiny_run, tiny_bundle, tmp_path, monkeypatch):
    """A copy of the folder with the tiny run and its fp16 bundle."""
    folder = shutil.copytree(tiny_run, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hpedge(work, monkeypatch, capsys):
    """Run the command there; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hpedge", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


def run_thresholds():
    return json.loads(Path("runs/tiny/thresholds.json").read_text())


def bundle_scores(bundle, tiny, split):
    predictor = Predictor(bundle)
    rows = (tiny / f"{split}.csv").read_text().splitlines()[1:]
    targets = [[label in row.partition(",")[2].split(";") for label in predictor.labels] for row in rows]
    scores = [prediction.scores for prediction in predictor([tiny / row.partition(",")[0] for row in rows])]
    return np.stack(scores), np.array(targets)


def test_a_run_and_its_bundle_are_fitted_on_their_own_scores(hpedge, tiny):
    """Planted mistakes: the run's thresholds copied into the bundle, the test split, a manifest of the old file.

    A killed export has left the bundle moved aside. Planted mistake: taken for a run without one.
    """
    Path("runs/tiny/model.hpedge").rename("runs/tiny/.model.hpedge.x.old.partial")
    code, out, err = hpedge("calibrate", "--objective", "recall=0.8", "--json")
    assert code == 0, err
    full, half = json.loads(out)["fits"]
    assert [(fit_["model"], fit_["fitted_at"]) for fit_ in (full, half)] == [
        ("runs/tiny", "fp32"),
        ("runs/tiny/model.hpedge", "fp16"),
    ]
    stored = run_thresholds()
    for fitted, precision in ((full, "fp32"), (half, "fp16")):
        del fitted["model"]
        assert stored[precision] == fitted
    bundle = load_bundle("runs/tiny/model.hpedge")
    assert (bundle.fitted_at, bundle.objective) == ("fp16", "recall=0.8")
    scores, targets = bundle_scores(bundle, tiny, "val")
    expected = fit(scores, targets, Objective("recall", 0.8))
    np.testing.assert_allclose(bundle.thresholds, expected.values, atol=1e-6)
    found = fit_calibration(scores, targets, bundle.manifest.logit_scale)
    assert bundle.calibration.temperature == pytest.approx(found.temperature, rel=1e-3)
    assert full["values"] != half["values"]


def test_the_objective_of_the_last_fit_is_kept(hpedge):
    """Planted mistake: f1 whenever no objective is given."""
    assert hpedge("calibrate", "tiny", "--objective", "precision=0.7")[0] == 0
    code, out, _ = hpedge("calibrate", "tiny")
    assert code == 0
    assert [line.split(": ")[1].split(" on ")[0] for line in out.splitlines() if line.startswith("runs/")] == [
        "precision=0.7",
        "precision=0.7",
    ]
    assert "cross-fitted" in out


def test_a_bundle_alone_needs_pictures(hpedge, tiny, work):
    shutil.copytree("runs/tiny/model.hpedge", "alone.hpedge")
    before = run_thresholds()
    code, out, err = hpedge("calibrate", "alone.hpedge")
    assert (code, out) == (2, "")
    assert "pass --data, e.g. hpedge calibrate alone.hpedge --data val.csv" in err
    code, out, err = hpedge("calibrate", "alone.hpedge", "--data", tiny / "val.csv", "--json")
    assert code == 0, err
    (fitted,) = json.loads(out)["fits"]
    assert load_bundle("alone.hpedge").thresholds.tolist() == fitted["values"]
    assert fitted["pictures"] == 16
    assert run_thresholds() == before


def test_a_folder_gives_its_validation_part(hpedge, tiny):
    """The test split never chooses. Planted mistake: the test part, as `hpedge eval` takes."""
    by_folder = json.loads(hpedge("calibrate", "runs/tiny/model.hpedge", "--data", tiny, "--json")[1])
    by_list = json.loads(hpedge("calibrate", "runs/tiny/model.hpedge", "--data", tiny / "val.csv", "--json")[1])
    assert by_folder == by_list


def test_a_folder_without_a_validation_part_is_refused(tiny, tmp_path):
    """Planted mistake: a part held out of its training list, which the run may have learnt from."""
    shutil.copy(tiny / "train.csv", tmp_path / "train.csv")
    labels = tuple((tiny / "labels.txt").read_text().splitlines())
    for part, name in (("val", "validation"), ("test", "test")):
        with pytest.raises(UsageError, match=f"has no {name} part; pass a list or CSV file"):
            named_pictures(str(tmp_path), str(tiny), labels, part)
        assert named_pictures(str(tiny), None, labels, part)[0] == part
    with pytest.raises(UsageError, match="--data demo brings its own pictures; leave --images out"):
        named_pictures("demo", str(tiny), labels, "val")
    with pytest.raises(UsageError, match="belongs to a --data list"):
        check_images("folder")


def test_a_zipped_bundle_stays_as_it_is(hpedge, tiny):
    shutil.make_archive("model", "zip", "runs/tiny", "model.hpedge")
    shutil.move("model.zip", "zipped.hpedge")
    code, _, err = hpedge("calibrate", "zipped.hpedge", "--data", tiny / "val.csv")
    assert code == 2
    assert "is zipped; unpack it" in err


def test_a_bundle_with_more_labels_is_left_alone(hpedge, work):
    """Planted mistake: scores of five labels against targets of four."""
    path = work / "runs" / "tiny" / "model.hpedge" / "manifest.json"
    manifest = json.loads(path.read_text())
    thresholds = path.with_name("thresholds.json")
    entry = json.loads(thresholds.read_text())
    names = ["red", "green", "blue", "shiny square"]
    entry["fp16"]["labels"] = names
    thresholds.write_text(json.dumps(entry))
    files = {**manifest["files"], "thresholds.json": sha256(thresholds.read_bytes())}
    path.write_text(json.dumps({**manifest, "labels": names, "files": files}))
    code, out, err = hpedge("calibrate", "tiny")
    assert code == 0, err
    assert "model.hpedge has other labels than the run" in err
    assert len([line for line in out.splitlines() if line.startswith("runs/")]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent"], 2, "is no run"),
        (["--objective", "f2"], 2, "objective 'f2' is not f1, precision=P or recall=R"),
        (["--data", "absent.csv"], 2, "absent.csv"),
        (["--images", "x"], 2, "belongs to a --data list"),
        (["absent.hpedge", "--data", "x.csv"], 2, "does not exist"),
    ],
)
def test_mistakes_are_one_line_with_the_right_code(hpedge, arguments, code, message):
    before = run_thresholds()
    found, out, err = hpedge("calibrate", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert run_thresholds() == before


def test_pictures_without_any_label_are_refused(hpedge, tiny):
    Path("empty.csv").write_text("path,labels\nval/00.png,\nval/01.png,\n")
    code, _, err = hpedge("calibrate", "tiny", "--data", "empty.csv", "--images", tiny)
    assert code == 3
    assert "label" in err


def test_a_full_disk_leaves_the_bundle_whole(hpedge, tiny, monkeypatch):
    """Planted mistake: thresholds.json written in place, with a manifest that no longer fits."""
    before = load_bundle("runs/tiny/model.hpedge").manifest
    original = shutil.copyfile

    def full(source, target):
        if str(source).endswith("model.onnx"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(source, target)

    monkeypatch.setattr("hpdval_edge.bundle.shutil.copyfile", full)
    code, _, err = hpedge("calibrate", "runs/tiny/model.hpedge", "--data", tiny / "val.csv", "--objective", "recall=1")
    assert code == 4
    assert "no space left" in err
    assert load_bundle("runs/tiny/model.hpedge").manifest == before
