"""The paper's equations 2 to 17 once more, in plain Python and float64, against the code to 1e-9.

Nothing here is shared with the code: the losses are evaluated as printed, log(1 + e^t), in 60-digit decimals, the
statistics in fractions, the similarities in loops, and the text tower in NumPy, one class and one place at a time.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import open_clip
import pytest
import torch

from hpdval_edge.config import load_config
from hpdval_edge.training.losses import class_stats, make_loss
from hpdval_edge.training.model import DualView
from hpdval_edge.training.prompts import PromptLearner, TextTower
from hpdval_edge.training.session import prepare
from hpdval_edge.training.stages import StageTrainer, distance, plan_stages

PRECISE = {"rel": 1e-9, "abs": 1e-12}
COUNTS = [775, 4, 36, 100, 7]
IMAGES = 1142
VOC = {"tau": 0.1, "beta": 10.0, "mu": 0.3, "kappa": 0.05, "lam": 5.0}
COCO = {**VOC, "mu": 0.2, "lam": 2.0}


def dot(a, b):
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / (math.sqrt(dot(a, a)) * math.sqrt(dot(b, b)))


def fused(cls, patches, text_global, text_local, k, alpha):
    """Eqs 4 and 5, or 8 and 9, for one image and one class; with the cosine of every patch."""
    local = [cosine(text_local, patch) for patch in patches]
    kept = sorted(local, reverse=True)[:k]
    return alpha * cosine(text_global, cls) + (1 - alpha) * math.fsum(kept) / len(kept), local


def mean_gap(rows, others):
    """Eqs 2 and 10: the mean absolute difference over rows and columns."""
    gaps = [
        abs(float(a) - float(b))
        for row, other in zip(rows, others, strict=True)
        for a, b in zip(row, other, strict=True)
    ]
    return math.fsum(gaps) / len(gaps)


def log_one_plus_exp(t):
    """log(1 + e^t) as printed, at a precision that it survives."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 10**6, -(10**6)
        return float((1 + Decimal(t).exp()).ln())


def logistic(t):
    return 1 / (1 + math.exp(-t))


def shares(counts):
    """Eq. 11's p_i over all classes: fractions that sum to 1."""
    total = sum(Fraction(1, count) for count in counts)
    return [Fraction(1, count) / total for count in counts]


def rebalanced(p, tau, beta, mu):
    return tau + logistic(beta * (float(p) - mu))


def bias(counts, images, kappa):
    """Eq. 12."""
    return [kappa * math.log(Fraction(images, count) - 1) for count in counts]


def db_elements(logits, targets, *, counts, images, instance, pos_scale, tau, beta, mu, kappa, lam):
    """Eqs 13 and 15, [B][C]; pos_scale maps w_i of eq. 14 to what multiplies z."""
    v, rows = bias(counts, images, kappa), []
    for scores, labels in zip(logits, targets, strict=True):
        chosen = [i for i in range(len(counts)) if labels[i]]
        among = sum(Fraction(1, counts[i]) for i in chosen)
        losses = []
        for i, (s, y) in enumerate(zip(scores, labels, strict=True)):
            if instance:
                r = rebalanced(Fraction(1, counts[i]) / among, tau, beta, mu) if chosen else tau + 1
            else:
                r = rebalanced(shares(counts)[i], tau, beta, mu)
            z = float(s) - v[i]
            w = pos_scale(Fraction(counts[i], max(counts)))
            losses.append(r * (log_one_plus_exp(-w * z) if y else log_one_plus_exp(lam * z) / lam))
        rows.append(losses)
    return rows


def batch(rows=5, scale=6.0):
    """Logits float64 and labels [rows,5]; image 0 holds no label, image 1 all."""
    generator = torch.Generator().manual_seed(4)
    logits = scale * torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    targets = (torch.rand(rows, 5, generator=generator) < 0.4).long()
    targets[0], targets[1] = 0, 1
    return logits, targets


def mean(rows):
    return math.fsum(map(math.fsum, rows)) / (len(rows) * len(rows[0]))


def test_equations_2_and_10_are_mean_absolute_differences():
    """Planted mistakes: a square for the absolute value, rows normalised first, float32 inside."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    # The second shape leaves rounding errors nothing to cancel against.
    for one, other in ((student, teacher), (student[:1, :1], teacher[:1, :1])):
        width = one.shape[1]
        assert distance(one, other, "mean").item() == pytest.approx(mean_gap(one, other), **PRECISE)
        assert distance(one, other, "sum").item() == pytest.approx(width * mean_gap(one, other), **PRECISE)


@pytest.mark.parametrize("k", [1, 3, 7, 50])
@pytest.mark.parametrize("stage", [1, 2])
def test_equations_4_5_8_9_are_fused_cosines(stage, k):
    """Eqs 4 and 5 with one text bank, eqs 8 and 9 with two. Planted mistakes: alpha on the local view, float32."""
    generator = torch.Generator().manual_seed(2)
    cls, patches = (torch.randn(*shape, 6, generator=generator, dtype=torch.float64) for shape in ((3,), (3, 7)))
    banks = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    text_global, text_local = banks[0], banks[stage - 1]
    model = DualView(torch.nn.Identity(), text_global, text_local, alpha=0.4, topk=k)
    scores, patch_scores = model.score(cls, patches, *model.banks())
    assert scores.dtype == patch_scores.dtype == torch.float64
    for b in range(3):
        for i in range(4):
            expected, local = fused(cls[b], patches[b], text_global[i], text_local[i], k, 0.4)
            assert scores[b, i].item() == pytest.approx(expected, **PRECISE)
            assert patch_scores[b, :, i].tolist() == pytest.approx(local, **PRECISE)


def test_the_release_divides_each_view_by_its_norm_over_the_classes():
    """METHOD 5, sim.kind l2class. Planted mistakes: norm over the width, patches divided before they are pooled."""
    generator = torch.Generator().manual_seed(3)
    cls, patches = (torch.randn(*shape, 6, generator=generator, dtype=torch.float64) for shape in ((2,), (2, 7)))
    banks = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    model = DualView(torch.nn.Identity(), *banks, alpha=0.6, topk=3, kind="l2class")
    scores, _ = model.score(cls, patches, *model.banks())
    for b in range(2):
        whole = [dot(text, cls[b]) for text in banks[0]]
        pooled = [math.fsum(sorted((dot(text, p) for p in patches[b]), reverse=True)[:3]) / 3 for text in banks[1]]
        norms = [math.sqrt(dot(view, view)) for view in (whole, pooled)]
        expected = [0.6 * g / norms[0] + 0.4 * p / norms[1] for g, p in zip(whole, pooled, strict=True)]
        assert scores[b].tolist() == pytest.approx(expected, **PRECISE)


class TextTowerInNumpy:
    """A CLIP text tower in float64, for one sequence that ends in its end token."""

    def __init__(self, clip, heads, gelu):
        self.weights = {name: value.double().numpy() for name, value in clip.state_dict().items()}
        self.heads, self.gelu = heads, np.vectorize(gelu)
        self.layers = len(clip.transformer.resblocks)

    def tokens(self, ids):
        return self.weights["token_embedding.weight"][ids]

    def norm(self, x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, x, weight, offset):
        return x @ self.weights[weight].T + self.weights[offset]

    def attend(self, x, name):
        """Each place attends to itself and the places before it."""
        queries, keys, values = np.split(self.linear(x, f"{name}.in_proj_weight", f"{name}.in_proj_bias"), 3, axis=1)
        width, out = x.shape[1] // self.heads, np.zeros_like(x)
        for head in range(self.heads):
            columns = slice(head * width, (head + 1) * width)
            for place in range(len(x)):
                seen = keys[: place + 1, columns] @ queries[place, columns] / math.sqrt(width)
                weights = np.exp(seen - seen.max())
                out[place, columns] = (weights / weights.sum()) @ values[: place + 1, columns]
        return self.linear(out, f"{name}.out_proj.weight", f"{name}.out_proj.bias")

    def encode(self, sequence):
        """Embeddings [L, W] -> the text embedding [E], read at the last place."""
        x = sequence + self.weights["positional_embedding"][: len(sequence)]
        for layer in range(self.layers):
            block = f"transformer.resblocks.{layer}"
            x = x + self.attend(self.norm(x, f"{block}.ln_1"), f"{block}.attn")
            wide = self.linear(self.norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc.weight", f"{block}.mlp.c_fc.bias")
            x = x + self.linear(self.gelu(wide), f"{block}.mlp.c_proj.weight", f"{block}.mlp.c_proj.bias")
        return self.norm(x, "ln_final")[-1] @ self.weights["text_projection"]


@pytest.fixture(params=[False, True], ids=["gelu", "quickgelu"])
def towers(request):
    """A small float64 CLIP with random weights and no bias left at zero, and its text tower in NumPy."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=12,
        vision_cfg={"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
        quick_gelu=request.param,
    )
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    clip = clip.double().eval()
    gelu = (
        (lambda t: t * logistic(1.702 * t)) if request.param else (lambda t: t * (1 + math.erf(t / math.sqrt(2))) / 2)
    )
    return clip, TextTowerInNumpy(clip, heads=2, gelu=gelu)


@pytest.mark.parametrize("length", [1, 4, 16])
def test_equations_3_6_7_are_a_text_tower_on_the_prompt_sequence(towers, length):
    """[SOT | V | class | . | EOT]. Planted mistakes: no causal mask, V at another place, both views from V."""
    clip, by_hand = towers
    tokenizer = open_clip.SimpleTokenizer()
    texts = ["cat", "traffic light", "zebra crossing sign"]
    tower = TextTower(clip, tokenizer)
    learner = PromptLearner(tower, texts, length=length, init="gaussian", period=True, seed=0)
    fixed = tower.encode_prompts([f"a photo of a {text}." for text in texts])
    model = DualView(torch.nn.Identity(), fixed, fixed, alpha=0.4, topk=1)
    model.attach_prompts(learner, tower, learns=(True, True))
    contexts = [context.detach().numpy() for context in (learner.global_context, learner.local_context)]
    assert not np.array_equal(*contexts)
    banks = model.banks()
    for i, text in enumerate(texts):
        words = by_hand.tokens([49406, *tokenizer.encode(f"a photo of a {text}."), 49407])
        np.testing.assert_allclose(fixed[i].numpy(), by_hand.encode(words), rtol=1e-9, atol=1e-12)
        rest = by_hand.tokens([*tokenizer.encode(text), *tokenizer.encode("."), 49407])
        for bank, context in zip(banks, contexts, strict=True):
            sequence = np.concatenate([by_hand.tokens([49406]), context, rest])
            np.testing.assert_allclose(bank[i].detach().numpy(), by_hand.encode(sequence), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("constants", [VOC, COCO], ids=["voc", "coco"])
def test_equations_11_12_14_are_the_class_statistics(constants):
    """Planted mistakes: tau and mu exchanged, v with n_i / n, w over the sum of n_j."""
    stats = class_stats(COUNTS, IMAGES)
    tau, beta, mu, kappa = (constants[key] for key in ("tau", "beta", "mu", "kappa"))
    r = [rebalanced(p, tau, beta, mu) for p in shares(COUNTS)]
    assert sum(shares(COUNTS)) == 1
    assert stats.rebalance(tau=tau, beta=beta, mu=mu).tolist() == pytest.approx(r, **PRECISE)
    assert stats.bias(kappa=kappa).tolist() == pytest.approx(bias(COUNTS, IMAGES, kappa), **PRECISE)
    assert stats.w_i.tolist() == pytest.approx([float(Fraction(n, 775)) for n in COUNTS], **PRECISE)
    assert stats.r_i.tolist() == pytest.approx([rebalanced(p, 0.1, 10, 0.3) for p in shares(COUNTS)], **PRECISE)
    assert stats.v_i.tolist() == pytest.approx(bias(COUNTS, IMAGES, 0.05), **PRECISE)


@pytest.mark.parametrize("instance", [False, True], ids=["class", "instance"])
@pytest.mark.parametrize("constants", [VOC, COCO], ids=["voc", "coco"])
@pytest.mark.parametrize(
    ("name", "option", "pos_scale"),
    [
        ("db", "eq14", lambda w: 1),
        ("dbstar", "eq14", float),
        ("dbstar", "one_plus", lambda w: 1 + float(w)),
        ("dbstar", 10, lambda w: 10),
    ],
    ids=["eq13", "eq15", "one_plus", "constant"],
)
def test_equations_13_15_are_the_losses(name, option, pos_scale, constants, instance):
    """Planted mistakes: w outside the logarithm, lambda on positives, the mean over positives only."""
    logits, targets = batch()
    rebalance = "instance" if instance else "class"
    loss = make_loss(name, class_stats(COUNTS, IMAGES), rebalance=rebalance, pos_scale=option, **constants)
    common = {"counts": COUNTS, "images": IMAGES, "instance": instance, "pos_scale": pos_scale}
    expected = db_elements(logits.tolist(), targets.tolist(), **common, **constants)
    elements = loss(logits, targets, reduction="none")
    assert elements.tolist() == [pytest.approx(row, **PRECISE) for row in expected]
    assert loss(logits, targets).item() == pytest.approx(mean(expected), **PRECISE)


@pytest.mark.parametrize("name", ["db", "dbstar"])
def test_the_gradient_is_the_derivative_by_hand(name):
    """METHOD 8.4: -r w sigmoid(-w z) for a positive, r sigmoid(lambda z) for a negative, over B C."""
    logits, targets = batch(scale=2.0)
    loss = make_loss(name, class_stats(COUNTS, IMAGES), **VOC)
    (gradient,) = torch.autograd.grad(loss(logits.requires_grad_(), targets), logits)
    v = bias(COUNTS, IMAGES, VOC["kappa"])
    for b, row in enumerate(targets.tolist()):
        for i, y in enumerate(row):
            z, w = logits[b, i].item() - v[i], COUNTS[i] / 775 if name == "dbstar" else 1.0
            slope = -w * logistic(-w * z) if y else logistic(VOC["lam"] * z)
            expected = rebalanced(shares(COUNTS)[i], 0.1, 10, 0.3) * slope / targets.numel()
            assert gradient[b, i].item() == pytest.approx(expected, **PRECISE)


def whole_batch_losses(values, folder, monkeypatch, number, **options):
    """Prepare a run whose single batch is its training set, take one step of a stage, return (before, losses)."""
    monkeypatch.chdir(folder)
    options = {"data.aug": "none", "train.amp": "off", "train.ema": "0", "train.batch_size": "48", **options}
    options |= {"kd.weight": "1", "loss.kappa": str(VOC["kappa"])}
    session = prepare(load_config(values={**values, **options}))
    stage = next(stage for stage in plan_stages(session.config) if stage.number == number)
    if stage.trains_prompts:
        session.model.attach_prompts(session.prompt_learner(), session.teacher.text, learns=(True, True))
    images = torch.from_numpy(session.stores["train"][np.arange(48)]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        before = (*session.model.student.eval()(images), *session.model.banks())
    trainer = StageTrainer(
        stage, session.model, session.training_data(), session.loss(), config=session.config, device=session.device
    )
    trainer.train_epoch(stop=lambda: False, on_progress=lambda done, total: None)
    return session, [value.double().tolist() for value in before], trainer.cursor.sums


def classification_by_hand(session, cls, patches, text_global, text_local):
    """Eqs 4 to 15 at the run's own settings: recommended save for kappa, so r by instance and 1 + w_i."""
    targets, settings = session.splits.train.targets.tolist(), session.config.fuse
    counts = [sum(row[i] for row in targets) for i in range(4)]
    logits = [
        [20 * fused(c, p, g, t, settings.topk, settings.alpha)[0] for g, t in zip(text_global, text_local, strict=True)]
        for c, p in zip(cls, patches, strict=True)
    ]
    one_plus = {"instance": True, "pos_scale": lambda w: 1 + float(w)}
    return mean(db_elements(logits, targets, counts=counts, images=len(targets), **one_plus, **VOC))


def test_equation_16_is_what_stage_1_descends(tiny_values, tmp_path, monkeypatch):
    """L_cls + L_kd from the student's tokens. Planted mistakes: no logit scale, kd halved, n_i from another split."""
    options = {"student.init": "random", "student.name": "clip-vit"}
    session, before, losses = whole_batch_losses(tiny_values, tmp_path, monkeypatch, 1, **options)
    kd = mean_gap(before[0], session.train_embeddings)
    cls = classification_by_hand(session, *before)
    assert kd > 0.01
    assert losses["kd"] == pytest.approx(kd, rel=1e-5)
    assert losses["cls"] == pytest.approx(cls, rel=1e-5)
    assert losses["loss"] == pytest.approx(cls + kd, rel=1e-5)


@pytest.mark.parametrize("target", ["global", "local", "both"])
def test_equation_17_is_what_stage_2_descends(tiny_values, tmp_path, monkeypatch, target):
    """L_cls + L_sc from the tokens and both banks. Planted mistakes: the other view constrained, their sum for both."""
    options = {"sc.target": target, "prompt.init": "gaussian"}
    session, before, losses = whole_batch_losses(tiny_values, tmp_path, monkeypatch, 2, **options)
    gaps = {view: mean_gap(bank, session.fixed) for view, bank in zip(("global", "local"), before[2:], strict=True)}
    gaps["both"] = (gaps["global"] + gaps["local"]) / 2
    assert len(set(gaps.values())) == 3
    assert losses["sc"] == pytest.approx(gaps[target], rel=1e-5)
    cls = classification_by_hand(session, *before)
    assert losses["loss"] == pytest.approx(cls + gaps[target], rel=1e-5)
