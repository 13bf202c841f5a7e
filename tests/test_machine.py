"""Reading the facts of a machine: packages, headers, nvidia-smi, files that are garbled."""

import os

import pytest

from hpdval_edge.diagnosis import diagnose
from hpdval_edge.machine import read_machine


def fake_nvidia_smi(folder, monkeypatch, script):
    """Put a command nvidia-smi first on the PATH."""
    command = folder / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)


def test_desktop_with_nvidia_smi(record, tmp_path, monkeypatch):
    """Planted mistake: compute capability 12.0 as sm_12."""
    lines = "NVIDIA GeForce RTX 5090, 12.0, 570.86.10, 32607 MiB\\nOrin (nvgpu), [N/A], 540.4.0, [N/A]\\n"
    fake_nvidia_smi(tmp_path, monkeypatch, f'[ "$#" = 2 ] && printf "{lines}"')
    machine = read_machine(record({}))
    first, second = machine.gpus
    assert (first.name, first.capability, first.driver, first.memory_mib) == (
        *("NVIDIA GeForce RTX 5090", 120, "570.86.10"),
        32607,
    )
    assert (second.capability, second.memory_mib) == (None, None)
    machine.packages["tensorrt-rtx-cu13"] = "1.7.1"
    report = diagnose(machine)
    assert (report["board"]["jetson"], report["board"]["sm"]) == (False, ["sm_120"])
    (rtx,) = [row for row in report["backends"] if row["name"] == "tensorrt-rtx"]
    assert rtx["head_modes"] == {"onnx": None, "plugin-so": None, "qdp-aot": "TensorRT-RTX has no such plugins"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'No devices were found' >&2; exit 6", "code 6 (No devices were found)"),
        ("exec sleep 60", "no answer in 0.2 s"),
        ("echo garbage", "'garbage', 4 values"),
    ],
)
def test_failing_nvidia_smi_is_a_fact(record, tmp_path, monkeypatch, script, said):
    """Planted mistakes: its failure ends the command, or is silent."""
    fake_nvidia_smi(tmp_path, monkeypatch, script)
    monkeypatch.setattr("hpdval_edge.machine.NVIDIA_SMI_SECONDS", 0.2)
    report = diagnose(read_machine(record({})))
    assert report["machine"]["gpus"] == []
    assert any(said in note for note in report["notes"])


def test_garbled_files_are_told_and_left_out(record):
    """Planted mistakes: an exception, or a value out of garbage."""
    garbage = b"\xff\xfe\x00 not a release\n" * 3
    names = ("etc/nv_tegra_release", "proc/cpuinfo", "proc/meminfo", "etc/nvpmodel.conf", "var/lib/nvpmodel/status")
    names += ("usr/local/cuda/version.json", "var/lib/dpkg/status", "usr/include/NvInferVersion.h")
    facts = diagnose(read_machine(record(dict.fromkeys(names, garbage)), live=False))["machine"]
    assert (facts["l4t"], facts["memory_mib"], facts["power_mode"], facts["cuda"]) == ((), None, None, None)
    assert (facts["tensorrt"], facts["power_modes"], facts["cores"]) == ([], {}, 0)
    told = [problem.split()[0] for problem in facts["problems"]]
    assert told == [
        *("/etc/nv_tegra_release", "/proc/meminfo", "/var/lib/nvpmodel/status", "/usr/local/cuda/version.json"),
        "/usr/include/NvInferVersion.h",
    ]


def test_a_folder_in_a_files_place_is_told(record):
    root = record({})
    (root / "etc" / "nv_tegra_release").mkdir(parents=True)
    assert read_machine(root, live=False).problems == [
        "/etc/nv_tegra_release cannot be read (Is a directory); run hpedge as a user who may."
    ]


def test_recorded_python_packages(record):
    """Planted mistake: this machine's packages are taken for the recorded one's."""
    files = {
        "usr/lib/python3.10/dist-packages/tensorrt-10.3.0.dist-info/METADATA": "Name: tensorrt\nVersion: 10.3.0\n",
        "usr/lib/python3.10/dist-packages/torch-2.5.0.dist-info/RECORD": "",
    }
    machine = read_machine(record(files), live=False)
    assert machine.packages == {"tensorrt": "10.3.0"}
    assert machine.problems == ["Python package torch has no version in its metadata; install it again."]
    assert [(found.source, found.module) for found in machine.tensorrt] == [("Python package tensorrt", True)]


def test_headers_of_new_tensorrt_alone_tell_the_version(record):
    header = "#define TRT_MAJOR_RTX 1\n#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n"
    header += "#define TRT_PATCH_ENTERPRISE 0\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n"
    machine = read_machine(record({"usr/include/x86_64-linux-gnu/NvInferVersion.h": header}), live=False)
    assert [(found.version, found.source) for found in machine.tensorrt] == [("11.1.0", "NvInferVersion.h")]
