"""Native kernels of sparseinfer. Addresses are `Tensor.data_ptr()`; memory belongs to the caller."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str
activations: tuple[str, ...]
dtypes: tuple[str, ...]
storages: tuple[str, ...]
packings: tuple[str, ...]
gpu_packings: tuple[str, ...]
gpu_header_bytes: int
gpu_panel_columns: int
gpu_window_rows: int
gpu_tile: int
gpu_most_behind: int

def isa_levels() -> list[str]: ...
def active_isa() -> str: ...
def kernels() -> list[dict[str, Any]]: ...
def set_parallel_for(address: int, num_threads: int) -> None: ...
def has_parallel_for() -> bool: ...
def check_csr(crow: int, col: int, n: int, k: int, nnz: int) -> None: ...
def dense_row_offsets(dense: int, dtype: str, n: int, k: int, crow: int) -> None: ...
def dense_to_csr(dense: int, dtype: str, n: int, k: int, crow: int, col: int, values: int) -> None: ...
def pack(
    packing: str,
    dtype: str,
    n: int,
    k: int,
    nnz: int,
    block_rows: int,
    block_cols: int,
    crow: int,
    col: int,
    values: int,
    storage: str = "f32",
    isa: str = "",
    max_splits: int = 64,
    panel: int = 0,
) -> NDArray[np.uint8]: ...
def describe(data: int, nbytes: int) -> dict[str, Any]: ...
def check_packing(data: int, nbytes: int) -> None: ...
def unpack(data: int, nbytes: int, crow: int, col: int, values: int) -> None: ...
def same_vectors(kept: int, a: int, b: int, c: int, d: int, nbytes: int) -> bool: ...
def spmm(
    kernel: int,
    x: int,
    dtype: int,
    m: int,
    k: int,
    ldx: int,
    packed: int,
    bias: int,
    bias_dtype: int,
    y: int,
    n: int,
    activation: int,
    parts: int = 0,
) -> None: ...
def spmm_parts(
    kernel: int,
    x: int,
    dtype: int,
    m: int,
    k: int,
    ldx: int,
    packed: int,
    bias: int,
    bias_dtype: int,
    ys: Sequence[tuple[int, int]],
    parts: int = 0,
) -> None: ...
def conv(
    kernel: int,
    x: int,
    dtype: int,
    x_shape: Sequence[int],
    packed: Sequence[int],
    bias: int,
    bias_dtype: int,
    y: int,
    y_shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    parts: int = 0,
) -> None: ...
def gpu_header(
    packing: str, dtype: int, n: int, k: int, nnz: int, block: int, units: int
) -> tuple[NDArray[np.uint8], int]: ...
def gpu_describe(header: int, nbytes: int) -> dict[str, Any]: ...
def gpu_check(data: int, nbytes: int) -> None: ...
def gpu_unpack(data: int, nbytes: int, crow: int, col: int, values: int) -> None: ...
def gpu_kernels() -> list[dict[str, Any]]: ...
def gpu_column_offsets() -> NDArray[np.int32]: ...
def gpu_swizzled_chunks(block: int) -> NDArray[np.int32]: ...
def gpu_first_tiles(n: int, k: int) -> NDArray[np.int64]: ...
def gpu_dealt_positions() -> NDArray[np.int32]: ...
def gpu_tile_order(packing: str) -> NDArray[np.int32]: ...
def gpu_place_bytes() -> NDArray[np.int32]: ...
def gpu_codes(packing: str) -> tuple[int, int]: ...
