"""METHOD 15, rows 1 and 2: the fusion of the views and the choice of patches.

Every check runs on the code and on mistakes planted here, which it must refuse: it is seen to fail in each run.
"""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from hpdval_edge.kernels import dual_view_scores
from hpdval_edge.training.model import DualView


def inputs(seed=0, images=3, patches=196, classes=5, width=16):
    """cls [B,E], patches [B,N,E], text_global and text_local [C,E], float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((images, width), (images, patches, width), (classes, width), (classes, width))
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)


def trained(cls, patches, text_global, text_local, k, alpha):
    """What training computes: float64 in, float64 out."""
    model = DualView(torch.nn.Identity(), text_global, text_local, alpha=alpha, topk=k)
    return model.score(cls, patches, *model.banks())[0]


def released(cls, patches, text_global, text_local, k, alpha):
    """What a bundle computes on a CPU, in float32."""
    arrays = (x.float().numpy() for x in (cls, patches, text_global, text_local))
    return torch.from_numpy(dual_view_scores(*arrays, k=k, alpha=alpha)).double()


def planted(*, global_weight=None, pool=None):
    """A head of its own, right unless told otherwise."""

    def score(cls, patches, text_global, text_local, k, alpha):
        cosines = normalize(patches, dim=-1) @ normalize(text_local, dim=-1).T
        whole = normalize(cls, dim=-1) @ normalize(text_global, dim=-1).T
        share = alpha if global_weight is None else global_weight(alpha)
        best = (pool or top_mean)(cosines, k)
        return share * whole + (1 - share) * best

    return score


def top_mean(cosines, k):
    return cosines.topk(min(k, cosines.shape[1]), dim=1).values.mean(dim=1)


CODE = pytest.mark.parametrize("score", [trained, released, planted()], ids=["training", "runtime", "reference"])


def check_alpha(score):
    """alpha = 1 is s^G whatever the patches, alpha = 0 does not know the class token, 0.4 is 0.4 of the way."""
    cls, patches, text_global, text_local = inputs()
    other_cls, other_patches, *_ = inputs(seed=1)
    whole = score(cls, patches, text_global, text_local, 32, 1.0)
    exact = normalize(cls, dim=1) @ normalize(text_global, dim=1).T
    torch.testing.assert_close(whole, exact, atol=1e-6, rtol=0)
    assert torch.equal(whole, score(cls, other_patches, text_global, text_local, 32, 1.0))
    local = score(cls, patches, text_global, text_local, 32, 0.0)
    assert torch.equal(local, score(other_cls, patches, text_global, text_local, 32, 0.0))
    between = score(cls, patches, text_global, text_local, 32, 0.4)
    torch.testing.assert_close(between, 0.4 * whole + 0.6 * local, atol=1e-6, rtol=0)


@CODE
def test_mistake_01_alpha_on_the_wrong_view(score):
    check_alpha(score)


@pytest.mark.parametrize(
    "weight", [lambda alpha: 1 - alpha, lambda alpha: 0.5, lambda alpha: alpha**2], ids=["local", "ignored", "squared"]
)
def test_mistake_01_is_caught(weight):
    """Planted mistakes: alpha on the local view as in the authors' release, alpha ignored, alpha applied twice."""
    with pytest.raises(AssertionError):
        check_alpha(planted(global_weight=weight))


def check_patches(score):
    """Order of patches and classes, k = 1, k = N, k > N, and float64 means of the k largest for each class."""
    cls, patches, text_global, text_local = inputs()
    cosines = (normalize(patches, dim=-1) @ normalize(text_local, dim=-1).T).numpy()
    ranked = -np.sort(-cosines, axis=1)
    for k in (1, 12, 32, 196, 500):
        found = score(cls, patches, text_global, text_local, k, 0.0)
        np.testing.assert_allclose(found.numpy(), ranked[:, :k].mean(axis=1), atol=1e-6)
    expected = score(cls, patches, text_global, text_local, 32, 0.4)
    generator = torch.Generator().manual_seed(2)
    order = torch.randperm(196, generator=generator)
    shuffled = score(cls, patches[:, order], text_global, text_local, 32, 0.4)
    torch.testing.assert_close(shuffled, expected, atol=1e-6, rtol=0)
    order = torch.randperm(5, generator=generator)
    permuted = score(cls, patches, text_global[order], text_local[order], 32, 0.4)
    torch.testing.assert_close(permuted, expected[:, order], atol=1e-6, rtol=0)


@CODE
def test_mistake_02_other_patches_than_the_k_best_of_each_class(score):
    check_patches(score)


def over_classes(cosines, k):
    kept = cosines.topk(min(k, cosines.shape[2]), dim=2)
    return torch.zeros_like(cosines).scatter(2, kept.indices, kept.values).mean(dim=1)


def one_set(cosines, k):
    chosen = cosines.amax(dim=2).topk(min(k, cosines.shape[1]), dim=1).indices
    return cosines.gather(1, chosen[..., None].expand(-1, -1, cosines.shape[2])).mean(dim=1)


def mean_first(cosines, k):
    return cosines.mean(dim=1)


def smallest(cosines, k):
    return -top_mean(-cosines, k)


def first_patches(cosines, k):
    return cosines[:, :k].mean(dim=1)


def unclamped(cosines, k):
    return cosines.topk(k, dim=1).values.mean(dim=1)


def divided_by_k(cosines, k):
    return cosines.topk(min(k, cosines.shape[1]), dim=1).values.sum(dim=1) / k


@pytest.mark.parametrize(
    "pool",
    [over_classes, one_set, mean_first, smallest, first_patches, unclamped, divided_by_k],
    ids=lambda f: f.__name__,
)
def test_mistake_02_is_caught(pool):
    """Planted mistakes, named by their functions above; `unclamped` crashes at k = 500."""
    with pytest.raises((AssertionError, RuntimeError)):
        check_patches(planted(pool=pool))
