"""A bench's report for people."""

from collections.abc import Iterator
from typing import Any

from hpdval_edge.bench.energy import WHOLE_BOARD

COLUMNS = ("", "batch", "calls", "p50 ms", "p90 ms", "p99 ms", "images/s")
FEW_CALLS = 100


def as_text(report: dict[str, Any]) -> str:
    """What was measured, on what, and a line for each figure's row."""
    rows = [*_facts(report)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    if report["results"]:
        lines += ["", *_table(report)]
    lines += ["", *_notes(report)]
    return "\n".join(lines).rstrip()


def _facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    machine, now = report["machine"], report["conditions"]["before"]
    features = f", {' '.join(machine['cpu_features'])}" if machine["cpu_features"] else ""
    yield "machine", f"{machine['model'] or machine['cpu'] or 'unknown'}, {machine['cores']} cores{features}"
    for gpu in machine["gpus"]:
        yield "GPU", f"{gpu['name']}, driver {gpu['driver']}"
    yield "versions", ", ".join([f"hpedge {report['hpedge']}", f"Python {machine['python']}", *_versions(report)])
    yield "clocks", "; ".join(_clocks(now))
    yield "state", "; ".join(_state(now))
    for each in report["candidates"]:
        text = f"{each['precision']}, {each['labels']} labels, {each['image_size']} px, {each['input']} input"
        yield each["name"], f"{text}; loading took {each['load_s']:.2f} s and {each['load_mib']:.0f} MiB"
    yield "threads", str(report["threads"] or "the engine's own choice")
    yield "pictures", f"{report['pictures'] or 'none yet'}, in the system's file cache"
    yield "peak RSS", f"{report['peak_rss_mib']:.0f} MiB, of the whole process"
    measured = ", ".join(report["energy"]["measured_by"])
    yield "energy", f"measured by {measured}" if measured else f"not available: {report['energy']['reason']}"


def _versions(report: dict[str, Any]) -> Iterator[str]:
    """Of the packages that took part."""
    parts = {each["backend"].partition("-")[0] for each in report["candidates"]}
    parts = {"torch" if part in ("torchscript", "pt2") else part for part in parts}
    for name, version in report["machine"]["packages"].items():
        if name.partition("-")[0] in parts:
            yield f"{name} {version}"


def _clocks(now: dict[str, Any]) -> Iterator[str]:
    governors = ", ".join(f"{name} ({count} cores)" for name, count in now["governors"].items())
    yield f"governor {governors or 'not told'}"
    for name, key in (("CPU", "cpu_mhz"), ("allowed", "top_mhz")):
        if now[key]:
            low, high = now[key]
            yield f"{name} {low} MHz" if low == high else f"{name} {low} to {high} MHz"
    if now["hardware_mhz"]:
        yield f"hardware {now['hardware_mhz']} MHz"
    if now["gpu_mhz"]:
        yield f"GPU {now['gpu_mhz'][0]} of {now['gpu_mhz'][1]} MHz"
    for gpu in now["gpus"]:
        yield f"GPU {gpu['clocks.sm']} of {gpu['clocks.max.sm']}, limit {gpu['power.limit']}"


def _state(now: dict[str, Any]) -> Iterator[str]:
    yield f"power mode {now['power_mode'] or 'not told'}"
    hottest = max(now["celsius"].items(), key=lambda pair: pair[1], default=None)
    yield f"hottest {hottest[0]} {hottest[1]:.0f} C" if hottest else "temperatures not told"
    yield "throttling not told" if now["throttled"] is None else f"throttled {now['throttled']} times since its start"
    if now["load"] is not None:
        yield f"load {now['load']:.2f}"


def _table(report: dict[str, Any]) -> list[str]:
    several, metered = len(report["candidates"]) > 1, bool(report["energy"]["measured_by"])
    columns = [*COLUMNS, *(["ratio (quartiles)"] if several else []), *(["joules/image"] if metered else [])]
    rows = [columns]
    for row in report["results"]:
        name = f"{row['candidate']}, {row['stage']}" if several else row["stage"]
        figures = [f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")]
        cells = [name, str(row["batch"]), str(row["calls"]), *figures, f"{row['images_per_s']:.1f}"]
        found = row["ratio"]
        if several:
            cells.append(f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})" if found else "1")
        if metered:
            cells.append(_joules(row["joules_per_image"]))
        rows.append(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]


def _joules(sources: dict[str, dict[str, float]]) -> str:
    """The whole board's rail where there is one, else each rail by its name."""
    rails = {rail: value for source in sources.values() for rail, value in source.items()}
    whole = [rail for rail in rails if rail in WHOLE_BOARD]
    return ", ".join(f"{rail} {rails[rail]:.3f}" for rail in whole or rails) or "not told"


def _notes(report: dict[str, Any]) -> Iterator[str]:
    if report["interrupted"]:
        yield "Interrupted: this is what was measured until then."
    first = report["candidates"][0]["name"] if report["candidates"] else ""
    if len(report["candidates"]) > 1 and report["results"]:
        yield f"ratio: time of {first} over the row's, call by call in turns; above 1 the row is faster."
    if any(row["calls"] < FEW_CALLS for row in report["results"]):
        yield f"p99 of fewer than {FEW_CALLS} calls is close to the slowest one; --seconds gives more calls."
    yield from report["notes"]
    yield from report["machine"]["problems"]
