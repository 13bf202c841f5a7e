"""The built-in demo teacher: the script that trains it, and what the shipped weights know."""

import sys

import numpy as np
import pytest
import torch

from hpdval_edge.training import demo_teacher
from hpdval_edge.training.demo_teacher import draw_picture, normalised, pair_truth, shift_and_flip, zero_shot_map
from hpdval_edge.training.scenes import KINDS, draw_scene, long_tailed_labels, split_counts
from hpdval_edge.training.teacher import ASSETS, load_teacher

CPU = torch.device("cpu")


def test_a_caption_is_true_of_every_picture_that_shows_all_it_names():
    shown, named = [[3], [3, 5], [5, 7, 3]], [[3], [5, 3], [7]]
    assert pair_truth(shown, named).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_shift_and_flip_moves_pictures_whole():
    images = torch.rand(6, 3, 40, 40)
    moved = shift_and_flip(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    inner = images[..., 16:24, 16:24]
    for one, other in zip(inner, moved, strict=True):
        windows = other.unfold(1, 8, 1).unfold(2, 8, 1)
        gaps = [(windows - part[:, None, None]).abs().amax(dim=(0, 3, 4)).min() for part in (one, one.flip(-1))]
        assert min(gaps) == 0
    assert not torch.equal(moved, images)


def test_the_script_writes_a_teacher_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_teacher, "HELD_OUT", 16)
    monkeypatch.setattr(demo_teacher, "draw_corpus", lambda seed, count: demo_teacher._draw_block((seed, 0, count)))
    monkeypatch.setattr(sys, "argv", ["demo_teacher", str(tmp_path), "--pictures", "64", "--epochs", "2"])
    demo_teacher.main()
    assert "epoch 2/2" in capsys.readouterr().err
    paths = [tmp_path / demo_teacher.CONFIG, tmp_path / demo_teacher.WEIGHTS]
    teacher = load_teacher(":".join(map(str, paths)), CPU)
    assert paths[0].read_text() == (ASSETS / demo_teacher.CONFIG).read_text()
    shipped = load_teacher("demo", CPU)
    assert teacher.fingerprint != shipped.fingerprint
    assert teacher.clip.state_dict().keys() == shipped.clip.state_dict().keys()


def test_pictures_depend_on_seed_and_index_alone():
    picture, kinds = draw_picture(0, 5)
    again, same = draw_picture(0, 5)
    assert kinds == same and np.array_equal(picture, again)
    assert not np.array_equal(picture, draw_picture(1, 5)[0])


def _score(teacher, pictures, kinds):
    ids = teacher.text.tokenizer
    return zero_shot_map(teacher.clip, ids, normalised(np.stack(pictures), CPU), kinds)


@pytest.fixture(scope="module")
def shipped():
    return load_teacher("demo", CPU)


def test_the_shipped_teacher_knows_its_own_kind_of_pictures(shipped):
    """Pictures that training never saw: the corpus counts up from 0."""
    drawn = [draw_picture(0, 10**6 + index) for index in range(160)]
    assert _score(shipped, *zip(*drawn, strict=True)) > 60


def test_the_shipped_teacher_is_far_above_chance_on_the_demo_set(shipped):
    labels = long_tailed_labels(pictures=200, counts=split_counts("test") // 2, rng=np.random.default_rng(0))
    kinds = [np.flatnonzero(row).tolist() for row in labels]
    pictures = [draw_scene(row, rng=np.random.default_rng([9, index])) for index, row in enumerate(kinds)]
    mixed = [kinds[i] for i in np.random.default_rng(1).permutation(len(kinds))]
    chance = _score(shipped, pictures, mixed)
    assert _score(shipped, pictures, kinds) > 1.8 * chance
    assert len(KINDS) == 20 and chance < 25
