"""The folder of a run: its name, the last one, configurations of earlier versions."""

from pathlib import Path

import pytest

from hpdval_edge.errors import UsageError
from hpdval_edge.training.run_folder import RunFolder, create_run, find_run


def test_a_run_that_never_began_leaves_its_name_free(tmp_path, monkeypatch):
    """Killed before config.toml. Planted mistake: any folder takes the name."""
    monkeypatch.chdir(tmp_path)
    Path("runs/x").mkdir(parents=True)
    assert create_run("x", "run").name == create_run(None, "x").name == "x"
    (Path("runs") / "last").write_text("x")
    with pytest.raises(UsageError, match="run runs/last exists"):
        create_run("last", "run")


def test_no_run_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="run `hpedge train` first"):
        find_run(None)


def test_a_run_of_the_first_version_keeps_its_settings(tiny_run, tmp_path):
    """Planted mistake: today's defaults for keys that its config.toml does not hold, which its state does not fit."""
    folder = tmp_path / "old"
    folder.mkdir()
    lines = (tiny_run / "runs" / "tiny" / "config.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("residual", "wise"))]
    assert len(kept) == len(lines) - 2
    (folder / "config.toml").write_text("\n".join(kept) + "\n")
    config = RunFolder(folder).config()
    assert (config.prompt.residual, config.train.wise) == (False, "off")
