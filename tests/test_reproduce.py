"""Tables and sweeps on the tiny project: cells that are kept, shared, refused; what is written; the paper's numbers."""

import csv
import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file

from hpdval_edge import cli
from hpdval_edge.errors import CheckFailed, UsageError
from hpdval_edge.training.evaluate import model_scorer, score_store
from hpdval_edge.training.measure import measure
from hpdval_edge.training.metrics import multilabel_report
from hpdval_edge.training.model import load_model, read_weights
from hpdval_edge.training.reproduce import runner
from hpdval_edge.training.reproduce.cells import TABLES
from hpdval_edge.training.reproduce.experiment import Options, reproduce, sweep_values
from hpdval_edge.training.run_folder import find_run, reported_weights
from hpdval_edge.training.session import load_data, make_stores, prepare
from hpdval_edge.training.train import Interrupted


@pytest.fixture(scope="module")
def options(tiny, tiny_values):
    """One epoch a stage on the tiny project."""
    values = {key: value for key, value in tiny_values.items() if key != "data.path"}
    values |= {"train.stage1.epochs": "1", "train.stage2.epochs": "1", "eval.bootstrap": "0"}
    return Options(data=[str(tiny)], values=values)


@pytest.fixture(scope="module")
def table6(options, tmp_path_factory):
    """Working folder with a finished table6."""
    folder = tmp_path_factory.mktemp("table6")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        reproduce("table6", options)
    return folder


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that were trained, in order."""
    names, original = [], runner.train

    def train(config, options, values):
        names.append(options.name)
        return original(config, options, values)

    monkeypatch.setattr(runner, "train", train)
    return names


def results(out):
    return list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))


def name(experiment, cell, dataset):
    return f"{experiment}-{dataset}-{cell}-s0"


def test_stage_1_is_trained_once_for_all_rows_of_table6(table6, tiny):
    """Planted mistake: no run adopts another's stage 1."""
    runs = {cell.name: table6 / "runs" / name("table6", cell.name, tiny.name) for cell in TABLES["table6"].cells}
    weights = {cell: (run / "weights" / "stage1.safetensors").read_bytes() for cell, run in runs.items()}
    assert len(set(weights.values())) == 1
    for cell, run in runs.items():
        stages = {json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()}
        assert stages == ({"stage1"} if cell == "none" else {"stage2"})
    contexts = {cell: load_file(runs[cell] / "weights" / "last.safetensors") for cell in ("global", "local", "both")}
    start = contexts["local"]["prompts.global_context"]
    assert not np.array_equal(contexts["both"]["prompts.global_context"], start)
    assert np.array_equal(contexts["local"]["prompts.global_context"], start)


def test_a_second_call_trains_nothing_and_writes_the_same(table6, options, trained, monkeypatch):
    monkeypatch.chdir(table6)
    files = ("results.csv", "table.md", "cells.json")
    before = {file: (table6 / "reproduce" / "table6" / file).read_text() for file in files}
    reproduce("table6", options)
    assert trained == []
    assert {file: (table6 / "reproduce" / "table6" / file).read_text() for file in files} == before


def test_the_csv_holds_the_runs_reports(table6, tiny):
    rows = results(table6 / "reproduce" / "table6")
    assert [row["cell"] for row in rows] == ["none", "global", "local", "both"]
    for row in rows:
        report = json.loads((table6 / row["run"] / "metrics.json").read_text())[row["report"]]
        for key in ("mAP", "medium", "tail", "var", "std", "var_groups"):
            assert (row[key] == "") if report[key] is None else float(row[key]) == pytest.approx(report[key], abs=1e-4)
        assert row["dataset"] == tiny.name
        assert (row["seed"], row["split"]) == ("0", "test")
        assert float(row["seconds"]) > 0


def test_the_table_has_the_papers_numbers_their_notes_and_the_differences_of_protocol(table6):
    """Planted mistake: the row without a number of the paper shows the one below it."""
    text = (table6 / "reproduce" / "table6" / "table.md").read_text()
    lines = {line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if line.startswith("| ")}
    assert [cell.strip() for cell in lines["row"]][3] == "paper, COCO-LT"
    both = next(cells for row, cells in lines.items() if row.startswith("both learnt"))
    assert [both[i].strip() for i in (3, 5, 7, 9)] == ["76.19", "72.05", "79.12", "75.98"]
    none = next(cells for row, cells in lines.items() if row.startswith("no learnt prompts"))
    assert [none[i].strip() for i in (3, 5, 7, 9, 11)] == ["-"] * 5
    assert "The paper prints no row without learnt prompts." in text
    assert "Epochs: 1 + 1, batch 16 (the paper: 20 + 10, batch 32)." in text
    assert "train.stage1.lr 0.001 (paper 1e-05)" in text
    assert "Selection: the best epoch on validation pictures here" in text
    assert "prompt.global" not in text
    assert str(table6) not in text


def test_the_figure_is_drawn(table6):
    pixels = np.asarray(Image.open(table6 / "reproduce" / "table6" / "figure.png").convert("L"))
    assert pixels.shape[1] > 1000
    assert 0.005 < (pixels < 200).mean() < 0.3
    assert "<svg" in (table6 / "reproduce" / "table6" / "figure.svg").read_text()[:800]


def test_a_changed_setting_is_refused(table6, options, monkeypatch):
    """Planted mistake: a run is taken for done by its name alone."""
    monkeypatch.chdir(table6)
    changed = dataclasses.replace(options, values={**options.values, "fuse.alpha": "0.5"})
    with pytest.raises(UsageError, match=r"began with other settings \(fuse\.alpha was 0\.4, now 0\.5\)"):
        reproduce("table6", changed)
    reproduce("table6", dataclasses.replace(options, values={**options.values, "train.threads": "2"}))


def test_a_setting_that_came_with_a_later_version_stood_at_its_default(
    table6, options, tiny, trained, monkeypatch, tmp_path
):
    """Planted mistake: a run without the key counts as begun with another value."""
    folder = shutil.copytree(table6, tmp_path / "copy")
    monkeypatch.chdir(folder)
    file = folder / "runs" / name("table6", "none", tiny.name) / "cell.json"
    content = json.loads(file.read_text())
    del content["settings"]["student.tune"]
    file.write_text(json.dumps(content))
    chosen = dataclasses.replace(options, cells=["none"])
    reproduce("table6", chosen)
    with pytest.raises(UsageError, match=r"student\.tune was 'all', now 'embed'"):
        reproduce("table6", dataclasses.replace(chosen, values={**options.values, "student.tune": "embed"}))
    assert trained == []


def test_results_in_folders_of_their_own_have_runs_of_their_own(table6, options, tiny, trained, monkeypatch, tmp_path):
    """Planted mistakes: runs named by the last part of the folder; stage 1 taken from a run of another folder.

    Under --out the settings differ from those of the finished table6, which goes on untouched.
    """
    folder = shutil.copytree(table6, tmp_path / "copy")
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.glob("runs/table6-*/**/*") if path.is_file()}
    chosen = dataclasses.replace(options, cells=["none", "global"])
    for alpha, out in (("0.5", "a/table6"), ("0.6", "b/table6")):
        changed = dataclasses.replace(chosen, values={**options.values, "fuse.alpha": alpha}, out=Path(out))
        for _ in range(2):
            writer = reproduce("table6", changed)
        none, other = (find_run(Path(result.run).name) for result in writer.results)
        assert none.name == f"{out.replace('/', '-')}-{name('table6', 'none', tiny.name)}"
        assert none.config().fuse.alpha == other.config().fuse.alpha == float(alpha)
        assert none.weights("stage1").read_bytes() == other.weights("stage1").read_bytes()
        assert [row["run"] for row in results(folder / out)] == [str(none.path), str(other.path)]
    assert len(trained) == 4
    for out in (None, Path("reproduce/table6"), folder / "reproduce" / "table6"):
        reproduce("table6", dataclasses.replace(options, out=out))
    assert len(trained) == 4
    assert before == {path: path.read_bytes() for path in before}


def test_a_run_of_another_origin_is_refused(table6, options, tiny, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / name("table3", "bce", tiny.name)
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(UsageError, match="was not made by this command"):
        reproduce("table3", dataclasses.replace(options, cells=["bce"]))


def test_after_an_interruption_only_the_missing_cells_run(options, trained, tiny, monkeypatch, tmp_path):
    """Killed after cell 1 and in the middle of cell 2. Planted mistake: a done cell is trained again."""
    monkeypatch.chdir(tmp_path)
    counting = runner.train

    def train(config, options, values):
        budget = 1 if "mls" in options.name and trained.count(options.name) == 0 else None
        return counting(config, dataclasses.replace(options, stop_after=budget), values)

    monkeypatch.setattr(runner, "train", train)
    chosen = dataclasses.replace(options, cells=["bce", "mls"])
    with pytest.raises(Interrupted):
        reproduce("table3", chosen)
    bce, mls = (name("table3", cell, tiny.name) for cell in ("bce", "mls"))
    assert trained == [bce, mls]
    first = (tmp_path / "runs" / bce / "metrics.jsonl").stat().st_mtime_ns
    out = tmp_path / "reproduce" / "table3"
    assert [row["cell"] for row in results(out)] == ["bce"]
    assert "**1 of 2 cells so far.**" in (out / "table.md").read_text()
    reproduce("table3", chosen)
    assert trained == [bce, mls, mls]
    assert (tmp_path / "runs" / bce / "metrics.jsonl").stat().st_mtime_ns == first
    assert [row["cell"] for row in results(out)] == ["bce", "mls"]
    assert "so far" not in (out / "table.md").read_text()


def test_the_rest_of_an_interrupted_cell_follows_the_new_device(options, trained, tiny, monkeypatch, tmp_path):
    """Planted mistake: a run goes on with its own config.toml, whatever the call says."""
    monkeypatch.chdir(tmp_path)
    counting = runner.train

    def train(config, options, values):
        return counting(config, dataclasses.replace(options, stop_after=None if trained else 1), values)

    monkeypatch.setattr(runner, "train", train)
    chosen = dataclasses.replace(options, cells=["bce"])
    with pytest.raises(Interrupted):
        reproduce("table3", chosen)
    run = find_run(name("table3", "bce", tiny.name))
    assert run.config().train.device == "auto"
    reproduce("table3", dataclasses.replace(chosen, values={**options.values, "train.device": "cpu"}))
    assert run.config().train.device == "cpu"
    assert trained == [run.name] * 2


def test_the_softmax_of_a_run_and_of_the_table_are_one(options, tiny, monkeypatch, tmp_path):
    """Planted mistake: a run takes it of bare cosines."""
    monkeypatch.chdir(tmp_path)
    values = {**options.values, "eval.post": "softmax", "train.stage2.epochs": "0"}
    writer = reproduce("table1", dataclasses.replace(options, values=values, cells=["clip_zs_softmax", "hp_dval"]))
    zero_shot, trained = writer.results
    recorded = find_run(Path(trained.run).name).read_json("metrics.json")
    assert zero_shot.report["per_class"] == pytest.approx(recorded["teacher zero-shot"]["per_class"])
    assert measure(trained.run, data=None, images=None)["per_class"] == pytest.approx(trained.report["per_class"])


@pytest.mark.parametrize(
    ("failure", "cells", "bad"),
    [
        (CheckFailed("the loss became nan"), ("bce", "mls"), "bce"),
        (UsageError("prompt.length is 64"), ("bce", "mls"), "mls"),
    ],
    ids=str,
)
def test_a_cell_without_a_result_does_not_stop_the_others(
    options, trained, monkeypatch, tmp_path, tiny, failure, cells, bad
):
    """Refused settings are a row's own fault once another was trained; before, they may be everybody's."""
    monkeypatch.chdir(tmp_path)
    counting = runner.train

    def train(config, options, values):
        if bad in options.name or "dval" in options.name:
            raise failure
        return counting(config, options, values)

    monkeypatch.setattr(runner, "train", train)
    writer = reproduce("table3", dataclasses.replace(options, cells=cells))
    assert [bool(result.error) for result in writer.results] == [cell == bad for cell in cells]
    assert f"- {tiny.name}, {bad.upper()}: seed 0: {failure}" in (writer.out / "table.md").read_text()
    if isinstance(failure, UsageError):
        with pytest.raises(UsageError, match=r"prompt\.length is 64"):
            reproduce("table5", dataclasses.replace(options, cells=["clip_zs", "dval"]))


def test_alpha_by_evaluation_is_the_score_with_that_alpha(options, trained, tiny, monkeypatch, tmp_path):
    """Scored by hand without any training, on a list without a validation part, whose counts make the groups.

    Planted mistakes: alpha is set after scoring; groups by the pictures left to train; results of other weights.
    """
    monkeypatch.chdir(tmp_path)
    # A label of 19 pictures in the list has fewer left to train.
    monkeypatch.setattr("hpdval_edge.training.metrics.MEDIUM_FROM", 19)
    values = {**options.values, "data.test": str(tiny / "test.csv")}
    options = dataclasses.replace(options, data=[str(tiny / "train.csv")], values=values)
    writer = sweep_values("alpha", dataclasses.replace(options, cells=["alpha0", "alpha1"]), eval_only=True)
    run = find_run("sweep-train-base-s0")
    assert trained == [run.name]
    config = run.config()
    model, _, _ = load_model(reported_weights(run))
    data = load_data(config)
    store = make_stores(config, data, 32, ("test",))["test"]
    for result, alpha in zip(writer.results, (0.0, 1.0), strict=True):
        model.alpha = alpha
        scores = score_store(model_scorer(model, "cpu"), store)
        by_hand = multilabel_report(scores, data.test.targets, data.class_counts)
        assert result.report["per_class"] == pytest.approx(by_hand["per_class"])
        assert result.report["groups"] == by_hand["groups"]
    assert writer.results[0].report["per_class"] != writer.results[1].report["per_class"]
    again = sweep_values("alpha", dataclasses.replace(options, cells=["alpha0", "alpha1"]), eval_only=True)
    assert trained == [run.name]
    assert [r.report for r in again.results] == [r.report for r in writer.results]
    tensors, metadata = read_weights(reported_weights(run))
    save_file({**tensors, "text_local": -tensors["text_local"]}, reported_weights(run), metadata=metadata)
    again = sweep_values("alpha", dataclasses.replace(options, cells=["alpha0", "alpha1"]), eval_only=True)
    assert again.results[0].report != writer.results[0].report


@pytest.fixture
def hpedge(monkeypatch, capsys):
    """Run the command; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hpedge", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def test_the_command_prints_the_table_or_json(hpedge, table6, tiny, options, monkeypatch):
    monkeypatch.chdir(table6)
    sets = [part for key, value in options.values.items() for part in ("--set", f"{key}={value}")]
    code, out, _ = hpedge("reproduce", "table6", "--data", tiny, *sets)
    assert code == 0
    assert "| both learnt" in out
    code, out, _ = hpedge("reproduce", "table6", "--data", tiny, *sets, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["experiment"] == "table6"
    assert [cell["cell"] for cell in document["cells"]] == ["none", "global", "local", "both"]


def test_an_interrupted_command_says_how_to_go_on(hpedge, tiny, options, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def train(config, options, values):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "train", train)
    sets = [part for key, value in options.values.items() for part in ("--set", f"{key}={value}")]
    code, out, err = hpedge("reproduce", "table3", "--data", tiny, *sets)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted; finished cells are kept, go on with the same command"


def test_an_empty_list_of_cells_is_not_all_of_them(hpedge):
    code, _, err = hpedge("reproduce", "table3", "--cells", ",")
    assert code == 2
    assert "names no row" in err


@pytest.mark.parametrize("verb", ["reproduce", "sweep"])
def test_the_verbs_show_examples(hpedge, verb):
    code, out, _ = hpedge(verb, "--help")
    assert code == 0
    assert f"  hpedge {verb} " in out


def test_components_read_the_reports_they_name(options, trained, tiny, monkeypatch, tmp_path):
    """Table V: softmax is over CLIP's own logits, three rows share stage 1, the joint one does not.

    Planted mistake: the softmax is taken of the bare cosines.
    """
    monkeypatch.chdir(tmp_path)
    writer = reproduce("table5", options)
    reports = {result.plan.cell.name: result.report for result in writer.results}
    run = json.loads((tmp_path / "runs" / name("table5", "dval", tiny.name) / "metrics.json").read_text())
    assert reports["clip_zs"]["per_class"] == pytest.approx(run["teacher zero-shot"]["per_class"])
    assert reports["dval"] == run["stage1"]
    session = prepare(writer.results[0].plan.config)
    logits = session.zero_shot["test"] * float(session.teacher.clip.logit_scale.exp())
    odds = np.exp(logits - logits.max(1, keepdims=True))
    softmax = multilabel_report(odds / odds.sum(1, keepdims=True), session.splits.test.targets, session.class_counts)
    assert reports["clip_zs_softmax"]["per_class"] == pytest.approx(softmax["per_class"])
    assert reports["clip_zs_softmax"]["per_class"] != reports["clip_zs"]["per_class"]
    assert trained == [name("table5", cell, tiny.name) for cell in ("dval", "dval_hpt", "dval_hpt_sc", "joint")]
    stages = {
        cell: [
            json.loads(line)["stage"] for line in (tmp_path / "runs" / cell / "metrics.jsonl").read_text().splitlines()
        ]
        for cell in trained
    }
    assert [set(stages[cell]) for cell in trained] == [{"stage1"}, {"stage2"}, {"stage2"}, {"joint"}]
    reproduce("table5", options)
    assert len(trained) == 4


def test_prompt_lengths_share_stage_1(options, trained, tiny, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    writer = sweep_values("prompt-length", dataclasses.replace(options, cells=["M2", "M8"]), eval_only=False)
    weights = [load_file(find_run(cell).weights("last"))["prompts.global_context"].shape[0] for cell in trained]
    assert weights == [2, 8]
    lines = (tmp_path / "runs" / trained[1] / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in lines} == {"stage2"}
    assert "Figure 5 finds small M" in (writer.out / "table.md").read_text()
