"""``hpedge serve``."""

from pathlib import Path
from typing import Annotated

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import MOST_THREADS

# Of options that are no whole numbers, in their units: as good as no limit, and never infinite.
MOST = 1e6


def serve(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle; else the last export.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.", min=0, max=65535)] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send; else HPEDGE_TOKEN, else none.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name by which browsers reach this server; repeatable.")
    ] = None,
    edit: Annotated[bool, typer.Option("--edit", help="Let labels be edited.")] = False,
    key: Annotated[Path | None, typer.Option(help="Public key of files of new labels, see `hpedge labels`.")] = None,
    run: Annotated[
        str | None, typer.Option(help="The run that embeds new names; 'own' is the one the bundle is from.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="As for `hpedge infer`.")] = None,
    threads: Annotated[
        int, typer.Option(help="CPU threads of the engine, 0 for its choice.", min=0, max=MOST_THREADS)
    ] = 0,
    decoders: Annotated[int, typer.Option(help="Threads that decode pictures.", min=1, max=MOST_THREADS)] = 2,
    max_batch: Annotated[int, typer.Option(help="Pictures an engine call takes.", min=1)] = 8,
    max_wait: Annotated[float, typer.Option(help="Milliseconds a picture waits for others.", min=0, max=MOST)] = 2.0,
    max_queue: Annotated[int, typer.Option(help="Pictures in work; beyond, clients get 429.", min=1)] = 64,
    max_pictures: Annotated[int, typer.Option(help="Pictures of a request.", min=1)] = 32,
    max_size: Annotated[float, typer.Option(help="Megabytes of a request.", min=0.001, max=MOST)] = 32.0,
    max_pixels: Annotated[float, typer.Option(help="Millions of pixels of a picture.", min=0.001, max=MOST)] = 50.0,
    timeout: Annotated[
        float, typer.Option(help="Seconds to receive a request, and again to answer.", min=0.1, max=MOST)
    ] = 30.0,
    edit_timeout: Annotated[float, typer.Option(help="Seconds for an edit of labels.", min=0.1, max=MOST)] = 120.0,
) -> None:
    """Serve a bundle over HTTP, with a page to try it on: drop a picture, or use the camera.

    POST /v1/classify takes pictures, GET /v1/labels, /healthz, /metrics and /openapi.json tell the rest; see
    docs/serve.md.

    Examples:

      hpedge serve

      hpedge serve birds.hpedge --port 9000 --edit

      hpedge serve birds.hpedge --host 0.0.0.0 --token-file token.txt
    """
    module = import_from("serve", "serve.run")
    from hpdval_edge.config import PROJECT_FILE, load_config
    from hpdval_edge.infer import last_export
    from hpdval_edge.predictor import Predictor
    from hpdval_edge.serve.settings import Settings, read_token

    settings = Settings(
        host=host,
        port=port,
        token=read_token(token_file),
        hosts=tuple(allow_host or ()),
        edit=edit,
        key=key,
        run=run,
        max_bytes=round(max_size * 1e6),
        max_pixels=round(max_pixels * 1e6),
        max_pictures=max_pictures,
        max_queue=max_queue,
        max_batch=max_batch,
        max_wait=max_wait / 1000,
        body_timeout=timeout,
        timeout=timeout,
        edit_timeout=edit_timeout,
        decoders=decoders,
    )
    if backend is None:
        backend = load_config(project=Path(PROJECT_FILE)).infer.backend
    module.serve(Predictor(bundle or last_export(), backend, threads=threads), settings)
