"""Text embeddings of label names, made as a run's own text banks were, and the fingerprint of the space they lie in."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpdval_edge.bundle import Bundle
from hpdval_edge.config import Config
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.labels import NewLabels, check_names
from hpdval_edge.training.model import prompted_banks, read_weights
from hpdval_edge.training.prompts import TextTower, class_texts, fixed_embeddings
from hpdval_edge.training.run_folder import RUNS, RunFolder, find_run, reported_weights
from hpdval_edge.training.session import make_prompts
from hpdval_edge.training.teacher import load_teacher

# Least cosine between a bank as trained and as made anew; another device rounds otherwise.
SAME = 0.999


@dataclass(frozen=True, slots=True)
class TextSpace:
    """What makes text banks: the teacher's text tower and the run's prompts.

    contexts: ``prompts.global_context`` and ``prompts.local_context`` [M, W] as stage 2 learnt them; empty before it.
    """

    tower: TextTower
    config: Config
    contexts: Mapping[str, Tensor]

    @torch.no_grad()
    def banks(self, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Text embeddings (global, local) float32 [C, E] of label names, not normalised; without residuals.

        Raises:
            BadData: a name that the text tower's context cannot hold.
        """
        prompt = self.config.prompt
        texts = class_texts(labels, self.config.data.class_names)
        fixed = fixed_embeddings(self.tower, texts, period=prompt.period)
        prompts = None
        if self.contexts:
            prompts = make_prompts(self.config, self.tower, texts)
            for name, context in prompts.named_parameters():
                context.copy_(self.contexts[f"prompts.{name}"])
        learns = (prompt.global_ == "learn", prompt.local == "learn")
        return prompted_banks((fixed, fixed), prompts, self.tower, learns)

    @property
    def fingerprint(self) -> str:
        """sha256 over what decides an embedding: the tower's weights and activations, the contexts, the wording."""
        prompt = self.config.prompt
        # Of layers without weights, such as the activation, the name is all there is.
        plain = sorted({type(module).__name__ for module in self.tower.modules() if not [*module.parameters()]})
        wording = [self.config.data.class_names, prompt.period, prompt.global_, prompt.local]
        digest = hashlib.sha256(repr([plain, wording]).encode())
        for name, tensor in [*sorted(self.tower.state_dict().items()), *sorted(self.contexts.items())]:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().contiguous().numpy().tobytes())
        return digest.hexdigest()


def text_space(run: RunFolder) -> TextSpace:
    """The text space of a run's reported weights, on the CPU; its own labels are embedded anew and compared.

    Raises:
        UsageError, MissingDependency: the teacher is not at hand, or no stage has finished.
        BadData: a damaged run, or a teacher that is no longer the one it was trained with.
    """
    config, weights = run.config(), reported_weights(run)
    tensors, metadata = read_weights(weights)
    contexts = {name: value for name, value in tensors.items() if name.startswith("prompts.")}
    space = TextSpace(load_teacher(config.teacher.spec, torch.device("cpu")).text, config, contexts)
    banks = space.banks(json.loads(metadata["labels"]))
    for view, made in zip(("text_global", "text_local"), banks, strict=True):
        trained = tensors[view] - tensors.get(f"residuals.{view}", 0)
        if torch.nn.functional.cosine_similarity(made, trained).min() < SAME:
            raise BadData(
                f"the teacher {config.teacher.spec} no longer gives the text embeddings that {run.path} was trained "
                "with; put the teacher's files back as they were."
            )
    return space


def bundle_run(bundle: Bundle, name: str | None) -> RunFolder:
    """The run called ``name``, or else the one that the bundle was exported from.

    Raises:
        UsageError: it is not here.
    """
    if name is not None:
        return find_run(name)
    own = str(bundle.manifest.provenance.get("run"))
    for path in (RUNS / own, bundle.path.parent):
        if path.name == own and (path / "config.toml").is_file():
            return RunFolder(path)
    raise UsageError(
        f"the run {own!r} of bundle {bundle.path} is not here; pass --run, or add labels --from a file that "
        "`hpedge labels embed` wrote where the run is."
    )


def new_labels(run: RunFolder, names: Sequence[str]) -> NewLabels:
    """Embed ``names`` in a run's text space; UsageError for what are no names, else the errors of `text_space`."""
    check_names(names)
    space = text_space(run)
    text_global, text_local = space.banks(names)
    return NewLabels(tuple(names), text_global.numpy(), text_local.numpy(), space.fingerprint)
