import numpy as np
from numpy.typing import NDArray

def head(
    cls: NDArray[np.float32],
    patches: NDArray[np.float32],
    text_global: NDArray[np.float32],
    text_local: NDArray[np.float32],
    k: int,
    alpha: float,
    scores: NDArray[np.float32],
    patch_scores: NDArray[np.float32] | None,
    threads: int,
) -> None: ...
