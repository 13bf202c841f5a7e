"""Measures bundles and backends and writes down under which conditions."""

import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import hpdval_edge
from hpdval_edge.atomic import disk_errors
from hpdval_edge.bench.conditions import Conditions, changes, read_conditions
from hpdval_edge.bench.energy import METER_ERRORS, Meter, find_meters
from hpdval_edge.bench.measure import interleave, ratio, summarise
from hpdval_edge.bench.pictures import generate, parse_size
from hpdval_edge.images import find_images
from hpdval_edge.machine import Files, Machine, read_machine
from hpdval_edge.predictor import Predictor
from hpdval_edge.progress import progress

STAGES = ("engine", "end to end")
SHARED_METER = "calls of several are interleaved and share the meter; measure one bundle with one backend"


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What is asked for.

    bundles, backends: each bundle is measured with each backend, the first of all is what others are compared with.
    batches: images a call. seconds: for each batch and stage. images: files, folders, globs; without any, JPEGs of the
    size ``jpeg`` are generated. build, engines: as in `EngineOptions`. root: below which board files are read.
    """

    bundles: tuple[Path, ...]
    backends: tuple[str, ...] = ("auto",)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    threads: int = 0
    seconds: float = 3.0
    warmup: int = 3
    images: tuple[str, ...] = ()
    jpeg: str = "640x480"
    build: bool = True
    engines: Path | None = None
    root: Path = Path("/")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bundle loaded with a backend. load_s: until it was ready. load_mib: what that added to the process."""

    name: str
    predictor: Predictor
    load_s: float
    load_mib: float

    def facts(self) -> dict[str, Any]:
        """For the report."""
        bundle = self.predictor.bundle
        manifest = bundle.manifest
        return {
            "name": self.name,
            "bundle": str(bundle.path),
            "backend": self.predictor.engine.name,
            "precision": manifest.precision,
            "input": manifest.input,
            "labels": len(manifest.labels),
            "image_size": manifest.image_size,
            "load_s": self.load_s,
            "load_mib": self.load_mib,
        }


@dataclass(slots=True)
class Bench:
    """A measurement under way; `report` may be asked for at any time."""

    options: BenchOptions
    machine: Machine
    files: Files
    before: Conditions
    meters: list[Meter]
    no_meter: str
    candidates: list[Candidate] = field(default_factory=list)
    pictures: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)

    def report(self, *, interrupted: bool) -> dict[str, Any]:
        """The document of ``hpedge bench --json``."""
        after = read_conditions(self.machine, self.files, live=self.options.root == Path("/"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        energy = [meter.source for meter in self.meters]
        return {
            "hpedge": hpdval_edge.__version__,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(["hpedge", *sys.argv[1:]]),
            "interrupted": interrupted,
            "machine": asdict(self.machine),
            "conditions": {"before": self.before.as_dict(), "after": after.as_dict()},
            "notes": changes(self.before, after),
            "threads": self.options.threads,
            "warmup": self.options.warmup,
            "pictures": self.pictures,
            "candidates": [candidate.facts() for candidate in self.candidates],
            "results": self.results,
            "peak_rss_mib": peak,
            "energy": {"measured_by": energy, "reason": self.no_meter or None},
        }


def start(options: BenchOptions) -> Bench:
    """Read the machine; nothing is loaded yet."""
    live = options.root == Path("/")
    machine = read_machine(options.root, live=live)
    files = Files(options.root, machine.problems)
    several = len(options.bundles) * len(options.backends) > 1
    meters, reason = find_meters(files, live=live)
    before = read_conditions(machine, files, live=live)
    return Bench(options, machine, files, before, [] if several else meters, SHARED_METER if several else reason)


def run(bench: Bench) -> None:
    """Load and measure all that is asked for; what is done so far is in ``bench`` also when Ctrl-C ends it.

    Raises:
        HpedgeError: a bundle, a backend or a picture that cannot be used.
    """
    options = bench.options
    with tempfile.TemporaryDirectory(prefix="hpedge-bench-") as folder:
        paths = _pictures(bench, Path(folder))
        for path in options.bundles:
            for backend in options.backends:
                bench.candidates.append(_load(bench, path, backend))
        steps = [(batch, stage) for batch in options.batches for stage in STAGES]
        with progress("measuring", len(steps)) as update:
            for done, (batch, stage) in enumerate(steps):
                _measure(bench, batch, stage, paths)
                update(done + 1, len(steps))


def _pictures(bench: Bench, folder: Path) -> list[Path]:
    """Those that are named, or new ones in ``folder``."""
    size = parse_size(bench.options.jpeg)
    if bench.options.images:
        paths = list(find_images(bench.options.images))
        bench.pictures = f"{len(paths)} given"
        return paths
    with disk_errors(folder):
        paths = generate(folder, size)
    bench.pictures = f"{len(paths)} generated JPEGs of {size[0]}x{size[1]}"
    return paths


def _load(bench: Bench, path: Path, backend: str) -> Candidate:
    options = bench.options
    started, before = time.perf_counter(), _rss_mib()
    predictor = Predictor(path, backend, threads=options.threads, build=options.build, engines=options.engines)
    taken, added = time.perf_counter() - started, _rss_mib() - before
    name, number = f"{predictor.bundle.path.stem} {predictor.engine.name}", 1
    while any(name == other.name for other in bench.candidates):
        number += 1
        name = f"{name.removesuffix(f' #{number - 1}')} #{number}"
    return Candidate(name, predictor, taken, added)


def _measure(bench: Bench, batch: int, stage: str, paths: Sequence[Path]) -> None:
    calls = {each.name: _call(each.predictor, stage, batch, paths) for each in bench.candidates}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(bench.options.warmup):
        for call in calls.values():
            call()
    started: list[Meter] = []
    try:
        for meter in bench.meters:
            meter.start()
            started.append(meter)
        interleave(calls, times, bench.options.seconds)
    finally:
        _keep(bench, batch, stage, times, _stop(bench, started))


def _stop(bench: Bench, meters: Sequence[Meter]) -> dict[str, dict[str, float]]:
    """Joules by meter; a failure is told in the notes, for it must not hide what ended the measurement."""
    joules = {}
    for meter in meters:
        try:
            joules[meter.source] = meter.stop()
        except METER_ERRORS as error:
            joules[meter.source] = {}
            told = f"{meter.source} could not be read to the end ({error}); such rows have no joules from it."
            if told not in bench.machine.problems:
                bench.machine.problems.append(told)
    return joules


def _keep(
    bench: Bench, batch: int, stage: str, times: dict[str, list[float]], joules: dict[str, dict[str, float]]
) -> None:
    first = next(iter(times.values()))
    for number, (name, taken) in enumerate(times.items()):
        if not taken:
            continue
        row = {"candidate": name, "stage": stage, "batch": batch, **asdict(summarise(taken, batch))}
        row["ratio"] = asdict(ratio(first, taken)) if number else None
        images = batch * len(taken)
        row["joules_per_image"] = {
            source: {rail: value / images for rail, value in rails.items()} for source, rails in joules.items()
        }
        bench.results.append(row)


def _call(predictor: Predictor, stage: str, batch: int, paths: Sequence[Path]) -> Callable[[], object]:
    """What is timed: the engine on a batch that is prepared, or all of it on the next paths."""
    if stage == "engine":
        images = predictor.prepare(list(islice(cycle(paths), batch)))
        return lambda: predictor.engine(images)
    turns = cycle(paths)
    return lambda: predictor(list(islice(turns, batch)))


def _rss_mib() -> float:
    """What the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
