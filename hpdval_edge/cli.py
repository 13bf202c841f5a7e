"""The ``hpedge`` command: its verbs, its exit codes. Each verb lies in ``commands/``, its docstring is its help."""

import os
import select
import sys
import warnings
from typing import Annotated, Any

import typer

import hpdval_edge
from hpdval_edge.atomic import FULL_DISK
from hpdval_edge.commands.bench import bench
from hpdval_edge.commands.build import build
from hpdval_edge.commands.calibrate import calibrate
from hpdval_edge.commands.complexity import complexity
from hpdval_edge.commands.data import data
from hpdval_edge.commands.doctor import doctor
from hpdval_edge.commands.eval import eval
from hpdval_edge.commands.export import export
from hpdval_edge.commands.infer import infer
from hpdval_edge.commands.kernels import kernels
from hpdval_edge.commands.labels import labels
from hpdval_edge.commands.maps import maps
from hpdval_edge.commands.monitor import monitor
from hpdval_edge.commands.report import report
from hpdval_edge.commands.reproduce import reproduce
from hpdval_edge.commands.serve import serve
from hpdval_edge.commands.sweep import sweep
from hpdval_edge.commands.train import train
from hpdval_edge.errors import HpedgeError, MissingDependency

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a multi-label recogniser with CLIP's help, export it, run it on small boards.",
)
for verb in (train, eval, calibrate, export, build, infer, serve, monitor, bench, doctor):
    app.command()(verb)
for verb in (reproduce, sweep, complexity, report, maps):
    app.command()(verb)
app.add_typer(data, name="data")
app.add_typer(kernels, name="kernels")
app.add_typer(labels, name="labels")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hpedge {hpdval_edge.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


_show_foreign_warning = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Our own warnings are a sentence for people; those of other packages keep their place in the source."""
    if category.__module__.startswith("hpdval_edge"):
        typer.echo(f"hpedge: {message}", err=True)
    else:
        _show_foreign_warning(message, category, *where)


def main() -> None:
    """Entry point: every HpedgeError becomes one line on stderr and its exit code, our warnings become one line."""
    warnings.showwarning = _show_warning
    # Where the caller has closed them, Python has none.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        app(standalone_mode=True)
    except HpedgeError as error:
        typer.echo(f"hpedge: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        typer.echo(f"hpedge: no space left to write {error.filename or 'the output'}; free some disk space.", err=True)
        _drop_output()
        sys.exit(MissingDependency.exit_code)
    except SystemExit as stop:
        # typer ends with exit code 1 and no word at any broken pipe.
        if isinstance(stop.__context__, BrokenPipeError):
            if not _reader_has_left():
                raise stop.__context__ from None
            _drop_output()
            sys.exit(0)
        # typer turns a Ctrl-C into exit code 130 without a word.
        if stop.__context__ and isinstance(stop.__context__.__cause__, KeyboardInterrupt):
            typer.echo("hpedge: interrupted; finished files are kept.", err=True)
        raise


def _reader_has_left() -> bool:
    """Whether what reads our output (head, less) has ended: then nothing failed. Other pipes may break as well."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _drop_output() -> None:
    """Let what stdout still holds go nowhere, so that Python does not fail to write it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
