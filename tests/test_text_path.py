"""The text path against open_clip's own modules (METHOD sections 6 and 15, row 9)."""

import open_clip
import pytest
import torch

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.prompts import PromptLearner, TextTower, class_texts, fixed_prompts, initial_context
from hpdval_edge.training.readers_list import read_label_names
from hpdval_edge.training.teacher import ASSETS, load_teacher

TEXTS = ("cat", "traffic light", "dining table", "zebra crossing sign")


@pytest.fixture(scope="module")
def vit_b():
    """ViT-B-16-quickgelu with random weights: its whole text tower, and one block of the image tower, unused here."""
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    config["vision_cfg"]["layers"] = 1
    return open_clip.CLIP(**config).eval(), open_clip.get_tokenizer("ViT-B-16-quickgelu")


@pytest.fixture(scope="module")
def demo():
    teacher = load_teacher("demo", torch.device("cpu"))
    return teacher.clip, teacher.text.tokenizer


@pytest.fixture(params=["vit_b", "demo"])
def clip(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def published(request):
    """The 20 names of VOC and the 80 of COCO, as words."""
    folder = ASSETS / "protocols"
    if not folder.is_dir():
        folder = request.getfixturevalue("shared_data") / "splits"
    names = [read_label_names(folder / f"{data}_labels.txt") for data in ("voc", "coco")]
    assert [len(part) for part in names] == [20, 80]
    return [text for part in names for text in class_texts(part, "peer")]


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


def test_context_of_words_reproduces_encode_text_for_every_published_label(demo, published):
    """METHOD 15 row 9, on the demo teacher. Planted mistake: the sequences cut at the first label's end token."""
    model, tokenizer = demo
    tower = TextTower(model, tokenizer)
    learner = PromptLearner(tower, published, length=4, init="words", period=True, seed=0)
    with torch.no_grad():
        expected = model.encode_text(tokenizer(fixed_prompts(published, period=True)))
        found = learner(tower, learner.local_context)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_without_the_causal_mask_it_is_another_embedding(clip):
    """The comparisons above can fail: bidirectional attention moves the embeddings by more than 1e-3."""
    model, tokenizer = clip
    tower = TextTower(model, tokenizer)
    learner = PromptLearner(tower, TEXTS, length=4, init="words", period=True, seed=0)
    with torch.no_grad():
        tower.attn_mask = torch.zeros_like(tower.attn_mask)
        expected = model.encode_text(tokenizer(sentences()))
        for broken in (learner(tower, learner.global_context), tower.encode_prompts(sentences())):
            assert (broken - expected).abs().amax(dim=1).min() > 1e-3


def test_token_ids_are_those_of_clip():
    """The ids OpenAI's CLIP gives, so that open_clip's tokenizer is not compared with itself alone."""
    ids = open_clip.get_tokenizer("ViT-B-16-quickgelu")(["a photo of a cat.", "X X X X cat."])
    assert ids[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 269, 49407]
    assert ids[1, :8].tolist() == [49406, 343, 343, 343, 343, 2368, 269, 49407]
    assert not ids[:, 8:].any()


@pytest.mark.parametrize("period", [True, False])
def test_token_ids_of_every_published_label_are_open_clips(demo, published, period):
    """Planted mistakes: ids cut before the longest prompt ends; what follows the contexts taken one place early."""
    model, _ = demo
    tokenizer = open_clip.get_tokenizer("ViT-B-16-quickgelu")
    tower = TextTower(model, tokenizer)
    prompts = fixed_prompts(published, period=period)
    expected = tokenizer(prompts)
    assert expected.shape == (100, 77)
    ids = tower.tokenize(prompts)
    assert torch.equal(torch.nn.functional.pad(ids, (0, 77 - ids.shape[1])), expected)
    assert ids.shape[1] == expected.count_nonzero(dim=1).max()
    # What follows the contexts is what follows "a photo of a" in the sentence.
    learner = PromptLearner(tower, published, length=4, init="words", period=period, seed=0)
    assert torch.equal(learner.rest, tower.token_embedding(expected[:, 5 : ids.shape[1]]))
    assert torch.equal(learner.start[:, 0], tower.token_embedding(expected[:, 0]))
    assert torch.equal(learner.global_context, tower.token_embedding(expected[0, 1:5]))


@pytest.mark.parametrize("period", [True, False])
def test_end_token_stays_in_place_at_every_length(demo, published, period):
    """1 + M + len(BPE(class)) + 1 with the full stop. Planted mistakes: one place off, `len(name)` or 1 for the BPE."""
    model, tokenizer = demo
    tower = TextTower(model, tokenizer)
    pieces = [len(tokenizer.encode(text)) for text in published]
    assert min(pieces) == 1 and max(pieces) > 2
    for length in range(2, 65) if period else (2, 64):
        learner = PromptLearner(tower, published, length=length, init="gaussian", period=period, seed=0)
        assert learner.end.tolist() == [1 + length + count + period for count in pieces]
    # At M = 64 the longest name still fits.
    assert learner.end.max() <= 69
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
    """A prompt of 77 tokens fits, one of 78 does not; planted mistake: `>=`."""
    tower = TextTower(*demo)
    assert tower.tokenize(["a photo of a " + "very " * 69 + "long."]).shape == (1, 77)
    with pytest.raises(BadData, match=r"needs 78 tokens, the text tower has 77; shorten the label"):
        tower.encode_prompts(["a photo of a " + "very " * 70 + "long."])


def test_a_length_that_leaves_no_room_for_a_label_is_refused(demo):
    """72 vectors, "traffic light.", start and end are 77 tokens. Planted mistakes: one less is allowed, or one more."""
    tower = TextTower(*demo)
    arguments = {"init": "gaussian", "period": True, "seed": 0}
    assert len(PromptLearner(tower, ["cat", "traffic light"], length=72, **arguments).end) == 2
    message = r"prompt\.length is 73, but beside 'traffic light\.' the text tower's 77 tokens hold at most 72\."
    with pytest.raises(UsageError, match=message):
        PromptLearner(tower, ["cat", "traffic light"], length=73, **arguments)
    with pytest.raises(BadData, match="shorten the label"):
        PromptLearner(tower, ["cat", "very " * 75], length=1, **arguments)


def test_a_tower_that_reads_a_class_token_is_refused():
    """CoCa: causal, "argmax" by name, but its output is not at the end token. Planted mistake: taken as a CLIP."""
    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    tower = open_clip.CustomTextCLIP(
        embed_dim=8,
        vision_cfg={"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1},
        text_cfg={**text, "embed_cls": True},
    )
    with pytest.raises(UsageError, match="pooling at a class token"):
        TextTower(tower, open_clip.SimpleTokenizer(context_length=20))


def test_underscores_become_spaces():
    assert class_texts(["traffic_light", "diningtable"], "peer") == ["traffic light", "diningtable"]
    assert class_texts(["traffic_light", "diningtable"], "pretty") == ["traffic light", "dining table"]
    assert fixed_prompts(["cat"], period=False) == ["a photo of a cat"]


def test_the_tower_never_leaves_eval_mode(demo):
    tower = TextTower(*demo)
    assert not tower.train().training
