"""Stage 1, stage 2 and the joint stage: one training loop, three plans (eqs 2, 10, 16, 17)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hpdval_edge.config import Config, StageConfig
from hpdval_edge.errors import CheckFailed
from hpdval_edge.training.averages import Ema, WeightLine
from hpdval_edge.training.image_store import ImageStore
from hpdval_edge.training.model import DualView, Views, at_least_float32
from hpdval_edge.training.sampling import epoch_order
from hpdval_edge.training.schedule import learning_rate_factor
from hpdval_edge.training.student import Student
from hpdval_edge.training.token_source import BATCH, TokenOptions, Tokens, TokenSource

SHARES = (1.0, 0.75, 0.5)


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage trains and which terms join the classification loss."""

    name: str
    number: int
    trains_student: bool
    trains_prompts: bool
    kd_weight: float
    kd_patches: float
    sc_weight: float
    schedule: StageConfig


def plan_stages(config: Config) -> tuple[Stage, ...]:
    """Plan of a resolved configuration.

    Two stages (eqs 16, 17), or the joint run of Table V: L_cls + (L_kd + L_sc) / 2 over all parameters.
    """
    kd, patches, sc, train = float(config.kd.weight), config.kd.patches, config.sc.weight, config.train
    if train.mode == "joint":
        return (Stage("joint", 1, True, True, kd / 2, patches / 2, sc / 2, train.stage1),)
    return (
        Stage("stage1", 1, True, False, kd, patches, 0.0, train.stage1),
        Stage("stage2", 2, False, True, 0.0, 0.0, sc, train.stage2),
    )


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Everything a stage reads: the picture stores by split, and of the training split targets uint8 [n, C], teacher
    embeddings [n, E] (None where they are not distilled) and P^H [C, E].

    cache: folder for what other runs can use too, or None. patch_teacher: what gives the teacher's patches, and the
    training pictures at its size; None where patches are not distilled.
    """

    stores: Mapping[str, ImageStore]
    targets: np.ndarray
    teacher: np.ndarray | None
    fixed: Tensor
    cache: Path | None
    patch_teacher: tuple[Student, ImageStore] | None = None


@dataclass(slots=True)
class Cursor:
    """Where a stage stands; with the tensors of ``StageTrainer.tensors`` it is all that resuming needs."""

    stage: str
    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: float = float("-inf")
    best_epoch: int = -1


class StageTrainer:
    """Trains one stage of one model, step by step, resumable between any two steps.

    Every random draw is a function of (seed, stage, epoch, step, picture), so that no generator state has to be kept.
    """

    def __init__(
        self,
        stage: Stage,
        model: DualView,
        data: TrainingData,
        loss: nn.Module,
        *,
        config: Config,
        device: torch.device,
    ) -> None:
        self.stage, self.model, self.data, self.loss = stage, model, data, loss
        self.config, self.device = config, device
        self.cursor = Cursor(stage.name)
        self.seed = config.seed * 10 + stage.number
        self._freeze()
        # Stage 2 of a student with a frozen encoder reads what stage 1 kept of that encoder.
        learns = config.student.tune if stage.trains_student or config.student.tune == "embed" else "nothing"
        as_trained = (config.data.aug, config.train.amp)
        # Scores are float32 whatever training uses.
        self.tokens = {
            name: self._source(model.student, store, learns, *(as_trained if name == "train" else ("none", "off")))
            for name, store in data.stores.items()
        }
        self.teacher_tokens = None
        if stage.kd_patches and data.patch_teacher:
            self.teacher_tokens = self._source(*data.patch_teacher, "nothing", *as_trained)
        self.optimizer = self._make_optimizer()
        self.ema = Ema(model, config.train.ema) if config.train.ema else None
        self.line = WeightLine(model) if config.train.wise == "on" and stage.trains_student else None

    def _source(self, student: Student, store: ImageStore, learns: str, aug: str, amp: str) -> TokenSource:
        options = TokenOptions(
            learns=learns,
            aug=aug,
            seed=self.seed,
            device=self.device,
            amp=amp,
            cache=self.data.cache,
        )
        return TokenSource(student, store, options)

    def _freeze(self) -> None:
        for value in (*self.model.student.parameters(), *self.model.residual_parameters()):
            value.requires_grad_(self.stage.trains_student)
        if self.config.student.tune == "embed":
            self.model.student.encoder.requires_grad_(False)
        learnt_scale = self.config.sim.logit_scale == "learn"
        self.model.log_scale.requires_grad_(learnt_scale and self.stage.trains_student)
        if self.model.prompts is not None:
            learns = (self.config.prompt.global_ == "learn", self.config.prompt.local == "learn")
            contexts = (self.model.prompts.global_context, self.model.prompts.local_context)
            for learn, context in zip(learns, contexts, strict=True):
                context.requires_grad_(learn and self.stage.trains_prompts)

    def _make_optimizer(self) -> torch.optim.AdamW:
        schedule = self.stage.schedule
        new = [*self.model.student.embedding_parameters(), *self.model.residual_parameters()]
        head = {id(parameter) for parameter in new}
        named = [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]
        self.trained = [name for name, _ in named]
        groups = [
            {
                "params": [value],
                "base_lr": schedule.lr * (schedule.head_lr_mult if id(value) in head else 1.0),
                # Biases, norms and the scale do not decay (METHOD section 9).
                "weight_decay": schedule.weight_decay if value.ndim > 1 else 0.0,
            }
            for _, value in named
        ]
        return torch.optim.AdamW(groups, lr=schedule.lr)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that change while this stage trains, by name; they share memory with the trainer's own."""
        parameters = dict(self.model.named_parameters())
        state = {f"model.{name}": parameters[name].detach() for name in self.trained}
        if self.stage.trains_student:
            state |= {f"buffer.{name}": value for name, value in self.model.student.named_buffers()}
        for name in self.trained:
            for key, value in self.optimizer.state[parameters[name]].items():
                state[f"optimizer.{name}.{key}"] = value
        if self.ema:
            state |= {f"ema.{name}": value for name, value in self.ema.shadow.items()}
        return state

    def restore(self, tensors: dict[str, Tensor], cursor: Cursor) -> None:
        """Continue from saved ``tensors`` and ``cursor``; KeyError or RuntimeError if they belong to another stage."""
        self.cursor = cursor
        parameters = dict(self.model.named_parameters())
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                parameter, key = name.removeprefix("optimizer.").rsplit(".", 1)
                device = "cpu" if key == "step" else self.device
                self.optimizer.state[parameters[parameter]][key] = value.to(device)
        own = self.tensors()
        if own.keys() != tensors.keys():
            raise KeyError(f"{len(own.keys() ^ tensors.keys())} tensors differ from the run's own")
        with torch.no_grad():
            for name, target in own.items():
                target.copy_(tensors[name])

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; the last batch may be smaller."""
        return -(-len(self._order(0)) // self.config.train.batch_size)

    def _order(self, epoch: int) -> np.ndarray:
        return epoch_order(self.data.targets, sampler=self.config.data.sampler, seed=self.seed, epoch=epoch)

    def train_epoch(self, *, stop: Callable[[], bool], on_progress: Callable[[int, int], None]) -> bool:
        """Run from the cursor to the end of its epoch; False if ``stop()`` asked to end before."""
        cursor, batch = self.cursor, self.config.train.batch_size
        order, steps = self._order(cursor.epoch), self.steps_per_epoch
        self.model.train()
        if not self.stage.trains_student:
            self.model.student.eval()
        elif self.config.student.tune == "embed":
            self.model.student.encoder.eval()
        while cursor.step < steps:
            if stop():
                return False
            self._train_step(order[cursor.step * batch : (cursor.step + 1) * batch], steps)
            cursor.step += 1
            on_progress(cursor.step, steps)
        return True

    def finish_epoch(self) -> dict[str, float]:
        """Mean losses of the epoch; the cursor moves to the next one."""
        means = {name: total / self.cursor.step for name, total in self.cursor.sums.items()}
        self.cursor.epoch, self.cursor.step, self.cursor.sums = self.cursor.epoch + 1, 0, {}
        return means

    @property
    def shares(self) -> tuple[float, ...]:
        """Where on the line from the stage's start to the trained weights validation looks; 1 is the trained end."""
        return SHARES if self.line else (1.0,)

    @contextmanager
    def evaluating(self, share: float = 1.0) -> Iterator[None]:
        """Inside, the model is in eval mode with its averaged weights, ``share`` of the way from the stage's start."""
        self.model.eval()
        with ExitStack() as stack:
            if self.ema:
                stack.enter_context(self.ema.applied(self.model))
            if self.line and share != 1:
                stack.enter_context(self.line.at(self.model, share))
            yield

    @torch.no_grad()
    def scores(self, split: str) -> np.ndarray:
        """Scores float32 [n, C] of a split's pictures, with the model as it is, in eval mode, without augmentation."""
        banks, total = self.model.banks(), len(self.data.stores[split])
        parts = []
        for start in range(0, total, BATCH):
            tokens = self.tokens[split](np.arange(start, min(start + BATCH, total)), epoch=0)
            parts.append(self.model.score(tokens.cls, tokens.patches, *banks)[0].cpu().numpy())
        return np.concatenate(parts)

    def _train_step(self, rows: np.ndarray, steps: int) -> None:
        cursor, config = self.cursor, self.config
        done = cursor.epoch * steps + cursor.step
        torch.manual_seed(int(np.random.SeedSequence([config.seed, self.stage.number, done]).generate_state(1)[0]))
        factor = learning_rate_factor(done, steps * self.stage.schedule.epochs, config.train.sched)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        terms = self._losses(self.tokens["train"](rows, epoch=cursor.epoch), rows)
        total = terms["loss"]
        if not torch.isfinite(total):
            raise CheckFailed(
                f"the loss became {total.item()} in {self.stage.name}, epoch {cursor.epoch + 1}; "
                f"lower train.{self.stage.name}.lr (now {self.stage.schedule.lr:g}) or set train.amp=off."
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model, done)
        for name, value in terms.items():
            cursor.sums[name] = cursor.sums.get(name, 0.0) + value.item()

    def _losses(self, tokens: Tokens, rows: np.ndarray) -> dict[str, Tensor]:
        prompted = self.model.prompted()
        banks = self.model.banks(prompted)
        scores = self.model.score(tokens.cls, tokens.patches, *banks)
        views = Views(tokens.cls.float(), *banks, *scores)
        targets = torch.from_numpy(self.data.targets[rows]).to(self.device)
        terms = {"cls": self.loss(self.model.logit_scale * views.scores, targets)}
        if self.stage.kd_weight:
            student = views.cls if self.config.kd.space == "embed" else tokens.hidden.float()
            teacher = torch.from_numpy(self.data.teacher[rows]).to(self.device)
            terms["kd"] = self.stage.kd_weight * distance(student, teacher, self.config.kd.reduction)
        if self.teacher_tokens:
            teacher = self.teacher_tokens(rows, epoch=self.cursor.epoch).patches
            gap = distance(tokens.patches.float(), teacher, self.config.kd.reduction)
            terms["kd_patches"] = self.stage.kd_patches * gap
        if self.stage.sc_weight and self.model.prompts is not None:
            terms["sc"] = self.stage.sc_weight * self._consistency(*prompted)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def _consistency(self, text_global: Tensor, text_local: Tensor) -> Tensor:
        target, reduction = self.config.sc.target, self.config.sc.reduction
        banks = {"global": [text_global], "local": [text_local], "both": [text_global, text_local]}
        return torch.stack([distance(bank, self.data.fixed, reduction) for bank in banks[target]]).mean()


def distance(student: Tensor, teacher: Tensor, reduction: str) -> Tensor:
    """Mean absolute difference of rows [..., E] (eqs 2 and 10 as the authors compute them); ``sum`` sums over E first.

    The second argument is a constant; both are float32 or float64, and not normalised.
    """
    gap = (student - at_least_float32(teacher.detach())).abs()
    return gap.mean() if reduction == "mean" else gap.sum(dim=-1).mean()
