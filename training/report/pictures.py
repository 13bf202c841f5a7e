"""The pictures that a run ranks best and worst, with heat maps, ready for the page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from hpdval_edge.images import open_rgb, resize_squash
from hpdval_edge.overlay import warm
from hpdval_edge.training.report.scored import Scored

SHOWN = 6
LONGEST_SIDE = 300
QUALITY = 82
ROWS = 4096


@dataclass(frozen=True, slots=True)
class Verdict:
    """One label of a picture. kind: ``found``, ``missed`` or ``wrong``. rank: 1 is the label of the highest score."""

    label: str
    kind: str
    rank: int


@dataclass(frozen=True, slots=True)
class View:
    """An image of a card as a ``data:`` address, with what it shows."""

    source: str
    caption: str
    alt: str


@dataclass(frozen=True, slots=True)
class Card:
    """One picture: its views and its labels, the true ones first."""

    name: str
    views: tuple[View, ...]
    verdicts: tuple[Verdict, ...]


def label_ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of every label within its picture, 1 the highest score; scores [n, C] -> int64 [n, C]."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, scores.shape[1] + 1)[None], axis=1)
    return ranks


def best_first(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Pictures by how high their true labels rank, best first; pictures with all labels or none are left out.

    The measure is the mean rank of the true labels above the least possible one, (m + 1) / 2 for m of them. Among
    equals the margin between the lowest true and the highest false label decides.

    Args:
        scores: float32 [n, C]. positive: bool [n, C].
    """
    excess, margin = np.empty(len(scores)), np.empty(len(scores))
    for start in range(0, len(scores), ROWS):
        part, true = scores[start : start + ROWS], positive[start : start + ROWS]
        count = true.sum(axis=1)
        ranks = np.where(true, label_ranks(part), 0).sum(axis=1)
        excess[start : start + ROWS] = ranks / np.maximum(count, 1) - (count + 1) / 2
        lowest_true = np.where(true, part, np.inf).min(axis=1)
        margin[start : start + ROWS] = lowest_true - np.where(true, -np.inf, part).max(axis=1)
    order = np.lexsort((-margin, excess))
    telling = positive.any(axis=1) & ~positive.all(axis=1)
    return order[telling[order]]


def best_and_worst(scored: Scored, thresholds: np.ndarray) -> tuple[list[Card], list[Card]]:
    """Cards of up to SHOWN best and SHOWN worst pictures, none in both; thresholds float32 [C]."""
    order = best_first(scored.scores, scored.positive)
    count = min(SHOWN, len(order) // 2)
    best, worst = order[:count], order[len(order) - count :][::-1]
    return (
        [_card(scored, int(row), thresholds, best=True) for row in best],
        [_card(scored, int(row), thresholds, best=False) for row in worst],
    )


def _card(scored: Scored, row: int, thresholds: np.ndarray, *, best: bool) -> Card:
    labels, true, scores = scored.data.labels, scored.positive[row], scored.scores[row]
    ranks = label_ranks(scores[None])[0]
    chosen = scores >= thresholds
    picture = open_rgb(scored.data.absolute(row))
    grids = _patch_scores(scored, picture)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    name = scored.data.paths[row]
    views = [View(jpeg(picture), "picture", f"Picture {name}")]
    true_labels = sorted(np.flatnonzero(true), key=lambda i: ranks[i])
    top_false = min(np.flatnonzero(~true), key=lambda i: ranks[i])
    asked = [(true_labels[0], "true")] if best else [(true_labels[-1], "true"), (top_false, "false")]
    for index, kind in asked:
        caption = f"{kind}: {labels[index]}, rank {ranks[index]}"
        alt = f"Heat map over {name} for the {kind} label {labels[index]}"
        views.append(View(jpeg(warm(picture, grids[:, :, index])), caption, alt))
    verdicts = [Verdict(labels[i], "found" if chosen[i] else "missed", int(ranks[i])) for i in true_labels]
    wrong = sorted(np.flatnonzero(chosen & ~true), key=lambda i: ranks[i])
    verdicts += [Verdict(labels[i], "wrong", int(ranks[i])) for i in wrong]
    return Card(name, tuple(views), tuple(verdicts))


def _patch_scores(scored: Scored, picture: Image.Image) -> np.ndarray:
    """Similarity of each patch with each label, float32 [rows, columns, C]."""
    student = scored.model.student
    pixels = torch.from_numpy(resize_squash(picture, student.spec.image_size)).to(scored.device)
    with torch.no_grad():
        views = scored.model(pixels.permute(2, 0, 1)[None].float() / 255)
    return views.patch_scores[0].reshape(*student.grid, -1).cpu().numpy()


def jpeg(picture: Image.Image) -> str:
    """An RGB picture as a ``data:`` address."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
