"""Configuration keys by what they say of a run; a name that ends in a dot stands for its whole table."""

from collections.abc import Iterable
from typing import Any

# How and where something runs and what is written beside it: no result depends on these.
FREE_KEYS = ("train.device", "train.threads", "data.cache", "eval.report", "export.", "infer.")
# Where the pictures and their lists lie.
PLACE_KEYS = ("data.path", "data.format", "data.images", "data.labels", "data.val", "data.test")


def among(key: str, names: Iterable[str]) -> bool:
    """Whether the dotted ``key`` is one of ``names`` or belongs to a table of them."""
    return any(key.startswith(name) if name.endswith(".") else key == name for name in names)


def same_value(one: Any, other: Any) -> bool:
    """Whether two values of a key mean the same: 1.0, "1" and "1.0" do, since a key that takes words is a text."""
    # Python takes True for 1.
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    try:
        return one == other or float(one) == float(other)
    except (TypeError, ValueError):
        return False
