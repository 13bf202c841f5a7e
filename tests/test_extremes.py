"""What nobody should ask for, and output that leads nowhere: a sentence or silence, never a traceback."""

import numpy as np
from PIL import Image

from hpdval_edge.overlay import draw_overlay
from hpdval_edge.predictor import Prediction


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
