"""New labels for a bundle that is served: by name, or by a signed file."""

import functools
from collections.abc import Callable, Sequence

from hpdval_edge.bundle import Bundle
from hpdval_edge.commands.extras import import_from
from hpdval_edge.labels import add_labels, check_names
from hpdval_edge.labels_file import unpack_labels
from hpdval_edge.serve.intake import Upload
from hpdval_edge.serve.refusal import Refusal
from hpdval_edge.serve.settings import OWN_RUN, Settings

EDITS_ARE_OFF = "labels cannot be edited here; start the server with --edit."


def not_by_name(settings: Settings) -> str | None:
    """Why a label cannot be added by its name alone, or None."""
    if not settings.edit:
        return EDITS_ARE_OFF
    if settings.run is None:
        return "names are embedded where the run is; start the server there with --run."
    return None


def not_by_file(settings: Settings) -> str | None:
    """Why a file of labels is not taken, or None."""
    if not settings.edit:
        return EDITS_ARE_OFF
    if settings.key is None:
        return "files of labels must be signed; start the server with --key and the public key."
    return None


def load_text_encoder(settings: Settings, bundle: Bundle) -> None:
    """Import what embeds names, and find its run, so that what is missing is told when the server starts.

    Raises:
        MissingDependency: the extra [train]. UsageError: no such run.
    """
    module = import_from("train", "training.text_banks")
    module.bundle_run(bundle, None if settings.run == OWN_RUN else settings.run)


def add_by_name(bundle: Bundle, names: Sequence[str], settings: Settings) -> Callable[[], Bundle]:
    """Embed ``names``; what is returned appends them.

    Raises:
        Refusal: 403 not here. HpedgeError: what `add_labels` and the run refuse.
    """
    if reason := not_by_name(settings):
        raise Refusal(403, reason)
    # Before the teacher is loaded.
    check_names((*bundle.manifest.labels, *names))
    module = import_from("train", "training.text_banks")
    run = module.bundle_run(bundle, None if settings.run == OWN_RUN else settings.run)
    return functools.partial(add_labels, bundle, module.new_labels(run, names))


def add_by_file(bundle: Bundle, uploads: Sequence[Upload], settings: Settings) -> Callable[[], Bundle]:
    """Check a signed file; what is returned appends its labels.

    Raises:
        Refusal: 403 not here, 422 not one file. HpedgeError: a signature or labels that do not fit.
    """
    if reason := not_by_file(settings):
        raise Refusal(403, reason)
    if len(uploads) != 1:
        raise Refusal(422, f"{len(uploads)} files; send one, called 'file'.")
    (upload,) = uploads
    return functools.partial(add_labels, bundle, unpack_labels(upload.data, upload.name, settings.key))
