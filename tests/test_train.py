"""Whole runs on the tiny project: what they leave, exact resuming, interruptions, mistakes."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hpdval_edge.config import load_config, override
from hpdval_edge.errors import BadData, CheckFailed, UsageError
from hpdval_edge.report_table import table
from hpdval_edge.training.measure import measure
from hpdval_edge.training.model import read_weights
from hpdval_edge.training.readers import load_splits
from hpdval_edge.training.run_folder import RunFolder, find_run, reported_weights
from hpdval_edge.training.session import prepare
from hpdval_edge.training.stages import StageTrainer
from hpdval_edge.training.train import Interrupted, StopRequest, TrainOptions, train


def weights_of(run, which="last"):
    return load_file(run.weights(which))


def same(one, other):
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_a_run_leaves_what_the_contract_lists(tiny_run):
    folder = tiny_run / "runs" / "tiny"
    expected = ("config.toml", "env.json", "metrics.jsonl", "metrics.json", "per_class.csv", "thresholds.json")
    for name in (*expected, "MODEL_CARD.md", "weights/last.safetensors", "weights/best.safetensors", "golden.npz"):
        assert (folder / name).is_file(), name
    assert (tiny_run / "runs" / "last").read_text().strip() == "tiny"
    reports = json.loads((folder / "metrics.json").read_text())
    assert list(reports) == ["teacher zero-shot", "stage1", "stage2"]
    for report in reports.values():
        assert report["split"] == "test"
        assert 0 <= report["mAP"] <= 100
        assert report["interval"]["mAP"][0] <= report["interval"]["mAP"][1]
    assert {"OF1", "CF1", "ECE"} <= reports["stage2"].keys()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        (s, e) for s in ("stage1", "stage2") for e in range(3)
    ]
    rows = list(csv.DictReader((folder / "per_class.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["red", "green", "blue", "bright square"]


def test_it_learns(tiny_run):
    """Colours are easy: a run that does not beat its random teacher has learnt nothing."""
    reports = json.loads((tiny_run / "runs" / "tiny" / "metrics.json").read_text())
    assert reports["stage1"]["mAP"] > reports["teacher zero-shot"]["mAP"]


@pytest.mark.parametrize("sched", ["onecycle", "constant"])
@pytest.mark.parametrize("ema", ["0.998", "0"])
def test_resumed_is_uninterrupted_bit_for_bit(tiny_values, tmp_path, monkeypatch, sched, ema):
    """Planted mistakes: the optimizer's moments not restored; the average not restored."""
    monkeypatch.chdir(tmp_path)
    values = {**tiny_values, "train.sched": sched, "train.ema": ema, "train.stage1.epochs": "3"}
    whole = train(load_config(values=values), TrainOptions(name="whole"), {})
    with pytest.raises(Interrupted, match="after epoch 2, step 0 of stage1"):
        train(load_config(values=values), TrainOptions(name="parts", stop_after=2), {})
    with pytest.raises(Interrupted, match="stage2"):
        train(None, TrainOptions(name="parts", resume=True, stop_after=2), {})
    parts = train(None, TrainOptions(name="parts", resume=True), {})
    assert same(weights_of(whole), weights_of(parts))
    assert same(weights_of(whole, "best"), weights_of(parts, "best"))
    assert whole.read_json("metrics.json") == parts.read_json("metrics.json")
    assert (whole.path / "metrics.jsonl").read_text() == (parts.path / "metrics.jsonl").read_text()


def test_two_epochs_and_two_more_are_four(tiny_values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {**tiny_values, "train.sched": "constant"}
    whole = train(load_config(values={**values, "train.stage1.epochs": "4"}), TrainOptions(name="four", stage="1"), {})
    train(load_config(values=values), TrainOptions(name="two", stage="1"), {})
    more = train(None, TrainOptions(name="two", stage="1", resume=True), {"train.stage1.epochs": "4"})
    assert same(weights_of(whole), weights_of(more))


def test_ctrl_c_in_an_epoch_saves_and_resumes_exactly(tiny_values, tmp_path, monkeypatch):
    """A real SIGINT in the middle of an epoch."""
    monkeypatch.chdir(tmp_path)
    from hpdval_edge.training import stages

    original, steps = stages.StageTrainer._train_step, []

    def step(self, *arguments):
        original(self, *arguments)
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    whole = train(load_config(values=tiny_values), TrainOptions(name="whole"), {})
    monkeypatch.setattr(stages.StageTrainer, "_train_step", step)
    with pytest.raises(Interrupted, match="after epoch 1, step 2 of stage1"):
        train(load_config(values=tiny_values), TrainOptions(name="parts"), {})
    monkeypatch.setattr(stages.StageTrainer, "_train_step", original)
    parts = train(None, TrainOptions(resume=True), {})
    assert same(weights_of(whole), weights_of(parts))


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest().listening() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def copied(tiny_run, tmp_path, monkeypatch):
    """A copy of the finished tiny run, in the working folder."""
    shutil.copytree(tiny_run / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return find_run("tiny")


def break_stage_2(patch):
    """Let the first step of stage 2 fail, as a diverging loss does; calls of the result repair it."""
    original = StageTrainer._train_step

    def step(self, *arguments):
        if self.stage.number == 2:
            raise CheckFailed("planted")
        original(self, *arguments)

    patch.setattr(StageTrainer, "_train_step", step)
    return lambda: patch.setattr(StageTrainer, "_train_step", original)


def test_what_ends_in_the_first_epoch_of_stage_2_goes_on_there(tiny_run, tiny_run_values, tmp_path, monkeypatch):
    """Planted mistakes: the state saved after an epoch only, so that stage 2's weights become stage 1's; the weights
    that eval.select names taken while stage 2 trains.
    """
    monkeypatch.chdir(tmp_path)
    repair = break_stage_2(monkeypatch)
    with pytest.raises(CheckFailed, match="planted"):
        train(load_config(values=tiny_run_values), TrainOptions(name="parts"), {})
    run, whole = find_run("parts"), RunFolder(tiny_run / "runs" / "tiny")
    assert read_weights(run.weights("best"))[1]["stage"] == "stage2"
    assert reported_weights(run) == run.weights("stage1")
    assert measure("parts", data=None, images=None)["OF1"] == pytest.approx(run.reports()["stage1"]["OF1"])
    repair()
    train(None, TrainOptions(name="parts", resume=True), {})
    assert run.reports() == whole.reports()
    for which in ("stage1", "best", "last"):
        assert same(weights_of(run, which), weights_of(whole, which))
    assert (run.path / "metrics.jsonl").read_text() == (whole.path / "metrics.jsonl").read_text()
    assert reported_weights(run) == run.weights("best")


def test_a_stage_2_that_is_trained_anew_takes_its_reports_back(copied, monkeypatch):
    """Planted mistakes: metrics, thresholds or lines of the first attempt kept; its finished state taken up again."""
    repair, before = break_stage_2(monkeypatch), weights_of(copied)
    with pytest.raises(CheckFailed, match="planted"):
        train(None, TrainOptions(name="tiny", stage="2"), {"train.stage2.lr": "0.05"})
    assert list(copied.reports()) == ["teacher zero-shot", "stage1"]
    assert reported_weights(copied) == copied.weights("stage1")
    stage1, now = copied.reports()["stage1"], measure("tiny", data=None, images=None)
    assert [now[key] for key in ("mAP", "OF1", "CF1", "ECE")] == pytest.approx(
        [stage1[key] for key in ("mAP", "OF1", "CF1", "ECE")], rel=1e-4
    )
    lines = [json.loads(line) for line in (copied.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["stage"] == "stage2"] == [0]
    repair()
    train(None, TrainOptions(name="tiny", resume=True), {})
    lines = [json.loads(line) for line in (copied.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["stage"] == "stage2"] == [0, 1, 2]
    assert not same(weights_of(copied), before)
    assert read_weights(copied.weights("best"))[1]["epoch"] == str(copied.reports()["stage2"]["epoch"])


def test_the_last_epoch_is_reported_where_it_was_selected(copied):
    """``best`` may be of the same epoch, part of the way. Planted mistake: best tried first."""
    copied.write_config(override(copied.config(), {"eval.select": "last"}))
    reports = copied.reports()
    reports["stage2"]["epoch"] = 2
    copied.write_json("metrics.json", reports)
    shutil.copy(copied.weights("last"), copied.weights("best"))
    assert reported_weights(copied) == copied.weights("last")
    reports["stage2"]["epoch"] = 7
    copied.write_json("metrics.json", reports)
    with pytest.raises(BadData, match="holds no weights of stage2, epoch 7"):
        reported_weights(copied)


def test_a_report_that_cannot_be_written_is_a_note(copied, monkeypatch, capsys):
    """Planted mistakes: the error let through; eval.report refused in a run that goes on."""

    def fail(run):
        raise BadData("nothing to show.")

    monkeypatch.setattr("hpdval_edge.training.report.write.build_report", fail)
    train(None, TrainOptions(name="tiny", resume=True), {"eval.report": "true"})
    assert "note: no report: nothing to show. Try: hpedge report tiny" in capsys.readouterr().err


def test_a_joint_run_has_no_stage_2(copied):
    """Planted mistake: the joint stage trained again from its start."""
    copied.write_config(override(copied.config(), {"train.mode": "joint"}))
    with pytest.raises(UsageError, match="one joint stage, there is no stage 2"):
        train(None, TrainOptions(name="tiny", stage="2"), {})
    with pytest.raises(UsageError, match=r"train\.stage2\.lr=-1\.0 must be positive"):
        train(None, TrainOptions(name="tiny", stage="2"), {"train.stage2.lr": "-1"})


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            {"prompt.global": "fixed", "prompt.local": "fixed"},
            UsageError,
            "both fixed, so stage 2 has nothing to learn",
        ),
        ({"prompt.length": "8"}, UsageError, r"but prompt\.length is 8"),
        ({"loss.lam": "0"}, UsageError, "^loss: .*lam"),
        ({"data.val": "nothing.csv"}, BadData, "none of the 2 validation pictures has a label"),
    ],
)
def test_what_would_fail_later_is_named_before_training(
    tiny, tiny_values, tmp_path, monkeypatch, values, error, message
):
    """Planted mistakes: each check left out, which costs stage 1 or leaves a run behind."""
    monkeypatch.chdir(tmp_path)
    Path("nothing.csv").write_text(f"path,labels\n{tiny}/val/00.png,\n{tiny}/val/01.png,\n")
    if "data.val" in values:
        values = {"data.path": str(tiny / "train.csv"), "data.val": str(tmp_path / "nothing.csv")}
    with pytest.raises(error, match=message):
        train(load_config(values={**tiny_values, **values}), TrainOptions(), {})
    assert not list(Path("runs").glob("*/config.toml"))


def test_stage_2_alone_depends_on_stage_1(tiny_values, tmp_path, monkeypatch):
    """METHOD 15 row 12. Planted mistake: stage 2 starts from the teacher's weights again."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    monkeypatch.chdir(tmp_path)
    train(load_config(values=tiny_values), TrainOptions(name="a", stage="1"), {})
    run = find_run("a")
    first = train(None, TrainOptions(name="a", stage="2"), {}).read_json("metrics.json")["stage2"]
    tensors = load_file(run.weights("stage1"))
    with safe_open(run.weights("stage1"), framework="np") as file:
        metadata = file.metadata()
    for name in ("student.embed_cls.weight", "student.embed_patches.weight"):
        tensors[name] = -tensors[name]
    save_file(tensors, run.weights("stage1"), metadata=metadata)
    second = train(None, TrainOptions(name="a", stage="2"), {}).read_json("metrics.json")["stage2"]
    assert first["per_class"] != second["per_class"]


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_other_presets_train(tiny_values, tmp_path, monkeypatch, preset):
    monkeypatch.chdir(tmp_path)
    values = {**tiny_values, "student.name": "auto", "student.init": "clip"}
    run = train(load_config(preset=preset, values=values), TrainOptions(), {})
    assert run.name.endswith(preset)
    assert run.read_json("metrics.json")["stage2"]["n_images"] == 16


def test_a_cnn_student_trains_with_the_hidden_teacher_refused(tiny_values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {
        **tiny_values,
        "student.name": "tf_efficientnet_lite0",
        "student.init": "random",
        "student.image_size": "64",
    }
    values |= {"train.stage1.epochs": "1", "train.stage2.epochs": "1"}
    del values["train.stage1.lr"]
    run = train(load_config(values=values), TrainOptions(), {})
    assert run.config().fuse.topk == 2
    assert run.config().train.stage1.lr == pytest.approx(1e-3)
    with pytest.raises(UsageError, match=r"kd\.space=hidden compares the teacher's 32 hidden numbers"):
        train(load_config(values={**values, "kd.space": "hidden", "kd.weight": "1"}), TrainOptions(), {})


def test_names_and_runs_that_do_not_fit(tiny_run, tiny_values, monkeypatch):
    monkeypatch.chdir(tiny_run)
    config = load_config(values=tiny_values)
    with pytest.raises(UsageError, match="run runs/tiny exists; continue it with --resume"):
        train(config, TrainOptions(name="tiny"), {})
    with pytest.raises(UsageError, match="may hold only letters"):
        train(config, TrainOptions(name="../up"), {})
    with pytest.raises(UsageError, match="'other' is no run; runs here: tiny"):
        train(None, TrainOptions(name="other", resume=True), {})
    with pytest.raises(UsageError, match=r"loss\.name cannot change in a run that goes on"):
        train(None, TrainOptions(resume=True), {"loss.name": "db"})


def test_a_damaged_state_is_named(tiny_values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted):
        train(load_config(values=tiny_values), TrainOptions(stop_after=1), {})
    (find_run(None).path / "state" / "state.safetensors").write_bytes(b"broken")
    with pytest.raises(BadData, match="state is damaged"):
        train(None, TrainOptions(resume=True), {})


def test_every_bad_picture_is_named_before_training(tiny, tiny_values, tmp_path, monkeypatch):
    """Planted mistake: stop at the first bad picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text(f"path,labels\n{tiny}/test/00.png,red\nempty.png,blue\ntext.png,green\n")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    values = {**tiny_values, "data.path": str(tiny / "train.csv"), "data.val": str(tmp_path / "bad.csv")}
    with pytest.raises(BadData) as caught:
        train(load_config(values=values), TrainOptions(), {})
    assert "empty.png" in str(caught.value)
    assert "text.png" in str(caught.value)
    assert not list((tmp_path / "runs").glob("*/config.toml"))


def test_the_authors_selection_on_the_test_split_says_so(tiny_values, tmp_path, monkeypatch):
    """Planted mistake: ``best_test`` that selects on validation."""
    monkeypatch.chdir(tmp_path)
    values = {**tiny_values, "eval.select": "best_test", "train.stage1.epochs": "3"}
    run = train(load_config(values=values), TrainOptions(stage="1"), {})
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    reports = run.read_json("metrics.json")
    assert reports["stage1"]["mAP"] == pytest.approx(max(line["test"]["mAP"] for line in lines), abs=1e-6)
    assert "CHOSEN ON THE TEST SPLIT" in table(reports)
    with pytest.raises(UsageError, match="no test split"):
        prepare(load_config(values={**values, "data.path": str(Path(values["data.path"]) / "train.csv")}))


def test_groups_come_from_the_list_as_given_and_losses_from_what_is_trained_on(
    tiny, tiny_values, tmp_path, monkeypatch
):
    """Planted mistake: groups of what remains after the validation split, which makes VOC-LT 5/6/9 of 6/6/8."""
    monkeypatch.chdir(tmp_path)
    session = prepare(load_config(values={**tiny_values, "data.path": str(tiny / "train.csv")}))
    assert session.splits.held_out
    assert len(session.splits.train) + len(session.splits.val) == 48
    whole = load_splits(tiny).train
    assert (session.class_counts == whole.class_counts).all()
    trained = session.splits.train.class_counts
    assert torch.allclose(session.loss().inverse_counts, torch.from_numpy(1 / trained))
    assert (prepare(load_config(values=tiny_values)).class_counts == whole.class_counts).all()


def test_a_run_ends_with_its_report(tiny_values, tmp_path, monkeypatch):
    """Planted mistake: no call."""
    monkeypatch.chdir(tmp_path)
    run = train(load_config(values={**tiny_values, "eval.report": "true"}), TrainOptions(name="reported"), {})
    assert "reported" in (run.path / "report.html").read_text(encoding="utf-8")
    assert any((run.path / "plots").iterdir())


def test_residuals_are_learnt_in_stage_1_kept_in_stage_2_and_deployed_in_the_banks(tiny_values, tmp_path, monkeypatch):
    """Planted mistakes: stage 2 started without them; left out of the deployed banks."""
    monkeypatch.chdir(tmp_path)
    values = {**tiny_values, "prompt.residual": "true", "eval.select": "last", "train.stage2.lr": "1e-6"}
    run = train(load_config(values=values), TrainOptions(name="whole"), {})
    stage1, last = (load_file(run.weights(which)) for which in ("stage1", "last"))
    for view in ("text_global", "text_local"):
        assert np.abs(stage1[f"residuals.{view}"]).max() > 1e-4
        assert (last[f"residuals.{view}"] == stage1[f"residuals.{view}"]).all()
    fixed = stage1["text_global"] - stage1["residuals.text_global"]
    assert np.allclose(fixed, stage1["text_local"] - stage1["residuals.text_local"], atol=1e-6)
    # Contexts of words start at the fixed prompts and do not move at this rate.
    assert np.allclose(last["text_global"], fixed + last["residuals.text_global"], atol=1e-3)
    assert not np.allclose(last["text_global"], fixed, atol=2e-3)
    with pytest.raises(Interrupted):
        train(load_config(values=values), TrainOptions(name="parts", stop_after=3), {})
    parts = train(None, TrainOptions(name="parts", resume=True), {})
    assert same(weights_of(run), weights_of(parts))
