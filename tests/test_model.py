"""The dual-view model: fusion, scales, the weights file (METHOD sections 5 and 15)."""

import numpy as np
import pytest
import torch

from hpdval_edge.config import StudentConfig, load_config
from hpdval_edge.errors import BadData
from hpdval_edge.training.evaluate import model_scorer, post_process
from hpdval_edge.training.model import DualView, load_model, save_weights
from hpdval_edge.training.student import make_student
from hpdval_edge.training.teacher import load_teacher


@pytest.fixture
def student(tiny):
    torch.manual_seed(0)
    teacher = load_teacher(f"{tiny / 'teacher.json'}:{tiny / 'teacher.safetensors'}", torch.device("cpu"))
    return make_student(StudentConfig(), teacher)[0].eval()


def model_of(student, **options):
    generator = torch.Generator().manual_seed(0)
    banks = (torch.randn(5, 24, generator=generator), torch.randn(5, 24, generator=generator))
    return DualView(student, *banks, **{"alpha": 0.4, "topk": 6, **options}).eval()


def test_alpha_weighs_the_global_view(student):
    """METHOD 15 row 1. Planted mistake: alpha on the local view, as in the authors' release."""
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        cls, patches = student(images)
        model = model_of(student, alpha=1.0)
        expected = torch.nn.functional.cosine_similarity(cls[:, None], model.text_global[None], dim=2)
        torch.testing.assert_close(model(images).scores, expected, atol=1e-6, rtol=1e-5)
        local = model_of(student, alpha=0.0)
        one = local.score(cls, patches, *local.banks())[0]
        assert torch.equal(one, local.score(torch.randn_like(cls), patches, *local.banks())[0])


def test_l2class_scores_have_unit_views(student):
    """The release's score: each view is a unit vector over the classes of an image."""
    model = model_of(student, kind="l2class", alpha=1.0)
    with torch.no_grad():
        norms = model(torch.rand(3, 3, 32, 32)).scores.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(3))


def test_learnt_scale_starts_at_twenty(student):
    learnt, fixed = model_of(student, logit_scale=None), model_of(student, logit_scale=7.0)
    assert learnt.log_scale.requires_grad
    assert float(learnt.logit_scale.detach()) == pytest.approx(20)
    assert not fixed.log_scale.requires_grad
    assert float(fixed.logit_scale) == pytest.approx(7)


def test_weights_file_restores_the_scores(student, tmp_path):
    """Planted mistake: the shared embedding layer saved once and loaded into one view only."""
    model, path = model_of(student), tmp_path / "w.safetensors"
    options = {
        "labels": list("abcde"),
        "class_counts": [5, 4, 3, 2, 1],
        "config": load_config(),
        "notes": {"epoch": "3"},
    }
    config = options["config"]
    object.__setattr__(config, "student", StudentConfig(embed="clip_proj"))
    save_weights(path, model, **options)
    restored, labels, metadata = load_model(path)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    cpu = torch.device("cpu")
    assert np.array_equal(model_scorer(restored, cpu)(pixels), model_scorer(model, cpu)(pixels))
    assert labels == tuple("abcde")
    assert (metadata["epoch"], metadata["class_counts"]) == ("3", "[5, 4, 3, 2, 1]")


def test_damaged_weights_are_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(BadData, match=r"w\.safetensors is not a readable weights file"):
        load_model(tmp_path / "w.safetensors")


def test_post_processing():
    """Planted mistake: a softmax of the bare cosines, which hardly differs from a straight line."""
    scores = np.array([[1.0, 2.0, 3.0]])
    assert post_process(scores, "none") is scores
    odds = np.exp(20 * scores)
    np.testing.assert_allclose(post_process(scores, "softmax", 20.0), odds / odds.sum())
    with pytest.raises(ValueError, match="needs the logit_scale"):
        post_process(scores, "softmax")
    np.testing.assert_allclose(post_process(scores, "l2class"), scores / np.sqrt(14))
