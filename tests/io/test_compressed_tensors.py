"""Weights in the formats of compressed-tensors, against that package itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparseinfer.io import compressed_tensors as ct

compressors = pytest.importorskip("compressed_tensors.compressors", reason="needs compressed-tensors 0.12.2")
if not hasattr(compressors, "Sparse24BitMaskTensor"):
    pytest.skip("needs compressed-tensors 0.12.2, the last with sparse formats", allow_module_level=True)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(7, 12), (5, 64), (33, 100), (1, 8), (4, 4)]


def unstructured(n: int, k: int, dtype: torch.dtype) -> Tensor:
    w = torch.randn(n, k, generator=torch.Generator().manual_seed(n * k))
    return w.masked_fill_(torch.rand(n, k, generator=torch.Generator().manual_seed(k)) < 0.6, 0).to(dtype)


def two_four(n: int, k: int, dtype: torch.dtype) -> Tensor:
    """At most two of four, some with one or none, so that zeros count as kept."""
    quads = unstructured(n * k // 4, 4, dtype)
    return quads.scatter_(1, quads.abs().topk(2, 1, largest=False).indices, 0).reshape(n, k)


def theirs(format: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    from compressed_tensors.config import BitmaskConfig, Sparse24BitMaskConfig

    kinds = {ct.SPARSE_BITMASK: BitmaskConfig, ct.SPARSE_24_BITMASK: Sparse24BitMaskConfig}
    structure = {"sparsity_structure": "2:4"} if format == ct.SPARSE_24_BITMASK else {}
    config = kinds[format](format=format, **structure)
    return compressors.BaseCompressor.load_from_registry(format, config=config).compress(dict(state))


def weight_of(format: str, n: int, k: int, dtype: torch.dtype) -> Tensor:
    return (unstructured if format == ct.SPARSE_BITMASK else two_four)(n, k, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("format", ct.FORMATS)
def test_writes_and_reads_the_same_bytes(format: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, others = weight_of(format, *shape, dtype), {"a.bias": torch.ones(2), "norm.weight": torch.ones(3)}
    expected = theirs(format, {"a.weight": weight})
    got = ct.compress({"a.weight": weight} | others, format)
    assert got.keys() == expected.keys() | others.keys()
    for key, t in expected.items():
        assert got[key].dtype == t.dtype
        assert got[key].shape == t.shape
        assert as_bytes(got[key]) == as_bytes(t)
    assert ct.is_compressed(got.keys())
    assert not ct.is_compressed(["a.weight", "a.bias"])
    back = ct.decompress(expected | others)
    assert back.keys() == {"a.weight"} | others.keys()
    assert torch.equal(back["a.weight"], weight)


@pytest.mark.parametrize("format", ct.FORMATS)
def test_both_styles_of_keys(format: str) -> None:
    state = {"block.0.weight": weight_of(format, 6, 16, torch.float32)}
    old = ct.compress(state, format, weight_keys=True)
    assert {"block.0.weight.shape", "block.0.weight.compressed", "block.0.weight.bitmask"} <= old.keys()
    assert torch.equal(ct.decompress(old)["block.0.weight"], state["block.0.weight"])


def test_targets() -> None:
    state = {"a.weight": torch.eye(4), "b.weight": torch.eye(4)}
    assert ct.compress(state, targets=["a"])["b.weight"] is state["b.weight"]
    with pytest.raises(ValueError, match=r"targets: expected layers with a weight, got 'c'"):
        ct.compress(state, targets=["c"])


def test_eight_bit_floats_are_moved_as_they_are() -> None:
    weight = unstructured(8, 24, torch.float32).to(torch.float8_e4m3fn)
    parts = ct.compress({"a.weight": weight.float()})
    values = weight.view(torch.int8)[weight.float() != 0].view(torch.float8_e4m3fn)
    back = ct.decompress(parts | {"a.compressed": values})["a.weight"]
    assert back.dtype == weight.dtype
    assert torch.equal(back.float(), weight.float())


def spoiled() -> dict[str, tuple[dict[str, Tensor | None], str]]:
    """What replaces parts of a compressed [6, 12], and what the error says."""
    good = ct.compress({"a.weight": unstructured(6, 12, torch.float32)})
    mask, starts = good["a.bitmask"], good["a.row_offsets"]
    return {
        "no values": ({"a.compressed": None}, r"a.compressed: expected a tensor beside a.bitmask"),
        "no shape": ({"a.shape": None}, r"a.shape: expected a tensor"),
        "one value less": ({"a.compressed": good["a.compressed"][:-1]}, r"a.compressed: expected \d+ values"),
        "a bit too many": ({"a.bitmask": mask | 0x10}, r"a.bitmask: expected no bits behind column 12"),
        "short mask": ({"a.bitmask": mask[:5]}, r"a.bitmask: expected torch.uint8 \[6, 2\]"),
        "mask of ints": ({"a.bitmask": mask.int()}, r"a.bitmask: expected torch.uint8"),
        "huge shape": ({"a.shape": torch.tensor([2**40, 2**40])}, r"a.shape: expected two sizes"),
        "negative shape": ({"a.shape": torch.tensor([-6, -12])}, r"a.shape: expected two sizes"),
        "three sizes": ({"a.shape": torch.tensor([6, 12, 1])}, r"a.shape: expected two sizes"),
        "other starts": ({"a.row_offsets": starts + 1}, r"a.row_offsets: expected the starts of 6 rows"),
        "dense as well": ({"a.weight": torch.zeros(6, 12)}, r"a.weight: expected one weight, got two"),
    }


@pytest.mark.parametrize("what", spoiled())
def test_refuses_parts_that_do_not_fit(what: str) -> None:
    good, (changes, message) = ct.compress({"a.weight": unstructured(6, 12, torch.float32)}), spoiled()[what]
    damaged = {key: t for key, t in (good | changes).items() if t is not None}
    with pytest.raises(ValueError, match=message):
        ct.decompress(damaged)


def test_refuses_what_is_not_two_four() -> None:
    with pytest.raises(ValueError, match="at most two of four weights"):
        ct.compress({"a.weight": torch.ones(4, 8)}, ct.SPARSE_24_BITMASK)
    with pytest.raises(ValueError, match="a multiple of 4 columns"):
        ct.compress({"a.weight": torch.zeros(4, 6)}, ct.SPARSE_24_BITMASK)
    with pytest.raises(
        ValueError, match="format: expected one of sparse-bitmask, sparse-24-bitmask, got 'csr'"
    ):
        ct.compress({}, "csr")


def as_bytes(t: Tensor) -> bytes:
    return bytes(np.ascontiguousarray(t.contiguous().view(torch.uint8).numpy()))
