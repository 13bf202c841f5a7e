"""Named sets of configuration values (METHOD section 13) and what the built-in demo set needs."""

from collections.abc import Iterable
from typing import Any

DEMO = "demo"
# Chosen on the demo's validation split (docs/benchmarks.md): its objects are small, its student a small CNN.
DEMO_STUDENT = {
    "fuse.topk": 4,
    "train.stage1.lr": 1e-3,
    "train.stage2.lr": 2e-3,
}
# What presets paper and release have in common, and recommended has otherwise.
PRINTED = {
    "kd.weight": "1",
    "loss.kappa": 0.05,
    "prompt.residual": False,
    "train.stage1.lr": 1e-5,
    "train.stage2.lr": 5e-6,
    "train.stage1.head_lr_mult": 1.0,
    "train.wise": "off",
}
PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "paper": {
        **PRINTED,
        "student.name": "vit_base_patch16_224.augreg_in1k",
        "student.init": "imagenet",
        "student.embed": "mlp2",
        "fuse.topk": 32,
        "loss.rebalance": "class",
        "loss.pos_scale": "eq14",
        "prompt.init": "gaussian",
        "sc.target": "global",
        "train.ema": 0.0,
        "eval.select": "last",
    },
    "release": {
        **PRINTED,
        "student.init": "clip",
        "student.embed": "clip_proj",
        "sim.kind": "l2class",
        "sim.logit_scale": "1",
        "fuse.alpha": 0.6,
        "fuse.topk": 32,
        "loss.rebalance": "instance",
        "loss.kappa_mode": "code",
        "loss.pos_scale": "10",
        "loss.focal": "batch",
        "prompt.init": "words",
        "sc.target": "local",
        "train.stage2.lr": 1e-5,
        "train.batch_size": 16,
        "data.aug": "strong",
    },
}


def demo_overrides(preset: str, given: Iterable[str]) -> dict[str, Any]:
    """What the built-in demo set needs: its own teacher, no download, and, for the student that follows, DEMO_STUDENT.

    Args:
        given: keys that the user set; whoever names a teacher or a student of their own gets the preset's settings.
    """
    needs = {"teacher.spec": DEMO, "student.name": "auto", "student.init": "auto"}
    own = preset != "recommended" or not needs.keys().isdisjoint(given)
    return needs if own else needs | DEMO_STUDENT
