"""Schedule, sampler, averaging, distances, and what each stage may change (METHOD sections 7, 9, 15 row 12)."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpdval_edge.config import load_config, override
from hpdval_edge.errors import CheckFailed, UsageError
from hpdval_edge.training.averages import Ema
from hpdval_edge.training.sampling import epoch_order
from hpdval_edge.training.schedule import learning_rate_factor
from hpdval_edge.training.session import _patch_teacher, prepare
from hpdval_edge.training.stages import StageTrainer, distance, plan_stages


@pytest.mark.parametrize("total", [37, 400])
def test_onecycle_equals_pytorch(total):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=total, pct_start=0.1, cycle_momentum=False
    )
    for step in range(total):
        assert learning_rate_factor(step, total, "onecycle") == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            schedule.step()
    assert learning_rate_factor(5, total, "constant") == 1.0


def test_shuffle_visits_each_picture_once_and_differs_by_epoch():
    targets = np.eye(20, dtype=np.uint8)
    first = epoch_order(targets, sampler="shuffle", seed=1, epoch=0)
    assert sorted(first) == list(range(20))
    assert np.array_equal(first, epoch_order(targets, sampler="shuffle", seed=1, epoch=0))
    assert not np.array_equal(first, epoch_order(targets, sampler="shuffle", seed=1, epoch=1))


def test_class_aware_draws_as_often_as_db_loss(shared_data):
    """3,875 draws for VOC-LT; a rare class is seen as often as a frequent one."""
    rows = [line.split() for line in (shared_data / "splits" / "voc_lt_train.txt").read_text().splitlines()]
    targets = np.zeros((len(rows), 20), np.uint8)
    for index, row in enumerate(rows):
        targets[index, [int(label) for label in row[1:]]] = 1
    order = epoch_order(targets, sampler="class_aware", seed=0, epoch=0)
    assert len(order) == 3875
    seen = targets[order].sum(axis=0)
    assert seen.min() >= 3 * (3875 // 60)


def test_ema_warms_up_and_swaps():
    model = torch.nn.Linear(2, 1)
    ema = Ema(model, 0.998)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    ema.update(model, 0)
    torch.testing.assert_close(ema.shadow["weight"], start + 0.9)
    with ema.applied(model):
        torch.testing.assert_close(model.weight.detach(), start + 0.9)
    torch.testing.assert_close(model.weight.detach(), start + 1)


def test_distance_is_a_mean_or_a_sum_over_the_row():
    """Of patches [B, N, E] too. Planted mistake: the sum over their second axis."""
    student, teacher = torch.zeros(2, 4), torch.full((2, 4), 3.0, requires_grad=True)
    assert distance(student, teacher, "mean") == 3
    assert distance(student, teacher, "sum") == 12
    assert distance(torch.zeros(2, 5, 4), torch.full((2, 5, 4), 3.0), "sum") == 12
    assert not distance(student.requires_grad_(), teacher, "mean").isnan()
    distance(student, teacher, "mean").backward()
    assert teacher.grad is None


def test_distance_of_half_precision_rows_is_float32():
    """Planted mistake: bfloat16 rows subtracted from each other in bfloat16, where 256 + 1 is 256."""
    student, teacher = torch.full((2, 4), 256.0), torch.full((2, 4), -1.0)
    for dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        gap = distance(student.to(dtype), teacher.to(dtype), "mean")
        assert (gap.item(), gap.dtype) == (257, wide)


@pytest.fixture
def session(tiny_values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return prepare(load_config(values={**tiny_values, "train.ema": "0"}))


def trainer_of(session, number, **options):
    stage = next(stage for stage in plan_stages(session.config) if stage.number == number)
    if stage.trains_prompts:
        session.model.attach_prompts(session.prompt_learner(), session.teacher.text, learns=(True, True))
    return StageTrainer(
        stage, session.model, session.training_data(), session.loss(), config=session.config, device=session.device
    )


def one_step(trainer):
    stops = iter([False, True])
    trainer.train_epoch(stop=lambda: next(stops), on_progress=lambda done, total: None)


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_stage_1_trains_the_student_and_leaves_the_teacher(session):
    """METHOD 15 row 8. Planted mistake: student and teacher share tensors."""
    teacher, student = snapshot(session.teacher.clip), snapshot(session.model.student)
    trainer = trainer_of(session, 1)
    one_step(trainer)
    assert not changed(teacher, snapshot(session.teacher.clip))
    assert len(changed(student, snapshot(session.model.student))) > 20
    assert trainer.cursor.sums["kd"] > 0


def test_stage_2_trains_the_contexts_only(session):
    """METHOD 15 row 12. Planted mistakes: a student left trainable, no_grad around the text tower."""
    student = snapshot(session.model.student)
    trainer = trainer_of(session, 2)
    assert sum(value.numel() for group in trainer.optimizer.param_groups for value in group["params"]) == 2 * 4 * 16
    before = snapshot(session.model.prompts)
    one_step(trainer)
    assert changed(before, snapshot(session.model.prompts)) == {"global_context", "local_context"}
    assert not changed(student, snapshot(session.model.student))
    assert not session.model.student.training
    for context in session.model.prompts.parameters():
        assert torch.isfinite(context.grad).all()
        assert context.grad.abs().max() > 0


def test_stage_2_from_words_starts_at_the_fixed_prompts(session):
    """METHOD 15 row 12: with init=words the scores at step 0 are those of stage 1."""
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        fixed = session.model.eval()(images).scores
        trainer_of(session, 2)
        torch.testing.assert_close(session.model.eval()(images).scores, fixed, atol=1e-5, rtol=1e-5)


def test_joint_mode_trains_both_with_half_the_extra_terms(tiny_values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = prepare(load_config(values={**tiny_values, "train.mode": "joint"}))
    (stage,) = plan_stages(session.config)
    assert (stage.kd_weight, stage.sc_weight) == (0.5, 0.5)
    student = snapshot(session.model.student)
    trainer = trainer_of(session, 1)
    contexts = snapshot(session.model.prompts)
    one_step(trainer)
    assert changed(student, snapshot(session.model.student))
    assert changed(contexts, snapshot(session.model.prompts))
    losses = trainer.cursor.sums
    assert losses["loss"] == pytest.approx(losses["cls"] + losses["kd"] + losses["sc"], rel=1e-6)


@pytest.mark.parametrize("space", ["embed", "hidden"])
def test_joint_halves_and_spaces_weigh_as_they_should(tiny_values, tmp_path, monkeypatch, space):
    """Planted mistakes: kd of the other space, kd not halved, mean and sum exchanged."""
    monkeypatch.chdir(tmp_path)
    whole = {"kd.space": space, "train.batch_size": "48", "data.aug": "none", "train.amp": "off", "sc.target": "global"}
    whole |= {
        "student.init": "random",
        "student.name": "clip-vit",
        "prompt.init": "gaussian",
        "train.mode": "joint",
        "kd.weight": "1",
    }
    for reduction in ("mean", "sum"):
        values = {**tiny_values, **whole, "kd.reduction": reduction, "sc.reduction": reduction}
        session = prepare(load_config(values=values))
        trainer = trainer_of(session, 1)
        pixels = torch.from_numpy(session.stores["train"][np.arange(48)])
        with torch.no_grad():
            hidden, _ = session.model.student.hidden(pixels.permute(0, 3, 1, 2).float() / 255)
            own = hidden if space == "hidden" else session.model.student.embed_cls(hidden)
            gaps = {"kd": own - torch.from_numpy(session.train_embeddings)}
            gaps["sc"] = session.model.banks()[0] - session.fixed
        trainer.train_epoch(stop=lambda: False, on_progress=lambda done, total: None)
        for name, gap in gaps.items():
            rows = gap.abs().sum(dim=1) if reduction == "sum" else gap.abs().mean(dim=1)
            assert trainer.cursor.sums[name] == pytest.approx(rows.mean().item() / 2, rel=1e-5)


def test_a_clip_student_starts_at_its_teacher_in_the_hidden_space_too(tiny_values, tmp_path, monkeypatch):
    """Planted mistake: the teacher's projected embedding, or its class token before the last norm."""
    monkeypatch.chdir(tmp_path)
    same = {"kd.space": "hidden", "train.batch_size": "48", "data.aug": "none", "train.amp": "off"}
    trainer = trainer_of(prepare(load_config(values={**tiny_values, **same})), 1)
    trainer.train_epoch(stop=lambda: False, on_progress=lambda done, total: None)
    assert trainer.cursor.sums["kd"] < 1e-5


def test_a_diverging_loss_is_named(session):
    trainer = trainer_of(session, 1)
    with torch.no_grad():
        session.model.student.encoder.pos_embed.fill_(float("nan"))
    with pytest.raises(CheckFailed, match=r"the loss became nan in stage1, epoch 1; lower train\.stage1\.lr"):
        one_step(trainer)


def test_averages_follow_batch_norm_statistics():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)).requires_grad_(True)
    ema = Ema(model, 0.5)
    assert {"1.running_mean", "1.running_var"} <= ema.shadow.keys()


def test_biases_and_norms_do_not_decay(session):
    """Planted mistake: weight decay on every parameter."""
    groups = trainer_of(session, 1).optimizer.param_groups
    decays = {(group["params"][0].ndim > 1, group["weight_decay"]) for group in groups}
    assert decays == {(True, session.config.train.stage1.weight_decay), (False, 0.0)}


def test_validation_looks_between_start_and_end(session):
    """Planted mistakes: the point on the line not undone afterwards; measured from the end instead of the start."""
    session = dataclasses.replace(session, config=override(session.config, {"train.wise": "on"}))
    trainer = trainer_of(session, 1)
    start = snapshot(session.model)
    one_step(trainer)
    end = snapshot(session.model)
    name = trainer.trained[0]
    assert trainer.shares == (1.0, 0.75, 0.5)
    for share in trainer.shares:
        with trainer.evaluating(share):
            assert not session.model.training
            here = session.model.state_dict()[name]
            assert torch.allclose(here, start[name] + share * (end[name] - start[name]), atol=1e-6)
        assert not changed(end, snapshot(session.model))
    assert trainer_of(session, 2).shares == (1.0,)


def test_patches_are_distilled_from_the_teachers_own(tiny_values, tmp_path, monkeypatch):
    """Planted mistakes: the teacher's patches of the picture where the student saw its mirror image; no weight."""
    monkeypatch.chdir(tmp_path)
    values = {**tiny_values, "train.ema": "0", "kd.patches": "2", "kd.weight": "0", "train.stage1.epochs": "1"}
    trainer = trainer_of(prepare(load_config(values=values)), 1)
    one_step(trainer)
    # A student that starts at the teacher's tower has the teacher's patches, mirrored or not.
    assert trainer.cursor.sums["kd_patches"] == pytest.approx(0, abs=1e-5)
    tokens = trainer.tokens["train"](np.arange(4), epoch=0)
    moved = dataclasses.replace(tokens, patches=tokens.patches + 0.5)
    assert trainer._losses(moved, np.arange(4))["kd_patches"].item() == pytest.approx(1, abs=0.05)
    assert trainer_of(prepare(load_config(values=values)), 2).teacher_tokens is None
    with pytest.raises(UsageError, match=r"the teacher has 4 x 4 and the student \d+ x \d+"):
        prepare(load_config(values={**values, "student.name": "test_vit", "student.init": "random"}))


def test_cutouts_of_two_sizes_are_refused(session):
    """Planted mistake: teacher and student shown a square cut out of different places."""
    session = dataclasses.replace(session, config=override(session.config, {"kd.patches": "1", "data.aug": "strong"}))
    pictures, device = session.stores["train"], session.device
    found = _patch_teacher(session.teacher, session.model.student, pictures, session.config, device)
    assert found[1] is pictures
    student = SimpleNamespace(grid=session.model.student.grid, spec=SimpleNamespace(image_size=64))
    with pytest.raises(UsageError, match="the teacher's have 32 px and the student's 64"):
        _patch_teacher(session.teacher, student, pictures, session.config, device)


def test_distillation_is_left_out_where_the_student_does_not_start_from_clip(
    tiny_values, tmp_path, monkeypatch, capsys
):
    """Planted mistakes: no word about it; weight 1 for every student."""
    monkeypatch.chdir(tmp_path)
    own = prepare(load_config(values=tiny_values))
    assert own.config.kd.weight == "1"
    assert "kd.weight" not in capsys.readouterr().err
    own_encoder = {"student.name": "test_vit", "student.init": "random"}
    other = prepare(load_config(values={**tiny_values, **own_encoder}))
    assert (other.config.kd.weight, other.train_embeddings) == ("0", None)
    assert "try --set kd.weight=1" in capsys.readouterr().err
    trainer = trainer_of(other, 1)
    one_step(trainer)
    assert "kd" not in trainer.cursor.sums
