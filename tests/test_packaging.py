"""One import root, no torch where none is needed, and wheels that hold what they should."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import hpdval_edge

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("kernels", "training", "export")


def python(code: str, cwd: Path, **environment: str) -> str:
    """Standard output of ``code`` in a fresh interpreter with its working folder in ``cwd``."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_one_import_root_is_installed():
    files = importlib.metadata.files("hpdval-edge")
    roots = {file.parts[0] for file in files}
    # An editable install adds its own hook; "../../../bin/hpedge" is the command.
    ours = {
        root
        for root in roots
        if not re.fullmatch(r"hpdval_edge-.*\.dist-info|_editable_skbc_.*|\.\.|__pycache__", root)
    }
    assert ours == {"hpdval_edge"}


@pytest.mark.parametrize("name", [*MAPPED, "tests"])
def test_mapped_folders_are_not_packages_by_themselves(name):
    assert not (ROOT / name / "__init__.py").exists()


@pytest.mark.parametrize("name", [*MAPPED, "tests", "benchmarks"])
def test_generic_names_stay_free(name, tmp_path):
    # An editable install lists the checkout on sys.path; folders there lose against any real package of their name.
    origin = python(f"import importlib.util as u; s = u.find_spec({name!r}); print(s and s.origin)", tmp_path)
    assert origin == "None" or not Path(origin).is_relative_to(ROOT)


def test_version_has_a_single_source():
    assert importlib.metadata.version("hpdval-edge") == hpdval_edge.__version__


def test_lazy_names_are_listed_and_unknown_ones_refused():
    assert {"Predictor", "load_bundle", "__version__"} <= set(dir(hpdval_edge))
    with pytest.raises(AttributeError, match="module 'hpdval_edge' has no attribute 'predictor_'"):
        hpdval_edge.predictor_  # noqa: B018


def test_lazy_names_load():
    from hpdval_edge.bundle import load_bundle
    from hpdval_edge.predictor import Predictor

    assert hpdval_edge.Predictor is Predictor
    assert hpdval_edge.load_bundle is load_bundle


@pytest.mark.parametrize("module", ["hpdval_edge", "hpdval_edge.kernels", "hpdval_edge.kernels.head"])
def test_import_needs_no_torch(module, tmp_path):
    heavy = "{'torch', 'timm', 'open_clip', 'onnx', 'onnxruntime'}"
    assert python(f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))", tmp_path) == "[]"


def test_kernels_work_in_an_empty_folder_and_leave_torch_alone(tmp_path):
    code = (
        "import sys, numpy as np; from hpdval_edge.kernels import dual_view_scores;"
        "one = np.ones((1, 4), np.float32); s = dual_view_scores(one, one[None], one, one, backend='cpu');"
        "print(s.tolist(), 'torch' in sys.modules)"
    )
    assert python(code, tmp_path) == "[[1.0]] False"


def test_module_run_is_the_command(tmp_path):
    code = "import runpy, sys; sys.argv = ['hpedge', '--version']; runpy.run_module('hpdval_edge', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hpdval_edge.__version__ in done.stdout
    entry = importlib.metadata.entry_points(group="console_scripts", name="hpedge")["hpedge"]
    assert entry.value == "hpdval_edge.cli:main"


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an sdist or a wheel with what is installed here, so that no network is needed."""
    # cmake and ninja of this environment, also when it is not activated.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out), str(source)]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.mark.slow
def test_sdist_builds_a_wheel_that_works(tmp_path):
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert not {".venv", "demo", "runs", "build"} & {path.name for path in source.iterdir()}
    wheel = build("wheel", source, tmp_path / "wheel")
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(target)
    check_contents(names)
    # -I -S leaves out this environment and its editable hook; NumPy is then added by hand.
    site = Path(importlib.util.find_spec("numpy").origin).parents[1]
    code = (
        f"import sys; sys.path[:0] = [{str(target)!r}, {str(site)!r}]; import hpdval_edge;"
        "from hpdval_edge.kernels import _cpu, dual_view_scores, head;"
        "print(hpdval_edge.__file__, head.__file__, _cpu.__file__, 'torch' in sys.modules, sep=chr(10))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *files, torch_loaded = done.stdout.splitlines()
    assert all(Path(file).is_relative_to(target) for file in files), files
    assert torch_loaded == "False"


def check_contents(names: list[str]) -> None:
    """One root, every Python and data file of the mapped folders, and neither C++, its build files nor tests."""
    assert {name.split("/")[0] for name in names} == {"hpdval_edge", f"hpdval_edge-{hpdval_edge.__version__}.dist-info"}
    assert not [name for name in names if re.search(r"\.[ch]pp$|tests?/|benchmarks|CMakeLists|libhpedge", name)]
    expected = {
        (Path("hpdval_edge", folder) if folder in MAPPED else Path(folder)) / file.relative_to(ROOT / folder)
        for folder in ("hpdval_edge", *MAPPED)
        for suffix in ("py", "pyi", "typed", "json", "toml", "safetensors", "html", "css", "js", "svg")
        for file in (ROOT / folder).rglob(f"*.{suffix}")
    }
    missing = sorted(str(path) for path in expected if path.as_posix() not in names)
    assert not missing, missing
    assert f"hpdval_edge-{hpdval_edge.__version__}.dist-info/licenses/LICENSE" in names
