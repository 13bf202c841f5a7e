"""Where a run and plain CLIP see a label: the global view against finite differences, the panels, the command."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hpdval_edge.errors import UsageError
from hpdval_edge.images import open_rgb, resize_squash
from hpdval_edge.training.maps import find_label, global_effect, load_viewers, look, slug
from hpdval_edge.training.maps_panel import COLUMN, MARGIN, _view, draw_panel
from hpdval_edge.training.model import load_model, read_weights
from hpdval_edge.training.run_folder import RunFolder
from hpdval_edge.training.student import EncoderSpec, Student, build_encoder
from hpdval_edge.training.teacher import load_teacher


@pytest.fixture
def run(tiny_run, monkeypatch):
    """The tiny run, from its working folder."""
    monkeypatch.chdir(tiny_run)
    return RunFolder(Path("runs/tiny"))


@pytest.fixture
def picture(tiny):
    return open_rgb(tiny / "test" / "01.png")


def cnn_student(embed: str) -> Student:
    """A random CNN at 96 px, 3 x 3 cells, in float64."""
    torch.manual_seed(0)
    spec = EncoderSpec("tf_efficientnet_lite0", 96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Student(spec, build_encoder(spec), embed=embed, embed_act="tanh", embed_dim=8).double().eval()


def cosine(student: Student, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(student.embed_cls(hidden)[0], text, dim=0).detach()


def test_effects_in_a_cnn_are_the_change_by_scaling_a_cell():
    """Planted mistake: the gradient of the sum over cells instead of each cell's own."""
    student, text = cnn_student("mlp2"), torch.randn(8, dtype=torch.float64)
    images = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    effect, _, _ = global_effect(student, images, text)
    _, patches = student.hidden(images)
    step = 1e-5
    for cell in range(student.num_patches):
        moved = []
        for sign in (1, -1):
            scaled = patches.detach().clone()
            scaled[:, cell] *= 1 + sign * step
            moved.append(cosine(student, scaled.mean(dim=1), text))
        assert float((moved[0] - moved[1]) / (2 * step)) == pytest.approx(float(effect[cell]), rel=1e-3, abs=1e-6)


def test_effects_in_a_cnn_without_bias_add_up_to_nothing():
    """The cosine does not see the length of the class token."""
    student = cnn_student("clip_proj")
    effect, _, _ = global_effect(student, torch.rand(1, 3, 96, 96).double(), torch.randn(8).double())
    assert float(effect.abs().max()) > 1e-4
    assert float(effect.sum()) == pytest.approx(0, abs=1e-6)


def test_effects_in_a_vit_are_the_change_by_scaling_a_token(run):
    """Planted mistakes: the first block instead of the last; the class token counted as a patch."""
    student = load_model(run.weights("best"))[0].student.double()
    text = torch.randn(24, dtype=torch.float64)
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    effect, cls, patches = global_effect(student, images, text)
    assert effect.shape == (student.num_patches,)
    last, step = student.encoder.blocks[-1], 1e-5
    assert not last._forward_pre_hooks
    for token in (0, 7, student.num_patches - 1):
        moved = []
        for sign in (1, -1):

            def scale(block, inputs, token=token, sign=sign):
                tokens = inputs[0].clone()
                tokens[:, 1 + token] *= 1 + sign * step
                return (tokens,)

            handle = last.register_forward_pre_hook(scale)
            moved.append(torch.nn.functional.cosine_similarity(student(images)[0][0].detach(), text, dim=0))
            handle.remove()
        assert float((moved[0] - moved[1]) / (2 * step)) == pytest.approx(float(effect[token]), rel=1e-3, abs=1e-6)
    expected = student(images)
    torch.testing.assert_close((cls, patches), (expected[0].detach(), expected[1].detach()))


def test_an_encoder_whose_blocks_are_unknown_is_refused(run, picture):
    """And takes the advice. Planted mistake: the effect is computed whatever view is asked for."""
    model = load_model(run.weights("best"))[0].requires_grad_(False)
    student = model.student
    student.encoder.forward_features = lambda images: torch.ones(1, 17, 32)
    student.encoder.blocks = None
    with pytest.raises(UsageError, match="use --view local"):
        global_effect(student, torch.rand(1, 3, 32, 32), torch.randn(24))
    maps = look(model, picture, 0, torch.device("cpu"), ("local",))
    assert maps.effect is None
    assert maps.local.shape == (4, 4)


def test_the_caption_names_the_similarity(run, picture):
    """Planted mistake: dot products called cosines."""
    model = load_model(run.weights("best"))[0].requires_grad_(False)
    captions = []
    for model.kind in ("cosine", "l2class"):
        captions.append(_view(look(model, picture, 0, torch.device("cpu"), ("local",)), "local")[2].partition(",")[0])
    assert captions == ["patch cosines", "patch dot products"]


def test_the_local_view_is_the_models_own(run, picture):
    viewers = load_viewers(run, "green")
    maps = look(viewers.run, picture, viewers.column, viewers.device)
    images = torch.from_numpy(resize_squash(picture, 32)).permute(2, 0, 1)[None].float() / 255
    views = viewers.run(images)
    np.testing.assert_allclose(maps.local.ravel(), views.patch_scores[0, :, 1].numpy(), atol=1e-6)
    assert maps.score == pytest.approx(float(views.scores[0, 1]), abs=1e-6)
    assert maps.local.shape == maps.effect.shape == (4, 4)


def test_plain_clip_is_the_teacher_untouched(run, picture, tiny_values, tmp_path):
    """Its class token's cosine is CLIP's own zero-shot score. Planted mistake: the run's weights once more."""
    run = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    for path in (run.path / "weights").iterdir():
        tensors, metadata = read_weights(path)
        # Training may have kept the teacher's own weights; these are certainly others.
        tensors["text_global"] = -tensors["text_global"]
        save_file(tensors, path, metadata=metadata)
    viewers = load_viewers(run, "bright square")
    maps = look(viewers.clip, picture, viewers.column, viewers.device)
    teacher = load_teacher(tiny_values["teacher.spec"], viewers.device)
    image = teacher.encode(resize_squash(picture, 32)[None], device=viewers.device, amp="off")[0]
    text = teacher.text.encode_prompts(["a photo of a bright square."])[0]
    assert maps.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(image, text, dim=0)), abs=1e-4)
    assert viewers.why_no_clip == ""


def test_labels_are_found_or_close_names_given():
    labels = ("pizza", "piazza", "dog")
    assert find_label("dog", labels) == 2
    with pytest.raises(UsageError, match="'pizzza' is none of the 3 labels of the run; close: pizza, piazza"):
        find_label("pizzza", labels)
    with pytest.raises(UsageError, match="close: pizza, piazza, dog"):
        find_label("xylophone", labels)
    assert slug("traffic light/red") == "traffic-light-red"
    assert slug("??") == "label"


@pytest.mark.parametrize("size", [(40, 40), (20, 400), (400, 20)])
def test_a_panel_holds_its_views(run, size):
    picture = Image.new("RGB", size, "grey")
    viewers = load_viewers(run, "red")
    seen = {"this run": look(viewers.run, picture, 0, viewers.device)}
    both = draw_panel(picture, seen, viewers, ("local", "global"), title="x" * 300)
    one = draw_panel(picture, seen, viewers, ("local",), title="x")
    assert both.width == MARGIN + 3 * (COLUMN + MARGIN)
    assert one.width == MARGIN + 2 * (COLUMN + MARGIN)


@pytest.fixture
def command(tiny_run, tmp_path, monkeypatch, run_hpedge):
    """Runs ``hpedge maps`` in a copy of the tiny run's folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(shutil.copytree(tiny_run, tmp_path / "work"))
    return partial(run_hpedge, "maps")


def test_the_command_writes_a_panel_a_picture(command, tiny):
    code, out, err = command(tiny / "test" / "00.png", tiny / "train" / "00.png", "--class", "bright square", "--json")
    assert code == 0, err
    content = json.loads(out)
    paths = [entry["map"] for entry in content["maps"]]
    assert paths == ["maps/00.bright-square.png", "maps/00-2.bright-square.png"]
    for entry in content["maps"]:
        assert entry["clip"]["local_lowest"] <= entry["clip"]["local_highest"]
        with Image.open(entry["map"]) as page:
            assert page.width == MARGIN + 3 * (COLUMN + MARGIN)
            assert np.asarray(page).std() > 20
    code, out, _ = command(tiny / "test" / "00.png", "--class", "red", "--view", "global", "--out", "elsewhere")
    assert (code, out) == (0, "elsewhere/00.red.png\n")


def test_a_bad_picture_is_reported_and_the_rest_goes_on(command, tiny, tmp_path):
    """Planted mistake: exit code 0."""
    (tmp_path / "bad.png").write_text("hello")
    code, out, err = command(tmp_path / "bad.png", tiny / "test" / "00.png", "--class", "red")
    assert (code, out) == (3, "maps/00.red.png\n")
    assert "bad.png" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "gren"), "close: green"),
        (("--class", "red", "--view", "top"), "--view 'top' is not one of local, global, both"),
        (("--class", "red", "--run", "absent"), "is no run"),
    ],
)
def test_mistakes_are_one_line(command, tiny, arguments, message):
    code, out, err = command(tiny / "test" / "00.png", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_teacher_that_is_gone_is_said(command, tiny):
    """Planted mistake: a panel without plain CLIP and without a word."""
    config = Path("runs/tiny/config.toml")
    config.write_text(config.read_text().replace("teacher.safetensors", "absent.safetensors"))
    code, out, err = command(tiny / "test" / "00.png", "--class", "red", "--json")
    assert code == 0
    assert json.loads(out)["maps"][0]["clip"] is None
    assert "plain CLIP is not shown: teacher file" in err
