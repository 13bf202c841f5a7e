"""``hpedge data`` as a user meets it: exit codes, one JSON document, files that read back."""

import json
import subprocess
import sys
from functools import partial

import pytest
from PIL import Image

from hpdval_edge.commands.train import chosen_values
from hpdval_edge.errors import UsageError
from hpdval_edge.training.protocols.longtail import find_protocol
from hpdval_edge.training.readers import load_splits


@pytest.fixture
def hpedge(monkeypatch, run_hpedge, tmp_path):
    """Run the command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return partial(run_hpedge, "data")


@pytest.fixture
def coco(tmp_path):
    """A folder with every picture of COCO-LT, links to one of them."""
    base = tmp_path / "coco"
    first = None
    for split in ("train", "test"):
        (base / {"train": "train2017", "test": "val2017"}[split]).mkdir(parents=True)
        for path in find_protocol("coco-lt").read(split, base).paths:
            if first is None:
                first = base / path
                Image.new("RGB", (2, 2)).save(first)
            else:
                (base / path).hardlink_to(first)
    return base


@pytest.mark.parametrize("verb", ["voc-lt", "coco-lt", "check", "split", "convert"])
def test_every_command_shows_examples(hpedge, verb):
    code, out, _ = hpedge(verb, "-h")
    assert code == 0
    assert f"  hpedge data {verb}" in out


def test_exit_codes_of_a_protocol(hpedge, coco, tmp_path):
    """0 complete, 1 missing, 3 unreadable. Planted mistake: 1 and 3 swapped."""
    code, out, _ = hpedge("coco-lt", "--images", coco)
    assert code == 0
    assert f"next: hpedge train --data coco-lt={coco}" in out
    bare = tmp_path / "bare"
    (bare / "val2017").mkdir(parents=True)
    paths = find_protocol("coco-lt").read("test", bare).paths
    code, out, _ = hpedge("coco-lt", "--images", bare)
    assert code == 1
    assert out.count("  missing: train2017/") == 10
    assert "next:" not in out
    (bare / paths[1]).write_text("no picture")
    code, out, err = hpedge("coco-lt", "--images", bare, "--json")
    assert (code, err) == (3, "")
    report = json.loads(out)
    assert report["splits"]["test"] == {"listed": 5000, "missing": 4999, "unreadable": 1, "without_labels": 48}
    assert len(report["unreadable"]) == 1


def test_real_pictures_in_the_usual_layout(hpedge, shared_data):
    code, out, _ = hpedge("voc-lt", "--images", shared_data / "photos" / "VOCdevkit", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["images"] == str(shared_data / "photos")
    assert report["folders"]["VOCdevkit/VOC2007/JPEGImages"] == {"listed": 4952, "missing": 4951, "found_in": {}}


def test_check_says_what_training_reads(hpedge, tiny):
    code, out, _ = hpedge("check", tiny, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["format"] == "csv"
    assert report["labels"] == ["red", "green", "blue", "bright square"]
    assert {name: part["pictures"] for name, part in report["splits"].items()} == {"train": 48, "val": 16, "test": 16}
    code, out, _ = hpedge("check", tiny)
    assert out.startswith(f"{tiny}: format csv, 4 labels, head/medium/tail 0/")


@pytest.mark.parametrize(
    ("layout", "format"),
    [("a_train.txt", "list"), ("train/cat/0.png", "folders"), ("annotations/instances_train2017.json", "coco")],
)
def test_check_names_the_format(hpedge, tmp_path, layout, format):
    data = tmp_path / "data"
    for index in range(4):
        for label in ("cat", "dog"):
            picture = data / "train" / label / f"{index}{label}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2), (index, 9, 9)).save(picture)
    names = [f"{index}{label}.png" for index in range(4) for label in ("cat", "dog")]
    if format == "list":
        (data / "labels.txt").write_text("cat\ndog\n")
        (data / layout).write_text("".join(f"train/{n[1:4]}/{n} {int('dog' in n)}\n" for n in names))
    if format == "coco":
        (data / "annotations").mkdir()
        content = {
            "images": [{"id": i, "file_name": f"train/{n[1:4]}/{n}"} for i, n in enumerate(names)],
            "annotations": [{"image_id": i, "category_id": 1 + ("dog" in n)} for i, n in enumerate(names)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        (data / layout).write_text(json.dumps(content))
    code, out, err = hpedge("check", data / layout if format == "coco" else data, "--images", data, "--json")
    if format == "folders":
        assert code == 2
        code, out, err = hpedge("check", data, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["format"], report["labels"]) == (format, ["cat", "dog"])
    assert sum(part["pictures"] for part in report["splits"].values()) == 8


def test_check_reports_single_positives_and_bad_pictures(hpedge, tmp_path):
    """Planted mistake: exit code 0 with an unreadable picture."""
    rows = ["path,labels", "a.png,cat", "b.png,cat;rare", "c.png,cat", "d.png,cat"]
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    for name in "abc":
        Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png")
    code, out, _ = hpedge("check", "all.csv")
    assert code == 3
    assert "1 labels with one training picture: rare" in out
    assert f"unreadable: {tmp_path / 'd.png'}: there is no such file" in out


def test_groups_are_those_of_the_list_as_given(hpedge, tmp_path):
    """Planted mistake: groups by the pictures that a split leaves to train."""
    rows = [f"{index}.png,{'cat' if index < 20 else 'dog'}" for index in range(40)]
    (tmp_path / "all.csv").write_text("\n".join(["path,labels", *rows]) + "\n")
    for index in range(40):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{index}.png")
    report = json.loads(hpedge("check", "all.csv", "--json")[1])
    assert report["splits"]["val"]["pictures"]
    assert report["groups"] == {"head": 0, "medium": 2, "tail": 0}


@pytest.mark.parametrize("to", ["csv", "list"])
def test_split_writes_what_training_would_read(hpedge, tiny, tmp_path, to):
    """Planted mistakes: paths kept relative to the old folder; labels written in sorted order."""
    code, out, err = hpedge("split", tiny / "train.csv", "--out", "new", "--to", to, "--fraction", "0.25", "--seed", 3)
    assert code == 0, err
    assert len(out.splitlines()) == 3
    written = load_splits(tmp_path / "new")
    expected = load_splits(tiny / "train.csv", val_fraction=0.25, seed=3)
    assert written.train.labels == expected.train.labels
    for part in ("train", "val"):
        ours, theirs = getattr(written, part), getattr(expected, part)
        assert (ours.targets == theirs.targets).all()
        assert [ours.absolute(i).resolve() for i in range(len(ours))] == [
            theirs.absolute(i).resolve() for i in range(len(theirs))
        ]


def test_convert_keeps_the_parts_that_are_there(hpedge, tiny, tmp_path):
    code, _, err = hpedge("convert", tiny, "--out", "lists", "--to", "list")
    assert code == 0, err
    names = {file.name for file in (tmp_path / "lists").iterdir()}
    assert names == {"train.txt", "val.txt", "test.txt", "labels.txt"}
    code, _, err = hpedge("convert", tiny / "test.csv", "--out", "one")
    assert code == 0, err
    assert {file.name for file in (tmp_path / "one").iterdir()} == {"train.csv", "labels.txt"}
    code, _, err = hpedge("convert", tiny, "--out", "lists", "--to", "list")
    assert code == 2
    assert "lists/train.txt is there already" in err


def test_labels_that_look_like_syntax_survive(hpedge, tmp_path):
    """Planted mistake: a CSV column per label, which fails on a label called "path"."""
    labels = ["path", "b, c", "class 1", "class 2", "zebra"]
    (tmp_path / "labels.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(labels)))
    (tmp_path / "x_train.txt").write_text("a b.png 0 1 2\nc.png 3 4\nd.png 0 1 2 3 4\ne.png\n")
    for to in ("csv", "list"):
        code, _, err = hpedge("convert", "x_train.txt", "--out", to, "--to", to)
        assert code == 0, err
        code, out, _ = hpedge("check", f"{to}/train.{'csv' if to == 'csv' else 'txt'}", "--json")
        assert json.loads(out)["labels"] == labels


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["check", "absent"], 2, "absent: there is no such file or folder"),
        (["check", "demo"], 2, "name the data to read"),
        (["check", "voc-lt=absent"], 2, "absent is no folder"),
        (["voc-lt", "--images", "absent"], 2, "absent is no folder"),
        (["convert", "absent.csv", "--out", "x", "--to", "csv"], 2, "absent.csv"),
        (["split", "demo", "--out", "x", "--fraction", "1"], 2, "name the data to read"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_mistakes_are_one_line_with_the_right_code(hpedge, arguments, code, message):
    found, out, err = hpedge(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_an_unknown_format_and_a_semicolon_are_refused(hpedge, tiny, tmp_path):
    code, _, err = hpedge("convert", tiny, "--out", "x", "--to", "xml")
    assert code == 2
    assert "'xml' is not one of csv, list" in err
    (tmp_path / "labels.txt").write_text("a;b\nc\n")
    (tmp_path / "x_train.txt").write_text("1.png 0\n2.png 1\n")
    code, _, err = hpedge("convert", "x_train.txt", "--out", "y")
    assert code == 2
    assert "write --to list" in err


def test_train_takes_a_protocol(coco):
    """Planted mistake: --images silently replaced by the protocol's."""
    none = dict.fromkeys(("data.val", "data.test", "data.images", "data.labels"))
    values = chosen_values({"data.path": f"coco-lt={coco}", **none}, None, None)
    assert values["loss.mu"] == "0.2"
    assert values["data.images"] == str(coco)
    assert values["data.test"].endswith("coco_lt_test.txt")
    with pytest.raises(UsageError, match=r"brings its own data\.images; leave those options out"):
        chosen_values({"data.path": f"coco-lt={coco}", **none, "data.images": "x"}, None, None)
    assert chosen_values({"data.path": "a=b.csv", **none}, None, None)["data.path"].endswith("/a=b.csv")


def test_nothing_of_it_needs_torch(tiny, tmp_path):
    """The runtime's own packages are enough. Planted mistake: the splits read through the training session."""
    code = (
        "import sys; from hpdval_edge import cli; sys.argv = ['hpedge', 'data', *sys.argv[1:]]\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'timm', 'open_clip'} & set(sys.modules)"
    )
    for arguments in (["check", tiny], ["split", tiny / "train.csv", "--out", tmp_path / "a"], ["voc-lt", "-h"]):
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
