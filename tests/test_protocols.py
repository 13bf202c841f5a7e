"""VOC-LT and COCO-LT: the shipped lists are the published ones, and a user's folder is understood."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.config import load_config
from hpdval_edge.errors import UsageError
from hpdval_edge.training.metrics import class_groups
from hpdval_edge.training.protocols.check import check_protocol, describe
from hpdval_edge.training.protocols.longtail import (
    LISTS,
    PROTOCOLS,
    find_protocol,
    listed_folders,
    picture_base,
    protocol_values,
    split_argument,
)
from hpdval_edge.training.readers_check import read_configured

VOC_FOLDERS = ("VOCdevkit/VOC2007/JPEGImages", "VOCdevkit/VOC2012/JPEGImages")


@pytest.fixture(scope="module")
def pascal(tmp_path_factory):
    """Every picture of VOC-LT, all of them links to one picture of 2 x 2 pixels."""
    base = tmp_path_factory.mktemp("pascal")
    one = base / "one.png"
    Image.new("RGB", (2, 2)).save(one)
    for folder in VOC_FOLDERS:
        (base / folder).mkdir(parents=True)
    for split in ("train", "test"):
        for path in find_protocol("voc-lt").read(split, base).paths:
            os.link(one, base / path)
    return base


def read(name, split, base):
    return find_protocol(name).read(split, base)


@pytest.mark.parametrize(
    ("name", "sizes", "groups", "extremes"),
    [("voc-lt", (1142, 4952), (6, 6, 8), (4, 775)), ("coco-lt", (1909, 5000), (22, 33, 25), (6, 1128))],
)
def test_the_lists_are_the_published_ones(name, sizes, groups, extremes, tmp_path):
    """METHOD section 2 and 15 row 10. Planted mistake: head from 101 on."""
    train, test = read(name, "train", tmp_path), read(name, "test", tmp_path)
    assert (len(train), len(test)) == sizes
    found = class_groups(train.class_counts)
    assert tuple(int((found == group).sum()) for group in ("head", "medium", "tail")) == groups
    assert (train.class_counts.min(), train.class_counts.max()) == extremes
    assert (train.targets.sum(axis=1) > 0).all()
    assert train.labels == test.labels


def test_landmarks_of_the_lists(tmp_path):
    """Classes of exactly 100 are head, difficult objects count, 48 COCO test pictures have no label and stay."""
    voc, coco = read("voc-lt", "train", tmp_path), read("coco-lt", "train", tmp_path)
    assert voc.class_counts[voc.labels.index("pottedplant")] == 100
    assert coco.class_counts[coco.labels.index("backpack")] == 100
    assert voc.labels == tuple(sorted(voc.labels))
    test = read("voc-lt", "test", tmp_path)
    counts = dict(zip(test.labels, test.class_counts.tolist(), strict=True))
    assert (counts["person"], counts["sofa"]) == (2097, 355)
    assert int((read("coco-lt", "test", tmp_path).targets.sum(axis=1) == 0).sum()) == 48


def test_shipped_lists_say_what_the_originals_say(shared_data):
    """Planted mistake: one id changed in a shipped list."""
    for protocol in PROTOCOLS.values():
        for name in (f"{protocol.stem}_train.txt", f"{protocol.stem}_test.txt", protocol.labels):
            ours, original = (folder / name for folder in (LISTS, shared_data / "splits"))
            assert ours.read_text().splitlines() == [line.strip() for line in original.read_text().splitlines()]
            assert b"\r" not in ours.read_bytes()


def test_values_are_what_a_run_needs(pascal, monkeypatch):
    """Planted mistakes: mu and lambda of the other set; a path relative to the working folder."""
    monkeypatch.chdir(pascal.parent)
    values = protocol_values("voc-lt", Path(pascal.name))
    config = load_config(values=values)
    assert config.data.images == str(pascal)
    assert (config.loss.mu, config.loss.lam) == (0.3, 5.0)
    splits = read_configured(config)
    assert len(splits.train) + len(splits.val) == 1142
    assert len(splits.test) == 4952
    assert splits.test.absolute(0).is_file()
    assert splits.train.labels[-1] == "tvmonitor"


def test_coco_values_and_layouts(tmp_path):
    for folder in ("images/train2017", "images/val2017"):
        (tmp_path / folder).mkdir(parents=True)
    values = protocol_values("coco-lt", tmp_path)
    assert (values["loss.mu"], values["loss.lam"]) == ("0.2", "2.0")
    assert values["data.images"] == str(tmp_path / "images")
    assert protocol_values("coco-lt", tmp_path / "images" / "val2017") == values


@pytest.mark.parametrize("given", ["", "VOCdevkit", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007/JPEGImages"])
def test_any_part_of_the_usual_layout_may_be_named(pascal, given):
    assert picture_base(PROTOCOLS["voc-lt"], pascal / given) == pascal


def test_listed_folders():
    assert listed_folders(PROTOCOLS["voc-lt"]) == VOC_FOLDERS
    assert listed_folders(PROTOCOLS["coco-lt"]) == ("train2017", "val2017")


def test_an_argument_names_a_protocol_or_is_a_path(tmp_path):
    assert split_argument("voc-lt=a=b")[0] == "voc-lt"
    assert str(split_argument("voc-lt=a=b")[1]) == "a=b"
    assert split_argument("photos=old/train.csv") is None
    assert split_argument("voc-lt") is None


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UsageError, match="'voc' is not a published protocol; choose one of voc-lt, coco-lt"):
        protocol_values("voc", tmp_path)
    with pytest.raises(UsageError, match=r"absent is no folder; give the one that holds the COCO-LT pictures"):
        protocol_values("coco-lt", tmp_path / "absent")
    with pytest.raises(UsageError, match="has none of the folders train2017, val2017"):
        protocol_values("coco-lt", tmp_path)


def test_a_complete_folder_is_complete(pascal):
    """Planted mistake: groups from the test list."""
    report = check_protocol("voc-lt", pascal)
    assert (report["missing"], report["unreadable"]) == ([], [])
    assert report["splits"]["test"] == {"listed": 4952, "missing": 0, "unreadable": 0, "without_labels": 0}
    assert report["groups"] == {"head": 6, "medium": 6, "tail": 8}
    assert len(describe(report)) == 3


def test_what_is_missing_is_counted_and_named(tmp_path):
    """Planted mistake: only the first missing picture of each folder is counted."""
    (tmp_path / "val2017").mkdir()
    paths = read("coco-lt", "test", tmp_path).paths
    for path in paths[:7]:
        Image.new("RGB", (2, 2)).save(tmp_path / path)
    report = check_protocol("coco-lt", tmp_path)
    assert report["splits"]["train"]["missing"] == 1909
    assert report["splits"]["test"] == {"listed": 5000, "missing": 4993, "unreadable": 0, "without_labels": 48}
    assert report["folders"]["val2017"]["missing"] == 4993
    assert len(report["missing"]) == 10
    text = "\n".join(describe(report))
    assert "48 without labels (they stay in); 7 there, 4993 missing" in text
    assert f"... and {4993 + 1909 - 10} more missing" in text


def test_pictures_in_another_folder_are_found(tmp_path):
    """Planted mistake: the remedy names the wrong target folder."""
    (tmp_path / "coco" / "train").mkdir(parents=True)
    (tmp_path / "val2017").mkdir()
    train, test = (read("coco-lt", split, tmp_path).paths for split in ("train", "test"))
    Image.new("RGB", (2, 2)).save(tmp_path / "coco" / "train" / train[0].split("/")[1])
    Image.new("RGB", (2, 2)).save(tmp_path / test[0].split("/")[1])
    report = check_protocol("coco-lt", tmp_path)
    assert report["folders"]["train2017"]["found_in"] == {str(tmp_path / "coco" / "train"): 1}
    text = "\n".join(describe(report))
    assert f"lie in {tmp_path / 'coco' / 'train'}; move that folder to {tmp_path / 'train2017'}, or link it" in text
    assert f"1 of them lie in {tmp_path}; move them to {tmp_path / 'val2017'}" in text


def test_every_unreadable_picture_is_reported(tmp_path):
    """Planted mistake: a truncated picture counts as there because only its header was read."""
    (tmp_path / "val2017").mkdir()
    good, cut, empty = (tmp_path / path for path in read("coco-lt", "test", tmp_path).paths[:3])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(good)
    cut.write_bytes(good.read_bytes()[:-200])
    empty.touch()
    report = check_protocol("coco-lt", tmp_path)
    assert report["splits"]["test"]["unreadable"] == 2
    assert report["splits"]["test"]["missing"] == 4997
    assert sorted(reason.split(": ")[0] for reason in report["unreadable"]) == sorted(map(str, (cut, empty)))
