"""``hpedge doctor``."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hpdval_edge.commands.options import Json

WIDTH = 110
INDENT = 14


def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="Also say whether this bundle fits.")] = None,
    root: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Read another machine's recorded files (etc/, proc/, ...)."),
    ] = None,
    json_: Json = False,
) -> None:
    """Say what this machine is, what runs on it and what to install. It reports; the exit code is 0.

    Examples:

      hpedge doctor

      hpedge doctor birds.hpedge

      hpedge doctor --json > machine.json
    """
    from hpdval_edge.diagnosis import diagnose
    from hpdval_edge.machine import read_machine
    from hpdval_edge.watch import load_unchanged

    machine = read_machine(root, live=False) if root else read_machine()
    report = diagnose(machine, load_unchanged(bundle)[1] if bundle else None)
    typer.echo(json.dumps(report) if json_ else as_text(report))


def as_text(report: dict[str, Any]) -> str:
    """One screen: a name and its value a line, long ones broken below their value."""
    lines = []
    for name, value in (*_machine_rows(report), *_backend_rows(report), *_advice_rows(report)):
        wrapped = textwrap.wrap(value, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False)
        lines += [f"{name if i == 0 else '':<{INDENT}}{line}" for i, line in enumerate(wrapped)]
    return "\n".join(lines)


def _machine_rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    facts, board = report["machine"], report["board"]
    kind = "a Jetson of unknown model" if board["jetson"] else "no Jetson"
    inside = f", in a {facts['container']} container" if facts["container"] else ""
    yield "machine", (facts["model"] or kind) + inside
    if board["jetson"]:
        l4t = f"R{board['l4t']}" if board["l4t"] else "unknown"
        yield "software", f"L4T {l4t}, JetPack {board['jetpack'] or 'unknown'}"
        chip = f"{board['chip']}, told by {board['chip_told_by']}" if board["chip"] else "unknown chip"
        yield "chip", f"{chip}; {', '.join(board['sm']) or 'sm unknown'}"
    yield "CPU", f"{facts['cpu'] or 'unknown'}, {facts['cores'] or '?'} cores, {facts['architecture'] or 'unknown'}"
    if facts["cpu_features"]:
        yield "features", _features(facts["cpu_features"])
    shared = ", shared with the GPU" if board["jetson"] else ""
    yield "memory", f"{facts['memory_mib'] / 1024:.1f} GiB{shared}" if facts["memory_mib"] else "unknown"
    for gpu in facts["gpus"]:
        capability = f"sm_{gpu['capability']}" if gpu["capability"] else "sm unknown"
        memory = f", {gpu['memory_mib'] / 1024:.1f} GiB" if gpu["memory_mib"] else ""
        yield "GPU", f"{gpu['name']}, {capability}, driver {gpu['driver']}{memory}"
    if not facts["gpus"] and not board["jetson"]:
        yield (
            "GPU",
            "no NVIDIA GPU was found"
            + (", which a container sees only if started with --gpus all" * bool(facts["container"])),
        )
    if board["jetson"]:
        yield "power mode", _power(facts)
    yield "CUDA", facts["cuda"] or "not found in /usr/local/cuda"
    engines = [f"{engine['version']} ({engine['source']})" for engine in facts["tensorrt"]]
    yield "TensorRT", ", ".join(engines) or "not found"
    python = [f"Python {facts['python']}"] if facts["python"] else []
    packages = [f"{name} {version}" for name, version in facts["packages"].items()]
    yield "packages", ", ".join(python + packages) or "none of those that matter here"


def _features(found: list[str]) -> str:
    """The CPU's instructions that engines profit from, and what they lack."""
    from hpdval_edge.platforms import BF16_FEATURES, INT8_FEATURES

    wanted = {"8-bit integers": INT8_FEATURES, "bfloat16": BF16_FEATURES}
    lacks = [name for name, flags in wanted.items() if not {*flags} & {*found}]
    return ", ".join(found) + (f"; none that adds up products of {' or '.join(lacks)}" if lacks else "")


def _power(facts: dict[str, Any]) -> str:
    modes = ", ".join(f"{number} {name}" for number, name in facts["power_modes"].items())
    if facts["power_mode"] is None:
        return f"unknown, /var/lib/nvpmodel/status does not tell{f'; there are {modes}' if modes else ''}"
    name = facts["power_modes"].get(facts["power_mode"], f"{facts['power_mode']}, its name is unknown")
    return f"{name}{f' (of {modes})' if modes else ''}"


def _backend_rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from hpdval_edge.diagnosis import listed

    for row in report["backends"]:
        bundles = f"{listed(row['precisions'])} bundles"
        if row["works"] and row["name"].startswith("tensorrt"):
            yield row["name"], _modes(row, bundles, "runs")
        elif row["works"]:
            computes = f" in {row['computes']}" if row["computes"] else ""
            yield row["name"], f"runs {bundles} on the CPU{computes} ({row['with']}), head as onnx"
        elif row["head_modes"] and row["with"]:
            yield row["name"], f"{row['reason']}; {_modes(row, bundles, 'could run')}"
        else:
            yield row["name"], row["reason"] + (f"; then {bundles} run on the CPU" if row["precisions"] else "")


def _modes(row: dict[str, Any], bundles: str, verb: str) -> str:
    able = [mode for mode, reason in row["head_modes"].items() if reason is None]
    unable = {reason: [] for reason in row["head_modes"].values() if reason}
    for mode, reason in row["head_modes"].items():
        if reason:
            unable[reason].append(mode)
    if not able:
        return f"{row['with']} {verb} none: {', '.join(unable)}"
    not_as = "".join(f"; not as {', '.join(modes)}: {reason}" for reason, modes in unable.items())
    return f"{row['with']} {verb} {bundles}, head as {' or '.join(able)}{not_as}"


def _advice_rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from (("note", text) for text in report["notes"])
    yield from (("install", text) for text in report["install"] or ["nothing; hpedge infer runs here."])
    bundle = report["bundle"]
    if bundle:
        backends = ", ".join(bundle["runs_with"])
        verdict = f"runs here with {backends}" if backends else f"does not run here yet: {bundle['reason']}"
        yield "bundle", f"{bundle['path']} ({bundle['precision']}) {verdict}"
        yield from (("", gpu["text"]) for gpu in bundle["gpu"])
        if bundle["gpu"]:
            yield "", "GPU kernels serve TensorRT; on the CPU the head needs none of them."
