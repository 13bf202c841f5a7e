"""Soak a server: many requests at once for a long time, every answer compared with the Predictor's own.

    python benchmarks/soak_serve.py BUNDLE --out soak.json [--requests 100000] [--concurrency 16] [--clients 2]

Starts ``hpedge serve`` on a free port, and ``--clients`` processes that share ``--concurrency`` keep-alive connections.
Requests are distinct small pictures in random order; an answer whose labels are not those of its picture, or whose
scores differ by more than 1e-5 (2e-3 in a bundle of less than 32 bits, which rounds otherwise in another batch), is a
mistake. Writes requests/s, latencies, the server's resident memory over time and
the number of mistakes; ends with exit code 1 where there was one, or where memory grew by more than a tenth after the
first tenth of the time.
"""

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from hpdval_edge import Predictor, __version__

TOLERANCE = {"fp32": 1e-5}
TOLERANCE_OF_OTHERS = 2e-3
GROWTH = 1.1
SECONDS_BETWEEN_SAMPLES = 2.0
BOUNDARY = "soak"


@dataclass
class Share:
    """What one client process did. seconds: of each request. mistakes: the first few, in words."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    wrong: int = 0
    mistakes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A request's body and what must come back. thresholds, scores: by label. tolerance: of a score."""

    name: str
    body: bytes
    scores: dict[str, float]
    thresholds: dict[str, float]
    tolerance: float


def make_cases(bundle: Path, count: int, side: int) -> list[Case]:
    """``count`` pictures, each of another colour and pattern, with the Predictor's answers one by one."""
    predictor = Predictor(bundle, "onnxruntime", threads=1)
    tolerance = TOLERANCE.get(predictor.bundle.manifest.precision, TOLERANCE_OF_OTHERS)
    thresholds = dict(zip(predictor.labels, predictor.thresholds.tolist(), strict=True))
    cases = []
    for number in range(count):
        rng = np.random.default_rng(number)
        blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST)
        file = io.BytesIO()
        picture.save(file, "PNG")
        scores = dict(zip(predictor.labels, predictor(picture).scores.tolist(), strict=True))
        name = f"{number}.png"
        cases.append(Case(name, form(name, file.getvalue()), scores, thresholds, tolerance))
    apart = min(
        max(abs(one.scores[label] - other.scores[label]) for label in one.scores)
        for index, one in enumerate(cases)
        for other in cases[:index]
    )
    if apart < 4 * tolerance:
        raise SystemExit(f"two pictures have scores within {apart:.1e}: swapped answers would not show")
    return cases


def form(name: str, data: bytes) -> bytes:
    """A multipart body of one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def check(case: Case, answer: dict[str, Any]) -> str | None:
    """What is wrong with an answer, or None."""
    (result,) = answer["results"]
    if result["name"] != case.name:
        return f"{case.name} got the answer to {result['name']}"
    scores = {row["label"]: row["score"] for row in result["scores"]}
    if scores.keys() != case.scores.keys():
        return f"{case.name} got scores of other labels"
    apart = max(abs(scores[label] - score) for label, score in case.scores.items())
    if not apart <= case.tolerance:
        return f"{case.name}: scores differ by {apart:.1e}"
    margins = {label: score - case.thresholds[label] for label, score in case.scores.items()}
    # A score as near to its threshold as it may be off may fall to either side.
    wrong = [
        label
        for label, margin in margins.items()
        if abs(margin) > case.tolerance and (label in result["labels"]) != (margin >= 0)
    ]
    if wrong:
        return f"{case.name}: wrongly chosen or left out: {', '.join(wrong)}"
    return None


async def connection(host: str, port: int, cases: list[Case], requests: int, seed: int, share: Share) -> None:
    """Send ``requests`` one after another on one keep-alive connection."""
    choose = random.Random(seed)
    reader, writer = await asyncio.open_connection(host, port)
    for _ in range(requests):
        case = choose.choice(cases)
        started = time.perf_counter()
        writer.write(
            f"POST /v1/classify HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(case.body)}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode()
            + case.body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        body = await reader.readexactly(length)
        share.seconds.append(time.perf_counter() - started)
        status = int(head.split(None, 2)[1])
        share.statuses[status] += 1
        wrong = check(case, json.loads(body)) if status == 200 else f"{case.name}: {body.decode()}"
        if wrong:
            share.wrong += 1
            share.mistakes = [*share.mistakes, wrong][:5]
    writer.close()


def client(url: str, cases: list[Case], requests: list[int], seed: int, pipe: Any) -> None:
    """A client process: one connection for each of ``requests``; sends its Share through ``pipe``."""
    address, share = urlsplit(url), Share()

    async def all_connections() -> None:
        tasks = [
            connection(address.hostname, address.port, cases, count, 1000 * seed + number, share)
            for number, count in enumerate(requests)
        ]
        await asyncio.gather(*tasks)

    asyncio.run(all_connections())
    pipe.send(share)


def start_server(bundle: Path, arguments: list[str]) -> tuple[subprocess.Popen, str]:
    """A server on a free port and its URL, which its first line tells."""
    command = [sys.executable, "-m", "hpdval_edge", "serve", str(bundle), "--port", "0", *arguments]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    line = server.stderr.readline()
    found = re.search(r"http://\S+", line)
    if not found:
        raise SystemExit(f"the server did not start: {line}{server.stderr.read()}")
    return server, found[0]


def resident(pid: int) -> float:
    """A process's resident memory in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run it; returns what is written."""
    cases = make_cases(arguments.bundle, arguments.pictures, arguments.side)
    server, url = start_server(arguments.bundle, ["--threads", str(arguments.threads)])
    per_connection = spread(arguments.requests, arguments.concurrency)
    pipes, clients, memory = [], [], []
    started = time.perf_counter()
    for number in range(arguments.clients):
        pipe, end = multiprocessing.Pipe(duplex=False)
        mine = per_connection[number :: arguments.clients]
        process = multiprocessing.Process(target=client, args=(url, cases, mine, number, end))
        process.start()
        # The process holds its own copy; with ours closed, its death ends the pipe.
        end.close()
        pipes.append(pipe)
        clients.append(process)
    for process in clients:
        while process.is_alive():
            memory.append((time.perf_counter() - started, resident(server.pid)))
            print(f"{memory[-1][0]:7.0f} s  server {memory[-1][1]:.1f} MB", file=sys.stderr, flush=True)
            # The shares are read while the process lives: a pipe holds less than one.
            index = clients.index(process)
            if pipes[index].poll(SECONDS_BETWEEN_SAMPLES):
                break
    shares = [pipe.recv() for pipe in pipes]
    wall = time.perf_counter() - started
    memory.append((wall, resident(server.pid)))
    for process in clients:
        process.join()
    server.send_signal(signal.SIGINT)
    server.communicate()
    return summary(arguments, shares, memory, wall, server.returncode)


def spread(total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` whole numbers that differ by one at most."""
    return [total // parts + (index < total % parts) for index in range(parts)]


def summary(
    arguments: argparse.Namespace,
    shares: list[Share],
    memory: list[tuple[float, float]],
    wall: float,
    code: int,
) -> dict[str, Any]:
    """The JSON document."""
    seconds = np.concatenate([share.seconds for share in shares])
    settled = [megabytes for at, megabytes in memory if at >= 0.1 * wall]
    growth = settled[-1] / settled[0]
    wrong = sum(share.wrong for share in shares)
    return {
        "ok": wrong == 0 and len(seconds) == arguments.requests and growth <= GROWTH and code == 0,
        "requests": len(seconds),
        "wrong": wrong,
        "mistakes": [mistake for share in shares for mistake in share.mistakes][:5],
        "statuses": dict(sum((share.statuses for share in shares), Counter())),
        "seconds": round(wall, 1),
        "requests_per_second": round(len(seconds) / wall, 1),
        "milliseconds": {
            name: round(1000 * float(np.percentile(seconds, share)), 2)
            for name, share in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
        },
        "server_megabytes": {
            "after_a_tenth": round(settled[0], 1),
            "at_the_end": round(settled[-1], 1),
            "highest": round(max(megabytes for _, megabytes in memory), 1),
            "over_time": [(round(at, 1), round(megabytes, 1)) for at, megabytes in thinned(memory, 200)],
        },
        "server_exit_code": code,
        "settings": {key: str(value) for key, value in vars(arguments).items()},
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version(), "hpedge": __version__},
    }


def thinned(values: list, most: int) -> list:
    """At most about ``most`` of ``values``, evenly, the last one included."""
    step = max(1, len(values) // most)
    return [*values[:-1:step], values[-1]]


def cpu() -> str:
    """The processor's name as Linux tells it."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def main() -> None:
    """Parse, soak, write, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=16, help="keep-alive connections")
    parser.add_argument("--clients", type=int, default=2, help="processes that share the connections")
    parser.add_argument("--pictures", type=int, default=64, help="distinct pictures")
    parser.add_argument("--side", type=int, default=32, help="pixels a side")
    parser.add_argument("--threads", type=int, default=1, help="of the server's engine")
    arguments = parser.parse_args()
    found = soak(arguments)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    memory = found["server_megabytes"]
    print(
        f"{found['requests']} requests, {found['wrong']} wrong, {found['requests_per_second']}/s, "
        f"p50 {found['milliseconds']['p50']} ms, p99 {found['milliseconds']['p99']} ms, "
        f"server {memory['after_a_tenth']} -> {memory['at_the_end']} MB"
    )
    raise SystemExit(0 if found["ok"] else 1)


if __name__ == "__main__":
    main()
