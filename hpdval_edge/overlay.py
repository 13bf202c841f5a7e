"""A picture with its labels and the local view's heat map for the best one."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hpdval_edge.atomic import write_file
from hpdval_edge.predictor import Prediction

WIDTH = 640
# Of a picture that is far higher than wide; at the page's width it would take gigabytes.
TALLEST = 4096
MARGIN = 16
ROW = 30
NAME = 190
INK = (32, 36, 44)
MUTED = (112, 118, 128)
PAPER = (250, 250, 248)
ACCENT = (214, 92, 32)
TRACK = (228, 228, 224)
# The accent where it lies on dark.
GLOW = (255, 176, 120)
# A few stops of a perceptually even map from dark violet over orange to pale yellow.
STOPS = np.array([[18, 8, 48], [106, 24, 110], [188, 55, 84], [240, 120, 24], [252, 248, 160]], np.float32)
STRENGTH = 0.6


def heat_map(grid: np.ndarray, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Patch cosines float32 [rows, columns] -> colours (RGB) and opacity (L), both of ``size`` (width, height).

    The map spans the picture's own lowest to highest patch: it says where, not how much.
    """
    spread = float(grid.max() - grid.min())
    level = (grid - grid.min()) / spread if spread > 0 else np.zeros_like(grid)
    smooth = Image.fromarray(level.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(smooth), 0, 1)
    place = level * (len(STOPS) - 1)
    low = np.minimum(place.astype(int), len(STOPS) - 2)
    part = (place - low)[..., None]
    colours = STOPS[low] * (1 - part) + STOPS[low + 1] * part
    opacity = (255 * STRENGTH * level).astype(np.uint8)
    return Image.fromarray(colours.astype(np.uint8)), Image.fromarray(opacity)


def warm(picture: Image.Image, grid: np.ndarray) -> Image.Image:
    """A copy of the RGB ``picture`` under the heat map of ``grid``, float32 [rows, columns]."""
    colours, opacity = heat_map(grid, picture.size)
    covered = picture.copy()
    covered.paste(colours, (0, 0), opacity)
    return covered


def draw_overlay(
    picture: Image.Image,
    prediction: Prediction,
    labels: tuple[str, ...],
    thresholds: np.ndarray,
    *,
    title: str,
    column: int | None = None,
    unfitted: frozenset[str] = frozenset(),
) -> Image.Image:
    """Side by side: the picture, and the picture under a label's heat map; below, scores of the top labels.

    Args:
        picture: RGB, any size. labels: all, in score order of ``prediction``. thresholds: float32 [C].
        column: the heat map's label; None is the best one. unfitted: labels whose thresholds are called not fitted.
    """
    width = (WIDTH - 3 * MARGIN) // 2
    scale = min(width / picture.width, TALLEST / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    small, height = picture.resize(size, Image.Resampling.LANCZOS), size[1]
    order = np.argsort(-prediction.scores, kind="stable")
    shown = order[: max(len(prediction.labels), min(5, len(labels)))][:12]
    mapped = int(order[0]) if column is None else column
    page = Image.new("RGB", (WIDTH, height + 3 * MARGIN + 2 * ROW + ROW * len(shown)), PAPER)
    draw = ImageDraw.Draw(page)
    font, caption = ImageFont.load_default(16), ImageFont.load_default(13)
    draw.text((MARGIN, MARGIN), fit(draw, title, caption, width), INK, caption)
    draw.text((2 * MARGIN + width, MARGIN), fit(draw, f"where: {labels[mapped]}", caption, width), ACCENT, caption)
    top = MARGIN + ROW
    page.paste(small, (MARGIN, top))
    page.paste(warm(small, prediction.patch_scores[:, :, mapped]), (2 * MARGIN + width, top))
    _draw_scores(draw, top + height + MARGIN, shown, prediction, labels, thresholds, font, caption, unfitted)
    return page


def draw_frame(
    picture: Image.Image,
    prediction: Prediction,
    labels: tuple[str, ...],
    column: int | None,
    *,
    unfitted: frozenset[str] = frozenset(),
) -> Image.Image:
    """A film's frame, at its own size, with the chosen labels and their scores at its lower left, the best on top.

    Args:
        picture: RGB, any size. labels: all, in score order. column: label of a heat map over the frame; None is none.
        unfitted: labels whose thresholds are called not fitted.
    """
    page = picture.copy() if column is None else warm(picture, prediction.patch_scores[:, :, column])
    size = max(12, picture.height // 24)
    font, gap = ImageFont.load_default(size), size // 3
    row = size + 2 * gap
    # Drawn apart and laid over, since Pillow draws no half transparent shapes onto RGB.
    shade = Image.new("L", picture.size, 0)
    draw, shading = ImageDraw.Draw(page), ImageDraw.Draw(shade)
    shown = prediction.labels[: max(1, (picture.height - gap) // (row + gap))]
    marks = [" not fitted" * (label in unfitted) for label in shown]
    scores = [prediction.scores[labels.index(label)] for label in shown]
    texts = [(label, f"{score:+.3f}{mark}") for label, score, mark in zip(shown, scores, marks, strict=True)]
    number = max((draw.textlength(score, font) for _, score in texts), default=0)
    texts = [(fit(draw, label, font, picture.width - number - 6 * gap), score) for label, score in texts]
    places = [picture.height - (row + gap) * place for place in range(len(texts), 0, -1)]
    for top, (label, score) in zip(places, texts, strict=True):
        width = draw.textlength(label, font) + draw.textlength(score, font) + 4 * gap
        shading.rounded_rectangle((gap, top, gap + width, top + row), gap, 176)
    page.paste(INK, (0, 0), shade)
    for top, (label, score) in zip(places, texts, strict=True):
        draw.text((2 * gap, top + row / 2), label, PAPER, font, anchor="lm")
        draw.text((4 * gap + draw.textlength(label, font), top + row / 2), score, GLOW, font, anchor="lm")
    return page


def _draw_scores(
    draw: ImageDraw.ImageDraw,
    top: int,
    shown: np.ndarray,
    prediction: Prediction,
    labels: tuple[str, ...],
    thresholds: np.ndarray,
    font: ImageFont.FreeTypeFont,
    caption: ImageFont.FreeTypeFont,
    unfitted: frozenset[str],
) -> None:
    """One row a label: name, bar, score; a tick on the bar marks the threshold, chosen labels are in colour."""
    left, right = MARGIN + 200, WIDTH - MARGIN - 70
    low = min(float(prediction.scores.min()), float(thresholds[shown].min()))
    high = max(float(prediction.scores.max()), float(thresholds[shown].max()))

    def place(score: float) -> float:
        return left + (right - left) * (0.03 + 0.94 * (score - low) / max(high - low, 1e-6))

    for row, index in enumerate(shown):
        y = top + ROW * row
        score, chosen = float(prediction.scores[index]), labels[index] in prediction.labels
        room = NAME
        if labels[index] in unfitted:
            draw.text((MARGIN + NAME, y + 7), "not fitted", MUTED, caption, anchor="ra")
            room -= draw.textlength("  not fitted", caption)
        draw.text((MARGIN, y + 4), fit(draw, labels[index], font, room), INK if chosen else MUTED, font)
        draw.rounded_rectangle((left, y + 8, right, y + 20), 6, TRACK)
        draw.rounded_rectangle((left, y + 8, place(score), y + 20), 6, ACCENT if chosen else MUTED)
        tick = place(float(thresholds[index]))
        draw.line((tick, y + 5, tick, y + 23), INK, 2)
        draw.text((WIDTH - MARGIN - 60, y + 4), f"{score:+.3f}", INK if chosen else MUTED, font)
    draw.text(
        (MARGIN, top + ROW * len(shown) + 6),
        "bar: score, from the picture's lowest to its highest    tick: threshold    colour: chosen",
        MUTED,
        caption,
    )


def fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """``text`` in one line, cut with an ellipsis where it is wider than ``width`` pixels."""
    # Names of files may hold line feeds and bytes that are no UTF-8.
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def save_overlay(path: Path, page: Image.Image) -> None:
    """Write a PNG; its folder is made."""
    write_file(path, lambda partial: page.save(partial, "PNG"))
