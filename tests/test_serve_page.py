"""The page of ``hpedge serve`` in headless Chromium: pictures, bars, heat maps, labels, keyboard, contrast."""

import io
import json
import re
import runpy
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.bundle import THRESHOLDS, load_bundle, replace_thresholds
from hpdval_edge.predictor import Predictor

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
# A stand-in for a camera, and no question whether it may be used.
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
# Ratios of contrast that WCAG 2.2 AA wants of text, and of what tells controls apart.
TEXT, CONTROL = 4.5, 3.0


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, served):
    """Open the page of a server of its own; nothing may be written to the console, and no other server asked."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def start(predictor, *, browser_options=None, **settings):
            client = stack.enter_context(served(predictor, **settings))
            url = str(client.base_url)
            context = browser.new_context(**(browser_options or {}))
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(30_000)
            problems = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on("request", lambda request: request.url.startswith((url, "blob:")) or problems.append(request.url))
            stack.callback(lambda: pytest.fail(str(problems)) if problems else None)
            page.goto(url)
            page.problems = problems
            return page

        yield start


@pytest.fixture
def predictor(tiny_bundle):
    return Predictor(tiny_bundle, "onnxruntime", threads=1)


SERVE_PICTURES = runpy.run_path(str(Path(__file__).with_name("serve_pictures.py")))
picture = partial(SERVE_PICTURES["picture"], size=(60, 40))


def choose(page, content: bytes, name: str = "photo.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})


def transfer(page, kind: str, content: bytes, name: str) -> None:
    """Drop or paste a file, as the browser reports it."""
    page.evaluate(
        """([kind, bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            const event = kind === "drop"
                ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
            document.getElementById("stage").dispatchEvent(event);
        }""",
        [kind, list(content), name],
    )


def bars(page) -> list[str]:
    page.wait_for_selector(".bar")
    return page.locator(".bar .label").all_inner_texts()


@pytest.fixture
def second_and_last(tiny_bundle, tmp_path):
    """A Predictor whose thresholds choose two of the labels of ``picture(1)``, the second by score and the last."""
    bundle = load_bundle(shutil.copytree(tiny_bundle, tmp_path / "own.hpedge"))
    scores = Predictor(bundle, threads=1)(Image.open(io.BytesIO(picture(1)))).scores
    values = scores + 0.03
    values[np.argsort(-scores)[[1, -1]]] -= 0.05
    entry = json.loads(bundle.read(THRESHOLDS))[bundle.manifest.precision]
    replace_thresholds(bundle, {**entry, "values": values.tolist()})
    return Predictor(bundle.path, "onnxruntime", threads=1)


@pytest.mark.parametrize("kind", ["drop", "paste", "choose"])
def test_a_picture_from_anywhere_becomes_bars(open_page, second_and_last, kind):
    """Planted mistakes: the tick at the score; labels in the server's order though some are chosen."""
    predictor = second_and_last
    page = open_page(predictor)
    content = picture(1)
    choose(page, content) if kind == "choose" else transfer(page, kind, content, "photo.png")
    found = predictor(Image.open(io.BytesIO(content)))
    order = [predictor.labels[index] for index in np.argsort(-found.scores)]
    assert list(found.labels) == [order[1], order[-1]]
    assert bars(page) == [order[1], order[-1], order[0], *order[2:-1]]
    assert page.locator(".bar.chosen .label").all_inner_texts() == list(found.labels)
    assert page.locator("#name").inner_text() == "photo.png · 60 \u00d7 40"
    both = np.concatenate([found.scores, predictor.thresholds])
    for index, label in enumerate(predictor.labels):
        bar = page.locator(f'.bar[data-label="{label}"]')
        score, threshold = found.scores[index], predictor.thresholds[index]
        for part, side, value in ((".fill", "width", score), (".tick", "left", threshold)):
            percent = float(bar.locator(part).evaluate(f"e => e.style.{side}").rstrip("%"))
            assert percent == pytest.approx(3 + 94 * (value - both.min()) / np.ptp(both), abs=0.5)
        assert f"score {score:.3f}, threshold {threshold:.3f}" in bar.get_attribute("aria-label")
    # The picture is on show, in its own shape.
    box = page.locator("#shown").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(1.5, abs=0.02)
    assert page.locator("#shown").evaluate("e => e.naturalWidth") == 60


def test_a_label_opens_its_heat_map_where_the_patches_are(open_page, predictor):
    """Planted mistakes: rows and columns swapped; the map of the label clicked before."""
    page = open_page(predictor)
    content = picture(2, size=(80, 80))
    choose(page, content)
    bars(page)
    found = predictor(Image.open(io.BytesIO(content)))
    for label in predictor.labels[:2]:
        page.locator(f'.bar[data-label="{label}"]').click()
        page.wait_for_function("label => document.getElementById('where-label').textContent === label", arg=label)
        assert page.locator('.bar[aria-pressed="true"]').get_attribute("data-label") == label
        assert page.locator("#heat").get_attribute("aria-label") == f"Heat map of {label}"
        grid = found.patch_scores[:, :, predictor.labels.index(label)]
        rows, columns = grid.shape
        opacity = page.locator("#heat").evaluate(
            """(canvas, [rows, columns]) => {
                const pixels = canvas.getContext("2d");
                const at = (part, of, length) => Math.floor((part + 0.5) * length / of);
                return Array.from({ length: rows }, (_, r) => Array.from({ length: columns }, (_, c) =>
                    pixels.getImageData(at(c, columns, canvas.width), at(r, rows, canvas.height), 1, 1).data[3]));
            }""",
            [rows, columns],
        )
        level = (grid - grid.min()) / (grid.max() - grid.min())
        np.testing.assert_allclose(np.array(opacity) / 153, level, atol=0.08)
    heat, shown = page.locator("#heat").bounding_box(), page.locator("#shown").bounding_box()
    assert heat == shown
    page.locator('.bar[aria-pressed="true"]').click()
    page.wait_for_selector("#heat", state="hidden")


# The width alone is 3px in Chromium also where nothing is drawn.
OUTLINE = "e => ['style', 'width'].map(part => getComputedStyle(e).getPropertyValue(`outline-${part}`)).join(' ')"


def test_everything_by_keyboard_alone(open_page, predictor):
    """Planted mistakes: bars that are no buttons; Escape without effect; no focus to be seen, on bar or field."""
    page = open_page(predictor)
    page.wait_for_selector("#count:not(:empty)")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    # What is focused is the field; its label is what shows it.
    assert page.locator('label[for="file"]').evaluate(OUTLINE) == "solid 3px"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": picture(3)})
    bars(page)
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('bar')"):
            break
    label = page.evaluate("document.activeElement.dataset.label")
    assert page.evaluate(f"({OUTLINE})(document.activeElement)") == "solid 3px"
    page.keyboard.press("Space")
    page.wait_for_selector("#heat", state="visible")
    assert page.locator("#where-label").inner_text() == label
    page.keyboard.press("Escape")
    page.wait_for_selector("#heat", state="hidden")
    assert page.evaluate("document.activeElement.dataset.label") == label


def test_the_camera_takes_a_picture(open_page, predictor):
    """Planted mistake: the camera runs on after the picture."""
    page = open_page(predictor)
    page.get_by_role("button", name="Use the camera").click()
    take = page.get_by_role("button", name="Take the picture")
    take.wait_for()
    assert page.evaluate("document.activeElement.id") == "take"
    stream = page.evaluate_handle("document.getElementById('video').srcObject.getTracks()[0]")
    take.click()
    assert len(bars(page)) == 4
    assert page.locator("#name").inner_text().startswith("camera.jpg · ")
    assert stream.evaluate("track => track.readyState") == "ended"


def test_what_goes_wrong_is_said(open_page, predictor):
    """Planted mistake: the answer to a broken picture shown as none."""
    page = open_page(predictor)
    choose(page, b"no picture", "note.png")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text().startswith("note.png: not a picture in a format that can be read")
    assert page.locator("#status").inner_text() == "No picture yet."
    choose(page, picture(4))
    bars(page)
    assert not alert.is_visible()
    # Chromium itself notes every answer of 4xx.
    assert [re.search(r"status of (\d+)", problem)[1] for problem in page.problems] == ["422"]
    page.problems.clear()


def test_labels_are_edited_and_the_bars_follow(open_page, tiny_bundle, tmp_path):
    """Planted mistakes: no new look at the picture after an edit; the focus lost with the row that is drawn anew."""
    page = open_page(Predictor(shutil.copytree(tiny_bundle, tmp_path / "own.hpedge"), threads=1), edit=True)
    choose(page, picture(5))
    before = bars(page)
    page.locator("summary").click()
    row = page.locator('#rows li[data-label="green"]')
    row.get_by_role("textbox").fill("lime")
    row.get_by_role("textbox").press("Enter")
    page.wait_for_selector('.bar[data-label="lime"]')
    assert page.locator("#edit-status").inner_text() == "green is now called lime."
    assert bars(page) == ["lime" if label == "green" else label for label in before]
    page.get_by_role("button", name="Move lime up").press("Enter")
    page.wait_for_function("() => document.querySelector('#rows li').dataset.label === 'lime'")
    assert page.evaluate("document.activeElement.closest('li').dataset.label") == "lime"
    page.get_by_role("button", name="Remove red").click()
    page.get_by_role("dialog", name="Remove red?").get_by_role("button", name="Keep it").click()
    assert page.locator('#rows li[data-label="red"]').count() == 1
    page.get_by_role("button", name="Remove red").click()
    page.get_by_role("dialog", name="Remove red?").get_by_role("button", name="Remove it").click()
    page.wait_for_selector('.bar[data-label="red"]', state="detached")
    assert sorted(bars(page)) == ["blue", "bright square", "lime"]
    page.get_by_role("searchbox", name="Find a label").fill("squ")
    assert page.locator("#rows li").count() == 1


def test_without_edit_the_list_is_only_to_look_at(open_page, predictor):
    """Planted mistakes: fields that the server then refuses; a list that no key scrolls."""
    page = open_page(predictor)
    page.locator("summary").click()
    page.locator("#rows li").first.wait_for()
    assert page.locator("#edit-note").inner_text() == "Only to look at: this server was started without --edit."
    assert page.locator("#rows li").all_inner_texts()[0].startswith("red")
    # It scrolls, with nothing in it that takes the focus.
    assert page.locator("#rows").get_attribute("tabindex") == "0"
    assert page.locator("#editor input:visible, #editor button:visible").evaluate_all("all => all.map(e => e.id)") == [
        "find"
    ]


def test_a_token_is_asked_for_until_it_is_right(open_page, predictor):
    """Planted mistakes: the token kept though it was refused; an error where labels are searched that did not come."""
    page = open_page(predictor, token="correct-horse-battery")
    dialog = page.get_by_role("dialog", name="This server needs a token")
    dialog.wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("#error:not([hidden])")
    page.locator("summary").click()
    page.get_by_role("searchbox", name="Find a label").fill("red")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    dialog.get_by_label("Token").fill("wrong")
    dialog.get_by_role("button", name="Go on").click()
    page.wait_for_function("() => document.getElementById('token-note').textContent.includes('not the right one')")
    dialog.get_by_label("Token").fill("correct-horse-battery")
    dialog.get_by_role("button", name="Go on").click()
    page.wait_for_selector("#count:not(:empty)")
    choose(page, picture(6))
    assert len(bars(page)) == 4
    assert len(page.problems) == 3 and all("401" in problem for problem in page.problems)
    page.problems.clear()


CONTRAST = """() => {
    const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const behind = (e) => {
        for (; e; e = e.parentElement) {
            const colour = parse(getComputedStyle(e).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
    };
    const ratio = (a, b) => ((a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05))(light(a), light(b));
    const seen = (e) => e.checkVisibility() && !e.closest(".unseen, [disabled]") && e.getClientRects().length;
    const texts = [...document.querySelectorAll("body *")].filter((e) => seen(e) &&
        [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim()));
    const parts = [...document.querySelectorAll(".fill")].filter(seen);
    return {
        text: texts.map((e) => [e.textContent.slice(0, 30), ratio(parse(getComputedStyle(e).color), behind(e))]),
        control: parts.map((e) => [e.className, ratio(behind(e), behind(e.parentElement))]),
    };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_schemes(open_page, tiny_bundle, tmp_path, scheme):
    """Planted mistake: --muted of one scheme used in the other."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "own.hpedge")
    page = open_page(Predictor(bundle, threads=1), browser_options={"color_scheme": scheme}, edit=True)
    choose(page, picture(7))
    bars(page)
    page.locator("summary").click()
    page.locator(".bar").first.click()
    page.wait_for_selector("#heat", state="visible")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
    found = page.evaluate(CONTRAST)
    assert len(found["text"]) > 20 and len(found["control"]) >= 4
    assert not [one for one in found["text"] if one[1] < TEXT]
    assert not [one for one in found["control"] if one[1] < CONTROL]


def test_bars_are_seen_where_the_system_forces_its_colours(open_page, second_and_last):
    """Planted mistake: the chosen bars' own colour, which then is the paper's, weighs more than the system's."""
    page = open_page(second_and_last, browser_options={"forced_colors": "active"})
    choose(page, picture(1))
    bars(page)
    colour = "all => all.map(e => getComputedStyle(e).backgroundColor)"
    (paper,) = page.locator("body").evaluate_all(colour)
    seen = page.locator(".fill, .key, .chosen .tick").evaluate_all(colour)
    assert len(seen) == 8 and not {paper, "rgba(0, 0, 0, 0)"} & set(seen)


def test_every_control_has_a_name_and_the_page_its_landmarks(open_page, tiny_bundle, tmp_path):
    """Planted mistakes: a button of a sign alone; a picture without words or with empty ones; two h1."""
    page = open_page(Predictor(shutil.copytree(tiny_bundle, tmp_path / "own.hpedge"), threads=1), edit=True)
    choose(page, picture(8))
    bars(page)
    page.locator("summary").click()
    page.locator(".bar").first.click()
    page.wait_for_selector("#heat", state="visible")
    tree = page.locator("body").aria_snapshot()
    roles = "button|textbox|searchbox|img|list|listitem|region|dialog|heading"
    for line in tree.splitlines():
        role = re.match(rf"\s*- ({roles})\b(.*)", line)
        if role and role[1] not in ("listitem",):
            assert re.match(r' "[^"]*\w', role[2]), line
    for wanted in (
        "banner",
        "main",
        'region "Picture"',
        'region "What it shows"',
        'img "The picture photo.png, 60 by 40 pixels"',
        'img "Heat map of',
        "status",
        'heading "hpedge" [level=1]',
    ):
        assert f"- {wanted}" in tree
    assert tree.count("[level=1]") == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    for attribute in ("aria-labelledby", "aria-describedby", "aria-controls", "for"):
        named = page.evaluate(
            f"[...document.querySelectorAll('[{attribute}]')].map(e => e.getAttribute('{attribute}'))"
        )
        assert set(named) <= set(ids)


def test_it_fits_a_phone(open_page, tiny_bundle, tmp_path):
    """Planted mistake: a row wider than the screen."""
    phone = {"viewport": {"width": 320, "height": 700}, "has_touch": True}
    bundle = shutil.copytree(tiny_bundle, tmp_path / "own.hpedge")
    page = open_page(Predictor(bundle, threads=1), browser_options=phone, edit=True)
    choose(page, picture(9), "a-rather-long-name-of-a-picture-without-any-break-in-it.png")
    bars(page)
    page.locator("summary").click()
    page.locator(".bar").first.click()
    page.wait_for_selector("#heat", state="visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth") == 320
    small = page.evaluate(
        "[...document.querySelectorAll('button, summary, .button')].filter(e => e.checkVisibility())"
        ".map(e => [e.textContent, e.getBoundingClientRect()]).filter(([, box]) => box.height < 24 || box.width < 24)"
    )
    assert not small
