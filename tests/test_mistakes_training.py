"""METHOD 15, rows 8, 9 and 12: the teacher, the text path, and what stage 2 trains.

Every check runs on the code and on mistakes planted here, which it must refuse: it is seen to fail in each run.
"""

import copy
from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hpdval_edge.config import load_config
from hpdval_edge.training import prompts, stages, student
from hpdval_edge.training.prompts import PromptLearner, TextTower
from hpdval_edge.training.run_folder import find_run
from hpdval_edge.training.session import prepare
from hpdval_edge.training.stages import StageTrainer, plan_stages
from hpdval_edge.training.train import TrainOptions, train

WHOLE_BATCH = {"data.aug": "none", "train.amp": "off", "train.batch_size": "48", "train.sched": "constant"}


@pytest.fixture
def fresh(tiny_values, tmp_path, monkeypatch):
    """Prepare a session of the tiny project, every time anew; one batch is its whole training set, as it is."""
    monkeypatch.chdir(tmp_path)
    return lambda: prepare(load_config(values={**tiny_values, **WHOLE_BATCH}))


def trainer_of(session, number, **changes):
    stage = next(stage for stage in plan_stages(session.config) if stage.number == number)
    if stage.trains_prompts:
        session.model.attach_prompts(session.prompt_learner(), session.teacher.text, learns=(True, True))
    return StageTrainer(
        replace(stage, **changes),
        session.model,
        session.training_data(),
        session.loss(),
        config=session.config,
        device=session.device,
    )


def one_step(trainer):
    """Train one epoch of one step and return its losses."""
    trainer.train_epoch(stop=lambda: False, on_progress=lambda done, total: None)
    return trainer.finish_epoch()


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before, module):
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def refuses(check, *arguments):
    with pytest.raises((AssertionError, RuntimeError)):
        check(*arguments)


def check_apart(session):
    """Student and teacher share no memory."""
    own, teachers = (
        {value.untyped_storage().data_ptr() for value in module.state_dict().values()}
        for module in (session.model.student, session.teacher.clip)
    )
    assert own.isdisjoint(teachers)


def check_frozen(session):
    """A step of stage 1 changes the student and no number of the teacher."""
    before, own = snapshot(session.teacher.clip), snapshot(session.model.student)
    one_step(trainer_of(session, 1))
    assert changed(own, session.model.student)
    assert not changed(before, session.teacher.clip)
    assert not any(parameter.requires_grad for parameter in session.teacher.clip.parameters())


def check_distillation(session):
    """A student that starts at the teacher has L_kd = 0 before the first step, and more after it."""
    trainer = trainer_of(session, 1)
    assert one_step(trainer)["kd"] < 1e-5
    assert one_step(trainer)["kd"] > 1e-3


@pytest.mark.parametrize("check", [check_apart, check_frozen, check_distillation])
def test_mistake_08_a_teacher_that_is_the_student_or_sees_otherwise(fresh, check):
    check(fresh())


@pytest.mark.parametrize("check", [check_apart, check_frozen])
def test_mistake_08_shared_tensors_are_caught(fresh, monkeypatch, check):
    """Planted mistake: the student takes the teacher's tensors for copies of them, as in the authors' release."""
    session = fresh()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", lambda tensor: tensor)
        live = student.clip_state(session.teacher.clip.visual)
    session.model.student.encoder.load_state_dict(live, assign=True)
    refuses(check, session)


def half_mean(session, monkeypatch):
    session.model.student.mean.fill_(0.5)
    session.model.student.std.fill_(0.5)


def no_normalisation(session, monkeypatch):
    session.model.student.mean.zero_()
    session.model.student.std.fill_(1)


def teacher_is_student(session, monkeypatch):
    monkeypatch.setattr(stages, "distance", lambda own, teacher, reduction: (own - own).abs().mean())


def unit_rows(session, monkeypatch):
    distance = stages.distance
    monkeypatch.setattr(stages, "distance", lambda own, teacher, kind: distance(own / own.norm(), teacher, kind))


@pytest.mark.parametrize(
    "plant", [half_mean, no_normalisation, teacher_is_student, unit_rows], ids=lambda plant: plant.__name__
)
def test_mistake_08_distillation_is_caught(fresh, monkeypatch, plant):
    """Planted mistakes: ImageNet's or no mean and std for CLIP, L_kd against oneself, the student alone normalised."""
    session = fresh()
    plant(session, monkeypatch)
    refuses(check_distillation, session)


LABELS = ("cat", "traffic_light", "dining table", "zebra crossing sign")


@pytest.fixture(scope="module")
def clip():
    """A small CLIP with QuickGELU and random weights, scaled so that every part of it matters."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
        quick_gelu=True,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 4
    return model.eval()


def check_text_path(clip, plant=None):
    """Contexts set to "a photo of a" give open_clip's encode_text of the sentences to 1e-5."""
    tokenizer = open_clip.SimpleTokenizer()
    with torch.no_grad():
        expected = clip.encode_text(tokenizer([f"a photo of a {label.replace('_', ' ')}." for label in LABELS]))
        tower = TextTower(copy.deepcopy(clip), tokenizer)
        texts = prompts.class_texts(LABELS, "peer")
        learner = PromptLearner(tower, texts, length=4, init="words", period=True, seed=0)
        if plant:
            plant(tower, learner)
        for context in (learner.global_context, learner.local_context):
            torch.testing.assert_close(learner(tower, context), expected, atol=1e-5, rtol=0)


def test_mistake_09_a_text_path_of_its_own(clip):
    check_text_path(clip)


def no_mask(tower, learner):
    tower.attn_mask.zero_()


class SequenceFirst(torch.nn.Module):
    """Hands the transformer [L, C, W], as OpenAI's CLIP wants it and open_clip does not."""

    def __init__(self, transformer):
        super().__init__()
        self.transformer = transformer

    def forward(self, x, attn_mask):
        length = max(x.shape[:2])
        mask = torch.full((length, length), float("-inf")).triu(1)[: x.shape[0], : x.shape[0]]
        return self.transformer(x.permute(1, 0, 2), attn_mask=mask).permute(1, 0, 2)


def sequence_first(tower, learner):
    tower.transformer = SequenceFirst(tower.transformer)


def gelu(tower, learner):
    for block in tower.transformer.resblocks:
        block.mlp.gelu = torch.nn.GELU()


def end_of_the_bare_label(tower, learner):
    learner.end -= learner.length


def end_at_the_last_place(tower, learner):
    learner.end.fill_(learner.end.max())


def context_behind_the_first_word(tower, learner):
    learner.start = torch.cat([learner.start, learner.rest[:, :1]], dim=1)
    learner.rest = learner.rest[:, 1:]


def context_for_the_start(tower, learner):
    learner.start, learner.rest = learner.rest[:, :0], torch.cat([learner.start, learner.rest], dim=1)


def no_positions(tower, learner):
    tower.positional_embedding = torch.nn.Parameter(torch.zeros_like(tower.positional_embedding))


def no_final_norm(tower, learner):
    tower.ln_final = torch.nn.Identity()


PLANTED_TEXT = [
    no_mask,
    sequence_first,
    gelu,
    end_of_the_bare_label,
    end_at_the_last_place,
    context_behind_the_first_word,
    context_for_the_start,
    no_positions,
    no_final_norm,
]


@pytest.mark.parametrize("plant", PLANTED_TEXT, ids=lambda plant: plant.__name__)
def test_mistake_09_is_caught(clip, plant):
    """Planted mistakes, named by their functions above; without the mask the embeddings move by more than 1e-3."""
    refuses(check_text_path, clip, plant)


def test_mistake_09_a_kept_underscore_is_caught(clip, monkeypatch):
    """Planted mistake: "traffic_light" as the tokenizer's words."""
    monkeypatch.setattr(prompts, "class_texts", lambda labels, style: list(labels))
    refuses(check_text_path, clip)


def check_stage_2(trainer, session):
    """One step changes both contexts and nothing else; 2 M W numbers are trained, with finite gradients not zero."""
    model = session.model
    trained = [value for group in trainer.optimizer.param_groups for value in group["params"]]
    assert sum(value.numel() for value in trained) == 2 * model.prompts.global_context.numel()
    before = snapshot(model)
    one_step(trainer)
    assert changed(before, model) == {"prompts.global_context", "prompts.local_context"}
    assert not any(module.training for module in model.student.modules())
    for context in (model.prompts.global_context, model.prompts.local_context):
        assert torch.isfinite(context.grad).all() and context.grad.abs().max() > 0


def test_mistake_12_stage_2_trains_the_contexts_only(fresh):
    session = fresh()
    check_stage_2(trainer_of(session, 2), session)


def no_grad_text(session, monkeypatch):
    monkeypatch.setattr(TextTower, "encode", torch.no_grad()(TextTower.encode))
    return trainer_of(session, 2)


def local_detached(session, monkeypatch):
    forward = PromptLearner.forward

    def cut(self, tower, context):
        return forward(self, tower, context.detach() if context is self.local_context else context)

    monkeypatch.setattr(PromptLearner, "forward", cut)
    return trainer_of(session, 2)


def student_in_train_mode(session, monkeypatch):
    monkeypatch.setattr(type(session.model.student), "eval", lambda self: self)
    return trainer_of(session, 2)


def student_trained(session, monkeypatch):
    return trainer_of(session, 2, trains_student=True)


def scale_trained(session, monkeypatch):
    trainer = trainer_of(session, 2)
    trainer.optimizer.add_param_group({"params": [session.model.log_scale], "base_lr": 1e-3})
    return trainer


@pytest.mark.parametrize(
    "plant",
    [no_grad_text, local_detached, student_in_train_mode, student_trained, scale_trained],
    ids=lambda plant: plant.__name__,
)
def test_mistake_12_is_caught(fresh, monkeypatch, plant):
    """Planted mistakes: no_grad around the text tower, one view detached, a student in train mode or trained along,
    a scale beside the 2 M W numbers."""
    session = fresh()
    refuses(check_stage_2, plant(session, monkeypatch), session)


def check_start(session):
    """With prompt.init=words the scores before the first step of stage 2 are those of stage 1."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = session.model.eval()(images).scores
        trainer_of(session, 2)
        torch.testing.assert_close(session.model.eval()(images).scores, before, atol=1e-5, rtol=0)


def test_mistake_12_stage_2_starts_at_stage_1(fresh):
    check_start(fresh())


@pytest.mark.parametrize(
    "change", [{"init": "gaussian"}, {"period": False}, {"texts": ["red", "blue", "green", "bright square"]}], ids=str
)
def test_mistake_12_another_start_is_caught(fresh, monkeypatch, change):
    """Planted mistakes: contexts of noise for the words asked for, no full stop, labels exchanged."""
    build = PromptLearner.__init__

    def planted(self, tower, texts, **options):
        build(self, tower, **{"texts": texts, **options, **change})

    monkeypatch.setattr(PromptLearner, "__init__", planted)
    refuses(check_start, fresh())


def check_checkpoint():
    """Stage 2 follows its stage-1 checkpoint: other weights there, other scores here."""
    path = find_run("a").weights("stage1")
    first = train(None, TrainOptions(name="a", stage="2"), {}).read_json("metrics.json")["stage2"]
    tensors = load_file(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    turned = {name: -value if name.startswith("student.embed") else value for name, value in tensors.items()}
    save_file(turned, path, metadata=metadata)
    second = train(None, TrainOptions(name="a", stage="2"), {}).read_json("metrics.json")["stage2"]
    save_file(tensors, path, metadata=metadata)
    assert first["per_class"] != second["per_class"]


def test_mistake_12_stage_1_not_loaded(tiny_values, tmp_path, monkeypatch):
    """Planted mistake: stage 2 starts from the teacher's weights again."""
    monkeypatch.chdir(tmp_path)
    values = {**tiny_values, "train.stage1.epochs": "1", "train.stage2.epochs": "1", "eval.bootstrap": "0"}
    train(load_config(values=values), TrainOptions(name="a", stage="1"), {})
    check_checkpoint()
    monkeypatch.setattr("hpdval_edge.training.train._load_stage1", lambda session, run: None)
    refuses(check_checkpoint)
