"""Frozen encoders: their tokens are kept, equal those of every step, and nothing but the rest learns."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpdval_edge.config import load_config
from hpdval_edge.training import token_source
from hpdval_edge.training.evaluate import model_scorer, score_store
from hpdval_edge.training.session import prepare
from hpdval_edge.training.stages import StageTrainer, plan_stages
from hpdval_edge.training.token_source import TokenOptions, TokenSource
from hpdval_edge.training.train import Interrupted, TrainOptions, train


@pytest.fixture(scope="module")
def session(tiny_values, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tokens"))
        return prepare(load_config(values={**tiny_values, "student.tune": "embed"}))


def source(session, *, learns="embed", aug="light", cache=None):
    options = TokenOptions(learns=learns, aug=aug, seed=3, device=torch.device("cpu"), amp="off", cache=cache)
    return TokenSource(session.model.student.eval(), session.stores["train"], options)


@pytest.mark.parametrize("aug", ["none", "light"])
@pytest.mark.parametrize("learns", ["embed", "nothing"])
def test_kept_tokens_equal_those_of_every_step(session, learns, aug):
    """Planted mistake: the mirror image of every picture taken for the picture."""
    kept, fresh = (source(session, learns=learns, aug=aug) for _ in range(2))
    assert kept.keeps
    fresh.keeps = False
    rows = np.array([5, 2, 40, 17, 5])
    for epoch in range(3):
        ours, truth = kept(rows, epoch=epoch), fresh(rows, epoch=epoch)
        assert torch.allclose(ours.cls, truth.cls, atol=1e-5)
        assert torch.allclose(ours.patches, truth.patches, atol=1e-5)
    mirrored = [epoch for epoch in range(20) if not torch.equal(kept(rows, epoch=epoch).cls, kept(rows, epoch=0).cls)]
    assert bool(mirrored) == (aug == "light")


def test_what_is_too_large_changes_or_learns_is_not_kept(session, monkeypatch):
    """Planted mistake: a cache for "strong", which shows a picture differently in every epoch."""
    assert not source(session, aug="strong").keeps
    assert not source(session, learns="all").keeps
    monkeypatch.setattr(token_source, "MAX_BYTES", 1000)
    assert not source(session).keeps


def test_other_runs_read_an_encoders_tokens_and_not_another_encoders(session, tmp_path, monkeypatch):
    """Planted mistake: a key without the encoder's weights."""
    rows = np.array([5, 2, 40])
    computed = source(session, cache=tmp_path)(rows, epoch=0)
    (kept,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(TokenSource, "_compute_all", None)
        assert torch.equal(source(session, cache=tmp_path)(rows, epoch=0).patches, computed.patches)
    kept.write_bytes(kept.read_bytes()[:100])
    assert torch.equal(source(session, cache=tmp_path)(rows, epoch=0).patches, computed.patches)
    weight = next(session.model.student.encoder.parameters())
    with torch.no_grad():
        weight.add_(0.1)
        other = source(session, cache=tmp_path)(rows, epoch=0)
        weight.sub_(0.1)
    assert not torch.equal(other.patches, computed.patches)
    assert len(list(tmp_path.iterdir())) == 2


def test_validation_scores_are_those_of_the_model(session):
    """Planted mistake: validation pictures mirrored."""
    for stage in plan_stages(session.config):
        if stage.trains_prompts:
            session.model.attach_prompts(session.prompt_learner(), session.teacher.text, learns=(True, True))
        trainer = StageTrainer(
            stage,
            session.model.eval(),
            session.training_data(),
            session.loss(),
            config=session.config,
            device=session.device,
        )
        expected = score_store(model_scorer(session.model, session.device), session.stores["val"])
        assert np.allclose(trainer.scores("val"), expected, atol=1e-5)


def test_the_encoder_stays_and_the_embedding_layer_learns(session):
    """Planted mistake: the encoder left trainable."""
    student = session.model.student
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trainer = StageTrainer(
        plan_stages(session.config)[0],
        session.model,
        session.training_data(),
        session.loss(),
        config=session.config,
        device=session.device,
    )
    assert all("encoder" not in name for name in trainer.trained)
    trainer.train_epoch(stop=lambda: False, on_progress=lambda done, total: None)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("embed_") for name in changed)


def test_resumed_is_uninterrupted_with_a_frozen_encoder(tiny_values, tmp_path, monkeypatch):
    """Planted mistake: mirrors drawn from the global random state."""
    monkeypatch.chdir(tmp_path)
    values = {**tiny_values, "student.tune": "embed", "train.stage1.epochs": "4"}
    whole = train(load_config(values=values), TrainOptions(name="whole", stage="1"), {})
    with pytest.raises(Interrupted, match="state saved"):
        train(load_config(values=values), TrainOptions(name="parts", stage="1", stop_after=3), {})
    parts = train(None, TrainOptions(name="parts", stage="1", resume=True), {})
    ours, theirs = (load_file(run.weights("last")) for run in (whole, parts))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
