"""``hpedge serve``: a bundle that another program replaces, by one with another model, or by half of one."""

import io
import json
import os
import runpy
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from hpdval_edge import predictor as predictor_module
from hpdval_edge.bundle import load_bundle, rewrite
from hpdval_edge.errors import BadData
from hpdval_edge.labels import remove_labels
from hpdval_edge.predictor import Predictor

WAIT = 60
# The tiny bundle computes in fp16, where batches of other sizes round otherwise.
ATOL = 1e-4


picture = runpy.run_path(str(Path(__file__).with_name("serve_pictures.py")))["picture"]


def post(client, number: int = 0) -> dict:
    """Scores of a picture by label, as the server gives them."""
    answer = client.post("/v1/classify", files={"file": ("0.png", picture(number))}).raise_for_status().json()
    return {row["label"]: row["score"] for row in answer["results"][0]["scores"]}


def scores(predictor: Predictor, number: int = 0) -> dict:
    """The same as a Predictor gives them, to compare with."""
    found = predictor(Image.open(io.BytesIO(picture(number))))
    return {name: pytest.approx(score, abs=ATOL) for name, score in zip(predictor.labels, found.scores, strict=True)}


def until(condition) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end


def reloads(client, count: int) -> bool:
    return f"hpedge_reloads_total {count}.0" in client.get("/metrics").text


def change_model(path) -> None:
    """Another model, as far as an engine is concerned: the views are weighed otherwise."""
    bundle = load_bundle(path)
    rewrite(bundle, replace(bundle.manifest, alpha=bundle.manifest.alpha / 2), {})


@pytest.fixture
def own_bundle(tiny_bundle, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(tiny_bundle, tmp_path / "own.hpedge")


@pytest.fixture
def predictor(own_bundle):
    return Predictor(own_bundle, "onnxruntime", threads=1)


class Gate:
    """Stands before a function: calls wait until it is opened. ``reached``: one came; ``calls``: how many went on."""

    def __init__(self, through) -> None:
        self.through, self.calls = through, 0
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, *arguments):
        self.reached.set()
        assert self.open.wait(WAIT)
        found = self.through(*arguments)
        self.calls += 1
        return found


@pytest.fixture
def gate(monkeypatch):
    """Put a gate before a function, ``gate(owner, name)``; it is open at the end, whatever fails."""
    made = []

    def put(owner, name: str) -> Gate:
        one = Gate(getattr(owner, name))
        made.append(one)
        # A function, so that it becomes a method where the owner is a class.
        monkeypatch.setattr(owner, name, lambda *arguments: one(*arguments))
        return one

    yield put
    for one in made:
        one.open.set()


def test_the_old_model_answers_until_the_new_one_is_loaded(served, predictor, own_bundle, gate):
    """Planted mistakes: the new model loaded in the engine's thread, or by the event loop; never taken over."""
    old = scores(predictor)
    loading = gate(predictor_module, "load_engine")
    with served(predictor, poll=0.01, timeout=10) as client:
        change_model(own_bundle)
        assert loading.reached.wait(WAIT)
        assert post(client) == old
        assert reloads(client, 0)
        loading.open.set()
        until(lambda: reloads(client, 1))
        new = scores(Predictor(own_bundle, threads=1))
        assert post(client) == new and new != old


def test_pictures_are_answered_by_the_model_that_they_were_prepared_for(served, predictor, own_bundle, gate):
    """Two pictures are in when label and model change, a third comes before the engine is free. Planted mistakes: what
    is current when the engine runs answers them all; the model of its first picture answers a whole batch.
    """
    old = [scores(predictor, number) for number in range(2)]
    running, preparing = gate(Predictor, "predict_images"), gate(Predictor, "prepare")
    preparing.open.set()
    with served(predictor, poll=0.01) as client, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(post, client, 0)]
        assert running.reached.wait(WAIT)
        asked.append(pool.submit(post, client, 1))
        until(lambda: preparing.calls == 2)
        change_model(own_bundle)
        remove_labels(load_bundle(own_bundle), ["green"])
        until(lambda: "hpedge_labels 3.0" in client.get("/metrics").text)
        asked.append(pool.submit(post, client, 2))
        until(lambda: preparing.calls == 3)
        running.open.set()
        found = [done.result() for done in asked]
    assert found[:2] == old
    assert found[2] == scores(Predictor(own_bundle, threads=1), 2)


@pytest.fixture
def tries(monkeypatch):
    """What each look at the bundle found: the Predictor's answer, or the error's type; and the looks at its files."""
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    from hpdval_edge.serve.reloading import Reloader

    found, files = [], []
    reload, state = Predictor.reload, Reloader._files

    def record(predictor):
        try:
            found.append(reload(predictor))
        except Exception as error:
            found.append(type(error))
            raise
        return found[-1]

    monkeypatch.setattr(Predictor, "reload", record)
    monkeypatch.setattr(Reloader, "_files", lambda reloader: files.append(state(reloader)) or files[-1])
    return SimpleNamespace(found=found, files=files)


def wait_for_looks(tries, count: int) -> None:
    end = len(tries.files) + count
    until(lambda: len(tries.files) >= end)


def test_half_a_copy_is_told_once_and_taken_over_when_the_rest_is_there(served, predictor, own_bundle, tries, capsys):
    """The model comes last, behind its manifest. Planted mistakes: tried again when the manifest changes; every second,
    though nothing changed; told each time.
    """
    model, manifest = own_bundle / "model.onnx", own_bundle / "manifest.json"
    content, changed = model.read_bytes(), own_bundle.parent / "changed.json"
    changed.write_text(json.dumps({**json.loads(manifest.read_bytes()), "alpha": 0.1}))
    with served(predictor, poll=0.01) as client:
        model.write_bytes(content[:100])
        changed.replace(manifest)
        until(lambda: tries.found and tries.found[-1] is BadData)
        # The files may have changed between the look at them and the reading.
        wait_for_looks(tries, 2)
        failed = len(tries.found)
        wait_for_looks(tries, 3)
        assert len(tries.found) == failed
        os.utime(manifest)
        until(lambda: len(tries.found) > failed)
        model.write_bytes(content)
        until(lambda: reloads(client, 1))
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("hpedge: the bundle changed and cannot be used, the old one stays: bundle ")
    assert "model.onnx was altered" in err


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("a\nb"), MemoryError("no room")])
def test_any_other_error_is_told_and_the_watch_goes_on(served, predictor, own_bundle, monkeypatch, capsys, error):
    """Planted mistake: HpedgeErrors alone are caught, others end the watch without a word."""
    load, errors = predictor_module.load_unchanged, [error]

    def fail_once(path):
        if errors:
            raise errors.pop()
        return load(path)

    monkeypatch.setattr(predictor_module, "load_unchanged", fail_once)
    with served(predictor, poll=0.01) as client:
        remove_labels(load_bundle(own_bundle), ["green"])
        until(lambda: not errors)
        remove_labels(load_bundle(own_bundle), ["blue"])
        until(lambda: "hpedge_labels 2.0" in client.get("/metrics").text)
    told = " ".join(f"{type(error).__name__}: {error}".split())
    assert capsys.readouterr().err == f"hpedge: the bundle changed and cannot be used, the old one stays: {told}\n"
