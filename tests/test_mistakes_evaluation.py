"""METHOD 15, rows 10 and 11: head, medium and tail, and average precision; and the lists that both are counted from.

Every check runs on the code and on mistakes planted here, which it must refuse: it is seen to fail in each run.
"""

import numpy as np
import pytest

from hpdval_edge.training.metrics import class_groups, multilabel_report
from hpdval_edge.training.readers_list import read_label_names, read_list
from hpdval_edge.training.teacher import ASSETS

SIZES = {"voc": (6, 6, 8), "coco": (22, 33, 25)}
BOUNDARY = {"voc": "pottedplant", "coco": "backpack"}


@pytest.fixture(scope="module")
def lists(request):
    """Folder of the published lists: those that ship, else those beside the checkout."""
    shipped = ASSETS / "protocols"
    return shipped if shipped.is_dir() else request.getfixturevalue("shared_data") / "splits"


def rows_of(folder, data, split):
    """Label ids of every picture, and the label names, read without the package."""
    lines = (folder / f"{data}_lt_{split}.txt").read_text().splitlines()
    names = [line.split()[:-1] for line in (folder / f"{data}_labels.txt").read_text().splitlines() if line.strip()]
    return [sorted(map(int, line.split()[1:])) for line in lines], [" ".join(words) for words in names]


def counts_of(folder, data, split):
    rows, names = rows_of(folder, data, split)
    return np.array([sum(label in row for row in rows) for label in range(len(names))]), names


def targets_of(folder, data, split):
    rows, names = rows_of(folder, data, split)
    return np.array([[label in row for label in range(len(names))] for row in rows])


def refuses(check, *arguments):
    with pytest.raises(AssertionError):
        check(*arguments)


def check_groups(groups_of, folder, data):
    """``groups_of(training counts, test counts)`` -> names [C]: the published sizes, 100 is head, 20 is medium."""
    counts, names = counts_of(folder, data, "train")
    groups = np.asarray(groups_of(counts, counts_of(folder, data, "test")[0]))
    assert tuple((groups == group).sum() for group in ("head", "medium", "tail")) == SIZES[data]
    assert counts[names.index(BOUNDARY[data])] == 100
    assert groups[names.index(BOUNDARY[data])] == "head"
    for count, group in zip(counts, groups, strict=True):
        assert group == ("head" if count >= 100 else "medium" if count >= 20 else "tail")


def by_code(train, test):
    return class_groups(train)


def above_100(train, test):
    return np.where(train > 100, "head", np.where(train >= 20, "medium", "tail"))


def from_test_counts(train, test):
    return class_groups(test)


def up_to_20(train, test):
    return np.where(train >= 100, "head", np.where(train > 20, "medium", "tail"))


def thirds(train, test):
    places = np.argsort(np.argsort(-train))
    return np.array(["head", "medium", "tail"])[places * 3 // len(train)]


@pytest.mark.parametrize("data", ["voc", "coco"])
def test_mistake_10_head_above_100_or_groups_from_the_test_list(lists, data):
    """Planted mistakes: "more than 100" as printed, counts of the test list, three equal groups."""
    check_groups(by_code, lists, data)
    for planted in (above_100, from_test_counts, thirds):
        refuses(check_groups, planted, lists, data)


def test_mistake_10_the_lower_boundary():
    """Planted mistake: a class of exactly 20 in the tail."""
    counts = np.array([101, 100, 99, 21, 20, 19, 0])
    expected = ["head"] * 2 + ["medium"] * 3 + ["tail"] * 2
    assert by_code(counts, None).tolist() == expected
    assert up_to_20(counts, None).tolist() != expected


def example(levels, images=150, classes=5):
    """Scores float64 that tie where ``levels`` rounds them, and targets; every tenth image has no label."""
    generator = np.random.default_rng(3)
    targets = generator.random((images, classes)) < np.linspace(0.1, 0.4, classes)
    targets[::10], targets[1] = False, True
    scores = generator.normal(size=(images, classes)) + targets + generator.normal(size=(images, 1))
    return (np.round(scores * levels) / levels if levels else scores), targets


def precision_at_each_positive(scores, targets):
    """Eq. 18 in loops: the mean over positives of the precision among all images that score at least as high."""
    values = []
    for column, positive in zip(scores.T, targets.T, strict=True):
        above = [column >= threshold for threshold in column[positive]]
        values.append(100 * np.mean([positive[chosen].mean() for chosen in above]))
    return values


def by_report(scores, targets):
    return multilabel_report(scores, targets, targets.sum(axis=0))["per_class"]


def check_average_precision(ap):
    """``ap(scores, targets)`` -> [C] in percent: eq. 18, whatever the order of tied images and the scale of scores."""
    for levels in (None, 2):
        scores, targets = example(levels)
        expected = precision_at_each_positive(scores, targets)
        np.testing.assert_allclose(ap(scores, targets), expected, rtol=1e-9)
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(len(scores))
            np.testing.assert_allclose(ap(scores[order], targets[order]), expected, rtol=1e-9)
        np.testing.assert_allclose(ap(20 * scores + 3, targets), expected, rtol=1e-9)
    close = np.array([[0.5], [0.5 + 2**-13]], dtype=np.float32)
    np.testing.assert_allclose(ap(close, np.array([[False], [True]])), [100.0])


def ranked(scores, targets):
    """Precision at each rank of the stable order, [n], and positives in it."""
    order = np.argsort(-scores, kind="stable")
    hits = targets[order]
    return hits.cumsum() / np.arange(1, len(hits) + 1), hits


def ties_by_order(scores, targets):
    pairs = (ranked(s, y) for s, y in zip(scores.T, targets.T, strict=True))
    return [100 * precision[hits].mean() for precision, hits in pairs]


def eleven_point(scores, targets):
    values = []
    for s, y in zip(scores.T, targets.T, strict=True):
        precision, hits = ranked(s, y)
        recall = hits.cumsum() / hits.sum()
        values.append(100 * np.mean([precision[recall >= level / 10].max() for level in range(11)]))
    return values


def interpolated(scores, targets):
    pairs = (ranked(s, y) for s, y in zip(scores.T, targets.T, strict=True))
    return [100 * np.maximum.accumulate(precision[::-1])[::-1][hits].mean() for precision, hits in pairs]


def half_precision(scores, targets):
    return by_report(scores.astype(np.float16).astype(np.float32), targets)


def softmax_first(scores, targets):
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return by_report(powers / powers.sum(axis=1, keepdims=True), targets)


def empty_images_dropped(scores, targets):
    kept = targets.any(axis=1)
    return by_report(scores[kept], targets[kept])


def micro_average(scores, targets):
    return by_report(scores.reshape(-1, 1), targets.reshape(-1, 1)) * scores.shape[1]


PLANTED_AP = [
    ties_by_order,
    eleven_point,
    interpolated,
    half_precision,
    softmax_first,
    empty_images_dropped,
    micro_average,
]


def test_mistake_11_another_average_precision():
    check_average_precision(by_report)


@pytest.mark.parametrize("planted", PLANTED_AP, ids=lambda planted: planted.__name__)
def test_mistake_11_is_caught(planted):
    """Planted mistakes, named by their functions above."""
    refuses(check_average_precision, planted)


def test_mistake_11_means_are_over_classes():
    """Planted mistake: one AP over all pairs for the mean of the classes' AP."""
    scores, targets = example(None)
    # Rare classes that score high everywhere: nothing to the mean over classes, much to all pairs together.
    scores = scores + np.arange(5.0)[::-1]
    expected = np.mean(precision_at_each_positive(scores, targets))
    assert multilabel_report(scores, targets, targets.sum(axis=0))["mAP"] == pytest.approx(expected, rel=1e-9)
    assert abs(micro_average(scores, targets)[0] - expected) > 1


def check_images_without_labels(report, targets):
    """All rows count: with every empty image on top, a class of n positives has AP n / (n + empty)."""
    empty = ~targets.any(axis=1)
    result = report(np.where(empty[:, None], 2.0, targets), targets)
    n = targets.sum(axis=0)
    assert result["n_images"] == len(targets)
    np.testing.assert_allclose(result["per_class"], 100 * n / (n + empty.sum()))


def test_mistake_11_all_5000_rows_of_coco_count(lists):
    """Planted mistake: the 48 test images without a label left out."""
    targets = targets_of(lists, "coco", "test")
    assert len(targets) == 5000 and (~targets.any(axis=1)).sum() == 48
    counts = targets.sum(axis=0)
    check_images_without_labels(lambda scores, labels: multilabel_report(scores, labels, counts), targets)
    kept = targets.any(axis=1)
    refuses(
        check_images_without_labels,
        lambda scores, labels: multilabel_report(scores[kept], labels[kept], counts),
        targets,
    )


@pytest.mark.parametrize(("data", "images"), [("voc", (1142, 4952)), ("coco", (1909, 5000))])
def test_the_reader_takes_the_published_lists_whole(lists, data, images):
    """Lines, ids and n_i as parsed here. Planted mistakes: a line without ids skipped; ids from 1."""
    names = read_label_names(lists / f"{data}_labels.txt")
    for split, expected in zip(("train", "test"), images, strict=True):
        read = read_list(lists / f"{data}_lt_{split}.txt", labels=names)
        targets = targets_of(lists, data, split)
        assert len(read) == expected
        assert np.array_equal(read.targets, targets)
        counts, known = counts_of(lists, data, split)
        assert np.array_equal(read.class_counts, counts) and list(names) == known


def test_a_list_survives_reading_and_writing(tmp_path):
    """A trailing space, a line without ids, blank lines and Windows line ends; planted mistake: any of them dropped."""
    text = "a/1.jpg 2 0 \r\n\r\nb/2.jpg\r\nc d/3.jpg 1\r\nb/4.JPG \r\n"
    (tmp_path / "x.txt").write_bytes(text.encode())
    read = read_list(tmp_path / "x.txt", labels=["p", "q", "r"])
    assert read.paths == ("a/1.jpg", "b/2.jpg", "c d/3.jpg", "b/4.JPG")
    assert read.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    pairs = zip(read.paths, read.targets, strict=True)
    (tmp_path / "y.txt").write_text("".join(f"{path} {' '.join(map(str, np.flatnonzero(y)))}\n" for path, y in pairs))
    again = read_list(tmp_path / "y.txt", labels=["p", "q", "r"])
    assert again.paths == read.paths and np.array_equal(again.targets, read.targets)


def test_the_shipped_lists_are_the_published_ones(lists, shared_data):
    """Planted mistake: a list that lost its empty lines' pictures when it was tidied for shipping."""
    for data in ("voc", "coco"):
        for split in ("train", "test"):
            assert rows_of(lists, data, split) == rows_of(shared_data / "splits", data, split)
