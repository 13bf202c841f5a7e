"""Errors of libav in words, without the address that PyAV puts into them."""

import av

from hpdval_edge.errors import BadData, HpedgeError, UsageError
from hpdval_edge.sources.addresses import host, masked, scheme
from hpdval_edge.sources.live import Lost

_REASONS = {
    av.InvalidDataError: "no video in a format that is known",
    av.error.ExitError: "no answer in time",
    av.error.EOFError: "it ends at once",
}


def reason(error: BaseException) -> str:
    """What is wrong, in libav's words where there are no better ones."""
    for class_, words in _REASONS.items():
        if isinstance(error, class_):
            return words
    return getattr(error, "strerror", None) or type(error).__name__


def connection_error(error: av.FFmpegError | OSError, address: str) -> HpedgeError:
    """What a stream that cannot be opened means; ``Lost`` where trying again may help."""
    name, server = masked(address), host(address)
    if isinstance(error, av.error.HTTPUnauthorizedError):
        given = f"{scheme(address)}://user:password@{server}"
        return UsageError(f"{name}: the server wants a name and a password, give them as in {given}.")
    if isinstance(error, av.error.HTTPForbiddenError):
        return UsageError(f"{name}: the server refuses this user; check the name and the password.")
    if isinstance(error, av.error.HTTPNotFoundError):
        return UsageError(f"{name}: {server} is there but has no such stream; check what follows the host's name.")
    if isinstance(error, av.InvalidDataError) and scheme(address) in ("rtsp", "rtsps"):
        # As a camera does that is starting.
        return Lost(f"{name}: {server} does not answer as a server of RTSP; check the address and the port.")
    if isinstance(error, av.InvalidDataError):
        return BadData(f"{name}: what the server sends is no video in a format that is known.")
    if isinstance(error, av.error.ProtocolNotFoundError):
        return UsageError(f"{name}: this build of PyAV does not speak the protocol.")
    if isinstance(error, ConnectionRefusedError):
        return Lost(f"{name}: {server} refuses connections; check that the camera or server runs, and its port.")
    return Lost(f"{name}: {server} cannot be reached ({reason(error)}); check the address and the network.")
