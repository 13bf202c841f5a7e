"""Labels of a bundle: list, add, rename, remove, reorder, and a Predictor that takes them over while it runs."""

import errno
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from hpdval_edge import Predictor, load_bundle
from hpdval_edge import bundle as bundle_module
from hpdval_edge.bundle import rewrite, sha256
from hpdval_edge.errors import BadData, MissingDependency, UsageError
from hpdval_edge.labels import (
    NewLabels,
    add_labels,
    list_labels,
    remove_labels,
    rename_labels,
    reorder_labels,
    shared_threshold,
)
from hpdval_edge.monitor.reference import read_reference

LABELS = ("red", "green", "blue", "bright square")


@pytest.fixture
def path(tiny_bundle, tmp_path):
    """A copy of the tiny bundle to change."""
    return shutil.copytree(tiny_bundle, tmp_path / "copy.hpedge")


def some(bundle, *names, seed=0, **changes):
    """Random embeddings of ``names`` in the bundle's text space."""
    banks = np.random.default_rng(seed).standard_normal((2, len(names), bundle.manifest.embed_dim))
    values = {"fingerprint": bundle.manifest.provenance["text_space"], **changes}
    return NewLabels(names, **{"text_global": 3 * banks[0], "text_local": banks[1], **values})


def entry(path):
    return json.loads((path / "thresholds.json").read_text())["fp16"]


def edit_entry(path, **changes):
    bundle = load_bundle(path)
    text = json.dumps({"fp16": {key: value for key, value in {**entry(path), **changes}.items() if value is not None}})
    rewrite(bundle, bundle.manifest, {"thresholds.json": text.encode()})
    return load_bundle(path)


def test_added_labels_leave_everything_else_as_it_was(path):
    """Planted mistakes: rows of any length, the golden scores of the wrong bank, the counts or the card forgotten, the
    median instead of the stored shared threshold, the whole list marked not fitted."""
    before, images, scores = load_bundle(path), *load_bundle(path).golden()
    new = some(before, "zebra", "gnu")
    bundle = add_labels(before, new)
    assert bundle.manifest.labels == (*LABELS, "zebra", "gnu")
    assert bundle.unfitted == {"zebra", "gnu"}
    assert [row.fitted for row in list_labels(bundle)] == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(bundle.thresholds[:4], before.thresholds)
    assert bundle.thresholds[4:].tolist() == [np.float32(entry(path)["shared"])] * 2
    np.testing.assert_array_equal(bundle.text_global[:4], before.text_global)
    for bank, given in ((bundle.text_global, new.text_global), (bundle.text_local, new.text_local)):
        np.testing.assert_allclose(bank[4:], given / np.linalg.norm(given, axis=1, keepdims=True), atol=1e-6)
    assert bundle.manifest.provenance["class_counts"][4:] == [0, 0]
    changed = {name for name, digest in bundle.manifest.files.items() if digest != before.manifest.files[name]}
    assert changed == {"text.safetensors", "thresholds.json", "golden.npz", "MODEL_CARD.md"}
    golden_images, golden = bundle.golden()
    np.testing.assert_array_equal(golden_images, images)
    np.testing.assert_array_equal(golden[:, :4], scores)
    predicted = [prediction.scores for prediction in Predictor(path).predict_pixels(images)]
    np.testing.assert_allclose(np.array(predicted)[:, 4:], golden[:, 4:], atol=1e-6)
    card = (path / "MODEL_CARD.md").read_text()
    assert "recogniser with 6 labels" in card and card.endswith("| zebra | 0 |\n| gnu | 0 |\n")


def test_renamed_reordered_and_removed_labels_keep_their_scores(path):
    """Planted mistakes: names moved without their columns, in the banks, the thresholds, the counts or golden.npz."""
    before = edit_entry(path, short=[{"label": "red", "positives": 1, "reached": 0.5}, {"label": "blue"}])
    counts, golden = before.manifest.provenance["class_counts"], before.golden()[1]
    bundle = rename_labels(before, {"red": "green", "green": "red"})
    assert bundle.manifest.labels == ("green", "red", "blue", "bright square")
    assert [row["label"] for row in entry(path)["short"]] == ["green", "blue"]
    bundle = reorder_labels(bundle, ["bright square", "red"])
    assert bundle.manifest.labels == ("bright square", "red", "green", "blue")
    bundle = remove_labels(bundle, ["blue"])
    order = [3, 1, 0]
    assert bundle.manifest.labels == ("bright square", "red", "green")
    assert bundle.manifest.provenance["class_counts"] == [counts[i] for i in order]
    assert [row["label"] for row in entry(path)["short"]] == ["green"]
    np.testing.assert_array_equal(bundle.thresholds, before.thresholds[order])
    np.testing.assert_array_equal(bundle.text_local, before.text_local[order])
    np.testing.assert_array_equal(bundle.golden()[1], golden[:, order])
    predicted = [prediction.scores for prediction in Predictor(path).predict_pixels(bundle.golden()[0])]
    np.testing.assert_allclose(predicted, bundle.golden()[1], atol=2e-3)


def test_reference_scores_follow_their_labels(path):
    """Planted mistakes: rows left under the old names; a label added anew that inherits those of a removed one."""
    before = read_reference(load_bundle(path))
    bundle = rename_labels(load_bundle(path), {"red": "green", "green": "red"})
    np.testing.assert_array_equal(read_reference(bundle).edges, before.edges)
    np.testing.assert_array_equal(read_reference(bundle).rates, before.rates)
    bundle = reorder_labels(remove_labels(bundle, ["blue"]), ["bright square"])
    np.testing.assert_array_equal(read_reference(bundle).counts, before.counts[[3, 0, 1]])
    bundle = add_labels(bundle, some(bundle, "blue"))
    assert not read_reference(bundle).counts[3].any()


def test_bundles_without_the_newer_keys(path):
    """The median of the fitted thresholds stands in for the shared one. Planted mistake: the mean, or of all labels."""
    bundle = edit_entry(path, shared=None, values=[0.1, 0.2, 0.4, 9.0], fitted=[True, True, True, False])
    assert bundle.unfitted == {"bright square"}
    assert add_labels(bundle, some(bundle, "zebra")).thresholds[4] == np.float32(0.2)
    bundle = edit_entry(path, fitted=None)
    assert bundle.unfitted == set()
    assert shared_threshold(bundle, {"shared": 0.25}) == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: rename_labels(b, {"redd": "x"}), "'redd' is none of the 4 labels of .*; close: red"),
        (lambda b: rename_labels(b, {"red": "blue"}), "label 'blue' would be there twice"),
        (lambda b: rename_labels(b, {"red": " x"}), "' x' is no label name"),
        (lambda b: rename_labels(b, {"red": "a\nb"}), r"'a\\nb' is no label name"),
        (lambda b: rename_labels(b, {}), "no label is named"),
        (lambda b: remove_labels(b, ["gone"]), "'gone' is none of the 4 labels of .*; the first are "),
        (lambda b: remove_labels(b, LABELS), "would have no label left"),
        (lambda b: reorder_labels(b, ["red", "red"]), "label 'red' would be there twice"),
        (lambda b: add_labels(b, some(b, "red")), "label 'red' would be there twice"),
        (lambda b: add_labels(b, some(b, "a", "a")), "label 'a' would be there twice"),
        (lambda b: add_labels(b, some(b, "")), "'' is no label name"),
        (lambda b: add_labels(b, some(b)), "no label is named"),
        (
            lambda b: add_labels(b, some(b, "a", fingerprint="0" * 64)),
            "made in text space 000000000000, bundle .*'tiny'",
        ),
    ],
)
def test_wrong_changes_change_nothing(path, change, message):
    before = {file.name: sha256(file.read_bytes()) for file in path.iterdir()}
    with pytest.raises(UsageError, match=message):
        change(load_bundle(path))
    assert {file.name: sha256(file.read_bytes()) for file in path.iterdir()} == before


@pytest.mark.parametrize("bank", [np.zeros((1, 24)), np.full((1, 24), np.nan), np.ones((1, 25)), np.ones(24)])
def test_embeddings_that_are_none(path, bank):
    bundle = load_bundle(path)
    for view in ("global", "local"):
        with pytest.raises(BadData, match=rf"the {view} text embeddings of the new labels"):
            add_labels(bundle, some(bundle, "a", **{f"text_{view}": bank}))


def test_a_bundle_older_than_its_text_space_says_what_to_do(path):
    bundle = load_bundle(path)
    provenance = {key: value for key, value in bundle.manifest.provenance.items() if key != "text_space"}
    rewrite(bundle, replace(bundle.manifest, provenance=provenance), {})
    with pytest.raises(UsageError, match=r"does not say which text space it is of, .*; export it again from its run"):
        add_labels(load_bundle(path), some(bundle, "a"))


def test_a_full_disk_or_another_writer_leaves_the_bundle(path, monkeypatch):
    """Planted mistakes: files written into the bundle itself; the other writer's labels overwritten."""
    bundle = load_bundle(path)
    rename_labels(load_bundle(path), {"red": "crimson"})
    with pytest.raises(UsageError, match="changed by another program meanwhile"):
        remove_labels(bundle, ["green"])
    before = {file.name: sha256(file.read_bytes()) for file in path.iterdir()}

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(MissingDependency, match="no space left"):
        remove_labels(load_bundle(path), ["green"])
    assert {file.name: sha256(file.read_bytes()) for file in path.iterdir()} == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript", "pt2"])
def test_reload_keeps_the_engine_and_gives_it_new_banks(path, backend):
    """Planted mistakes: loaded anew; the old banks kept; True though nothing changed."""
    predictor = Predictor(path, backend)
    images = predictor.bundle.golden()[0]
    loaded = predictor.engine.session if backend == "onnxruntime" else predictor.engine.module
    old = predictor.engine
    assert not predictor.reload()
    bundle = add_labels(load_bundle(path), some(predictor.bundle, "zebra"))
    assert predictor.reload() and not predictor.reload()
    assert (predictor.engine.session if backend == "onnxruntime" else predictor.engine.module) is loaded
    prediction = predictor.predict_pixels(images[:1])[0]
    np.testing.assert_allclose(prediction.scores, bundle.golden()[1][0], atol=2e-3)
    assert prediction.label_set.names == predictor.labels == (*LABELS, "zebra")
    assert prediction.label_set.unfitted == {"zebra"}
    assert len(predictor.thresholds) == 5
    # Whoever still holds the old engine predicts as before.
    assert old(predictor.prepare(images[:1]))[0].shape == (1, 4)


def test_reload_of_what_cannot_be_used_keeps_the_old(path):
    """Planted mistakes: the stamp taken over with the error, so that the mended bundle is never read; a bundle that is
    away for a moment is an error."""
    predictor = Predictor(path, top=4)
    images = predictor.bundle.golden()[0]
    text = (path / "text.safetensors").read_bytes()
    rename_labels(load_bundle(path), {"red": "crimson"})
    (path / "text.safetensors").write_bytes(text[:-1])
    for _ in range(2):
        with pytest.raises(BadData, match=r"text\.safetensors was altered"):
            predictor.reload()
    assert predictor.predict_pixels(images[:1])[0].label_set.names == LABELS
    path.rename(path.with_name("away"))
    assert not predictor.reload()
    path.with_name("away").rename(path)
    (path / "text.safetensors").write_bytes(text)
    assert predictor.reload() and predictor.labels[0] == "crimson"
    remove_labels(load_bundle(path), ["green"])
    with pytest.raises(UsageError, match="top=4, but the bundle has 3 labels"):
        predictor.reload()
    assert predictor.labels[0] == "crimson" and len(predictor.labels) == 4


def test_reload_of_another_model_loads_it(path, tiny, recwarn):
    """Planted mistake: new banks in the old session."""
    predictor = Predictor(path)
    old = predictor.engine.session
    bundle = load_bundle(path)
    rewrite(bundle, replace(bundle.manifest, alpha=0.5), {})
    assert predictor.reload()
    assert predictor.engine.session is not old
    assert predictor.bundle.manifest.alpha == 0.5


def test_a_bundle_read_before_it_was_changed_is_looked_at(path):
    """Planted mistakes: the stamp of the disk taken for that of a Bundle that was read earlier; True for the same."""
    bundle = load_bundle(path)
    assert not Predictor(bundle).reload()
    rename_labels(bundle, {"red": "crimson"})
    predictor = Predictor(bundle)
    assert predictor.labels[0] == "red"
    assert predictor.reload() and predictor.labels[0] == "crimson"


class ReloadsMidway:
    """An engine during whose run the labels on disk change and are taken over."""

    def __init__(self, predictor):
        self.predictor, self.engine = predictor, predictor.engine

    def __call__(self, *arguments):
        found = self.engine(*arguments)
        remove_labels(self.predictor.bundle, ["green"])
        assert self.predictor.reload()
        return found

    def with_banks(self, bundle):
        return self.engine.with_banks(bundle)


def test_a_reload_in_the_middle_of_a_prediction(path):
    """Planted mistake: thresholds or names read again after the scores."""
    predictor = Predictor(path, threshold=-1)
    images = predictor.prepare(predictor.bundle.golden()[0][:1])
    predictor._loaded = replace(predictor._loaded, engine=ReloadsMidway(predictor))
    prediction = predictor.predict_images(images)[0]
    assert prediction.label_set.names == LABELS and {*prediction.labels} == {*LABELS}
    assert predictor.predict_images(images)[0].label_set.names == ("red", "blue", "bright square")


def test_every_prediction_is_of_one_set_of_labels(path):
    """Labels change while two threads predict. Planted mistake: the banks of an engine replaced in place."""
    predictor, bundle = Predictor(path, threshold=-1), load_bundle(path)
    images = predictor.prepare(bundle.golden()[0][:1])
    expected = predictor.predict_images(images)[0].scores
    stop, wrong, seen = threading.Event(), [], set()

    def predict():
        while not stop.is_set():
            prediction = predictor.predict_images(images)[0]
            names = prediction.label_set.names
            seen.add(names)
            scores = dict(zip(names, prediction.scores, strict=True))
            if {*prediction.labels} != {*names} or abs(scores["blue"] - expected[2]) > 1e-6:
                wrong.append(prediction)

    threads = [threading.Thread(target=predict) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for step in range(6):
            bundle = reorder_labels(bundle, [bundle.manifest.labels[-1]])
            if step % 2:
                bundle = add_labels(bundle, some(bundle, f"label {step}", seed=step))
            assert predictor.reload()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong and len(seen) > 1


def test_a_file_of_a_bundle_that_was_changed_meanwhile(path):
    """Planted mistake: it is called altered, to be exported again, though the bundle on disk is whole."""
    bundle = load_bundle(path)
    changed = rename_labels(bundle, {"red": "crimson"})
    with pytest.raises(UsageError, match="was changed by another program meanwhile; run the same once more"):
        bundle.read("thresholds.json")
    (path / "thresholds.json").write_text("{}")
    with pytest.raises(BadData, match=r"thresholds\.json was altered"):
        changed.read("thresholds.json")


def test_of_two_edits_at_once_none_is_lost(path, monkeypatch):
    """The second begins where the first has looked at the bundle and not yet written it. Planted mistake: no lock."""
    bundle = load_bundle(path)
    check, lock, waits, ended = bundle_module.check_current, bundle_module.locked, threading.Event(), []

    def second():
        try:
            rename_labels(bundle, {"blue": "navy"})
        except UsageError as error:
            ended.append(str(error))

    thread = threading.Thread(target=second)

    def locked(folder):
        if threading.current_thread() is thread:
            waits.set()
        return lock(folder)

    def then_the_second(current):
        check(current)
        if not thread.ident:
            thread.start()
            while not waits.is_set() and thread.is_alive():
                waits.wait(0.02)

    monkeypatch.setattr(bundle_module, "check_current", then_the_second)
    monkeypatch.setattr(bundle_module, "locked", locked)
    assert "crimson" in rename_labels(bundle, {"red": "crimson"}).manifest.labels
    thread.join()
    assert {"crimson", "blue"} <= {*load_bundle(path).manifest.labels}
    assert len(ended) == 1 and "was changed by another program meanwhile; run the same once more" in ended[0]
