"""Fold batch norms into the convolutions before them: in float32, before anything is rounded to float16."""

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

# Exactly these: a convolution that changes its own weights on the way, as StdConv2d does, must keep its norm.
PLAIN = (nn.Conv2d, Conv2dSame)


@torch.no_grad()
def fold_batch_norms(encoder: nn.Module, image: Tensor) -> int:
    """Scale and shift convolutions in place so that the norms after them become identities.

    Args:
        encoder: float32, in eval mode.
        image: float32 [1, 3, S, S]; one forward pass finds which norm reads which convolution's output.

    Returns:
        How many norms were folded.
    """
    pairs = _pairs(encoder, image)
    for convolution, norm in pairs:
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = torch.zeros_like(norm.bias) if convolution.bias is None else convolution.bias
        convolution.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
        convolution.weight.mul_(scale.view(-1, 1, 1, 1))
        for value, tensor in ((1, norm.weight), (0, norm.bias), (0, norm.running_mean), (1, norm.running_var)):
            tensor.fill_(value)
        norm.eps = 0.0
    return len(pairs)


def _pairs(encoder: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    # The tensors are kept as well, so that none of their ids is given to another while we look.
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs = []

    def after_convolution(module: nn.Conv2d, _inputs: tuple, output: Tensor) -> None:
        made[id(output)] = (module, output)

    def before_norm(module: nn.BatchNorm2d, inputs: tuple) -> None:
        if id(inputs[0]) in made and module.affine and module.track_running_stats:
            pairs.append((made[id(inputs[0])][0], module))

    hooks = [m.register_forward_hook(after_convolution) for m in encoder.modules() if type(m) in PLAIN]
    hooks += [m.register_forward_pre_hook(before_norm) for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        encoder.forward_features(image)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs
