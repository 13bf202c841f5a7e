"""The preprocess kernel's C++ test, plain, under sanitizers, and on 64-bit Arm.

Planted mistakes that it was seen to catch: no room behind the copied ends of rows (address sanitizer), a buffer shared
by all resizers (thread sanitizer), no clipping (Arm).
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "kernels" / "cpu").glob("preprocess*.cpp"))
SANITIZERS = {
    "plain": (),
    "address and undefined": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}

pytestmark = pytest.mark.slow


def build_and_run(folder: Path, compiler: str, flags: tuple[str, ...] = (), runner: tuple[str, ...] = ()) -> str:
    """What the test program prints; each file compiled as CMakeLists.txt has it."""
    objects = []
    arm = compiler.startswith("aarch64")
    for source in [ROOT / "tests" / "cpp" / "preprocess_test.cpp", *SOURCES]:
        if source.stem == "preprocess_bindings":
            continue
        vectors = ("-mavx2",) if source.stem.endswith("avx2") and not arm and platform.machine() == "x86_64" else ()
        exact = ("-ffp-contract=off",) if source.stem == "preprocess_plan" else ()
        objects.append(str(folder / f"{source.stem}.o"))
        options = ("-std=c++17", "-O2", "-g", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'kernels' / 'cpu'}")
        run(compiler, *options, *vectors, *exact, *flags, "-c", str(source), "-o", objects[-1])
    program = str(folder / "preprocess_test")
    run(compiler, *objects, *flags, "-pthread", "-o", program)
    return run(*runner, program)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("flags", SANITIZERS.values(), ids=SANITIZERS)
def test_cpp(tmp_path, flags):
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    assert "0 failures" in build_and_run(tmp_path, "g++", flags)


def test_cpp_on_arm(tmp_path):
    tools = ("aarch64-linux-gnu-g++", "qemu-aarch64")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}; install Debian's g++-aarch64-linux-gnu and qemu-user")
    out = build_and_run(tmp_path, tools[0], runner=(tools[1], "-L", "/usr/aarch64-linux-gnu"))
    assert out.startswith("generic ") and "0 failures" in out
