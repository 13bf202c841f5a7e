"""Configuration: presets, precedence, unknown keys, bad values."""

import pytest
import tomli_w

from hpdval_edge.config import Config, as_table, flatten, load_config, override, parse_assignments, read_toml
from hpdval_edge.errors import UsageError
from hpdval_edge.presets import DEMO_STUDENT, PRESETS


def test_values_win_over_project_over_preset(tmp_path):
    project = tmp_path / "hpedge.toml"
    project.write_text('preset = "paper"\n[loss]\nname = "db"\n[train]\nbatch_size = 8\n')
    config = load_config(project=project, values={"train.batch_size": "4"})
    assert (config.preset, config.loss.name, config.train.batch_size) == ("paper", "db", 4)
    assert config.prompt.init == "gaussian"
    assert load_config(preset="release", project=project).preset == "release"


def test_the_preset_that_gives_the_name_gives_the_settings():
    """Planted mistake: a second preset among the values, as hpedge.toml may bring one, overwrites the name alone."""
    both = load_config(preset="release", values={"data.path": "photos", "preset": "paper"})
    assert both == load_config(preset="release", values={"data.path": "photos"})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_written_configuration_reads_back(preset, tmp_path):
    config = load_config(preset=preset, values={"prompt.global": "fixed", "seed": "3", "data.cache": "false"})
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(as_table(config)))
    assert load_config(values=read_toml(path)) == config


def test_presets_differ_where_the_method_says():
    paper, release = load_config(preset="paper"), load_config(preset="release")
    recommended = load_config(values={"data.path": "photos"})
    assert (paper.loss.pos_scale, paper.loss.rebalance, paper.train.ema, paper.eval.select) == (
        "eq14",
        "class",
        0,
        "last",
    )
    assert (paper.train.stage1.lr, paper.train.stage2.lr, paper.fuse.alpha) == (1e-5, 5e-6, 0.4)
    assert (release.sim.kind, release.fuse.alpha, release.loss.focal, release.loss.pos_scale) == (
        "l2class",
        0.6,
        "batch",
        "10",
    )
    assert (recommended.loss.pos_scale, recommended.loss.rebalance, recommended.sc.target) == (
        "one_plus",
        "instance",
        "both",
    )


def test_demo_needs_no_download_whatever_the_preset():
    for preset in PRESETS:
        config = load_config(preset=preset)
        assert (config.teacher.spec, config.student.name, config.student.init) == ("demo", "auto", "auto")
    assert load_config(values={"data.path": "photos"}).teacher.spec == "ViT-B-16-quickgelu:openai"
    assert load_config(values={"teacher.spec": "mine:file"}).teacher.spec == "mine:file"


def test_demo_settings_follow_its_own_student_only():
    """Planted mistake: the demo's k forced on the student that the user named."""
    assert load_config().fuse.topk == DEMO_STUDENT["fuse.topk"]
    assert load_config(values={"fuse.topk": 2}).fuse.topk == 2
    for values in ({"student.name": "vit_tiny_patch16_224"}, {"teacher.spec": "mine:file"}):
        assert load_config(values=values).fuse.topk == 0
    assert load_config(preset="paper").fuse.topk == PRESETS["paper"]["fuse.topk"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("loss.nmae", "db", "unknown configuration key 'loss.nmae'.*name, rebalance"),
        ("los.name", "db", "'los' is not one of preset, seed, data"),
        ("loss", "db", "'loss' is a table"),
        ("seed.x", "1", "has no keys of its own"),
        ("loss.name", "dbb", "'dbb' is not one of dbstar, db"),
        ("train.batch_size", "many", "'many' is not a int"),
        ("train.batch_size", "0", "must be positive"),
        ("data.cache", "maybe", "neither true nor false"),
        ("fuse.alpha", "1.5", r"must lie in \[0, 1\]"),
        ("train.ema", "1", r"must lie in \[0, 1\)"),
        ("sim.logit_scale", "-3", "neither learn nor a positive number"),
        ("loss.pos_scale", "eq15", "neither eq14 nor one_plus nor none nor a positive number"),
        ("loss.pos_scale", "inf", "nor a positive number"),
        ("train.stage1.epochs", "-1", "must not be negative"),
        ("train.stage1.weight_decay", "-1", "must not be negative"),
        ("eval.bootstrap", "-1", "must not be negative"),
        ("seed", "-1", "must not be negative"),
        ("kd.weight", "nan", "neither auto nor 0 nor a positive number"),
        ("preset", "fast", "preset 'fast' is not one of"),
    ],
)
def test_mistakes_are_named(key, value, message):
    with pytest.raises(UsageError, match=message):
        load_config(values={key: value})


def test_broken_project_file_is_named(tmp_path):
    path = tmp_path / "hpedge.toml"
    path.write_text("[loss\n")
    with pytest.raises(UsageError, match=r"hpedge\.toml is not valid TOML"):
        load_config(project=path)


def test_assignments():
    assert parse_assignments(["a.b=c=d", " x = 1"]) == {"a.b": "c=d", "x": "1"}
    with pytest.raises(UsageError, match="key=value"):
        parse_assignments(["novalue"])


def test_flatten_and_table_are_inverse():
    config = override(Config(), {"loss.lam": 2})
    assert flatten(as_table(config))["loss.lam"] == 2.0
    assert override(Config(), flatten({"loss": {"lam": 2}})) == config
