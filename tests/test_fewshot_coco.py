"""Few-shot on COCO: the published classes and episodes, and the protocol on annotations made up for them."""

import json

import numpy as np
import pytest

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.protocols import fewshot_coco, fewshot_voc
from hpdval_edge.training.protocols.fewshot_splits import shipped_episode


def test_coco_classes_are_the_published_ones(shared_data):
    """METHOD section 11. Planted mistake: seed 1."""
    base, novel = fewshot_coco.base_and_novel()
    original = np.load(shared_data / "splits" / "fewshot.npz", allow_pickle=False)
    assert [name.replace(" ", "_") for name in novel] == original["coco_novel_names"].tolist()
    assert len(base) == 64
    assert fewshot_voc.base_and_novel()[0] == tuple(original["voc_base_names"].tolist())
    assert original["voc_novel_names"].tolist() == list(fewshot_voc.NOVEL)


def test_novel_coco_classes_without_the_originals():
    novel = fewshot_coco.base_and_novel()[1]
    assert novel[:3] == ("bicycle", "boat", "stop sign")
    assert len(novel) == 16


@pytest.mark.parametrize(("shots", "least", "most"), [(1, 12, 16), (5, 56, 64)])
def test_shipped_coco_episodes(shared_data, shots, least, most):
    """Planted mistake: one position changed in the shipped file."""
    original = np.load(shared_data / "splits" / "fewshot.npz", allow_pickle=False)
    for episode in range(1, 11):
        lines = shipped_episode("coco_fewshot.txt", shots, episode)
        pairs = sorted((int(label), int(place)) for place, labels in lines for label in labels.split())
        assert pairs == sorted(map(tuple, original[f"coco_{shots}shot_{episode}_class_index_pairs"].tolist()))
        assert [int(place) for place, _ in lines] == original[f"coco_{shots}shot_{episode}_indices"].tolist()
        assert least <= len(lines) <= most
        assert np.bincount([label for label, _ in pairs], minlength=80).clip(max=shots).sum() == 16 * shots


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Annotations of COCO 2014 that show what the shipped episodes need, and little else; no pictures."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    names = (*fewshot_coco.base_and_novel()[0], *fewshot_coco.base_and_novel()[1])
    order = fewshot_coco.read_label_names(fewshot_coco.LISTS / "coco_labels.txt")
    assert sorted(names) == sorted(order)
    needed = {}
    for shots in (1, 5):
        for episode in range(1, 11):
            for place, labels in shipped_episode("coco_fewshot.txt", shots, episode):
                needed.setdefault(int(place), set()).update(int(label) for label in labels.split())
    needed.setdefault(0, set()).update({0, 1})
    write_coco(root, "train2014", needed, order, total=82783)
    # Person alone, bicycle alone, both, a crowd of boats, nothing.
    write_coco(root, "val2014", {0: {0}, 1: {1}, 2: {0, 1}, 3: {8}}, order, total=5, crowds={3})
    return root


def write_coco(root, part, labels, order, *, total, crowds=()):
    # Ids run against the order of the file, so that a reader which sorts them is noticed.
    images = [{"id": total - i, "file_name": f"COCO_{part}_{total - i:012}.jpg"} for i in range(total)]
    notes = [
        {"image_id": total - i, "category_id": label + 1, "bbox": [0, 0, 5, 5], "iscrowd": int(i in crowds)}
        for i, found in labels.items()
        for label in found
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(order)]
    content = {"images": images, "annotations": notes, "categories": categories}
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def test_coco_parts(coco):
    """Planted mistakes: crowds count; pictures that show both kinds are dropped."""
    splits = fewshot_coco.coco_protocol(coco)
    assert splits.base_test.paths == ("COCO_val2014_000000000005.jpg", "COCO_val2014_000000000003.jpg")
    assert splits.novel_test.paths == ("COCO_val2014_000000000004.jpg", "COCO_val2014_000000000003.jpg")
    assert splits.novel_test.labels == fewshot_coco.base_and_novel()[1]
    assert splits.base_train.labels == fewshot_coco.base_and_novel()[0]
    support = splits.support(1, 2)
    assert len(support) == 14
    assert support.class_counts.min() >= 1
    first = min(int(place) for place, _ in shipped_episode("coco_fewshot.txt", 1, 2))
    assert support.paths[0] == f"COCO_train2014_{82783 - first:012}.jpg"


def test_another_order_of_the_coco_file_is_noticed(coco, tmp_path):
    """Planted mistake: positions taken without a look at what the pictures show."""
    (tmp_path / "annotations").mkdir()
    for part in ("train2014", "val2014"):
        content = json.loads((coco / "annotations" / f"instances_{part}.json").read_text())
        content["images"].reverse()
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    splits = fewshot_coco.coco_protocol(tmp_path)
    with pytest.raises(BadData, match=r"picture \d+ of 82783 does not show '.*', which episode 3 of 5 shots needs"):
        splits.support(5, 3)
    with pytest.raises(UsageError, match=r"instances_train2014\.json is missing; few-shot on COCO needs"):
        fewshot_coco.coco_protocol(tmp_path / "annotations")
