"""Results as HTTP POSTs of JSON."""

import http.client
import ssl

from hpdval_edge import __version__
from hpdval_edge.outputs.delivery import Away, Refused
from hpdval_edge.outputs.messages import Messages, message_output, secret, split_url
from hpdval_edge.outputs.output import ModelInfo

TIMEOUT = 10.0
# Answers that ask to come again; other than those and 2xx are refusals.
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class Webhook:
    """One connection, kept open from POST to POST.

    token: sent as ``Authorization: Bearer``.
    """

    def __init__(self, url: str, token: str | None, timeout: float = TIMEOUT) -> None:
        parts = split_url(url)
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.headers = {"Content-Type": "application/json", "User-Agent": f"hpedge/{__version__}"}
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self.connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=context)
        else:
            self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def send(self, message: bytes) -> None:
        """POST one message; Away and Refused as Delivery wants them."""
        try:
            self.connection.request("POST", self.path, message, self.headers)
            answer = self.connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            raise Away(f"no answer ({error or type(error).__name__})") from error
        if answer.status in TRY_AGAIN:
            raise Away(f"answered {answer.status} {answer.reason}")
        if not 200 <= answer.status < 300:
            raise Refused(f"answered {answer.status} {answer.reason}")


def open_webhook(url: str, model: ModelInfo) -> Messages:
    """POST to ``url``, with the token in HPEDGE_WEBHOOK_TOKEN, or in the file HPEDGE_WEBHOOK_TOKEN_FILE, if any."""
    webhook = Webhook(url, secret("HPEDGE_WEBHOOK_TOKEN"))
    return message_output(url, webhook.send, webhook.connection.close, model)
