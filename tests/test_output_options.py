"""Options of outputs that cannot be honoured: one sentence, before any work is done."""

import os
import sys

import pytest

from hpdval_edge.errors import MissingDependency
from hpdval_edge.outputs.chosen import OutputOptions, open_outputs
from hpdval_edge.outputs.film import Film

FOLDERS = ("--overlay", "--maps", "--monitor")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--output", "r.xml"], 2, "--output r.xml must end in one of .jsonl, .csv, .parquet"),
        (["--map-raw"], 2, "--map-raw belongs to --maps"),
        (["--map-label", "red"], 2, "--map-label belongs to --maps DIR or --overlay DIR"),
        (["--maps", "m", "--map-label", "pink"], 2, "--map-label 'pink' is no label of the model; it has red, green"),
        (["--to", "ftp://x/y"], 2, "--to ftp://x/y begins with none of http://, https://, mqtt://, mqtts://"),
    ],
)
def test_mistakes_are_one_sentence(run_hpedge, tiny, tiny_bundle, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    found, out, err = run_hpedge("infer", tiny / "test" / "00.png", "--model", tiny_bundle, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        *(([option, "file"], 4, "file cannot be written (Not a directory)") for option in FOLDERS),
        *(([option, "file/a/b"], 4, "file/a/b cannot be written (Not a directory)") for option in FOLDERS),
        (["--output", "file/r.csv"], 4, "file cannot be written (Not a directory); choose another folder"),
        (["--output", "folder.csv"], 2, "--output folder.csv is a folder; name a file"),
        (["--overlay", "locked/a"], 4, "locked/a cannot be written (Permission denied)"),
    ],
)
def test_folders_that_are_none_are_told_before_the_model_is_loaded(
    run_hpedge, tmp_path, monkeypatch, arguments, code, message
):
    """There is no model here. Planted mistakes: told at the first picture; a folder made by the check; at the end of
    all work, of a table that becomes a folder.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "photo.png").touch()
    for folder in ("folder.csv", "locked"):
        (tmp_path / folder).mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and not str(path).endswith("locked"))
    found, out, err = run_hpedge("infer", "photo.png", "--model", "absent.hpedge", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.csv", "locked", "photo.png"]


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("hpdval_edge.outputs.parquet", ["--output", "r.parquet"], "parquet"),
        ("av", ["--overlay", "o"], "video"),
    ],
)
def test_a_missing_package_names_its_extra(make_result, two_labels, tmp_path, monkeypatch, module, arguments, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf"is not installed.*hpdval-edge\[{extra}\]"):
        if extra == "video":
            Film(tmp_path / "a.mp4")
        else:
            open_outputs(OutputOptions(output=tmp_path / "r.parquet"), None, two_labels, sys.stdout)
    assert not list(tmp_path.iterdir())
