"""The C++ kernels without Python: under sanitizers, and for 64-bit Arm under an emulator."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ARCH = "x86" if platform.machine() in ("x86_64", "AMD64") else "arm"
ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "kernels" / "cpu"
X86 = {
    "head_avx2": ["-mavx2", "-mfma"],
    "head_avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
}
SANITIZERS = {
    "address and undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
pytestmark = pytest.mark.slow


def build(folder, compiler, flags, arch):
    """Compile each file with its own instruction set's flags, as CMakeLists.txt does."""
    special = X86 if arch == "x86" else {"head_neon": []} if arch == "arm" else {}
    objects = []
    for name, own in {"head": [], "text_bank": [], "pool": [], "head_generic": [], **special}.items():
        objects.append(folder / f"{name}.o")
        source = SOURCES / f"{name}.cpp"
        run([compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", *flags, *own, "-c", source, "-o", objects[-1]])
    program = folder / "head_test"
    test = ROOT / "tests" / "cpp" / "head_test.cpp"
    run([compiler, "-std=c++17", *flags, f"-I{SOURCES}", test, *objects, "-pthread", "-o", program])
    return program


def run(command, **kwargs):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ here")
@pytest.mark.parametrize("name", SANITIZERS)
def test_head_under_sanitizers(tmp_path, name):
    """Planted: scratch a cache line short (address), callers that share the pool's threads (it waited for ever)."""
    program = build(tmp_path, "g++", ["-O1", "-g", *SANITIZERS[name]], ARCH)
    assert "generic: right" in run([program], timeout=600)


@pytest.mark.skipif(not shutil.which("g++") or ARCH != "x86", reason="needs g++ on x86-64")
def test_avx512_geometry_with_avx2_instructions(tmp_path, monkeypatch):
    """Panels of 16-lane vectors, each made of two of 8 lanes, on a machine without AVX-512; not its instructions.

    Planted: `rows_of` without its last halving; failed.
    """
    monkeypatch.setitem(X86, "head_avx512", ["-mavx2", "-mfma", "-Wno-psabi", "-D__builtin_cpu_supports(name)=true"])
    assert "avx512: right" in run([build(tmp_path, "g++", ["-O2"], "x86")], timeout=600)


@pytest.mark.skipif(
    not shutil.which("aarch64-linux-gnu-g++"), reason="no cross compiler: apt install g++-aarch64-linux-gnu"
)
@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="no emulator: apt install qemu-user")
def test_head_on_64_bit_arm(tmp_path):
    program = build(tmp_path, "aarch64-linux-gnu-g++", ["-O3", "-static"], "arm")
    printed = run(["qemu-aarch64", program], timeout=600)
    assert "neon: right" in printed and "generic: right" in printed
