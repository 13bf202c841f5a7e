"""Loading teachers: the ways to name one, and every way to name one wrongly."""

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from hpdval_edge.errors import BadData, MissingDependency, UsageError
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.image_store import ImageStore
from hpdval_edge.training.teacher import cached_embeddings, load_teacher

CPU = torch.device("cpu")


def test_demo_teacher_is_small_and_frozen():
    teacher = load_teacher("demo", CPU)
    assert (teacher.size, teacher.embed_dim) == (160, 128)
    assert not any(value.requires_grad for value in teacher.clip.parameters())
    assert not teacher.clip.training


def test_a_local_file_of_a_known_architecture(tmp_path):
    """``NAME:FILE`` loads the file's weights, not random ones."""
    torch.manual_seed(3)
    clip = open_clip.create_model("RN50-quickgelu")
    state = {name: value.contiguous() for name, value in clip.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    teacher = load_teacher(f"RN50-quickgelu:{tmp_path / 'w.safetensors'}", CPU)
    torch.testing.assert_close(teacher.clip.state_dict()["token_embedding.weight"], state["token_embedding.weight"])
    assert teacher.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)


def test_own_preprocessing_comes_with_the_configuration(tiny, tmp_path):
    model = json.loads((tiny / "teacher.json").read_text())
    config = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}}
    (tmp_path / "t.json").write_text(json.dumps(config))
    assert load_teacher(f"{tmp_path / 't.json'}:{tiny / 'teacher.safetensors'}", CPU).mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("demos", UsageError, "none of demo, NAME:TAG"),
        ("ViT-Q-16:openai", UsageError, "no model of open_clip"),
        ("ViT-B-16-quickgelu:nothing", UsageError, "no such file, and the tags of ViT-B-16-quickgelu are .*openai"),
        ("absent.json:absent.safetensors", UsageError, "does not exist"),
    ],
)
def test_wrong_names(spec, error, message):
    with pytest.raises(error, match=message):
        load_teacher(spec, CPU)


def test_wrong_files(tiny, tmp_path):
    (tmp_path / "bad.json").write_text('{"embed_dim": 4}')
    with pytest.raises(BadData, match="not an open_clip model configuration"):
        load_teacher(f"{tmp_path / 'bad.json'}:{tiny / 'teacher.safetensors'}", CPU)
    (tmp_path / "bad.safetensors").write_bytes(b"12345678")
    with pytest.raises(BadData, match="does not hold weights"):
        load_teacher(f"{tiny / 'teacher.json'}:{tmp_path / 'bad.safetensors'}", CPU)
    with pytest.raises(BadData, match="does not hold weights of ViT-B-16-quickgelu"):
        load_teacher(f"ViT-B-16-quickgelu:{tmp_path / 'bad.safetensors'}", CPU)


def test_no_network_is_said_with_the_remedy(monkeypatch):
    """Exit code 4; planted mistake: the download's own traceback."""

    def offline(*args, **kwargs):
        raise RuntimeError("Failed to download weights for tag 'openai': no route to host")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(MissingDependency, match=r"--teacher ViT-B-16-quickgelu:/path/to/weights") as caught:
        load_teacher("ViT-B-16-quickgelu:openai", CPU)
    assert caught.value.exit_code == 4


def test_embeddings_are_computed_once(tiny, tmp_path, monkeypatch):
    """Planted mistake: a key without the weights' fingerprint."""
    spec = f"{tiny / 'teacher.json'}:{tiny / 'teacher.safetensors'}"
    teacher = load_teacher(spec, CPU)
    paths = tuple(f"test/{index:02}.png" for index in range(5))
    data = LabelledImages(tiny, paths, np.ones((5, 1), np.uint8), ("x",))
    store = ImageStore(data, 32, cache=None)
    options = {"cache": tmp_path, "device": CPU, "amp": "off"}
    first = cached_embeddings(teacher, store, **options, space="embed", batch=2)
    assert first.shape == (5, 24)
    torch.testing.assert_close(torch.from_numpy(first), teacher.encode(store[np.arange(5)], device=CPU, amp="off"))
    monkeypatch.setattr(type(teacher), "encode", None)
    assert np.array_equal(cached_embeddings(teacher, store, **options, space="embed"), first)
    monkeypatch.undo()
    assert cached_embeddings(teacher, store, **options, space="hidden").shape == (5, 32)
    teacher.clip.visual.proj.data.mul_(2)
    state = {name: value.contiguous() for name, value in teacher.clip.state_dict().items()}
    save_file(state, tmp_path / "other.safetensors")
    other = load_teacher(f"{tiny / 'teacher.json'}:{tmp_path / 'other.safetensors'}", CPU)
    np.testing.assert_allclose(cached_embeddings(other, store, **options, space="embed"), 2 * first, rtol=1e-5)


def test_the_activation_and_the_preprocessing_are_part_of_the_fingerprint(tiny, tmp_path):
    """Planted mistake: a fingerprint of the weights alone, under which another model's embeddings were read."""
    architecture = json.loads((tiny / "teacher.json").read_text())
    variants = {
        "plain": architecture,
        "quick": {**architecture, "quick_gelu": True},
        "other": {"model_cfg": architecture, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}},
    }
    prints = set()
    for name, content in variants.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        spec = f"{tmp_path / name}.json:{tiny / 'teacher.safetensors'}"
        prints.add(load_teacher(spec, torch.device("cpu")).fingerprint)
    assert len(prints) == 3


def test_openai_weights_need_quickgelu():
    """Planted mistake: open_clip's warning and the wrong activation."""
    with pytest.raises(UsageError, match="ViT-B-16-quickgelu:openai"):
        load_teacher("ViT-B-16:openai", torch.device("cpu"))
