"""Builds one engine in a process of its own: TensorRT's aborts, its memory and its prints end with it.

``python -m hpdval_edge.trt.builder JOB.json`` reads a `Job`, writes the plan, and tells on stdout, a JSON object a
line, what goes on: {"event": "phase", "name", "done", "of"}, {"event": "log", "level", "text"}, and last
{"event": "built", "seconds", "bytes", "layers"} or {"event": "failed", "reason", "memory": bool}.
"""

import ctypes
import json
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpdval_edge.atomic import write_file
from hpdval_edge.errors import HpedgeError, MissingDependency
from hpdval_edge.trt.flavour import Flavour, load_flavour, make_logger

# Words of TensorRT's messages about too little memory, from its log and from the driver's.
# On small boards it also ends with no tactic left, or in their memory manager.
MEMORY_WORDS = (
    *("out of memory", "outofmemory", "cudaerrormemoryallocation", "insufficient memory", "bad_alloc", "nvmapmem"),
    *("insufficient to use tactic", "could not find any implementation"),
)


# Steps come by the thousand.
TELL_SECONDS = 0.2
# PR_SET_PDEATHSIG of linux/prctl.h.
SET_PARENT_DEATH_SIGNAL = 1


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


class BuildFailed(HpedgeError):
    """Why TensorRT built nothing."""


class OutOfBuildMemory(BuildFailed):
    """The same, for want of memory."""


def lacks_memory(text: str) -> bool:
    """Whether an error speaks of too little memory."""
    return any(word in text.lower() for word in MEMORY_WORDS)


def tell(event: str, **fields: object) -> None:
    """One line to the parent."""
    # One write, on a line of its own whatever the libraries print.
    sys.stdout.write(f"\n{json.dumps({'event': event, **fields})}\n")
    sys.stdout.flush()


def build(job: Job) -> None:
    """Write the plan of ``job``; raises BuildFailed."""
    flavour = load_flavour(job.flavour)
    trt = flavour.module
    logger = make_logger(trt, lambda level, text: tell("log", level=level, text=text))
    builder = trt.Builder(logger)
    for path in job.plugins:
        if builder.get_plugin_registry().load_library(path) is None:
            raise BuildFailed(f"the plugin library {path} cannot be loaded: {logger.last}")
    network = builder.create_network(flavour.network_flags())
    _parse(trt, network, logger, Path(job.onnx))
    if job.qdp:
        from hpdval_edge.trt.qdp_head import add_head

        add_head(trt, network, **job.qdp)
    config = _configure(flavour, builder, network, job)
    started = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        text = logger.last or "TensorRT gave no reason"
        raise OutOfBuildMemory(text) if lacks_memory(logger.errors) else BuildFailed(text)
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
    if cache is None:
        return
    try:
        write_file(path, lambda partial: partial.write_bytes(memoryview(cache.serialize())))
    except (MissingDependency, OSError) as error:
        # The engine is there; the next build takes longer.
        tell("log", level="warning", text=f"timings were not kept ({error})")


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


def _end_with_parent() -> None:
    """Ask Linux to end this process when the one that watches it ends, in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def main() -> int:
    """Exit code 0 where the plan was written."""
    _end_with_parent()
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        build(job)
    except HpedgeError as failure:
        tell("failed", reason=str(failure).rstrip("."), memory=isinstance(failure, OutOfBuildMemory))
        return 1
    except MemoryError:
        tell("failed", reason="no memory left", memory=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
