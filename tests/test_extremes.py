"""What nobody should ask for, and output that leads nowhere: a sentence or silence, never a traceback."""

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.errors import UsageError
from hpdval_edge.overlay import draw_overlay
from hpdval_edge.predictor import Prediction, Predictor


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        ("infer a.png", "--threads", "100000"),
        ("infer a.png", "--max-frames", "99999999999999999999"),
        ("bench", "--threads", "100000"),
        ("serve", "--threads", "100000"),
        ("serve", "--decoders", "100000"),
        ("serve", "--max-size", "inf"),
        ("serve", "--max-pixels", "inf"),
        ("serve", "--max-wait", "inf"),
        ("serve", "--timeout", "inf"),
        ("serve", "--edit-timeout", "inf"),
    ],
)
def test_values_without_bounds_are_refused(run_hpedge, tmp_path, monkeypatch, verb, option, value):
    """Planted mistake: no upper limit; so many threads stop the machine, the others end in tracebacks."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run_hpedge(*verb.split(), option, value)
    assert (code, out) == (2, "")
    assert f"Invalid value for '{option}': Input should be less than or equal to" in err


@pytest.mark.parametrize(("option", "sentence"), [("--threshold", "threshold ''"), ("--backend", "backend ''")])
def test_an_empty_value_is_not_taken_for_none(run_hpedge, tiny, tiny_bundle, option, sentence):
    """Planted mistake: `option or default`, so that a shell's unset variable asks for nothing."""
    code, out, err = run_hpedge("infer", tiny / "test" / "00.png", "--model", tiny_bundle, option, "")
    assert (code, out) == (2, "")
    assert err.startswith(f"hpedge: {sentence} is ")


@pytest.mark.parametrize("threshold", ["inf", "-inf", "nan"])
def test_thresholds_are_finite(tiny_bundle, threshold):
    """Planted mistake: only NaN is refused; an overlay has no place for a tick at infinity."""
    with pytest.raises(UsageError, match=f"threshold '{threshold}' is neither 'fitted' nor a finite number"):
        Predictor(tiny_bundle, threshold=threshold)


def test_a_key_needs_a_name(run_hpedge):
    """Planted mistake: the name of the public key is made of one that is empty."""
    pytest.importorskip("cryptography", reason="the extra [labels] is not installed")
    code, out, err = run_hpedge("labels", "keygen", "")
    assert (code, out) == (2, "")
    assert err == "hpedge: the private key needs a file of its own; name one, e.g. labels.key.\n"


def overlay(picture: Image.Image, title: str) -> Image.Image:
    prediction = Prediction(("red",), np.float32([0.5]), np.zeros((2, 2, 1), np.float32))
    return draw_overlay(picture, prediction, ("red",), np.float32([0.1]), title=title)


def test_an_overlay_is_bounded_whatever_the_shape_of_its_picture():
    """Planted mistake: every picture is drawn as wide as the page; 1 x 3000 pixels took 21 GB."""
    page = overlay(Image.new("RGB", (1, 100), "red"), "tall.png")
    assert page.width == 640
    assert page.height < 5000
    # Still upright and where pictures are.
    assert page.getpixel((18, 700)) == (255, 0, 0)


def test_an_overlay_shows_names_of_every_kind():
    """Planted mistake: the name is drawn as it is; Pillow measures no text of several lines."""
    named, plain = overlay(Image.new("RGB", (40, 40)), "a\nb\udcff.png"), overlay(Image.new("RGB", (40, 40)), "ab.png")
    assert named.size == plain.size
