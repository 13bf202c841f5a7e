"""``hpedge build``: an engine for this machine, checked on the bundle's golden pictures, kept beside the bundle."""

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpdval_edge.bundle import GOLDEN, MODEL, Bundle, sha256
from hpdval_edge.errors import CheckFailed, MissingDependency, UsageError
from hpdval_edge.images import model_input
from hpdval_edge.machine import read_machine
from hpdval_edge.platforms import dotted
from hpdval_edge.progress import say
from hpdval_edge.trt import graph_edits, preflight
from hpdval_edge.trt.builder import Job
from hpdval_edge.trt.child import Failure, run_job
from hpdval_edge.trt.cuda import GpuFacts, open_cuda
from hpdval_edge.trt.engine import Plan, TensorRTEngine
from hpdval_edge.trt.engine_cache import PLAN, EngineKey, EngineRecord, engines_folder, find_engine, keep_engine
from hpdval_edge.trt.flavour import Flavour, load_flavour
from hpdval_edge.trt.heads import Head, choose_head

if TYPE_CHECKING:
    from onnx import ModelProto

# Largest |score - golden score| of an engine. Twice what an export may show, for TensorRT sums in an order of its own;
# float32 more, whose products are TF32 on chips that have it.
BUDGET = {"fp32": 2e-3, "fp16": 4e-3, "int8": 2e-1, "int8-fp16": 2e-1}
MAX_LABELS = 65536
DEFAULT_LABELS = 1024
LOWEST_LEVEL = 0


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What is asked for.

    backend: tensorrt or tensorrt-rtx. head: auto or a mode of `heads.MODES`. batch, labels: greatest sizes; labels 0
    for twice the bundle's and at least 1,024. level: TensorRT's optimisation level, 0 to 5. chips: of a TensorRT-RTX
    engine built without a GPU, e.g. "sm_86,sm_89"; else the GPU at hand. folder: for engines; None: beside the bundle.
    """

    backend: str = "tensorrt"
    head: str = "auto"
    batch: int = 8
    labels: int = 0
    workspace_mib: int = 1024
    level: int = 3
    timeout_s: float = 3600.0
    chips: str = ""
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """An engine that is there. cached: it was built before."""

    folder: Path
    record: EngineRecord
    cached: bool

    @property
    def plan(self) -> Plan:
        """For the runtime."""
        return _plan(self.folder / PLAN, self.record)


@dataclass(frozen=True, slots=True)
class _Request:
    """Options made definite. chips: capabilities; gpu: the one at hand where it takes part; folder: for engines."""

    bundle: Bundle
    flavour: Flavour
    options: BuildOptions
    chips: tuple[int, ...]
    gpu: GpuFacts | None
    head: Head
    shapes: dict[str, list[list[int]]]
    folder: Path

    @property
    def budget(self) -> float:
        """Largest |score difference| allowed."""
        return BUDGET[self.bundle.manifest.precision]

    @property
    def key(self) -> EngineKey:
        """What the engine depends on."""
        head, files, own = self.head, self.bundle.manifest.files, not self.flavour.rtx
        library = sha256(head.library.read_bytes())[:16] if head.library else ""
        carriers = [head.mode, *(kernel.sha256[:16] for kernel in head.kernels), library]
        flags = {"shapes": self.shapes, "workspace_mib": self.options.workspace_mib, "level": self.options.level}
        return EngineKey(
            model=files[MODEL],
            golden=files[GOLDEN],
            software=f"{self.flavour.name} {dotted(self.flavour.version)}",
            gpu=self.gpu.name if self.gpu and own else "",
            driver=self.gpu.driver if self.gpu and own else "",
            chips=tuple(f"sm_{chip}" for chip in self.chips),
            head=" ".join(part for part in carriers if part),
            flags=flags,
        )


def build_engine(bundle: Bundle, options: BuildOptions, *, allow: bool = True) -> Built:
    """The engine for ``bundle`` here: found, or built and checked.

    Args:
        allow: Else one that is not there is not built.

    Raises:
        UsageError: options that cannot be.
        MissingDependency: no TensorRT, no GPU, too little memory or disk, a build that failed.
        CheckFailed: on no rung of the ladder the engine's scores are within the budget.
    """
    flavour = load_flavour(options.backend)
    chips, gpu = _chips(flavour, options)
    model = graph_edits.read_model(bundle.read(MODEL))
    if graph_edits.has_unsigned(model):
        raise UsageError(
            f"bundle {bundle.path} has 8 bits for CPUs (uint8, which TensorRT takes for int8); export it again with "
            "--int8 --fp16."
        )
    head = choose_head(flavour, bundle, options.head, chips, graph_edits.element_type(model))
    folder = options.folder or engines_folder(bundle.path)
    request = _Request(bundle, flavour, options, chips, gpu, head, _shapes(bundle, options), folder)
    if found := find_engine(folder, request.key):
        built = Built(*found, cached=True)
        return built if built.record.verified or gpu is None else _verified_later(request, built)
    if not allow:
        raise UsageError(f"there is no engine for this machine in {folder}; run `hpedge build {bundle.path}` first.")
    for note in preflight.check(
        read_machine(),
        gpu,
        flavour,
        model_bytes=model.ByteSize(),
        workspace_mib=options.workspace_mib,
        folder=folder,
    ):
        say(f"note: {note}")
    return _climb_down(request, model)


def _chips(flavour: Flavour, options: BuildOptions) -> tuple[tuple[int, ...], GpuFacts | None]:
    """Capabilities to build for, and the GPU at hand where it takes part."""
    if not options.chips:
        facts = open_cuda().facts()
        return (facts.capability,), facts
    if not flavour.rtx:
        raise UsageError("TensorRT builds for the GPU at hand; --target is for --backend tensorrt-rtx only.")
    names = [name.strip() for name in options.chips.split(",")]
    wrong = [name for name in names if not re.fullmatch(r"sm_\d{2,3}", name)]
    if wrong:
        raise UsageError(f"--target {wrong[0]!r} is no chip; chips are named like sm_89.")
    chips = tuple(sorted({int(name.removeprefix("sm_")) for name in names}))
    flavour.compute_capabilities(chips)
    return chips, None


def _shapes(bundle: Bundle, options: BuildOptions) -> dict[str, list[list[int]]]:
    """Least, usual and greatest shape of each input."""
    manifest, labels = bundle.manifest, len(bundle.manifest.labels)
    most = options.labels or min(max(2 * labels, DEFAULT_LABELS), MAX_LABELS)
    if not labels <= most <= MAX_LABELS:
        raise UsageError(f"--labels must be {labels} (the bundle's) to {MAX_LABELS:,}, got {most:,}.")
    size = manifest.image_size
    image = [size, size, 3] if manifest.input == "uint8" else [3, size, size]
    bank = [[count, manifest.embed_dim] for count in (1, labels, most)]
    return {"image": [[count, *image] for count in (1, 1, options.batch)], "text_global": bank, "text_local": bank}


def _climb_down(request: _Request, model: "ModelProto") -> Built:
    """Build rung by rung of the precision ladder until the scores are right."""
    worst = ""
    for rung in graph_edits.rungs(model):
        with tempfile.TemporaryDirectory() as scratch:
            plan = Path(scratch, PLAN)
            record = _build_rung(request, graph_edits.on_rung(model, rung), rung, plan)
            if request.gpu is not None:
                error, flips = measure(request.bundle, _plan(plan, record), request.flavour)
                record = replace(record, verified=True, max_error=error, label_flips=flips)
                if error > request.budget:
                    worst = f"the engine ({rung}) differs from the golden scores by {error:.1e}"
                    say(f"note: {worst}, {request.budget:.0e} is allowed")
                    continue
            return Built(keep_engine(request.folder, plan, record), record, cached=False)
    raise CheckFailed(
        f"{worst}, {request.budget:.0e} is allowed; no engine was kept. Use --backend onnxruntime, or export without "
        "--fp16 and build again."
    )


def _build_rung(request: _Request, graph: "ModelProto", rung: str, plan: Path) -> EngineRecord:
    """Write ``plan``; where memory ends, try again with less optimisation."""
    flavour, options = request.flavour, request.options
    for level in range(options.level, LOWEST_LEVEL - 1, -1):
        job = _job(request, graph, plan, level)
        try:
            done = run_job(job, timeout_s=options.timeout_s)
        except Failure as failure:
            if not failure.memory or level == LOWEST_LEVEL:
                less = "; pass a larger --workspace, a smaller --batch or fewer --labels" if failure.memory else ""
                raise MissingDependency(f"{flavour.title} built no engine: {failure}{less}.") from failure
            say(f"note: memory ended at optimisation level {level} ({failure}); trying level {level - 1}")
            continue
        seconds = round(done["seconds"], 1)
        return EngineRecord(request.key, "", rung, level, options.batch, seconds, host_code=job.embed)
    raise AssertionError("the lowest level either returns or raises")


def _job(request: _Request, graph: "ModelProto", plan: Path, level: int) -> Job:
    """Write the graph beside ``plan``, with the head's carrier in it; the job that builds it."""
    head, manifest, flavour = request.head, request.bundle.manifest, request.flavour
    plugins, qdp = [], None
    if head.mode == "plugin-so":
        graph = graph_edits.with_head_node(graph, head.kernels[0], topk=manifest.topk, alpha=manifest.alpha)
        plugins = [str(head.library)]
    elif head.mode == "qdp-aot":
        graph = graph_edits.encoder_only(graph)
        kernel = head.kernels[0]
        options = {"dtype": kernel.dtype, "patch_scores": kernel.patch_scores}
        qdp = {"bundle": str(request.bundle.path), "capability": request.chips[0], **options}
    onnx = plan.with_name(MODEL)
    onnx.write_bytes(graph.SerializeToString())
    request.folder.mkdir(parents=True, exist_ok=True)
    # TensorRT-RTX keeps no timings: it chooses its kernels on the GPU.
    timing = request.folder / f"timings-{dotted(flavour.version)}.cache"
    return Job(
        flavour=flavour.name,
        onnx=str(onnx),
        plan=str(plan),
        timing_cache="" if flavour.rtx else str(timing),
        shapes=request.shapes,
        workspace_mib=request.options.workspace_mib,
        level=level,
        capabilities=list(request.chips) if flavour.rtx else [],
        plugins=plugins,
        embed=bool(plugins),
        qdp=qdp,
    )


def _plan(path: Path, record: EngineRecord) -> Plan:
    return Plan(path, record.batch, record.host_code)


def measure(bundle: Bundle, plan: Plan, flavour: Flavour) -> tuple[float, int]:
    """Largest |score - golden score| of an engine, and labels that change; inf for scores that are no numbers."""
    images, expected = bundle.golden()
    manifest = bundle.manifest
    engine = TensorRTEngine(bundle, plan, flavour)
    scores = engine(model_input(images, manifest.image_size, manifest.mean, manifest.std, manifest.input))[0]
    error = np.abs(scores.astype(np.float64) - expected).max()
    flips = int(((scores >= bundle.thresholds) != (expected >= bundle.thresholds)).sum())
    return float(error) if np.isfinite(error) else float("inf"), flips


def _verified_later(request: _Request, built: Built) -> Built:
    """Check an engine that was built without a GPU on the one now at hand."""
    error, flips = measure(request.bundle, built.plan, request.flavour)
    if error > request.budget:
        raise CheckFailed(
            f"{built.folder} differs from the golden scores by {error:.1e}, {request.budget:.0e} is allowed; delete it "
            "and run `hpedge build` on this machine, which tries more precise rungs."
        )
    record = replace(built.record, verified=True, max_error=error, label_flips=flips)
    return Built(keep_engine(request.folder, built.folder / PLAN, record), record, cached=True)
