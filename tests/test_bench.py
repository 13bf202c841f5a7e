"""``hpedge bench``: what is timed, in which order, what is left when it is interrupted, and what it prints."""

import contextlib
import errno
import json

import numpy as np
import pytest

from hpdval_edge.bench import run as module
from hpdval_edge.bench.measure import FEWEST_CALLS, interleave, ratio, summarise
from hpdval_edge.bench.pictures import generate, parse_size
from hpdval_edge.bench.run import BenchOptions, run, start
from hpdval_edge.bench.text import as_text
from hpdval_edge.errors import BadData, MissingDependency, UsageError
from hpdval_edge.images import open_rgb
from hpdval_edge.predictor import Predictor

QUICK = ("--seconds", "0", "--warmup", "0", "--threads", "1")


def options(bundle, **changes):
    return BenchOptions(**{"bundles": (bundle,), "seconds": 0.0, "warmup": 0, "threads": 1, "batches": (2,), **changes})


def test_calls_take_turns_and_the_order_changes():
    """Planted mistake: the same goes first in every round."""
    seen = []
    times = {"a": [], "b": []}
    interleave({name: lambda name=name: seen.append(name) for name in times}, times, 0.0)
    assert seen[:6] == ["a", "b", "b", "a", "a", "b"]
    assert len(times["a"]) == len(times["b"]) == FEWEST_CALLS


def test_nothing_is_trimmed():
    """Planted mistakes: the slowest call is left out; images/s of the median; milliseconds a image, not a call."""
    found = summarise([0.010] * 98 + [0.020, 1.0], batch=4)
    assert (found.calls, found.p50_ms, found.p90_ms, found.max_ms) == (100, 10.0, 10.0, 1000.0)
    assert found.p99_ms == pytest.approx(np.percentile([10.0] * 98 + [20.0, 1000.0], 99))
    assert found.images_per_s == pytest.approx(400 / 2.0)
    assert found.mean_ms == pytest.approx(20.0)


def test_ratio_is_of_pairs_and_above_one_where_this_is_faster():
    """Planted mistakes: the ratio of medians; upside down; a round without its second half."""
    found = ratio([1.0, 2.0, 8.0, 9.0], [1.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.pairs) == (2.0, 1.5, 3.0, 3)


@pytest.mark.parametrize("text", ["640", "0x10", "640x", "-1x5", "20000x5", "axb"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match=f"--jpeg '{text}' is no size such as 640x480"):
        parse_size(text)


def test_generated_pictures_are_photos_in_size_and_weight(tmp_path):
    """Without noise a pixel is a bit, which decodes too fast. Planted mistakes: no noise; sides swapped; all
    pictures the same.
    """
    paths = generate(tmp_path, (320, 200))
    assert {open_rgb(path).size for path in paths} == {(320, 200)}
    assert len({path.read_bytes() for path in paths}) == len(paths)
    assert min(8 * path.stat().st_size for path in paths) > 2 * 320 * 200


def test_what_is_timed(tiny_bundle, tmp_path, monkeypatch):
    """Planted mistakes: preparing is timed with the engine; end to end begins with the same picture each time."""
    paths, seen = generate(tmp_path, (40, 40))[:3], []
    predictor = Predictor(tiny_bundle)
    engine = module._call(predictor, "engine", 2, paths)
    monkeypatch.setattr(Predictor, "prepare", lambda *_: pytest.fail("prepared while the engine is timed"))
    assert engine()[0].shape == (2, 4)
    monkeypatch.setattr(Predictor, "__call__", lambda self, pictures: seen.extend(pictures))
    whole = module._call(predictor, "end to end", 2, paths)
    whole()
    whole()
    assert seen == [*paths, paths[0]]


def test_one_bundle_as_a_table(tiny_bundle, run_hpedge):
    """Planted mistakes: a stage or a batch left out; no word on the energy."""
    code, out, err = run_hpedge("bench", tiny_bundle, "--batch", "1,3", *QUICK)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.startswith(("engine ", "end to end "))]
    assert [(row[:-6], row[-6]) for row in rows] == [
        *((["engine"], "1"), (["end", "to", "end"], "1")),
        *((["engine"], "3"), (["end", "to", "end"], "3")),
    ]
    assert all(int(row[-5]) == FEWEST_CALLS for row in rows)
    assert "8 generated JPEGs of 640x480" in out
    assert "\nenergy" in out and "\npeak RSS" in out and "ratio" not in out


def test_a_projects_backend_is_taken(tiny_bundle, run_hpedge, tmp_path, monkeypatch):
    """Planted mistake: auto, whatever hpedge.toml says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpedge.toml").write_text('[infer]\nbackend = "pt2"\n')
    code, out, err = run_hpedge("bench", tiny_bundle, "--batch", "2", "--json", *QUICK)
    assert code == 0, err
    assert [each["backend"] for each in json.loads(out)["candidates"]] == ["pt2"]


def test_two_are_compared(tiny_bundle, run_hpedge, tiny):
    """Planted mistakes: the ratio of the first with itself in every row; two candidates of one name."""
    code, out, err = run_hpedge(
        *("bench", tiny_bundle, tiny_bundle, "--backend", "onnxruntime,torchscript", "--batch", "2"),
        *("--images", tiny / "val", "--json", *QUICK),
    )
    assert code == 0, err
    report = json.loads(out)
    names = ["model onnxruntime", "model torchscript", "model onnxruntime #2", "model torchscript #2"]
    assert [each["name"] for each in report["candidates"]] == names
    assert [row["candidate"] for row in report["results"]] == names * 2
    assert [row["ratio"] is None for row in report["results"]] == [True, False, False, False] * 2
    assert report["pictures"] == "16 given"
    assert report["energy"] == {"measured_by": [], "reason": module.SHARED_METER}
    assert {"model", "cpu", "packages", "power_mode"} < report["machine"].keys()
    assert report["conditions"].keys() == {"before", "after"}
    assert all(row["calls"] == row["ratio"]["pairs"] for row in report["results"] if row["ratio"])


def test_energy_is_of_the_timed_calls(tiny_bundle, record):
    """A counter that adds 40 J a look. Planted mistakes: joules a call for joules an image; warm-up included."""
    zone = "sys/class/powercap/intel-rapl:0"
    root = record(
        {f"{zone}/name": "package-0\n", f"{zone}/energy_uj": "5", f"{zone}/max_energy_range_uj": "9000000000"}
    )
    bench = start(options(tiny_bundle, root=root))
    (meter,) = bench.meters
    looks = iter(range(100))
    meter._counters = lambda: {"package-0": 40_000_000 * next(looks)}
    run(bench)
    joules = [row["joules_per_image"]["RAPL"]["package-0"] for row in bench.results]
    assert joules == [40 / (2 * FEWEST_CALLS)] * 2
    text = as_text(bench.report(interrupted=False))
    assert "measured by RAPL" in text and "package-0 2.000" in text


class Meter:
    """Counts 6 J, or fails in ``start`` or ``stop``."""

    def __init__(self, source, fails=None):
        self.source, self.fails, self.stopped = source, fails, False

    def start(self):
        if self.fails == "start":
            raise OSError("no such device")

    def stop(self):
        self.stopped = True
        if self.fails == "stop":
            raise ValueError("no number")
        return {"rail": 6.0}


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, BadData("photo.jpg: empty")])
def test_a_meter_that_fails_hides_nothing(tiny_bundle, monkeypatch, end):
    """Planted mistakes: its error instead of the run's own, or of Ctrl-C; the meters behind it not stopped; the rows
    lost with it.
    """
    real = interleave

    def ended(wanted, times, seconds):
        real(wanted, times, seconds)
        if end:
            raise end

    monkeypatch.setattr(module, "interleave", ended)
    bench = start(options(tiny_bundle))
    bench.meters = [Meter("broken", "stop"), Meter("good")]
    with contextlib.nullcontext() if end is None else pytest.raises(end if isinstance(end, type) else type(end)):
        run(bench)
    assert [row["joules_per_image"] for row in bench.results[:1]] == [
        {"broken": {}, "good": {"rail": 6.0 / (2 * FEWEST_CALLS)}}
    ]
    assert bench.meters[1].stopped
    assert "broken could not be read to the end (no number); such rows have no joules from it." in as_text(
        bench.report(interrupted=False)
    )


def test_a_meter_that_does_not_start_leaves_no_other_running(tiny_bundle):
    bench = start(options(tiny_bundle))
    bench.meters = [Meter("good"), Meter("broken", "start"), Meter("never started")]
    with pytest.raises(OSError, match="no such device"):
        run(bench)
    assert [meter.stopped for meter in bench.meters] == [True, False, False]


def test_ctrl_c_prints_what_was_measured(tiny_bundle, run_hpedge, monkeypatch):
    """Planted mistakes: exit code 0; nothing printed; the row under way lost."""
    real, calls = interleave, []

    def stopped(wanted, times, seconds):
        calls.append(1)
        if len(calls) == 2:
            for _ in range(3):
                times[next(iter(wanted))].append(0.5)
            raise KeyboardInterrupt
        real(wanted, times, seconds)

    monkeypatch.setattr(module, "interleave", stopped)
    code, out, _ = run_hpedge("bench", tiny_bundle, "--batch", "1,2", *QUICK)
    assert code == 130
    assert "Interrupted: this is what was measured until then." in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("engine ", "end to end "))]
    assert [(row[0], row[-5]) for row in rows] == [("engine", str(FEWEST_CALLS)), ("end", "3")]


def test_ctrl_c_before_the_first_row_is_a_report_as_well(tiny_bundle, run_hpedge, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_load", stopped)
    code, out, _ = run_hpedge("bench", tiny_bundle, "--json", *QUICK)
    report = json.loads(out)
    assert (code, report["interrupted"], report["results"], report["candidates"]) == (130, True, [], [])
    assert "Interrupted" in as_text(report)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batch", "1,x"], 2, "--batch '1,x' is no list of numbers from 1"),
        (["--batch", "0"], 2, "--batch '0' is no list"),
        (["--jpeg", "big"], 2, "--jpeg 'big' is no size"),
        (["--backend", "onnxruntime,cuda"], 2, "'cuda' is not one of auto"),
        (["--images", "absent"], 2, "'absent' matches no file"),
    ],
)
def test_wrong_options(tiny_bundle, run_hpedge, arguments, code, message):
    found = run_hpedge("bench", tiny_bundle, *QUICK, *arguments)
    assert (found[0], found[1]) == (code, "")
    assert message in found[2]


def test_pictures_that_are_none_and_bundles_that_are_none(tiny_bundle, tmp_path, run_hpedge, monkeypatch):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(BadData, match=r"bad\.jpg: not a picture"):
        run(start(options(tiny_bundle, images=(str(tmp_path),))))
    assert run_hpedge("bench", tmp_path / "absent.hpedge", *QUICK)[0] == 2
    monkeypatch.chdir(tmp_path)
    code, _, err = run_hpedge("bench")
    assert (code, "run `hpedge export`" in err) == (2, True)


def test_a_full_disk_is_named(tiny_bundle, monkeypatch):
    """Planted mistake: a traceback."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "generate", full)
    with pytest.raises(MissingDependency, match=r"no space left to write .*hpedge-bench-"):
        run(start(options(tiny_bundle)))
