"""The tables of boards and TensorRT versions."""

import pytest

from hpdval_edge.platforms import JETPACKS, find_jetpack, head_modes, parse_version, tensorrt_notes


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        *(("35.1.0", "5.0.2"), ("35.4.1", "5.1.x"), ("36.2.0", "6.0"), ("36.3.0", "6.0"), ("36.4.0", "6.1")),
        *(("36.4", "6.1"), ("36.4.3", "6.2"), ("36.4.4", "6.2.1"), ("36.4.7", "6.x"), ("38.2.2", "7.0")),
        *(("38.4.0", "7.1"), ("39.2.0", "7.2"), ("39.2.1", "7.2.1"), ("39.2.5", "7.2.x")),
        *(("32.7.1", None), ("36.5.0", None), ("38.3.0", None), ("40.0.0", None)),
    ],
)
def test_jetpack_of_l4t(l4t, jetpack):
    """Planted mistake: a family's row before the exact one."""
    row = find_jetpack(parse_version(l4t))
    assert (row.name if row else None) == jetpack


def test_families_of_l4t_claim_no_tensorrt_they_may_not_have():
    for row in JETPACKS:
        if row.name in ("6.x", "7.2.x"):
            assert row.tensorrt is row.cuda is row.ptx is None


@pytest.mark.parametrize(
    ("version", "modes"),
    [
        *(("8.6.2", "onnx"), ("10.0.1", "onnx plugin-so"), ("10.8.0", "onnx plugin-so")),
        *(("10.9.0", "onnx plugin-so qdp-aot"), ("10.14.1", "onnx plugin-so")),
        *(("10.16.2.10", "onnx plugin-so qdp-aot"), ("11.4.1", "onnx plugin-so qdp-aot")),
    ],
)
def test_head_modes_of_tensorrt(version, modes):
    """Planted mistakes: 10.9 excluded; 10.14 not left out; versions compared as text."""
    found = head_modes(parse_version(version), [87])
    assert " ".join(name for name, reason in found.items() if reason is None) == modes


def test_10_13_has_nothing_for_orin():
    """Planted mistake: only the note, and modes that could never run."""
    assert set(head_modes((10, 13, 3), [87]).values()) == {
        "has no kernels for Orin; use 10.16, which JetPack 7.2 brings"
    }
    assert set(head_modes((10, 13, 3), [110]).values()) == {None}
    assert tensorrt_notes((10, 16, 1), [120]) and not tensorrt_notes((10, 16, 1), [87])
