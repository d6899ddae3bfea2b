"""Makes and reads the packings of the CPU kernels: private layouts of a weight, each a uint8 tensor.

A packing is made from a format and belongs to this machine and this build; `unpack` gives the format back,
bit for bit.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats import BSR, CSR
from sparseinfer.formats.checks import address
from sparseinfer.formats.dtypes import WEIGHT_DTYPE_NAMES
from sparseinfer.ops.cpu.kernels import format_of
from sparseinfer.ops.packed import PackedInfo, check_made_from, unpacked


def pack(
    fmt: CSR | BSR,
    packing: str,
    *,
    storage: str = "",
    isa: str = "",
    panel: int = 0,
    max_splits: int = 64,
) -> Tensor:
    """Pack a format for the kernels of `packing`: "bsr" from BSR, any other from CSR.

    storage      how the weights are held: "f32", which holds every dtype but int8; "bf16", in pairs for bf16
                 activations; "wbf16" and "wf16", two bytes that are widened to fp32 when they are read; "i8",
                 which rounds each token to 8 bits, and "wi8", widened to fp32. Default: "f32", of int8 "i8"
    isa          instruction-set level to lay the weights out for; default: the active one
    panel        columns whose slice of x stays in the L1 cache; 0: the packing's default
    max_splits   maximum number of row ranges that are distributed to threads

    Returns a uint8 tensor [nbytes]. ValueError: an unknown packing, storage or level, a storage that cannot
    hold the dtype exactly or has no kernels, rows of int8 whose sums may not fit 32 bits, a panel that is too
    wide, or a panel for a packing that has only one. TypeError: BSR for a packing of CSR, or the reverse.
    """
    if packing not in core.packings:
        raise ValueError(f"packing: expected one of {', '.join(core.packings)}, got {packing!r}")
    check_made_from(fmt, format_of(packing), packing)
    fmt.validate()  # its tensors may have been written to since it was made
    block_size = fmt.block_size if isinstance(fmt, BSR) else (1, 1)
    n, k = fmt.shape
    array = core.pack(
        packing,
        (
            WEIGHT_DTYPE_NAMES[fmt.dtype],
            n,
            k,
            fmt.nnz,
            *block_size,
            address("crow_indices", fmt.crow_indices),
            address("col_indices", fmt.col_indices),
            address("values", fmt.values),
            0 if fmt.scales is None else address("scales", fmt.scales),
        ),
        storage or storage_for(fmt),
        isa,
        max_splits,
        panel,
    )
    with torch.inference_mode(False):  # an inference tensor could not be told apart from a changed one
        return torch.from_numpy(array)


def packing_for(fmt: CSR | BSR) -> str:
    """The name of the packing for this format where none is asked for: one for any number of tokens."""
    return "bsr" if isinstance(fmt, BSR) else "rowgroup"


def storage_for(fmt: CSR | BSR) -> str:
    """The storage where none is asked for."""
    return "i8" if fmt.dtype == torch.int8 else "f32"


def pack_on(
    device: torch.device | None, fmt: CSR | BSR, packing: str, *, storage: str, panel: int, isa: str = ""
) -> Tensor:
    """`pack` with the signature that all devices share."""
    return pack(fmt, packing, storage=storage, isa=isa, panel=panel)


def describe(packed: Tensor) -> PackedInfo:
    """Read a CPU packing's header. ValueError: not a packing."""
    check_tensor(packed)
    header = core.describe(address("packed", packed), packed.numel())
    return PackedInfo(
        **{name: value for name, value in header.items() if name in PackedInfo.__dataclass_fields__}
    )


def unpack(packed: Tensor) -> CSR | BSR:
    """The format a CPU packing was made from, bit for bit. ValueError: not an intact packing."""
    info = describe(packed)
    return unpacked(
        info, format_of(info.packing), partial(core.unpack, address("packed", packed), packed.numel())
    )


def check_tensor(packed: Tensor) -> None:
    """ValueError unless `packed` is a contiguous uint8 vector in CPU memory, as `pack` makes them."""
    if packed.device.type != "cpu" or packed.dtype != torch.uint8 or not packed.is_contiguous():
        raise ValueError(
            "packed: expected a contiguous uint8 tensor on the CPU, "
            f"got {packed.dtype} on {packed.device} with stride {packed.stride()}"
        )
