"""``hpedge build``: an engine for this machine, checked on the bundle's golden pictures, kept beside the bundle."""

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpdval_edge.atomic import disk_errors
from hpdval_edge.bundle import GOLDEN, MODEL, Bundle, sha256
from hpdval_edge.errors import CheckFailed, MissingDependency, UsageError
from hpdval_edge.golden import compare
from hpdval_edge.machine import read_machine
from hpdval_edge.platforms import dotted
from hpdval_edge.progress import say
from hpdval_edge.trt import graph_edits, preflight
from hpdval_edge.trt.builder import Job
from hpdval_edge.trt.child import Failure, run_job
from hpdval_edge.trt.cuda import GpuFacts, open_cuda
from hpdval_edge.trt.engine import Plan, TensorRTEngine
from hpdval_edge.trt.engine_cache import PLAN, EngineKey, EngineRecord, alone, engines_folder, find_engine, keep_engine
from hpdval_edge.trt.flavour import Flavour, load_flavour
from hpdval_edge.trt.heads import Head, choose_heads

if TYPE_CHECKING:
    from onnx import ModelProto

# Largest |score - golden score| of an engine. Twice what an export may show, for TensorRT sums in an order of its own;
# float32 more, whose products are TF32 on chips that have it.
BUDGET = {"fp32": 2e-3, "fp16": 4e-3, "int8": 2e-1, "int8-fp16": 2e-1}
# Precisions whose head takes half.
HALVES = ("fp16", "int8-fp16")
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
    """Options made definite.

    chips: capabilities. gpu: the one at hand where it takes part. heads: to try, in this order. folder: for engines.
    """

    bundle: Bundle
    flavour: Flavour
    options: BuildOptions
    chips: tuple[int, ...]
    gpu: GpuFacts | None
    heads: tuple[Head, ...]
    shapes: dict[str, list[list[int]]]
    folder: Path

    @property
    def budget(self) -> float:
        """Largest |score difference| allowed."""
        return BUDGET[self.bundle.manifest.precision]

    def key(self, head: Head) -> EngineKey:
        """What the engine with ``head`` depends on."""
        options, own = self.options, not self.flavour.rtx
        library = sha256(head.library.read_bytes())[:16] if head.library else ""
        carriers = [head.mode, *(kernel.sha256[:16] for kernel in head.kernels), library]
        return EngineKey(
            model=self.bundle.manifest.files[MODEL],
            software=f"{self.flavour.name} {dotted(self.flavour.version)}",
            gpu=self.gpu.name if self.gpu and own else "",
            driver=self.gpu.driver if self.gpu and own else "",
            chips=tuple(f"sm_{chip}" for chip in self.chips),
            head=" ".join(part for part in carriers if part),
            flags={"shapes": self.shapes, "workspace_mib": options.workspace_mib, "level": options.level},
        )

    def find(self, *, any_: bool) -> Built | None:
        """An engine built before: as asked for, or else, with ``any_``, in whatever way, for enough labels."""
        keys = [self.key(head) for head in self.heads]
        labels = len(self.bundle.manifest.labels)
        found = find_engine(self.folder, lambda record: any(record.key.serves(key) for key in keys))
        if not found and any_:
            found = find_engine(self.folder, lambda record: record.labels >= labels and record.key.runs(keys[0]))
        return Built(*found, cached=True) if found else None


def build_engine(bundle: Bundle, options: BuildOptions, *, allow: bool = True, any_: bool = False) -> Built:
    """The engine for ``bundle`` here: found, or built and checked.

    Args:
        allow: Else one that is not there is not built.
        any_: An engine built with other options will do.

    Raises:
        UsageError: options that cannot be.
        MissingDependency: no TensorRT, no GPU, too little memory or disk, a build that failed.
        CheckFailed: on no rung of the ladder the engine's scores are within the budget.
    """
    flavour = load_flavour(options.backend)
    chips, gpu = _chips(flavour, options)
    dtype = "fp16" if bundle.manifest.precision in HALVES else "fp32"
    heads = choose_heads(flavour, bundle, options.head, chips, dtype)
    folder = options.folder or engines_folder(bundle.path)
    request = _Request(bundle, flavour, options, chips, gpu, heads, _shapes(bundle, options), folder)
    if not allow:
        if built := request.find(any_=any_):
            return _checked(request, built)
        raise UsageError(f"there is no engine for this machine in {folder}; run `hpedge build {bundle.path}` first.")
    with alone(folder):
        built = request.find(any_=any_)
        return _checked(request, built) if built else _build(request)


def _build(request: _Request) -> Built:
    """Look around, then build rung by rung."""
    bundle, options = request.bundle, request.options
    model = graph_edits.read_model(bundle.read(MODEL))
    if graph_edits.has_unsigned(model):
        raise UsageError(
            f"bundle {bundle.path} has 8 bits for CPUs (uint8, which TensorRT takes for int8); export it again with "
            "--int8 --fp16."
        )
    for note in preflight.check(
        read_machine(),
        request.gpu,
        request.flavour,
        model_bytes=model.ByteSize(),
        workspace_mib=options.workspace_mib,
        folder=request.folder,
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
    # A power of two: some labels more or less make no other engine.
    usual = 1 << (labels - 1).bit_length()
    most = options.labels or min(max(2 * usual, DEFAULT_LABELS), MAX_LABELS)
    if not labels <= most <= MAX_LABELS:
        raise UsageError(f"--labels must be {labels} (the bundle's) to {MAX_LABELS:,}, got {most:,}.")
    size = manifest.image_size
    image = [size, size, 3] if manifest.input == "uint8" else [3, size, size]
    bank = [[count, manifest.embed_dim] for count in (1, min(usual, most), most)]
    return {"image": [[count, *image] for count in (1, 1, options.batch)], "text_global": bank, "text_local": bank}


def _climb_down(request: _Request, model: "ModelProto") -> Built:
    """Build rung by rung of the precision ladder, on each with every head, until the scores are right."""
    heads, failure = list(request.heads), None
    for rung in graph_edits.rungs(model):
        graph = graph_edits.on_rung(model, rung)
        for head in tuple(heads):
            if failure:
                say(f"note: {failure} Trying head {head.mode}, {rung}.")
            try:
                return _attempt(request, graph, rung, head)
            except CheckFailed as error:
                failure = error
            except MissingDependency as error:
                # On the next rung it would fail again.
                failure = error
                heads.remove(head)
    raise failure


def _attempt(request: _Request, graph: "ModelProto", rung: str, head: Head) -> Built:
    """Build one engine, check it where there is a GPU, and keep it."""
    with disk_errors(request.folder), tempfile.TemporaryDirectory(dir=request.folder, prefix=".build-") as scratch:
        plan = Path(scratch, PLAN)
        record = _build_rung(request, graph, rung, head, plan)
        if request.gpu is not None:
            record = _check(request, plan, record)
        return Built(keep_engine(request.folder, plan, record), record, cached=False)


def _build_rung(request: _Request, graph: "ModelProto", rung: str, head: Head, plan: Path) -> EngineRecord:
    """Write ``plan``; where memory ends, try again with less optimisation."""
    flavour, options = request.flavour, request.options
    for level in range(options.level, LOWEST_LEVEL - 1, -1):
        job = _job(request, graph, head, plan, level)
        try:
            done = run_job(job, timeout_s=options.timeout_s)
        except Failure as failure:
            if not failure.memory or level == LOWEST_LEVEL:
                less = "; pass a larger --workspace, a smaller --batch or fewer --labels" if failure.memory else ""
                raise MissingDependency(f"{flavour.title} built no engine: {failure}{less}.") from failure
            say(f"note: memory ended at optimisation level {level} ({failure}); trying level {level - 1}")
            continue
        return EngineRecord(
            request.key(head), "", rung, level, options.batch, request.shapes["text_global"][2][0],
            round(done["seconds"], 1), host_code=job.embed,
        )  # fmt: skip
    raise AssertionError("the lowest level either returns or raises")


def _job(request: _Request, graph: "ModelProto", head: Head, plan: Path, level: int) -> Job:
    """Write the graph beside ``plan``, with the head's carrier in it; the job that builds it."""
    manifest, flavour = request.bundle.manifest, request.flavour
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


def measure(bundle: Bundle, plan: Plan, flavour: Flavour) -> tuple[float, int]:
    """An engine's `golden.compare`; it is loaded for that and freed."""
    engine = TensorRTEngine(bundle, plan, flavour)
    found = compare(bundle, engine)
    engine.close()
    return found


def _checked(request: _Request, built: Built) -> Built:
    """Check an engine built without a GPU, or before the bundle's labels changed, on the GPU now at hand."""
    if request.gpu is None or built.record.golden == request.bundle.manifest.files[GOLDEN]:
        return built
    try:
        record = _check(request, built.folder / PLAN, built.record)
    except CheckFailed as error:
        raise CheckFailed(
            f"{str(error).rstrip('.')}; delete {built.folder} and run `hpedge build {request.bundle.path}` here, which "
            "tries more precise rungs."
        ) from error
    try:
        return Built(keep_engine(request.folder, built.folder / PLAN, record), record, cached=True)
    except MissingDependency as error:
        say(f"note: the engine is right, but that cannot be written down ({error})")
        return Built(built.folder, record, cached=True)


def _check(request: _Request, plan: Path, record: EngineRecord) -> EngineRecord:
    """The record with what golden pictures show; CheckFailed where the scores are too far off."""
    error, flips = measure(request.bundle, _plan(plan, record), request.flavour)
    if error > request.budget:
        advice = " or export without --fp16 and build again" if request.bundle.manifest.precision == "fp16" else ""
        raise CheckFailed(
            f"the engine ({record.rung}) differs from the golden scores by {error:.1e}, {request.budget:.0e} is "
            f"allowed; it was not kept. Use --backend onnxruntime{advice}."
        )
    golden = request.bundle.manifest.files[GOLDEN]
    return replace(record, golden=golden, max_error=error, label_flips=flips)


def _plan(path: Path, record: EngineRecord) -> Plan:
    return Plan(path, record.batch, record.labels, record.host_code)
