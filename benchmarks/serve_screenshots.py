"""Photograph the page of ``hpedge serve`` for docs/serve.md, with the Chromium of the system.

    python benchmarks/serve_screenshots.py BUNDLE PICTURE LABEL --out docs/images

Writes serve-light.png, serve-dark.png, serve-phone.png and serve-labels.png, each below 300 kB. LABEL is the one whose
heat map is shown. The bundle is copied first, and in the copy the picture's fourth label is marked "not fitted", as a
label is that was added later.
"""

import argparse
import io
import json
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from hpdval_edge import Predictor
from hpdval_edge.bundle import THRESHOLDS, load_bundle, replace_thresholds
from hpdval_edge.serve.run import make_server, open_socket, url_of
from hpdval_edge.serve.settings import Settings

MOST_BYTES = 300_000
DESK, PHONE = {"width": 1120, "height": 700}, {"width": 390, "height": 780}


def open_page(browser: Browser, url: str, picture: Path, *, scheme: str = "light", phone: bool = False) -> Page:
    """The page with a picture's labels."""
    size = PHONE if phone else DESK
    context = browser.new_context(color_scheme=scheme, viewport=size, is_mobile=phone, reduced_motion="reduce")
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#count:not(:empty)")
    page.set_input_files("#file", picture)
    page.wait_for_selector(".bar")
    return page


def show_map(page: Page, label: str) -> None:
    """Open the heat map of ``label`` and leave the pointer elsewhere."""
    page.locator(f'.bar[data-label="{label}"]').click()
    page.wait_for_selector("#heat", state="visible")
    page.mouse.move(0, 0)


def save(page: Page, path: Path, *, whole: bool = False) -> None:
    """A PNG of 256 colours, which the page hardly needs and pictures bear."""
    shot = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    palette = shot.quantize(256, Image.Quantize.MEDIANCUT, kmeans=4)
    shot.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MOST_BYTES}")
    print(f"{path} {shot.width} x {shot.height}, {size} bytes")


def photograph(url: str, picture: Path, label: str, out: Path) -> None:
    """All four."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = open_page(browser, url, picture)
        save(page, out / "serve-light.png")
        page = open_page(browser, url, picture, scheme="dark")
        show_map(page, label)
        save(page, out / "serve-dark.png")
        page = open_page(browser, url, picture, phone=True)
        show_map(page, label)
        save(page, out / "serve-phone.png", whole=True)
        page = open_page(browser, url, picture)
        page.locator("summary").click()
        page.locator("#rows").evaluate("rows => rows.scrollTo(0, rows.scrollHeight)")
        save(page, out / "serve-labels.png", whole=True)
        browser.close()


def mark_fourth(path: Path, picture: Path) -> None:
    """Mark the threshold of the picture's fourth best label as not fitted."""
    bundle = load_bundle(path)
    fourth = int(np.argsort(-Predictor(bundle, threads=1)(picture).scores)[3])
    entry = json.loads(bundle.read(THRESHOLDS))[bundle.manifest.precision]
    entry["fitted"][fourth] = False
    replace_thresholds(bundle, entry)


def main() -> None:
    """Serve a copy of the bundle from a thread, photograph it, stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("label")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bundle = shutil.copytree(arguments.bundle, Path(folder) / arguments.bundle.name)
        mark_fourth(bundle, arguments.picture)
        listener = open_socket("127.0.0.1", 0)
        server = make_server(Predictor(bundle, threads=1), Settings(edit=True, key=Path("labels.key.pub")))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            photograph(url_of(listener), arguments.picture, arguments.label, arguments.out)
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
