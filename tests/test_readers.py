"""Every layout is read as documented; every mistake in it becomes one sentence with file and line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.errors import BadData, HpedgeError, UsageError
from hpdval_edge.training.dataset import LabelledImages, Splits
from hpdval_edge.training.readers import (
    load_splits,
    read_coco,
    read_csv,
    read_folders,
    read_label_names,
    read_list,
    read_voc,
)

ANIMALS = ("cat", "dog", "polar bear")


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def picture(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(path)


def content(data: LabelledImages) -> dict[str, list[str]]:
    """Path -> names of its labels."""
    names = np.array(data.labels)
    return {path: names[row == 1].tolist() for path, row in zip(data.paths, data.targets, strict=True)}


def test_list(tmp_path):
    text = "\ufeffa.jpg 0 2 \r\nsub\\my cat.JPEG 1\r\n\r\n./b.png\r\nphoto 1.jpg\t0\t0\r\n"
    write(tmp_path, {"x_train.txt": text, "x_labels.txt": "dog 1\r\ncat 0 \r\npolar bear 2\r\n"})
    data = read_list(tmp_path / "x_train.txt")
    assert data.labels == ANIMALS and data.root == tmp_path
    assert content(data) == {
        "a.jpg": ["cat", "polar bear"],
        "sub/my cat.JPEG": ["dog"],
        "b.png": [],
        "photo 1.jpg": ["cat"],
    }
    assert data.class_counts.tolist() == [2, 1, 1] and data.class_counts.dtype == np.int64
    assert read_list(str(tmp_path / "x_train.txt"), images=tmp_path, labels=list("abc")).labels == ("a", "b", "c")


def test_absolute_paths_become_relative(tmp_path):
    write(tmp_path, {"train.txt": f"{tmp_path}/sub/a.jpg 0\n"})
    data = read_list(tmp_path / "train.txt", labels=["cat"])
    assert data.paths == ("sub/a.jpg",) and data.absolute(0) == tmp_path / "sub/a.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\nb.jpg 3\n", ":2: read the label id '3', expected whole numbers from 0 to 2"),
        ("a.jpg -1", ":1: read the label id '-1'"),
        ("a.jpg 0,1", ":1: read the label id '0,1'"),
        ("a.jpg 0 cat 1", ":1: read the label id 'cat'"),
        ("a.jpg " + "9" * 5000, ":1: read the label id '999"),
        ("a.jpg \u0663", ":1: read the label id '\u0663'"),
        ("a.jpg 0\n\n0 1 2", ":3: read '0 1 2', expected 'relative/path.jpg id id ...'"),
        ("a.jpg,0", ":1: read 'a.jpg,0', expected"),
        ("a.jpg 0\nb.jpg\n.\\a.jpg 1", ":3: 'a.jpg' is there twice, first at "),
        ("C:\\a.jpg 0", ":1: 'C:\\\\a.jpg' names a Windows drive; give the path relative to"),
        (b"a.jpg 0\nb\xe4.jpg 1", ":2: byte 0xe4 is not UTF-8"),
        ("a.jpg 0".encode("utf-16"), ":1: the file is UTF-16, expected UTF-8"),
        (" \r\n\r\n", ": no pictures are listed"),
        ("", ": no pictures are listed"),
    ],
)
def test_malformed_list(tmp_path, text, message):
    write(tmp_path, {"x.txt": text})
    with pytest.raises(BadData) as caught:
        read_list(tmp_path / "x.txt", labels=ANIMALS)
    assert str(caught.value).startswith(f"{tmp_path / 'x.txt'}{message}")


@pytest.mark.parametrize(
    "text", ["cat\ndog\npolar bear\n", "polar bear 2\ndog\t1 \ncat 0", "\ufeffcat 0\r\ndog 1\r\npolar bear 2"]
)
def test_label_names(tmp_path, text):
    assert read_label_names(write(tmp_path, {"l.txt": text}) / "l.txt") == ANIMALS


def test_label_names_may_hold_numbers_and_underscores(tmp_path):
    assert read_label_names(write(tmp_path, {"l.txt": "ice_cream\narea 51\nzoo"}) / "l.txt") == (
        "ice_cream",
        "area 51",
        "zoo",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 0\ndog\nfox 2\n", ":2: read 'dog', expected 'name id' as on the other lines"),
        ("cat 0\ndog 0\n", ":2: read the id 0, expected 0 to 1, each once"),
        ("cat 1\ndog 2\n", ":2: read the id 2, expected 0 to 1, each once"),
        ("cat\ncat\n", ": the label 'cat' is there twice"),
        ("\n", ": no labels"),
    ],
)
def test_malformed_label_names(tmp_path, text, message):
    with pytest.raises(BadData) as caught:
        read_label_names(write(tmp_path, {"l.txt": text}) / "l.txt")
    assert str(caught.value) == f"{tmp_path / 'l.txt'}{message}"


def test_label_file_beside_the_list(tmp_path):
    write(
        tmp_path,
        {"a_b_train.txt": "a.jpg 0", "a_labels.txt": "short", "a_b_labels.txt": "long", "c_train.txt": "a.jpg 0"},
    )
    assert read_list(tmp_path / "a_b_train.txt").labels == ("long",)
    with pytest.raises(UsageError, match=r"several files beside the list fit \(a_b_labels.txt, a_labels.txt\)"):
        read_list(tmp_path / "c_train.txt")
    with pytest.raises(UsageError, match=r"no '\*labels\*.txt' lies beside the list"):
        read_list(write(tmp_path / "d", {"train.txt": "a.jpg 0"}) / "train.txt")


def test_csv_with_a_label_column(tmp_path):
    text = '\ufeffImage,Labels\r\n"a, b.jpg",dog; cat;\r\nsub\\c.jpg,\r\n\r\nd.jpg,polar bear\r\n'
    data = read_csv(write(tmp_path, {"t.csv": text}) / "t.csv")
    assert data.labels == ANIMALS
    assert content(data) == {"a, b.jpg": ["cat", "dog"], "sub/c.jpg": [], "d.jpg": ["polar bear"]}
    assert read_csv(tmp_path / "t.csv", labels=ANIMALS[::-1]).labels == ANIMALS[::-1]


def test_csv_with_a_column_per_label(tmp_path):
    data = read_csv(write(tmp_path, {"t.csv": "dog,file,cat\n1,a.jpg,0\n0.0,b.jpg, 1\n0,c.jpg,0\n"}) / "t.csv")
    assert data.labels == ("dog", "cat")
    assert content(data) == {"a.jpg": ["dog"], "b.jpg": ["cat"], "c.jpg": []}
    swapped = read_csv(tmp_path / "t.csv", labels=["cat", "dog"])
    assert swapped.labels == ("cat", "dog") and content(swapped) == content(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": an empty table, expected the header 'path,labels'"),
        ("a.jpg,cat\n", ":1: read the header 'a.jpg,cat', expected 'path,labels' or"),
        ("path\na.jpg\n", ":1: read the header 'path', expected"),
        ("path;labels\na.jpg;cat\n", ":1: read the header 'path;labels', expected"),
        ("path,labels,width\na.jpg,cat,3\n", ":1: read the header 'path,labels,width', expected"),
        ("path,labels\n", ": no labels"),
        ("path,cat\n", ": no pictures are listed"),
        ("path,labels\na.jpg,cat\nb.jpg\n", ":3: read 1 cells, expected 2 as in the header"),
        ("path,labels\n,cat\n", ":2: '' is no picture path"),
        ("path,labels\na.jpg,cat\n\na.jpg,dog\n", ":4: 'a.jpg' is there twice, first at "),
        ("path,cat\na.jpg,yes\n", ":2: read 'yes' in the column 'cat', expected 0 or 1"),
        ("path,cat,cat\na.jpg,0,1\n", ":1: the label 'cat' is there twice"),
        ("path,cat,\na.jpg,0,1\n", ":1: a label name is '', expected text"),
        ('path,labels\n"a.jpg,cat\n', ":2: not a CSV row (unexpected end of data)"),
    ],
)
def test_malformed_csv(tmp_path, text, message):
    with pytest.raises(BadData) as caught:
        read_csv(write(tmp_path, {"t.csv": text}) / "t.csv")
    assert str(caught.value).startswith(f"{tmp_path / 't.csv'}{message}")


@pytest.mark.parametrize("text", ["path,labels\na.jpg,cat\nb.jpg,fox\n", "path,cat,dog,fox\na.jpg,0,0,0\n"])
def test_csv_with_an_unknown_label(tmp_path, text):
    line = 3 if "labels" in text else 1
    with pytest.raises(
        BadData, match=rf"t.csv:{line}: unknown label 'fox', expected one of the 3 labels cat, dog, polar bear"
    ):
        read_csv(write(tmp_path, {"t.csv": text}) / "t.csv", labels=ANIMALS)
    with pytest.raises(BadData, match=r"t.csv:1: there is no column for the label 'dog'"):
        read_csv(write(tmp_path, {"t.csv": "path,cat\na.jpg,0\n"}) / "t.csv", labels=["cat", "dog"])


def coco(annotations: list, pictures=("a.jpg", "b.jpg")) -> dict:
    boxed = [{"bbox": [0, 0, 5, 5], "area": 9.0, "iscrowd": 0, **note} for note in annotations]
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(pictures)],
        "annotations": boxed,
        "categories": [{"id": 7, "name": "polar bear"}, {"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def test_coco(tmp_path):
    notes = [
        {"image_id": 0, "category_id": 3, "iscrowd": 1},
        {"image_id": 0, "category_id": 3},
        *({"image_id": 0, "category_id": 1, "bbox": box} for box in ([0, 0, 0.9, 5], [0, 0, 5, 0.9])),
        {"image_id": 0, "category_id": 1, "area": 0},
        {"image_id": 0, "category_id": 1, "ignore": 1},
        {"image_id": 2, "category_id": 7, "bbox": [0, 0, 1, 1], "area": 0.5},
    ]
    text = json.dumps(coco(notes, ("a.jpg", "b.jpg", "c.jpg")))
    file = (
        write(tmp_path, {"annotations/instances_train2017.json": "\ufeff" + text})
        / "annotations/instances_train2017.json"
    )
    data = read_coco(file)
    assert data.labels == ANIMALS and data.root == tmp_path
    assert content(data) == {"a.jpg": ["dog"], "b.jpg": [], "c.jpg": ["polar bear"]}
    (tmp_path / "images/train2017").mkdir(parents=True)
    assert read_coco(file).paths[0] == "images/train2017/a.jpg"
    (tmp_path / "train2017").mkdir()
    assert read_coco(file).paths[0] == "train2017/a.jpg"
    assert read_coco(file, images=tmp_path / "images").absolute(0) == tmp_path / "images/train2017/a.jpg"
    assert read_coco(file, labels=("dog", "cat", "polar bear", "fox")).class_counts.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[1,\n2", ":2: not JSON (Expecting ',' delimiter"),
        ("[" * 100_000, ": not a COCO instances file ("),
        ("[]", ": read list, expected a COCO instances file with a list 'images'"),
        ('{"info": {}}', ": read keys info, expected a COCO instances file with a list 'images'"),
        ({"images": []}, ": no pictures are listed"),
        ({"images": [{"id": "x", "file_name": "a.jpg"}]}, " images[0]: id is 'x', expected a whole number"),
        ({"images": [{"id": 0, "file_name": 1}]}, " images[0]: file_name is 1, expected text"),
        ({"images": [3]}, " images[0]: id is None, expected a whole number"),
        ({"images": [{"id": 0, "file_name": "a.jpg"}] * 2}, " images[1]: the id 0 is there twice"),
        (
            {"images": [{"id": i, "file_name": "a.jpg"} for i in (0, 1)]},
            " image id 1: 'a.jpg' is there twice, first at",
        ),
        ({"annotations": [{"image_id": 9, "category_id": 1}]}, " annotations[0]: image_id 9 is not listed"),
        ({"annotations": [{"image_id": 0, "category_id": 9}]}, " annotations[0]: category_id 9 is not listed"),
        (
            {"annotations": [{"image_id": 0, "category_id": 1, "bbox": [1]}]},
            " annotations[0]: bbox is [1], expected [x, y,",
        ),
        (
            {"annotations": [{"image_id": 0, "category_id": 1, "bbox": [0] * 4, "area": "9"}]},
            " annotations[0]: area is '9'",
        ),
        ({"categories": []}, ": no labels"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]}, ": the label 'cat' is there twice"),
    ],
)
def test_malformed_coco(tmp_path, change, message):
    text = change if isinstance(change, str) else json.dumps({**coco([]), **change})
    with pytest.raises(BadData) as caught:
        read_coco(write(tmp_path, {"x.json": text}) / "x.json")
    assert str(caught.value).startswith(f"{tmp_path / 'x.json'}{message}")


def test_coco_with_an_unknown_category(tmp_path):
    with pytest.raises(
        BadData, match=r"x.json categories: unknown label 'dog', expected one of the 2 labels cat, polar bear"
    ):
        read_coco(write(tmp_path, {"x.json": json.dumps(coco([]))}) / "x.json", labels=["cat", "polar bear"])


def voc(folder: Path, year: int, sets: dict[str, dict[str, str]], suffix: str = ".jpg") -> Path:
    """``sets``: image set -> picture id -> names of its objects, separated by blanks; "dog!" is a difficult one."""
    for image_set, pictures in sets.items():
        write(folder / f"VOC{year}", {f"ImageSets/Main/{image_set}.txt": "\n".join(pictures) + "\n"})
        for number, names in pictures.items():
            objects = "".join(
                f"<object><name>{name.strip('!')}</name><difficult>{int('!' in name)}</difficult></object>"
                for name in names.split()
            )
            xml = f"<annotation><filename>{number}{suffix}</filename>{objects}</annotation>"
            write(folder / f"VOC{year}", {f"Annotations/{number}.xml": xml})
    return folder


def test_voc(tmp_path):
    voc(tmp_path, 2007, {"test": {"000001": "dog person! dog", "000002": "", "000003": "cat"}})
    data = read_voc(tmp_path, year=2007, image_set="test")
    assert data.labels == ("cat", "dog", "person") and data.root == tmp_path
    folder = "VOC2007/JPEGImages"
    assert content(data) == {
        f"{folder}/000001.jpg": ["dog", "person"],
        f"{folder}/000002.jpg": [],
        f"{folder}/000003.jpg": ["cat"],
    }
    voc(tmp_path, 2008, {"val": {"x": "cat"}}, suffix=".png")
    assert read_voc(tmp_path, year="2008", image_set="val", labels=["dog", "cat"]).paths == (
        "VOC2008/JPEGImages/x.png",
    )
    with pytest.raises(
        BadData, match=r"000003.xml: object 1: unknown label 'cat', expected one of the 2 labels dog, person"
    ):
        read_voc(tmp_path, year=2007, image_set="test", labels=["dog", "person"])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ImageSets/Main/test.txt", "1\n2  -1\n", ":2: read '2  -1', expected one picture id such as"),
        ("ImageSets/Main/test.txt", "1\n\n3\n", ":3: '3' has no annotation "),
        ("ImageSets/Main/test.txt", "1\n1\n", ":2: 'VOC2007/JPEGImages/1.jpg' is there twice"),
        ("ImageSets/Main/test.txt", "\n", ": no pictures are listed"),
        ("Annotations/1.xml", "<annotation>\n<object>\n</annotation>", ":3: not XML (mismatched tag"),
        ("Annotations/1.xml", "", ":1: not XML (no element found"),
        ("Annotations/1.xml", "<html/>", ":1: the outer element is <html>, expected <annotation>"),
        ("Annotations/1.xml", "<annotation><object/></annotation>", ": object 1 has no <name>"),
        ("Annotations/1.xml", '<?xml version="1.0" encoding="no-such"?><annotation/>', ":1: "),
    ],
)
def test_malformed_voc(tmp_path, file, text, message):
    write(voc(tmp_path, 2007, {"test": {"1": "cat"}}) / "VOC2007", {file: text})
    with pytest.raises(BadData) as caught:
        read_voc(tmp_path, year=2007, image_set="test")
    assert str(caught.value).startswith(f"{tmp_path / 'VOC2007' / file}{message}")


def test_folders(tmp_path):
    for name in ("cat/1.jpg", "cat/sub/2.jpg", "dog/1.jpg", "polar bear/3.PNG"):
        picture(tmp_path / name)
    # The same name and other pixels: another picture.
    picture(tmp_path / "polar bear/1.jpg", grey=200)
    write(tmp_path, {"cat/notes.txt": "", ".git/x.jpg": "", "readme.md": "", "dog/._1.jpg": ""})
    data = read_folders(tmp_path)
    assert data.labels == ANIMALS
    expected = {"cat/1.jpg": ["cat", "dog"], "cat/sub/2.jpg": ["cat"], "polar bear/1.jpg": ["polar bear"]}
    assert content(data) == {**expected, "polar bear/3.PNG": ["polar bear"]}
    assert read_folders(tmp_path, labels=(*ANIMALS, "fox")).class_counts.tolist() == [2, 1, 2, 0]
    with pytest.raises(BadData, match="polar bear: unknown label 'polar bear', expected one of the 2 labels cat, dog"):
        read_folders(tmp_path, labels=["cat", "dog"])
    with pytest.raises(UsageError, match="label folders hold the pictures themselves"):
        read_folders(tmp_path, images=tmp_path)
    picture(tmp_path / "loose.jpg")
    with pytest.raises(BadData, match=r"loose.jpg: lies outside every label folder"):
        read_folders(tmp_path)


def test_empty_folders(tmp_path):
    with pytest.raises(BadData, match="no labels"):
        read_folders(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(BadData, match="cat: holds no picture, expected pictures of the label 'cat'"):
        read_folders(tmp_path)
    with pytest.raises(BadData, match="no pictures are listed"):
        read_folders(tmp_path, labels=["cat"])
    with pytest.raises(BadData, match="nothing: the folder cannot be listed"):
        read_folders(tmp_path / "nothing")


@pytest.mark.parametrize("read", [read_list, read_csv, read_coco])
def test_missing_files_and_image_folders(tmp_path, read):
    with pytest.raises(BadData, match=r"nothing: there is no such file"):
        read(tmp_path / "nothing", labels=ANIMALS)
    with pytest.raises(BadData, match=r": cannot be read \(Is a directory\)"):
        read(tmp_path, labels=ANIMALS)
    with pytest.raises(UsageError, match="which is no folder; give the folder that picture paths start from"):
        read(tmp_path / "nothing", images=tmp_path / "none", labels=ANIMALS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.zeros((2, 3))}, r"uint8 \(2, 3\) \(pictures, labels\), got float64 \(2, 3\)"),
        ({"targets": np.zeros((3, 2), np.uint8)}, r"got uint8 \(3, 2\)"),
        ({"targets": np.full((2, 3), 2, np.uint8)}, "0 or 1, got 2"),
        ({"paths": ("a.jpg", "a.jpg")}, "got 'a.jpg' twice"),
        ({"paths": ("/a.jpg", "b.jpg")}, "relative with forward slashes, got '/a.jpg'"),
        ({"labels": ("cat", "cat", "dog")}, "got 'cat' twice"),
        ({"labels": ("cat", "", "dog")}, "non-empty strings, got ''"),
        ({"paths": ["a.jpg", "b.jpg"]}, "Path, a tuple and a tuple, got PosixPath, list, tuple"),
    ],
)
def test_labelled_images_check_themselves(change, message):
    fields = {
        "root": Path("."),
        "paths": ("a.jpg", "b.jpg"),
        "targets": np.eye(2, 3, dtype=np.uint8),
        "labels": ANIMALS,
    }
    data = LabelledImages(**fields)
    assert len(data) == 2 and data.subset([1]).paths == ("b.jpg",) and data.subset([]).targets.shape == (0, 3)
    for wrong in ([2], [-1], [0.5], [[0]], [0, 0]):
        with pytest.raises((ValueError, TypeError), match="must"):
            data.subset(wrong)
    with pytest.raises(
        ValueError, match="val must have the same labels in one order, they differ in 'cat' against 'dog'"
    ):
        Splits(data, LabelledImages(**{**fields, "labels": ("dog", "cat", "polar bear")}), None, ())
    with pytest.raises((ValueError, TypeError), match=message):
        LabelledImages(**{**fields, **change})


@pytest.mark.parametrize(
    ("arguments", "message"), [({"format": "xml"}, "format is 'xml'"), ({"val_fraction": 0}, "val_fraction is 0")]
)
def test_load_splits_refuses(tmp_path, arguments, message):
    with pytest.raises(HpedgeError, match=message):
        load_splits(tmp_path, **arguments)
