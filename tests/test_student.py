"""Students: CLIP's own tower in timm, timm ViTs and CNNs, embedding layers, weights files (METHOD section 3)."""

import json

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from hpdval_edge.config import StudentConfig
from hpdval_edge.errors import BadData, MissingDependency, UsageError
from hpdval_edge.training.student import (
    EncoderSpec,
    Student,
    build_encoder,
    clip_state,
    load_encoder_file,
    make_student,
    spec_of_clip,
    tokens,
)
from hpdval_edge.training.teacher import load_teacher


@pytest.fixture(scope="module")
def teacher(tiny):
    return load_teacher(f"{tiny / 'teacher.json'}:{tiny / 'teacher.safetensors'}", torch.device("cpu"))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_clip_student_equals_the_teacher_before_training(tiny, quick_gelu):
    """METHOD 15 row 8. Planted mistakes: GELU for QuickGELU, the teacher's mean applied twice, a lost LayerNorm."""
    torch.manual_seed(1)
    config = open_clip.get_model_config("ViT-B-16-quickgelu" if quick_gelu else "ViT-B-16")
    config["vision_cfg"] |= {"layers": 2, "width": 128, "image_size": 64}
    config["text_cfg"]["layers"] = 1
    clip = open_clip.CLIP(**config).eval()
    spec_teacher = load_teacher("demo", torch.device("cpu"))
    object.__setattr__(spec_teacher, "clip", clip)
    object.__setattr__(spec_teacher, "size", 64)
    spec = spec_of_clip(spec_teacher)
    assert spec.quick_gelu == quick_gelu
    encoder = build_encoder(spec).eval()
    encoder.load_state_dict(clip_state(clip.visual))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        cls, patches = tokens(encoder, images)
        torch.testing.assert_close(cls @ clip.visual.proj, clip.encode_image(images), atol=2e-5, rtol=1e-4)
    assert patches.shape == (2, 16, 128)


def test_recommended_student_starts_at_the_teacher(teacher):
    student, resolved = make_student(StudentConfig(), teacher)
    assert (resolved.name, resolved.init, resolved.embed, resolved.image_size) == ("clip-vit", "clip", "clip_proj", 32)
    images = torch.rand(3, 3, 32, 32)
    pixels = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    images = pixels.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        cls, patches = student.eval()(images)
    expected = teacher.encode(pixels.numpy(), device=torch.device("cpu"), amp="off")
    torch.testing.assert_close(cls, expected, atol=1e-4, rtol=1e-4)
    assert patches.shape == (3, 16, 24)


def timm_teacher(folder, name="regnetx_002", **vision):
    """A CLIP with random weights around a timm tower, from files as a user would pass them."""
    tower = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 64, **vision}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": tower, "text_cfg": text}
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "timm.safetensors")
    (folder / "timm.json").write_text(json.dumps(config))
    return load_teacher(f"{folder / 'timm.json'}:{folder / 'timm.safetensors'}", torch.device("cpu"))


def test_student_starts_at_a_timm_tower_too(tmp_path):
    """Planted mistakes: the projection transposed, the tower's random twin, the teacher's mean left out."""
    teacher = timm_teacher(tmp_path)
    student, resolved = make_student(StudentConfig(), teacher)
    assert (resolved.name, resolved.init, resolved.embed) == ("regnetx_002", "clip", "clip_proj")
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        cls, patches = student.eval()(pixels.permute(0, 3, 1, 2).float() / 255)
    expected = teacher.encode(pixels.numpy(), device=torch.device("cpu"), amp="off")
    torch.testing.assert_close(cls, expected, atol=1e-4, rtol=1e-4)
    assert patches.shape == (3, 4, 24)
    named, same = make_student(StudentConfig(name="regnetx_002"), teacher)
    assert same == resolved
    torch.testing.assert_close(named.encoder.stem.conv.weight, teacher.clip.visual.trunk.stem.conv.weight)


def test_a_cnn_tower_takes_pictures_of_another_size(tmp_path, teacher):
    student, resolved = make_student(StudentConfig(image_size=96), timm_teacher(tmp_path))
    assert (resolved.image_size, student.spec.image_size, student.grid) == (96, 96, (3, 3))
    with pytest.raises(UsageError, match=r"image_size=96, but the teacher's architecture takes 32 px"):
        make_student(StudentConfig(image_size=96), teacher)


@pytest.mark.parametrize("vision", [{"timm_proj": "mlp"}, {"timm_pool": "max"}])
def test_a_timm_tower_that_reads_another_token_is_left_alone(tmp_path, vision):
    teacher = timm_teacher(tmp_path, **vision)
    assert spec_of_clip(teacher) is None
    with pytest.raises(UsageError, match=r"student\.init=clip needs a teacher"):
        make_student(StudentConfig(init="clip"), teacher)


def test_init_clip_refuses_another_architecture(tmp_path):
    with pytest.raises(UsageError, match=r"takes the teacher's architecture, regnetx_002; student\.name='clip"):
        make_student(StudentConfig(name="clip-vit", init="random"), timm_teacher(tmp_path))


@pytest.mark.parametrize("tower", ["vit", "timm"])
def test_student_and_teacher_share_no_memory(teacher, tower, tmp_path):
    """METHOD 15 row 8: the release's teacher is the student, so its distillation loss is always 0."""
    teacher = teacher if tower == "vit" else timm_teacher(tmp_path)
    student, _ = make_student(StudentConfig(), teacher)
    own = {value.data_ptr() for value in student.state_dict().values()}
    assert own.isdisjoint({value.data_ptr() for value in teacher.clip.state_dict().values()})


@pytest.mark.parametrize(
    ("embed", "shared", "numbers"),
    [
        ("mlp2", True, 32 * 24 + 24 + 24 * 24 + 24),
        ("clip_proj", True, 32 * 24),
        ("mlp2_local", False, 2 * 32 * 24 + 624),
    ],
)
def test_embedding_layers(teacher, embed, shared, numbers):
    student, _ = make_student(StudentConfig(embed=embed), teacher)
    assert (student.embed_cls is student.embed_patches) == shared
    assert sum(value.numel() for value in student.embedding_parameters()) == numbers


@pytest.mark.parametrize(
    ("name", "size", "patches", "width"),
    [
        ("vit_tiny_patch16_224", 64, 16, 192),
        ("tf_efficientnet_lite0", 64, 4, 1280),
        ("tiny_vit_5m_224", 64, 4, 320),
        ("swin_tiny_patch4_window7_224", 224, 49, 768),
    ],
)
def test_timm_encoders_give_tokens(name, size, patches, width):
    spec = EncoderSpec(name, size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    student = Student(spec, build_encoder(spec), embed="mlp2", embed_act="tanh", embed_dim=8).eval()
    assert (student.num_patches, student.width) == (patches, width)
    with torch.no_grad():
        cls, local = student(torch.rand(2, 3, size, size))
    assert cls.shape == (2, 8)
    assert local.shape == (2, patches, 8)


def test_cnn_class_token_is_the_mean_of_the_map():
    encoder = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        cls, patches = tokens(encoder, images)
        torch.testing.assert_close(cls, encoder.global_pool(encoder.forward_features(images)))
        torch.testing.assert_close(patches[0, 1], encoder.forward_features(images)[0, :, 0, 1])


def test_spec_survives_json():
    spec = EncoderSpec("clip-vit", 64, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), 8, 32, 2, 2, 4.0, True)
    assert EncoderSpec.from_json(spec.to_json()) == spec


def test_weights_file_is_loaded_and_checked(tmp_path):
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    full = tmp_path / "full.safetensors"
    save_file(state, full)
    encoder = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    load_encoder_file(encoder, full, "tf_efficientnet_lite0")
    torch.testing.assert_close(encoder.conv_stem.weight, state["conv_stem.weight"])
    partial = tmp_path / "partial.safetensors"
    save_file({key: value for key, value in state.items() if key != "bn1.weight"}, partial)
    with pytest.raises(BadData, match=r"lacks 1 weights of lite0, the first is 'bn1\.weight'"):
        load_encoder_file(encoder, partial, "lite0")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(BadData, match="not a weights file"):
        load_encoder_file(encoder, tmp_path / "text.safetensors", "lite0")
    with pytest.raises(UsageError, match="do not exist"):
        load_encoder_file(encoder, tmp_path / "absent.pth", "lite0")


def test_unknown_student_names_close_ones(teacher):
    with pytest.raises(UsageError, match="'vit_tiny_patch17_224' is no model of timm"):
        make_student(StudentConfig(name="vit_tiny_patch17_224"), teacher)


def test_a_failed_download_names_the_remedy(teacher, monkeypatch):
    def offline(*args, pretrained=False, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(MissingDependency, match=r"--student vit_tiny_patch16_224:/path/to/weights"):
        make_student(StudentConfig(name="vit_tiny_patch16_224"), teacher)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_betwixt_patch16_reg4_gap_256", "test_vit"])
def test_tokens_are_normed_and_registers_are_no_class_token(name):
    """Planted mistakes: the norm of averaging ViTs skipped; the first register taken for the class token."""
    encoder = timm.create_model(name, num_classes=0).eval()
    size = encoder.patch_embed.img_size[0]
    with torch.no_grad():
        for norm in (encoder.norm, encoder.fc_norm):
            if hasattr(norm, "weight"):
                norm.weight.fill_(3.0)
        cls, patches = tokens(encoder, torch.randn(2, 3, size, size))
    assert patches.std(dim=-1).mean() == pytest.approx(3, abs=0.1)
    if encoder.cls_token is None:
        assert torch.allclose(cls, patches.mean(dim=1))
    else:
        assert cls.std(dim=-1).mean() == pytest.approx(3, abs=0.1)
