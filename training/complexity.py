"""Table VII: parameters, multiply-accumulates and latency of the paper's architecture or of a run."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hpdval_edge.config import Config, StudentConfig, load_config
from hpdval_edge.errors import UsageError
from hpdval_edge.training.model import DualView, load_model, make_model
from hpdval_edge.training.precision import choose_device, set_threads
from hpdval_edge.training.prompts import PromptLearner, TextTower
from hpdval_edge.training.run_folder import find_run, reported_weights
from hpdval_edge.training.student import make_student
from hpdval_edge.training.teacher import OPENAI_MEAN, OPENAI_STD, Teacher, load_teacher

PAPER_TEACHER = "ViT-B-16-quickgelu"
PAPER_STUDENT = "vit_base_patch16_224"
PAPER_LABELS = 80
WARM_UP = 10
TIMED = 50


@dataclass(frozen=True, slots=True)
class Subject:
    """What is counted. model: deployed form, its text banks are cached; prompts: of stage 2, for C labels."""

    name: str
    model: DualView
    teacher: Teacher
    prompts: PromptLearner
    config: Config
    device: torch.device


def complexity(run: str | None, *, student: str | None = None, labels: int | None = None) -> dict:
    """Count and time a run, or with ``run`` None the paper's architecture with random weights.

    Args:
        student: timm model in place of the paper's ViT-B/16; only without a run.
        labels: number of labels C, default 80; only without a run.

    Returns:
        parameters: teacher (the whole CLIP), encoder, embedding (layer), prompts, stage1 and stage2 (trained there),
            training (everything in memory then), deployed (student; the cached banks are ``banks`` numbers more),
            paper_count (whole CLIP + embedding layer + prompts, which is what Table VII adds up).
        gmac: 1e9 multiply-accumulates of one picture: encoder, embedding, head (similarities for C labels) and their
            sum image; text: of one class prompt over the tower's full context, once for a list of labels.
        latency_ms: median, p10 and p90 of one picture in float32 with cached text, passes, and the hardware.
    """
    subject = _of_paper(student, labels) if run is None else _of_run(run, student, labels)
    return {
        "model": subject.name,
        "labels": subject.model.text_global.shape[0],
        "image_size": subject.model.student.spec.image_size,
        "parameters": count_parameters(subject),
        "gmac": count_gmac(subject),
        "latency_ms": measure_latency(subject.model, subject.device),
    }


def _of_paper(student: str | None, labels: int | None) -> Subject:
    labels = PAPER_LABELS if labels is None else labels
    if labels < 1:
        raise UsageError(f"--labels {labels} must be 1 or more.")
    name = student or PAPER_STUDENT
    config = load_config(preset="paper", values={"data.path": "none", "student.name": name, "student.init": "random"})
    device = choose_device(config.train.device)
    teacher = random_teacher()
    built, resolved = make_student(config.student, teacher)
    fixed = torch.randn(labels, teacher.embed_dim, generator=torch.Generator().manual_seed(0))
    return _subject(
        f"{name}, random weights", make_model(config, built, fixed), teacher, config, resolved, labels, device
    )


def random_teacher() -> Teacher:
    """OpenAI's CLIP ViT-B/16 as an architecture: right sizes, random weights, nothing downloaded."""
    clip = open_clip.CLIP(**open_clip.get_model_config(PAPER_TEACHER)).eval().requires_grad_(False)
    text = TextTower(clip, open_clip.get_tokenizer(PAPER_TEACHER))
    return Teacher(clip, text, clip.visual.image_size[0], OPENAI_MEAN, OPENAI_STD, fingerprint="random")


def _of_run(run: str, student: str | None, labels: int | None) -> Subject:
    if student is not None or labels is not None:
        raise UsageError(f"--student and --labels belong to the paper's architecture; leave them out with run {run}.")
    folder = find_run(run)
    config = folder.config()
    set_threads(config.train.threads)
    device = choose_device(config.train.device)
    model, names, _ = load_model(reported_weights(folder))
    teacher = load_teacher(config.teacher.spec, torch.device("cpu"))
    return _subject(str(folder.path), model, teacher, config, config.student, len(names), device)


def _subject(
    name: str,
    model: DualView,
    teacher: Teacher,
    config: Config,
    student: StudentConfig,
    labels: int,
    device: torch.device,
) -> Subject:
    init = "gaussian" if student.init == "random" else config.prompt.init
    texts = [f"label {number}" for number in range(labels)]
    prompts = PromptLearner(
        teacher.text, texts, length=config.prompt.length, init=init, period=config.prompt.period, seed=0
    )
    return Subject(name, model.eval().to(device), teacher, prompts, config, device)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in {id(p): p for p in module.parameters()}.values())


def count_parameters(subject: Subject) -> dict[str, int]:
    """Numbers of parameters, shared ones once; see ``complexity``."""
    student = subject.model.student
    clip, whole, encoder = _size(subject.teacher.clip), _size(student), _size(student.encoder)
    prompts = sum(context.numel() for context in (subject.prompts.global_context, subject.prompts.local_context))
    prompt = subject.config.prompt
    learnt = [prompt.global_ == "learn", prompt.local == "learn"]
    scale = int(subject.config.sim.logit_scale == "learn")
    banks = subject.model.text_global.numel() + subject.model.text_local.numel()
    # One vector a label and view, which the deployed banks hold already.
    residuals = banks if prompt.residual else 0
    tuned = whole if subject.config.student.tune == "all" else whole - encoder
    return {
        "teacher": clip,
        "encoder": encoder,
        "embedding": whole - encoder,
        "prompts": prompts,
        "stage1": tuned + scale + residuals,
        "stage2": prompts * sum(learnt) // 2,
        "training": clip + whole + prompts + scale + residuals,
        "deployed": whole,
        "banks": banks,
        "paper_count": clip + (whole - encoder) + prompts,
    }


def gmac(forward: Callable[[], object]) -> float:
    """1e9 multiply-accumulates of matrix products and convolutions in ``forward``, attention included.

    PyTorch's counter gives floating-point operations, two for each of them. It does not see into the fused attention
    of every device, so attention runs as plain products here.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() / 2e9


def count_gmac(subject: Subject) -> dict[str, float]:
    """Work of one picture and, apart, of one class prompt; see ``complexity``."""
    model, student = subject.model, subject.model.student
    size = student.spec.image_size
    images = torch.rand(1, 3, size, size, device=subject.device)
    with torch.no_grad():
        hidden = student.hidden(images)
        cls, patches = student.embed(*hidden)
    parts = {
        "encoder": gmac(lambda: student.hidden(images)),
        "embedding": gmac(lambda: student.embed(*hidden)),
        "head": gmac(lambda: model.score(cls, patches, model.text_global, model.text_local)),
    }
    tower = subject.teacher.text
    context = tower.positional_embedding.shape[0]
    ids = torch.zeros(1, context, dtype=torch.long, device=tower.positional_embedding.device)
    text = gmac(lambda: tower.encode(tower.token_embedding(ids), torch.tensor([context - 1])))
    return {**parts, "image": sum(parts.values()), "text": text}


def measure_latency(model: DualView, device: torch.device) -> dict:
    """Milliseconds of one picture through the model in float32, TIMED passes after WARM_UP; text banks are cached."""
    size = model.student.spec.image_size
    images = torch.rand(1, 3, size, size, device=device)
    times = []
    with torch.no_grad():
        for number in range(WARM_UP + TIMED):
            _wait(device)
            started = time.perf_counter()
            model(images)
            _wait(device)
            if number >= WARM_UP:
                times.append(1e3 * (time.perf_counter() - started))
    low, median, high = np.percentile(times, (10, 50, 90))
    return {
        "median": float(median),
        "p10": float(low),
        "p90": float(high),
        "passes": TIMED,
        "hardware": hardware(device),
        "torch": torch.__version__,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hardware(device: torch.device) -> str:
    """Name of what the model ran on, with the number of threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
