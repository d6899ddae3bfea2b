"""Weights as compressed-tensors stores them: `sparse-bitmask` and `sparse-24-bitmask`, read and written.

Of a layer M with a weight [n, k]:

    M.shape        int64   [2]; sparse-24-bitmask: [2, 1]
    M.compressed   values  [nnz], row by row; sparse-24-bitmask: [n, k / 2], two of every four
    M.bitmask      uint8   [n, ceil(k / 8)], column 0 is the lowest bit of the first byte
    M.row_offsets  int64   [n], where each row starts in `compressed`; not in sparse-24-bitmask

Older files have M.weight.shape and so on. Written as by compressed-tensors 0.12.2; later versions no longer
have these formats.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPARSE_BITMASK = "sparse-bitmask"
SPARSE_24_BITMASK = "sparse-24-bitmask"
FORMATS = (SPARSE_BITMASK, SPARSE_24_BITMASK)

_PARTS = ("shape", "compressed", "bitmask", "row_offsets")
_MAX_ELEMENTS = 2**40


def decompress(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with dense weights; tensors that are not part of a compressed weight stay as they are.

    Both formats and both styles of keys. ValueError that names the tensor: one of a weight's parts is
    missing, or they do not fit together.
    """
    owners = [key.removesuffix(".bitmask") for key in tensors if key.endswith(".bitmask")]
    dense: dict[str, Tensor] = {}
    for owner in owners:
        weight = owner if owner.endswith(".weight") else f"{owner}.weight"
        if weight in dense or weight in tensors:
            raise ValueError(f"{weight}: expected one weight, got two (compressed and not, or two styles)")
        dense[weight] = _decompressed(owner, tensors)
    parts = {f"{owner}.{part}" for owner in owners for part in _PARTS}
    return {key: t for key, t in tensors.items() if key not in parts} | dense


def compress(
    tensors: Mapping[str, Tensor],
    format: str = SPARSE_BITMASK,
    targets: Collection[str] | None = None,
    *,
    weight_keys: bool = False,
) -> dict[str, Tensor]:
    """The state dict with weights compressed, byte for byte as compressed-tensors writes them.

    format       "sparse-bitmask" or "sparse-24-bitmask"
    targets      names of layers, without ".weight"; default: every weight of two dimensions
    weight_keys  the older style of keys: M.weight.compressed instead of M.compressed

    ValueError: another format, a target that has no weight, or, for 2:4, a weight that is not: its size along
    k no multiple of 4, or more than two of four weights not zero.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    chosen = _targets(tensors) if targets is None else {f"{target}.weight" for target in targets}
    if missing := sorted(chosen - tensors.keys()):
        raise ValueError(
            f"targets: expected layers with a weight, got {missing[0].removesuffix('.weight')!r}"
        )
    parts_of: Callable[[str, Tensor], dict[str, Tensor]] = _bitmask if format == SPARSE_BITMASK else _two_four
    result: dict[str, Tensor] = {}
    for key, t in tensors.items():
        if key not in chosen:
            result[key] = t
            continue
        prefix = key if weight_keys else key.removesuffix(".weight")
        result |= {f"{prefix}.{part}": value for part, value in parts_of(key, t).items()}
    return result


def sparsity_config(format: str, sparsity: float) -> dict[str, Any]:
    """The entry for `quantization_config` of a config.json, by which readers know the format."""
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    structure = "2:4" if format == SPARSE_24_BITMASK else "unstructured"
    sparse = {"format": format, "global_sparsity": sparsity, "sparsity_structure": structure}
    return {"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": sparse}


def is_compressed(keys: Collection[str]) -> bool:
    """Whether these names of tensors are of a checkpoint in one of the two formats."""
    return any(
        key.endswith(".bitmask") and f"{key.removesuffix('.bitmask')}.compressed" in keys for key in keys
    )


def _targets(tensors: Mapping[str, Tensor]) -> set[str]:
    return {key for key, t in tensors.items() if key.endswith(".weight") and t.ndim == 2}


def _decompressed(owner: str, tensors: Mapping[str, Tensor]) -> Tensor:
    for part in ("shape", "compressed"):
        if f"{owner}.{part}" not in tensors:
            raise ValueError(f"{owner}.{part}: expected a tensor beside {owner}.bitmask, got none")
    shape, values, bitmask = (tensors[f"{owner}.{part}"] for part in ("shape", "compressed", "bitmask"))
    offsets = tensors.get(f"{owner}.row_offsets")
    n, k = _shape(owner, shape)
    if bitmask.dtype != torch.uint8 or bitmask.shape != (n, -(-k // 8)):
        got = f"{bitmask.dtype} {list(bitmask.shape)}"
        raise ValueError(f"{owner}.bitmask: expected torch.uint8 {[n, -(-k // 8)]}, got {got}")
    bits = np.unpackbits(bitmask.contiguous().numpy(), axis=1, bitorder="little")
    if bits[:, k:].any():
        raise ValueError(f"{owner}.bitmask: expected no bits behind column {k}, got some")
    kept = torch.from_numpy(bits[:, :k]).bool()
    counts = kept.sum(1)
    if values.numel() != int(counts.sum()):
        got = f"{values.numel()}"
        raise ValueError(f"{owner}.compressed: expected {int(counts.sum())} values, one per bit, got {got}")
    if offsets is not None and not _starts(offsets, counts):
        raise ValueError(f"{owner}.row_offsets: expected the starts of {n} rows, got others")
    # Indexing does not know every 8-bit dtype; bytes are moved as they are.
    raw = torch.int8 if values.element_size() == 1 else values.dtype
    dense = torch.zeros((n, k), dtype=raw, device="cpu")
    dense[kept] = values.reshape(-1).view(raw)
    return dense.view(values.dtype)


def _shape(owner: str, shape: Tensor) -> tuple[int, int]:
    sizes = [] if shape.is_floating_point() or shape.numel() != 2 else shape.reshape(-1).tolist()
    if not sizes or min(sizes) < 0 or sizes[0] * sizes[1] > _MAX_ELEMENTS:
        got = f"{shape.dtype} {shape.reshape(-1)[:4].tolist()}"
        raise ValueError(f"{owner}.shape: expected two sizes, got {got}")
    return sizes[0], sizes[1]


def _starts(offsets: Tensor, counts: Tensor) -> bool:
    return offsets.shape == counts.shape and torch.equal(offsets.long(), counts.cumsum(0) - counts)


def _bitmask(name: str, w: Tensor) -> dict[str, Tensor]:
    w = _matrix(name, w)
    kept = w != 0
    counts = kept.sum(1)
    return {
        "shape": torch.tensor(w.shape, device="cpu"),
        "compressed": w[kept],
        "bitmask": _packed(kept),
        "row_offsets": counts.cumsum(0) - counts,
    }


def _two_four(name: str, w: Tensor) -> dict[str, Tensor]:
    w = _matrix(name, w)
    n, k = w.shape
    if k % 4:
        raise ValueError(f"{name}: expected a multiple of 4 columns for 2:4, got {k}")
    quads = w.reshape(-1, 4)
    if int((quads != 0).sum(1).max() if quads.numel() else 0) > 2:
        raise ValueError(f"{name}: expected at most two of four weights not zero, got more (2:4)")
    # Which zeros of a quad count as kept is as topk has it, as in compressed-tensors.
    kept = torch.zeros_like(quads, dtype=torch.bool).scatter_(1, quads.abs().topk(2, dim=1).indices, True)
    return {
        "shape": torch.tensor(w.shape, device="cpu").reshape(-1, 1),
        "compressed": quads[kept].reshape(n, k // 2),
        "bitmask": _packed(kept.reshape(n, k)),
    }


def _matrix(name: str, w: Tensor) -> Tensor:
    if w.ndim != 2 or not w.is_floating_point():
        got = f"{w.dtype} {list(w.shape)}"
        raise ValueError(f"{name}: expected a floating-point weight [n, k], got {got}")
    return w.detach().cpu().contiguous()


def _packed(kept: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(kept.numpy(), axis=-1, bitorder="little"))
