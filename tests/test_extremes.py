"""What nobody should ask for, and output that leads nowhere: a sentence or silence, never a traceback."""

import os
import subprocess
import sys

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
        ("infer a.mp4", "--fps", "inf"),
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
    assert f"Invalid value for '{option}'" in err


@pytest.mark.parametrize(("option", "sentence"), [("--threshold", "threshold ''"), ("--backend", "backend ''")])
def test_an_empty_value_is_not_taken_for_none(run_hpedge, tiny, tiny_bundle, option, sentence):
    """Planted mistake: `option or default`, so that a shell's unset variable asks for nothing."""
    code, out, err = run_hpedge("infer", tiny / "test" / "00.png", "--model", tiny_bundle, option, "")
    assert (code, out) == (2, "")
    assert err.startswith(f"hpedge: {sentence} is ")


@pytest.mark.parametrize("threshold", ["inf", "-inf", "nan", "1e39"])
def test_thresholds_are_finite(tiny_bundle, threshold):
    """Planted mistake: only NaN is refused; an overlay has no place for a tick at infinity."""
    with pytest.raises(UsageError, match=f"threshold '{threshold}' is neither 'fitted' nor a finite float32 number"):
        Predictor(tiny_bundle, threshold=threshold)


def test_what_is_no_picture_is_named(tiny_bundle):
    """Planted mistake: everything unknown is taken for a list of pictures."""
    with pytest.raises(ValueError, match=r"a picture must be a path, a PIL image or uint8 .*, got int"):
        Predictor(tiny_bundle)(5)


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


def hpedge(*arguments: str, stdout: int) -> tuple[int, str]:
    """The command with another stdout; its exit code and stderr."""
    command = [sys.executable, "-m", "hpdval_edge", *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


def test_a_reader_that_has_left_is_no_failure():
    """Planted mistake: typer's own exit code 1, which says that a check failed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert hpedge("--version", stdout=writer) == (0, "")
    finally:
        os.close(writer)


def test_another_pipe_that_breaks_is_a_failure():
    """As a child process' or a server's. Planted mistake: exit code 0 for it, as if a reader had left."""
    code = (
        "from hpdval_edge import cli, infer\n"
        "def last_export(): raise BrokenPipeError(32, 'Broken pipe')\n"
        "infer.last_export = last_export\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "infer", "."], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "BrokenPipeError: [Errno 32] Broken pipe" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_below_stdout_is_one_sentence():
    """Planted mistake: only files are looked after; a report on stdout ended in a traceback."""
    with open("/dev/full", "w") as full:
        code, err = hpedge("--version", stdout=full.fileno())
    assert (code, err) == (4, "hpedge: no space left to write the output; free some disk space.\n")


def test_without_stdout_the_work_is_done(tiny, tiny_bundle, tmp_path):
    """Planted mistake: Python's stdout of None is written to."""
    picture, overlays = tiny / "test" / "00.png", tmp_path / "overlays"
    command = 'exec "$0" -m hpdval_edge infer "$1" --model "$2" --overlay "$3" >&-'
    shell = ["sh", "-c", command, sys.executable, str(picture), str(tiny_bundle), str(overlays)]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, f"1 of 1 pictures, overlays in {overlays}/\n")
    assert [path.name for path in overlays.iterdir()] == ["00.png"]
