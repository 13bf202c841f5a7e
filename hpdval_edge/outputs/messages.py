"""Outputs that a URL names: ``--to mqtt://…``, ``--to https://…``, and those of other packages."""

import json
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from hpdval_edge.errors import UsageError
from hpdval_edge.outputs.delivery import Delivery
from hpdval_edge.outputs.output import ModelInfo, Output, Result
from hpdval_edge.outputs.record import record
from hpdval_edge.sources.addresses import masked, scheme, split_address

# Group of entry points: a name is the scheme of a URL, its object is called with the URL and a ModelInfo.
GROUP = "hpedge.outputs"
BUILT_IN = {
    "mqtt": "hpdval_edge.outputs.mqtt:open_mqtt",
    "mqtts": "hpdval_edge.outputs.mqtt:open_mqtt",
    "http": "hpdval_edge.outputs.webhook:open_webhook",
    "https": "hpdval_edge.outputs.webhook:open_webhook",
}


class Messages:
    """Each result's record as a JSON message of a Delivery."""

    pictures = False

    def __init__(self, delivery: Delivery, model: ModelInfo) -> None:
        self.delivery = delivery
        self.model = model

    def write(self, result: Result) -> None:
        """Queue the message."""
        self.delivery.put(json.dumps(record(result, self.model)).encode())

    def close(self) -> None:
        """Send what is queued, within the delivery's time."""
        self.delivery.close()


def check_arrival(outputs: Sequence[Output]) -> None:
    """After all are closed: raise MissingDependency for the first receiver that took none of its messages."""
    for output in outputs:
        if isinstance(output, Messages):
            output.delivery.check()


def open_output(url: str, model: ModelInfo) -> Output:
    """The output that the scheme of ``url`` stands for.

    Raises:
        UsageError: no such scheme, or a URL that its output refuses. MissingDependency: its package is not installed.
    """
    kind = scheme(url)
    if kind in BUILT_IN:
        module, name = BUILT_IN[kind].split(":")
        return getattr(import_module(module), name)(url, model)
    others = entry_points(group=GROUP)
    if kind not in others.names:
        known = ", ".join(f"{name}://" for name in sorted({*BUILT_IN, *others.names}))
        raise UsageError(f"--to {without_secrets(url)} begins with none of {known}.")
    return others[kind].load()(url, model)


def split_url(url: str) -> SplitResult:
    """The parts of ``url``.

    Raises:
        UsageError: it holds a password, which every user of the machine could read, no host or no proper port.
    """
    shown = f"--to {without_secrets(url)}"
    parts = split_address(url, shown)
    if parts.password is not None:
        raise UsageError(
            f"{shown} holds a password, which the list of processes shows to everyone; set it in the environment."
        )
    return parts


def without_secrets(url: str) -> str:
    """``url`` without the user, the password and the query, for people to read."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return masked(url.partition("?")[0])
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def secret(name: str) -> str | None:
    """The environment's ``name``, or the content of the file that ``name_FILE`` is the path of; None without either."""
    if name in os.environ:
        return os.environ[name]
    path = os.environ.get(f"{name}_FILE")
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}_FILE={path} cannot be read ({error}).") from error


def message_output(url: str, send: Callable[[bytes], None], stop: Callable[[], None], model: ModelInfo) -> Messages:
    """Messages that ``send`` delivers to ``url``; see Delivery."""
    return Messages(Delivery(without_secrets(url), send, stop), model)
