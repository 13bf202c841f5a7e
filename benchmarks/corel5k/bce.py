"""The plain baseline: the same student, a linear classifier, binary cross-entropy, no teacher."""

import numpy as np
import torch

from hpdval_edge.progress import say
from hpdval_edge.training.augment import augment
from hpdval_edge.training.averages import Ema
from hpdval_edge.training.evaluate import report
from hpdval_edge.training.sampling import epoch_order
from hpdval_edge.training.schedule import learning_rate_factor
from hpdval_edge.training.session import Session
from hpdval_edge.training.student import Student, tokens


class Classifier(torch.nn.Module):
    """Pooled features of a student's encoder -> logits [B, C]; images float [B, 3, S, S] in [0, 1]."""

    def __init__(self, student: Student, classes: int) -> None:
        super().__init__()
        self.student = student
        self.head = torch.nn.Linear(student.width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cls, _ = tokens(self.student.encoder, (images - self.student.mean) / self.student.std)
        return self.head(cls)


def scores_of(model: Classifier, store, batch: int = 64) -> np.ndarray:
    """Logits float32 [n, C] of every picture."""
    model.eval()
    parts = []
    for start in range(0, len(store), batch):
        pixels = store[np.arange(start, min(start + batch, len(store)))]
        with torch.no_grad():
            parts.append(model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).numpy())
    return np.concatenate(parts)


def train_bce(session: Session, epochs: int) -> dict:
    """Fine-tune with the session's data, batch, rates, schedule, EMA and augmentation; best epoch on validation.

    Returns:
        The report on the test split.
    """
    config, data = session.config, session.splits.train
    stage = config.train.stage1
    model = Classifier(session.model.student, len(data.labels))
    # The rarest labels drown when every logit starts at 0.5: start at the prior, as usual for BCE.
    prior = torch.from_numpy(data.class_counts / len(data)).float().clamp(1e-4, 1 - 1e-4)
    model.head.bias.data.copy_(torch.logit(prior))
    groups = [
        {"params": list(model.student.encoder.parameters()), "base_lr": stage.lr},
        {"params": list(model.head.parameters()), "base_lr": stage.lr * stage.head_lr_mult},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.lr, weight_decay=stage.weight_decay)
    ema = Ema(model, config.train.ema)
    targets = torch.from_numpy(data.targets).float()
    best, kept, batch = -1.0, None, config.train.batch_size
    steps = -(-len(data) // batch)
    for epoch in range(epochs):
        order = epoch_order(data.targets, sampler="shuffle", seed=config.seed, epoch=epoch)
        model.train()
        for step in range(steps):
            rows, done = order[step * batch : (step + 1) * batch], epoch * steps + step
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * learning_rate_factor(done, steps * epochs, config.train.sched)
            images = augment(
                session.stores["train"][rows], config.data.aug, seed=config.seed, epoch=epoch, indices=rows
            )
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            ema.update(model, done)
        with ema.applied(model):
            value = report(scores_of(model, session.stores["val"]), session.splits.val, session.class_counts)["mAP"]
            say(f"bce epoch {epoch + 1}/{epochs}  val mAP {value:.2f}")
            if value > best:
                best, kept = value, scores_of(model, session.stores["test"])
    return report(kept, session.splits.test, session.class_counts, bootstrap=config.eval.bootstrap, seed=config.seed)
