import numpy as np
from numpy.typing import NDArray

class PackedText:
    def __init__(
        self, text_global: NDArray[np.float32], text_local: NDArray[np.float32], isa: str, precision: str = "float32"
    ) -> None: ...

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
def preprocess_isas() -> list[str]: ...

class PreprocessPlan:
    def __init__(
        self,
        width: int,
        height: int,
        resized_width: int,
        resized_height: int,
        left: int,
        top: int,
        out_width: int,
        out_height: int,
        vertical_first: bool,
    ) -> None: ...
    @property
    def first_row(self) -> int: ...
    @property
    def end_row(self) -> int: ...

class PreprocessPicture:
    def __init__(
        self, plan: PreprocessPlan, isa: str, out: np.ndarray, table: np.ndarray | None, swap: bool
    ) -> None: ...
    def push(self, rows: NDArray[np.uint8]) -> None: ...
    def push_arrow(self, schema: object, array: object) -> bool: ...
    def push_nv12(self, luma: NDArray[np.uint8], chroma: NDArray[np.uint8]) -> None: ...
    @property
    def rows_left(self) -> int: ...
