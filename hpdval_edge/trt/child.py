"""Runs `builder` as a child: its progress shown, its silence noticed, its end explained."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpdval_edge.progress import progress, say
from hpdval_edge.trt.builder import Job, lacks_memory
from hpdval_edge.trt.flavour import parser_library_folder

# Where nothing was shown for so long, a word is said.
HEARTBEAT_SECONDS = 30.0


class Failure(Exception):
    """The child built nothing. memory: for want of it, so that less may work."""

    def __init__(self, reason: str, *, memory: bool = False) -> None:
        super().__init__(reason)
        self.memory = memory


def run_job(job: Job, *, timeout_s: float) -> dict[str, Any]:
    """Build in a child process; the "built" event: seconds, bytes, layers.

    Raises:
        Failure: TensorRT failed or aborted, the system killed it, or it took longer than ``timeout_s``.
    """
    with tempfile.TemporaryDirectory() as folder:
        job_file, errors = Path(folder, "job.json"), Path(folder, "stderr")
        job_file.write_text(job.to_json(), encoding="utf-8")
        with errors.open("wb") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", "hpdval_edge.trt.builder", str(job_file)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(job, Path(folder)),
            )
            try:
                last, error = _follow(child, timeout_s)
            finally:
                # Also where Ctrl-C or an error of ours ends the watch.
                child.kill()
                child.wait()
        if last.get("event") == "built":
            return last
        if last.get("event") == "failed":
            raise Failure(last["reason"], memory=last["memory"])
        raise _unexplained(child.returncode, error, errors.read_text("utf-8", errors="replace"))


def _environment(job: Job, folder: Path) -> dict[str, str]:
    # A file called tensorrt.py where the user stands must not be taken for the module.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    if job.flavour == "tensorrt-rtx":
        paths = [str(parser_library_folder(folder)), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def _follow(child: subprocess.Popen, timeout_s: float) -> tuple[dict[str, Any], str]:
    """Show events until the child ends; the last one, and TensorRT's last error."""
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read, args=(child.stdout, lines), daemon=True).start()
    last, error, whole = {}, "", None
    with progress("building", 1) as update:
        for event in _events(lines, timeout_s):
            if event["event"] == "phase":
                # The first phase that TensorRT tells is the whole build; others lie inside it.
                whole = whole or event["name"]
                if event["name"] == whole:
                    update(event["done"], max(event["of"], 1))
            elif event["event"] == "log" and event["level"] == "warning":
                say(f"TensorRT: {event['text'].strip()}")
            elif event["event"] == "log":
                error = event["text"].strip()
            last = event
    child.wait()
    return last, error


def _events(lines: "queue.Queue[bytes | None]", timeout_s: float) -> Iterator[dict[str, Any]]:
    """Events until the end; a heartbeat as time goes by, Failure where it takes too long."""
    started = beat = time.monotonic()
    while True:
        now = time.monotonic()
        if now - started >= timeout_s:
            raise Failure(f"the build took longer than {timeout_s:.0f} s and was stopped; pass a larger --timeout")
        if now - beat >= HEARTBEAT_SECONDS:
            beat = now
            say(f"still building, {now - started:.0f} s")
        try:
            line = lines.get(timeout=min(timeout_s - (now - started), HEARTBEAT_SECONDS))
        except queue.Empty:
            continue
        if line is None:
            return
        try:
            event = json.loads(line)
        except ValueError:
            # TensorRT's libraries print to stdout as well.
            continue
        if isinstance(event, dict):
            yield event


def _read(stream: Any, lines: "queue.Queue[bytes | None]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _unexplained(code: int, error: str, errors: str) -> Failure:
    """Of a child that ended without its last event; ``error`` is TensorRT's last, ``errors`` its stderr."""
    tail = error or " ".join(errors.strip().splitlines()[-3:]) or "it said nothing"
    if code == -signal.SIGKILL:
        return Failure(f"the system killed the build, most likely for want of memory ({tail})", memory=True)
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Failure(f"the build process ended with {name}: {tail}", memory=lacks_memory(f"{error} {errors}"))
