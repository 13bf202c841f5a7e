"""``hpedge labels``, its signed files, and the text space that new labels are embedded in."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpdval_edge import load_bundle
from hpdval_edge.bundle import sha256
from hpdval_edge.errors import BadData, MissingDependency, UsageError
from hpdval_edge.labels import NewLabels
from hpdval_edge.labels_file import SIGNED, make_keys, read_labels, write_labels

BUNDLE = "runs/tiny/model.hpedge"


@pytest.fixture
def hpedge(monkeypatch, run_hpedge, tiny_run, tiny_bundle, tmp_path_factory):
    """Run the command in a copy of the tiny run's folder; returns (exit code, stdout, stderr)."""
    work = shutil.copytree(tiny_run, tmp_path_factory.mktemp("labels") / "work")
    monkeypatch.chdir(work)
    return run_hpedge


@pytest.fixture
def new():
    banks = np.random.default_rng(0).standard_normal((2, 2, 24)).astype(np.float32)
    return NewLabels(("heron", "grey wagtail"), *banks, "ab" * 32)


def test_a_run_s_own_labels_are_embedded_as_they_were_trained(tiny_run, tiny_bundle, monkeypatch):
    """Stage 2 learnt contexts here. Planted mistakes: the fixed prompts taken in spite of them, the two contexts
    exchanged."""
    from hpdval_edge.training.model import read_weights
    from hpdval_edge.training.run_folder import find_run, reported_weights
    from hpdval_edge.training.text_banks import new_labels, text_space

    monkeypatch.chdir(tiny_run)
    run, bundle = find_run("tiny"), load_bundle(tiny_bundle)
    made = new_labels(run, bundle.manifest.labels)
    tensors, _ = read_weights(reported_weights(run))
    assert "prompts.global_context" in tensors
    assert made.fingerprint == bundle.manifest.provenance["text_space"] == text_space(run).fingerprint
    for view in ("text_global", "text_local"):
        trained = (tensors[view] - tensors[f"residuals.{view}"]).numpy()
        np.testing.assert_allclose(getattr(made, view), trained, atol=1e-5)
    assert not np.allclose(made.text_global, made.text_local, atol=1e-3)


def test_what_labels_learnt_for_themselves_is_no_other_teacher(tiny_run, tiny_bundle, tmp_path):
    """Planted mistake: banks compared with their residuals."""
    from safetensors.torch import save_file

    from hpdval_edge.training.model import read_weights
    from hpdval_edge.training.run_folder import RunFolder, reported_weights
    from hpdval_edge.training.text_banks import text_space

    run = RunFolder(shutil.copytree(tiny_run / "runs" / "tiny", tmp_path / "tiny"))
    tensors, metadata = read_weights(reported_weights(run))
    for view in ("text_global", "text_local"):
        for name in (view, f"residuals.{view}"):
            tensors[name] = tensors[name] + 1
    save_file(tensors, reported_weights(run), metadata=metadata)
    assert text_space(run).fingerprint == load_bundle(tiny_bundle).manifest.provenance["text_space"]


def test_another_teacher_or_other_prompts_are_another_text_space(tiny_run, tiny_bundle, tiny, monkeypatch, tmp_path):
    """Planted mistakes: contexts, wording or activation left out of the fingerprint; a teacher whose file was replaced
    is taken."""
    from dataclasses import replace

    import torch
    from safetensors.torch import load_file, save_file

    from hpdval_edge.training.run_folder import RunFolder, find_run
    from hpdval_edge.training.text_banks import text_space

    monkeypatch.chdir(tiny_run)
    space = text_space(find_run("tiny"))
    worded = replace(space.config, prompt=replace(space.config.prompt, period=False))
    name, context = next(iter(space.contexts.items()))
    others = [
        replace(space, contexts={}),
        replace(space, contexts={**space.contexts, name: context + 1e-3}),
        replace(space, config=worded),
    ]
    assert len({space.fingerprint, *(other.fingerprint for other in others)}) == 4
    for block in space.tower.transformer.resblocks:
        block.mlp.gelu = torch.nn.ReLU()
    assert text_space(find_run("tiny")).fingerprint != space.fingerprint
    copy = shutil.copytree("runs/tiny", tmp_path / "tiny")
    shutil.copy(tiny / "teacher.json", tmp_path)
    state = load_file(tiny / "teacher.safetensors")
    save_file({key: value.flip(0) for key, value in state.items()}, tmp_path / "teacher.safetensors")
    config = (copy / "config.toml").read_text().replace(str(tiny / "teacher"), str(tmp_path / "teacher"))
    (copy / "config.toml").write_text(config)
    with pytest.raises(BadData, match=r"no longer gives the text embeddings that .*tiny was trained with"):
        text_space(RunFolder(copy))


@pytest.mark.slow
def test_an_export_without_its_teacher_says_that_no_label_fits(hpedge, tiny):
    """Planted mistake: the export fails."""
    path = Path("runs/tiny/config.toml")
    path.write_text(path.read_text().replace(str(tiny / "teacher"), "gone"))
    code, _, err = hpedge("export", "tiny", "--out", "other.hpedge")
    assert code == 0
    assert "`hpedge labels add` will refuse this bundle" in err
    assert "text_space" not in load_bundle("other.hpedge").manifest.provenance


def test_labels_are_added_listed_fitted_and_measured(hpedge, tiny):
    """From a name to a fitted threshold. Planted mistakes: the mark kept after calibrate, dropped for a label that no
    picture shows, lost in eval; model.onnx changed."""
    model = load_bundle(BUNDLE).manifest.files["model.onnx"]
    code, out, err = hpedge("labels", "add", BUNDLE, "dark", "heron")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{BUNDLE}: added dark, heron; 6 labels"
    assert out.splitlines()[1] == f"thresholds of 2 are not fitted; next: hpedge calibrate {BUNDLE} --data LIST"
    assert load_bundle(BUNDLE).manifest.files["model.onnx"] == model
    _, out, _ = hpedge("labels", "list", BUNDLE)
    assert [line.endswith("  not fitted") for line in out.splitlines()] == [False] * 4 + [True] * 2
    listed = json.loads(hpedge("labels", "list", BUNDLE, "--json")[1])
    assert [row["fitted"] for row in listed["labels"]] == [True] * 4 + [False] * 2
    rows = (tiny / "val.csv").read_text().splitlines()
    marked = (f"{tiny}/{row}{';dark' if number % 3 else ''}" for number, row in enumerate(rows[1:]))
    Path("val.csv").write_text("\n".join([rows[0], *marked]))
    code, out, err = hpedge("eval", BUNDLE, "--data", "val.csv", "--images", "/", "--json")
    assert code == 0, err
    assert json.loads(out)["unfitted"] == ["dark", "heron"]
    assert "note: thresholds not fitted, but counted in OF1 and CF1: dark, heron; fit them with hpedge cal" in err
    assert json.loads(out)["groups"]["tail"] == 6 and json.loads(out)["n_absent"] == 1
    code, out, err = hpedge("calibrate", BUNDLE, "--data", "val.csv", "--images", "/")
    assert code == 0, err
    assert "not fitted, for no picture shows them: heron" in out
    assert load_bundle(BUNDLE).unfitted == {"heron"}


def test_the_run_is_found_or_named(hpedge, tmp_path):
    shutil.move(BUNDLE, "alone.hpedge")
    assert hpedge("labels", "add", "alone.hpedge", "heron")[0] == 0
    elsewhere = shutil.move("runs", "kept")
    code, _, err = hpedge("labels", "add", "alone.hpedge", "wren")
    assert code == 2
    assert "the run 'tiny' of bundle alone.hpedge is not here; pass --run" in err
    assert hpedge("labels", "add", "alone.hpedge", "wren", "--run", f"{elsewhere}/tiny")[0] == 0


def test_a_signed_file_goes_to_the_board(hpedge):
    """Planted mistake: embeddings in the file other than those added by name."""
    shutil.copytree(BUNDLE, "board.hpedge")
    assert hpedge("labels", "keygen", "key")[0] == 0
    code, out, err = hpedge("labels", "embed", "heron", "--run", "tiny", "--out", "new.labels", "--key", "key")
    assert code == 0, err
    assert "new.labels: heron, signed, text space " in out
    code, out, err = hpedge("labels", "add", "board.hpedge", "--from", "new.labels", "--key", "key.pub")
    assert code == 0, err
    assert hpedge("labels", "add", BUNDLE, "heron")[0] == 0
    np.testing.assert_allclose(load_bundle("board.hpedge").text_local, load_bundle(BUNDLE).text_local, atol=1e-6)
    code, out, _ = hpedge("labels", "rename", "board.hpedge", "heron", "grey heron")
    assert code == 0 and out.startswith("board.hpedge: heron is grey heron now; 5 labels\n")
    assert hpedge("labels", "reorder", "board.hpedge", "grey heron")[0] == 0
    assert hpedge("labels", "remove", "board.hpedge", "red", "blue")[0] == 0
    assert load_bundle("board.hpedge").manifest.labels == ("grey heron", "green", "bright square")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["add", BUNDLE], 2, "name the labels to add, or pass --from"),
        (["add", BUNDLE, "a", "--from", "x"], 2, "name the labels to add, or pass --from"),
        (["add", BUNDLE, "a", "--key", "x"], 2, "--key and --unsigned belong to --from"),
        (["add", BUNDLE, "--from", "x", "--run", "y"], 2, "--run y embeds names"),
        (["add", BUNDLE, "--from", "x"], 2, "pass either --key with the public key"),
        (["add", BUNDLE, "--from", "absent", "--unsigned"], 2, "absent cannot be read: No such file"),
        (["add", BUNDLE, "red"], 2, "label 'red' would be there twice"),
        (["add", BUNDLE, "word " * 80], 2, "is no label name"),
        (["add", BUNDLE, ("word " * 80).strip()], 3, "tokens, the text tower has 77; shorten the label"),
        (["add", BUNDLE, "a", "--run", "none"], 2, "'none' is no run"),
        (["add", "absent.hpedge", "a"], 2, "does not exist"),
        (["embed", "a", "--out", "x"], 2, "pass either --key with a private key"),
        (["remove", BUNDLE, "rde"], 2, "'rde' is none of the 4 labels of runs/tiny/model.hpedge; close: red"),
    ],
)
def test_wrong_commands(hpedge, arguments, code, message):
    before = sha256(Path(BUNDLE, "manifest.json").read_bytes())
    found, out, err = hpedge("labels", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert sha256(Path(BUNDLE, "manifest.json").read_bytes()) == before


def test_files_of_labels_come_back_as_they_were(tmp_path, new):
    public = make_keys(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    for key, options in ((tmp_path / "key", {"key": public}), (None, {"key": None, "unsigned": True})):
        write_labels(tmp_path / "new.labels", new, key)
        found = read_labels(tmp_path / "new.labels", **options)
        assert (found.names, found.fingerprint) == (new.names, new.fingerprint)
        np.testing.assert_array_equal(found.text_global, new.text_global)
        np.testing.assert_array_equal(found.text_local, new.text_local)
    with pytest.raises(UsageError, match=r"key is there already; .* is not replaced"):
        make_keys(tmp_path / "key")


def test_keys_are_made_both_or_neither(tmp_path):
    """Planted mistakes: the private key left without its public one; a traceback for a name that is too long."""
    for length, written in ((240, "240 letters fit, the public key's name does not"), (300, "nor do 300")):
        with pytest.raises(MissingDependency, match=r"cannot be written \(File name too long\)"):
            make_keys(tmp_path / ("k" * length))
        assert not list(tmp_path.iterdir()), written


def test_whatever_is_altered_is_refused(tmp_path, new):
    """Every seventh byte in turn. Planted mistakes: the signature not looked at; another key's taken."""
    public, path = make_keys(tmp_path / "key"), tmp_path / "new.labels"
    write_labels(path, new, tmp_path / "key")
    data = path.read_bytes()
    for place in (*range(0, len(data), 7), len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(BadData):
            read_labels(path, public)
    for changed in (data[:-1], data + b"x", data[: len(SIGNED)], b""):
        path.write_bytes(changed)
        with pytest.raises(BadData):
            read_labels(path, public)
    path.write_bytes(data)
    with pytest.raises(BadData, match=r"is not by the key of .*other\.pub, or the file was altered; nothing was added"):
        read_labels(path, make_keys(tmp_path / "other"))
    for key, message in ((tmp_path / "key", "no public Ed25519 key"), (path, "no public Ed25519 key")):
        with pytest.raises(UsageError, match=message):
            read_labels(path, key)
    with pytest.raises(UsageError, match=r"no private Ed25519 key; .* the file without .pub signs"):
        write_labels(path, new, public)


def test_unsigned_files_need_a_word(tmp_path, new):
    """Planted mistake: an unsigned file passes where a key is given."""
    write_labels(tmp_path / "new.labels", new, None)
    with pytest.raises(BadData, match=r"new\.labels is not signed; make it with --key, or pass --unsigned"):
        read_labels(tmp_path / "new.labels", make_keys(tmp_path / "key"))
    with pytest.raises(UsageError, match="pass either --key"):
        read_labels(tmp_path / "new.labels", None)


def test_damaged_unsigned_files_are_one_sentence(tmp_path, new):
    path = tmp_path / "new.labels"
    write_labels(path, new, None)
    data = path.read_bytes()
    names, number = rb"[\"heron\"", b"[       10"
    assert names in data and len(names) == len(number)
    for changed in (data[:40], data[:-1], data.replace(names, number), data.replace(b"names", b"mames")):
        path.write_bytes(changed)
        with pytest.raises(BadData, match=r"is damaged"):
            read_labels(path, None, unsigned=True)


def test_without_cryptography_the_extra_is_named(tmp_path, new, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(MissingDependency, match=r"pip install 'hpdval-edge\[labels\]'; or use --unsigned"):
        make_keys(tmp_path / "key")
    write_labels(tmp_path / "new.labels", new, None)
    assert read_labels(tmp_path / "new.labels", None, unsigned=True).names == new.names
