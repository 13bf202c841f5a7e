"""Folders for Triton and DeepStream: their models in ONNX Runtime, their configurations against the servers' schemas.

No server runs here. Triton's schema is the one in its own client package; DeepStream's is the table below.
"""

import importlib.metadata
import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from PIL import Image

from hpdval_edge.bundle import load_bundle, sha256
from hpdval_edge.errors import CheckFailed, UsageError
from hpdval_edge.export import export as module
from hpdval_edge.export import served_model, serving
from hpdval_edge.export.deployed import Deployed
from hpdval_edge.export.graph import write_onnx
from hpdval_edge.images import model_input
from hpdval_edge.predictor import Predictor
from hpdval_edge.runtimes import EngineOptions, load_engine
from hpdval_edge.training.model import load_model
from hpdval_edge.training.run_folder import find_run

TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
}

# What nvinferserver's configuration may hold, of it the messages in use; * is repeated. From the classes of namespace
# nvdsinferserver::config in docs.nvidia.com/metropolis/deepstream/dev-guide/sdk-api, DeepStream 9.2.
DEEPSTREAM = {
    "PluginControl": "infer_config:InferenceConfig input_control:InputControl output_control:OutputControl",
    "InferenceConfig": "unique_id:uint32 gpu_ids:int32* max_batch_size:uint32 backend:BackendParams "
    "preprocess:PreProcessParams postprocess:PostProcessParams",
    "BackendParams": "inputs:InputLayer* outputs:OutputLayer* output_mem_type:MemoryType triton:TritonParams",
    "InputLayer": "name:string dims:int32* data_type:TensorDataType",
    "OutputLayer": "name:string",
    "TritonParams": "model_name:string version:int64 model_repo:TritonModelRepo",
    "TritonModelRepo": "root:string* log_level:uint32 strict_model_config:bool",
    "PreProcessParams": "network_format:MediaFormat tensor_order:TensorOrder tensor_name:string "
    "maintain_aspect_ratio:int32 frame_scaling_hw:FrameScalingHW frame_scaling_filter:uint32 normalize:ScaleNormalize",
    "ScaleNormalize": "scale_factor:float channel_offsets:float* mean_file:string",
    "PostProcessParams": "labelfile_path:string other:OtherNetworkParams",
    "OtherNetworkParams": "type_name:string",
    "InputControl": "process_mode:ProcessMode operate_on_gie_id:int32 interval:uint32",
    "OutputControl": "output_tensor_meta:bool",
}
DEEPSTREAM_ENUMS = {
    "MemoryType": "MEMORY_TYPE_DEFAULT MEMORY_TYPE_CPU MEMORY_TYPE_GPU",
    "TensorDataType": "TENSOR_DT_NONE TENSOR_DT_FP32 TENSOR_DT_FP16 TENSOR_DT_INT8 TENSOR_DT_UINT8",
    "MediaFormat": "MEDIA_FORMAT_NONE IMAGE_FORMAT_RGB IMAGE_FORMAT_BGR IMAGE_FORMAT_GRAY",
    "TensorOrder": "TENSOR_ORDER_NONE TENSOR_ORDER_LINEAR TENSOR_ORDER_NHWC",
    "FrameScalingHW": "FRAME_SCALING_HW_DEFAULT FRAME_SCALING_HW_GPU FRAME_SCALING_HW_VIC",
    "ProcessMode": "PROCESS_MODE_NONE PROCESS_MODE_FULL_FRAME PROCESS_MODE_CLIP_OBJECTS",
}


def deepstream_message():
    """An empty PluginControl made of the tables; parsing refuses what is not in them."""
    file = descriptor_pb2.FileDescriptorProto(name="deepstream_tables.proto", package="tables", syntax="proto3")
    for name, values in DEEPSTREAM_ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values.split()):
            enum.value.add(name=value, number=number)
    for name, fields in DEEPSTREAM.items():
        message = file.message_type.add(name=name)
        for number, entry in enumerate(fields.split(), start=1):
            key, kind = entry.split(":")
            field = message.field.add(name=key, number=number, label=3 if kind.endswith("*") else 1)
            kind = kind.rstrip("*")
            if kind in DEEPSTREAM or kind in DEEPSTREAM_ENUMS:
                field.type, field.type_name = (11 if kind in DEEPSTREAM else 14), f".tables.{kind}"
            else:
                field.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tables.PluginControl"))()


@pytest.fixture(scope="module")
def model_config():
    """Parse the text of a config.pbtxt as Triton does.

    The schema's module is loaded by its path: importing its package would need grpcio, and protobuf below 7.
    """
    try:
        package = importlib.metadata.distribution("tritonclient")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no tritonclient, which holds Triton's schema: pip install 'hpdval-edge[dev]'")
    path = package.locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return lambda path: text_format.Parse(path.read_text(), schema.ModelConfig())


@pytest.fixture(scope="module")
def served(tiny_bundle, tmp_path_factory):
    """A copy of the tiny bundle with both folders beside it."""
    path = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("served") / "birds.hpedge")
    for target in serving.TARGETS:
        serving.write(load_bundle(path), target, 2e-3)
    return path


@pytest.fixture(scope="module")
def repository(served):
    return served.parent / "birds.triton-repo"


@pytest.fixture(scope="module")
def deepstream(served):
    return served.parent / "birds.deepstream"


def session(model):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def odd_pictures(tiny):
    """The tiny project's pictures and noise, of many sizes."""
    rng = np.random.default_rng(0)
    pictures = [np.asarray(Image.open(path)) for path in sorted((tiny / "test").glob("*.png"))[:4]]
    stretched = [np.asarray(Image.fromarray(pictures[0]).resize(size)) for size in ((75, 41), (33, 120), (640, 481))]
    return [*pictures, *stretched, rng.integers(0, 256, (71, 50, 3), dtype=np.uint8)]


def test_the_ensemble_by_hand_scores_as_the_predictor(repository, served, tiny):
    """Planted mistakes: labels in another order, patches in another."""
    predictor = Predictor(served)
    first = session(repository / "tiny_preprocess" / "1" / "model.onnx")
    second = session(repository / "tiny_recogniser" / "1" / "model.onnx")
    for picture in odd_pictures(tiny):
        image = first.run(["image"], {"picture": picture})[0]
        scores, patch_scores = second.run(["scores", "patch_scores"], {"image": image})
        expected = predictor(picture)
        np.testing.assert_allclose(scores[0], expected.scores, atol=2e-3)
        np.testing.assert_allclose(patch_scores[0].reshape(4, 4, 4), expected.patch_scores, atol=5e-3)


def test_the_recogniser_takes_batches_and_only_pictures(repository):
    """Planted mistake: the two banks left as inputs."""
    model = session(repository / "tiny_recogniser" / "1" / "model.onnx")
    assert [value.name for value in model.get_inputs()] == ["image"]
    images = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    together = model.run(["scores"], {"image": images})[0]
    alone = np.concatenate([model.run(["scores"], {"image": image[None]})[0] for image in images])
    np.testing.assert_allclose(together, alone, atol=2e-3)


def shapes_of(path):
    """(inputs, outputs) of an ONNX file: name -> (Triton's type name, dims with -1 for what varies)."""
    graph = onnx.load(path).graph
    return [
        {
            value.name: (
                TYPES[value.type.tensor_type.elem_type],
                [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        }
        for values in (graph.input, graph.output)
    ]


def shapes_in(values, batches):
    """The same of a configuration's tensors, with the batch that it leaves unsaid."""
    kinds = type(values[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return {v.name: (kinds[v.data_type].name, [*([-1] if batches else []), *v.dims]) for v in values}


def test_triton_configurations_are_those_of_the_models(repository, deepstream, model_config):
    """Planted mistakes: TYPE_FP16 for scores, dims with the batch, banks that are inputs as well as constants."""
    folders = [
        repository / "tiny_preprocess",
        repository / "tiny_recogniser",
        deepstream / "models" / "tiny_recogniser",
    ]
    for folder in folders:
        config = model_config(folder / "config.pbtxt")
        assert (config.name, config.platform) == (folder.name, "onnxruntime_onnx")
        given, made = shapes_of(folder / "1" / "model.onnx")
        batches = config.max_batch_size > 0
        assert batches == config.HasField("dynamic_batching") == (folder.name != "tiny_preprocess")
        assert shapes_in(config.input, batches) == given
        assert shapes_in(config.output, batches) == made
        assert len(config.instance_group) == 1
        for sample in config.model_warmup:
            assert sample.inputs.keys() == given.keys()
            assert 1 <= sample.batch_size <= max(config.max_batch_size, 1)
            for value in config.input:
                tensor = sample.inputs[value.name]
                assert tensor.data_type == value.data_type
                assert all(b in (a, -1) for a, b in zip(tensor.dims, value.dims, strict=True))


def test_the_tensorrt_configuration_differs_in_the_engine_only(repository, model_config):
    """Planted mistakes: another largest batch, an engine on the CPU."""
    config = model_config(repository / "tiny_recogniser" / "config.pbtxt")
    other = model_config(repository / "tiny_recogniser" / "configs" / "tensorrt.pbtxt")
    assert other.platform == "tensorrt_plan"
    assert other.instance_group[0].kind == other.instance_group[0].KIND_GPU
    other.platform, other.instance_group[0].kind = config.platform, config.instance_group[0].kind
    assert other == config


def test_the_ensemble_fits_its_models(repository, served, model_config):
    """Planted mistakes: an output of a step left out, dims without the 1 that the preprocessing gives."""
    ensemble = model_config(repository / "tiny" / "config.pbtxt")
    assert (ensemble.name, ensemble.platform, ensemble.max_batch_size) == ("tiny", "ensemble", 0)
    assert not ensemble.instance_group
    assert not ensemble.model_warmup
    assert (repository / "tiny" / "1").is_dir()
    known = shapes_in(ensemble.input, False)
    for step in ensemble.ensemble_scheduling.step:
        model = model_config(repository / step.model_name / "config.pbtxt")
        given, made = (shapes_in(values, model.max_batch_size > 0) for values in (model.input, model.output))
        assert step.input_map.keys() == given.keys()
        for name, source in step.input_map.items():
            kind, dims = known[source]
            assert kind == given[name][0]
            # Triton's rule between models with and without batches: -1 fits every size.
            assert all(a == b or -1 in (a, b) for a, b in zip(dims, given[name][1], strict=True))
        known |= {step.output_map[name]: made[name] for name in step.output_map}
    for name, (kind, dims) in shapes_in(ensemble.output, False).items():
        assert kind == known[name][0]
        assert dims == [1, *known[name][1][1:]]
    bundle = load_bundle(served)
    facts = json.loads(ensemble.parameters["hpedge"].string_value)
    assert facts["labels"] == list(bundle.manifest.labels)
    assert np.array_equal(np.float32(facts["thresholds"]), bundle.thresholds)
    assert facts["logit_scale"] == bundle.manifest.logit_scale
    for folder in (repository / "tiny", repository / "tiny_recogniser"):
        config = model_config(folder / "config.pbtxt")
        names = [output.label_filename for output in config.output if output.label_filename]
        assert [(folder / name).read_text().splitlines() for name in names] == [list(bundle.manifest.labels)]


def test_deepstream_configuration_fits_the_tables_and_the_model(deepstream, served):
    """Planted mistakes: a misspelt key, a scale factor of 1/255, the name of an input that the model does not have."""
    config = text_format.Parse((deepstream / "nvinferserver.txt").read_text(), deepstream_message())
    infer = config.infer_config
    repo = deepstream / infer.backend.triton.model_repo.root[0]
    given, made = shapes_of(repo / infer.backend.triton.model_name / "1" / "model.onnx")
    tensor = infer.backend.inputs[0]
    assert {tensor.name: ("TYPE_FP32", [-1, *tensor.dims])} == given
    assert {output.name for output in infer.backend.outputs} == made.keys()
    assert infer.preprocess.tensor_name == tensor.name
    assert infer.preprocess.normalize.scale_factor == 1
    assert list(infer.preprocess.normalize.channel_offsets) == [0, 0, 0]
    assert infer.max_batch_size <= serving.MAX_BATCH
    assert config.output_control.output_tensor_meta
    assert json.loads((deepstream / "labels.json").read_text())["labels"] == list(load_bundle(served).manifest.labels)
    with pytest.raises(text_format.ParseError, match="no field named"):
        text_format.Parse("infer_config { batch_size: 4 }", deepstream_message())


def test_the_deepstream_model_normalises_levels_itself(deepstream, served):
    """Planted mistake: one factor for all channels."""
    bundle = load_bundle(served)
    images, _ = bundle.golden()
    model = session(deepstream / "models" / "tiny_recogniser" / "1" / "model.onnx")
    scores = model.run(["scores"], {"pixels": images.transpose(0, 3, 1, 2).astype(np.float32)})[0]
    manifest = bundle.manifest
    prepared = model_input(images, manifest.image_size, manifest.mean, manifest.std, manifest.input)
    # The exported head: the compiled one rounds otherwise behind an encoder in float16.
    expected = load_engine(bundle, "onnxruntime", EngineOptions(head="graph"))(prepared)[0]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_trtexec_lines_name_every_input_with_a_shape_that_fits(repository, deepstream, served):
    """Planted mistake: the bundle's own model without its text banks."""
    recogniser = repository / "tiny_recogniser" / "1" / "model.onnx"
    models = [recogniser, served / "model.onnx", deepstream / "models" / "tiny_recogniser" / "1" / "model.onnx"]
    texts = "".join((folder / serving.README).read_text() for folder in (repository, deepstream))
    commands = re.findall(r"trtexec (--onnx.*(?:(?<=\\)\n.*)*)", texts)
    assert len(commands) == len(models)
    for model, command in zip(models, commands, strict=True):
        given, _ = shapes_of(model)
        for bound in ("min", "opt", "max"):
            shapes = dict(part.split(":") for part in re.search(rf"--{bound}Shapes=(\S+)", command)[1].split(","))
            assert shapes.keys() == given.keys()
            for name, shape in shapes.items():
                sizes = [int(size) for size in shape.split("x")]
                assert all(a == b or b == -1 for a, b in zip(sizes, given[name][1], strict=True))


def test_export_leaves_the_bundle_as_it_is_without_servers(tiny_run, tmp_path, monkeypatch):
    """Planted mistakes: the repository inside the bundle, server targets handed to the engines."""
    monkeypatch.chdir(shutil.copytree(tiny_run, tmp_path / "work"))
    out = tmp_path / "birds.hpedge"
    report = module.export(find_run("tiny"), precision="fp32", targets=("deepstream", "triton-repo"), out=out)
    assert report.served == {name: str(tmp_path / f"birds.{name}") for name in ("deepstream", "triton-repo")}
    assert report.max_error.keys() == report.label_flips.keys() == {"onnx", "deepstream", "triton-repo"}
    assert max(report.max_error.values()) < 1e-5
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {*load_bundle(out).manifest.files, "manifest.json"}
    assert "model.pt2" not in files
    assert all(Path(folder).is_dir() for folder in report.served.values())


def test_the_command_says_where_and_that_no_server_ran(tiny_run, monkeypatch, run_hpedge):
    """Planted mistake: no folder in --json."""
    monkeypatch.chdir(tiny_run)
    errors = {"onnx": 1e-4, "triton-repo": 2e-4}
    folders = {"triton-repo": "runs/tiny/model.triton-repo"}
    report = module.ExportReport(Path("a.hpedge"), "fp16", errors, dict.fromkeys(errors, 0), 16, 1.0, served=folders)
    monkeypatch.setattr(module, "export", lambda run, **options: report)
    code, out, err = run_hpedge("export", "tiny", "--to", "triton-repo")
    assert code == 0, err
    assert "triton-repo fp16: max |score difference| 2.0e-04" in out
    assert "triton-repo runs/tiny/model.triton-repo/ is written, not run in that server" in out
    _, out, _ = run_hpedge("export", "tiny", "--to", "triton-repo", "--json")
    assert json.loads(out)["served"] == folders


def test_a_foreign_folder_is_refused_before_anything_runs(tiny_run, tmp_path, monkeypatch):
    """Planted mistake: replace whatever has the name."""
    monkeypatch.chdir(tiny_run)
    (tmp_path / "birds.triton-repo").mkdir()
    (tmp_path / "birds.triton-repo" / "README.md").write_text("# my own\n")
    with pytest.raises(UsageError, match=r"birds\.triton-repo exists and was not written by --to triton-repo"):
        module.export(find_run("tiny"), precision="fp32", targets=("triton-repo",), out=tmp_path / "birds.hpedge")
    assert not (tmp_path / "birds.hpedge").exists()


def test_models_that_score_otherwise_are_refused_and_the_old_folder_stays(tiny_bundle, tmp_path, monkeypatch):
    """Planted mistake: compare with the served model itself."""
    bundle = load_bundle(shutil.copytree(tiny_bundle, tmp_path / "birds.hpedge"))
    serving.write(bundle, "triton-repo", 2e-3)
    model = tmp_path / "birds.triton-repo" / "tiny_recogniser" / "1" / "model.onnx"
    before = model.read_bytes()
    monkeypatch.setattr(serving, "served_model", wrong_model)
    with pytest.raises(CheckFailed, match=r"models of triton-repo differ from float32 PyTorch by .* was not written"):
        serving.write(bundle, "triton-repo", 2e-3)
    assert model.read_bytes() == before
    assert not list(tmp_path.glob(".*partial"))


def wrong_model(bundle):
    """The served model with its labels in reverse."""
    turned = replace(bundle, text_global=bundle.text_global[::-1], text_local=bundle.text_local[::-1])
    return served_model.served_model(turned)


@pytest.mark.parametrize(
    ("kind", "tensor"), [("float16", "TYPE_FP16 dims: [ 3, 32, 32 ]"), ("uint8", "TYPE_UINT8 dims: [ 32, 32, 3 ]")]
)
def test_what_the_model_takes_decides(tiny_run, tiny_bundle, tmp_path, kind, tensor):
    """Planted mistakes: TYPE_FP32 whatever the model takes, levels handed over with the channels first."""
    bundle = load_bundle(shutil.copytree(tiny_bundle, tmp_path / "birds.hpedge"))
    model, _, _ = load_model(tiny_run / "runs" / "tiny" / "weights" / "best.safetensors")
    path = bundle.path / "model.onnx"
    write_onnx(Deployed(model, half=True, image_dtype=kind), path, image_size=32, embed_dim=24)
    files = {**bundle.manifest.files, "model.onnx": sha256(path.read_bytes())}
    bundle = replace(bundle, manifest=replace(bundle.manifest, input=kind, files=files))
    for target in serving.TARGETS:
        assert serving.write(bundle, target, 2e-3).max_error <= 2e-3
    config = (tmp_path / "birds.triton-repo" / "tiny_recogniser" / "config.pbtxt").read_text()
    assert f'name: "image" data_type: {tensor}' in config
    assert shapes_of(tmp_path / "birds.triton-repo" / "tiny_recogniser" / "1" / "model.onnx")[0].keys() == {"image"}
