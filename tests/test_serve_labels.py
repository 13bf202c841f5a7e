"""``hpedge serve``: labels that are edited, by clients and by other programs, while pictures are classified."""

import io
import runpy
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.bundle import load_bundle
from hpdval_edge.labels import NewLabels, remove_labels, rename_labels
from hpdval_edge.labels_file import make_keys, write_labels
from hpdval_edge.predictor import Predictor

# The tiny bundle computes in fp16, where batches of other sizes round otherwise.
ATOL = 1e-4


picture = runpy.run_path(str(Path(__file__).with_name("serve_pictures.py")))["picture"]


def files(content: bytes) -> dict[str, tuple[str, bytes]]:
    return {"file": ("0.png", content)}


@pytest.fixture
def own_bundle(tiny_bundle, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(tiny_bundle, tmp_path / "own.hpedge")


def test_labels_are_told_and_kept_without_edit(served, tiny_bundle):
    """Planted mistake: edits let in by default."""
    predictor = Predictor(tiny_bundle, "onnxruntime", threads=1)
    with served(predictor) as client:
        answer = client.get("/v1/labels").json()
        assert [row["label"] for row in answer["labels"]] == list(predictor.labels)
        np.testing.assert_allclose([row["threshold"] for row in answer["labels"]], predictor.thresholds, rtol=1e-6)
        assert (answer["edit"], answer["backend"]) == (False, "onnxruntime")
        for verb, body in {"rename": {"names": {"red": "crimson"}}, "remove": {"labels": ["red"]}}.items():
            refused = client.post(f"/v1/labels/{verb}", json=body)
            assert refused.status_code == 403
            assert refused.json() == {"error": "labels cannot be edited here; start the server with --edit."}


def test_labels_are_edited_live(served, own_bundle):
    """Planted mistake: no reload after the edit."""
    content = picture(5)
    predictor = Predictor(own_bundle, threads=1)
    before = dict(zip(predictor.labels, predictor(Image.open(io.BytesIO(content))).scores.tolist(), strict=True))
    # Longer than the test: what it sees is the edit's own reload.
    with served(predictor, edit=True, poll=3600) as client:
        client.post("/v1/labels/rename", json={"names": {"red": "crimson"}}).raise_for_status()
        client.post("/v1/labels/remove", json={"labels": ["green"]}).raise_for_status()
        answer = client.post("/v1/labels/reorder", json={"labels": ["bright square"]}).raise_for_status().json()
        assert [row["label"] for row in answer["labels"]] == ["bright square", "crimson", "blue"]
        (result,) = client.post("/v1/classify", files=files(content)).json()["results"]
        scores = {row["label"]: row["score"] for row in result["scores"]}
        assert scores == {
            name: pytest.approx(before[old], abs=ATOL)
            for name, old in {"bright square": "bright square", "crimson": "red", "blue": "blue"}.items()
        }
        assert "hpedge_reloads_total 3.0" in client.get("/metrics").text
        for verb, body, sentence in (
            ("rename", {"names": {"red": "ruby"}}, "'red' is none of the 3 labels"),
            ("rename", {"names": {"blue": "crimson"}}, "label 'crimson' would be there twice"),
            ("remove", {"labels": ["bright square", "crimson", "blue"]}, "would have no label left"),
            ("remove", {"labels": []}, "labels: List should have at least 1 item"),
            ("reorder", {"names": []}, "labels: Field required."),
        ):
            refused = client.post(f"/v1/labels/{verb}", json=body)
            assert refused.status_code == 422
            assert sentence in refused.json()["error"]


@pytest.fixture
def signed(own_bundle, tmp_path):
    """A public key, and the content of a file signed for it with the label "dusk" for ``own_bundle``."""
    pytest.importorskip("cryptography", reason="the extra [labels] is not installed")
    bundle = load_bundle(own_bundle)
    new = NewLabels(("dusk",), bundle.text_global[:1], bundle.text_local[:1], bundle.manifest.provenance["text_space"])
    public = make_keys(tmp_path / "labels.key")
    write_labels(tmp_path / "new.labels", new, tmp_path / "labels.key")
    return public, (tmp_path / "new.labels").read_bytes()


def test_labels_are_added_by_a_signed_file(served, own_bundle, signed):
    """Planted mistakes: the signature not looked at; a file taken though the server has no key."""
    public, content = signed
    predictor = Predictor(own_bundle, threads=1)
    bundle = predictor.bundle

    def send(client, content: bytes):
        return client.post("/v1/labels/add", files={"file": ("new.labels", content)})

    with served(predictor, edit=True) as client:
        assert client.get("/v1/labels").json()["not_by_file"].startswith("files of labels must be signed; start")
        assert send(client, content).status_code == 403
    with served(predictor, key=public) as client:
        assert send(client, content).status_code == 403
    with served(predictor, edit=True, key=public) as client:
        assert client.get("/v1/labels").json()["not_by_file"] is None
        altered = send(client, content[:-1] + b"!")
        assert altered.status_code == 422
        assert altered.json()["error"].startswith("the signature of new.labels is not by the key of ")
        added = send(client, content).raise_for_status().json()["labels"]
        assert (added[-1]["label"], added[-1]["fitted"]) == ("dusk", False)
        (result,) = client.post("/v1/classify", files=files(picture(0))).json()["results"]
        rows = {row["label"]: row for row in result["scores"]}
        assert rows["dusk"]["score"] == pytest.approx(rows["red"]["score"], abs=ATOL)
        assert [rows[label]["fitted"] for label in ("dusk", "red")] == [False, "red" not in bundle.unfitted]
        assert send(client, content).json()["error"].startswith("label 'dusk' would be there twice")


def test_labels_are_added_by_name_where_the_run_is(served, tiny_run, tiny_bundle, tmp_path, monkeypatch):
    """Planted mistake: names embedded for another run than the bundle's."""
    work = shutil.copytree(tiny_run, tmp_path / "work")
    monkeypatch.chdir(work)
    predictor = Predictor(work / "runs" / "tiny" / "model.hpedge", threads=1)
    with served(predictor, edit=True, run="own") as client:
        assert client.get("/v1/labels").json()["not_by_name"] is None
        added = client.post("/v1/labels/add", json={"labels": ["dark square"]}).raise_for_status().json()["labels"]
        assert (added[-1]["label"], added[-1]["fitted"]) == ("dark square", False)
        again = client.post("/v1/labels/add", json={"labels": ["dark square"]})
        assert (again.status_code, "would be there twice" in again.json()["error"]) == (422, True)
    with served(predictor, edit=True) as client:
        refused = client.post("/v1/labels/add", json={"labels": ["dusk"]})
        assert refused.status_code == 403
        assert refused.json()["error"].endswith("start the server there with --run.")


def test_what_another_program_writes_is_taken_over(served, own_bundle):
    """Planted mistakes: nobody looks at the disk; a bundle that cannot be read ends the watch."""
    predictor = Predictor(own_bundle, threads=1)
    with served(predictor, poll=0.01) as client:
        manifest = own_bundle / "manifest.json"
        good = manifest.read_bytes()
        manifest.write_bytes(b"{}")
        assert client.post("/v1/classify", files=files(picture(0))).status_code == 200
        manifest.write_bytes(good)
        remove_labels(rename_labels(predictor.bundle, {"red": "crimson"}), ["blue"])
        end = time.monotonic() + 60
        while (found := [row["label"] for row in client.get("/v1/labels").json()["labels"]])[0] != "crimson":
            assert time.monotonic() < end, found
        while "blue" in [row["label"] for row in client.get("/v1/labels").json()["labels"]]:
            assert time.monotonic() < end


@pytest.mark.parametrize(("written", "told"), [(False, "nothing was changed"), (True, "the labels were written all")])
def test_a_bundle_that_cannot_be_used_is_no_fault_of_the_edit(served, own_bundle, monkeypatch, written, told):
    """Planted mistake: 422, as if the labels that were sent were wrong."""
    predictor = Predictor(own_bundle, threads=1)
    manifest, broken = own_bundle / "manifest.json", b"{}"
    with served(predictor, edit=True, poll=1000) as client:
        if written:

            def then_broken(*arguments):
                remove_labels(*arguments)
                manifest.write_bytes(broken)

            monkeypatch.setattr("hpdval_edge.serve.app.remove_labels", then_broken)
        else:
            manifest.write_bytes(broken)
        status, error = remove(client, "red")
        assert (status, manifest.read_bytes()) == (503, broken)
        assert error.startswith(told) and "but the bundle on disk cannot be used: bundle " in error


def test_labels_may_change_while_pictures_are_classified(served, own_bundle):
    """Planted mistake: names taken from the bundle on disk instead of the prediction's own."""
    predictor = Predictor(own_bundle, threads=1)
    contents = [picture(number) for number in range(4)]
    scores = [predictor(Image.open(io.BytesIO(content))).scores for content in contents]
    names = predictor.labels
    with served(predictor, edit=True) as client, ThreadPoolExecutor(4) as pool:
        stop = threading.Event()

        def ask(number: int) -> None:
            while not stop.is_set():
                answer = client.post("/v1/classify", files=files(contents[number])).raise_for_status().json()
                for row in answer["results"][0]["scores"]:
                    assert row["score"] == pytest.approx(scores[number][names.index(row["label"])], abs=ATOL)

        asked = [pool.submit(ask, number) for number in range(4)]
        for _ in range(3):
            client.post("/v1/labels/reorder", json={"labels": ["blue", "red"]}).raise_for_status()
            client.post("/v1/labels/reorder", json={"labels": list(names)}).raise_for_status()
        stop.set()
        for done in asked:
            done.result()


def content(bundle) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in bundle.rglob("*") if file.is_file()}


def remove(client, *labels: str) -> tuple[int, str]:
    """Status, and the sentence where it was refused."""
    answer = client.post("/v1/labels/remove", json={"labels": labels})
    return answer.status_code, answer.json().get("error", "")


def until_free(client) -> None:
    """Wait until an edit is refused for what it asks, so that those before it have ended."""
    end = time.monotonic() + 60
    while remove(client, "no such label")[0] != 422:
        assert time.monotonic() < end


@pytest.fixture
def hold(monkeypatch):
    """Let calls of ``name`` in ``hpdval_edge.serve.MODULE`` wait for the event that is returned."""
    opened = threading.Event()

    def put(module: str, name: str) -> threading.Event:
        owner = pytest.importorskip(f"hpdval_edge.serve.{module}")
        through = getattr(owner, name)

        def wait(*arguments):
            assert opened.wait(60)
            return through(*arguments)

        monkeypatch.setattr(owner, name, wait)
        return opened

    yield put
    opened.set()


def test_an_edit_that_is_not_ready_in_time_changes_nothing(served, own_bundle, hold, signed):
    """As where a teacher is loaded for minutes. Planted mistakes: no limit; written all the same, after its client was
    told; the next one begins before the thread of this one has ended.
    """
    public, signed_file = signed
    predictor = Predictor(own_bundle, threads=1)
    before = content(own_bundle)
    opened = hold("additions", "unpack_labels")
    with served(predictor, edit=True, key=public, edit_timeout=0.3) as client:
        sent = {"file": ("new.labels", signed_file)}
        late = client.post("/v1/labels/add", files=sent)
        assert late.status_code == 504
        assert late.json()["error"] == (
            "the edit did not end within 0.3 s: nothing was changed, and will not be. Try again; where it takes that "
            "long, start with a larger --edit-timeout."
        )
        busy = (503, "an edit sent before did not end within 0.3 s; nothing was changed, try again.")
        assert remove(client, "red") == busy
        opened.set()
        until_free(client)
        assert content(own_bundle) == before


def test_an_edit_that_is_not_written_in_time_is_written_whole(served, own_bundle, hold):
    """As on a slow disk. Planted mistakes: it is said that nothing was changed; what was written is not taken over."""
    predictor = Predictor(own_bundle, threads=1)
    opened = hold("app", "remove_labels")
    with served(predictor, edit=True, edit_timeout=0.3, poll=3600) as client:
        status, sentence = remove(client, "red")
        assert status == 504
        assert sentence == (
            "the edit did not end within 0.3 s: it is being written, whole or not at all; look at the labels "
            "(GET /v1/labels) before you send it again."
        )
        assert client.post("/v1/classify", files=files(picture(0))).status_code == 200
        opened.set()
        end = time.monotonic() + 60
        while "red" in [row["label"] for row in client.get("/v1/labels").json()["labels"]]:
            assert time.monotonic() < end
    assert "red" not in load_bundle(own_bundle).manifest.labels


def test_an_edit_that_fails_after_its_time_is_told_to_the_operator(served, own_bundle, hold, capsys):
    """Planted mistake: asyncio's own words about an exception that nobody retrieved."""
    predictor = Predictor(own_bundle, threads=1)
    opened = hold("app", "remove_labels")
    with served(predictor, edit=True, edit_timeout=0.3) as client:
        assert remove(client, *predictor.labels)[0] == 504
        opened.set()
        until_free(client)
    err = capsys.readouterr().err
    assert err.startswith("hpedge: an edit of labels that took too long failed: bundle ") and err.count("\n") == 1
