"""The HTTP API and the page as one FastAPI application."""

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hpdval_edge import __version__
from hpdval_edge.labels import list_labels, remove_labels, rename_labels, reorder_labels
from hpdval_edge.predictor import Predictor
from hpdval_edge.serve import schema
from hpdval_edge.serve.additions import add_by_file, add_by_name, not_by_file, not_by_name
from hpdval_edge.serve.guard import Guard
from hpdval_edge.serve.intake import (
    JSON,
    MULTIPART,
    Intake,
    form_options,
    json_uploads,
    media_type,
    parse_json,
    read_body,
    read_form,
)
from hpdval_edge.serve.metrics import Metrics
from hpdval_edge.serve.refusal import Refusal
from hpdval_edge.serve.service import Service
from hpdval_edge.serve.settings import Settings

PAGE = files("hpdval_edge.serve") / "page"
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
ERRORS = {
    400: "The body is damaged, or the Host header names another server.",
    401: "The token is missing or wrong.",
    403: "Edits are off, or a page of another origin asks.",
    408: "The body did not arrive in time.",
    413: "Too large, or too many pictures.",
    415: "Another Content-Type than those below.",
    422: "An option, a label or a picture is wrong.",
    429: "The queue is full; Retry-After says when to try again.",
    503: "Something is missing on the server, or it is shutting down.",
    504: "No answer in time.",
}


def create_app(predictor: Predictor, settings: Settings) -> FastAPI:
    """The application; it begins to answer when its lifespan does."""
    metrics = Metrics()
    service, intake = Service(predictor, settings, metrics), Intake(settings)
    metrics.held.set_function(lambda: intake.held)
    metrics.info.info(
        {"version": __version__, "bundle": predictor.bundle.manifest.name, "backend": predictor.engine.name}
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    # FastAPI's pages of documentation load their scripts from elsewhere.
    app = FastAPI(
        title="hpedge serve",
        version=__version__,
        description=f"Labels of pictures by the bundle {predictor.bundle.manifest.name}.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _refused_by_framework)
    app.add_exception_handler(Exception, _failed)
    _add_classify(app, service, intake)
    _add_labels(app, service, intake)
    _add_watching(app, service)
    _add_page(app)
    known = [route.path for route in app.routes]
    app.add_middleware(Guard, settings=settings, metrics=metrics, known=known, open_=("/", "/page/", "/healthz"))
    return app


async def _refused(_: Request, refusal: Refusal) -> Response:
    return refusal.response()


async def _refused_by_framework(request: Request, error: HTTPException) -> Response:
    sentences = {
        404: f"there is no {request.url.path} here; /openapi.json says what there is.",
        405: f"{request.url.path} does not take {request.method}; /openapi.json says what it takes.",
    }
    return JSONResponse(
        {"error": sentences.get(error.status_code, str(error.detail))}, error.status_code, error.headers
    )


async def _failed(_: Request, __: Exception) -> Response:
    return Refusal(500, "the server failed; its log says why.").response()


def _responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": schema.ErrorAnswer, "description": ERRORS[code]} for code in (*codes, 400, 401)}


def _body(form: type[schema.Strict] | None, json: type[schema.Strict] | None) -> dict[str, Any]:
    """The OpenAPI description of a body that is read by hand, so that it can be refused while it arrives."""
    content = {
        kind: {"schema": model.model_json_schema()} for kind, model in ((MULTIPART, form), (JSON, json)) if model
    }
    return {"requestBody": {"required": True, "content": content}}


def _add_classify(app: FastAPI, service: Service, intake: Intake) -> None:
    @app.post(
        "/v1/classify",
        summary="Labels of one picture or several",
        response_model=schema.ClassifyAnswer,
        responses=_responses(403, 408, 413, 415, 422, 429, 503, 504),
        openapi_extra=_body(schema.ClassifyForm, schema.ClassifyRequest),
    )
    async def classify(request: Request) -> Response:
        if service.queue.full:
            # Before a body is read that could not be served anyway.
            raise service.queue.busy()
        kind = media_type(request)
        async with intake.body(request) as chunks:
            if kind == MULTIPART:
                uploads, fields = await read_form(request, chunks, service.settings.max_pictures)
                options = form_options(fields)
            else:
                body = await read_body(chunks)
                uploads, options = await service.in_pool(lambda: json_uploads(body))
            return Response(await service.classify(uploads, options), media_type=JSON)


def _add_labels(app: FastAPI, service: Service, intake: Intake) -> None:
    def listed() -> schema.LabelsAnswer:
        predictor = service.predictor
        bundle = predictor.bundle
        return schema.LabelsAnswer(
            bundle=bundle.manifest.name,
            backend=predictor.engine.name,
            precision=bundle.manifest.precision,
            edit=service.settings.edit,
            not_by_name=not_by_name(service.settings),
            not_by_file=not_by_file(service.settings),
            labels=[
                schema.LabelEntry(label=row.name, threshold=row.threshold, fitted=row.fitted)
                for row in list_labels(bundle)
            ],
        )

    @app.get("/v1/labels", summary="The labels, their thresholds, and whether they may be edited")
    async def labels() -> schema.LabelsAnswer:
        return listed()

    async def parsed(chunks: AsyncGenerator[bytes, None], model: type[schema.Strict]) -> Any:
        body = await read_body(chunks)
        return await service.in_pool(lambda: parse_json(body, model))

    def add_edit(name: str, summary: str, model: type[schema.Strict], change: Callable[[Any, Any], object]) -> None:
        async def edit(request: Request) -> schema.LabelsAnswer:
            if media_type(request) != JSON:
                raise Refusal(415, f"Content-Type must be {JSON} here.")
            async with intake.body(request) as chunks:
                wanted = await parsed(chunks, model)
            await service.editor.edit(lambda bundle: lambda: change(bundle, wanted))
            return listed()

        described(name, summary, _body(None, model))(edit)

    def described(name: str, summary: str, body: dict[str, Any]) -> Callable[[Any], Any]:
        responses = _responses(403, 408, 413, 415, 422, 503, 504)
        return app.post(f"/v1/labels/{name}", name=name, summary=summary, responses=responses, openapi_extra=body)

    @described("add", "Add labels by name, or by a signed file", _body(schema.LabelsForm, schema.LabelList))
    async def add(request: Request) -> schema.LabelsAnswer:
        kind = media_type(request)
        async with intake.body(request) as chunks:
            if kind == MULTIPART:
                uploads, _ = await read_form(request, chunks, 1)
                await service.editor.edit(lambda bundle: add_by_file(bundle, uploads, service.settings))
            else:
                wanted = await parsed(chunks, schema.LabelList)
                await service.editor.edit(lambda bundle: add_by_name(bundle, wanted.labels, service.settings))
        return listed()

    add_edit("rename", "Call labels by other names", schema.RenameRequest, lambda b, w: rename_labels(b, w.names))
    add_edit("remove", "Drop labels", schema.LabelList, lambda b, w: remove_labels(b, w.labels))
    add_edit(
        "reorder",
        "Put labels first, in this order; the others follow as they were",
        schema.LabelList,
        lambda b, w: reorder_labels(b, w.labels),
    )


def _add_watching(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Whether the engine runs", responses={503: {"model": schema.ErrorAnswer}})
    async def healthz() -> schema.Health:
        if not service.queue.alive:
            raise Refusal(503, "the engine's queue has ended.")
        return schema.Health(status="ok")

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    """The page's files, read once; the browser asks whether its copies are still right."""
    for file in PAGE.iterdir():
        kind = MEDIA_TYPES[file.name.rsplit(".", 1)[-1]]
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        app.get(path, include_in_schema=False)(_static(file.read_bytes(), kind))


def _static(content: bytes, kind: str) -> Callable[[Request], Any]:
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"', "Cache-Control": "no-cache"}

    async def static(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return static
