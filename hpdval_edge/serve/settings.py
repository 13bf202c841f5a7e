"""What a server is told when it starts, and what it then refuses."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from hpdval_edge.errors import UsageError

TOKEN_VARIABLE = "HPEDGE_TOKEN"
SHORTEST_TOKEN = 16
# Value of --run.
OWN_RUN = "own"


@dataclass(frozen=True, slots=True)
class Settings:
    """Address, access and limits of a server.

    token: what clients must send as ``Authorization: Bearer``; None lets everyone in. hosts: names beside addresses and
    this machine's own that a request may be addressed to. edit: whether labels may be edited. key: the public one that
    files of new labels must be signed with; without it none is taken. run: whose text encoder embeds new names, OWN_RUN
    being the bundle's; None lets none be added by name.

    max_bytes: of a request's body. max_held_bytes: of all bodies in memory. max_pixels: of a picture. max_pictures: of
    a request. max_queue: pictures admitted and not yet answered. max_batch: pictures an engine call takes. max_wait:
    seconds a picture waits for others to share its call. body_timeout: seconds for a head to arrive, and for a body.
    timeout: seconds from there to the answer. edit_timeout: seconds from there to the end of an edit of labels.
    decoders: threads that decode. poll: seconds between looks at the bundle on disk.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    hosts: tuple[str, ...] = ()
    edit: bool = False
    key: Path | None = None
    run: str | None = None
    max_bytes: int = 32 << 20
    max_held_bytes: int = 256 << 20
    max_pixels: int = 50_000_000
    max_pictures: int = 32
    max_queue: int = 64
    max_batch: int = 8
    max_wait: float = 0.002
    body_timeout: float = 30.0
    timeout: float = 30.0
    edit_timeout: float = 120.0
    decoders: int = 2
    poll: float = 1.0

    def __post_init__(self) -> None:
        if self.max_pictures > self.max_queue:
            raise UsageError(
                f"a request may hold {self.max_pictures} pictures, but --max-queue {self.max_queue} never has room for "
                "them; raise it."
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def longest_request(self) -> float:
        """Seconds in which every request is answered, be it to refuse it."""
        return self.body_timeout + max(self.timeout, self.edit_timeout if self.edit else 0)


def read_token(file: Path | None) -> str | None:
    """The token in ``file``, else in the environment variable HPEDGE_TOKEN, else None.

    Raises:
        UsageError: the file cannot be read; the token is too short or holds spaces or letters beyond ASCII.
    """
    if file is None:
        text, source = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if text is None:
            return None
    else:
        source = str(file)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {file} cannot be read ({error}).") from None
    token = text.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or len(token.split()) != 1:
        raise UsageError(
            f"the token in {source} must be one word of at least {SHORTEST_TOKEN} ASCII characters; "
            "`openssl rand -hex 32` makes one."
        )
    return token
