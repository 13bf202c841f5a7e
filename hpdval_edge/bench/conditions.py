"""What else decides how fast a machine is at the moment: power mode, clocks, temperatures, throttling, load."""

from collections import Counter
from dataclasses import asdict, dataclass, field

from hpdval_edge.machine import Files, Machine, ask_nvidia_smi

CPUS = "sys/devices/system/cpu/cpu[0-9]*"
# A Jetson's GPU is a devfreq device of one of these names (17000000.gpu, 17000000.ga10b, 57000000.gv11b).
GPU_DEVICES = ("gpu", "ga10b", "gv11b", "gp10b", "gb10b")
# Events since the machine started: of x86 cores, and of a Jetson's over-current and over-temperature protection.
THROTTLE_COUNTERS = (f"{CPUS}/thermal_throttle/core_throttle_count", "sys/class/hwmon/hwmon*/oc*_event_cnt")
NVIDIA_SMI_QUERY = "clocks.sm,clocks.max.sm,power.limit,temperature.gpu,clocks_throttle_reasons.active"


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of one moment; None and empty where the machine does not tell.

    governors: how many cores have each. cpu_mhz: slowest and fastest core now; top_mhz: slowest and fastest core's
    highest clock that the power mode allows, and the hardware's. gpu_mhz: a Jetson's GPU now and at most. gpus: values
    of nvidia-smi. celsius: by thermal zone. throttled: events since the machine started.
    """

    power_mode: str | None
    governors: dict[str, int]
    cpu_mhz: tuple[int, int] | None
    top_mhz: tuple[int, int] | None
    hardware_mhz: int | None
    gpu_mhz: tuple[int, int] | None
    celsius: dict[str, float]
    throttled: int | None
    load: float | None
    gpus: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def read_conditions(machine: Machine, files: Files, *, live: bool) -> Conditions:
    """The conditions below the root of ``files``.

    Args:
        live: This machine, whose nvidia-smi may be asked.
    """
    governors = Counter(text for text in _texts(files, f"{CPUS}/cpufreq/scaling_governor"))
    now = _range(_numbers(files, f"{CPUS}/cpufreq/scaling_cur_freq"), 1000) or _cpuinfo_mhz(files)
    hardware = _range(_numbers(files, f"{CPUS}/cpufreq/cpuinfo_max_freq"), 1000)
    throttled = [count for pattern in THROTTLE_COUNTERS for count in _numbers(files, pattern)]
    load = (files.text("proc/loadavg") or "").split()
    rows = ask_nvidia_smi(NVIDIA_SMI_QUERY, files.problems) if live else []
    return Conditions(
        power_mode=_power_mode(machine),
        governors=dict(governors),
        cpu_mhz=now,
        top_mhz=_range(_numbers(files, f"{CPUS}/cpufreq/scaling_max_freq"), 1000),
        hardware_mhz=hardware and hardware[1],
        gpu_mhz=_gpu_mhz(files),
        celsius=_celsius(files),
        throttled=sum(throttled) if throttled else None,
        load=float(load[0]) if load else None,
        gpus=[dict(zip(NVIDIA_SMI_QUERY.split(","), row, strict=True)) for row in rows],
    )


def changes(before: Conditions, after: Conditions) -> list[str]:
    """What happened between the two that makes figures doubtful, a sentence each."""
    found = []
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        found.append(f"The machine throttled {after.throttled - before.throttled} times while it was measured.")
    if before.power_mode != after.power_mode:
        found.append(f"The power mode changed from {before.power_mode} to {after.power_mode}.")
    if before.top_mhz and after.top_mhz and after.top_mhz != before.top_mhz:
        found.append(f"The highest clock allowed changed from {before.top_mhz[1]} to {after.top_mhz[1]} MHz.")
    return found


def _power_mode(machine: Machine) -> str | None:
    if machine.power_mode is None:
        return None
    return machine.power_modes.get(machine.power_mode, str(machine.power_mode))


def _texts(files: Files, pattern: str) -> list[str]:
    return [text.strip() for text in map(files.text, files.matching(pattern)) if text and text.strip()]


def _numbers(files: Files, pattern: str) -> list[int]:
    return [int(text) for text in _texts(files, pattern) if text.lstrip("-").isdigit()]


def _range(values: list[int], divisor: int) -> tuple[int, int] | None:
    return (min(values) // divisor, max(values) // divisor) if values else None


def _cpuinfo_mhz(files: Files) -> tuple[int, int] | None:
    """What x86 tells where the clocks are not the system's to set, as in a virtual machine."""
    lines = (files.text("proc/cpuinfo") or "").splitlines()
    return _range([int(float(line.partition(":")[2])) for line in lines if line.startswith("cpu MHz")], 1)


def _gpu_mhz(files: Files) -> tuple[int, int] | None:
    for name in files.matching("sys/class/devfreq/*/cur_freq"):
        folder = name.rpartition("/")[0]
        if folder.endswith(GPU_DEVICES):
            now, top = _numbers(files, f"{folder}/cur_freq"), _numbers(files, f"{folder}/max_freq")
            return (now[0] // 1_000_000, top[0] // 1_000_000) if now and top else None
    return None


def _celsius(files: Files) -> dict[str, float]:
    # A Jetson's zones of parts that are switched off refuse to be read, which is no problem worth telling.
    files, found = Files(files.root, []), {}
    for name in files.matching("sys/class/thermal/thermal_zone*/type"):
        value = _numbers(files, f"{name.rpartition('/')[0]}/temp")
        if value:
            found[(files.text(name) or "").strip()] = value[0] / 1000
    return found
