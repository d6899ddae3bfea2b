"""CUDA kernels of sparseinfer. Addresses are `Tensor.data_ptr()`, of device memory but for `header`."""

from typing import Any

__version__: str
toolkit: tuple[int, int]

def kernels() -> list[dict[str, Any]]: ...
def device(index: int) -> dict[str, Any]: ...
def runs_on(kernel: int, index: int) -> bool: ...
def spmm(
    kernel: int,
    device: int,
    stream: int,
    header: int,
    packed: int,
    nbytes: int,
    x: int,
    x_dtype: int,
    m: int,
    k: int,
    ldx: int,
    bias: int,
    bias_dtype: int,
    y: int,
    n: int,
    activation: int,
) -> None: ...
def decompress(
    kernel: int, device: int, stream: int, header: int, packed: int, nbytes: int, y: int, ldy: int
) -> None: ...
