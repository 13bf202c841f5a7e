"""Table VII's counts: the paper's architecture to the last parameter, a tiny run by hand."""

import dataclasses
import json
import sys

import pytest
import torch

from hpdval_edge import cli
from hpdval_edge.config import override
from hpdval_edge.errors import UsageError
from hpdval_edge.training import complexity as module
from hpdval_edge.training.complexity import complexity, gmac


@pytest.fixture
def brief(monkeypatch):
    """Two timed passes, where the time itself does not matter."""
    monkeypatch.setattr(module, "WARM_UP", 1)
    monkeypatch.setattr(module, "TIMED", 2)


@pytest.mark.slow
def test_the_papers_architecture_has_its_parameters_and_work(brief):
    """METHOD sections 3 and 12. Planted mistake: attention runs in the fused kernel, which the counter overlooks."""
    result = complexity(None)
    count, work = result["parameters"], result["gmac"]
    assert count["teacher"] == 149_620_737
    assert count["embedding"] == 656_384
    assert count["prompts"] == count["stage2"] == 4_096
    assert count["paper_count"] == 150_281_217
    assert count["training"] == 236_079_873
    assert work["encoder"] == pytest.approx(17.56, abs=0.005)
    assert work["embedding"] == pytest.approx(0.13, abs=0.005)
    assert work["text"] == pytest.approx(2.98, abs=0.005)
    assert result["labels"] == 80


def test_a_run_is_counted_by_hand(tiny_run, brief, monkeypatch):
    """17 tokens, width 32, 2 blocks, 16 patches of 8 x 8 x 3, E 24, 4 labels. Planted mistake: attention left out."""
    monkeypatch.chdir(tiny_run)
    result = complexity("tiny")
    block = 17 * (4 * 32 * 32 + 2 * 32 * 128) + 2 * 17 * 17 * 32
    assert 1e9 * result["gmac"]["encoder"] == pytest.approx(2 * block + 16 * 192 * 32)
    assert 1e9 * result["gmac"]["embedding"] == pytest.approx(17 * 32 * 24)
    assert 1e9 * result["gmac"]["head"] == pytest.approx((16 + 1) * 24 * 4)
    text_block = 77 * (4 * 16 * 16 + 2 * 16 * 64) + 2 * 77 * 77 * 16
    assert 1e9 * result["gmac"]["text"] == pytest.approx(2 * text_block + 16 * 24)
    parts = [result["gmac"][key] for key in ("encoder", "embedding", "head")]
    assert result["gmac"]["image"] == pytest.approx(sum(parts))
    count = result["parameters"]
    assert count["embedding"] == 32 * 24
    assert count["prompts"] == count["stage2"] == 2 * 4 * 16
    assert count["deployed"] == count["encoder"] + count["embedding"]
    assert count["stage1"] == count["deployed"] + 2 * 4 * 24
    assert count["banks"] == 2 * 4 * 24
    latency = result["latency_ms"]
    assert 0 < latency["p10"] <= latency["median"] <= latency["p90"]
    assert latency["hardware"]


def test_stage_1_counts_what_it_trains(tiny_run, brief, monkeypatch):
    """Of a frozen encoder the embedding layer alone, and residuals of 2 views. Planted mistakes: either overlooked."""
    monkeypatch.chdir(tiny_run)
    subject = module._of_run("tiny", None, None)
    frozen, bare = (
        module.count_parameters(dataclasses.replace(subject, config=override(subject.config, values)))
        for values in ({"student.tune": "embed"}, {"prompt.residual": "false"})
    )
    assert frozen["stage1"] == 32 * 24 + 2 * 4 * 24
    assert frozen["training"] - bare["training"] == 2 * 4 * 24


def test_a_multiply_accumulate_is_half_of_two_operations():
    """Planted mistake: floating-point operations called GMAC."""
    a, b = torch.rand(10, 20), torch.rand(20, 30)
    assert 1e9 * gmac(lambda: a @ b) == pytest.approx(10 * 20 * 30)


def test_options_that_do_not_fit(tiny_run, monkeypatch):
    monkeypatch.chdir(tiny_run)
    with pytest.raises(UsageError, match="leave them out with run tiny"):
        complexity("tiny", labels=3)
    with pytest.raises(UsageError, match="--labels 0 must be 1 or more"):
        complexity(None, labels=0)
    with pytest.raises(UsageError, match="'other' is no run"):
        complexity("other")


def test_the_command_prints_a_table_or_json(tiny_run, brief, monkeypatch, capsys):
    monkeypatch.chdir(tiny_run)
    for extra in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["hpedge", "complexity", "runs/tiny", *extra])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        out = capsys.readouterr().out
        if extra:
            assert json.loads(out)["parameters"]["prompts"] == 128
        else:
            assert "as the paper adds up" in out
            assert "runs/tiny, 4 labels, 32 px" in out
