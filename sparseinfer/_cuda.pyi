"""CUDA kernels of sparseinfer. Addresses are `Tensor.data_ptr()`, of device memory except for `header`."""

from typing import Any

# Structs of csrc/bindings; dtypes and activations are numbers, as in `_core`.
Place = tuple[int, int]  # device, stream
Packed = tuple[int, int, int]  # address of the header in host memory, address of the packing, its bytes
Tokens = tuple[int, int, int, int, int]  # x [m, k]: address, dtype, m, k, elements from row to row
Epilogue = tuple[int, int, int]  # bias or 0 for none, its dtype, activation
Matrix = tuple[int, int]  # address, elements from row to row; of y [m, n], which is contiguous, n

__version__: str
toolkit: tuple[int, int]
activations: int  # of those that kernels compute, the first ones

def kernels() -> list[dict[str, Any]]: ...
def device(index: int) -> dict[str, Any]: ...
def runs_on(kernel: int, index: int) -> bool: ...
def spmm(kernel: int, place: Place, packed: Packed, x: Tokens, epilogue: Epilogue, y: Matrix) -> None: ...
def decompress(kernel: int, place: Place, packed: Packed, y: Matrix) -> None: ...
