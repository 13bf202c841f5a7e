"""The compiled head behind ONNX Runtime gives what the graph's own gives, and stands in for it only where it can."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from hpdval_edge.bundle import MODEL, Bundle, load_bundle
from hpdval_edge.engine_onnxruntime import BORDER, OnnxRuntimeEngine, with_outputs
from hpdval_edge.errors import BadData
from hpdval_edge.images import model_input
from hpdval_edge.predictor import Predictor
from hpdval_edge.runtimes import EngineOptions
from hpdval_edge.trt.graph_edits import read_model, with_float32


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def exact(bundle):
    """The same in float32: in half precision the graph's own head sees rows that ONNX Runtime has not rounded."""
    return changed(bundle, with_float32(read_model(bundle.read(MODEL))).SerializeToString())


@pytest.fixture(scope="module")
def images(bundle):
    manifest = bundle.manifest
    return model_input(bundle.golden()[0], manifest.image_size, manifest.mean, manifest.std, manifest.input)


class Changed(Bundle):
    """A bundle whose model.onnx is another."""

    __slots__ = ("model",)

    def read(self, name):
        return self.model if name == MODEL else super().read(name)


def changed(bundle: Bundle, model: bytes) -> Bundle:
    other = Changed(*(getattr(bundle, name) for name in Bundle.__dataclass_fields__))
    object.__setattr__(other, "model", model)
    return other


def test_both_heads_give_the_same(exact, images):
    """Planted mistakes: alpha and 1 - alpha exchanged; the manifest's k forgotten (32); the first text row alone."""
    fast, own = OnnxRuntimeEngine(exact, EngineOptions()), OnnxRuntimeEngine(exact, EngineOptions(head="graph"))
    assert (fast.head, own.head) == ("c++", "graph")
    for got, expected in zip(fast(images), own(images), strict=True):
        assert got.dtype == expected.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_half_precision_differs_by_its_rounding(bundle, images):
    """Of the head's inputs, 2 ** -11 of each. Planted mistake: rows taken for float32."""
    fast, own = OnnxRuntimeEngine(bundle, EngineOptions()), OnnxRuntimeEngine(bundle, EngineOptions(head="graph"))
    assert fast.head == "c++"
    np.testing.assert_allclose(fast(images)[0], own(images)[0], atol=2**-11)


@pytest.mark.parametrize("head", ["auto", "graph"])
def test_patch_scores_only_where_they_are_wanted(bundle, images, head):
    """Planted mistake: scores and patch scores exchanged without them."""
    engine = OnnxRuntimeEngine(bundle, EngineOptions(head=head))
    scores, nothing = engine(images, False)
    assert nothing is None
    np.testing.assert_array_equal(scores, engine(images)[0])


@pytest.mark.parametrize("head", ["auto", "graph"])
def test_other_banks(bundle, images, head):
    """Planted mistake: the packed texts of the first bundle kept."""
    engine = OnnxRuntimeEngine(bundle, EngineOptions(head=head))
    other = replace(bundle, text_global=bundle.text_local[::-1].copy(), text_local=bundle.text_global[::-1].copy())
    before = engine(images)[0]
    expected = OnnxRuntimeEngine(other, EngineOptions(head=head))(images)[0]
    np.testing.assert_array_equal(engine.with_banks(other)(images)[0], expected)
    np.testing.assert_array_equal(engine(images)[0], before)


def test_a_graph_that_names_no_border_has_its_own_head(bundle, images):
    """As bundles of earlier versions. Planted mistake: an engine that refuses them."""
    model = onnx.load_from_string(bundle.read(MODEL))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{name}_" if name in BORDER else name for name in names]
    del model.graph.value_info[:]
    engine = OnnxRuntimeEngine(changed(bundle, model.SerializeToString()), EngineOptions())
    assert engine.head == "graph"
    assert engine(images)[0].shape == (len(images), len(bundle.manifest.labels))


def test_without_the_compiled_module_the_graph_has_its_own_head(bundle, monkeypatch):
    """Planted mistake: TextBank asked for, which raises ImportError."""
    monkeypatch.setattr("hpdval_edge.kernels.compiled.MISSING", "no module")
    assert OnnxRuntimeEngine(bundle, EngineOptions()).head == "graph"


def test_no_model_at_all_is_one_sentence(bundle):
    """Planted mistake: the first try's error, of a model with the outputs added, let through."""
    with pytest.raises(BadData, match=r"ONNX Runtime .* cannot load .*model\.onnx"):
        OnnxRuntimeEngine(changed(bundle, b"nonsense"), EngineOptions())


def test_outputs_are_added_to_the_bytes(bundle):
    """As onnx itself reads them. Planted mistake: a length counted without the tag."""
    model = onnx.load_from_string(with_outputs(bundle.read(MODEL), BORDER))
    assert [value.name for value in model.graph.output] == ["scores", "patch_scores", *BORDER]
    assert len(model.graph.node) == len(onnx.load_from_string(bundle.read(MODEL)).graph.node)


@pytest.mark.parametrize("top", [None, 1, 3])
def test_labels_are_chosen_best_first(bundle, top):
    """Ties in the manifest's order. Planted mistakes: > for >=; positions among the chosen taken for labels."""
    predictor = Predictor(bundle, top=top)
    thresholds = np.array([0.2, 0.5, 0.1, 0.3], np.float32)
    labels = replace(predictor._loaded.labels, thresholds=thresholds)
    names = labels.names
    chosen = predictor._choose(labels, np.array([0.3, 0.4, 0.1, 0.3], np.float32))
    expected = {None: (0, 3, 2), 1: (1,), 3: (1, 0, 3)}[top]
    assert chosen == tuple(names[index] for index in expected)
