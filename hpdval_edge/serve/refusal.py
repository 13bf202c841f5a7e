"""A request that is not served: its status and one sentence."""

from starlette.responses import JSONResponse

from hpdval_edge.errors import HpedgeError, MissingDependency


class Refusal(Exception):
    """Answered with ``status`` and {"error": sentence}; ``retry_after``, in seconds, where trying again may help."""

    def __init__(self, status: int, sentence: str, *, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after

    def response(self) -> JSONResponse:
        """The refusal as an HTTP response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": self.sentence}, self.status, headers)


def refusal_of(error: HpedgeError) -> Refusal:
    """What a request is told of an error of its own making (422), or of something that is missing here (503)."""
    return Refusal(503 if isinstance(error, MissingDependency) else 422, str(error))
