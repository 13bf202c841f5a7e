"""Builds one engine in a process of its own: TensorRT's aborts, its memory and its prints end with it.

``python -m hpdval_edge.trt.builder JOB.json`` reads a `Job`, writes the plan, and tells on stdout, a JSON object a
line, what goes on: {"event": "phase", "name", "done", "of"}, {"event": "log", "level", "text"}, and last
{"event": "built", "seconds", "bytes", "layers"} or {"event": "failed", "reason", "memory": bool}.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpdval_edge.errors import HpedgeError
from hpdval_edge.trt.flavour import Flavour, load_flavour

# Words of TensorRT's messages about too little memory, from its log and from the driver's.
MEMORY_WORDS = ("out of memory", "outofmemory", "cudaerrormemoryallocation", "insufficient memory", "bad_alloc")


# Steps come by the thousand.
TELL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """One build.

    shapes: input -> least, usual and greatest shape. plugins: shared libraries to load; embed: put them into the plan.
    capabilities: the chips of a TensorRT-RTX engine, built without a GPU; empty for the GPU at hand. qdp: what
    `qdp_head.add_head` needs, for a graph that ends at the head's inputs. timing_cache: "" for none, which is what
    TensorRT-RTX wants.
    """

    flavour: str
    onnx: str
    plan: str
    timing_cache: str
    shapes: dict[str, list[list[int]]]
    workspace_mib: int
    level: int
    capabilities: list[int] = field(default_factory=list)
    plugins: list[str] = field(default_factory=list)
    embed: bool = False
    qdp: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The job's file."""
        return json.dumps(asdict(self))


class BuildFailed(Exception):
    """Why TensorRT built nothing; memory: for want of it."""

    def __init__(self, reason: str, *, memory: bool = False) -> None:
        super().__init__(reason)
        self.memory = memory


def tell(event: str, **fields: object) -> None:
    """One line to the parent."""
    print(json.dumps({"event": event, **fields}), flush=True)


def build(job: Job) -> None:
    """Write the plan of ``job``; raises BuildFailed."""
    flavour = load_flavour(job.flavour)
    trt = flavour.module
    logger = _logger(trt)
    builder = trt.Builder(logger)
    for path in job.plugins:
        if builder.get_plugin_registry().load_library(path) is None:
            raise BuildFailed(f"the plugin library {path} cannot be loaded: {logger.last}")
    network = builder.create_network(flavour.network_flags())
    _parse(trt, network, logger, Path(job.onnx))
    if job.qdp:
        from hpdval_edge.trt.qdp_head import add_head

        try:
            add_head(trt, network, **job.qdp)
        except HpedgeError as error:
            raise BuildFailed(str(error).rstrip(".")) from error
    config = _configure(flavour, builder, network, job)
    started = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        text = logger.last or "TensorRT gave no reason"
        raise BuildFailed(text, memory=any(word in logger.errors.lower() for word in MEMORY_WORDS))
    data = memoryview(plan)
    Path(job.plan).write_bytes(data)
    if job.timing_cache:
        _keep_timing(config, Path(job.timing_cache))
    tell("built", seconds=time.monotonic() - started, bytes=data.nbytes, layers=network.num_layers)


def _parse(trt: Any, network: Any, logger: Any, path: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc().strip()}" for error in errors)
        raise BuildFailed(f"the ONNX parser refuses the graph: {reasons or logger.last}")


def _configure(flavour: Flavour, builder: Any, network: Any, job: Job) -> Any:
    trt = flavour.module
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        if name in job.shapes:
            profile.set_shape(name, *job.shapes[name])
    if config.add_optimization_profile(profile) < 0:
        raise BuildFailed(f"TensorRT refuses the input shapes {job.shapes}")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_mib << 20)
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = job.level
    if job.embed:
        config.plugins_to_serialize = job.plugins
    chips = flavour.compute_capabilities(job.capabilities) if job.capabilities else []
    if chips:
        config.num_compute_capabilities = len(chips)
        for index, chip in enumerate(chips):
            config.set_compute_capability(chip, index)
    if job.timing_cache:
        _load_timing(config, Path(job.timing_cache))
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt)
    return config


def _load_timing(config: Any, path: Path) -> None:
    """The timings that earlier builds kept; TensorRT itself refuses those of another version or GPU."""
    kept = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(kept) or config.create_timing_cache(b"")
    if cache is not None:
        config.set_timing_cache(cache, ignore_mismatch=False)


def _keep_timing(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        path.write_bytes(memoryview(cache.serialize()))


def _logger(trt: Any) -> Any:
    """A logger that tells warnings and errors as events and remembers the errors."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last, self.errors = "", ""

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last, self.errors = text, f"{self.errors}{text}\n"
                tell("log", level="error", text=text)
            elif severity == trt.ILogger.Severity.WARNING:
                tell("log", level="warning", text=text)

    return Logger()


def _monitor(trt: Any) -> Any:
    """Tells the builder's phases."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.told = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = steps
            tell("phase", name=name, done=0, of=steps)

        def step_complete(self, name: str, step: int) -> bool:
            if time.monotonic() - self.told >= TELL_SECONDS:
                self.told = time.monotonic()
                tell("phase", name=name, done=step + 1, of=self.steps.get(name, 0))
            return True

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()


def main() -> int:
    """Exit code 0 where the plan was written."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        build(job)
    except BuildFailed as failure:
        tell("failed", reason=str(failure), memory=failure.memory)
        return 1
    except MemoryError:
        tell("failed", reason="no memory left", memory=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
