"""The labels of a bundle: list, add, rename, remove, reorder. The model stays as it is, its text banks are inputs.

Every change writes the bundle in place, whole or not at all, and returns it read anew.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from hpdval_edge.bundle import (
    CARD,
    GOLDEN,
    REFERENCE,
    TEXT,
    TEXT_SPACE,
    THRESHOLDS,
    Bundle,
    Manifest,
    check_current,
    rewrite,
    thresholds_text,
)
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.images import model_input
from hpdval_edge.monitor.reference import read_reference
from hpdval_edge.runtimes import load_engine
from hpdval_edge.watch import load_unchanged

NO_NAME = "no label is named; name one at least."
CARD_COUNT = re.compile(r"(A multi-label image recogniser with )\d+( labels)")
CARD_SECTION = re.compile(r"^## Labels\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
CARD_CHANGED = "Labels were changed after training; the figures above are those of the labels it was trained with."


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A label with the threshold of its cosine; fitted: whether the threshold is its own, from validation pictures."""

    name: str
    threshold: float
    fitted: bool


@dataclass(frozen=True, slots=True)
class NewLabels:
    """Labels to add, n of them.

    text_global, text_local: their text embeddings, float [n, E], of any length but zero. fingerprint: of the text space
    they were made in, see `training.text_banks`; must be the bundle's.
    """

    names: tuple[str, ...]
    text_global: np.ndarray
    text_local: np.ndarray
    fingerprint: str


def list_labels(bundle: Bundle) -> list[LabelRow]:
    """The labels in the order of the scores."""
    rows = zip(bundle.manifest.labels, bundle.thresholds.tolist(), strict=True)
    return [LabelRow(name, threshold, name not in bundle.unfitted) for name, threshold in rows]


def rename_labels(bundle: Bundle, names: Mapping[str, str]) -> Bundle:
    """Call labels by other names, {old: new}; scores and thresholds stay, for their embeddings do.

    Raises:
        UsageError: an unknown label, or a name that is taken or none. More: see `rewrite`.
    """
    _check_known(bundle, names)
    labels = tuple(names.get(label, label) for label in bundle.manifest.labels)
    check_names(labels)
    columns = _Columns.of(bundle)
    short = [{**row, "label": names.get(row["label"], row["label"])} for row in columns.entry.get("short", [])]
    staying = dict(zip(bundle.manifest.labels, labels, strict=True))
    return _write(bundle, labels, replace(columns, entry={**columns.entry, "short": short}), staying)


def remove_labels(bundle: Bundle, names: Sequence[str]) -> Bundle:
    """Drop labels; UsageError for an unknown one, and where none would be left. More: see `rewrite`."""
    _check_known(bundle, names)
    kept = [i for i, label in enumerate(bundle.manifest.labels) if label not in {*names}]
    if not kept:
        raise UsageError(f"bundle {bundle.path} would have no label left; keep one at least.")
    return _pick(bundle, kept)


def reorder_labels(bundle: Bundle, names: Sequence[str]) -> Bundle:
    """Put the named labels first, in this order; the others follow as they were.

    Raises:
        UsageError: an unknown label, or one that is named twice. More: see `rewrite`.
    """
    _check_known(bundle, names)
    check_names(names)
    labels = bundle.manifest.labels
    order = [labels.index(name) for name in names]
    return _pick(bundle, order + [i for i in range(len(labels)) if i not in {*order}])


def add_labels(bundle: Bundle, new: NewLabels) -> Bundle:
    """Append labels that the model was not trained on, with the threshold that all labels share, marked not fitted.

    Their scores on the bundle's golden pictures are those that it gives on the CPU.

    Raises:
        UsageError: a name that is taken or none, or another text space. More: see `rewrite`.
        BadData: embeddings that are none.
    """
    if not new.names:
        raise UsageError(NO_NAME)
    check_names((*bundle.manifest.labels, *new.names))
    check_text_space(bundle, new.fingerprint)
    banks = unit_rows(new, bundle.manifest.embed_dim)
    columns = _Columns.of(bundle)
    entry = columns.entry
    values = [*entry["values"], *[shared_threshold(bundle, entry)] * len(new.names)]
    fitted = [row.fitted for row in list_labels(bundle)] + [False] * len(new.names)
    images, scores = bundle.golden()
    extended = _Columns(
        banks=tuple(np.concatenate(pair) for pair in zip(columns.banks, banks, strict=True)),
        entry={**entry, "values": values, "fitted": fitted},
        counts=[*columns.counts, *[0] * len(new.names)],
        scores=np.concatenate([scores, _golden_scores(bundle, banks, images)], axis=1),
    )
    staying = {label: label for label in bundle.manifest.labels}
    return _write(bundle, (*bundle.manifest.labels, *new.names), extended, staying)


def check_names(names: Sequence[str]) -> None:
    """UsageError for a name that is empty, spans lines, begins or ends in a blank, or comes twice."""
    for name in names:
        if not name or name != name.strip() or not name.isprintable():
            raise UsageError(f"{name!r} is no label name; it takes printable characters, with no blank at either end.")
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise UsageError(f"label {name!r} would be there twice; choose another name.")


def check_text_space(bundle: Bundle, fingerprint: str) -> None:
    """UsageError where the bundle's text banks were not made in the text space of this fingerprint."""
    own = bundle.manifest.provenance.get(TEXT_SPACE)
    if own is None:
        raise UsageError(
            f"bundle {bundle.path} does not say which text space it is of, for it is older than that; export it again "
            "from its run."
        )
    if own != fingerprint:
        raise UsageError(
            f"the new labels were made in text space {fingerprint[:12]}, bundle {bundle.path} is of {own[:12]}: by "
            f"another teacher or other prompts; make them with run {bundle.manifest.provenance.get('run')!r}."
        )


def unit_rows(new: NewLabels, embed_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Both banks as unit rows float32 [n, E]; BadData where they are of another shape, not finite or zero."""
    shape, unit = (len(new.names), embed_dim), []
    for view, bank in (("global", new.text_global), ("local", new.text_local)):
        length = np.linalg.norm(bank, axis=1, keepdims=True) if bank.shape == shape else None
        if length is None or not np.isfinite(length).all() or not (length > 0).all():
            raise BadData(
                f"the {view} text embeddings of the new labels are {bank.dtype} {bank.shape}; finite rows of some "
                f"length are needed, {shape}."
            )
        unit.append((bank / length).astype(np.float32))
    return tuple(unit)


def shared_threshold(bundle: Bundle, entry: Mapping[str, Any]) -> float:
    """What ``hpedge calibrate`` gives to a label that no validation picture shows: the one threshold for all labels.

    Bundles that do not say it take the median of the labels' own.
    """
    if "shared" in entry:
        return float(entry["shared"])
    own = [row.threshold for row in list_labels(bundle) if row.fitted] or bundle.thresholds
    return float(np.median(own))


def card_section(labels: Sequence[str], counts: Sequence[int]) -> str:
    """The model card's section on labels, with their training positives."""
    rows = [f"| {label} | {count} |" for label, count in zip(labels, counts, strict=True)]
    return "\n".join(["## Labels", "", "| label | training positives |", "| --- | ---: |", *rows]) + "\n"


@dataclass(frozen=True, slots=True)
class _Columns:
    """All that a bundle holds per label.

    banks: global and local, float32 [C, E]. entry: of thresholds.json. counts: training positives. scores: golden ones,
    float32 [n, C].
    """

    banks: tuple[np.ndarray, ...]
    entry: dict[str, Any]
    counts: list[int]
    scores: np.ndarray

    @classmethod
    def of(cls, bundle: Bundle) -> "_Columns":
        check_current(bundle)
        entry = json.loads(bundle.read(THRESHOLDS))[bundle.manifest.precision]
        counts = list(bundle.manifest.provenance.get("class_counts", [0] * len(bundle.manifest.labels)))
        return cls((bundle.text_global, bundle.text_local), entry, counts, bundle.golden()[1])


def _pick(bundle: Bundle, order: Sequence[int]) -> Bundle:
    """The bundle with the labels at ``order`` only, in that order."""
    columns, labels = _Columns.of(bundle), bundle.manifest.labels
    fitted = [row.fitted for row in list_labels(bundle)]
    entry = {
        **columns.entry,
        "values": [columns.entry["values"][i] for i in order],
        "fitted": [fitted[i] for i in order],
        "short": [row for row in columns.entry.get("short", []) if row["label"] in {labels[i] for i in order}],
    }
    picked = _Columns(
        banks=tuple(bank[order] for bank in columns.banks),
        entry=entry,
        counts=[columns.counts[i] for i in order],
        scores=columns.scores[:, order],
    )
    kept = tuple(labels[i] for i in order)
    return _write(bundle, kept, picked, {label: label for label in kept})


def _write(bundle: Bundle, labels: tuple[str, ...], columns: _Columns, staying: Mapping[str, str]) -> Bundle:
    """Everything that changes with the labels, together; ``staying`` are the labels that were there, {old: new}."""
    manifest = replace(
        bundle.manifest, labels=labels, provenance={**bundle.manifest.provenance, "class_counts": columns.counts}
    )
    text = {name: np.ascontiguousarray(bank) for name, bank in zip(("global", "local"), columns.banks, strict=True)}
    golden = io.BytesIO()
    np.savez_compressed(golden, images=bundle.golden()[0], scores=columns.scores)
    files = {
        TEXT: save_safetensors(text),
        GOLDEN: golden.getvalue(),
        THRESHOLDS: thresholds_text(manifest, {**columns.entry, "labels": list(labels)}),
    }
    if CARD in manifest.files:
        files[CARD] = _card(bundle.read(CARD).decode("utf-8"), manifest).encode()
    if REFERENCE in manifest.files:
        # For its errors alone.
        read_reference(bundle)
        files[REFERENCE] = _reference(json.loads(bundle.read(REFERENCE)), staying)
    rewrite(bundle, manifest, files)
    return load_unchanged(bundle.path)[1]


def _card(text: str, manifest: Manifest) -> str:
    """The model card with the manifest's labels, where it lists labels at all."""
    section = card_section(manifest.labels, manifest.provenance["class_counts"])
    changed = section.replace("## Labels\n", f"## Labels\n\n{CARD_CHANGED}\n", 1)
    text = CARD_COUNT.sub(rf"\g<1>{len(manifest.labels)}\g<2>", text, count=1)
    return CARD_SECTION.sub(lambda _: changed, text, count=1)


def _reference(content: dict[str, Any], staying: Mapping[str, str]) -> bytes:
    """reference.json of the labels that stay: a label added under a removed one's name must not inherit its scores."""
    rows = [row for row, label in enumerate(content["labels"]) if label in staying]
    kept = {key: [content[key][row] for row in rows] for key in ("labels", "edges", "counts", "rates")}
    kept["labels"] = [staying[label] for label in kept["labels"]]
    return (json.dumps({**content, **kept}) + "\n").encode()


def _golden_scores(bundle: Bundle, banks: tuple[np.ndarray, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Scores float32 [n, C'] of the golden pictures with other text banks, [C', E] each, on the CPU."""
    manifest = bundle.manifest
    engine = load_engine(replace(bundle, text_global=banks[0], text_local=banks[1]), "onnxruntime")
    return engine(model_input(images, manifest.image_size, manifest.mean, manifest.std, manifest.input))[0]


def _check_known(bundle: Bundle, names: Sequence[str] | Mapping[str, str]) -> None:
    labels = bundle.manifest.labels
    for name in names:
        if name not in labels:
            close = get_close_matches(name, labels, n=3, cutoff=0.5)
            hint = f"close: {', '.join(close)}" if close else f"the first are {', '.join(labels[:3])}"
            raise UsageError(f"{name!r} is none of the {len(labels)} labels of {bundle.path}; {hint}.")
    if not names:
        raise UsageError(NO_NAME)
