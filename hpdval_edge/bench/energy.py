"""Energy that the machine itself measures: INA3221 rails of a Jetson, RAPL of x86 CPUs, power of NVIDIA GPUs.

Not run on a board: the readers were tested on recorded files.
"""

import re
import shutil
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from hpdval_edge.machine import Files

SAMPLE_SECONDS = 0.05
# Rails that feed all others of their board; where there is none, nothing tells what the whole board takes.
WHOLE_BOARD = ("VDD_IN", "POM_5V_IN")
RAPL = "sys/class/powercap"
TEGRASTATS = ("tegrastats", "--interval", "100")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=index,power.draw", "--format=csv,noheader,nounits", "--loop-ms=100")

# What reading a file or a command's line may raise.
METER_ERRORS = (OSError, ValueError, RuntimeError, ArithmeticError, LookupError)

Watts = dict[str, float]


class Meter(ABC):
    """Joules by rail between `start` and `stop`."""

    source: str

    @abstractmethod
    def start(self) -> None:
        """Begin."""

    @abstractmethod
    def stop(self) -> dict[str, float]:
        """Joules since `start`; empty where the time was too short to tell.

        Raises:
            one of METER_ERRORS: what was read makes no sense.
        """


class RaplMeter(Meter):
    """Counters of x86 CPUs in microjoules, one a package, which start again at 0 above their range.

    Args:
        zones: name of a package -> its folder below the root.
    """

    source = "RAPL"

    def __init__(self, files: Files, zones: dict[str, str]) -> None:
        self.files, self.zones = files, zones

    def start(self) -> None:
        self.before = self._counters()

    def stop(self) -> dict[str, float]:
        joules = {}
        for name, now in self._counters().items():
            top = int(self.files.text(f"{self.zones[name]}/max_energy_range_uj") or 0)
            taken = now - self.before[name]
            joules[name] = (taken if taken >= 0 else taken + top) / 1e6
        return joules

    def _counters(self) -> dict[str, int]:
        return {name: int(self.files.text(f"{folder}/energy_uj") or 0) for name, folder in self.zones.items()}


class PowerMeter(Meter):
    """Integral over time of power that is read now and then, by the trapezoid rule."""

    def __init__(self, source: str) -> None:
        self.source = source

    def start(self) -> None:
        self.joules: dict[str, float] = {}
        self.last: tuple[float, Watts] | None = None

    def add(self, now: float, watts: Watts) -> None:
        """Take a sample at ``now``, seconds."""
        if self.last:
            then, before = self.last
            for rail in watts.keys() & before.keys():
                area = (now - then) * (watts[rail] + before[rail]) / 2
                self.joules[rail] = self.joules.get(rail, 0.0) + area
        self.last = now, watts

    def stop(self) -> dict[str, float]:
        return self.joules


class PolledMeter(PowerMeter):
    """Asks ``read`` every SAMPLE_SECONDS, at the start and at the end."""

    def __init__(self, source: str, read: Callable[[], Watts]) -> None:
        super().__init__(source)
        self.read = read

    def start(self) -> None:
        super().start()
        self.failure: Exception | None = None
        self.add(time.perf_counter(), self.read())
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._poll, daemon=True)
        self.thread.start()

    def stop(self) -> dict[str, float]:
        self.done.set()
        self.thread.join()
        if self.failure:
            raise self.failure
        self.add(time.perf_counter(), self.read())
        return self.joules

    def _poll(self) -> None:
        try:
            while not self.done.wait(SAMPLE_SECONDS):
                self.add(time.perf_counter(), self.read())
        except METER_ERRORS as error:
            # Raised by stop: from here to the end nothing would be known.
            self.failure = error


class CommandMeter(PowerMeter):
    """Reads the lines that a command writes on and on; ``parse`` gives the rails of one, which may be some of all."""

    def __init__(self, source: str, command: tuple[str, ...], parse: Callable[[str], Watts]) -> None:
        super().__init__(source)
        self.command, self.parse = command, parse

    def start(self) -> None:
        super().start()
        self.failure: Exception | None = None
        self.rails: dict[str, PowerMeter] = {}
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        )
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def stop(self) -> dict[str, float]:
        self.process.terminate()
        self.process.wait()
        self.thread.join()
        self.process.stdout.close()
        if self.failure:
            raise self.failure
        return {rail: joules for meter in self.rails.values() for rail, joules in meter.joules.items()}

    def _listen(self) -> None:
        try:
            for line in self.process.stdout:
                for rail, watts in self.parse(line).items():
                    if rail not in self.rails:
                        self.rails[rail] = PowerMeter(self.source)
                        self.rails[rail].start()
                    self.rails[rail].add(time.perf_counter(), {rail: watts})
        except METER_ERRORS as error:
            # Raised by stop: from here to the end nothing would be known.
            self.failure = error


def tegrastats_watts(line: str) -> Watts:
    """``VDD_IN 4512mW/4400mW``, now and on average, or ``POM_5V_IN 2532/2532`` of old boards -> watts now."""
    found = re.findall(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?!\w)", line)
    return {rail: int(milliwatts) / 1000 for rail, milliwatts in found}


def nvidia_smi_watts(line: str) -> Watts:
    """``0, 71.25`` -> watts of GPU 0; nothing for what a GPU does not tell."""
    found = re.fullmatch(r"(\d+), ([\d.]+)\s*", line)
    return {f"GPU {found[1]}": float(found[2])} if found else {}


def find_meters(files: Files, *, live: bool) -> tuple[list[Meter], str]:
    """What measures energy here, and why nothing else does.

    Args:
        live: This machine, whose commands may be asked.
    """
    meters: list[Meter] = []
    rails = ina3221_rails(files)
    if rails:
        meters.append(PolledMeter("INA3221", lambda: ina3221_watts(files, rails)))
    elif live and shutil.which(TEGRASTATS[0]):
        meters.append(CommandMeter("tegrastats", TEGRASTATS, tegrastats_watts))
    zones, locked = rapl_zones(files)
    if zones:
        meters.append(RaplMeter(files, zones))
    if live and shutil.which(NVIDIA_SMI[0]):
        meters.append(CommandMeter("nvidia-smi", NVIDIA_SMI, nvidia_smi_watts))
    if meters:
        return meters, ""
    rapl = f"/{locked} may be read by root alone" if locked else "no RAPL counters"
    return [], f"no INA3221 rails, no tegrastats, {rapl}, no nvidia-smi"


def ina3221_rails(files: Files) -> dict[str, tuple[str, str]]:
    """Name of each connected rail -> its files of millivolts and of milliamperes."""
    rails = {}
    for name in files.matching("sys/class/hwmon/hwmon*/name"):
        if (files.text(name) or "").strip() != "ina3221":
            continue
        folder = name.rpartition("/")[0]
        for channel in (1, 2, 3):
            label = (files.text(f"{folder}/in{channel}_label") or "NC").strip()
            pair = f"{folder}/in{channel}_input", f"{folder}/curr{channel}_input"
            if label != "NC" and all(files.exists(file) for file in pair):
                rails[label] = pair
    return rails


def ina3221_watts(files: Files, rails: dict[str, tuple[str, str]]) -> Watts:
    """Watts now; a rail that cannot be read at the moment is left out."""
    found = {rail: [files.text(name) for name in pair] for rail, pair in rails.items()}
    pairs = {rail: [text.strip() for text in texts if text] for rail, texts in found.items()}
    return {
        rail: int(pair[0]) * int(pair[1]) / 1e6
        for rail, pair in pairs.items()
        if len(pair) == 2 and all(text.lstrip("-").isdigit() for text in pair)
    }


def rapl_zones(files: Files) -> tuple[dict[str, str], str | None]:
    """Folder of each package's counter by its name, and the file that is there but may not be read, if any."""
    zones = {}
    for name in files.matching(f"{RAPL}/intel-rapl:*/name"):
        folder, package = name.rpartition("/")[0], (files.text(name) or "").strip()
        if not package.startswith("package"):
            continue
        counter = f"{folder}/energy_uj"
        if not files.readable(counter):
            return {}, counter
        zones[package] = folder
    return zones, None
