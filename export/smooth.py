"""SmoothQuant: move outliers of a LayerNorm's channels into the weights that read it, before both are rounded.

    x w = (x / s) (s w),    s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)

is exact in floating point, and 1 / s goes into the norm's own scale and shift, so that it costs nothing
(Xiao et al., arXiv:2211.10438, eq. 4). It is done where it lowers the error of what the layers compute.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from hpdval_edge.export.quantise import Layer, drop_unused_constants, layers, round_weight, set_constant

ALPHAS = (0.25, 0.5, 0.75)
SMALLEST = 1e-5


@dataclass(frozen=True, slots=True)
class Norm:
    """A LayerNormalization and the layers that read it; nothing else does."""

    node: NodeProto
    readers: tuple[Layer, ...]

    @property
    def output(self) -> str:
        """Name of what it gives."""
        return self.node.output[0]


def norms(model: ModelProto) -> list[Norm]:
    """LayerNorms of which every reader is a MatMul that is quantised."""
    by_input: dict[str, list[Layer]] = {}
    for layer in layers(model):
        if layer.node.op_type == "MatMul":
            by_input.setdefault(layer.activation, []).append(layer)
    uses = [name for node in model.graph.node for name in node.input]
    found = []
    for node in model.graph.node:
        readers = by_input.get(node.output[0], [])
        if node.op_type == "LayerNormalization" and readers and len(readers) == uses.count(node.output[0]):
            found.append(Norm(node, tuple(readers)))
    return found


def smooth(model: ModelProto, rows: Mapping[str, np.ndarray], weight_top: int) -> int:
    """Smooth the norms of the model, in place, where that helps; returns how many.

    Args:
        rows: float32 [R, D] of what each of `norms` gives, R samples of calibration pictures.
        weight_top: of the `Rules` it will be rounded by.
    """
    done = 0
    for norm in norms(model):
        factors = best_factors(rows[norm.output], [layer.weight for layer in norm.readers], weight_top)
        if factors is not None:
            _fold(model, norm, factors)
            done += 1
    drop_unused_constants(model)
    return done


def best_factors(rows: np.ndarray, weights: list[np.ndarray], weight_top: int) -> np.ndarray | None:
    """The s of the alpha with the smallest squared error of rows @ weights, float32 [D]; None where 1 is best.

    Args:
        rows: float32 [R, D]. weights: each [D, out].
    """
    together = np.concatenate([weight.astype(np.float32) for weight in weights], axis=1)
    exact = rows @ together
    reach = np.maximum(np.abs(rows).max(axis=0), SMALLEST), np.maximum(np.abs(together).max(axis=1), SMALLEST)
    candidates: list[np.ndarray | None] = [None]
    for alpha in ALPHAS:
        factors = reach[0] ** alpha / reach[1] ** (1 - alpha)
        # Only the ratios matter; around 1 half precision holds them.
        candidates.append(factors / np.exp(np.log(factors).mean()))
    errors = [_error(rows, together, exact, factors, weight_top) for factors in candidates]
    return candidates[int(np.argmin(errors))]


def _error(
    rows: np.ndarray, weight: np.ndarray, exact: np.ndarray, factors: np.ndarray | None, weight_top: int
) -> float:
    """Squared error of the product of rows [R, D] and weight [D, out] when both are smoothed and rounded."""
    if factors is not None:
        rows, weight = rows / factors, weight * factors[:, None]
    scale = max(float(np.abs(rows).max()) / 127, SMALLEST)
    integers, scales = round_weight(weight, 1, weight_top)
    product = (np.rint(rows / scale) @ integers.astype(np.float32)) * (scale * scales)
    return float(np.square(product - exact).sum(dtype=np.float64))


def _fold(model: ModelProto, norm: Norm, factors: np.ndarray) -> None:
    """Divide the norm's scale and shift by the factors and multiply the rows of its readers' weights.

    The constants are new ones: the exporter lets equal tensors share one.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for position in range(1, len(norm.node.input)):
        old = numpy_helper.to_array(constants[norm.node.input[position]])
        new = (old.astype(np.float32) / factors).astype(old.dtype)
        norm.node.input[position] = set_constant(model, f"{norm.output}_smooth_{position}", new)
    for layer in norm.readers:
        new = (layer.weight.astype(np.float32) * factors[:, None]).astype(layer.weight.dtype)
        layer.node.input[1] = set_constant(model, f"{layer.node.output[0]}_smooth", new)
