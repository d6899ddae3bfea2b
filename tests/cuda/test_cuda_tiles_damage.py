"""What the check of a tiled packing refuses: anything that would lead a kernel out of its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cuda_tiles_reference import Blob
from generators import weight

from sparseinfer._native import core
from sparseinfer.formats import CSR
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.tiles import DELTA, TILED

BF16 = torch.bfloat16
PAIR_BYTES = {"delta4": 160, "delta8": 192}


def blob_of(packing: str, n: int, k: int, sparsity: float) -> Blob:
    w = weight("random", n, k, sparsity, dtype=BF16)
    return Blob(cuda_packing.pack(CSR.from_dense(w), "cpu", packing))


def to(section: str, index: Any, value: Any) -> Callable[[Blob], None]:
    def change(blob: Blob) -> None:
        getattr(blob, section)[index] = value

    return change


def refused(blob: Blob, change: Callable[[Blob], None], expected: str) -> None:
    cuda_packing.unpack(blob.packed.clone())
    change(blob)
    with pytest.raises(ValueError, match=f"packed: expected {expected}"):
        cuda_packing.unpack(blob.packed)


@pytest.mark.parametrize("packing", TILED)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (to("order", 1, 64), "each row of a tile at a position of its own"),
        (lambda blob: to("order", 1, blob.order[0])(blob), "each row of a tile at a position of its own"),
        (to("starts", 0, 1), "streams that start at 0"),
        (to("starts", 3, 2**31), "ascending starts of streams"),
        (to("starts", -1, 2**31), "streams that end with the last unit"),
        (lambda blob: to("starts", 6, blob.starts[6] - 1)(blob), "streams as long as their .* need"),
    ],
)
def test_order_and_starts(packing: str, change: Callable[[Blob], None], expected: str) -> None:
    refused(blob_of(packing, 70, 140, 0.7), change, expected)


def without_a_bit(blob: Blob) -> None:
    """Of the lane that has least and is not the furthest."""
    words = blob.words[0, 0, int(np.bitwise_count(blob.words[0, 0]).sum(1).argmin())]
    words[0] &= words[0] - np.uint32(1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (to("words", (0, 1, 0, 0), 0xFFFFFFFF), "streams as long as their words need"),
        (without_a_bit, "as many values as the header says"),
        (to("words", (0, 2, 1, 0), 1), "bits within the matrix"),  # column 144 of 140
        (to("words", (1, 0, 3, 3), 1), "bits within the matrix"),  # position 48 of 6 rows
    ],
)
def test_words(change: Callable[[Blob], None], expected: str) -> None:
    refused(blob_of("bitmap", 70, 140, 0.7), change, expected)


def code(lane: int, half: int, value: int) -> Callable[[Blob], None]:
    """Of the last pair of the first tile."""

    def change(blob: Blob) -> None:
        at = 64 + PAIR_BYTES[blob.kind] * (int(blob.pairs[0, 0]) - 1) + 128
        if blob.kind == "delta8":
            blob.streams[at + 2 * lane + half] = value
        else:
            other = int(blob.streams[at + lane]) & (15 << 4 * (1 - half))
            blob.streams[at + lane] = other | value << 4 * half

    return change


@pytest.mark.parametrize("packing", DELTA)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (to("pairs", (0, 0), 65), "at most 64 pairs of entries a lane"),
        (lambda blob: to("pairs", (0, 0), blob.pairs[0, 0] + 1)(blob), "streams as long as their tiles need"),
        (to("streams", 0, 1), "first bytes of values in a tile"),
        (to("streams", 1, 32), "first bytes of values in a tile"),  # 8192
        (to("streams", slice(62, 64), 0), "entries in the order of their places"),
        (code(31, 0, 15), "distances within a tile"),  # past the last place
        (code(0, 1, 1), "no distance behind a lane's last entry"),
    ],
)
def test_entries(packing: str, change: Callable[[Blob], None], expected: str) -> None:
    refused(blob_of(packing, 70, 140, 0.7), change, expected)


def test_a_code_of_8_bits_is_at_most_64() -> None:
    refused(blob_of("delta8", 64, 64, 0.7), code(0, 0, 65), "distances within a tile")


@pytest.mark.parametrize("packing", DELTA)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (to("streams", slice(0, 64, 2), 2), "values within the matrix"),  # column 1 of 1
        (to("streams", slice(1, 64, 2), 2), "values within the matrix"),  # position 16 of 1 row
        (to("streams", slice(64, 192), 0), "as many values as the header says"),
        (to("streams", slice(64, 66), 0), "entries in the order of their places"),  # two values of one place
    ],
)
def test_one_entry(packing: str, change: Callable[[Blob], None], expected: str) -> None:
    refused(blob_of(packing, 1, 1, 0.0), change, expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dtype": 0}, "bf16 or f16 tiles, got f32"),
        ({"block": 1}, "block 64 of tiles, got 1"),
        ({"n": 2**31}, r"n in \[0, 2\^31\), got 2147483648"),
        ({"k": 2**27}, r"k in \[0, 2\^27\) of tiles, got 134217728"),
        ({"units": 2**31}, "at most 2.31 vectors or slabs, got 2147483648"),
        ({"units": 3}, "nnz that the streams hold, got 25"),
        ({"nnz": 30}, "nnz of a matrix of this size, got 30"),
    ],
)
@pytest.mark.parametrize("packing", TILED)
def test_sizes(packing: str, change: dict[str, int], expected: str) -> None:
    sizes = {"dtype": 1, "n": 5, "k": 5, "nnz": 25, "block": 64, "units": 4}

    def header(n: int, k: int, **rest: int) -> tuple[object, int]:
        return core.gpu_header(packing, shape=(n, k), **rest)

    assert header(**sizes)[1] > 128
    with pytest.raises(ValueError, match=f"packed: expected {expected}"):
        header(**sizes | change)


@pytest.mark.parametrize("packing", TILED)
def test_a_flipped_byte_is_refused_or_harmless(packing: str) -> None:
    """What passes is read within its bounds, and as the description has it, by a reader that checks them."""
    packed = blob_of(packing, 66, 70, 0.9).packed
    generator = torch.Generator().manual_seed(0)
    count = 0
    for _ in range(200):
        damaged = packed.clone()
        at = int(torch.randint(0, len(packed), (1,), generator=generator))
        damaged[at] ^= int(torch.randint(1, 256, (1,), generator=generator))
        try:
            back = cuda_packing.unpack(damaged)
        except ValueError:
            count += 1
        else:
            dense = Blob(damaged).dense()
            assert torch.equal(dense.view(torch.int16), back.to_dense().view(torch.int16))
    assert count > 30
