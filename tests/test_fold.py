"""Batch norms folded into convolutions before an export."""

import pytest
import timm
import torch
from torch import nn

from hpdval_edge.export.fold import fold_batch_norms


def lived(name):
    """An encoder whose norms have seen something: statistics and weights far from their start."""
    torch.manual_seed(0)
    encoder = timm.create_model(name, num_classes=0).eval()
    if hasattr(encoder, "set_input_size"):
        encoder.set_input_size(img_size=64)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return encoder


@pytest.mark.parametrize(
    ("name", "folded"), [("regnetx_002", 44), ("tf_efficientnet_lite0", 49), ("vit_tiny_patch16_224", 0)]
)
def test_folding_changes_no_output(name, folded):
    """Planted mistakes: eps left in the identity, the shift not scaled, a norm after another layer folded."""
    encoder, image = lived(name), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = encoder.forward_features(image)
        assert fold_batch_norms(encoder, image[:1]) == folded
        after = encoder.forward_features(image)
    torch.testing.assert_close(after, before, atol=1e-4 * float(before.abs().max()), rtol=1e-4)


def test_only_a_norm_that_reads_a_plain_convolution_is_folded():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.late = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward_features(self, x):
            return self.late(torch.relu(self.norm(self.first(x))))

    net = Net().eval()
    nn.init.uniform_(net.late.running_var, 2, 3)
    assert fold_batch_norms(net, torch.randn(1, 3, 8, 8)) == 1
    assert net.norm.eps == 0
    assert net.late.running_var.min() >= 2
