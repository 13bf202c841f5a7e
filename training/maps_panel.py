"""The panel that ``hpedge maps`` writes: a picture beside what the run and plain CLIP see of one label in it."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hpdval_edge.errors import BadData
from hpdval_edge.images import find_images, open_rgb
from hpdval_edge.outputs.names import FileNames
from hpdval_edge.overlay import INK, MARGIN, MUTED, PAPER, fit, save_overlay, warm
from hpdval_edge.progress import progress, say
from hpdval_edge.training.maps import CLIP, RUN, VIEWS, LabelMaps, Viewers, load_viewers, look, slug
from hpdval_edge.training.run_folder import RunFolder

COLUMN = 300
TITLE, CAPTION, HEAD = 36, 44, 26
# Letters of a caption's line in a column.
LINE = 40


def write_maps(run: RunFolder, sources: Sequence[str], label: str, view: str, out: Path) -> tuple[list[dict], int]:
    """Write one PNG a picture into ``out``.

    Args:
        sources: files, folders, globs. view: ``local``, ``global`` or ``both``.

    Returns:
        What was written, one entry a picture, and how many pictures could not be read.
    """
    paths = list(find_images(sources))
    viewers = load_viewers(run, label)
    if viewers.why_no_clip:
        say(f"note: {CLIP} is not shown: {viewers.why_no_clip}")
    names = FileNames(out)
    views = VIEWS if view == "both" else (view,)
    written, failed = [], 0
    with progress("drawing maps", len(paths)) as update:
        for done, path in enumerate(paths):
            base = names(path.as_posix())
            target = base.with_name(f"{base.name}.{slug(label)}.png")
            try:
                picture = open_rgb(path)
            except BadData as error:
                failed += 1
                say(f"hpedge: {error}")
                continue
            seen = _see(viewers, picture, views)
            save_overlay(target, draw_panel(picture, seen, viewers, views, title=f"{path.name}: {label}"))
            written.append(_entry(path, target, seen, viewers))
            update(done + 1, len(paths))
    return written, failed


def _see(viewers: Viewers, picture: Image.Image, views: Sequence[str]) -> dict[str, LabelMaps]:
    models = {RUN: viewers.run, CLIP: viewers.clip}
    return {
        name: look(model, picture, viewers.column, viewers.device, views)
        for name, model in models.items()
        if model is not None
    }


def _entry(path: Path, target: Path, seen: dict[str, LabelMaps], viewers: Viewers) -> dict:
    entry = {"image": path.as_posix(), "map": target.as_posix(), "threshold": viewers.threshold}
    for name, key in ((RUN, "run"), (CLIP, "clip")):
        maps = seen.get(name)
        entry[key] = maps and {
            "score": maps.score,
            "global_cosine": maps.cosine,
            "local_lowest": float(maps.local.min()),
            "local_highest": float(maps.local.max()),
        }
    return entry


def draw_panel(
    picture: Image.Image, seen: dict[str, LabelMaps], viewers: Viewers, views: Iterable[str], *, title: str
) -> Image.Image:
    """One row a model: what it says of the label, and its views over the RGB picture."""
    views = tuple(views)
    height = max(1, round(COLUMN * picture.height / picture.width))
    small = picture.resize((COLUMN, height), Image.Resampling.LANCZOS)
    row = HEAD + height + CAPTION + MARGIN
    width = MARGIN + (1 + len(views)) * (COLUMN + MARGIN)
    page = Image.new("RGB", (width, MARGIN + TITLE + 2 * row), PAPER)
    draw = ImageDraw.Draw(page)
    title_font, font = ImageFont.load_default(18), ImageFont.load_default(13)
    draw.text((MARGIN, MARGIN), fit(draw, title, title_font, width - 2 * MARGIN), INK, title_font)
    for place, name in enumerate((RUN, CLIP)):
        top = MARGIN + TITLE + place * row
        draw.text((MARGIN, top), name, INK, font)
        page.paste(small, (MARGIN, top + HEAD))
        if name not in seen:
            _lines(draw, (2 * MARGIN + COLUMN, top + HEAD), f"not shown: {viewers.why_no_clip}", font)
            continue
        _lines(draw, (MARGIN, top + HEAD + height + 6), _verdict(name, seen[name], viewers.threshold), font)
        for number, view in enumerate(views):
            left = MARGIN + (1 + number) * (COLUMN + MARGIN)
            grid, head, caption = _view(seen[name], view)
            draw.text((left, top), head, INK, font)
            page.paste(warm(small, grid), (left, top + HEAD))
            _lines(draw, (left, top + HEAD + height + 6), caption, font)
    return page


def _verdict(name: str, maps: LabelMaps, threshold: float) -> str:
    if name == CLIP:
        return f"score {maps.score:+.3f} with the fixed prompt, before any training"
    named = "named" if maps.score >= threshold else "not named"
    return f"score {maps.score:+.3f}, threshold {threshold:+.3f}: {named}"


def _view(maps: LabelMaps, view: str) -> tuple[np.ndarray, str, str]:
    """Grid to draw, heading and caption of a view."""
    if view == "local":
        # sim.kind=l2class compares by dot products of any size.
        what = "patch cosines" if maps.kind == "cosine" else "patch dot products"
        caption = f"{what}, {maps.local.min():+.2f} to {maps.local.max():+.2f}"
        return maps.local, "local view", caption
    # What lowers the cosine stays without colour.
    raising = np.maximum(maps.effect, 0)
    return raising, "global view", f"what raises the class token's cosine, {maps.cosine:+.2f}"


def _lines(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, font: ImageFont.FreeTypeFont) -> None:
    draw.multiline_text(place, "\n".join(textwrap.wrap(text, LINE)), MUTED, font, spacing=4)
