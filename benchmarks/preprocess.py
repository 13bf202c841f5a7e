"""Time the preprocess kernel against Pillow: interleaved in one process, so that both see the same machine.

    python benchmarks/preprocess.py --out DIR [--photo JPEG] [--rounds 40] [--docs docs/preprocess.md]

Writes DIR/preprocess.json and DIR/preprocess.png, prints a Markdown table, and with --docs puts it there between the
markers. One thread. A rival that is not installed is "not run".
"""

import argparse
import importlib.util
import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, features

from hpdval_edge.kernels import preprocess
from hpdval_edge.kernels.preprocess_spec import numpy_normalize, numpy_nv12_to_rgb

MEAN, STD, SIZE = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 224
BATCH = np.empty((3, SIZE, SIZE), np.float32)
MARKERS = "<!-- table: benchmarks/preprocess.py -->", "<!-- end -->"
RIVALS = {"cv2": "OpenCV", "simplejpeg": "simplejpeg"}

Run = Callable[[], np.ndarray]


def with_pillow(image: Image.Image) -> np.ndarray:
    """What the runtime did before the kernel."""
    pixels = np.array(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return numpy_normalize(pixels, MEAN, STD)


def with_kernel(source: object, isa: str, *, layout: str = "rgb", out: np.ndarray | None = BATCH) -> np.ndarray:
    """By default to the row of a batch that is used again, as in a loop over frames."""
    os.environ["HPEDGE_ISA"] = isa
    return preprocess.resize_normalize(source, SIZE, mean=MEAN, std=STD, layout=layout, out=out)


def decode(jpeg: bytes, draft: bool = False) -> Image.Image:
    image = Image.open(io.BytesIO(jpeg))
    if draft:
        # The decoder leaves out frequencies, down to a picture of at least this size: other pixels than a full decode.
        image.draft("RGB", (SIZE, SIZE))
    image.load()
    return image


def picture_cases(image: Image.Image, jpeg: bytes) -> tuple[dict[str, Run], dict[str, Run]]:
    """Ways from a decoded picture, and from a JPEG in memory, to the network's input; the first is the baseline."""
    best, array = preprocess._cpu.preprocess_isas()[0], np.array(image)
    decoded = {"Pillow and NumPy": lambda: with_pillow(image)}
    for isa in preprocess._cpu.preprocess_isas():
        decoded[f"kernel, {isa}"] = lambda isa=isa: with_kernel(image, isa)
    decoded[f"kernel, {best}, new output"] = lambda: with_kernel(image, best, out=None)
    decoded[f"kernel, {best}, from an array"] = lambda: with_kernel(array, best)
    encoded = {
        "Pillow and NumPy": lambda: with_pillow(decode(jpeg)),
        f"kernel, {best}": lambda: with_kernel(decode(jpeg), best),
        f"kernel, {best}, draft decode": lambda: with_kernel(decode(jpeg, draft=True), best),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        decoded["OpenCV, not antialiased"] = lambda: numpy_normalize(
            cv2.resize(array, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), MEAN, STD
        )
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        encoded[f"kernel, {best}, simplejpeg decode"] = lambda: with_kernel(simplejpeg.decode_jpeg(jpeg), best)
    return decoded, encoded


def nv12_cases(width: int, height: int, image: Image.Image) -> dict[str, Run]:
    luma = np.array(image.resize((width, height)).convert("L"))
    rng = np.random.default_rng(0)
    chroma = np.array(Image.fromarray(rng.integers(64, 192, (9, 16), np.uint8)).resize((width, height // 2)))
    cases = {"Pillow and NumPy": lambda: with_pillow(Image.fromarray(numpy_nv12_to_rgb(luma, chroma)))}
    for isa in preprocess._cpu.preprocess_isas():
        cases[f"kernel, {isa}"] = lambda isa=isa: with_kernel((luma, chroma), isa, layout="nv12")
    return cases


def measure(cases: dict[str, Run], rounds: int) -> list[dict]:
    """Milliseconds of each case, run in turn so that a slow moment meets all of them, and their grey-level errors."""
    reference = next(iter(cases.values()))()
    scale = 255 * np.array(STD, np.float32)[:, None, None]
    errors = {name: float(np.abs((run() - reference) * scale).max()) for name, run in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    baseline = np.array(next(iter(times.values())))
    rows = []
    for name, taken in times.items():
        low, middle, high = np.percentile(taken, (25, 50, 75))
        ratios = np.percentile(baseline / taken, (25, 50, 75))
        rows.append({
            "case": name, "ms": round(middle, 3), "ms_quartiles": [round(low, 3), round(high, 3)],
            "speedup": round(ratios[1], 2), "speedup_quartiles": [round(ratios[0], 2), round(ratios[2], 2)],
            "max_levels_off": round(errors[name], 2),
        })  # fmt: skip
    return rows


def machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "instruction_sets": preprocess._cpu.preprocess_isas(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": Image.__version__,
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "rivals": {name: "run" if importlib.util.find_spec(module) else "not run"
                   for module, name in RIVALS.items()} | {"pillow-simd": "not run"},
        "system": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def markdown(result: dict) -> str:
    lines = ["| from | way | ms | quartiles | times Pillow | levels off |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for title, rows in result["tables"].items():
        for row in rows:
            low, high = row["ms_quartiles"]
            lines.append(
                f"| {title} | {row['case']} | {row['ms']:.2f} | {low:.2f} to {high:.2f} "
                f"| {row['speedup']:.1f} | {row['max_levels_off']:g} |"
            )
    rivals = ", ".join(f"{name} {state}" for name, state in result["machine"]["rivals"].items())
    return "\n".join([*lines, "", f"Rivals: {rivals}."])


def plot(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [f"{title}: {row['case']}" for title, rows in result["tables"].items() for row in rows[1:]]
    rows = [row for rows in result["tables"].values() for row in rows[1:]]
    values = np.array([row["speedup"] for row in rows])
    edges = np.array([row["speedup_quartiles"] for row in rows]).T
    figure, axes = pyplot.subplots(figsize=(8, 0.34 * len(rows) + 0.9), layout="constrained")
    axes.barh(names, values, xerr=np.abs(edges - values), color="#4477aa", ecolor="#222222", capsize=2)
    axes.axvline(1, color="#222222", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("times as fast as Pillow; quartiles")
    axes.invert_yaxis()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photo", type=Path, help="what the pictures show; default: noise, enlarged")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    photo = Image.open(arguments.photo).convert("RGB") if arguments.photo else Image.fromarray(noise)
    tables = {}
    for title, (width, height) in {"500 x 375": (500, 375), "3840 x 2160": (3840, 2160)}.items():
        image, file = photo.resize((width, height), Image.Resampling.BICUBIC), io.BytesIO()
        image.save(file, "JPEG", quality=90)
        decoded, encoded = picture_cases(image, file.getvalue())
        rounds = arguments.rounds if width < 1000 else max(arguments.rounds // 4, 5)
        tables[title] = measure(decoded, rounds)
        tables[f"{title} JPEG, {len(file.getvalue()) // 1000} kB"] = measure(encoded, rounds)
    tables["1920 x 1080 NV12"] = measure(nv12_cases(1920, 1080, photo), max(arguments.rounds // 4, 5))
    result = {"command": " ".join(sys.argv), "machine": machine(), "tables": tables}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "preprocess.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, arguments.out / "preprocess.png")
    print(markdown(result))
    if arguments.docs:
        text = arguments.docs.read_text()
        begin, end = (text.index(marker) for marker in MARKERS)
        text = f"{text[: begin + len(MARKERS[0])]}\n\n{markdown(result)}\n\n{text[end:]}"
        arguments.docs.write_text(text)


if __name__ == "__main__":
    main()
