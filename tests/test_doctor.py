"""``hpedge doctor`` on recorded boards, containers, desktops and plain CPUs; the files are as the boards have them."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from hpdval_edge import load_bundle
from hpdval_edge.bundle import sha256
from hpdval_edge.diagnosis import NEEDS, diagnose
from hpdval_edge.errors import BadData
from hpdval_edge.machine import read_machine
from hpdval_edge.runtimes import BACKENDS

RELEASE = (
    "# R{}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n"
)
NVPMODEL = """\
# < POWER_MODEL ID=9 NAME=OLD >
< PARAM TYPE=CLOCK NAME=CVNAS >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""
DPKG = """\
Package: libnvinfer-bin
Status: install ok installed
Version: 9.9.9

Package: {0}
Status: install ok installed
Priority: optional
Version: {1}
Depends: libc6

Package: libnvinfer7
Status: deinstall ok config-files
Version: 7.1.3-1
"""
CARMEL, A78AE, V3AE = ("0x4e", "0x004"), ("0x41", "0xd42"), ("0x41", "0xd83")


def arm(part, cores):
    core = f"BogoMIPS\t: 62.50\nCPU implementer\t: {part[0]}\nCPU architecture: 8\nCPU part\t: {part[1]}\n\n"
    return "".join(f"processor\t: {number}\n{core}" for number in range(cores))


X86 = "".join(
    f"processor\t: {n}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Core(TM) i7\nflags\t\t: fpu\n\n"
    for n in range(4)
)


ORIN = {
    "etc/nv_tegra_release": RELEASE.format("36 (release), REVISION: 4.3"),
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/cpuinfo": arm(A78AE, 6),
    "etc/nvpmodel.conf": NVPMODEL,
    "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "var/lib/dpkg/status": DPKG.format("libnvinfer10", "10.3.0.30-1+cuda12.5"),
    "usr/include/aarch64-linux-gnu/NvInferVersion.h": (
        "#define NV_TENSORRT_MAJOR 10 //!< TensorRT major version.\n"
        "#define NV_TENSORRT_MINOR 3\n#define NV_TENSORRT_PATCH 0\n#define NV_TENSORRT_BUILD 30\n"
    ),
}
ORIN_5 = {
    "etc/nv_tegra_release": RELEASE.format("35 (release), REVISION: 4.1"),
    "proc/device-tree/model": "NVIDIA Orin NX Developer Kit\0",
    "proc/cpuinfo": arm(A78AE, 8),
    "var/lib/dpkg/status": DPKG.format("libnvinfer8", "8.5.2-1+cuda11.4"),
}
THOR = {
    "etc/nv_tegra_release": RELEASE.format("38 (release), REVISION: 4.0"),
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/cpuinfo": arm(V3AE, 14),
    "var/lib/dpkg/status": DPKG.format("libnvinfer10", "10.13.3.9-1+cuda13.0"),
}
XAVIER = {
    "etc/nv_tegra_release": RELEASE.format("35 (release), REVISION: 5.0"),
    "proc/device-tree/model": "Jetson-AGX\0",
    "proc/cpuinfo": arm(CARMEL, 8),
}


def report_of(root, bundle=None):
    return diagnose(read_machine(root, live=False), bundle)


def tensorrt_row(report):
    (row,) = [row for row in report["backends"] if row["name"] == "tensorrt"]
    return row


def test_orin_on_jetpack_6_2(record):
    """Planted mistakes: the first power mode for the current one; a config file's package for an installed one."""
    report = report_of(record(ORIN))
    facts, board = report["machine"], report["board"]
    assert board == {
        **{"jetson": True, "l4t": "36.4.3", "jetpack": "6.2"},
        **{"chip": "Orin", "chip_told_by": "the board's model", "sm": ["sm_87"]},
    }
    assert facts["model"] == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (facts["cpu"], facts["cores"], facts["architecture"]) == ("Cortex-A78AE", 6, "aarch64")
    assert (facts["memory_mib"], facts["cuda"], facts["container"]) == (7658, "12.6.11", None)
    assert (facts["power_mode"], facts["power_modes"]) == (1, {0: "15W", 1: "25W", 2: "MAXN_SUPER"})
    (engine,) = facts["tensorrt"]
    assert (engine["version"], engine["source"]) == ("10.3.0.30-1+cuda12.5", "dpkg libnvinfer10")
    row = tensorrt_row(report)
    assert (row["works"], row["reason"], row["precisions"]) == (
        *(False, "its Python module is not installed here (apt: python3-libnvinfer)"),
        ["fp32", "fp16", "int8", "int8-fp16"],
    )
    assert row["head_modes"] == {"onnx": None, "plugin-so": None, "qdp-aot": "needs TensorRT 10.9 or later"}
    assert any("25W" in note and "nvpmodel -m 2" in note for note in report["notes"])
    assert any("issue 4723" in note for note in report["notes"])
    assert facts["problems"] == []


def test_orin_on_jetpack_5_1(record):
    """Planted mistake: IPluginV3 for TensorRT 8."""
    report = report_of(record(ORIN_5))
    assert (report["board"]["jetpack"], report["board"]["chip"], report["board"]["sm"]) == ("5.1.x", "Orin", ["sm_87"])
    assert tensorrt_row(report)["head_modes"] == {
        "onnx": None,
        "plugin-so": "needs TensorRT 10.0 or later",
        "qdp-aot": "needs TensorRT 10.9 or later",
    }
    assert any("best effort" in note for note in report["notes"])
    assert any("Python 3.8" in note and "3.10" in note for note in report["notes"])


def test_thor_on_jetpack_7_1(record):
    """Planted mistake: what 10.13 lacks on Orin is said of Thor."""
    report = report_of(record(THOR))
    assert (report["board"]["jetpack"], report["board"]["chip"], report["board"]["sm"]) == ("7.1", "Thor", ["sm_110"])
    assert tensorrt_row(report)["head_modes"] == {"onnx": None, "plugin-so": None, "qdp-aot": None}
    assert report["notes"] == []
    assert report["install"][0].startswith("pip install hpdval-edge")


def test_xavier_and_what_to_install(record):
    """Planted mistake: the old name of an AGX Xavier is not known."""
    report = report_of(record(XAVIER))
    assert (report["board"]["chip"], report["board"]["sm"]) == ("Xavier", ["sm_72"])
    assert report["board"]["chip_told_by"] == "the board's model"
    assert any("nvidia-jetpack" in text and "JetPack 5.1.x brings 8.5" in text for text in report["install"])
    assert tensorrt_row(report)["with"] is None


def test_container_on_orin_hides_the_model(record):
    """Planted mistake: no chip without a device tree."""
    files = {name: ORIN[name] for name in ("etc/nv_tegra_release", "proc/cpuinfo")}
    report = report_of(record({**files, ".dockerenv": ""}))
    assert report["machine"]["container"] == "Docker"
    assert (report["board"]["chip"], report["board"]["chip_told_by"]) == ("Orin", "its Cortex-A78AE cores")
    assert any("may be the image's" in note for note in report["notes"])


def test_l4t_alone_tells_the_chip_only_where_it_is_for_one(record):
    """Planted mistake: the first chip of a release that is for two."""
    report = report_of(record({"etc/nv_tegra_release": ORIN["etc/nv_tegra_release"]}))
    assert report["board"]["chip"] == "Orin"
    assert "no other chip" in report["board"]["chip_told_by"]
    for release in ("35 (release), REVISION: 4.1", "39 (release), REVISION: 2.0"):
        report = report_of(record({"etc/nv_tegra_release": RELEASE.format(release)}))
        assert (report["board"]["chip"], report["board"]["sm"]) == (None, [])
        assert any("chip is unknown" in note for note in report["notes"])


def test_cores_alone_are_no_jetson(record):
    """Planted mistake: other machines with Cortex-A78AE cores become an Orin."""
    report = report_of(record({"proc/cpuinfo": ORIN["proc/cpuinfo"], "run/.containerenv": ""}))
    assert (report["board"]["jetson"], report["board"]["chip"]) == (False, None)
    assert report["machine"]["container"] == "Podman"
    assert any("Orin's cores" in note and "-v /etc/nv_tegra_release" in note for note in report["notes"])


def test_image_of_another_board_is_told(record):
    report = report_of(record({**ORIN, "etc/nv_tegra_release": THOR["etc/nv_tegra_release"]}))
    assert report["board"]["chip"] == "Orin"
    assert any("is for Thor, this is Orin" in note for note in report["notes"])


def test_unknown_l4t_and_tensorrt_are_said_to_be_unknown(record):
    """Planted mistakes: the newest JetPack for a newer L4T; the newest modes for a newer TensorRT."""
    files = {
        "etc/nv_tegra_release": RELEASE.format("41 (release), REVISION: 1.0"),
        "var/lib/dpkg/status": DPKG.format("libnvinfer12", "12.1.0.5-1"),
    }
    report = report_of(record({**ORIN, **files, "usr/include/aarch64-linux-gnu/NvInferVersion.h": ""}))
    assert (report["board"]["l4t"], report["board"]["jetpack"]) == ("41.1.0", None)
    assert any("JetPack is unknown for L4T R41.1.0" in note for note in report["notes"])
    modes = tensorrt_row(report)["head_modes"]
    assert modes["onnx"] is None
    assert "unknown" in modes["plugin-so"] and "unknown" in modes["qdp-aot"]


def test_plain_cpu(record, monkeypatch):
    """Planted mistake: a plain machine is told to install what only a board has."""
    monkeypatch.setenv("PATH", "")
    machine = read_machine(record({"proc/cpuinfo": X86}))
    assert (machine.cpu, machine.cores, machine.problems) == ("Intel(R) Core(TM) i7", 4, [])
    report = diagnose(machine)
    assert report["board"]["jetson"] is False and report["board"]["sm"] == []
    assert report["notes"] == report["install"] == []
    assert [row["name"] for row in report["backends"] if row["works"]][:1] == ["onnxruntime"]


def test_installed_jetpack_package_says_more_than_the_table(record):
    root = record({**ORIN, "var/lib/dpkg/status": DPKG.format("nvidia-jetpack", "6.2.1+b38")})
    assert report_of(root)["board"]["jetpack"] == "6.2.1+b38"


def test_another_python_than_jetpacks_is_told(record):
    """Planted mistake: the note also where this Python has TensorRT."""
    machine = read_machine(record(ORIN), live=False)
    machine.python = "3.11.7"
    assert any("for Python 3.10, this is 3.11" in note for note in diagnose(machine)["notes"])
    machine.python = "3.10.12"
    assert not any("Python" in note for note in diagnose(machine)["notes"])


def test_every_backend_has_its_packages_listed():
    assert {*NEEDS, "tensorrt", "tensorrt-rtx"} == {backend.name for backend in BACKENDS}


@pytest.fixture
def with_kernels(tiny_bundle, tmp_path):
    """The tiny bundle with a manifest of GPU kernels for the named (target, architecture, PTX)."""

    def write(*kernels, text=None):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}.hpedge"
        shutil.copytree(tiny_bundle, folder)
        entries = [{"target": t, "architecture": a, "ptx": {"version": v}} for t, a, v in kernels]
        data = (text or json.dumps({"kernels": entries})).encode()
        (folder / "kernels").mkdir()
        (folder / "kernels" / "manifest.json").write_bytes(data)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["kernels/manifest.json"] = sha256(data)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return load_bundle(folder)

    return write


def test_bundle_fits_or_says_what_to_export(record, tiny_bundle, with_kernels):
    """Planted mistakes: sm_90a's PTX as a fallback; PTX newer than the board's driver reads."""
    root = record(ORIN)
    plain = report_of(root, load_bundle(tiny_bundle))["bundle"]
    assert (plain["precision"], plain["runs_with"], plain["kernels"]) == ("fp16", [], [])
    assert plain["reason"] == "needs onnxruntime: pip install hpdval-edge"
    assert "add one with: hpedge export --fp16 --target sm_87" in plain["gpu"][0]["text"]
    own = report_of(root, with_kernels(("sm_80", "sm_80", "8.0"), ("sm_87", "sm_87", "8.2")))["bundle"]
    assert own["gpu"] == [{"sm": "sm_87", "kernel": "sm_87", "text": "GPU kernels for sm_87 are inside."}]
    older = report_of(root, with_kernels(("sm_80", "sm_80", "8.0"), ("sm_86", "sm_86", "8.7")))["bundle"]
    assert older["gpu"][0]["kernel"] == "sm_80"
    newer = report_of(root, with_kernels(("sm_87", "sm_87", "8.7")))["bundle"]
    assert "loads the cubin only, it reads PTX up to 8.5" in newer["gpu"][0]["text"]
    thor = report_of(record({**ORIN, **THOR}), with_kernels(("sm_90", "sm_90a", "8.0")))["bundle"]
    assert thor["gpu"][0]["kernel"] is None
    assert "(inside: sm_90)" in thor["gpu"][0]["text"]
    xavier = report_of(record({**ORIN, **XAVIER}), load_bundle(tiny_bundle))["bundle"]
    assert "hpedge compiles none for it" in xavier["gpu"][0]["text"]


def test_bundle_on_a_plain_cpu(record, tiny_bundle, monkeypatch):
    """Planted mistakes: an unknown precision that runs; a GPU's advice without a GPU."""
    monkeypatch.setenv("PATH", "")
    machine = read_machine(record({"proc/cpuinfo": X86}))
    machine.packages = {"onnxruntime": "1.24.1", "openvino": "2026.1.0", "torch": "2.11.0"}
    bundle = load_bundle(tiny_bundle)
    found = diagnose(machine, bundle)["bundle"]
    assert (found["reason"], found["gpu"]) == (None, [])
    assert found["runs_with"] == ["onnxruntime", "openvino", "torchscript", "pt2"]
    integers = diagnose(machine, replace(bundle, manifest=replace(bundle.manifest, precision="int8")))["bundle"]
    assert integers["runs_with"] == ["onnxruntime", "openvino"]
    halves = diagnose(machine, replace(bundle, manifest=replace(bundle.manifest, precision="int8-fp16")))["bundle"]
    assert halves["runs_with"] == ["onnxruntime"]
    odd = diagnose(machine, replace(bundle, manifest=replace(bundle.manifest, precision="int4")))["bundle"]
    assert (odd["runs_with"], odd["reason"]) == (
        [],
        "this version runs fp32, fp16, int8 and int8-fp16 bundles; update hpedge",
    )


def test_features_of_the_cpu_decide_on_bfloat16(record, run_hpedge):
    """Planted mistakes: the last core's flags, or parts of their names; bfloat16 wherever OpenVINO is installed."""
    genoa = X86.replace(": fpu", ": fpu avx2 avx512f avx512_vnni avx512_bf16")
    rows = {}
    for name, cpuinfo in {"old": X86.replace(": fpu", ": fpu avx2 avx512_bf16_not"), "new": genoa}.items():
        machine = read_machine(record({"proc/cpuinfo": cpuinfo}), live=False)
        machine.packages = {"openvino": "2026.1.0"}
        rows[name] = {row["name"]: row for row in diagnose(machine)["backends"]}
    assert machine.cpu_features == ["avx2", "avx512f", "avx512_vnni", "avx512_bf16"]
    assert rows["old"]["openvino"]["computes"] == rows["new"]["openvino"]["computes"] == "float32"
    assert rows["old"]["openvino-bf16"]["reason"] == "needs a CPU with avx512_bf16, amx_bf16 or avx_ne_convert"
    assert (rows["new"]["openvino-bf16"]["works"], rows["new"]["openvino-bf16"]["computes"]) == (True, "bfloat16")
    out = run_hpedge("doctor", "--root", record({"proc/cpuinfo": X86.replace(": fpu", ": fpu avx2")}))[1]
    assert "avx2; none that adds up products of 8-bit integers or bfloat16" in out


def test_garbled_kernels_are_bad_data(record, with_kernels):
    with pytest.raises(BadData, match="no manifest of kernels"):
        report_of(record(ORIN), with_kernels(text='{"kernels": [{"target": "sm_x"}]}'))


def test_command_prints_one_screen(run_hpedge, record, tiny_bundle):
    """Planted mistakes: no TensorRT row; lines wider than the screen; another exit code."""
    code, out, err = run_hpedge("doctor", tiny_bundle, "--root", record(ORIN))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 110
    words = " ".join(out.split())
    assert "software L4T R36.4.3, JetPack 6.2" in words
    assert "power mode 25W (of 0 15W, 1 25W, 2 MAXN_SUPER)" in words
    assert "tensorrt its Python module is not installed here (apt: python3-libnvinfer); TensorRT 10.3.0.30" in words
    assert "could run fp32, fp16, int8 and int8-fp16 bundles, head as onnx or plugin-so; not as qdp-aot: needs" in words
    assert (
        "onnxruntime needs onnxruntime: pip install hpdval-edge; then fp32, fp16, int8 and int8-fp16 bundles run"
        in words
    )
    assert "(fp16) does not run here yet: needs onnxruntime: pip install" in words


def test_json_is_one_document(run_hpedge, record):
    code, out, err = run_hpedge("doctor", "--json", "--root", record(XAVIER))
    assert (code, err) == (0, "")
    assert json.loads(out).keys() == {"machine", "board", "backends", "notes", "install", "bundle"}


def test_bundles_that_are_none_have_their_exit_codes(run_hpedge, record, tmp_path):
    (tmp_path / "x.hpedge").mkdir()
    assert run_hpedge("doctor", tmp_path / "absent.hpedge")[0] == 2
    assert run_hpedge("doctor", tmp_path / "x.hpedge")[0] == 3
    assert run_hpedge("doctor", "--root", tmp_path / "absent")[0] == 2


def test_this_machine_answers_soon_and_without_torch():
    """The contract is 1 s; an import of torch alone takes longer. Planted mistake: torch's version by importing it."""
    code = (
        "import sys; from hpdval_edge import cli; sys.argv = ['hpedge', 'doctor', '--json']\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'triton', 'tensorrt', 'onnxruntime'} & {*sys.modules}), file=sys.stderr)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 10
    assert done.stderr == "[]\n"
    assert json.loads(done.stdout)["machine"]["root"] == "/"
