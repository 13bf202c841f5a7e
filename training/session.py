"""Everything a run trains on, prepared before the first step: data, teacher, student, cached embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hpdval_edge.config import Config, as_table, flatten, override
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.presets import DEMO
from hpdval_edge.progress import progress, say
from hpdval_edge.training.dataset import LabelledImages, Splits
from hpdval_edge.training.image_store import ImageStore
from hpdval_edge.training.losses import class_stats, make_loss
from hpdval_edge.training.model import DualView, make_model
from hpdval_edge.training.precision import autocast, choose_device, set_threads
from hpdval_edge.training.prompts import PromptLearner, TextTower, class_texts, fixed_embeddings
from hpdval_edge.training.readers_check import read_configured
from hpdval_edge.training.run_folder import CACHE
from hpdval_edge.training.scenes import make_scenes_lt
from hpdval_edge.training.stages import TrainingData
from hpdval_edge.training.student import Student, clip_student, make_student
from hpdval_edge.training.teacher import Teacher, cached_embeddings, load_teacher

RECOMMENDED_TOPK = 32
FEW_PATCHES = 64
CLIP_LR, OTHER_LR = 1e-5, 1e-3
NEW_HEAD_LR_MULT = 3.0


@dataclass(frozen=True, slots=True)
class Session:
    """A prepared run. stores: by split name, at the student's size. fixed: P^H float32 [C, E] on ``device``."""

    config: Config
    device: torch.device
    splits: Splits
    stores: dict[str, ImageStore]
    teacher: Teacher
    texts: tuple[str, ...]
    fixed: Tensor
    model: DualView
    zero_shot: dict[str, np.ndarray]
    train_embeddings: np.ndarray | None
    patch_teacher: tuple[Student, ImageStore] | None

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of all columns."""
        return self.splits.train.labels

    @property
    def class_counts(self) -> np.ndarray:
        """Positives of the whole training list int64 [C], pictures held out for validation included."""
        return self.splits.class_counts

    def evaluation_split(self) -> tuple[str, LabelledImages]:
        """What reports are made on: ``test``, or ``val`` where there is no test split."""
        return ("test", self.splits.test) if self.splits.test is not None else ("val", self.splits.val)

    def selection_split(self) -> tuple[str, LabelledImages]:
        """What the best epoch is chosen on: ``val``, unless ``eval.select`` asks for the authors' ``best_test``."""
        if self.config.eval.select != "best_test":
            return "val", self.splits.val
        if self.splits.test is None:
            raise UsageError("eval.select=best_test, but the data has no test split; use best_val.")
        return "test", self.splits.test

    def training_data(self) -> TrainingData:
        """What the training loop reads."""
        return TrainingData(
            stores=self.stores,
            targets=self.splits.train.targets,
            teacher=self.train_embeddings,
            fixed=self.fixed,
            cache=CACHE if self.config.data.cache else None,
            patch_teacher=self.patch_teacher,
        )

    def loss(self) -> torch.nn.Module:
        """Classification loss of the configuration, with n_i from the pictures that training sees."""
        loss = self.config.loss
        stats = class_stats(self.splits.train.class_counts, len(self.splits.train))
        pos_scale = loss.pos_scale if loss.pos_scale in ("eq14", "one_plus", "none") else float(loss.pos_scale)
        return make_loss(
            loss.name,
            stats,
            rebalance=loss.rebalance,
            kappa_mode=loss.kappa_mode,
            pos_scale=pos_scale,
            focal=loss.focal,
            tau=loss.tau,
            beta=loss.beta,
            mu=loss.mu,
            kappa=loss.kappa,
            lam=loss.lam,
        ).to(self.device)

    def prompt_learner(self) -> PromptLearner:
        """Fresh contexts V, V' as configured."""
        return make_prompts(self.config, self.teacher.text, self.texts).to(self.device)


def make_prompts(config: Config, tower: TextTower, texts: Sequence[str]) -> PromptLearner:
    """Contexts as configured for classes called ``texts``; see PromptLearner for what it refuses."""
    prompt = config.prompt
    return PromptLearner(tower, texts, length=prompt.length, init=prompt.init, period=prompt.period, seed=config.seed)


def load_data(config: Config) -> Splits:
    """Splits of the configured data set; the demo set is drawn first where it is missing.

    Raises:
        UsageError, BadData: see the readers; a training split of fewer than two pictures.
    """
    if config.data.path == DEMO:
        folder = CACHE / "scenes-lt"
        make_scenes_lt(folder)
        config = override(config, {"data.path": str(folder)})
    splits = read_configured(config)
    for note in splits.notes:
        say(f"note: {note}")
    return splits


def make_stores(config: Config, splits: Splits, size: int, names: tuple[str, ...]) -> dict[str, ImageStore]:
    """Decode and check the pictures of the named splits at ``size`` pixels; one BadData lists every bad one."""
    stores = {}
    for name in names:
        images = getattr(splits, name)
        if images is None:
            continue
        with progress(f"checking {name} pictures", len(images)) as update:
            cache = CACHE if config.data.cache else None
            stores[name] = ImageStore(images, size=size, cache=cache, on_progress=update)
    return stores


def prepare(config: Config) -> Session:
    """Check all input and build all parts; nothing has been trained when this fails.

    Raises:
        UsageError, BadData, MissingDependency: each in one sentence, before the first training step.
    """
    set_threads(config.train.threads)
    device = choose_device(config.train.device)
    splits = load_data(config)
    _check_positives(splits, config)
    teacher = load_teacher(config.teacher.spec, device)
    torch.manual_seed(config.seed)
    student, resolved = make_student(config.student, teacher)
    config = _resolve(replace(config, student=resolved), student)
    names = ("train", "val", "test")
    stores = make_stores(config, splits, resolved.image_size, names)
    views = stores if teacher.size == resolved.image_size else make_stores(config, splits, teacher.size, names)
    texts = tuple(class_texts(splits.train.labels, config.data.class_names))
    with torch.no_grad():
        fixed = fixed_embeddings(teacher.text, texts, period=config.prompt.period)
    embeddings = _all_embeddings(teacher, views, config, device, width=student.width)
    session = Session(
        config=config,
        device=device,
        splits=splits,
        stores=stores,
        teacher=teacher,
        texts=texts,
        fixed=fixed.to(device),
        model=make_model(config, student, fixed).to(device),
        zero_shot=_zero_shot(embeddings, fixed, teacher, views, config, device),
        train_embeddings=embeddings.get("train"),
        patch_teacher=_patch_teacher(teacher, student, views["train"], config, device),
    )
    _check_choices(session)
    return session


def _check_choices(session: Session) -> None:
    """UsageError for a selection or a loss that the configuration names and the data or the formula does not have."""
    session.selection_split()
    try:
        session.loss()
    except ValueError as error:
        raise UsageError(f"loss: {error}") from error


def _check_positives(splits: Splits, config: Config) -> None:
    """BadData where the pictures that choose epoch or thresholds have no label at all, so that no AP is defined."""
    parts = {"validation": splits.val}
    if config.eval.select == "best_test" and splits.test is not None:
        parts["test"] = splits.test
    for name, part in parts.items():
        if not part.targets.any():
            source = " held out of the training list" if name == "validation" and splits.held_out else ""
            raise BadData(
                f"none of the {len(part)} {name} pictures{source} has a label, so no epoch can be chosen on them; "
                f"name labelled ones with --{'val' if name == 'validation' else 'test'}."
            )


def _patch_teacher(
    teacher: Teacher, student: Student, pictures: ImageStore, config: Config, device: torch.device
) -> tuple[Student, ImageStore] | None:
    """What gives the teacher's patches in the joint space, with its pictures, where patches are distilled.

    Raises:
        UsageError: they are not the student's patches, or augmentation would not show both the same.
    """
    if not config.kd.patches:
        return None
    tower, size = clip_student(teacher), student.spec.image_size
    if tower.grid != student.grid:
        grids = [f"{rows} x {columns}" for rows, columns in (tower.grid, student.grid)]
        raise UsageError(
            f"kd.patches compares patch by patch, but the teacher has {grids[0]} and the student {grids[1]}; "
            "set student.image_size so that they agree, or kd.patches=0."
        )
    if config.data.aug == "strong" and teacher.size != size:
        raise UsageError(
            f"kd.patches with data.aug=strong needs pictures of one size, but the teacher's have {teacher.size} px and "
            f"the student's {size}, and squares would be cut out of different places; use data.aug=light."
        )
    return tower.to(device), pictures


def _resolve(config: Config, student: Student) -> Config:
    """Fill in what depends on the student: topk, the step sizes of stage 1, and whether stage 1 is distilled."""
    from_clip, projection = config.student.init == "clip", config.student.embed == "clip_proj"
    if config.kd.weight == "auto" and not from_clip:
        say(
            "note: kd.weight=auto is 0 for a student that does not start from CLIP, see docs/method.md; with a strong "
            "teacher try --set kd.weight=1"
        )
    few = student.num_patches < FEW_PATCHES
    automatic = {
        "fuse.topk": max(1, student.num_patches // 2) if few else RECOMMENDED_TOPK,
        "train.stage1.lr": CLIP_LR if from_clip and config.student.tune == "all" else OTHER_LR,
        "train.stage1.head_lr_mult": 1.0 if from_clip and projection else NEW_HEAD_LR_MULT,
        "kd.weight": "1" if from_clip else "0",
        # A random embedding layer makes the start worthless.
        "train.wise": "on" if from_clip and projection else "off",
    }
    flat = flatten(as_table(config))
    return override(config, {key: value for key, value in automatic.items() if flat[key] in (0, "auto")})


def _all_embeddings(
    teacher: Teacher, stores: dict[str, ImageStore], config: Config, device: torch.device, *, width: int
) -> dict[str, np.ndarray]:
    """The teacher's embeddings by split name, of the training pictures only where they are distilled.

    Raises:
        UsageError: hidden embeddings are to be distilled into a student whose ``width`` is another.
    """
    distils = float(config.kd.weight) > 0
    looked_at = [name for name in stores if distils or name != "train"]
    embeddings = {name: _embeddings(teacher, stores, name, config, device) for name in looked_at}
    if distils and config.kd.space == "hidden" and embeddings["train"].shape[1] != width:
        raise UsageError(
            f"kd.space=hidden compares the teacher's {embeddings['train'].shape[1]} hidden numbers with the student's "
            f"{width}; use kd.space=embed."
        )
    return embeddings


def _embeddings(
    teacher: Teacher,
    stores: dict[str, ImageStore],
    name: str,
    config: Config,
    device: torch.device,
    space: str | None = None,
) -> np.ndarray:
    with progress(f"teacher looks at {name} pictures", len(stores[name])) as update:
        return cached_embeddings(
            teacher,
            stores[name],
            cache=CACHE,
            device=device,
            amp=config.train.amp,
            space=space or config.kd.space,
            on_progress=update,
        )


def _zero_shot(
    embeddings: dict[str, np.ndarray],
    fixed: Tensor,
    teacher: Teacher,
    stores: dict[str, ImageStore],
    config: Config,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Cosine of the teacher's image embedding and "a photo of a {class}.", float32 [n, C] for val and test."""
    text = torch.nn.functional.normalize(fixed.cpu(), dim=1).numpy()
    scores = {}
    for name in (name for name in stores if name != "train"):
        image = embeddings[name]
        if config.kd.space == "hidden":
            image = _embeddings(teacher, stores, name, config, device, space="embed")
        scores[name] = (image / np.maximum(np.linalg.norm(image, axis=1, keepdims=True), 1e-12)) @ text.T
    return scores


def warm_up(session: Session) -> None:
    """One forward pass, so that a student that cannot run fails before the run folder exists."""
    pixels = session.stores["train"][np.array([0])]
    images = torch.from_numpy(pixels).to(session.device).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad(), autocast(session.device, session.config.train.amp):
        session.model.eval()(images)
