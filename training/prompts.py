"""Text path: fixed prompts, learnable contexts and the frozen text tower of an open_clip model (METHOD section 6)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpdval_edge.errors import BadData, UsageError

CONTEXT_STD = 0.02
CONTEXT_WORDS = "a photo of a"
PRETTY = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
}


def class_texts(labels: Sequence[str], style: str) -> list[str]:
    """Label names as words of a sentence: ``_`` becomes a space; ``pretty`` also splits VOC's joined names."""
    names = [PRETTY.get(label, label) if style == "pretty" else label for label in labels]
    return [name.replace("_", " ") for name in names]


def fixed_prompts(texts: Sequence[str], *, period: bool) -> list[str]:
    """Eq. 3: "a photo of a {class}." (the paper prints no full stop, its peers add one)."""
    return [f"{CONTEXT_WORDS} {text}{'.' if period else ''}" for text in texts]


class TextTower(nn.Module):
    """The frozen text transformer of an open_clip CLIP, entered at the token embeddings.

    open_clip is batch-first and takes its causal mask as an argument; without it attention is silently bidirectional.
    """

    def __init__(self, clip: nn.Module, tokenizer) -> None:
        super().__init__()
        tower = getattr(clip, "text", clip)
        pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
        # CoCa's towers read their output at a class token of their own, whatever their pooling says.
        appended = getattr(tower, "cls_emb", None) is not None
        if not hasattr(tower, "token_embedding") or pool != "argmax" or tower.attn_mask is None or appended:
            kind = f"{type(tower).__name__}, pooling {'at a class token' if appended else repr(pool)}"
            raise UsageError(
                f"the teacher's text tower ({kind}) is not a causal CLIP text transformer that ends in its end token; "
                "choose an open_clip model such as ViT-B-16-quickgelu."
            )
        self.tokenizer = tokenizer
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        self.register_buffer("attn_mask", tower.attn_mask, persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TextTower":
        """Stay in eval mode whatever the parent does."""
        return super().train(False)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids int64 [C, L], L the longest prompt; BadData names a prompt the context cannot hold.

        The tokenizer truncates silently and puts the end token last, so a prompt is too long when its last place is
        taken and a longer context would take more.
        """
        ids = self.tokenizer(list(prompts))
        for prompt, row in zip(prompts, ids, strict=True):
            needed = len(self.tokenizer.encode(prompt)) + 2
            if needed > len(row):
                raise BadData(
                    f"label prompt {prompt!r} needs {needed} tokens, the text tower has {len(row)}; "
                    "shorten the label or lower prompt.length."
                )
        return ids[:, : int(ids.argmax(dim=1).max()) + 1]

    def encode(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Token embeddings [C, L, W] and the end token's place int64 [C] -> text embeddings [C, E], not normalised.

        Attention is causal, so places after the last end token are never read and need not be there (L <= context).
        """
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        x = self.ln_final(x)[torch.arange(len(end), device=end.device), end]
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x if self.text_projection is None else x @ self.text_projection

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings [C, E] of whole sentences, equal to open_clip's ``encode_text``."""
        ids = self.tokenize(prompts).to(self.positional_embedding.device)
        return self.encode(self.token_embedding(ids), ids.argmax(dim=1))


def fixed_embeddings(tower: TextTower, texts: Sequence[str], *, period: bool) -> Tensor:
    """P^H: the embeddings of the fixed prompts of classes called ``texts``, float32 [C, E]."""
    return tower.encode_prompts(fixed_prompts(texts, period=period)).float()


class PromptLearner(nn.Module):
    """Learnable contexts V (global view) and V' (local view), shared by all classes (eqs 6, 7).

    The sequence of class i is [SOT | M context vectors | tokens of the class, ".", EOT]; the context replaces the
    embeddings of M placeholders "X". ``texts`` are the words of each class.

    Raises:
        UsageError: a length, or an ``init`` for it, that no prompt can have. BadData: a label that none can hold.
    """

    def __init__(
        self, tower: TextTower, texts: Sequence[str], *, length: int, init: str, period: bool, seed: int
    ) -> None:
        super().__init__()
        stop = "." if period else ""
        _check_length(tower, [f"{text}{stop}" for text in texts], length)
        ids = tower.tokenize([" ".join(["X"] * length) + f" {text}{stop}" for text in texts])
        ids = ids.to(tower.positional_embedding.device)
        with torch.no_grad():
            embeddings = tower.token_embedding(ids)
        self.length = length
        self.register_buffer("start", embeddings[:, :1], persistent=False)  # [C, 1, W]
        self.register_buffer("rest", embeddings[:, 1 + length :], persistent=False)  # [C, L-1-M, W]
        self.register_buffer("end", ids.argmax(dim=1), persistent=False)  # [C]
        context = initial_context(tower, length=length, init=init, seed=seed)
        self.global_context = nn.Parameter(context[0].clone())
        self.local_context = nn.Parameter(context[1].clone())

    def forward(self, tower: TextTower, context: Tensor) -> Tensor:
        """Context [M, W] -> learned text embeddings P^G or P^L [C, E]; gradients reach ``context`` only."""
        middle = context.expand(len(self.end), -1, -1)
        return tower.encode(torch.cat([self.start, middle, self.rest], dim=1), self.end)


def _check_length(tower: TextTower, texts: Sequence[str], length: int) -> None:
    """UsageError where a label fits into the text tower, but not beside ``length`` context vectors."""
    longest = max(texts, key=lambda text: len(tower.tokenizer.encode(text)))
    context = len(tower.positional_embedding)
    room = context - 2 - len(tower.tokenizer.encode(longest))
    if 0 < room < length:
        raise UsageError(
            f"prompt.length is {length}, but beside {longest!r} the text tower's {context} tokens hold at most {room}."
        )


def initial_context(tower: TextTower, *, length: int, init: str, seed: int) -> Tensor:
    """Both contexts before training, float [2, M, W].

    ``gaussian``: N(0, 0.02 as the standard deviation), drawn once for each view. ``words``: the embeddings of
    "a photo of a", so that both views start at the fixed prompts; needs M = 4.
    """
    weight = tower.token_embedding.weight
    if init == "gaussian":
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(2, length, weight.shape[1], generator=generator) * CONTEXT_STD).to(weight)
    ids = tower.tokenize([CONTEXT_WORDS])[0, 1:-1].to(weight.device)
    if len(ids) != length:
        raise UsageError(
            f"prompt.init=words starts from {CONTEXT_WORDS!r}, {len(ids)} tokens, but prompt.length is {length}; "
            f"set prompt.length={len(ids)} or prompt.init=gaussian."
        )
    with torch.no_grad():
        return tower.token_embedding(ids).expand(2, -1, -1).clone()
