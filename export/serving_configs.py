"""Texts of the configuration files for Triton Inference Server and DeepStream.

Field names are those of ModelConfig (github.com/triton-inference-server/common, protobuf/model_config.proto) and of
nvinferserver's PluginControl (docs.nvidia.com/metropolis/deepstream, Gst-nvinferserver).
"""

from string import Template

PREPROCESS = Template("""\
# uint8 [H, W, 3] RGB of any size -> $type_name [1, $dims]. Pictures of several sizes cannot share a batch,
# so each is a request of its own; the recogniser behind it batches.
name: "$name"
platform: "onnxruntime_onnx"
max_batch_size: 0
input [ { name: "picture" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] } ]
output [ { name: "image" data_type: $type_name dims: [ 1, $dims ] } ]
# One thread for each instance; more instances take more pictures at once.
instance_group [ { kind: KIND_CPU count: 2 } ]
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
model_warmup [
  {
    name: "a picture"
    batch_size: 1
    inputs { key: "picture" value { data_type: TYPE_UINT8 dims: [ 480, 640, 3 ] random_data: true } }
  }
]
""")

RECOGNISER = Template("""\
name: "$name"
platform: "$platform"
max_batch_size: $max_batch
input [ { name: "$input" data_type: $type_name dims: [ $dims ] } ]
output [
  { name: "scores" data_type: TYPE_FP32 dims: [ $classes ] label_filename: "labels.txt" },
  { name: "patch_scores" data_type: TYPE_FP32 dims: [ $patches, $classes ] }
]
# Requests that wait are put together; max_queue_delay_microseconds in here would make them wait for more.
dynamic_batching { }
instance_group [ { kind: $kind count: 1 } ]
model_warmup [
  {
    name: "one image"
    batch_size: 1
    inputs { key: "$input" value { data_type: $type_name dims: [ $dims ] zero_data: true } }
  },
  {
    name: "a full batch"
    batch_size: $max_batch
    inputs { key: "$input" value { data_type: $type_name dims: [ $dims ] zero_data: true } }
  }
]
""")

ENSEMBLE = Template("""\
# A picture in, its scores out: one picture a request, see $preprocess.
name: "$name"
platform: "ensemble"
max_batch_size: 0
input [ { name: "picture" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] } ]
output [
  { name: "scores" data_type: TYPE_FP32 dims: [ 1, $classes ] label_filename: "labels.txt" },
  { name: "patch_scores" data_type: TYPE_FP32 dims: [ 1, $patches, $classes ] }
]
ensemble_scheduling {
  step [
    {
      model_name: "$preprocess"
      model_version: -1
      input_map { key: "picture" value: "picture" }
      output_map { key: "image" value: "image" }
    },
    {
      model_name: "$recogniser"
      model_version: -1
      input_map { key: "image" value: "image" }
      output_map { key: "scores" value: "scores" }
      output_map { key: "patch_scores" value: "patch_scores" }
    }
  ]
}
# JSON: labels, the score from which each is chosen, and what makes probabilities of scores.
parameters { key: "hpedge" value { string_value: $labels } }
""")

DEEPSTREAM = Template("""\
# Gst-nvinferserver: whole frames to the model in models/, its scores as tensors in each frame's metadata.
infer_config {
  unique_id: 1
  gpu_ids: [ 0 ]
  max_batch_size: $max_batch
  backend {
    inputs [ { name: "pixels" dims: [ $dims ] data_type: TENSOR_DT_FP32 } ]
    outputs [ { name: "scores" }, { name: "patch_scores" } ]
    triton {
      model_name: "$recogniser"
      version: -1
      model_repo { root: "models" strict_model_config: true }
    }
    output_mem_type: MEMORY_TYPE_CPU
  }
  preprocess {
    network_format: IMAGE_FORMAT_RGB
    tensor_order: TENSOR_ORDER_LINEAR
    tensor_name: "pixels"
    # Squashed, as in training; bilinear and not antialiased, unlike there.
    maintain_aspect_ratio: 0
    frame_scaling_hw: FRAME_SCALING_HW_DEFAULT
    frame_scaling_filter: 1
    # Levels stay 0 to 255: the model normalises, since one factor for all channels is all that there is here.
    normalize { scale_factor: 1.0 channel_offsets: [ 0, 0, 0 ] }
  }
  postprocess { other { } }
}
input_control { process_mode: PROCESS_MODE_FULL_FRAME interval: 0 }
output_control { output_tensor_meta: true }
""")

TRITON_README = Template("""\
# $name for Triton Inference Server

Written by `hpedge export --to triton-repo` from $bundle ($precision). Not run in Triton: the two models were run one
after the other in ONNX Runtime, on the bundle's golden pictures.

    docker run --rm --gpus all -p 8000:8000 -v "$$PWD":/models nvcr.io/nvidia/tritonserver:YY.MM-py3 \\
        tritonserver --model-repository=/models

| model | takes | gives |
| --- | --- | --- |
| $name | picture: uint8 [H, W, 3], RGB, any size | scores [1, $classes], patch_scores [1, $patches, $classes] |
| $preprocess | picture | image [1, $dims] |
| $recogniser | image, up to $max_batch of them | scores, patch_scores |

The text banks are inside the recogniser's model.onnx: other labels or thresholds need a new export. Clients get labels
and thresholds from `parameters` in the answer to

    curl localhost:8000/v2/models/$name/config

An engine of TensorRT 10 in place of ONNX Runtime, made with the server's own TensorRT on the GPU that it will run on
(TensorRT 11 is always strongly typed and may not know that option):

    cd $recogniser/1
    trtexec --onnx=model.onnx --saveEngine=model.plan --stronglyTyped --minShapes=image:1x$shape \\
        --optShapes=image:8x$shape --maxShapes=image:${max_batch}x$shape

and `tritonserver --model-repository=/models --model-config-name=tensorrt`, which takes `configs/tensorrt.pbtxt` where a
model has one.

$bundle/model.onnx takes the text banks as inputs; for more labels than these $classes raise --maxShapes:

    trtexec --onnx=model.onnx --saveEngine=model.plan --stronglyTyped \\
        --minShapes=image:1x$shape,text_global:1x$width,text_local:1x$width \\
        --optShapes=image:8x$shape,text_global:${classes}x$width,text_local:${classes}x$width \\
        --maxShapes=image:${max_batch}x$shape,text_global:${classes}x$width,text_local:${classes}x$width
""")

DEEPSTREAM_README = Template("""\
# $name for DeepStream

Written by `hpedge export --to deepstream` from $bundle ($precision). Not run in DeepStream: the model was run in ONNX
Runtime, on the bundle's golden pictures.

    ... ! nvstreammux ... ! nvinferserver config-file-path=nvinferserver.txt ! ...

attaches the tensors scores [$classes] and patch_scores [$patches, $classes] to every frame. labels.json holds the
labels in the order of the scores and the score from which each is chosen. The text banks are inside the model: other
labels or thresholds need a new export.

An engine of TensorRT 10 in place of ONNX Runtime, made on the device (TensorRT 11 is always strongly typed and may not
know that option):

    cd models/$recogniser
    trtexec --onnx=1/model.onnx --saveEngine=1/model.plan --stronglyTyped --minShapes=pixels:1x$shape \\
        --optShapes=pixels:8x$shape --maxShapes=pixels:${max_batch}x$shape
    cp configs/tensorrt.pbtxt config.pbtxt
""")
