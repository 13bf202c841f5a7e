"""Request bodies: counted and timed while they arrive, then taken apart. They are kept in memory, never on disk."""

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from hpdval_edge.serve.refusal import Refusal
from hpdval_edge.serve.schema import ClassifyRequest, Options, Strict, parse
from hpdval_edge.serve.settings import Settings

JSON, MULTIPART = "application/json", "multipart/form-data"
# Options that a form may repeat.
REPEATED = ("heat_map",)
MOST_FIELDS = 64
# Of a JSON body; the longest that is of use is a new order of all labels.
MOST_VALUES = 100_000
Model = TypeVar("Model", bound=Strict)


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture's file as it came; ``name`` is the client's, or its number."""

    name: str
    data: bytes


class _InMemoryParser(MultiPartParser):
    # 0 keeps every file in memory: bodies are bounded, and a full disk is then no concern of a server.
    spool_max_size = 0


class Intake:
    """Lets bodies in as far as there is room for them; ``held`` bytes are in memory now."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.held = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """The body's chunks, to be read once inside the block, after which its memory counts as free.

        Raises:
            Refusal: 413 too large, 408 too slow, 400 left unfinished by the client, 429 too much is held already.
        """
        declared = request.headers.get("content-length", "0")
        # The HTTP parser has refused a Content-Length that is no number.
        self._check_size(int(declared) if declared.isdigit() else 0)
        size = [0]
        try:
            yield self._chunks(request, size)
        finally:
            self.held -= size[0]

    def _check_size(self, size: int) -> None:
        if size > self.settings.max_bytes:
            raise Refusal(
                413, f"the request is larger than {self.settings.max_bytes} bytes; send fewer or smaller pictures."
            )

    async def _chunks(self, request: Request, size: list[int]) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.settings.body_timeout
        stream = request.stream()
        while True:
            try:
                chunk = await asyncio.wait_for(anext(stream), end - loop.time())
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError:
                raise Refusal(
                    408, f"the request's body did not arrive within {self.settings.body_timeout:g} s."
                ) from None
            except ClientDisconnect:
                raise Refusal(400, "the client left before the request was complete.") from None
            size[0] += len(chunk)
            self.held += len(chunk)
            self._check_size(size[0])
            if self.held > self.settings.max_held_bytes:
                raise Refusal(429, "too many requests are being read; try again in 1 s.", retry_after=1)
            yield chunk


def media_type(request: Request) -> str:
    """The request's, one of JSON and MULTIPART; else Refusal 415."""
    found = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if found not in (JSON, MULTIPART):
        raise Refusal(415, f"Content-Type {found or 'missing'!r} is neither {MULTIPART} nor {JSON}.")
    return found


async def read_form(
    request: Request, chunks: AsyncGenerator[bytes, None], files: int
) -> tuple[list[Upload], dict[str, list[str]]]:
    """The files of a multipart body, at most ``files`` of them, and its fields; Refusal 400 where it is damaged."""
    parser = _InMemoryParser(request.headers, chunks, max_files=files, max_fields=MOST_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise Refusal(413, f"a request may hold {files} files and {MOST_FIELDS} fields.") from None
        raise Refusal(400, f"the multipart body is damaged ({error.message.rstrip('.')}).") from None
    uploads: list[Upload] = []
    fields: dict[str, list[str]] = {}
    try:
        for key, value in form.multi_items():
            if isinstance(value, UploadFile):
                uploads.append(Upload(value.filename or str(len(uploads) + 1), await value.read()))
            else:
                fields.setdefault(key, []).append(value)
    finally:
        await form.close()
    return uploads, fields


def form_options(fields: dict[str, list[str]]) -> Options:
    """Options from a form's fields; Refusal 422 for one that is unknown, wrong, or repeated without a meaning."""
    values: dict[str, Any] = {}
    for key, given in fields.items():
        if key not in REPEATED and len(given) > 1:
            raise Refusal(422, f"{key} is given {len(given)} times; send it once.")
        values[key] = given if key in REPEATED else given[0]
    return parse(Options, values)


async def read_body(chunks: AsyncGenerator[bytes, None]) -> bytes:
    """All of a body that is no form."""
    return b"".join([chunk async for chunk in chunks])


def parse_json(body: bytes, model: type[Model]) -> Model:
    """A JSON body as ``model``. Takes long: not for the event loop.

    Raises:
        Refusal: 400 it is no JSON, 413 it has more than MOST_VALUES, 422 it is no ``model``.
    """
    # The parser lets no other thread run: over many small values for seconds, over a long text hardly at all.
    if body.count(b",") > MOST_VALUES:
        raise Refusal(413, f"the body holds more than {MOST_VALUES} values; send several requests.")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON ({error}).") from None
    return parse(model, value)


def json_uploads(body: bytes) -> tuple[list[Upload], Options]:
    """Pictures and options of a ClassifyRequest in JSON; errors as `parse_json`, and 422 for what is no base64."""
    request = parse_json(body, ClassifyRequest)
    uploads = []
    for number, picture in enumerate(request.pictures, 1):
        name = picture.name or str(number)
        try:
            uploads.append(Upload(name, base64.b64decode(picture.data, validate=True)))
        except (binascii.Error, ValueError) as error:
            raise Refusal(422, f"{name}: data is not base64 ({error}).") from None
    return uploads, Options(**request.model_dump(exclude={"pictures"}))
