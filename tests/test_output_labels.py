"""Labels in outputs: those that change while results come, and those whose thresholds are not fitted."""

import io
import sys
from dataclasses import replace

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hpdval_edge.bundle import load_bundle
from hpdval_edge.errors import UsageError
from hpdval_edge.outputs.chosen import OutputOptions, open_outputs
from hpdval_edge.outputs.heat_maps import HeatMaps
from hpdval_edge.outputs.output import ModelInfo
from hpdval_edge.outputs.overlays import Overlays
from hpdval_edge.outputs.record import record
from hpdval_edge.outputs.text import text_output
from hpdval_edge.predictor import LabelSet, Prediction


def first_frame(path):
    with av.open(str(path)) as film:
        return next(film.decode(video=0)).to_ndarray(format="rgb24").astype(int)


def test_every_output_follows_labels_that_change(make_result, two_labels, tmp_path):
    """A watched bundle may be loaded again. Mistakes: scores under the labels of before, the first label's map for the
    one that was asked for, an error at the first result of the new labels.
    """
    changed = LabelSet(("new", "dark, green", "red"), np.full(3, 0.2, np.float32), frozenset(), "cd" * 32)
    before = make_result()
    maps = np.zeros((2, 3, 3), np.float32)
    prediction = Prediction(("new",), np.array([0.5, 0.1, 0.3], np.float32), maps, np.zeros(3, np.float32), changed)
    after = replace(before, frame=replace(before.frame, source="after.jpg"), prediction=prediction)
    assert record(after, two_labels)["scores"] == {"new": 0.5, "dark, green": 0.1, "red": 0.3}
    assert record(after, two_labels)["bundle"] == "cd" * 32
    text = io.StringIO()
    outputs = [
        text_output("table", text, two_labels),
        HeatMaps(tmp_path / "maps", two_labels, ["dark, green"], raw=True),
        Overlays(tmp_path / "overlays", two_labels, "red"),
    ]
    for output in outputs:
        for result in (before, after):
            output.write(result)
        output.close()
    assert text.getvalue().splitlines()[1] == "after.jpg  new 0.500"
    with np.load(tmp_path / "maps" / "after.npz", allow_pickle=False) as raw:
        assert raw["labels"].tolist() == ["dark, green"] and not raw["maps"].any()
    assert len(list((tmp_path / "overlays").iterdir())) == 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_that_are_columns_must_stay(make_result, two_labels, tmp_path, kind):
    """A bundle that was loaded again. Planted mistakes: scores under other labels' names; a KeyError of Arrow; another
    bundle with the same labels refused.
    """
    scores = np.array([0.5, 0.1], np.float32)

    def of(names, bundle):
        found = LabelSet(names, np.full(2, 0.2, np.float32), frozenset(), bundle * 32)
        return replace(make_result(), prediction=Prediction(names[:1], scores, None, scores, found))

    target = tmp_path / f"r.{kind}"
    (output,) = open_outputs(OutputOptions(output=target), None, two_labels, sys.stdout)
    output.write(make_result())
    output.write(of(two_labels.labels, "cd"))
    with pytest.raises(UsageError, match=rf"r\.{kind} has a column for each of 2 labels, which are others since"):
        output.write(of(("dark, green", "red"), "ef"))
    output.close()
    rows = target.read_text().splitlines()[1:] if kind == "csv" else pq.read_table(target).to_pylist()
    assert len(rows) == 2


def test_labels_whose_thresholds_are_not_fitted_are_marked(make_result, two_labels, tmp_path):
    """Planted mistakes: every label marked; none after the bundle was loaded again."""
    model, result = replace(two_labels, unfitted=frozenset({"red"})), make_result(scores=(0.3, 0.4))
    again = LabelSet(model.labels, model.thresholds, frozenset({"dark, green"}), "cd" * 32)
    text = io.StringIO()
    output = text_output("table", text, model)
    output.write(result)
    output.write(replace(result, prediction=replace(result.prediction, label_set=again)))
    assert text.getvalue().splitlines() == [
        "a b/photo.jpg  dark, green 0.400, red 0.300 (not fitted)",
        "a b/photo.jpg  dark, green 0.400 (not fitted), red 0.300",
    ]
    for name, each in {"marked": model, "plain": two_labels}.items():
        output = Overlays(tmp_path / name, each)
        output.write(result)
        output.write(make_result("door.mp4", (0.3, 0.1), 0, 0.0, size=(320, 240)))
        output.close()
    marked, plain = (np.asarray(Image.open(tmp_path / name / "photo.png"), int) for name in ("marked", "plain"))
    rows, columns = np.nonzero((marked != plain).any(axis=2))
    # Behind the name of the second row, in front of its bar.
    assert rows.max() - rows.min() < 16 and columns.min() > 140 and columns.max() < 210
    marked, plain = (first_frame(tmp_path / name / "door.mp4") for name in ("marked", "plain"))
    assert np.abs(marked - plain).max() > 80


def test_one_threshold_for_all_labels_is_marked_nowhere(tiny_bundle):
    """Planted mistake: a new label called not fitted where every label has the number that was asked for."""
    bundle = replace(load_bundle(tiny_bundle), unfitted=frozenset({"red"}))
    assert ModelInfo.of(bundle, bundle.thresholds).is_unfitted("red")
    assert not ModelInfo.of(bundle, bundle.thresholds).is_unfitted("blue")
    model = ModelInfo.of(bundle, np.full_like(bundle.thresholds, 0.1))
    again = LabelSet(model.labels, model.thresholds, bundle.unfitted, "cd" * 32)
    prediction = Prediction((), model.thresholds, None, None, again)
    assert not model.is_unfitted("red") and not model.at(prediction).is_unfitted("red")
