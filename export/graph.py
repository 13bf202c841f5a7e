"""ONNX, TorchScript and exported program of the deployed model."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from hpdval_edge.export.deployed import Deployed

OPSET = 20
INPUTS = ("image", "text_global", "text_local")
OUTPUTS = ("scores", "patch_scores")
# Inputs of the head inside the graph, float16 or float32: [B, E] and [B, N, E]. TensorRT's carriers take over there.
BORDER = ("cls", "patches")
# Two of everything that varies: torch.export would fix a size of one into the graph.
EXAMPLE_BATCH, EXAMPLE_CLASSES = 2, 3


def example_inputs(image_dtype: str, image_size: int, embed_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors of the shapes and types the graph takes, seeded."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(EXAMPLE_BATCH, 3, image_size, image_size, generator=generator)
    if image_dtype == "uint8":
        image = (64 * image + 128).clamp(0, 255).permute(0, 2, 3, 1).contiguous()
    return (
        image.to(getattr(torch, image_dtype)),
        torch.randn(EXAMPLE_CLASSES, embed_dim, generator=generator),
        torch.randn(EXAMPLE_CLASSES, embed_dim, generator=generator),
    )


def varying() -> dict[str, dict[int, torch.export.Dim]]:
    """The sizes that the graph leaves open: pictures in a batch, and labels."""
    batch, classes = torch.export.Dim("batch", min=1), torch.export.Dim("classes", min=1)
    return {"image": {0: batch}, "text_global": {0: classes}, "text_local": {0: classes}}


class _WithBorder(nn.Module):
    """The deployed model with the head's inputs as outputs three and four, so that the exporter names them."""

    def __init__(self, model: Deployed) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, text_global: Tensor, text_local: Tensor) -> tuple[Tensor, ...]:
        cls, patches = self.model.embed(image)
        return *self.model.score(cls, patches, text_global, text_local), cls, patches


def write_onnx(model: Deployed, path: Path, *, image_size: int, embed_dim: int) -> None:
    """Write ``path``: opset 20, dynamic batch and dynamic number of classes, weights inside the file.

    The head's inputs are values of the names in `BORDER`.
    """
    with warnings.catch_warnings():
        # The exporter warns about its own internals (deprecated tree specs), nothing a user could act on.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _WithBorder(model),
            example_inputs(model.image_dtype, image_size, embed_dim),
            input_names=INPUTS,
            output_names=(*OUTPUTS, *BORDER),
            dynamic_shapes=varying(),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    # Named; they are no outputs of the model.
    del program.model.graph.outputs[len(OUTPUTS) :]
    program.save(str(path), external_data=False)


def write_torchscript(model: Deployed, path: Path, *, image_size: int, embed_dim: int) -> None:
    """Write ``path`` by tracing; PyTorch deprecates TorchScript, it serves users who already load it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, example_inputs(model.image_dtype, image_size, embed_dim), check_trace=False)
        traced.save(str(path))


def write_pt2(model: Deployed, path: Path, *, image_size: int, embed_dim: int) -> None:
    """Write ``path`` as `torch.export.save` does: dynamic batch and dynamic number of classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            model, example_inputs(model.image_dtype, image_size, embed_dim), dynamic_shapes=varying()
        )
        torch.export.save(program, str(path))
