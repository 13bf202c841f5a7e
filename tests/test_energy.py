"""Energy and conditions from recorded files of boards and CPUs; the files are as kernels write them. Not run on one."""

import os
import sys
from threading import Event

import pytest

from hpdval_edge.bench import energy
from hpdval_edge.bench.conditions import changes, read_conditions
from hpdval_edge.machine import Files, read_machine

WAIT_SECONDS = 60
HWMON = "sys/class/hwmon"
ORIN_NANO = {
    f"{HWMON}/hwmon0/name": "tmp451\n",
    f"{HWMON}/hwmon0/in1_label": "VDD_FAN\n",
    f"{HWMON}/hwmon0/in1_input": "5000\n",
    f"{HWMON}/hwmon0/curr1_input": "100\n",
    f"{HWMON}/hwmon1/name": "ina3221\n",
    f"{HWMON}/hwmon1/in1_label": "VDD_IN\n",
    f"{HWMON}/hwmon1/in1_input": "5048\n",
    f"{HWMON}/hwmon1/curr1_input": "1000\n",
    f"{HWMON}/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    f"{HWMON}/hwmon1/in2_input": "5000\n",
    f"{HWMON}/hwmon1/curr2_input": "200\n",
    f"{HWMON}/hwmon1/in3_label": "NC\n",
    f"{HWMON}/hwmon1/in3_input": "5000\n",
    f"{HWMON}/hwmon1/curr3_input": "9\n",
    f"{HWMON}/hwmon1/in7_label": "sum of shunt voltages\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1344000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1344000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "not a core\n",
    "sys/class/devfreq/15480000.nvdec/cur_freq": "1\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "45500\n",
    f"{HWMON}/hwmon3/oc1_event_cnt": "2\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=1 NAME=15W >\n",
    "var/lib/nvpmodel/status": "pmode:0001\n",
    "proc/loadavg": "0.52 0.58 0.59 1/389 12345\n",
}
RAPL = "sys/class/powercap"
DESKTOP = {
    f"{RAPL}/intel-rapl:0/name": "package-0\n",
    f"{RAPL}/intel-rapl:0/energy_uj": "262143000000\n",
    f"{RAPL}/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    f"{RAPL}/intel-rapl:0:0/name": "core\n",
    f"{RAPL}/intel-rapl:0:0/energy_uj": "1\n",
    f"{RAPL}/intel-rapl:1/name": "psys\n",
    f"{RAPL}/intel-rapl:1/energy_uj": "1\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
    "proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu MHz\t\t: 2445.406\n",
}


@pytest.fixture
def files(record):
    return lambda content: Files(record(content), [])


def conditions(found):
    return read_conditions(read_machine(found.root, live=False), found, live=False)


def test_rails_of_a_jetson(files):
    """Planted mistakes: a channel that is not connected; another chip's channel; milliwatts for watts."""
    found = files(ORIN_NANO)
    rails = energy.ina3221_rails(found)
    assert energy.ina3221_watts(found, rails) == {"VDD_IN": 5.048, "VDD_CPU_GPU_CV": 1.0}
    (found.root / f"{HWMON}/hwmon1/curr2_input").write_text("\n")
    assert energy.ina3221_watts(found, rails) == {"VDD_IN": 5.048}
    (meter,), reason = energy.find_meters(found, live=False)
    assert (meter.source, reason) == ("INA3221", "")


def test_power_is_integrated():
    """Planted mistakes: the last sample's power for all of the time; a rail that was missing once counted as 0 W."""
    meter = energy.PowerMeter("x")
    meter.start()
    meter.add(10.0, {"a": 2.0, "b": 1.0})
    meter.add(11.0, {"a": 4.0})
    meter.add(13.0, {"a": 4.0, "b": 1.0})
    meter.add(14.0, {"a": 0.0, "b": 1.0})
    assert meter.stop() == {"a": 3.0 + 8.0 + 2.0, "b": 1.0}


def test_a_polled_meter_runs_from_start_to_stop(monkeypatch):
    """Planted mistakes: no sample at the end; the thread still reads after the stop."""
    monkeypatch.setattr(energy, "SAMPLE_SECONDS", 1e-4)
    reads, often = [], Event()

    def read():
        reads.append(None)
        if len(reads) == 5:
            often.set()
        return {"a": 3.0}

    meter = energy.PolledMeter("x", read)
    times, add = [], meter.add
    monkeypatch.setattr(meter, "add", lambda now, watts: (times.append(now), add(now, watts)))
    meter.start()
    assert often.wait(WAIT_SECONDS)
    assert meter.stop()["a"] == pytest.approx(3.0 * (times[-1] - times[0]))
    assert len(times) == len(reads) >= 6 and not meter.thread.is_alive()
    monkeypatch.setattr(energy, "SAMPLE_SECONDS", 1e6)
    reads.clear()
    meter.start()
    meter.stop()
    assert len(reads) == 2


@pytest.mark.parametrize("moment", ["between", "at the end"])
def test_a_polled_meter_that_fails_says_so_at_the_stop(monkeypatch, moment):
    """Planted mistakes: the power before the failure taken for all of the time after it; a thread that dies aloud."""
    monkeypatch.setattr(energy, "SAMPLE_SECONDS", 1e-4 if moment == "between" else 1e6)
    reads, failed = [], Event()

    def read():
        reads.append(None)
        if len(reads) == 2:
            failed.set()
            raise ValueError("watts")
        return {"a": 3.0}

    meter = energy.PolledMeter("x", read)
    meter.start()
    assert moment == "at the end" or failed.wait(WAIT_SECONDS)
    with pytest.raises(ValueError, match="watts"):
        meter.stop()
    assert not meter.thread.is_alive()


def test_counters_of_a_cpu_start_again(files):
    """Planted mistakes: a negative energy after the counter's end; parts of a package, or the whole platform, added."""
    found = files(DESKTOP)
    (meter,), _ = energy.find_meters(found, live=False)
    meter.start()
    (found.root / f"{RAPL}/intel-rapl:0/energy_uj").write_text("1671150\n")
    assert meter.stop() == {"package-0": pytest.approx(2.0)}


def test_locked_counters_are_named(files, monkeypatch):
    """Kernels let root alone read them. Planted mistake: 0 J."""
    monkeypatch.setattr(Files, "readable", lambda self, name: not name.endswith("energy_uj"))
    meters, reason = energy.find_meters(files(DESKTOP), live=False)
    assert meters == []
    assert "/sys/class/powercap/intel-rapl:0/energy_uj may be read by root alone" in reason


def test_a_machine_that_tells_nothing(files, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert energy.find_meters(files({}), live=True) == (
        [],
        "no INA3221 rails, no tegrastats, no RAPL counters, no nvidia-smi",
    )


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        (
            "11-26-2025 10:00:00 RAM 2345/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [5%@729,0%@729] EMC_FREQ "
            "0%@2133 GR3D_FREQ 0%@305 cpu@45.5C soc2@44C VDD_IN 4512mW/4400mW VDD_SOC 1370mW/1300mW",
            {"VDD_IN": 4.512, "VDD_SOC": 1.37},
        ),
        ("RAM 2189/31919MB CPU [0%@1190] IRAM 0/252kB GPU 0/0 SYS5V 1401/1398", {"GPU": 0.0, "SYS5V": 1.401}),
        ("", {}),
    ],
)
def test_lines_of_tegrastats(line, watts):
    """Planted mistakes: the average for the value now; memory as a rail."""
    assert energy.tegrastats_watts(line) == watts


def test_lines_of_nvidia_smi():
    assert energy.nvidia_smi_watts("1, 71.25\n") == {"GPU 1": 71.25}
    assert energy.nvidia_smi_watts("0, [N/A]\n") == {}


def test_a_command_is_read_until_the_stop(tmp_path, monkeypatch):
    """Planted mistakes: GPUs whose lines take turns never make a pair; the command runs on after the stop."""
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nwhile :; do echo '0, 10'; echo '1, 20'; done\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (meter,), _ = energy.find_meters(Files(tmp_path, []), live=True)
    lines, enough, parse = [], Event(), meter.parse

    def watch(line):
        lines.append(line)
        if len(lines) == 6:
            enough.set()
        return parse(line)

    meter.parse = watch
    meter.start()
    assert enough.wait(WAIT_SECONDS)
    joules = meter.stop()
    assert joules.keys() == {"GPU 0", "GPU 1"}
    assert min(joules.values()) > 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_command_that_cannot_be_read_says_so_at_the_stop(tmp_path):
    """Planted mistakes: the energy before the failure taken for all of it; a thread that dies aloud."""
    script = tmp_path / "watts"
    script.write_text("#!/bin/sh\nwhile :; do echo 1; echo x; done\n")
    script.chmod(0o755)
    failed = Event()

    def parse(line):
        if line == "x\n":
            failed.set()
        return {"a": float(line)}

    meter = energy.CommandMeter("x", (str(script),), parse)
    meter.start()
    assert failed.wait(WAIT_SECONDS)
    with pytest.raises(ValueError, match="could not convert string to float: 'x"):
        meter.stop()
    assert not meter.thread.is_alive()


def test_conditions_of_a_jetson(files):
    """Planted mistakes: kHz for MHz; a policy for a core; another device for the GPU."""
    found = conditions(files(ORIN_NANO))
    assert (found.power_mode, found.governors) == ("15W", {"schedutil": 2})
    assert (found.cpu_mhz, found.top_mhz, found.hardware_mhz) == ((729, 1344), (1344, 1344), 1510)
    assert (found.gpu_mhz, found.celsius, found.throttled) == ((306, 624), {"cpu-thermal": 45.5}, 2)
    assert (found.load, found.gpus) == (0.52, [])


def test_conditions_of_a_machine_without_clocks(files):
    """Planted mistake: 0 for what is not told."""
    found = conditions(files(DESKTOP))
    assert (found.cpu_mhz, found.top_mhz, found.throttled) == ((2445, 2445), None, 7)
    assert (found.power_mode, found.governors, found.gpu_mhz, found.load) == (None, {}, None, None)


def test_conditions_of_a_machine_without_counters(files):
    """Planted mistake: not throttled, where nothing counts it."""
    assert conditions(files({})).throttled is None


def test_what_changed_meanwhile_is_told(files):
    """Planted mistake: throttling before the measurement counts."""
    found = files(ORIN_NANO)
    before = conditions(found)
    assert changes(before, before) == []
    (found.root / f"{HWMON}/hwmon3/oc1_event_cnt").write_text("5\n")
    (found.root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq").write_text("960000\n")
    throttled, clock = changes(before, conditions(found))
    assert "throttled 3 times" in throttled
    assert "from 1344 to 960 MHz" in clock


def test_no_thread_or_clock_of_this_machine_is_asked_for_a_recorded_one(files, monkeypatch):
    """Planted mistake: this machine's nvidia-smi for another's files."""
    monkeypatch.setattr("hpdval_edge.bench.conditions.ask_nvidia_smi", lambda *_: sys.exit("asked"))
    conditions(files(ORIN_NANO))
