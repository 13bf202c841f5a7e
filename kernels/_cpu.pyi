import numpy as np
from numpy.typing import NDArray

class PackedText:
    def __init__(self, text_global: NDArray[np.float32], text_local: NDArray[np.float32], isa: str) -> None: ...

def isas() -> list[str]: ...
def head(
    cls: NDArray[np.float32],
    patches: NDArray[np.float32] | NDArray[np.uint16],
    dtype: str,
    text: PackedText,
    k: int,
    alpha: float,
    scores: NDArray[np.float32],
    patch_scores: NDArray[np.float32] | None,
    threads: int,
) -> None: ...
