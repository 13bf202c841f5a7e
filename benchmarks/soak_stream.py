"""``hpedge infer`` on a live stream for an hour: flat memory, and no result lost, twice, in the wrong order or of the
wrong picture, while the stream is killed and frozen again and again.

    python benchmarks/soak_stream.py --model BUNDLE --minutes 60 --out soak.json

Serves numbered pictures over HTTP (tests/stream_server.py), runs the real command as a process with JSON lines, and
knows each result's picture by its scores, which it computed beforehand for the 64 pictures that are sent in a circle;
which of the pictures sent it was follows from the time of its receipt. Needs the extra [video]. Ends with exit code 1
where a check fails, one of which is that memory grows by less than a tenth after the first tenth of the time; the JSON
is written anew every minute.
"""

import argparse
import itertools
import json
import os
import platform
import re
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from hpdval_edge import Predictor
from hpdval_edge.sources.decoding import Decoded

SERVER = Path(__file__).resolve().parents[1] / "tests" / "stream_server.py"
PICTURES = 64
# Scores of the same picture may differ by as much, of two pictures must by ten times more.
SAME = 1e-4
STALL = 5.0
DOWN = 3.0
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Line:
    """One result: the frame's index, its receipt, which of the PICTURES it shows if any, when it was read here."""

    index: int
    received: float
    shown: int | None
    read: float


@dataclass
class Watch:
    """What is seen of the process. samples: seconds since the start, RSS in MB, CPU seconds, threads, open files."""

    began: float = field(default_factory=time.time)
    lines: list[Line] = field(default_factory=list)
    samples: list[tuple[float, float, float, int, int]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)


def expected_scores(predictor: Predictor, jpegs: list[bytes]) -> np.ndarray:
    """float32 [PICTURES, C], by the same way through libav that frames of a stream take."""
    decoder = av.CodecContext.create("mjpeg", "r")
    size = predictor.bundle.manifest.image_size
    frames = [decoder.decode(av.Packet(jpeg))[0] for jpeg in jpegs]
    scores = np.stack([predictor(Decoded(frame)(size)).scores for frame in frames])
    apart = np.abs(scores[:, None] - scores[None]).max(-1) + np.eye(len(scores))
    if apart.min() < 10 * SAME:
        raise SystemExit(
            f"pictures {np.unravel_index(apart.argmin(), apart.shape)} have the same scores; another bundle."
        )
    return scores


def read_lines(stdout: Any, watch: Watch, expected: np.ndarray) -> None:
    """Take results as they come."""
    for text in stdout:
        now, record = time.time(), json.loads(text)
        away = np.abs(expected - np.array(list(record["scores"].values()), np.float32)).max(-1)
        shown = int(away.argmin()) if away.min() < SAME else None
        watch.lines.append(Line(record["frame"], record["time"], shown, now))


def sample(pid: int, watch: Watch) -> None:
    """Note what the process takes now; nothing once it has ended."""
    process = Path("/proc") / str(pid)
    try:
        pages = int((process / "statm").read_text().split()[1])
        ticks = (process / "stat").read_text().rpartition(")")[2].split()
        files = len(os.listdir(process / "fd"))
    except (OSError, IndexError):
        return
    cpu = (int(ticks[11]) + int(ticks[12])) / TICKS
    watch.samples.append((round(time.time() - watch.began, 1), pages * PAGE / 2**20, cpu, int(ticks[17]), files))


def disturb(server: Any, watch: Watch, kind: str) -> None:
    """Kill the stream and start it again, or let it send nothing for longer than the watchdog waits."""
    watch.events.append(f"{time.time() - watch.began:.0f} s: {kind}")
    if kind == "killed":
        server.kill()
        time.sleep(DOWN)
        server.start()
    else:
        server.frozen = True
        time.sleep(STALL + DOWN)
        server.frozen = False


def judge(watch: Watch, sent: list[list[tuple[int, float]]], words: str, *, thinned: bool) -> dict[str, Any]:
    """What the lines prove; ``words`` is what the process said, ``thinned`` whether --fps was given."""
    flat = [(number, when, connection) for connection, part in enumerate(sent) for number, when in part]
    numbers, whens = np.array([entry[0] for entry in flat]), np.array([entry[1] for entry in flat])
    places, unknown = [], 0
    for line in watch.lines:
        # Of the pictures that look so, the last that was sent before this was received.
        before = int(np.searchsorted(whens, line.received, "right"))
        turn = numbers[max(before - PICTURES, 0) : before] % PICTURES
        found = np.flatnonzero(turn == line.shown)
        unknown += not len(found)
        places.append(max(before - PICTURES, 0) + int(found[-1]) if len(found) else -1)
    pairs = [(place, line) for place, line in zip(places, watch.lines, strict=True) if place >= 0]
    # Where nothing is lost unseen, a frame's index and its place among those sent run side by side in a connection.
    offsets: dict[int, set[int]] = {}
    for place, line in pairs:
        offsets.setdefault(flat[place][2], set()).add(place - line.index)
    counts = re.findall(r"(\d+) frames read, (\d+) dropped, (\d+) reconnects", words)
    if not counts:
        sys.exit(f"hpedge infer ended before its time and said: {words.strip() or 'nothing'}")
    read, dropped, reconnects = map(int, counts[-1])
    shown = [int(numbers[place]) for place, _ in pairs]
    checks = {
        "every result is of a picture that was sent": unknown == 0,
        "results are in the order of the pictures, none twice": all(a < b for a, b in itertools.pairwise(shown)),
        "indexes rise": all(a.index < b.index for a, b in itertools.pairwise(watch.lines)),
        "in each connection index and place among those sent run side by side": all(
            len(found) == 1 for found in offsets.values()
        ),
        "what is not a result was dropped, or thinned by --fps": thinned or len(watch.lines) + dropped == read,
        "as many reconnects as disturbances": reconnects == len(watch.events),
    }
    counts = {
        "sent": len(flat),
        "read": read,
        "dropped": dropped,
        "results": len(watch.lines),
        "reconnects": reconnects,
    }
    arrival = [line.received - whens[place] for place, line in pairs]
    result = [line.read - whens[place] for place, line in pairs]
    latency = {"sent to received": percentiles(arrival), "sent to result": percentiles(result)}
    differences = [sorted(found) for found in offsets.values()]
    return {"checks": checks, "counts": counts, "latency_ms": latency, "place - index, by connection": differences}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds, of all of them."""
    found = np.percentile(1000 * np.array(seconds or [np.nan]), [50, 90, 99, 100]).round(2).tolist()
    return dict(zip(("p50", "p90", "p99", "max"), found, strict=True))


def memory(watch: Watch) -> dict[str, Any]:
    """RSS in MB: of each tenth of the time, and its slope in MB an hour after the first tenth."""
    # The last may be of a process that has let go of its memory.
    samples = np.array(watch.samples[:-1] or [(0, 0, 0, 0, 0)])
    tenths = [round(float(part[:, 1].mean()), 2) for part in np.array_split(samples, 10) if len(part)]
    late = samples[len(samples) // 10 :]
    slope = 3600 * float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 2 else float("nan")
    seconds = max(samples[-1, 0] - samples[0, 0], 1)
    return {
        "rss_mb_by_tenths": tenths,
        "rss_mb_max": round(float(samples[:, 1].max()), 2),
        "rss_mb_per_hour": round(slope, 2),
        "cpu_percent_of_a_core": round(100 * float(samples[-1, 2] - samples[0, 2]) / seconds, 1),
        "threads_max": int(samples[:, 3].max()),
        "open_files_max": int(samples[:, 4].max()),
    }


def main() -> int:
    """Run it; 0 where all checks hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a bundle, small enough for the rate")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=20, help="pictures a second that are sent")
    parser.add_argument("--fps", type=float, help="pictures a second that are classified; else all")
    parser.add_argument("--disturb-every", type=float, default=180, help="seconds between kills and freezes, in turn")
    parser.add_argument("--out", type=Path, default=Path("soak_stream.json"))
    arguments = parser.parse_args()
    server = runpy.run_path(str(SERVER))["HttpServer"](arguments.rate, cycle=PICTURES, scale=4)
    try:
        return run(arguments, server)
    finally:
        server.kill()


def run(arguments: argparse.Namespace, server: Any) -> int:
    """Watch the process to its end."""
    expected = expected_scores(Predictor(arguments.model, threads=1), [server.jpeg(i) for i in range(PICTURES)])
    command = [sys.executable, "-m", "hpdval_edge", "infer", server.address, "--model", arguments.model]
    command += ["--duration", 60 * arguments.minutes, "--stall", STALL, "--format", "jsonl", "--threads", 1]
    if arguments.fps:
        command += ["--fps", arguments.fps]
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=stderr, text=True)
        watch = Watch()
        reader = threading.Thread(target=read_lines, args=(process.stdout, watch, expected))
        reader.start()
        try:
            follow(arguments, server, process, watch)
        finally:
            # Already over, unless this is interrupted.
            process.terminate()
        reader.join()
        stderr.seek(0)
        words = stderr.read()
    report = {
        **judge(watch, server.sent, words, thinned=arguments.fps is not None),
        **memory(watch),
        "exit_code": process.returncode,
    }
    tenths = report["rss_mb_by_tenths"]
    report["checks"]["memory is flat after the first tenth of the time"] = tenths[-1] < 1.1 * tenths[:2][-1]
    save(arguments, watch, {**report, "said": words.splitlines()})
    for name, passed in report["checks"].items():
        print("ok  " if passed else "FAIL", name)
    print(json.dumps({key: value for key, value in report.items() if key != "checks"}, indent=1))
    return 0 if all(report["checks"].values()) and process.returncode == 0 else 1


def follow(arguments: argparse.Namespace, server: Any, process: subprocess.Popen, watch: Watch) -> None:
    """Sample and disturb until the process ends; no disturbance in its last 30 seconds."""
    kinds = itertools.cycle(("killed", "frozen"))
    next_event, next_save = time.time() + arguments.disturb_every, time.time() + 60
    last_event = watch.began + 60 * arguments.minutes - 30
    while process.poll() is None:
        time.sleep(2)
        sample(process.pid, watch)
        if time.time() >= next_save:
            next_save = time.time() + 60
            save(arguments, watch, {"unfinished": True, "results": len(watch.lines), **memory(watch)})
        if next_event <= time.time() < last_event:
            disturb(server, watch, next(kinds))
            next_event = time.time() + arguments.disturb_every


def save(arguments: argparse.Namespace, watch: Watch, report: dict[str, Any]) -> None:
    """Write the JSON, whole or not at all."""
    conditions = {
        "command": " ".join(sys.argv),
        "minutes": arguments.minutes,
        "pictures a second": arguments.rate,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": f"Python {platform.python_version()}, PyAV {av.__version__}",
        "load": os.getloadavg(),
        "events": watch.events,
        "samples": watch.samples[:: max(len(watch.samples) // 200, 1)],
    }
    new = arguments.out.with_suffix(".new")
    new.write_text(json.dumps({**report, **conditions}, indent=1) + "\n")
    new.replace(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
