"""``hpedge serve``: what the API answers, and that it is what the Predictor says."""

import base64
import io
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.predictor import Predictor

# The tiny bundle computes in fp16, where batches of other sizes round otherwise.
ATOL = 1e-4
JPEG_HEAD = b"\xff\xd8\xff\xe0 not much of a picture"


picture = runpy.run_path(str(Path(__file__).with_name("serve_pictures.py")))["picture"]


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """The files of a multipart request, called 0.png, 1.png and so on."""
    return [("file", (f"{index}.png", content)) for index, content in enumerate(contents)]


def as_json(*contents: bytes, **options) -> dict:
    return {"pictures": [{"data": base64.b64encode(content).decode()} for content in contents], **options}


@pytest.fixture
def predictor(tiny_bundle):
    return Predictor(tiny_bundle, "onnxruntime", threads=1)


@pytest.fixture
def client(served, predictor):
    with served(predictor) as client:
        yield client


def expected(predictor: Predictor, content: bytes):
    return predictor(Image.open(io.BytesIO(content)))


def check(result: dict, prediction, predictor: Predictor) -> None:
    """A result of the API is the Predictor's prediction."""
    rows = {row["label"]: row for row in result["scores"]}
    assert sorted(rows) == sorted(predictor.labels)
    assert [row["score"] for row in result["scores"]] == sorted((row["score"] for row in rows.values()), reverse=True)
    for index, label in enumerate(predictor.labels):
        row = rows[label]
        assert row["score"] == pytest.approx(prediction.scores[index], abs=ATOL)
        assert row["probability"] == pytest.approx(prediction.probabilities[index], abs=ATOL)
        assert row["threshold"] == pytest.approx(predictor.thresholds[index], abs=1e-6)
        assert row["chosen"] == (label in prediction.labels)
        assert row["fitted"] == (label not in predictor.bundle.unfitted)
    assert result["labels"] == list(prediction.labels)


def test_a_picture_gets_the_labels_of_the_predictor(client, predictor):
    """Planted mistakes: scores in another order than their labels; the probabilities taken for the scores."""
    content = picture(0, (50, 20))
    answer = client.post("/v1/classify", files=files(content)).raise_for_status().json()
    (result,) = answer["results"]
    assert answer["bundle"] == predictor.bundle.manifest.name
    assert (result["name"], result["width"], result["height"], result["heat_maps"]) == ("0.png", 50, 20, {})
    check(result, expected(predictor, content), predictor)


def test_several_pictures_come_back_in_order_whichever_way_they_are_sent(client, predictor):
    """Planted mistake: answers of a batch given in reverse."""
    contents = [picture(number, (20 + number, 30)) for number in range(11)]
    by_form = client.post("/v1/classify", files=files(*contents)).raise_for_status().json()["results"]
    by_json = client.post("/v1/classify", json=as_json(*contents)).raise_for_status().json()["results"]
    assert [result["name"] for result in by_json] == [str(number) for number in range(1, 12)]
    assert [result["name"] for result in by_form] == [f"{number}.png" for number in range(11)]
    for content, *results in zip(contents, by_form, by_json, strict=True):
        for result in results:
            check(result, expected(predictor, content), predictor)


def test_options_choose_labels_and_heat_maps(client, predictor):
    """Planted mistakes: ``top`` left out; the map of the label before; a number of a form taken for a word."""
    content = picture(3)
    prediction = expected(predictor, content)
    order = [predictor.labels[index] for index in np.argsort(-prediction.scores)]
    best = [predictor.labels.index(label) for label in order]
    between = float(prediction.scores[best[1]] + prediction.scores[best[2]]) / 2

    def ask(**options) -> dict:
        by_form = client.post("/v1/classify", files=files(content), data=options).raise_for_status().json()
        by_json = client.post("/v1/classify", json=as_json(content, **options)).raise_for_status().json()
        by_json["results"][0]["name"] = "0.png"
        assert by_form == by_json
        return by_form["results"][0]

    assert ask(top=3)["labels"] == order[:3]
    assert ask(threshold=between)["labels"] == order[:2]
    assert [row["threshold"] for row in ask(threshold=between)["scores"]] == [pytest.approx(between, abs=1e-6)] * 4
    assert [row["label"] for row in ask(top=2, scores="chosen")["scores"]] == order[:2]
    wanted = order[1:3]
    maps = ask(heat_map=wanted)["heat_maps"]
    assert list(maps) == wanted
    for label in wanted:
        exact = prediction.patch_scores[:, :, predictor.labels.index(label)]
        np.testing.assert_allclose(maps[label], exact, atol=ATOL)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold": "high"}, "threshold: must be 'fitted' or a number of float32, got 'high'."),
        ({"threshold": "nan"}, "threshold: must be 'fitted' or a number of float32, got 'nan'."),
        ({"threshold": "1e39"}, "threshold: must be 'fitted' or a number of float32, got '1e39'."),
        ({"threshold": "-3.4028236e38"}, "threshold: must be 'fitted' or a number of float32, got '-3.4028236e38'."),
        ({"top": "0"}, "top: Input should be greater than or equal to 1."),
        ({"top": "99"}, "top=99, but the bundle has 4 labels."),
        ({"top": "1", "threshold": "0.1"}, "top and threshold exclude each other; send one of them."),
        ({"heat_map": "unicorn"}, "heat_map: 'unicorn' is no label of the bundle; GET /v1/labels lists them."),
        ({"scores": "some"}, "scores: Input should be 'all' or 'chosen'."),
        ({"tpo": "1"}, "tpo: Extra inputs are not permitted."),
        ({"top": ["1", "2"]}, "top is given 2 times; send it once."),
    ],
)
def test_wrong_options_are_one_sentence(client, options, sentence):
    """Planted mistakes: unknown options ignored; thresholds that are infinite as float32, which JSON cannot say."""
    answer = client.post("/v1/classify", files=files(picture(0)), data=options)
    assert (answer.status_code, answer.json()) == (422, {"error": sentence})


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        ([picture(0), b"hello"], "1.png: not a picture in a format that can be read"),
        ([picture(0)[:70]], "0.png: damaged or truncated ("),
        ([JPEG_HEAD, b""], "0.png: damaged or truncated ("),
        ([picture(0), b""], "1.png: an empty file (0 bytes)"),
        ([picture(0, (101, 100))], "0.png: 10100 pixels, more than the limit of 10000"),
    ],
)
def test_a_broken_picture_is_named_and_the_server_goes_on(served, predictor, contents, sentence):
    """Planted mistakes: the limit on pixels not handed on; the places of a refused request never given back."""
    with served(predictor, max_pixels=10_000, max_pictures=2, max_queue=2) as client:
        for _ in range(3):
            answer = client.post("/v1/classify", files=files(*contents))
            assert answer.status_code == 422
            assert answer.json()["error"].startswith(sentence)
        assert client.post("/v1/classify", files=files(picture(0), picture(1))).status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "status", "sentence"),
    [
        (b"{", "application/json", 400, "the body is not JSON ("),
        (b"[" * 100_000, "application/json", 400, "the body is not JSON ("),
        (b'{"pictures": []}', "application/json", 422, "pictures: List should have at least 1 item"),
        (b'{"pictures": [{"data": "?"}]}', "application/json", 422, "1: data is not base64 ("),
        (b'{"pictures": [{"data": "\xc3\xa9"}]}', "application/json", 422, "1: data is not base64 ("),
        (b'{"pictures": [{"data": "", "name": "\\ud800"}]}', "application/json", 422, "pictures.0.name: 'utf-8' codec"),
        (b"x", "multipart/form-data", 400, "the multipart body is damaged ("),
        (b"x", "multipart/form-data; boundary=b", 400, "the multipart body is damaged ("),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422, "the request holds no picture;"),
        (picture(0), "image/png", 415, "Content-Type 'image/png' is neither"),
        (b"", "", 415, "Content-Type 'missing' is neither"),
    ],
)
def test_damaged_bodies_are_one_sentence(client, caplog, body, kind, status, sentence):
    """Planted mistakes: a name taken that UTF-8 cannot hold, so that the answer could not be written; lines of other
    libraries in the log, which anybody could fill.
    """
    answer = client.post("/v1/classify", content=body, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status
    assert answer.json()["error"].startswith(sentence)
    assert not caplog.records


def test_unknown_paths_and_methods_are_one_sentence(client):
    for answer, status in ((client.get("/v1/nothing"), 404), (client.get("/v1/classify"), 405)):
        assert answer.status_code == status
        assert "/openapi.json" in answer.json()["error"]


def test_many_at_once_get_their_own_results(served, predictor):
    """Planted mistakes: a batch's answers given to its requests in reverse; one request's name for all."""
    contents = [picture(number) for number in range(24)]
    predictions = [expected(predictor, content) for content in contents]
    with served(predictor, max_wait=0.01) as client, ThreadPoolExecutor(12) as pool:

        def ask(turn: int) -> tuple[int, dict]:
            number = turn % len(contents)
            sent = [("file", (f"{number}.png", contents[number]))]
            return number, client.post("/v1/classify", files=sent).raise_for_status().json()

        for number, answer in pool.map(ask, range(144)):
            (result,) = answer["results"]
            assert result["name"] == f"{number}.png"
            check(result, predictions[number], predictor)
        metrics = client.get("/metrics").text
        assert 'hpedge_requests_total{method="POST",path="/v1/classify",status="200"} 144.0' in metrics
        assert "hpedge_pictures_total 144.0" in metrics
        assert "hpedge_batch_pictures_sum 144.0" in metrics
        assert "hpedge_queue_pictures 0.0" in metrics
        assert "hpedge_held_bytes 0.0" in metrics
        # Some calls took several pictures: with one each there would be 144.
        calls = next(line for line in metrics.splitlines() if line.startswith("hpedge_engine_seconds_count"))
        assert float(calls.split()[1]) < 144


def test_metrics_do_not_grow_with_the_paths_that_strangers_try(client):
    """Planted mistake: the path of the request as a label of the counter."""
    for number in range(3):
        client.get(f"/wp-login-{number}.php")
    metrics = client.get("/metrics").text
    assert 'hpedge_requests_total{method="GET",path="other",status="404"} 3.0' in metrics
    assert "wp-login" not in metrics


def test_metrics_do_not_grow_with_the_methods_that_strangers_make_up(predictor):
    """One of uvicorn's HTTP parsers lets any word through. Planted mistake: the method as it is, as a label."""
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    from starlette.testclient import TestClient

    from hpdval_edge.serve.app import create_app
    from hpdval_edge.serve.settings import Settings

    client = TestClient(create_app(predictor, Settings()), base_url="http://127.0.0.1")
    for number in range(3):
        assert client.request(f"WORD{number}", "/metrics").status_code == 405
    metrics = client.get("/metrics").text
    assert 'hpedge_requests_total{method="other",path="/metrics",status="405"} 3.0' in metrics
    assert "WORD" not in metrics


def test_an_engine_that_fails_is_told_and_the_next_request_is_served(served, predictor):
    """Planted mistake: the queue's worker ends with the first error."""
    through, failures = predictor.predict_images, [FloatingPointError("planted")]

    def fail_once(images):
        if failures:
            raise failures.pop()
        return through(images)

    predictor.predict_images = fail_once
    with served(predictor) as client:
        answer = client.post("/v1/classify", files=files(picture(0)), headers={"Connection": "close"})
        assert (answer.status_code, answer.json()) == (500, {"error": "the server failed; its log says why."})
        # uvicorn closes a connection whose request failed.
        again = client.post("/v1/classify", files=files(picture(0)), headers={"Connection": "close"})
        assert again.status_code == 200


def test_openapi_describes_all_of_it(client):
    """Planted mistake: an answer with a key that the schema has not."""
    from hpdval_edge.serve import schema

    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        *("/v1/classify", "/v1/labels", "/v1/labels/rename", "/v1/labels/remove", "/v1/labels/reorder"),
        "/v1/labels/add",
        *("/healthz", "/metrics"),
    }
    assert set(document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
    }
    assert {"400", "401", "413", "415", "422", "429", "503", "504"} <= set(
        document["paths"]["/v1/classify"]["post"]["responses"]
    )
    answer = client.post("/v1/classify", files=files(picture(0)), data={"heat_map": "red"}).json()
    assert schema.ClassifyAnswer.model_validate(answer, strict=True, extra="forbid").model_dump() == answer
