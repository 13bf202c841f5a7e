"""The validation split keeps labels; ``load_splits`` finds the parts of every layout; the real lists are read whole."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.readers import load_splits, read_label_names, read_list
from hpdval_edge.training.splits import describe_split, split_keeping_labels


def missing(targets: np.ndarray, train_idx: np.ndarray, val_idx: np.ndarray) -> int:
    """Labels with two or more positives that one side lacks."""
    sides = (targets[train_idx].sum(axis=0), targets[val_idx].sum(axis=0))
    return int(((targets.sum(axis=0) > 1) & ((sides[0] == 0) | (sides[1] == 0))).sum())


def long_tailed(pictures: int, labels: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((pictures, labels)) < 0.5 / np.arange(1, labels + 1)).astype(np.uint8)


@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_split_keeps_labels_sizes_and_shares(fraction, seed):
    targets = long_tailed(1000, 60, seed)
    train_idx, val_idx = split_keeping_labels(targets, fraction, seed)
    assert sorted([*train_idx, *val_idx]) == list(range(1000))
    assert len(val_idx) == round(1000 * fraction)
    assert missing(targets, train_idx, val_idx) == 0
    counts = targets.sum(axis=0)
    frequent = counts >= 40
    shares = targets[val_idx].sum(axis=0)[frequent] / counts[frequent]
    assert np.abs(shares - fraction).max() < 0.1


def test_split_is_deterministic_and_depends_on_the_seed():
    targets = long_tailed(300, 20, 0)
    first, again, other = (split_keeping_labels(targets, 0.2, seed)[1] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pairs_of_rare_labels_are_torn_apart():
    # Each label sits on two neighbouring pictures, so only the alternating split keeps them all.
    targets = np.zeros((12, 12), np.uint8)
    for label in range(12):
        targets[[label, (label + 1) % 12], label] = 1
    for seed in range(20):
        assert missing(targets, *split_keeping_labels(targets, 0.5, seed)) == 0


def test_labels_win_over_the_size():
    targets = np.repeat(np.eye(20, dtype=np.uint8), 2, axis=0)
    train_idx, val_idx = split_keeping_labels(targets, 0.1, 0)
    assert len(val_idx) == 20 and missing(targets, train_idx, val_idx) == 0


def test_single_positives_stay_in_training_and_are_named():
    targets = np.zeros((40, 4), np.uint8)
    targets[:, 0] = 1
    targets[7, 1] = targets[[7, 8], 2] = 1
    for seed in range(10):
        train_idx, val_idx = split_keeping_labels(targets, 0.5, seed)
        assert 7 in train_idx and 8 in val_idx
    notes = describe_split(targets, ["a", "b", "c", "d"], train_idx, val_idx)
    assert notes[0] == "1 label (d): no positive at all" and notes[1].startswith("1 label (b): just 1 positive")
    assert len(notes) == 2


def test_what_cannot_be_had_is_said():
    # Three pictures, three labels on the three pairs: two of the pictures share a side, whatever the split.
    targets = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], np.uint8)
    train_idx, val_idx = split_keeping_labels(targets, 0.3, 0)
    (note,) = describe_split(targets, ["a", "b", "c"], train_idx, val_idx)
    assert note.startswith("1 label (") and "no split was found" in note
    many = describe_split(np.zeros((2, 12), np.uint8), list("abcdefghijkl"), np.array([0]), np.array([1]))
    assert many == ("12 labels (a, b, c, d, e, f, g, h, i, j, ...): no positive at all",)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 30), st.integers(0, 12), st.floats(0.01, 0.99), st.integers(0, 9), st.floats(0, 0.6))
def test_split_of_anything(pictures, labels, fraction, seed, density):
    targets = (np.random.default_rng(seed).random((pictures, labels)) < density).astype(np.uint8)
    pinned = (targets[:, targets.sum(axis=0) == 1] == 1).any(axis=1)
    if pinned.all():
        with pytest.raises(BadData, match="has a label that no other has"):
            split_keeping_labels(targets, fraction, seed)
        return
    train_idx, val_idx = split_keeping_labels(targets, fraction, seed)
    assert len(train_idx) and len(val_idx) and sorted([*train_idx, *val_idx]) == list(range(pictures))
    assert not pinned[val_idx].any()


@pytest.mark.parametrize(
    ("targets", "fraction", "error", "message"),
    [
        (np.zeros(3), 0.5, ValueError, r"\[n, C\] of 0 and 1, got float64 \[3\]"),
        (np.full((3, 1), 2), 0.5, ValueError, "of 0 and 1"),
        (np.zeros((3, 1)), 1.0, ValueError, "between 0 and 1, both excluded, got 1.0"),
        (np.zeros((1, 1)), 0.5, BadData, "1 picture cannot be split"),
    ],
)
def test_split_refuses(targets, fraction, error, message):
    with pytest.raises(error, match=message):
        split_keeping_labels(targets, fraction, 0)


LIST = "".join(f"{number}.jpg {number % 2}\n" for number in range(10))
CSV = "path,labels\n" + "".join(f"{number}.jpg,{'cat' if number % 2 else 'dog'}\n" for number in range(10))
COCO = json.dumps(
    {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(10)],
        "annotations": [{"image_id": number, "category_id": number % 2} for number in range(10)],
        "categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}],
    }
)
XML = "<annotation><object><name>{}</name></object></annotation>"


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            Image.new("L", (2, 2), sum(path.stem.encode()) % 256).save(path)
        else:
            path.write_text(text)
    return folder


def label_folders(prefix: str, numbers: range) -> dict[str, str]:
    return {f"{prefix}{'cat' if number % 2 else 'dog'}/{number}.jpg": "" for number in numbers}


def voc(sets: dict[str, range], year: str = "VOCdevkit/VOC2007") -> dict[str, str]:
    lists = {f"{year}/ImageSets/Main/{name}.txt": "\n".join(map(str, numbers)) for name, numbers in sets.items()}
    numbers = {number for numbers in sets.values() for number in numbers}
    return lists | {
        f"{year}/Annotations/{number}.xml": XML.format("cat" if number % 2 else "dog") for number in numbers
    }


LABELS = {"labels.txt": "cat\ndog\n"}
TRAINVAL = {"train": range(6), "val": range(6, 10), "trainval": range(10)}


@pytest.mark.parametrize(
    ("files", "sizes", "labels"),
    [
        ({"train.csv": CSV}, (8, 2, None), "cat dog"),
        ({"train.csv": CSV, "val.csv": CSV, "test.csv": CSV, "labels.txt": "dog\ncat"}, (10, 10, 10), "dog cat"),
        ({"x_train.txt": LIST, "x_test.txt": LIST, **LABELS}, (8, 2, 10), "cat dog"),
        ({"x_train.txt": LIST, "x_val.txt": LIST, "held_out_test.txt": LIST, **LABELS}, (10, 10, 10), "cat dog"),
        ({"trainval.txt": LIST, "test.txt": LIST, "latest.txt": "", **LABELS}, (8, 2, 10), "cat dog"),
        ({"annotations/instances_train2017.json": COCO}, (8, 2, None), "dog cat"),
        (
            {f"annotations/instances_{part}.json": COCO for part in ("train2014", "val2014", "val2017")},
            (8, 2, 10),
            "dog cat",
        ),
        (voc({"train": range(10)}), (8, 2, None), "cat dog"),
        (voc(TRAINVAL), (6, 4, None), "cat dog"),
        (voc({**TRAINVAL, "test": range(20, 26)}), (8, 2, 6), "cat dog"),
        (voc({"trainval": range(10)}, "VOC2012"), (8, 2, None), "cat dog"),
        (label_folders("", range(10)), (8, 2, None), "cat dog"),
        (label_folders("train/", range(10)) | label_folders("test/", range(4)), (8, 2, 4), "cat dog"),
        (label_folders("train/", range(10)) | label_folders("valid/", range(4)), (10, 4, None), "cat dog"),
        (label_folders("", range(10)) | {"train/99.jpg": "", "train/98.jpg": ""}, (9, 3, None), "cat dog train"),
    ],
)
def test_layouts(tmp_path, files, sizes, labels):
    splits = load_splits(make(tmp_path, files), val_fraction=0.2)
    got = (len(splits.train), len(splits.val), splits.test and len(splits.test))
    assert got == sizes
    assert splits.train.labels == splits.val.labels == tuple(labels.split())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.md": ""}, "no data set was recognised; looked for train.csv, a '*train*.txt' list, annotations/"),
        ({"train/1.jpg": "", "test/2.jpg": ""}, "no data set was recognised"),
        ({"train2017/1.jpg": "", "val2017/2.jpg": ""}, "no data set was recognised"),
        ({"pictures/1.jpg": ""}, "no data set was recognised"),
        (
            {"a_train.txt": "", "b_train.txt": ""},
            "several files fit train (a_train.txt, b_train.txt); give the right one",
        ),
        (
            {"train.txt": LIST, "a_test.txt": "", "b_test.txt": ""},
            "several files fit test (a_test.txt, b_test.txt); name",
        ),
        ({"train.csv": CSV, "train.txt": LIST}, "fits the formats csv and list; choose one with format"),
        (voc(TRAINVAL) | voc(TRAINVAL, "VOCdevkit/VOC2012"), "several years fit ("),
        (voc({"test": range(4)}), "no image set 'train' in ImageSets/Main; give one as train, of ['test']"),
        (
            label_folders("train/", range(4)) | {"val/1.jpg": "", "valid/1.jpg": ""},
            "several files fit val (val, valid); name",
        ),
    ],
)
def test_folders_that_do_not_say_what_they_are(tmp_path, files, message):
    with pytest.raises(UsageError) as caught:
        load_splits(make(tmp_path, files))
    assert str(caught.value).startswith(str(tmp_path)) and message in str(caught.value)


def test_parts_by_name(tmp_path, monkeypatch):
    files = {
        "a_train.txt": LIST,
        "b_train.txt": LIST,
        "a_test.txt": LIST,
        "b_test.txt": "1.jpg 0",
        "in/v.txt": "0.jpg 1",
    }
    make(tmp_path, files | LABELS | {"in/train.csv": CSV})
    splits = load_splits(tmp_path, train="b_train.txt", val="in/v.txt", seed=3)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (10, 1, 1)
    assert load_splits(tmp_path / "a_train.txt", test="a_test.txt").test.paths[0] == "0.jpg"
    assert load_splits(tmp_path / "a_train.txt", images="", labels="", val="", test="").test is None
    assert (
        load_splits(tmp_path / "a_train.txt", labels=["x", "y"], images=tmp_path / "in").train.root == tmp_path / "in"
    )
    assert load_splits(tmp_path / "a_train.txt", labels=tmp_path / "labels.txt").train.labels == ("cat", "dog")
    monkeypatch.chdir(tmp_path / "in")
    assert len(load_splits("../a_train.txt", val="v.txt").val) == 1
    for arguments, message in [
        ({"data": tmp_path / "none"}, "none: there is no such file or folder"),
        ({"data": tmp_path, "train": "c.txt"}, r"train is 'c.txt', but neither .*c.txt nor c.txt exists"),
        ({"data": tmp_path / "a_train.txt", "train": "b_train.txt"}, "train is 'b_train.txt' although .* is a file"),
        ({"data": tmp_path / "a_train.txt", "val": tmp_path / "in/train.csv"}, "one format, got train list, val csv"),
        ({"data": tmp_path / "a_train.txt", "format": "voc"}, "is a file, but the format 'voc' is read from a folder"),
        ({"data": tmp_path, "format": "csv"}, "no training file of the format 'csv' was found; give it itself as data"),
        ({"data": make(tmp_path, {"x.yaml": ""}) / "x.yaml"}, r"read the suffix '.yaml', expected .txt"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_splits(**arguments)


def test_voc_sets_by_name(tmp_path):
    files = voc({**TRAINVAL, "test": range(20, 26)}, "VOC2007")
    make(tmp_path, files)
    splits = load_splits(tmp_path / "VOC2007", train="train", test="val", labels=["dog", "cat"])
    assert (len(splits.train), len(splits.val), len(splits.test)) == (6, 4, 4)
    assert splits.train.labels == ("dog", "cat") and splits.train.paths[0] == "VOC2007/JPEGImages/0.jpg"
    assert any("4 of the 4 test pictures are in training or validation too" in note for note in splits.notes)
    shutil.rmtree(tmp_path / "VOC2007/Annotations")
    make(tmp_path, {name: text for name, text in files.items() if len(Path(name).stem) != 2})
    splits = load_splits(tmp_path)
    assert splits.test is None and "VOC2007 lists test pictures but has no annotations of them" in splits.notes[0]


def test_notes_and_label_order_across_parts(tmp_path):
    make(tmp_path, {"train.csv": CSV + "x.jpg,fox\n", "val.csv": "path,labels\n0.jpg,dog\ny.jpg,cat"})
    splits = load_splits(tmp_path)
    assert splits.val.labels == ("cat", "dog", "fox")
    assert splits.notes == (
        "1 label (fox): no positive in validation",
        "1 of the 2 validation pictures are in training too (first 0.jpg), results flatter",
    )
    make(tmp_path, {"val.csv": "path,labels\n0.jpg,dog\n1.jpg,wolf"})
    with pytest.raises(BadData, match=r"val.csv:3: unknown label 'wolf', expected one of the 3 labels cat, dog, fox"):
        load_splits(tmp_path)
    with pytest.raises(BadData, match="1 picture cannot be split into training and validation"):
        load_splits(make(tmp_path / "one", {"train.csv": "path,labels\na.jpg,cat"}))


def groups(counts: np.ndarray) -> tuple[int, int, int]:
    head, tail = int((counts >= 100).sum()), int((counts < 20).sum())
    return head, len(counts) - head - tail, tail


@pytest.mark.parametrize(
    ("name", "rows", "test_rows", "expected"),
    [("voc", 1142, 4952, (6, 6, 8)), ("coco", 1909, 5000, (22, 33, 25))],
)
def test_published_long_tailed_lists(shared_data, name, rows, test_rows, expected):
    splits = load_splits(shared_data / "splits", train=f"{name}_lt_train.txt")
    whole = read_list(shared_data / "splits" / f"{name}_lt_train.txt")
    assert len(splits.train) + len(splits.val) == len(whole) == rows and len(splits.test) == test_rows
    assert groups(whole.class_counts) == expected and whole.class_counts[dict(voc=15, coco=24)[name]] == 100
    unlabelled = int((splits.test.targets.sum(axis=1) == 0).sum())
    assert unlabelled == (48 if name == "coco" else 0) and whole.targets.any(axis=1).all()
    assert whole.labels[:2] == (("aeroplane", "bicycle") if name == "voc" else ("person", "bicycle"))
    assert not missing(whole.targets, *split_keeping_labels(whole.targets, 0.15, 0))
    assert len(splits.val) == round(0.15 * rows)


def test_corel5k_whole(shared_data):
    folder = shared_data / "corel5k"
    with pytest.raises(UsageError, match=r"several files fit train \(corel5k_lt_train.txt, corel5k_train.txt\)"):
        load_splits(folder)
    whole, test = (read_list(folder / f"corel5k_lt_{part}.txt") for part in ("train", "test"))
    assert (len(whole), len(test), len(whole.labels)) == (2981, 2008, 182) and whole.labels == test.labels
    frequencies = json.loads((folder / "corel5k_lt_class_freq.json").read_text())["class_freq"]
    assert whole.class_counts.tolist() == frequencies
    assert all(whole.absolute(index).is_file() for index in range(len(whole)))
    splits = load_splits(folder, train="corel5k_lt_train.txt")
    assert len(splits.train) + len(splits.val) == 2981 and splits.test.paths == test.paths
    assert (splits.train.class_counts > 0).all() and (splits.val.class_counts > 0).all()
    usual = load_splits(folder / "corel5k_train.txt", test="corel5k_test.txt")
    assert len(usual.train.labels) == 260 and len(usual.train) + len(usual.val) == 4493 and len(usual.test) == 499
    assert any("3 labels (sails, orchid, cougar): just 1 positive" in note for note in usual.notes)


def test_lists_of_real_photos(shared_data):
    names = read_label_names(shared_data / "splits/coco_labels.txt")
    data = read_list(shared_data / "photos/coco_lt_test_have.txt", labels=names)
    assert len(data) == 10 and all(data.absolute(index).is_file() for index in range(len(data)))
