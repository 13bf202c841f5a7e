"""The GPU kernels ahead of time: budgets of every binary, the cache, the manifest, `hpedge kernels build`."""

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest

from hpdval_edge.bundle import load_bundle
from hpdval_edge.errors import BadData, CheckFailed, MissingDependency
from hpdval_edge.export import aot, aot_compile
from hpdval_edge.export.aot_compile import DTYPES, Binary, Variant, compile_variant, drop_scratch
from hpdval_edge.export.aot_targets import TARGETS, find_targets
from hpdval_edge.export.export import kernel_chips
from hpdval_edge.kernels.head_launch import TABLE

NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
# What TensorRT is known to launch without raising the limit of a kernel.
SHARED_LIMIT = 48 * 1024
# Newest PTX that the driver of each Jetson's oldest JetPack reads (6.0 and 7.0).
JETPACK_READS = {"sm_87": 82, "sm_110": 90}
PTX = """.version 8.2
.visible .entry head(
\t.param .u64 .ptr .global .align 16 head_param_0,
\t.param .u32 head_param_1,
\t.param .u64 .ptr .global .align 1 head_param_2,
\t.param .u64 .ptr .global .align 1 head_param_3
)
.reqntid 128
{
\tld.param.u64 %rd1, [head_param_0];
\tld.param.u32 %r1, [head_param_1];
}
"""


@pytest.fixture
def fake_compiler(monkeypatch, tmp_path):
    """Counts compilations and answers at once; the cache lies in ``tmp_path``."""
    calls = []

    def compile_(variant):
        calls.append(variant)
        facts = {"registers": 64, "stack_bytes": 0, "spill_bytes": 0, "shared_bytes": 1024, "entry": "head"}
        return Binary(f"ptx {variant.stem}".encode(), f"cubin {variant.stem}".encode(), facts)

    monkeypatch.setattr(aot, "compile_variant", compile_)
    monkeypatch.setattr(aot, "triton_version", lambda: "3.8.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return calls


def test_scratch_parameters_are_dropped_unless_read():
    """Planted mistake: a parameter that the body reads dropped as well."""
    kept = drop_scratch(PTX, 2)
    assert re.findall(r"head_param_\d", kept.split(")")[0]) == ["head_param_0", "head_param_1"]
    assert kept.split(")")[1:] == PTX.split(")")[1:]
    with pytest.raises(CheckFailed, match="reads its scratch parameter head_param_1"):
        drop_scratch(PTX, 1)
    with pytest.raises(CheckFailed, match="takes 4 parameters, 5 were"):
        drop_scratch(PTX, 5)


def test_a_second_build_compiles_nothing(fake_compiler, run_hpedge):
    """Planted mistake: the dtype left out of the cache's key."""
    code, out, err = run_hpedge("kernels", "build", "--out", "built")
    assert code == 0, err
    assert out.splitlines()[-1] == "8 compiled, 0 from the cache; written to built"
    assert run_hpedge("kernels", "build", "--out", "other")[1].splitlines()[-1].startswith("0 compiled, 8 from")
    assert len(fake_compiler) == 8
    for change in (("--dtype", "bf16"), ("--width", "768"), ("--patches", "576"), ("--patch-scores",)):
        report = json.loads(run_hpedge("kernels", "build", "--target", "sm_87", "--out", "third", "--json", *change)[1])
        assert (report["compiled"], report["cached"]) == (1, 0), change
    # N = 49 is served by another row of the launch table, N = 150 by the row of 196.
    assert json.loads(run_hpedge("kernels", "build", "--patches", "150", "--out", "third", "--json")[1])["cached"] == 8


def test_a_damaged_cache_entry_is_compiled_again(fake_compiler, tmp_path):
    """Planted mistake: the cubin's hash not compared."""
    build = {"targets": "sm_87", "dtype": "fp16", "width": 512, "patches": 196, "out": tmp_path / "built"}
    aot.build(**build)
    (cubin,) = aot.cache_folder().glob("*/head.cubin")
    intact = cubin.read_bytes()
    for damage in (lambda: cubin.write_bytes(b"damaged"), cubin.unlink, lambda: (cubin.parent / "facts.json").unlink()):
        damage()
        assert aot.build(**build).compiled == 1
        assert cubin.read_bytes() == intact
    assert aot.build(**build).cached == 1


def test_source_and_compiler_are_part_of_the_key(fake_compiler, monkeypatch, tmp_path):
    """Planted mistake: triton's version left out of the key."""
    build = {"targets": "sm_87", "dtype": "fp16", "width": 512, "patches": 196, "out": tmp_path / "built"}
    assert aot.build(**build).compiled == 1
    monkeypatch.setattr(aot, "triton_version", lambda: "3.9.0")
    assert aot.build(**build).compiled == 1
    for i, source in enumerate(aot.SOURCES):
        changed = tmp_path / source.name
        changed.write_bytes(source.read_bytes() + b"\n")
        monkeypatch.setattr(aot, "SOURCES", (*aot.SOURCES[:i], changed, *aot.SOURCES[i + 1 :]))
        assert aot.build(**build).compiled == 1
        assert aot.build(**build).compiled == 0


def test_manifest_describes_the_files(fake_compiler, run_hpedge, tmp_path):
    """Planted mistake: the cubin's hash written for the PTX."""
    code, out, _ = run_hpedge("kernels", "build", "--out", "built", "--patches", "576", "--patch-scores", "--json")
    assert code == 0
    manifest = json.loads((tmp_path / "built" / "manifest.json").read_text())
    assert json.loads(out)["manifest"] == manifest
    assert manifest["source_sha256"] == hashlib.sha256(b"".join(path.read_bytes() for path in aot.SOURCES)).hexdigest()
    assert [kernel["target"] for kernel in manifest["kernels"]] == [target.name for target in TARGETS]
    for kernel in manifest["kernels"]:
        for kind in ("ptx", "cubin"):
            data = (tmp_path / "built" / kernel[kind]["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == kernel[kind]["sha256"]
            assert len(data) == kernel[kind]["bytes"]
        launch = kernel["launch"]
        assert launch["grid"] == ["ceil(C / 16)", "B", "1"] and launch["block"] == [256, 1, 1]
        assert [(argument["name"], argument["type"]) for argument in launch["arguments"]] == [
            ("cls_ptr", "*fp16"),
            ("patches_ptr", "*fp16"),
            ("text_global_ptr", "*fp16"),
            ("text_local_ptr", "*fp16"),
            ("n_patches", "i32"),
            ("n_classes", "i32"),
            ("k", "i32"),
            ("alpha_bits", "i32"),
            ("scores_ptr", "*fp32"),
            ("patch_scores_ptr", "*fp32"),
        ]


MISTAKES = {
    "target": (["--target", "sm_75"], 2, "--target 'sm_75' is not one of all, sm_80"),
    "no target": (["--target", ","], 2, "--target ',' is not one of all"),
    "patches": (["--patches", "1025"], 2, "--patches must be 1 to 1,024, got 1,025"),
    "no patches": (["--patches", "0"], 2, "--patches must be 1 to 1,024, got 0"),
    "width": (["--width", "0"], 2, "--width must be at least 1, got 0"),
    "dtype": (["--dtype", "int8"], 2, "--dtype 'int8' is not one of fp16, bf16, fp32"),
    "out": (["--out", "file/built"], 4, "file/built cannot be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(fake_compiler, run_hpedge, tmp_path, name):
    """Planted mistake: the folder tried only after compiling."""
    (tmp_path / "file").touch()
    arguments, expected, message = MISTAKES[name]
    code, out, err = run_hpedge("kernels", "build", *arguments)
    assert (code, out) == (expected, "")
    assert message in err and err.count("\n") == 1
    assert fake_compiler == []


def test_without_triton_the_extra_is_named(run_hpedge, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(aot, "version", lambda name: (_ for _ in ()).throw(aot.PackageNotFoundError(name)))
    code, _, err = run_hpedge("kernels", "build")
    assert code == 4 and "pip install 'hpdval-edge[export]'" in err


def test_a_triton_that_does_not_know_the_chip_is_named(fake_compiler, monkeypatch, tmp_path):
    monkeypatch.setattr(aot, "triton_version", lambda: "3.6.0")
    with pytest.raises(MissingDependency, match=r"sm_110 needs triton 3\.7 or newer and 3\.6\.0 is installed"):
        aot.build(targets="all", dtype="fp16", width=512, patches=196, out=tmp_path)


def test_a_triton_too_old_for_the_launch_is_named(fake_compiler, monkeypatch, tmp_path):
    monkeypatch.setattr(aot, "triton_version", lambda: "3.7.1")
    with pytest.raises(MissingDependency, match=r"fp32 with 1,024 patches needs triton 3\.8 or newer and 3\.7\.1 is"):
        aot.build(targets="all", dtype="fp32", width=512, patches=1024, out=tmp_path)
    assert not fake_compiler


def test_under_the_interpreter_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(aot.UsageError, match="unset it"):
        compile_variant(Variant(TARGETS[0], "fp16", 512, 196))


def test_an_export_puts_them_into_the_bundle(fake_compiler, run_hpedge, tiny_run, tmp_path, monkeypatch):
    """Planted mistakes: files in folders left out of the bundle's sha256; N taken for the side of the grid."""
    monkeypatch.chdir(tiny_run)
    out = tmp_path / "birds.hpedge"
    code, stdout, _ = run_hpedge("export", "tiny", "--fp16", "--target", "sm_87,sm_110", "--out", out)
    assert code == 0
    assert "GPU kernels for sm_87, sm_110 are inside, compiled and not run" in stdout
    manifest = load_bundle(out).manifest
    assert {(v.dtype, v.width, v.patches) for v in fake_compiler} == {
        ("fp16", manifest.embed_dim, manifest.grid[0] * manifest.grid[1])
    }
    packed = tmp_path / "packed.hpedge"
    Path(shutil.make_archive(str(packed), "zip", tmp_path, out.name)).rename(packed)
    assert kernel_chips(load_bundle(packed)) == ("sm_87", "sm_110")
    (cubin,) = (out / "kernels").glob("*sm87*.cubin")
    cubin.write_bytes(b"another")
    with pytest.raises(BadData, match=f"kernels/{cubin.name} was altered"):
        load_bundle(out)


@pytest.mark.parametrize(
    ("target", "installed", "expected", "words"),
    [
        ("sm_86,sm_75", "3.8.0", 2, "--target 'sm_75' is not one of"),
        ("sm_110", "3.6.0", 4, "sm_110 needs triton 3.7 or newer"),
    ],
)
def test_an_export_refuses_chips_at_once(
    fake_compiler, run_hpedge, tiny_run, tmp_path, monkeypatch, target, installed, expected, words
):
    """Planted mistake: the chips looked at after the model is loaded."""
    monkeypatch.chdir(tiny_run)
    monkeypatch.setattr(aot, "triton_version", lambda: installed)
    monkeypatch.setattr("hpdval_edge.export.export.load_model", lambda _: pytest.fail("too late"))
    code, _, stderr = run_hpedge("export", "tiny", "--target", target, "--out", tmp_path / "birds.hpedge")
    assert code == expected
    assert words in stderr
    assert not list(tmp_path.glob("*.hpedge"))


def test_an_export_with_too_many_patches_for_the_kernels_says_so(
    fake_compiler, run_hpedge, tiny_run, tmp_path, monkeypatch
):
    """Planted mistake: left to `hpedge kernels build`, which speaks of its own option."""
    monkeypatch.chdir(tiny_run)
    monkeypatch.setattr("hpdval_edge.export.export.MAX_PATCHES", 15)
    code, _, stderr = run_hpedge("export", "tiny", "--target", "sm_87", "--out", tmp_path / "birds.hpedge")
    assert code == 2
    assert "the GPU kernels take at most 15 patches and this model has 16." in stderr


def test_targets_are_found_once_each_in_the_order_given():
    assert [target.name for target in find_targets("sm_110, sm_87,sm_110")] == ["sm_110", "sm_87"]
    assert find_targets("all") == TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_ptx_is_old_enough_for_the_jetpack(target):
    assert target.ptx <= JETPACK_READS.get(target.name, 90)


def test_no_binary_is_bound_to_a_number_of_classes():
    """C is a run-time scalar: neither a field of a variant nor a constant of a launch."""
    assert {field.name for field in fields(Variant)} == {"target", "dtype", "width", "patches", "patch_scores"}
    assert "n_classes" in aot_compile.SCALARS
    assert set(TABLE[2][0].constants) == {"BLOCK_C", "BLOCK_N", "TAIL_N", "BLOCK_E"}


def sass(cubin: bytes, folder: Path) -> list[str]:
    """Instruction names of a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = folder / "head.cubin"
    file.write_bytes(cubin)
    text = subprocess.run([tool, "-sass", file], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)", text, re.MULTILINE)


def every_target():
    for target in TARGETS:
        for dtype, patches in (("fp16", 196), ("fp16", 576), ("fp16", 1024), ("fp32", 196), ("fp32", 1024)):
            yield Variant(target, dtype, 512, patches)


def every_row():
    orin = find_targets("sm_87")[0]
    for dtype, (_, size) in DTYPES.items():
        for row in TABLE[size]:
            yield Variant(orin, dtype, 512, row.patches)
    yield Variant(orin, "fp16", 770, 196)
    yield Variant(orin, "fp16", 512, 196, patch_scores=True)


@pytest.mark.slow
@NEEDS_TRITON
@pytest.mark.parametrize(
    "variant", dict.fromkeys([*every_target(), *every_row()]), ids=lambda variant: variant.stem.removeprefix("head_")
)
def test_budgets(variant, tmp_path):
    """No spills, at most 48 KB of shared memory, tensor cores for 16-bit inputs, no scratch, the driver's PTX.

    Seen to fail on launches that spilled: 16 warps for 768 patches on sm_87, one tile of 1,024 on sm_100 (float32).
    """
    binary = compile_variant(variant)
    assert binary.facts["spill_bytes"] == 0
    assert binary.facts["shared_bytes"] <= SHARED_LIMIT
    ptx = binary.ptx.decode()
    parameters = re.search(r"\.entry \w+\(([^)]*)\)", ptx).group(1)
    assert parameters.count(".param") == len(variant.arguments())
    assert f".version {variant.target.ptx_version}" in ptx
    assert ".file" not in ptx, "paths of the machine that compiled it"
    assert re.search(rf"\.reqntid {32 * variant.launch.warps}\b", ptx)
    instructions = set(sass(binary.cubin, tmp_path))
    assert ("HMMA" in instructions) == (variant.dtype != "fp32")
    assert not instructions & {"LDL", "STL"}, "local memory"
