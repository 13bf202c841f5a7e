"""The facts about a machine, from its files: nothing here concludes, and what cannot be read is a fact as well.

No jtop, no torch, no TensorRT is imported. A root folder other than "/" holds the recorded files of another machine.
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpdval_edge.platforms import CHIPS, CPU_FEATURES, Version, parse_version

PACKAGES = (
    *("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "triton", "cuda-python", "cuda-bindings"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings"),
    *("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
)
SITE_PACKAGES = ("usr/lib/python3*/dist-packages", "usr/local/lib/python3*/dist-packages")
TENSORRT_HEADERS = (
    *("usr/include/aarch64-linux-gnu/NvInferVersion.h", "usr/include/x86_64-linux-gnu/NvInferVersion.h"),
    *("usr/include/NvInferVersion.h", "usr/local/tensorrt/include/NvInferVersion.h"),
)
CONTAINERS = {".dockerenv": "Docker", "run/.containerenv": "Podman"}
NVIDIA_SMI_QUERY = "name,compute_cap,driver_version,memory.total"
NVIDIA_SMI_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Gpu:
    """A line of nvidia-smi; capability times 10, memory in MiB, None where it says [N/A]."""

    name: str
    capability: int | None
    driver: str
    memory_mib: int | None


@dataclass(frozen=True, slots=True)
class TensorRT:
    """One installed TensorRT and where it was seen; module: this Python can import it."""

    version: str
    source: str
    module: bool = False


@dataclass(slots=True)
class Machine:
    """Facts; None and empty where there is nothing to read. problems: sentences on what is there and cannot be read."""

    root: str
    python: str | None
    architecture: str | None = None
    model: str | None = None
    l4t: Version = ()
    jetpack_package: str | None = None
    cpu: str | None = None
    cpu_part: tuple[str, str] | None = None
    cores: int = 0
    cpu_features: list[str] = field(default_factory=list)
    memory_mib: int | None = None
    power_mode: int | None = None
    power_modes: dict[int, str] = field(default_factory=dict)
    container: str | None = None
    cuda: str | None = None
    tensorrt: list[TensorRT] = field(default_factory=list)
    gpus: list[Gpu] = field(default_factory=list)
    packages: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_machine(root: Path = Path("/"), *, live: bool = True) -> Machine:
    """Read the files below ``root``.

    Args:
        live: This machine: its Python's packages and nvidia-smi are asked too. Else only files count.
    """
    machine = Machine(str(root), platform.python_version() if live else None)
    files = Files(root, machine.problems)
    machine.model = (files.text("proc/device-tree/model") or "").strip("\0 \n") or None
    machine.l4t = _l4t(files)
    _read_processor(machine, files, live)
    _read_power(machine, files)
    machine.container = next((name for path, name in CONTAINERS.items() if files.exists(path)), None)
    machine.cuda = _cuda(files)
    installed = _dpkg(files.text("var/lib/dpkg/status") or "")
    machine.jetpack_package = installed.get("nvidia-jetpack")
    path = sys.path if live else [str(path) for site in SITE_PACKAGES for path in sorted(root.glob(site))]
    machine.packages = _packages(path, machine.problems)
    machine.tensorrt = list(_tensorrt(machine.packages, installed, files))
    if live:
        _read_gpus(machine)
    return machine


@dataclass(frozen=True, slots=True)
class Files:
    """The files below a root; those that exist and cannot be read are told in ``problems``."""

    root: Path
    problems: list[str]

    def exists(self, name: str) -> bool:
        """Whether it is there, as far as one may look."""
        try:
            return (self.root / name).exists()
        except OSError:
            return False

    def text(self, name: str) -> str | None:
        """Its text, bytes that are none replaced; None where there is no such file."""
        try:
            return (self.root / name).read_text("utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.problems.append(f"/{name} cannot be read ({error.strerror}); run hpedge as a user who may.")
            return None

    def matching(self, pattern: str) -> list[str]:
        """Names below the root that the glob pattern matches, sorted."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))

    def readable(self, name: str) -> bool:
        """Whether it is there and may be read; not a problem if not."""
        return os.access(self.root / name, os.R_OK)

    def garbled(self, name: str, text: str, expected: str) -> None:
        """Tell that ``text`` is not what the file should hold."""
        start = (text.splitlines() or [""])[0][:60]
        self.problems.append(f"/{name} begins with {start!r}, expected is {expected}; it is left out.")


def _l4t(files: Files) -> Version:
    name = "etc/nv_tegra_release"
    text = files.text(name)
    if text is None:
        return ()
    found = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)", text)
    if not found:
        files.garbled(name, text, "'# R36 (release), REVISION: 4.3, ...'")
        return ()
    return (int(found[1]), *parse_version(found[2]))


def _read_processor(machine: Machine, files: Files, live: bool) -> None:
    text = files.text("proc/cpuinfo") or ""
    pairs = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())]
    first = {key: value for key, value in reversed(pairs)}
    machine.cores = sum(key == "processor" for key, _ in pairs)
    flags = {*first.get("flags", first.get("Features", "")).split()}
    machine.cpu_features = [flag for flag in CPU_FEATURES if flag in flags]
    if "CPU implementer" in first and "CPU part" in first:
        machine.architecture = "aarch64"
        machine.cpu_part = (first["CPU implementer"].lower(), first["CPU part"].lower())
        known = {chip.cpu_part: chip.cpu for chip in CHIPS}
        machine.cpu = known.get(machine.cpu_part, f"CPU part {machine.cpu_part[1]} of {machine.cpu_part[0]}")
    elif "vendor_id" in first:
        machine.architecture = "x86_64"
        machine.cpu = first.get("model name")
    if live:
        machine.architecture = platform.machine() or machine.architecture
    memory = files.text("proc/meminfo")
    found = re.search(r"^MemTotal:\s*(\d+) kB", memory or "", re.MULTILINE)
    machine.memory_mib = int(found[1]) // 1024 if found else None
    if memory is not None and not found:
        files.garbled("proc/meminfo", memory, "a line 'MemTotal: ... kB'")


def _read_power(machine: Machine, files: Files) -> None:
    status, modes = files.text("var/lib/nvpmodel/status"), files.text("etc/nvpmodel.conf") or ""
    found = re.findall(r"^[ \t]*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", modes, re.MULTILINE)
    machine.power_modes = {int(number): name for number, name in found}
    if status is None:
        return
    current = re.search(r"pmode:(\d+)", status)
    if current:
        machine.power_mode = int(current[1])
    else:
        files.garbled("var/lib/nvpmodel/status", status, "'pmode:0002 ...'")


def _cuda(files: Files) -> str | None:
    name = "usr/local/cuda/version.json"
    text = files.text(name)
    if text is None:
        return None
    try:
        return str(json.loads(text)["cuda"]["version"])
    except (json.JSONDecodeError, KeyError, TypeError):
        files.garbled(name, text, "JSON with cuda.version")
        return None


def _dpkg(text: str) -> dict[str, str]:
    """Installed packages that matter here, from dpkg's database, and their versions."""
    versions = {}
    for stanza in text.split("\n\n"):
        found = re.match(r"\s*Package: (libnvinfer\d+|nvidia-jetpack)\n", stanza)
        version = re.search(r"^Version: (\S+)", stanza, re.MULTILINE)
        if found and version and re.search(r"^Status: \S+ \S+ installed$", stanza, re.MULTILINE):
            versions[found[1]] = version[1]
    return versions


def _packages(path: list[str], problems: list[str]) -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        found = next(iter(importlib.metadata.distributions(name=name, path=path)), None)
        if found is None:
            continue
        try:
            # `found.version` of a folder without metadata is None, a warning or an error, by the version of Python.
            version = found.metadata.get("Version")
        except (OSError, KeyError):
            version = None
        if version:
            versions[name] = version
        else:
            problems.append(f"Python package {name} has no version in its metadata; install it again.")
    return versions


def _tensorrt(packages: dict[str, str], installed: dict[str, str], files: Files) -> Iterator[TensorRT]:
    """Every TensorRT (not TensorRT-RTX), one that two places tell once."""
    seen: list[Version] = []
    found = [
        TensorRT(version, f"Python package {name}", True)
        for name, version in packages.items()
        if name.startswith("tensorrt") and "rtx" not in name
    ]
    found += [TensorRT(text, f"dpkg {name}") for name, text in installed.items() if name.startswith("libnvinfer")]
    found += [TensorRT(version, "NvInferVersion.h") for version in _headers(files)]
    for candidate in found:
        version = parse_version(candidate.version)[:3]
        if version not in seen:
            seen.append(version)
            yield candidate


def _headers(files: Files) -> Iterator[str]:
    for name in TENSORRT_HEADERS:
        text = files.text(name)
        if text is None:
            continue
        # Newer headers define NV_TENSORRT_MAJOR as TRT_MAJOR_ENTERPRISE, and that as the number.
        pattern = r"^#define\s+(?:NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)(?:_ENTERPRISE)?\s+(\d+)"
        numbers = dict(re.findall(pattern, text, re.MULTILINE))
        if len(numbers) == 3:
            yield f"{numbers['MAJOR']}.{numbers['MINOR']}.{numbers['PATCH']}"
        else:
            files.garbled(name, text, "'#define NV_TENSORRT_MAJOR ...'")


def ask_nvidia_smi(query: str, problems: list[str]) -> list[list[str]]:
    """The values of ``query``, a row of strings for each GPU; none where there is no nvidia-smi.

    Its failure is a problem of the machine, not of this program: it is told in ``problems``.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    arguments = [command, f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", timeout=NVIDIA_SMI_SECONDS)
    except subprocess.TimeoutExpired:
        problems.append(f"nvidia-smi gave no answer in {NVIDIA_SMI_SECONDS} s; check NVIDIA's driver.")
        return []
    except OSError as error:
        problems.append(f"nvidia-smi cannot be run ({error.strerror}); check NVIDIA's driver.")
        return []
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        said = ([*done.stderr.splitlines(), *lines] or [""])[0].strip().rstrip(".")
        problems.append(f"nvidia-smi ended with code {done.returncode} ({said}); check NVIDIA's driver.")
        return []
    rows, width = [[cell.strip() for cell in line.split(",")] for line in lines], len(query.split(","))
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            problems.append(f"nvidia-smi answered {line[:60]!r}, {width} values were expected; it is left out.")
    return [row for row in rows if len(row) == width]


def _read_gpus(machine: Machine) -> None:
    for name, compute, driver, size in ask_nvidia_smi(NVIDIA_SMI_QUERY, machine.problems):
        capability, memory = re.fullmatch(r"(\d+)\.(\d)", compute), re.match(r"(\d+) MiB", size)
        number = int(capability[1] + capability[2]) if capability else None
        machine.gpus.append(Gpu(name, number, driver, memory and int(memory[1])))
