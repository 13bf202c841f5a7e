"""How a run's configuration differs from the paper's."""

from dataclasses import dataclass
from typing import Any

from hpdval_edge.config import Config, as_table, flatten, load_config
from hpdval_edge.config_keys import FREE_KEYS, PLACE_KEYS, among, same_value

LEFT_OUT = ("preset", *PLACE_KEYS, *FREE_KEYS)
# 0 or an empty text stands for "chosen when training starts" there.
AUTOMATIC = ("student.image_size", "student.weights", "fuse.topk", "train.stage1.lr", "train.stage1.head_lr_mult",
             "train.stage2.head_lr_mult")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """One key with the paper's value and this run's, as texts."""

    key: str
    paper: str
    here: str


def differences(config: Config) -> list[Difference]:
    """Every key of the method that this run sets otherwise than preset ``paper``."""
    # Any data but the demo set, whose teacher and student the paper knows nothing of.
    paper = flatten(as_table(load_config(preset="paper", values={"data.path": "any"})))
    here = flatten(as_table(config))
    return [
        Difference(key, _text(key, paper[key]), _text(key, here[key]))
        for key in here
        if not same_value(paper[key], here[key]) and not among(key, LEFT_OUT)
    ]


def _text(key: str, value: Any) -> str:
    if key in AUTOMATIC and value in (0, ""):
        return "automatic"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
