"""The demo set: repeatable pictures, honest labels, and a folder that is whole or absent."""

import csv
import errno
import json
import re

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.errors import BadData, MissingDependency
from hpdval_edge.training import scenes
from hpdval_edge.training.scene_captions import caption, mention
from hpdval_edge.training.scenes import KINDS, SIZE, draw_scene, make_scenes_lt, split_counts


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _flat_picture(kinds, *, rng, style="full"):
    """Stand in for draw_scene where only the files matter: drawing 1,200 pictures takes many seconds."""
    return np.full((4, 4, 3), rng.integers(256), dtype=np.uint8)


@pytest.fixture
def quick_draw(monkeypatch):
    monkeypatch.setattr(scenes, "draw_scene", _flat_picture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "scenes-lt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "draw_scene", _flat_picture)
        make_scenes_lt(path)
    return path


def _table(folder, split) -> tuple[list[str], np.ndarray]:
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "labels"]
    targets = np.array([[name in row[1].split(";") for name in KINDS] for row in rows])
    assert all(len(set(row[1].split(";"))) == sum(hot) for row, hot in zip(rows, targets, strict=True))
    return [row[0] for row in rows], targets


def test_twenty_kinds_that_fit_the_plain_prompt():
    assert len(set(KINDS)) == 20
    assert all(re.fullmatch(r"[b-df-hj-np-tv-z][a-z]+( [a-z]+)?", name) for name in KINDS), "all must take 'a'"


@pytest.mark.parametrize("style", scenes.STYLES)
def test_same_seed_same_pixels(style):
    one, again, other = (draw_scene([3, 7, 19], rng=_rng(seed), style=style) for seed in (1, 1, 2))
    assert one.shape == (SIZE, SIZE, 3) and one.dtype == np.uint8
    assert np.array_equal(one, again)
    assert np.abs(one.astype(int) - other).mean() > 5


def test_styles_differ_and_web_is_calmer():
    def roughness(style):
        pictures = [draw_scene([kind], rng=_rng(kind), style=style).astype(float) for kind in range(20)]
        return np.mean([np.abs(np.diff(picture, axis=1)).mean() for picture in pictures])

    assert roughness("web") < 0.7 * roughness("full")


@pytest.mark.parametrize("style", scenes.STYLES)
@pytest.mark.parametrize("number", [1, 3, 5])
def test_every_label_is_visible(style, number):
    for kind in range(0, len(KINDS), 2 if number == 1 else 5):
        kinds = [(kind + 3 * step) % len(KINDS) for step in range(number)]
        scene = scenes.plan_scene(kinds, rng=_rng(kind, number), style=style)
        assert sorted(sprite.kind for sprite in scene.sprites) == sorted(kinds)
        full = scenes.render(scene).astype(int)
        for place, part in enumerate(scene.visible()):
            gone = scenes.render(scene, leave_out=place).astype(int)
            changed = (np.abs(full - gone).max(axis=2) > 12).sum()
            assert part >= 0.35, f"{KINDS[scene.sprites[place].kind]} shows {part:.2f} of itself"
            assert changed >= 12, f"{KINDS[scene.sprites[place].kind]} changes {changed} pixels"


def test_visible_counts_what_the_frame_and_later_objects_hide():
    scene = scenes.Scene(np.zeros((SIZE, SIZE, 3), np.float32), 0.0, "full", 0)
    square = np.ones((10, 10, 4), np.float32)
    assert scene.add(scenes.Sprite(0, square, -4, 20))
    assert scene.visible() == pytest.approx([0.6])
    assert not scene.add(scenes.Sprite(1, square, -4, 16))
    assert scene.add(scenes.Sprite(1, square, 4, 20))
    assert scene.visible() == pytest.approx([0.4, 1.0])


def test_a_crowd_is_drawn_smaller_until_it_fits(monkeypatch):
    monkeypatch.setitem(scenes.LENGTHS, "web", ((90, 92),) * 5)
    scene = scenes.plan_scene(range(20), rng=_rng(0), style="web")
    assert len(scene.sprites) == 20 and min(scene.visible()) >= scenes.MIN_VISIBLE["web"]


@pytest.mark.parametrize(("kinds", "style"), [([], "full"), ([20], "full"), ([-1], "full"), ([1], "oil")])
def test_draw_scene_refuses(kinds, style):
    with pytest.raises(ValueError, match=re.escape(str(kinds) if style == "full" else style)):
        draw_scene(kinds, rng=_rng(0), style=style)


def test_labels_have_the_counts_asked_for_and_company():
    counts = split_counts("train")
    labels = scenes.long_tailed_labels(pictures=600, counts=counts, rng=_rng(0))
    assert labels.dtype == np.uint8 and np.array_equal(labels.sum(axis=0), counts)
    assert labels.sum(axis=1).min() == 1 and labels.sum(axis=1).max() == 5
    assert np.array_equal(labels, scenes.long_tailed_labels(pictures=600, counts=counts, rng=_rng(0)))
    car, bus, clock = (labels[:, KINDS.index(name)].astype(bool) for name in ("car", "bus", "clock"))
    assert bus[car].mean() > 1.5 * bus[~car].mean()
    assert clock[car].mean() < clock[~car].mean()


@pytest.mark.parametrize("counts", [[1] * 19, [-1] + [20] * 19, [101] + [5] * 19, [1] * 20, [13] * 20])
def test_labels_refuse_impossible_counts(counts):
    with pytest.raises(ValueError, match="counts"):
        scenes.long_tailed_labels(pictures=100, counts=counts, rng=_rng(0))


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev' is not one of train"):
        split_counts("dev")


def test_the_files_hold_the_splits_promised(folder):
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(KINDS)
    for split, number in (("train", 600), ("val", 200), ("test", 400)):
        paths, targets = _table(folder, split)
        assert paths == [f"{split}/{index:05d}.jpg" for index in range(number)]
        assert sorted(file.name for file in (folder / split).iterdir()) == [path.split("/")[1] for path in paths]
        assert targets.sum(axis=1).min() >= 1 and targets.sum(axis=1).max() <= 5
        assert np.array_equal(targets.sum(axis=0), split_counts(split))


def test_the_tail_is_long_and_the_test_split_flatter(folder):
    train, val, test = (_table(folder, split)[1].sum(axis=0) for split in ("train", "val", "test"))
    assert ((train >= 100).sum(), ((train >= 20) & (train < 100)).sum(), (train < 20).sum()) == (6, 7, 7)
    assert train.min() == 4 and val.min() >= 2 and test.min() >= 25
    assert test.max() / test.min() < 0.1 * train.max() / train.min()


def test_other_seeds_give_other_labels(folder, tmp_path, quick_draw):
    make_scenes_lt(tmp_path / "one", seed=1)
    assert _table(tmp_path / "one", "train")[1].tolist() != _table(folder, "train")[1].tolist()
    assert _table(folder, "train")[1][:200].tolist() != _table(folder, "val")[1].tolist()


def test_pictures_do_not_depend_on_the_workers(tmp_path):
    labels = scenes.long_tailed_labels(pictures=100, counts=[10] * 20, rng=_rng(0))[:6]
    written = []
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        scenes._write_split(tmp_path / str(workers), "val", labels, seed=5, workers=workers)
        files = sorted((tmp_path / str(workers)).rglob("*.*"))
        written.append([(file.name, file.read_bytes()) for file in files])
    assert written[0] == written[1] and len(written[0]) == 6 + 1
    drawn = draw_scene(np.flatnonzero(labels[4]).tolist(), rng=_rng(5, 1, 4))
    with Image.open(tmp_path / "1" / "val" / "00004.jpg") as image:
        assert np.abs(np.asarray(image).astype(int) - drawn).mean() < 6


def test_a_writer_that_dies_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def die_late(kinds, *, rng, style="full"):
        drawn.append(kinds)
        if len(drawn) > 700:
            raise KeyboardInterrupt
        return _flat_picture(kinds, rng=rng)

    monkeypatch.setattr(scenes, "draw_scene", die_late)
    with pytest.raises(KeyboardInterrupt):
        make_scenes_lt(tmp_path / "scenes-lt")
    assert list(tmp_path.iterdir()) == []


def test_a_second_call_touches_nothing(folder, monkeypatch):
    monkeypatch.setattr(scenes, "draw_scene", None)
    before = {file: file.stat().st_mtime_ns for file in [folder, *folder.rglob("*")]}
    make_scenes_lt(folder)
    assert before == {file: file.stat().st_mtime_ns for file in [folder, *folder.rglob("*")]}


def test_an_empty_folder_is_filled_and_others_are_left_alone(tmp_path, quick_draw):
    (tmp_path / "empty").mkdir()
    make_scenes_lt(tmp_path / "empty", seed=3)
    assert json.loads((tmp_path / "empty" / "scenes.json").read_text(encoding="utf-8"))["seed"] == 3
    with pytest.raises(BadData, match='"seed": 3'):
        make_scenes_lt(tmp_path / "empty", seed=4)
    (tmp_path / "empty" / "val" / "00007.jpg").unlink()
    with pytest.raises(BadData, match="199 of 200 val"):
        make_scenes_lt(tmp_path / "empty", seed=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").touch()
    with pytest.raises(BadData, match="mine exists with no scenes"):
        make_scenes_lt(tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["photo.jpg"]


def test_the_slower_of_two_writers_yields(folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        scenes._move_into_place(tmp_path / "absent", tmp_path / "scenes-lt", 0)
    (tmp_path / "late").mkdir()
    scenes._move_into_place(tmp_path / "late", folder, 0)
    assert len(list((folder / "train").iterdir())) == 600


def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(MissingDependency, match=r"no space left to write .*scenes-lt; free some disk space"):
        make_scenes_lt(tmp_path / "scenes-lt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seed", "workers"), [(-1, 1), (0, 0)])
def test_make_refuses(tmp_path, seed, workers):
    with pytest.raises(ValueError, match=f"got seed={seed}, workers={workers}"):
        make_scenes_lt(tmp_path / "scenes-lt", seed=seed, workers=workers)


def test_captions_name_all_they_are_given_in_order():
    rng, kinds = _rng(0), [4, 17, 18]
    names = [KINDS[kind] for kind in kinds]
    one, two, three = (f"a {name}" for name in names)
    for count, listed in ((1, one), (2, f"{one} and {two}"), (3, f"{one}, {two} and {three}")):
        for _ in range(40):
            text = caption(kinds[:count], rng)
            assert re.sub(r"^(a (photo|picture|snapshot) of|an image with) ", "", text).removesuffix(".") == listed


def test_mention_leaves_kinds_out_but_never_all():
    rng, kinds = _rng(0), [4, 17, 18]
    named = [mention(kinds, rng) for _ in range(400)]
    assert all(names and set(names) <= set(kinds) and len(set(names)) == len(names) for names in named)
    # Three kinds with probability 1/2 each, and one in the 1/8 of captions that would be empty.
    assert np.mean([len(names) for names in named]) == pytest.approx(1.625, abs=0.12)
    assert {tuple(names) for names in named if len(names) == 2} == {(a, b) for a in kinds for b in kinds if a != b}


def test_the_plain_prompt_is_among_the_captions():
    for kind, name in enumerate(KINDS):
        assert f"a photo of a {name}." in {caption([kind], _rng(kind, draw)) for draw in range(60)}
    for refused in (caption, mention):
        with pytest.raises(ValueError, match="20"):
            refused([20], _rng(0))
