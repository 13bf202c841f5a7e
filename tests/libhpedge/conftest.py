"""What the tests of libhpedge share: built, installed and linked as its users do, once a session each way."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests" / "cpp" / "libhpedge"
DOUBLE = PROGRAMS / "tensorrt_double"
# What the kinds of build are configured from: both ways that docs/libhpedge.md names.
SOURCES = {"plain": ROOT, "sanitized": ROOT / "hpdval_edge" / "libhpedge"}
# Of the compilers, by kind of build; unoptimised, which compiles fastest. "sanitized" has TensorRT's double as well.
FLAGS = {"plain": "-O0", "sanitized": "-O0 -fsanitize=address,undefined -fno-sanitize-recover=all"}
# cmake of this environment, also when it is not activated.
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))


def json_headers():
    """Folders of nlohmann/json.hpp where it comes with a Python package."""
    spec = importlib.util.find_spec("nlohmann_json")
    return [str(Path(folder) / "include") for folder in (spec.submodule_search_locations if spec else [])]


def lacks():
    """Why nothing can be built here, or None."""
    missing = [tool for tool in ("cmake", "gcc", "g++") if not shutil.which(tool, path=PATH)]
    if missing:
        return f"no {' and no '.join(missing)}: apt install cmake g++"
    for header, package in {"openssl/evp.h": "libssl-dev", "nlohmann/json.hpp": "nlohmann-json3-dev"}.items():
        if not has_header(header, json_headers()):
            return f"no {header}: apt install {package}"
    return None


def has_header(name, folders=()):
    test = f"#if !__has_include(<{name}>)\n#error\n#endif\n"
    command = ["g++", *(f"-I{folder}" for folder in folders), "-E", "-x", "c++", "-"]
    return subprocess.run(command, input=test, capture_output=True, text=True).returncode == 0


def run(*command, code=0, cwd=None, **environment):
    """Standard output and error of a command that ends with ``code``."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**os.environ, "PATH": PATH, **environment}, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def cmake(source, build, *options):
    run("cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Debug", *options)
    run("cmake", "--build", build, "-j2")


def wheel(folder):
    """The Python package unpacked, with libhpedge inside, built as ``pip install . -C`` does."""
    given = ["build-dir=" + str(folder / "build"), "cmake.build-type=Debug", "cmake.define.HPEDGE_LIBRARY=ON"]
    given += [f"cmake.define.CMAKE_CXX_FLAGS_DEBUG={FLAGS['plain']}"]
    given += [f"cmake.define.NLOHMANN_JSON_INCLUDE_DIR={path}" for path in json_headers()]
    settings = [part for setting in given for part in ("-C", setting)]
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "wheel", *settings, ROOT)
    (built,) = (folder / "wheel").iterdir()
    shutil.unpack_archive(built, folder / "unpacked", "zip")
    return folder / "unpacked"


def tensorrt_options(folder):
    """CMake's arguments for a library with TensorRT, against the double, which is built in ``folder``."""
    library = folder / "libnvinfer.so"
    flags = [
        "-std=c++17",
        *FLAGS["sanitized"].split(),
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-Wl,-soname,libnvinfer.so",
    ]
    run("g++", *flags, f"-I{DOUBLE}", DOUBLE / "double.cpp", "-o", library)
    headers, libraries = (
        ("TENSORRT_INCLUDE_DIR", "CUDA_RUNTIME_INCLUDE_DIR"),
        ("TENSORRT_LIBRARY", "CUDA_RUNTIME_LIBRARY"),
    )
    places = {**dict.fromkeys(headers, DOUBLE), **dict.fromkeys(libraries, library)}
    return ["-DHPEDGE_TENSORRT=ON", *(f"-D{name}={place}" for name, place in places.items())]


@pytest.fixture(scope="session")
def install(tmp_path_factory):
    """Builds and installs one of FLAGS, once each: the installed tree, with tests/cpp/libhpedge in ``programs``."""
    if reason := lacks():
        pytest.skip(reason)
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            flags = [f"-DCMAKE_{language}_FLAGS_DEBUG={FLAGS[kind]}" for language in ("C", "CXX")]
            given = [f"-DNLOHMANN_JSON_INCLUDE_DIR={path}" for path in json_headers()]
            given += tensorrt_options(folder) if kind == "sanitized" else []
            cmake(SOURCES[kind], folder / "build", *flags, *given)
            run("cmake", "--install", folder / "build", "--prefix", folder / "first")
            # A tree that was moved serves as well.
            (folder / "first").rename(folder / "installed")
            cmake(PROGRAMS, folder / "installed" / "programs", *flags, f"-DCMAKE_PREFIX_PATH={folder / 'installed'}")
            made[kind] = folder / "installed"
        return made[kind]

    return make


@pytest.fixture(scope="session")
def onnxruntime():
    """The library inside the Python package."""
    folder = Path(importlib.util.find_spec("onnxruntime").origin).parent / "capi"
    library = next(folder.glob("libonnxruntime.so.*"), None)
    if not library:
        pytest.skip("this onnxruntime package has no libonnxruntime.so inside: pip install -U onnxruntime")
    return library


class Driver:
    """tests/cpp/libhpedge/driver.c in a folder of its own."""

    def __init__(self, tree, folder, onnxruntime):
        self.program, self.folder = tree / "programs" / "driver", folder
        self.keys = {"onnxruntime": onnxruntime, "backend": "onnxruntime"}

    def __call__(self, bundle, pictures=(), code=0, environment=None, **keys):
        """What was printed; a key that is None is left out."""
        given = [picture.argument(self.folder) for picture in pictures]
        keys = {"bundle": bundle, **self.keys, **keys}
        named = [f"{name}={value}" for name, value in keys.items() if value is not None]
        return run(self.program, self.folder / "out", *named, *given, code=code, **(environment or {}))

    def output(self, name, shape, thread=0):
        kind = np.int32 if name == "chosen" else np.float32
        return np.fromfile(self.folder / f"out.{thread}.{name}", kind).reshape(shape)


@pytest.fixture
def drivers(install, tmp_path, onnxruntime):
    """The driver program of one of FLAGS."""
    return lambda kind: Driver(install(kind), tmp_path, onnxruntime)


@pytest.fixture
def driver(drivers):
    return drivers("plain")


@pytest.fixture(scope="session")
def tools():
    """``run``, ``cmake``, which configures and builds, and ``wheel``."""
    return SimpleNamespace(run=run, cmake=cmake, wheel=wheel)


@pytest.fixture(scope="session")
def bundles(tiny_bundle, tiny_run, tmp_path_factory):
    """A bundle of each kind of input."""
    from hpdval_edge.export.export import export
    from hpdval_edge.training.run_folder import find_run

    folder, made = tmp_path_factory.mktemp("inputs"), {"float32": tiny_bundle}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_run)
        for kind in ("float16", "uint8"):
            made[kind] = folder / f"{kind}.hpedge"
            export(find_run("tiny"), precision="fp32", targets=("onnx",), out=made[kind], image_dtype=kind)
    return made
