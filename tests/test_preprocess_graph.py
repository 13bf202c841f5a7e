"""Preprocessing as an ONNX graph: in ONNX Runtime the kernel's levels, to one."""

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from hpdval_edge.export.preprocess_graph import preprocess_graph
from hpdval_edge.images import model_input

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def run_graph(picture, size, kind="float32"):
    graph = preprocess_graph(image_size=size, mean=MEAN, std=STD, kind=kind).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(["image"], {"picture": picture})[0]


def levels_apart(picture, size):
    """Largest difference of the graph's result to the kernel's, in grey levels."""
    off = run_graph(picture, size) - model_input([picture], size, MEAN, STD, "float32")
    return (np.abs(off) * np.reshape(STD, (1, 3, 1, 1)) * 255).max()


@pytest.mark.parametrize("size", [37, 224])
@pytest.mark.parametrize(
    "shape", [(333, 500), (500, 333), (701, 223), (224, 224), (1, 1), (3, 999), (90, 61), (400, 37)], ids=str
)
def test_the_graph_preprocesses_noise_as_the_kernel_does(shape, size):
    """Planted mistakes: antialias left out, always the horizontal pass first (10 levels off at 701 x 223)."""
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert levels_apart(picture, size) <= 1.001


def test_a_strip_of_noise_is_two_levels_off():
    """What docs/serving.md says of the extreme; the kernel's weights have 22 bits, ONNX Runtime's are float32.

    Planted mistake: antialias left out.
    """
    picture = np.random.default_rng(0).integers(0, 256, (2000, 3, 3), dtype=np.uint8)
    assert levels_apart(picture, 224) <= 2.001


def test_the_graph_preprocesses_photos_as_the_kernel_does(shared_data):
    """Planted mistakes: cubic_coeff_a of -0.75, BGR."""
    paths = sorted((shared_data / "photos" / "val2017").glob("*.jpg"))[:3]
    assert paths
    for path in paths:
        with Image.open(path) as file:
            photo = file.convert("RGB")
        for box in ((0, 0, 255, 191), (3, 0, 200, 251)):
            picture = np.asarray(photo.crop(box))
            assert levels_apart(picture, 160) <= 1.001


@pytest.mark.parametrize(("kind", "most"), [("float16", 0.02), ("uint8", 1)])
def test_the_graph_gives_what_the_model_takes(kind, most):
    """Planted mistakes: float32 always, levels with the channels first."""
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    image, expected = run_graph(picture, 32, kind), model_input([picture], 32, MEAN, STD, kind)
    assert (image.dtype, image.shape) == (expected.dtype, expected.shape)
    assert np.abs(image.astype(np.float32) - expected).max() <= most
