"""The text path against open_clip's own modules (METHOD sections 6 and 15, row 9)."""

import open_clip
import pytest
import torch

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.prompts import PromptLearner, TextTower, class_texts, fixed_prompts, initial_context
from hpdval_edge.training.teacher import load_teacher

TEXTS = ("cat", "traffic light", "dining table", "zebra crossing sign")


@pytest.fixture(scope="module")
def vit_b():
    """ViT-B-16-quickgelu with random weights, a text tower of two blocks to keep the test short."""
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    config["text_cfg"]["layers"], config["vision_cfg"]["layers"] = 2, 1
    return open_clip.CLIP(**config).eval(), open_clip.get_tokenizer("ViT-B-16-quickgelu")


@pytest.fixture(scope="module")
def demo():
    teacher = load_teacher("demo", torch.device("cpu"))
    return teacher.clip, teacher.text.tokenizer


@pytest.fixture(params=["vit_b", "demo"])
def clip(request):
    return request.getfixturevalue(request.param)


def sentences():
    return fixed_prompts(TEXTS, period=True)


def test_fixed_prompts_equal_encode_text(clip):
    """Planted mistake: take the end token's place from a sequence cut one token short."""
    model, tokenizer = clip
    with torch.no_grad():
        expected = model.encode_text(tokenizer(sentences()))
        found = TextTower(model, tokenizer).encode_prompts(sentences())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_context_of_words_reproduces_encode_text(clip):
    """Planted mistakes: context one place too far right; end token taken from the label's own ids."""
    model, tokenizer = clip
    tower = TextTower(model, tokenizer)
    learner = PromptLearner(tower, TEXTS, length=4, init="words", period=True, seed=0)
    with torch.no_grad():
        expected = model.encode_text(tokenizer(sentences()))
        found = learner(tower, learner.global_context)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_without_the_causal_mask_it_is_another_embedding(clip):
    """The comparison above can fail: bidirectional attention moves the embeddings by more than 1e-3."""
    model, tokenizer = clip
    tower = TextTower(model, tokenizer)
    ids = tower.tokenize(sentences())
    with torch.no_grad():
        tower.attn_mask = torch.zeros_like(tower.attn_mask)
        broken = tower.encode(tower.token_embedding(ids), ids.argmax(dim=1))
        expected = model.encode_text(tokenizer(sentences()))
    assert (broken - expected).abs().max() > 1e-3


@pytest.mark.parametrize("length", [2, 4, 16, 64])
def test_end_token_stays_in_place(demo, length):
    model, tokenizer = demo
    tower = TextTower(model, tokenizer)
    learner = PromptLearner(tower, TEXTS, length=length, init="gaussian", period=True, seed=0)
    expected = [1 + length + len(tokenizer.encode(text)) + 1 for text in TEXTS]
    assert learner.end.tolist() == expected
    assert torch.isfinite(learner(tower, learner.local_context)).all()


def test_only_the_contexts_learn(demo):
    """METHOD 15 row 12. Planted mistake: no_grad around the text tower leaves the contexts without gradients."""
    model, tokenizer = demo
    tower = TextTower(model, tokenizer)
    learner = PromptLearner(tower, TEXTS, length=4, init="gaussian", period=True, seed=0)
    learner(tower, learner.global_context).square().sum().backward()
    assert sum(value.numel() for value in learner.parameters()) == 2 * 4 * tower.token_embedding.weight.shape[1]
    assert learner.global_context.grad.abs().min() > 0
    assert learner.local_context.grad is None
    assert not any(value.requires_grad for value in tower.parameters())


def test_gaussian_contexts_have_the_printed_spread(vit_b):
    """0.02 is the standard deviation, not the variance."""
    context = initial_context(TextTower(*vit_b), length=16, init="gaussian", seed=3)
    assert context.shape == (2, 16, 512)
    assert 0.019 < context.std() < 0.021
    assert not torch.equal(context[0], context[1])
    assert torch.equal(context, initial_context(TextTower(*vit_b), length=16, init="gaussian", seed=3))


def test_words_need_four_places(demo):
    with pytest.raises(UsageError, match=r"prompt\.length is 8"):
        initial_context(TextTower(*demo), length=8, init="words", seed=0)


def test_a_label_that_does_not_fit_is_named(demo):
    tower = TextTower(*demo)
    with pytest.raises(BadData, match=r"needs .* tokens, the text tower has 77"):
        tower.encode_prompts(["a photo of a " + "very " * 90 + "long label."])


def test_underscores_become_spaces():
    assert class_texts(["traffic_light", "diningtable"], "peer") == ["traffic light", "diningtable"]
    assert class_texts(["traffic_light", "diningtable"], "pretty") == ["traffic light", "dining table"]
    assert fixed_prompts(["cat"], period=False) == ["a photo of a cat"]


def test_the_tower_never_leaves_eval_mode(demo):
    tower = TextTower(*demo)
    assert not tower.train().training
