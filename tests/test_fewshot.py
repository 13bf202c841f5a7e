"""Few-shot: VOC's splits on synthetic annotations, episodes isolated from each other; COCO's: test_fewshot_coco.py."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from hpdval_edge.config import load_config
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.protocols import fewshot, fewshot_episode, fewshot_voc
from hpdval_edge.training.protocols.fewshot import run_fewshot
from hpdval_edge.training.protocols.fewshot_splits import shipped_episode, showing_any, showing_only
from hpdval_edge.training.session import prepare
from hpdval_edge.training.stages import StageTrainer, plan_stages
from hpdval_edge.training.train import Interrupted

# Per class, with the other objects of the picture; a star marks a difficult object.
PER_CLASS = {"trainval": 6, "test": 2}
SPECIAL = (["cat", "person"], ["dog", "person*"], ["sofa*", "person"], ["car*"], ["sheep", "cat"])


def annotation(objects):
    marks = ("", "<difficult>1</difficult>")
    found = "".join(f"<object><name>{n.rstrip('*')}</name>{marks[n.endswith('*')]}</object>" for n in objects)
    return f"<annotation><filename>x.jpg</filename>{found}</annotation>"


@pytest.fixture(scope="module")
def pascal(tmp_path_factory):
    """A VOC2007 of 245 noisy pictures of 16 px: every class alone a few times, and SPECIAL in each part."""
    root = tmp_path_factory.mktemp("few")
    home = root / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (home / folder).mkdir(parents=True)
    rng, number = np.random.default_rng(0), 0
    base, novel = fewshot_voc.base_and_novel()
    for part, count in PER_CLASS.items():
        names = []
        for objects in [*([name] for name in (*base, *novel) for _ in range(count)), *SPECIAL]:
            number += 1
            names.append(f"{number:06}")
            (home / "Annotations" / f"{number:06}.xml").write_text(annotation(objects))
            pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(home / "JPEGImages" / f"{number:06}.jpg")
        (home / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def values(tiny_values):
    """Configuration overrides of runs of a second; EMA, prompts and both stages are on."""
    kept = {key: value for key, value in tiny_values.items() if not key.startswith("data.")}
    return {**kept, "train.stage2.lr": "1e-2", "train.stage1.epochs": "1", "eval.bootstrap": "0"}


def counts(images):
    return dict(zip(images.labels, images.class_counts.tolist(), strict=True))


@pytest.mark.parametrize(("shots", "sizes"), [(1, {4, 5}), (5, {24, 25})])
def test_shipped_voc_episodes(shots, sizes):
    novel = fewshot_voc.NOVEL
    for episode in range(1, 11):
        lines = shipped_episode("voc_fewshot.txt", shots, episode)
        found = [name for _, names in lines for name in names.split()]
        assert {name: found.count(name) for name in novel} == dict.fromkeys(novel, shots)
        assert len(lines) in sizes


def test_voc_drops_mixed_pictures(pascal):
    """Difficult objects do not count. Planted mistakes: they count; mixed pictures stay."""
    splits = fewshot_voc.voc_protocol(pascal, "drop", "drawn")
    # Alone, and of SPECIAL: dog (the person is difficult) and sheep with cat.
    assert counts(splits.novel_test) == {"cat": 3, "dog": 3, "pottedplant": 2, "sheep": 3, "sofa": 2, "tvmonitor": 2}
    assert len(splits.novel_test) == 6 * 2 + 2
    # The sofa beside the person is difficult, so that picture is a base one.
    assert counts(splits.base_test)["person"] == 3
    assert counts(splits.base_test)["car"] == 2
    assert len(splits.base_train) == 14 * 6 + 1


def test_voc_keeps_mixed_pictures(pascal):
    """Difficult objects count. Planted mistake: base labels keep a column in the novel part."""
    splits = fewshot_voc.voc_protocol(pascal, "keep", "drawn")
    assert counts(splits.novel_test) == {"cat": 4, "dog": 3, "pottedplant": 2, "sheep": 3, "sofa": 3, "tvmonitor": 2}
    assert counts(splits.base_test)["person"] == 5
    assert counts(splits.base_test)["car"] == 3
    assert splits.novel_test.labels == fewshot_voc.NOVEL


@pytest.mark.parametrize("mixed", ["drop", "keep"])
@pytest.mark.parametrize("shots", [1, 5])
def test_drawn_episodes_have_exactly_k_of_each(pascal, mixed, shots):
    """Planted mistakes: more than K are taken; the episode's number left out of the seed."""
    splits = fewshot_voc.voc_protocol(pascal / "VOCdevkit", mixed, "drawn")
    supports = [splits.support(shots, episode) for episode in range(1, 11)]
    assert all(set(support.class_counts.tolist()) == {shots} for support in supports)
    assert len({support.paths for support in supports}) > 5
    again = fewshot_voc.voc_protocol(pascal, mixed, "drawn").support(shots, 4)
    assert again.paths == supports[3].paths


def test_published_episodes_are_looked_up_by_their_ids(tmp_path):
    novel = fewshot_voc.NOVEL
    lines = shipped_episode("voc_fewshot.txt", 1, 1)
    targets = np.array([[name in names.split() for name in novel] for _, names in lines], np.uint8)
    paths = tuple(f"VOC2007/JPEGImages/{picture}.jpg" for picture, _ in lines)
    pool = LabelledImages(tmp_path, (*paths, "other.jpg"), np.vstack([targets, targets[:1]]), novel)
    assert fewshot_voc.published_support(pool, 1, 1).paths == paths
    with pytest.raises(BadData, match="is not annotated as"):
        fewshot_voc.published_support(pool.subset([0, 1]), 1, 1)


def test_a_pool_that_is_too_small_is_named(pascal):
    with pytest.raises(BadData, match=r"no support set with exactly 5 positives .* cat \(1\), dog \(0\)"):
        pool = LabelledImages(pascal, ("a.jpg",), np.eye(1, 6, dtype=np.uint8), fewshot_voc.NOVEL)
        fewshot_voc.draw_support(pool, 5, 1)


def test_showing_any_and_only(tmp_path):
    data = LabelledImages(
        tmp_path, ("a", "b", "c", "d"), np.array([[1, 0], [1, 1], [0, 1], [0, 0]], np.uint8), ("x", "y")
    )
    assert showing_any(data, ("y",)).paths == ("b", "c")
    assert showing_only(data, ("y",)).paths == ("c",)
    assert showing_only(data, ("y", "x")).paths == ("a", "b", "c")
    assert showing_only(data, ("y", "x")).targets.tolist() == [[0, 1], [1, 1], [1, 0]]


def read_episode(out, number):
    (file,) = out.glob(f"voc-*/episode-{number:02}.json")
    return json.loads(file.read_text())


def test_episode_2_alone_is_episode_2_after_1(pascal, values, tmp_path, monkeypatch):
    """Bit for bit. Planted mistakes: the student, or the prompts, carried from episode to episode."""
    monkeypatch.chdir(tmp_path)
    both = run_fewshot("voc", pascal, shots=1, values=values, episodes=(1, 2), out=tmp_path / "both")
    alone = run_fewshot("voc", pascal, shots=1, values=values, episodes=(2,), out=tmp_path / "alone")
    assert read_episode(tmp_path / "both", 2) == read_episode(tmp_path / "alone", 2)
    hashes = [read_episode(tmp_path / "both", number)["scores_sha256"] for number in (1, 2)]
    assert hashes[0] != hashes[1]
    assert both["base"] == alone["base"]
    assert both["mAP"] == pytest.approx(np.mean([episode["mAP"] for episode in both["episodes"]]))
    assert both["std"] == pytest.approx(np.std([episode["mAP"] for episode in both["episodes"]]))
    assert alone["episodes"] == both["episodes"][1:]
    assert alone["std"] == 0


def test_finished_episodes_are_not_run_again(pascal, values, tmp_path, monkeypatch):
    """Planted mistake: results are keyed without ``tune``."""
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(
        fewshot,
        "run_episode",
        lambda config, base, tune: calls.append(tune) or {"mAP": 10.0 * len(calls), "pictures": 5, "per_class": {}},
    )
    arguments = {"shots": 1, "values": values, "out": tmp_path / "out"}
    assert run_fewshot("voc", pascal, episodes=(1,), **arguments)["mAP"] == 10
    result = run_fewshot("voc", pascal, episodes=(1, 2), **arguments)
    assert (result["mAP"], result["std"], calls) == (15, 5, ["both", "both"])
    run_fewshot("voc", pascal, episodes=(1,), tune="student", **arguments)
    assert calls[-1] == "student"
    (file,) = (tmp_path / "out").glob("voc-1shot-student-*/episode-01.json")
    file.write_text("{")
    with pytest.raises(BadData, match=r"is damaged .* delete it"):
        run_fewshot("voc", pascal, episodes=(1,), tune="student", **arguments)


def test_episodes_start_from_the_base_run(pascal, values, tmp_path, monkeypatch):
    """Planted mistakes: the base weights not loaded; ``tune`` ignored."""
    monkeypatch.chdir(tmp_path)
    stages, original = [], fewshot_episode._fine_tune

    def spy(session, stage):
        stages.append(stage.name)
        before = {name: value.clone() for name, value in session.model.student.state_dict().items()}
        original(session, stage)
        after = session.model.student.state_dict()
        moved = any((before[name] != after[name]).any() for name in before)
        assert moved == stage.trains_student

    monkeypatch.setattr(fewshot_episode, "_fine_tune", spy)
    hashes = []
    for tune, trained in {"student": ["stage1"], "prompts": ["stage2"], "both": ["stage1", "stage2"]}.items():
        stages.clear()
        run_fewshot("voc", pascal, shots=1, values=values, tune=tune, episodes=(3,), out=tmp_path / tune)
        assert stages == trained
        hashes.append(read_episode(tmp_path / tune, 3)["scores_sha256"])
    # An episode of prompts alone sees this difference in its base weights only.
    other = {**values, "train.stage1.epochs": "2"}
    run_fewshot("voc", pascal, shots=1, values=other, tune="prompts", episodes=(3,), out=tmp_path / "other")
    hashes.append(read_episode(tmp_path / "other", 3)["scores_sha256"])
    assert len(set(hashes)) == 4
    assert len(list((tmp_path / "runs").glob("fewshot-voc-*"))) == 2


def test_summed_weights_make_the_steps_of_the_summed_loss(tiny_values, tmp_path, monkeypatch):
    """Planted mistake: the other terms multiplied by B * C instead of divided."""
    monkeypatch.chdir(tmp_path)
    values = {**tiny_values, "loss.name": "asl", "train.ema": "0"}

    class Sum(torch.nn.Module):
        def __init__(self, loss):
            super().__init__()
            self.loss = loss

        def forward(self, logits, targets):
            return self.loss(logits, targets, reduction="none").sum()

    def trained(config, wrap):
        session = prepare(config)
        trainer = StageTrainer(
            plan_stages(session.config)[0],
            session.model,
            session.training_data(),
            wrap(session.loss()),
            config=session.config,
            device=session.device,
        )
        start = {name: value.detach().clone() for name, value in session.model.named_parameters()}
        trainer.train_epoch(stop=lambda: False, on_progress=lambda done, total: None)
        return {name: value.detach() - start[name] for name, value in session.model.named_parameters()}

    config = load_config(values={**values, "kd.weight": "1"})
    literal = trained(config, Sum)
    ours = trained(fewshot_episode.summed(config, pictures=48, labels=4), lambda loss: loss)
    plain = trained(config, lambda loss: loss)
    scale = torch.cat([value.flatten().abs() for value in literal.values()]).mean()
    errors = [
        torch.cat([(other[name] - literal[name]).flatten().abs() for name in literal]).mean() / scale
        for other in (ours, plain)
    ]
    assert errors[0] < 0.1 * errors[1], errors


def test_only_asl_is_summed(tiny_values):
    """Planted mistake: kd.patches left as it was, 20 times the other terms."""
    config = load_config(values={**tiny_values, "loss.name": "db"})
    assert fewshot_episode.summed(config, pictures=4, labels=6) == config
    config = load_config(values={**tiny_values, "loss.name": "asl", "kd.weight": "1", "kd.patches": "2"})
    asl = fewshot_episode.summed(config, pictures=4, labels=5)
    assert (float(asl.kd.weight), asl.kd.patches, asl.sc.weight) == pytest.approx((1 / 20, 2 / 20, 1 / 20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "nus"}, "dataset is 'nus', expected one of coco, voc"),
        ({"shots": 3}, "shots is 3, expected one of 1, 5"),
        ({"tune": "all"}, "tune is 'all', expected one of student, prompts, both"),
        ({"episodes": (0, 1)}, r"episodes are \[0, 1\], expected numbers from 1 to 10"),
        ({"episodes": ()}, r"episodes are \[\]"),
        ({"mixed": "both"}, "mixed is 'both', expected one of drop, keep"),
        ({"support": "mine"}, "support is 'mine', expected one of drawn, published"),
        ({"values": {"data.path": "x"}}, r"data\.path cannot be set in a few-shot run"),
        ({"values": {"train.mode": "joint"}}, "few-shot needs train.mode=two_stage"),
        ({"values": {"prompt.global": "fixed", "prompt.local": "fixed"}}, "use tune='student'"),
        ({"values": {"los.name": "db"}}, "unknown configuration key"),
        ({"root": "VOCdevkit/VOC2007/JPEGImages"}, "holds no VOC2007 with Annotations and ImageSets/Main"),
    ],
)
def test_mistakes_are_named_before_training(pascal, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    arguments = {"dataset": "voc", "shots": 1, "values": {}, "out": tmp_path / "out", **changes}
    root = pascal / arguments.pop("root", "")
    with pytest.raises(UsageError, match=message):
        run_fewshot(arguments.pop("dataset"), root, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt.length": "80", "prompt.init": "gaussian"}, r"prompt\.length is 80, .* hold at most 7[0-4]\."),
        ({"prompt.length": "8", "prompt.init": "words"}, r"prompt\.init=words starts from .* prompt\.length is 8"),
    ],
)
def test_prompts_that_no_episode_can_have_are_refused_before_training(
    pascal, values, tmp_path, monkeypatch, run_hpedge, changes, message
):
    """Planted mistakes: left to the first episode, after the base run; a length as BadData, exit code 3."""
    monkeypatch.chdir(tmp_path)
    sets = [part for key, value in {**values, **changes}.items() for part in ("--set", f"{key}={value}")]
    code, out, err = run_hpedge("reproduce", "table2", "--data", f"voc2007={pascal}", *sets)
    assert (code, out) == (2, ""), err
    (line,) = err.splitlines()
    assert re.search(message, line)
    assert not list(tmp_path.rglob("*.toml"))
    assert not (tmp_path / "reproduce").exists()


def test_a_length_does_not_matter_where_no_prompt_is_learnt(pascal, values, tmp_path, monkeypatch):
    """Planted mistake: the length checked whatever an episode trains."""
    monkeypatch.chdir(tmp_path)
    arguments = {"shots": 1, "values": {**values, "prompt.length": "80"}, "episodes": (1,), "out": tmp_path / "out"}
    assert run_fewshot("voc", pascal, tune="student", **arguments)["episodes"]


def test_an_interrupted_base_run_goes_on(pascal, values, tmp_path, monkeypatch):
    """Planted mistake: the second call starts the base run again, under a name that is taken."""
    original, steps = StageTrainer._train_step, []

    def step(self, *arguments):
        original(self, *arguments)
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    arguments = {"shots": 1, "values": values, "episodes": (2,), "out": tmp_path / "out"}
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    whole = run_fewshot("voc", pascal, **arguments)
    (tmp_path / "parts").mkdir()
    monkeypatch.chdir(tmp_path / "parts")
    arguments["out"] = tmp_path / "again"
    monkeypatch.setattr(StageTrainer, "_train_step", step)
    with pytest.raises(Interrupted):
        run_fewshot("voc", pascal, **arguments)
    monkeypatch.setattr(StageTrainer, "_train_step", original)
    assert run_fewshot("voc", pascal, **arguments) == whole
    assert read_episode(tmp_path / "out", 2) == read_episode(tmp_path / "again", 2)


def test_an_empty_part_is_named(tmp_path):
    """Planted mistake: the parts not looked at, so that an empty list is what fails."""
    home = tmp_path / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main"):
        (home / folder).mkdir(parents=True)
    for part, name in (("trainval", "person"), ("test", "person")):
        (home / "Annotations" / f"{part}.xml").write_text(annotation([name]))
        (home / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{part}\n")
    with pytest.raises(BadData, match="no picture belongs to the novel test part"):
        run_fewshot("voc", tmp_path, shots=1, values={}, out=tmp_path / "out")


def test_a_missing_picture_is_named_before_training(pascal, values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = shutil.copytree(pascal, tmp_path / "copy")
    # An aeroplane of trainval, a base picture.
    (root / "VOCdevkit/VOC2007/JPEGImages/000001.jpg").unlink()
    with pytest.raises(BadData, match=r"000001\.jpg: there is no such file"):
        run_fewshot("voc", root, shots=1, values=values, episodes=(1,), out=tmp_path / "out")
    assert not list((tmp_path / "runs").glob("fewshot-*"))
