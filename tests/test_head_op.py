"""The head as an operator of torch: gradients, opcheck, torch.compile and torch.export."""

import numpy as np
import pytest
import torch

from hpdval_edge.kernels import dual_view_scores
from hpdval_edge.kernels.head import eager_scores
from hpdval_edge.kernels.head_op import dual_view_op, gradients_op

TOLERANCE = 2e-6


def make(shape, seed=0, dtype=torch.float32):
    b, n, c, e = shape
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(s)).to(dtype) for s in ((b, e), (b, n, e), (c, e), (c, e))]


@pytest.mark.parametrize(("alpha", "k"), [(0.4, 2), (0.4, 5), (0.0, 1), (1.0, 3)])
def test_gradient_in_float64(alpha, k):
    """Planted: `along` left out of the normalisation's gradient, 1 - alpha left out; both failed."""
    inputs = [x.requires_grad_() for x in make((2, 5, 3, 4), dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: dual_view_op(*x, k, alpha, "auto", True), inputs)


@pytest.mark.parametrize("name", ["cpu", "eager"])
@pytest.mark.parametrize("factor", [1.0, 5e-13], ids=["rows above eps", "rows below eps"])
def test_gradient_is_that_of_the_specification(name, factor):
    inputs = [(x * factor).requires_grad_() for x in make((3, 17, 9, 24))]
    scores, cosines = dual_view_scores(*inputs, k=4, backend=name, return_patch_scores=True)
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))
    (scores * weights).sum().add(cosines.square().sum()).backward()
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    expected, expected_cosines = eager_scores(*doubles, k=4, alpha=0.4)
    (expected * weights).sum().add(expected_cosines.square().sum()).backward()
    for got, want in zip(inputs, doubles, strict=True):
        torch.testing.assert_close(got.grad.double(), want.grad, rtol=1e-4, atol=1e-5 * want.grad.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_inputs_get_half_precision_gradients(dtype):
    inputs = [x.requires_grad_() for x in make((2, 9, 4, 16), dtype=dtype)]
    dual_view_scores(*inputs, k=3).sum().backward()
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    eager_scores(*doubles, k=3, alpha=0.4)[0].sum().backward()
    for got, want in zip(inputs, doubles, strict=True):
        assert got.grad.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(got.grad.double(), want.grad, rtol=2 * eps, atol=2 * eps * want.grad.abs().max())


def test_gradient_reaches_only_the_chosen_patches():
    tensors = [x.requires_grad_() for x in make((2, 8, 1, 6))]
    scores, cosines = dual_view_scores(*tensors, k=3, return_patch_scores=True)
    scores.sum().backward()
    touched = tensors[1].grad.abs().sum(dim=-1) > 0
    assert touched.sum(dim=1).tolist() == [3, 3]
    assert torch.equal(touched, cosines[..., 0] >= cosines[..., 0].topk(3, dim=1).values[:, -1:])


# opcheck itself looks at the .grad of a tensor that has none.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("want_patches", [False, True])
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_opcheck(backend, want_patches):
    inputs = [x.requires_grad_() for x in make((2, 9, 5, 16))]
    torch.library.opcheck(dual_view_op, (*inputs, 3, 0.4, backend, want_patches))


@pytest.mark.parametrize("of_patches", [False, True])
def test_opcheck_of_the_gradients(of_patches):
    inputs = make((2, 9, 5, 16))
    by_patch_scores = torch.randn(2, 9, 5) if of_patches else None
    arguments = (*inputs, torch.randn(2, 5), by_patch_scores, 3, 0.4, "auto", [True, False, True, True])
    torch.library.opcheck(gradients_op, arguments)


def test_only_what_is_asked_for_gets_a_gradient():
    """Planted: the last two of ``needed`` swapped; failed."""
    for wanted in ((True, False, False, False), (False, True, False, True), (False, False, True, False)):
        inputs = [x.requires_grad_(w) for x, w in zip(make((2, 9, 5, 16)), wanted, strict=True)]
        dual_view_scores(*inputs, k=3).sum().backward()
        everything = [x.requires_grad_() for x in make((2, 9, 5, 16))]
        dual_view_scores(*everything, k=3).sum().backward()
        for x, full, w in zip(inputs, everything, wanted, strict=True):
            assert (x.grad is not None) == w
            if w:
                torch.testing.assert_close(x.grad, full.grad, atol=0, rtol=0)


class Head(torch.nn.Module):
    def forward(self, cls, patches, text_global, text_local):
        return dual_view_scores(cls, patches, text_global, text_local, k=4)


def test_export_keeps_one_node():
    tensors, others = make((2, 5, 3, 4)), make((2, 5, 3, 4), seed=1)
    program = torch.export.export(Head(), tuple(tensors))
    torch.testing.assert_close(program.module()(*others), Head()(*others), atol=TOLERANCE, rtol=0)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count(torch.ops.hpdval_edge.dual_view_scores.default) == 1
    assert not any("topk" in str(target) for target in calls)


@pytest.mark.slow
def test_compile_has_no_graph_break_and_gives_gradients():
    inputs = [x.requires_grad_() for x in make((2, 9, 5, 16))]
    compiled = torch.compile(Head(), fullgraph=True, backend="aot_eager")
    compiled(*inputs).sum().backward()
    grads = [x.grad.clone() for x in inputs]
    for x in inputs:
        x.grad = None
    Head()(*inputs).sum().backward()
    for x, grad in zip(inputs, grads, strict=True):
        torch.testing.assert_close(x.grad, grad)


def test_float64_is_the_operators_alone():
    tensors = make((1, 3, 2, 4), dtype=torch.float64)
    assert dual_view_op(*tensors, 2, 0.4, "auto", False)[0].dtype == torch.float64
    with pytest.raises(ValueError, match=r"'cpu' cannot take .*float64"):
        dual_view_op(*tensors, 2, 0.4, "cpu", False)
