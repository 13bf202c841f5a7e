"""Tables and sweeps around the runs: cells, plans, refusals, the paper's numbers, summaries; nothing trains."""

import csv
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpdval_edge.config_keys import FREE_KEYS, PLACE_KEYS, among, same_value
from hpdval_edge.errors import UsageError
from hpdval_edge.training.reproduce import few_shot, runner
from hpdval_edge.training.reproduce.ablation import CHANGES, ablation
from hpdval_edge.training.reproduce.cells import TABLES, sweep, topk_values
from hpdval_edge.training.reproduce.experiment import Options, reproduce, sweep_values
from hpdval_edge.training.reproduce.paper_numbers import GROUP_CLASSES, PAPER, WHY_MISSING, printed, why_missing
from hpdval_edge.training.reproduce.plans import make_plans, parse_dataset, parse_datasets
from hpdval_edge.training.reproduce.results import as_entry, spread, summarise
from hpdval_edge.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def options(tiny, tiny_values):
    """One epoch a stage on the tiny project."""
    values = {key: value for key, value in tiny_values.items() if key != "data.path"}
    values |= {"train.stage1.epochs": "1", "train.stage2.epochs": "1", "eval.bootstrap": "0"}
    return Options(data=[str(tiny)], values=values)


@pytest.mark.parametrize(
    ("experiment", "cell", "dataset"),
    [(e, c, d) for e, rows in PAPER.items() for c, row in rows.items() for d, p in row.items() if p.head],
)
def test_the_papers_groups_give_its_totals(experiment, cell, dataset):
    """6:6:8 and 22:33:25 classes. Planted mistake: COCO-LT's medium and tail as printed."""
    row, weights = PAPER[experiment][cell][dataset], GROUP_CLASSES[dataset]
    total = np.average([row.head, row.medium, row.tail], weights=weights)
    assert (abs(total - row.mAP) <= 0.05) == row.fits
    if not row.fits:
        assert row.notes


def test_every_row_has_a_number_of_the_paper_or_a_reason():
    """Planted mistake: a row of Table VI without its reason, which the sentence for other data sets then covers."""
    for table, experiment in TABLES.items():
        for cell in experiment.cells:
            assert printed(table, cell.name, "own-data") or (table, cell.name) in WHY_MISSING
    for axis in ("alpha", "topk", "prompt-length"):
        assert "repeat rows of other tables" in why_missing(f"sweep-{axis}", "x")
    assert printed("table5", "joint", "voc-lt").head == 83.34
    assert printed("table3", "bce", "own-data") == printed("table3", "bce", "coco-lt")


def test_k_takes_the_same_fractions_of_a_smaller_grid():
    assert topk_values(196) == ((12, 18, 24, 32, 48, 64), ())
    values, notes = topk_values(49)
    assert values == (3, 4, 6, 8, 12, 16)
    assert "49 patches" in notes[0]
    assert [cell.values["fuse.topk"] for cell in sweep("topk", 16).cells] == ["1", "2", "3", "4", "5"]


def test_an_ablation_changes_one_thing_at_a_time_and_leaves_out_what_the_base_has(options, tiny):
    experiment = ablation(["kd.weight=0.5,train.ema=0.9"])
    dataset = parse_dataset(str(tiny))
    plans = make_plans(experiment, [dataset], preset="paper", values=options.values, seeds=2)
    assert len(plans) == 2 * (2 + sum(map(len, CHANGES.values())))
    base = plans[0].settings()
    changed = [{key for key, value in plan.settings().items() if value != base[key]} for plan in plans if not plan.seed]
    assert changed[1] == {"loss.pos_scale"}
    assert changed[-1] == {"kd.weight", "train.ema"}
    assert ablation(["train.mode=joint"]).cells[-1].reads == "joint"
    recommended = make_plans(experiment, [dataset], preset="recommended", values=options.values, seeds=1)
    assert "loss.pos_scale-one_plus" not in [plan.cell.name for plan in recommended]


def test_differences_are_paired_by_seed(options, tiny):
    """Planted mistake: the difference of the means with the spread of the change alone."""
    experiment, dataset = ablation(), parse_dataset(str(tiny))
    plans = make_plans(experiment, [dataset], preset="paper", values=options.values, seeds=2)
    numbers = {("base", 0): 10.0, ("base", 1): 20.0, ("loss.pos_scale-none", 0): 11.0, ("loss.pos_scale-none", 1): 23.0}
    results = [
        runner.Result(plan, {"mAP": numbers[plan.cell.name, plan.seed], "head": None}, 0.0)
        for plan in plans
        if (plan.cell.name, plan.seed) in numbers
    ]
    base, change = summarise(results)
    assert base.differences["mAP"] is None
    assert str(change.numbers["mAP"]) == "17.00 ± 8.49"
    assert str(change.differences["mAP"]) == "2.00 ± 1.41"
    assert change.differences["head"] is None
    assert str(spread([3.0])) == "3.00"


def test_wrong_requests(options, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="'table4' is not one of table1"):
        reproduce("table4", options)
    with pytest.raises(UsageError, match=r"loss\.name is what table3 varies"):
        reproduce("table3", dataclasses.replace(options, values={**options.values, "loss.name": "db"}))
    with pytest.raises(UsageError, match=r"leave --set train\.mode out"):
        reproduce("table3", dataclasses.replace(options, values={"train.mode": "joint"}))
    with pytest.raises(UsageError, match="use --seeds N"):
        reproduce("table3", dataclasses.replace(options, values={"seed": "3"}))
    with pytest.raises(UsageError, match="'bse' is no row of table3; its rows are bce, mls"):
        reproduce("table3", dataclasses.replace(options, cells=["bse"]))
    with pytest.raises(UsageError, match="--change belongs to ablation"):
        reproduce("table3", dataclasses.replace(options, changes=["a=1"]))
    with pytest.raises(UsageError, match="--change 'kd' is not of the form"):
        reproduce("ablation", dataclasses.replace(options, changes=["kd"]))
    with pytest.raises(UsageError, match="--eval-only works for alpha, topk"):
        sweep_values("prompt-length", options, eval_only=True)
    with pytest.raises(UsageError, match="sweep 'beta' is not one of"):
        sweep_values("beta", options, eval_only=False)
    with pytest.raises(UsageError, match="'nowhere' does not exist"):
        reproduce("table3", dataclasses.replace(options, data=["nowhere"]))
    with pytest.raises(UsageError, match="two of --data are called"):
        parse_datasets([str(tiny), str(tiny)])
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "reproduce").exists()


def test_few_shot_rows_are_means_over_episodes(options, monkeypatch, tmp_path):
    """The protocol itself has tests of its own. Planted mistake: the spread over episodes is left out."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def run_fewshot(dataset, root, *, shots, values, out):
        calls.append((dataset, root, shots, values["preset"], out))
        return {"mAP": 50.0 + shots, "std": 1.5, "episodes": [{"episode": 1, "mAP": 51.0, "pictures": 4}]}

    monkeypatch.setattr(few_shot, "run_fewshot", run_fewshot)
    writer = reproduce("table2", dataclasses.replace(options, data=["voc2007=pictures"], preset="paper"))
    episodes = writer.out / "episodes"
    assert calls == [("voc", Path("pictures"), shots, "paper", episodes) for shots in (1, 5)]
    text = (writer.out / "table.md").read_text()
    assert "| 1-shot [1] | 51.00 ± 1.50 | 90.80 |" in text
    assert "over ten episodes" in text
    with pytest.raises(UsageError, match="table2 needs --data voc2007=DIR"):
        reproduce("table2", dataclasses.replace(options, data=[]))
    with pytest.raises(UsageError, match="'voc-lt=x' is no few-shot protocol"):
        reproduce("table2", dataclasses.replace(options, data=["voc-lt=x"]))
    with pytest.raises(UsageError, match="leave --seeds 3 out"):
        reproduce("table2", dataclasses.replace(options, data=["voc2007=x"], seeds=3))


def test_two_data_sets_stand_one_below_the_other(options, tiny, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    data = [str(tiny), str(other)]
    writer = reproduce("table1", dataclasses.replace(options, data=data, cells=["clip_zs"], seeds=2))
    text = (writer.out / "table.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [f"## {tiny.name}", "## other"]
    assert "over 2 seeds" in text
    rows = csv.DictReader((writer.out / "results.csv").read_text(encoding="utf-8").splitlines())
    assert [row["seed"] for row in rows] == ["0", "1"] * 2


def test_a_joint_project_is_refused_before_anything_runs(options, tmp_path, monkeypatch):
    """Planted mistake: only --set train.mode is looked at, and every cell trains jointly for a report it lacks."""
    monkeypatch.chdir(tmp_path)
    Path("hpedge.toml").write_text('[train]\nmode = "joint"\n')
    with pytest.raises(UsageError, match=r"hpedge\.toml has train\.mode=joint, but the row none reads the report of"):
        reproduce("table6", options)
    with pytest.raises(UsageError, match="but the row alpha0 reads the report of stage2"):
        sweep_values("alpha", options, eval_only=True)
    assert not (tmp_path / "runs").exists()


def test_cells_write_no_report_unless_asked(options, tiny):
    """Planted mistake: the configuration's own default, true."""
    values = {key: value for key, value in options.values.items() if key != "eval.report"}
    planned = {"experiment": TABLES["table6"], "datasets": [parse_dataset(str(tiny))], "preset": None, "seeds": 1}
    assert not make_plans(**planned, values=values)[0].config.eval.report
    asked = make_plans(**planned, values={**values, "eval.report": "true"})[0]
    assert asked.config.eval.report
    assert asked.settings() == make_plans(**planned, values=values)[0].settings()
    assert few_shot.with_project({})["eval.report"] == "false"
    assert few_shot.with_project({"eval.report": "true"})["eval.report"] == "true"


def test_keys_are_told_by_table_or_by_name():
    """Planted mistake: data.val also takes data.val_fraction for a place."""
    assert among("data.val", PLACE_KEYS)
    assert not among("data.val_fraction", PLACE_KEYS)
    assert among("export.precision", FREE_KEYS)
    assert among("eval.report", FREE_KEYS)
    assert not among("eval.bootstrap", FREE_KEYS)
    assert same_value(1.0, "1")
    assert same_value("1.0", "1")
    assert not same_value(True, 1.0)
    assert not same_value("auto", "1")


def test_an_older_runs_settings_are_compared_by_what_they_mean(options, tiny, tmp_path):
    """Planted mistakes: 1.0 and "1" differ; a key that came later stood at what is recommended today."""
    (plan,) = make_plans(
        dataclasses.replace(ablation(), cells=ablation().cells[:1]),
        [parse_dataset(str(tiny))],
        preset="paper",
        values=options.values,
        seeds=1,
    )
    run = RunFolder(tmp_path)
    older = {key: value for key, value in plan.settings().items() if key != "prompt.residual"}
    run.write_json(runner.CELL_FILE, {"settings": {**older, "kd.weight": 1.0}})
    runner._refuse_changes(run, plan)
    run.write_json(runner.CELL_FILE, {"settings": {**older, "kd.weight": 0.5}})
    with pytest.raises(UsageError, match=r"\(kd\.weight was 0\.5, now "):
        runner._refuse_changes(run, plan)


def test_zero_shot_rows_are_scored_again_for_another_teacher(options, tiny, tmp_path, monkeypatch):
    """Planted mistake: an entry of cells.json is taken by its settings alone."""
    monkeypatch.chdir(tmp_path)
    teachers, scored = ["one", "one", "two", "two"], []
    monkeypatch.setattr(runner, "teacher_sha256", lambda config: teachers[0])
    monkeypatch.setattr(runner, "zero_shot_report", lambda config, post: scored.append(teachers[0]) or {"mAP": 1.0})
    (plan,) = make_plans(
        dataclasses.replace(TABLES["table1"], cells=TABLES["table1"].cells[:1]),
        [parse_dataset(str(tiny))],
        preset=None,
        values=options.values,
        seeds=1,
    )
    known = {}
    while len(teachers) > 1:
        known[plan.name] = as_entry(runner._zero_shot(plan, known))
        teachers.pop(0)
    assert scored == ["one", "two"]
    del known[plan.name]["weights"]
    runner._zero_shot(plan, known)
    assert scored == ["one", "two", "two"]


def test_a_sweeps_base_run_belongs_to_its_folder(options, tiny, tmp_path, monkeypatch):
    """Planted mistakes: the base run called the same whatever --out is; the default folder's called otherwise."""
    monkeypatch.chdir(tmp_path)
    names = []
    evaluate = "hpdval_edge.training.reproduce.experiment.evaluate_plans"
    monkeypatch.setattr(evaluate, lambda base, plans, **options: names.append(base.run_name))
    for out in (None, tmp_path / "reproduce" / "sweep-alpha-eval", Path("mine"), tmp_path / "mine", Path("../a b/c")):
        sweep_values("alpha", dataclasses.replace(options, out=out), eval_only=True)
    base = f"sweep-{tiny.name}-base-s0"
    assert names == [base, base, f"mine-{base}", f"mine-{base}", f"a-b-c-{base}"]
