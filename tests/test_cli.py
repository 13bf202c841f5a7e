"""The command line as a user meets it: help, exit codes, outputs, overlays, bad pictures."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.outputs.names import FileNames
from hpdval_edge.overlay import draw_overlay, heat_map
from hpdval_edge.predictor import Prediction

VERBS = (
    *("train", "eval", "export", "infer", "calibrate", "data", "report", "maps", "monitor"),
    *("reproduce", "sweep", "complexity", "kernels", "labels", "doctor", "bench", "serve"),
)


@pytest.fixture
def hpedge(monkeypatch, run_hpedge, tiny_run, tiny_bundle, tmp_path_factory):
    """Run the command in a copy of the tiny run's folder; returns (exit code, stdout, stderr)."""
    work = shutil.copytree(tiny_run, tmp_path_factory.mktemp("cli") / "work")
    monkeypatch.chdir(work)
    return run_hpedge


def test_help_is_instant_and_imports_no_torch():
    """The best of five against the contract's 0.3 s is printed by benchmarks; here only what would make it slow."""
    code = (
        "import sys; from hpdval_edge import cli; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = subprocess.run([sys.executable, "-m", "hpdval_edge", "--help"], capture_output=True, text=True, check=True)
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize(
    "verb", [*(verb for verb in VERBS if verb not in ("data", "kernels", "labels")), "kernels build", "labels add"]
)
def test_every_verb_shows_examples(hpedge, verb):
    code, out, _ = hpedge(*verb.split(), "--help")
    assert code == 0
    assert f"  hpedge {verb}" in out


def test_version(hpedge):
    from hpdval_edge import __version__

    assert hpedge("--version") == (0, f"hpedge {__version__}\n", "")


def test_train_prints_the_table_and_the_next_step(hpedge, tiny_values):
    values = [f"--set={key}={value}" for key, value in tiny_values.items()]
    code, out, err = hpedge("train", "--name", "by-hand", *values)
    assert code == 0, err
    assert out.splitlines()[0].split()[:2] == ["mAP", "head"]
    assert "stage2" in out
    assert "next: hpedge export --fp16" in out
    assert "stage1 epoch 2/2" in err


def test_interrupted_training_is_130_and_goes_on(hpedge, tiny_values):
    values = [f"--set={key}={value}" for key, value in tiny_values.items()]
    code, out, err = hpedge("train", "--name", "stopped", "--stop-after", "1", *values)
    assert (code, out) == (130, "")
    assert "continue with: hpedge train --resume" in err
    code, out, _ = hpedge("train", "--resume", "--json")
    assert code == 0
    assert json.loads(out)["metrics"]["stage2"]["n_images"] == 16


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--set", "loss.nmae=db"], 2, "unknown configuration key"),
        (["train", "--stage", "3"], 2, "not one of 1, 2, all"),
        (["train", "--resume", "--preset", "paper"], 2, "keeps its own preset"),
        (["train", "--data", "absent.csv"], 2, "absent.csv"),
        (["train", "--nonsense"], 2, "No such option"),
        (["export", "absent"], 2, "is no run"),
        (["infer", "absent.jpg", "--model", "absent.hpedge"], 2, "'absent.jpg' matches no file"),
        (["infer", "x.jpg", "--format", "xml"], 2, "'xml' is not one of table, jsonl, csv"),
        (["eval", "absent.hpedge"], 2, "pass --data"),
    ],
)
def test_mistakes_are_one_line_with_the_right_code(hpedge, arguments, code, message):
    found, out, err = hpedge(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_missing_extra_is_named(hpedge, monkeypatch):
    monkeypatch.setitem(sys.modules, "hpdval_edge.training.train", None)
    code, _, err = hpedge("train")
    assert code == 4
    assert "pip install 'hpdval-edge[train]'" in err


def test_infer_table_jsonl_csv_agree(hpedge, tiny, tiny_bundle):
    pictures = tiny / "test"
    code, table, err = hpedge("infer", pictures, "--top", "2")
    assert code == 0
    assert "16 of 16 pictures" in err
    lines = [json.loads(line) for line in hpedge("infer", pictures, "--top", "2", "--format", "jsonl")[1].splitlines()]
    rows = list(csv.DictReader(io.StringIO(hpedge("infer", pictures, "--top", "2", "--format", "csv")[1])))
    assert len(table.splitlines()) == len(lines) == len(rows) == 16
    for text, line, row in zip(table.splitlines(), lines, rows, strict=True):
        assert text.startswith(line["path"])
        assert row["labels"].split(";") == line["labels"]
        assert float(row["red"]) == pytest.approx(line["scores"]["red"], abs=1e-6)
        assert all(label in text for label in line["labels"])


def test_a_bad_picture_is_reported_and_the_rest_goes_on(hpedge, tiny, tiny_bundle, tmp_path):
    """Planted mistake: exit code 0, or no result after the bad picture."""
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes((tiny / "test" / "00.png").read_bytes())
    (tmp_path / "b.png").write_bytes((tiny / "test" / "01.png").read_bytes()[:200])
    code, out, err = hpedge("infer", tmp_path, "--batch", "1")
    assert code == 3
    assert [line.split()[0].split("/")[-1] for line in out.splitlines()] == ["a.png", "c.png"]
    assert "b.png" in err
    assert "2 of 3 pictures" in err


def test_overlays_are_written_for_every_picture(hpedge, tiny, tiny_bundle, tmp_path):
    code, _, err = hpedge("infer", tiny / "test" / "00.png", tiny / "train" / "00.png", "--overlay", tmp_path / "ov")
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "ov").iterdir())
    assert names == ["00-2.png", "00.png"]
    with Image.open(tmp_path / "ov" / "00.png") as page:
        assert page.width == 640
        assert np.asarray(page).std() > 20


def test_eval_of_a_run_and_of_its_bundle_agree(hpedge, tiny, tiny_bundle):
    code, out, err = hpedge("eval", "tiny", "--json")
    assert code == 0, err
    run = json.loads(out)
    bundle = json.loads(hpedge("eval", "runs/tiny/model.hpedge", "--data", tiny / "test.csv", "--json")[1])
    assert run["mAP"] == pytest.approx(bundle["mAP"], abs=2)
    assert (run["split"], bundle["split"]) == ("test", "test.csv")


def test_eval_of_a_run_repeats_its_report(hpedge, tiny_run):
    report = json.loads((tiny_run / "runs" / "tiny" / "metrics.json").read_text())["stage2"]
    assert json.loads(hpedge("eval", "tiny", "--json")[1])["per_class"] == report["per_class"]


def test_export_prints_its_own_check(hpedge, tiny_run, tmp_path):
    code, out, err = hpedge("export", "tiny", "--out", tmp_path / "x.hpedge", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["max_error"]["onnx"] <= report["tolerance"] == 1e-4


def test_overlay_names_never_clash(tmp_path):
    name = FileNames(tmp_path)
    names = [name(path) for path in ("a/x.jpg", "b/X.png", "x-2.jpg")]
    assert len({str(name).lower() for name in names}) == 3


def test_heat_map_is_hot_where_the_score_is_high():
    grid = np.zeros((4, 4), np.float32)
    grid[0, 3] = 1
    colours, opacity = heat_map(grid, (80, 80))
    assert opacity.getpixel((75, 5)) > 100 > opacity.getpixel((5, 75))
    assert sum(colours.getpixel((75, 5))) > sum(colours.getpixel((5, 75)))
    flat = heat_map(np.ones((4, 4), np.float32), (8, 8))[1]
    assert flat.getextrema() == (0, 0)


def test_overlay_of_a_long_label_and_a_tall_picture_fits():
    labels = tuple(f"a rather long label name that goes on and on, number {i}" for i in range(30))
    prediction = Prediction(labels[:15], np.linspace(0.3, -0.1, 30, dtype=np.float32), np.random.rand(7, 7, 30))
    page = draw_overlay(Image.new("RGB", (40, 400)), prediction, labels, np.zeros(30, np.float32), title="x" * 200)
    assert page.width == 640
    assert page.height > 2000


def test_progress_is_silent_for_short_work(capsys):
    from hpdval_edge.progress import progress

    with progress("work", 3) as update:
        update(3, 3)
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_said(hpedge, monkeypatch, tmp_path):
    """Planted mistake: typer's silent exit code 130."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr("hpdval_edge.infer.last_export", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, err = hpedge("infer", tmp_path)
    assert (code, err) == (130, "hpedge: interrupted; finished files are kept.\n")
