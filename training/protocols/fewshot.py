"""Few-shot experiments (Table II): a base run, then isolated episodes, each finished one kept (METHOD section 11)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from hpdval_edge.atomic import write_text
from hpdval_edge.config import Config, as_table, flatten, load_config, override
from hpdval_edge.config_keys import FREE_KEYS, among
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.progress import say
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.prompts import class_texts
from hpdval_edge.training.protocols.fewshot_coco import coco_protocol
from hpdval_edge.training.protocols.fewshot_episode import TUNES, run_episode, summed
from hpdval_edge.training.protocols.fewshot_splits import EPISODES, SHOTS, FewShot
from hpdval_edge.training.protocols.fewshot_voc import voc_protocol
from hpdval_edge.training.readers_write import labels_text, list_text
from hpdval_edge.training.run_folder import RUNS, RunFolder
from hpdval_edge.training.session import make_prompts
from hpdval_edge.training.teacher import load_teacher
from hpdval_edge.training.train import TrainOptions, train

DATASETS = ("coco", "voc")
# What a few-shot run decides itself; anything else may be overridden.
OWN_KEYS = ("data.path", "data.val", "data.test", "data.images", "data.labels", "data.format")


def run_fewshot(
    dataset: str,
    root: Path,
    *,
    shots: int,
    values: dict[str, str],
    mixed: str = "drop",
    tune: str = "both",
    episodes: Sequence[int] = EPISODES,
    out: Path,
    support: str = "drawn",
) -> dict:
    """Train stage 1 on the base labels, then fine-tune and evaluate every episode from there.

    The base run is ``runs/fewshot-<dataset>-<key>`` in the working folder and serves every call with the same values
    and base pictures, whatever its shots; an interrupted one goes on where it was. Finished episodes are files below
    ``out``; a second call reads them.

    Args:
        dataset: ``coco`` (COCO 2014) or ``voc`` (VOC2007); what ``root`` must hold, see ``coco_protocol`` and
            ``voc_protocol``.
        shots: 1 or 5.
        values: Configuration overrides (dotted keys, and ``preset``) of the base run and of all episodes. The loss is
            ASL, summed over the batch, where they name no other.
        mixed: VOC only, pictures that show base and novel objects: ``drop`` or ``keep``.
        tune: What an episode trains: ``student``, ``prompts`` or ``both``, in that order.
        episodes: Numbers from 1 to 10.
        support: VOC only: ``drawn`` episodes, or the ``published`` ones.

    Returns:
        dataset, shots, mAP (mean over the episodes, percent), std (population), episodes [{episode, mAP, pictures}],
        mixed, tune, support, base (name of the base run).

    Raises:
        UsageError, BadData: arguments or data that do not fit, before anything is trained.
        Interrupted: the base run was stopped; the same call goes on.
    """
    _check(dataset, shots, tune, episodes, values)
    _check_config(_config(values, {}), tune)
    root, out = Path(root).absolute(), Path(out).absolute()
    splits = _splits(dataset, root, mixed, support)
    if tune != "student":
        _check_prompts(_config(values, {}), splits.novel_test.labels)
    supports = {episode: splits.support(shots, episode) for episode in episodes}
    base = _base_run(dataset, splits, values, out)
    # Options of one data set alone are no part of the other's results.
    options = {"tune": tune, "mixed": mixed, "support": support} if dataset == "voc" else {"tune": tune}
    key = _digest(base.name, json.dumps(options), list_text(splits.novel_test))
    folder = out / f"{dataset}-{shots}shot-{tune}-{key}"
    results = []
    for episode, pictures in supports.items():
        parts = {"data.path": pictures, "data.test": splits.novel_test}
        results.append(_episode(folder, episode, parts, values, base, tune))
        say(f"{dataset} {shots}-shot episode {episode}: mAP {results[-1]['mAP']:.2f}")
    return {"dataset": dataset, "shots": shots, **_summary(results), "base": base.name, **options}


def _summary(results: Sequence[Mapping]) -> dict:
    """mAP, std and episodes, as ``run_fewshot`` returns them."""
    scores = np.array([result["mAP"] for result in results])
    episodes = [{name: result[name] for name in ("episode", "mAP", "pictures")} for result in results]
    return {"mAP": float(scores.mean()), "std": float(scores.std()), "episodes": episodes}


def _check(dataset: str, shots: int, tune: str, episodes: Sequence[int], values: Mapping[str, str]) -> None:
    for option, value, allowed in (("dataset", dataset, DATASETS), ("shots", shots, SHOTS), ("tune", tune, TUNES)):
        if value not in allowed:
            raise UsageError(f"{option} is {value!r}, expected one of {', '.join(map(str, allowed))}.")
    numbers = list(episodes)
    wrong = [number for number in numbers if number not in EPISODES]
    if wrong or not numbers:
        raise UsageError(f"episodes are {numbers}, expected numbers from {EPISODES[0]} to {EPISODES[-1]}.")
    own = [name for name in OWN_KEYS if name in values]
    if own:
        raise UsageError(f"{', '.join(own)} cannot be set in a few-shot run, which writes its own lists.")


def _check_config(config: Config, tune: str) -> None:
    if config.train.mode != "two_stage":
        raise UsageError(f"train.mode={config.train.mode} has no base stage; few-shot needs train.mode=two_stage.")
    if tune != "student" and config.prompt.global_ == config.prompt.local == "fixed":
        raise UsageError(f"tune is {tune!r}, but prompt.global and prompt.local are fixed; use tune='student'.")


def _check_prompts(config: Config, labels: Sequence[str]) -> None:
    """UsageError or BadData for prompts that no episode can have, which the base run does not look at."""
    tower = load_teacher(config.teacher.spec, torch.device("cpu")).text
    make_prompts(config, tower, class_texts(labels, config.data.class_names))


def _splits(dataset: str, root: Path, mixed: str, support: str) -> FewShot:
    splits = coco_protocol(root) if dataset == "coco" else voc_protocol(root, mixed, support)
    parts = {"base training": splits.base_train, "base test": splits.base_test, "novel test": splits.novel_test}
    for name, part in parts.items():
        if not len(part):
            raise BadData(f"{root}: no picture belongs to the {name} part; is this the whole data set?")
    return splits


def _config(values: Mapping[str, str], data: Mapping[str, str]) -> Config:
    # The demo set, the default, would bring a teacher of its own. The protocol distils whatever the student starts from
    # (METHOD section 11).
    config = load_config(values={"loss.name": "asl", "data.path": "base", **values, **data})
    return override(config, {"kd.weight": "1"}) if config.kd.weight == "auto" else config


def _base_run(dataset: str, splits: FewShot, values: Mapping[str, str], out: Path) -> RunFolder:
    """The finished base run, trained or continued where it is not finished."""
    train_list, test_list = list_text(splits.base_train), list_text(splits.base_test)
    settings = flatten(as_table(_config(values, {})))
    settings = json.dumps({key: settings[key] for key in sorted(settings) if not among(key, FREE_KEYS)})
    key = _digest(settings, str(splits.base_train.root), train_list, test_list)
    run = RunFolder(RUNS / f"fewshot-{dataset}-{key}")
    if run.weights("stage1").is_file():
        say(f"base run {run.path} is there")
        return run
    options = TrainOptions(name=run.name, stage="1", resume=(run.path / "config.toml").is_file())
    if options.resume:
        return train(None, options, {})
    parts = {"data.path": splits.base_train, "data.test": splits.base_test}
    config = _config(values, _write_lists(out / f"{run.name}-lists", parts))
    labels = len(splits.base_train.labels)
    return train(summed(config, pictures=len(splits.base_train), labels=labels), options, {})


def _episode(
    folder: Path,
    episode: int,
    parts: Mapping[str, LabelledImages],
    values: Mapping[str, str],
    base: RunFolder,
    tune: str,
) -> dict:
    """Result of an episode on ``parts`` (support set and test), from its file where it is finished."""
    file = folder / f"episode-{episode:02}.json"
    if file.is_file():
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise BadData(f"{file} is damaged ({error}); delete it to run the episode again.") from error
    support = parts["data.path"]
    paths = _write_lists(folder / f"episode-{episode:02}-lists", parts)
    config = _config(values, {**paths, "data.val": paths["data.path"]})
    say(f"episode {episode}: {len(support)} pictures, which stand in for validation too; nothing is selected on them")
    config = summed(config, pictures=len(support), labels=len(support.labels))
    result = {"episode": episode, **run_episode(config, base.weights("stage1"), tune=tune)}
    write_text(file, json.dumps(result, indent=2) + "\n")
    return result


def _write_lists(folder: Path, parts: Mapping[str, LabelledImages]) -> dict[str, str]:
    """Write the lists of some configuration keys and their label names; returns all data keys of the configuration."""
    first = next(iter(parts.values()))
    values = {"data.labels": str(folder / "labels.txt"), "data.images": str(first.root)}
    write_text(folder / "labels.txt", labels_text(first))
    for key, part in parts.items():
        values[key] = str(folder / f"{key.removeprefix('data.')}.txt")
        write_text(Path(values[key]), list_text(part))
    return values


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]
