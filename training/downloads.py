"""Published weights, downloaded by open_clip and timm: quiet, and without a minute of retries when offline."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

from hpdval_edge.errors import MissingDependency


def reachable(address: str) -> bool:
    """Whether the host of a URL has an address; with a proxy that is the proxy's business, and True."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(address).hostname, None)
    except OSError:
        return False
    return True


@contextmanager
def downloading(what: str, *, remedy: str) -> Iterator[None]:
    """Download ``what`` inside; a file that was downloaded before is found without a network.

    Raises:
        MissingDependency: it could not be had; the sentence ends with ``remedy``.
    """
    offline, disabled = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    online = not offline and reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = not online
    logging.disable(logging.CRITICAL)
    try:
        yield
    except (RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[0][:200].rstrip(".:") if online else "no network"
        raise MissingDependency(f"{what} could not be downloaded ({reason}); {remedy}.") from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.disable(disabled)
