"""Configuration of a run: frozen dataclasses, presets, TOML and ``key=value`` overrides (METHOD section 13).

Order of precedence, weakest first: the field defaults (= preset ``recommended``), the preset, what the built-in demo
set needs, ``hpedge.toml`` in the working folder, options and ``--set`` of the command line.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hpdval_edge.errors import UsageError
from hpdval_edge.presets import DEMO, PRESETS, demo_overrides

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT_FILE = "hpedge.toml"


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where the pictures are and how they are drawn; see docs/data.md."""

    path: str = DEMO
    format: Literal["auto", "list", "csv", "coco", "voc", "folders"] = "auto"
    images: str = ""
    labels: str = ""
    val: str = ""
    test: str = ""
    val_fraction: float = 0.15
    class_names: Literal["peer", "pretty"] = "peer"
    sampler: Literal["shuffle", "class_aware"] = "shuffle"
    aug: Literal["none", "light", "strong"] = "light"
    cache: bool = True


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """``demo``, ``NAME:TAG``, ``NAME:FILE`` or ``CONFIG.json:FILE`` of open_clip."""

    spec: str = "ViT-B-16-quickgelu:openai"


@dataclass(frozen=True, slots=True)
class StudentConfig:
    """The image encoder and its embedding layer (METHOD section 3); ``auto`` is resolved against the teacher.

    tune: what stage 1 trains, all of the student or its embedding layer alone (a frozen encoder: minutes on a CPU).
    """

    name: str = "auto"
    weights: str = ""
    init: Literal["auto", "clip", "imagenet", "random"] = "auto"
    tune: Literal["all", "embed"] = "all"
    embed: Literal["auto", "mlp2", "mlp2_local", "clip_proj"] = "auto"
    embed_act: Literal["tanh", "gelu", "none"] = "tanh"
    image_size: int = 0


@dataclass(frozen=True, slots=True)
class KdConfig:
    """Distillation of the class token (eq. 2), and, with weight ``patches``, of the patches (not of the paper).

    weight: a number, or auto: 1 for a student that starts from CLIP, else 0.
    """

    space: Literal["embed", "hidden"] = "embed"
    reduction: Literal["mean", "sum"] = "mean"
    weight: str = "auto"
    patches: float = 0.0


@dataclass(frozen=True, slots=True)
class SimConfig:
    """How an image token meets a text embedding (eqs 4, 8)."""

    kind: Literal["cosine", "l2class"] = "cosine"
    logit_scale: str = "20"


@dataclass(frozen=True, slots=True)
class FuseConfig:
    """Fusion of the two views (eqs 5, 9); alpha weighs the global one. topk 0: 32, or half the patches when N < 64."""

    alpha: float = 0.4
    topk: int = 0


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """Fixed and learnable prompts (eqs 3, 6).

    residual: stage 1 also learns a vector for every label, added to its text embedding (not of the paper).
    """

    length: int = 4
    init: Literal["gaussian", "words"] = "words"
    global_: Literal["learn", "fixed"] = "learn"
    local: Literal["learn", "fixed"] = "learn"
    period: bool = True
    residual: bool = True


@dataclass(frozen=True, slots=True)
class ScConfig:
    """Semantic consistency (eq. 10)."""

    target: Literal["global", "local", "both"] = "both"
    reduction: Literal["mean", "sum"] = "mean"
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Classification loss (eqs 11-15)."""

    name: Literal["dbstar", "db", "bce", "mls", "cb_focal", "asl"] = "dbstar"
    rebalance: Literal["class", "instance", "none"] = "instance"
    kappa_mode: Literal["paper", "code"] = "paper"
    pos_scale: str = "one_plus"
    focal: Literal["none", "element", "batch"] = "none"
    tau: float = 0.1
    beta: float = 10.0
    mu: float = 0.3
    kappa: float = 1.0
    lam: float = 5.0


@dataclass(frozen=True, slots=True)
class StageConfig:
    """Length and step size of one stage.

    lr 0: the printed 1e-5 where a whole student starts from CLIP, else 1e-3. head_lr_mult speeds up the embedding
    layer; 0: 1 for CLIP's own projection, else 3.
    """

    epochs: int = 20
    lr: float = 0.0
    weight_decay: float = 1e-4
    head_lr_mult: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainSection:
    """Optimisation (METHOD section 9).

    wise: validation also looks at weights between the student's start and its end, on for a student that starts from
    CLIP (auto).
    """

    mode: Literal["two_stage", "joint"] = "two_stage"
    sched: Literal["onecycle", "constant"] = "onecycle"
    ema: float = 0.998
    wise: Literal["auto", "on", "off"] = "auto"
    batch_size: int = 32
    amp: Literal["auto", "bf16", "off"] = "auto"
    device: str = "auto"
    threads: int = 0
    stage1: StageConfig = field(default_factory=StageConfig)
    stage2: StageConfig = field(default_factory=lambda: StageConfig(epochs=10, lr=1e-3))


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """What is reported, and which epoch is kept: ``best_test`` is the authors' choice, and every report says so.

    report: end a run with report.html and plots/.
    """

    post: Literal["none", "softmax", "l2class"] = "none"
    select: Literal["last", "best_val", "best_test"] = "best_val"
    bootstrap: int = 1000
    report: bool = True


@dataclass(frozen=True, slots=True)
class ExportSection:
    """Defaults of ``hpedge export`` that a project may keep in hpedge.toml.

    int8_budget: points of mAP on the validation pictures that int8 may lose against float32.
    """

    precision: Literal["fp32", "fp16", "int8", "int8-fp16"] = "fp32"
    int8_budget: float = 1.0


@dataclass(frozen=True, slots=True)
class InferSection:
    """Defaults of ``hpedge infer`` that a project may keep in hpedge.toml."""

    backend: str = "auto"
    threshold: str = "fitted"


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a run depends on; written, resolved, to ``runs/<name>/config.toml``."""

    preset: Literal["recommended", "paper", "release"] = "recommended"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    kd: KdConfig = field(default_factory=KdConfig)
    sim: SimConfig = field(default_factory=SimConfig)
    fuse: FuseConfig = field(default_factory=FuseConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    sc: ScConfig = field(default_factory=ScConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainSection = field(default_factory=TrainSection)
    eval: EvalConfig = field(default_factory=EvalConfig)
    export: ExportSection = field(default_factory=ExportSection)
    infer: InferSection = field(default_factory=InferSection)


def _attribute(key: str) -> str:
    return "global_" if key == "global" else key


def _key(attribute: str) -> str:
    return attribute.rstrip("_")


def _convert(key: str, value: Any, kind: Any) -> Any:
    """Check ``value`` (a TOML value or the text after ``=``) against the field's type."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UsageError(f"{key}={value!r} is not one of {', '.join(get_args(kind))}.")
        return value
    if kind is bool:
        if value in (True, False):
            return value
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise UsageError(f"{key}={value!r} is neither true nor false.")
    if isinstance(value, (bool, list, dict)):
        raise UsageError(f"{key}={value!r} is not a {kind.__name__}.")
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{key}={value!r} is not a {kind.__name__}.") from None


def _replace(section: Any, path: tuple[str, ...], value: Any, key: str) -> Any:
    hints = get_type_hints(type(section))
    attribute = _attribute(path[0])
    if attribute not in hints:
        known = ", ".join(_key(name) for name in hints)
        raise UsageError(f"unknown configuration key {key!r}: {path[0]!r} is not one of {known}.")
    current = getattr(section, attribute)
    if dataclasses.is_dataclass(current):
        if len(path) == 1:
            raise UsageError(f"{key!r} is a table; set one of its keys, e.g. {key}.{_key(fields_of(current)[0])}.")
        new = _replace(current, path[1:], value, key)
    elif len(path) > 1:
        raise UsageError(f"unknown configuration key {key!r}: {'.'.join(path[:1])!r} has no keys of its own.")
    else:
        new = _convert(key, value, hints[attribute])
    return dataclasses.replace(section, **{attribute: new})


def fields_of(section: Any) -> list[str]:
    """Attribute names of a configuration dataclass, in order."""
    return [item.name for item in dataclasses.fields(section)]


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Return ``config`` with dotted keys replaced; UsageError names an unknown key or a bad value."""
    for key, value in values.items():
        config = _replace(config, tuple(key.split(".")), value, key)
    return config


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """``["loss.name=db"]`` -> ``{"loss.name": "db"}``."""
    values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text!r} is not of the form key=value, e.g. --set train.stage1.epochs=5.")
        values[key.strip()] = value.strip()
    return values


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested TOML tables -> dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def as_table(section: Any) -> dict[str, Any]:
    """A configuration dataclass as nested plain values, ready for TOML or JSON."""
    table = {}
    for name in fields_of(section):
        value = getattr(section, name)
        table[_key(name)] = as_table(value) if dataclasses.is_dataclass(value) else value
    return table


def read_toml(path: Path) -> dict[str, Any]:
    """Dotted keys of a TOML file; UsageError names the file and the line that does not parse."""
    try:
        return flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from None


def load_config(
    *, preset: str | None = None, project: Path | None = None, values: Mapping[str, Any] | None = None
) -> Config:
    """Resolve preset, project file and overrides into one Config.

    Args:
        preset: Named on the command line; else the project file's ``preset``; else ``recommended``.
        project: ``hpedge.toml``, read when it exists.
        values: Dotted keys from the command line; they win.
    """
    project_values = read_toml(project) if project and project.is_file() else {}
    values = dict(values or {})
    # A preset in either place names one only: left there, it would overwrite the name without its settings.
    named, projects = values.pop("preset", None), project_values.pop("preset", None)
    chosen = preset or named or projects or "recommended"
    if chosen not in PRESETS:
        raise UsageError(f"preset {chosen!r} is not one of {', '.join(PRESETS)}.")
    config = override(Config(preset=chosen), PRESETS[chosen])
    requested = override(override(config, project_values), values)
    if requested.data.path == DEMO:
        config = override(config, demo_overrides(chosen, [*project_values, *values]))
        requested = override(override(config, project_values), values)
    return validate(requested)


def validate(config: Config) -> Config:
    """Return ``config`` as it is; UsageError names the first value out of its range."""
    _check_signs(config)
    for key, value in {"fuse.alpha": config.fuse.alpha, "data.val_fraction": config.data.val_fraction}.items():
        if not 0 <= value <= 1:
            raise UsageError(f"{key}={value} must lie in [0, 1].")
    if not 0 <= config.train.ema < 1:
        raise UsageError(f"train.ema={config.train.ema} must lie in [0, 1); 0 turns it off.")
    _check_word_or_number("kd.weight", config.kd.weight, ("auto", "0"))
    _check_word_or_number("sim.logit_scale", config.sim.logit_scale, ("learn",))
    _check_word_or_number("loss.pos_scale", config.loss.pos_scale, ("eq14", "one_plus", "none"))
    return config


def _check_signs(config: Config) -> None:
    positive = {
        "train.batch_size": config.train.batch_size,
        "train.stage2.lr": config.train.stage2.lr,
        "prompt.length": config.prompt.length,
    }
    for key, value in positive.items():
        if not value > 0:
            raise UsageError(f"{key}={value} must be positive.")
    for key, value in {
        "seed": config.seed,
        "fuse.topk": config.fuse.topk,
        "kd.patches": config.kd.patches,
        "sc.weight": config.sc.weight,
        "train.stage1.lr": config.train.stage1.lr,
        "train.stage1.head_lr_mult": config.train.stage1.head_lr_mult,
        "train.stage1.weight_decay": config.train.stage1.weight_decay,
        "train.stage1.epochs": config.train.stage1.epochs,
        "train.stage2.head_lr_mult": config.train.stage2.head_lr_mult,
        "train.stage2.weight_decay": config.train.stage2.weight_decay,
        "train.stage2.epochs": config.train.stage2.epochs,
        "student.image_size": config.student.image_size,
        "train.threads": config.train.threads,
        "eval.bootstrap": config.eval.bootstrap,
        "export.int8_budget": config.export.int8_budget,
    }.items():
        # Written so that nan is refused too.
        if not value >= 0:
            raise UsageError(f"{key}={value} must not be negative.")


def _check_word_or_number(key: str, value: str, words: tuple[str, ...]) -> None:
    if value in words:
        return
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf or (number == 0 and "0" in words)):
        raise UsageError(f"{key}={value!r} is neither {' nor '.join(words)} nor a positive number.")
