"""The tiled packings, made and read on the CPU: against a reader that knows nothing but their description."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_tiles_reference import MAX_DISTANCE, Blob, place_of
from generators import PATTERNS, weight
from torch import Tensor

from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.tiles import DELTA, TILED

BF16, F16 = torch.bfloat16, torch.float16
SHAPES = [(1, 1), (63, 65), (64, 64), (65, 130), (200, 1000)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.int16), b.contiguous().view(torch.int16)
    )


def same_format(a: CSR | BSR, b: CSR) -> bool:
    indices = torch.equal(a.crow_indices, b.crow_indices) and torch.equal(a.col_indices, b.col_indices)
    return a.shape == b.shape and indices and same_bits(a.values, b.values)


def packed(w: Tensor, packing: str) -> Tensor:
    return cuda_packing.pack(CSR.from_dense(w), "cpu", packing)


@pytest.mark.parametrize("packing", TILED)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_weight_is_where_it_is_described(packing: str, pattern: str) -> None:
    for number, (n, k) in enumerate(SHAPES):
        w = weight(pattern, n, k, 0.8, seed=n + k, dtype=(BF16, F16)[number % 2])
        blob = packed(w, packing)
        assert same_bits(Blob(blob).dense(), w), (n, k)
        assert same_format(cuda_packing.unpack(blob.clone()), CSR.from_dense(w))
        assert torch.equal(cuda_packing.pack_dense(w, packing), blob)
        info = cuda_packing.describe(blob)
        assert (info.packing, info.n, info.k, info.nnz) == (packing, n, k, int(w.count_nonzero()))
        assert (info.block_size, info.panel, info.nbytes) == ((1, 1), 64, blob.numel())


@pytest.mark.parametrize("packing", TILED)
def test_many_rows_are_cut_into_fewer_pieces_and_packed_in_parts(
    packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = weight("random", 131 * 64 + 5, 600, 0.998, dtype=BF16)
    whole = packed(w, packing)
    assert Blob(whole).pieces == 8
    assert same_bits(Blob(whole).dense(), w)
    monkeypatch.setattr("sparseinfer.ops.cuda.tiles._AT_ONCE", 5 * 64 * 640)
    assert torch.equal(packed(w, packing), whole)


@pytest.mark.parametrize("packing", TILED)
@pytest.mark.parametrize("shape", [(0, 0), (0, 70), (70, 0)])
def test_nothing_is_packed(packing: str, shape: tuple[int, int]) -> None:
    fmt = CSR.from_dense(torch.zeros(shape, dtype=F16))
    assert same_format(cuda_packing.unpack(cuda_packing.pack(fmt, "cpu", packing).clone()), fmt)


@pytest.mark.parametrize("packing", TILED)
def test_longest_rows_are_dealt_to_groups_of_lanes_forwards_and_backwards(packing: str) -> None:
    w = weight("random", 100, 300, 0.7, dtype=BF16) * (torch.arange(300) <= torch.arange(100)[:, None] * 2)
    order = Blob(packed(w, packing)).order
    for first, count in ((0, 64), (64, 36)):
        lengths = (w[first : first + count] != 0).sum(1)
        ranked = torch.argsort(lengths, descending=True, stable=True)
        positions = order[first + ranked.numpy()]
        groups = [*range(8), *reversed(range(8))] * 4
        assert positions.tolist() == [rank // 8 * 8 + groups[rank] for rank in range(count)]


def special(packing: str) -> CSR:
    """A format with NaN, infinities, -0.0, a subnormal and, for the bitmap, a stored zero."""
    values = torch.tensor([float("nan"), float("inf"), -0.0, float("-inf"), 1e-40, 0.0], dtype=BF16)
    values = values if packing == "bitmap" else values[:5]
    crow, col = torch.tensor([0, 2, 2, len(values)]), torch.tensor([3, 500, 0, 1, 64, 65], dtype=torch.int32)
    return CSR(values, crow, col[: len(values)].clone(), (3, 501))


@pytest.mark.parametrize("packing", TILED)
def test_bits_survive(packing: str) -> None:
    fmt = special(packing)
    assert same_format(cuda_packing.unpack(cuda_packing.pack(fmt, "cpu", packing)), fmt)


@pytest.mark.parametrize("packing", DELTA)
def test_deltas_leave_out_stored_zeros(packing: str) -> None:
    blob = cuda_packing.pack(special("bitmap"), "cpu", packing)
    assert same_format(cuda_packing.unpack(blob), special(packing))
    assert cuda_packing.describe(blob).nnz == 5


def test_a_dense_tile_is_a_stream_of_its_own_size() -> None:
    w = weight("all_dense", 64, 64, dtype=F16)
    assert len(Blob(packed(w, "bitmap")).streams) == w.nbytes
    for packing, bytes_ in (("delta4", 160), ("delta8", 192)):
        assert len(Blob(packed(w, packing)).streams) == 64 + 64 * bytes_


def test_lanes_that_fall_behind_skip_ahead() -> None:
    """16 dense rows in the first 16 columns give lanes 0, 4, ... 28 a full first word in each tile."""
    w = torch.zeros(64, 64 * 48, dtype=BF16)  # three tiles a piece
    w.view(64, 48, 64)[:16, :, :16] = 1
    w[40, 2 * 64 + 50] = 7
    blob = Blob(packed(w, "bitmap"))
    (_, _, stream), *_ = blob.streams_of_tiles()
    values = stream.view("u2").reshape(-1, 32, 2)  # [rows, lanes, halves]
    assert len(values) == 48
    filled = np.argwhere(values != 0)
    assert len(filled) == 16 * 16 * 3 + 1
    (late,) = filled[filled[:, 1] % 4 != 0]
    assert late.tolist() == [16, late[1], 0]  # after 64 of the furthest, so at 64 - 32
    assert same_bits(blob.dense(), w)


@pytest.mark.parametrize("packing", DELTA)
@pytest.mark.parametrize(
    "weights",
    [
        [(0, 0), (0, 1)],  # 64 places apart
        [(0, 0), (0, 5)],  # 68
        [(0, 0), (1, 63)],  # about as far as they can be
        [(0, 17), (0, 18), (1, 44), (2, 3), (9, 60)],
        [(r, c) for r in range(64) for c in range(0, 64, 7)],
        [],
    ],
)
def test_entries_are_dealt_with_zeros_on_long_ways(packing: str, weights: list[tuple[int, int]]) -> None:
    w = torch.zeros(64, 64, dtype=F16)
    for i, (r, c) in enumerate(weights):
        w[r, c] = i + 1
    blob = Blob(packed(w, packing))
    bits = w.numpy().view("u2")
    wanted: list[tuple[int, int]] = []
    for place, value in sorted((place_of(int(blob.order[r]), c), int(bits[r, c])) for r, c in weights):
        while wanted and place - wanted[-1][0] > MAX_DISTANCE[packing]:
            wanted.append((wanted[-1][0] + MAX_DISTANCE[packing], 0))
        wanted.append((place, value))
    wanted += wanted[-1:] * (-len(wanted) % 64)
    found = [
        entry for part in blob.streams_of_tiles() for _, entries in blob.entries(*part) for entry in entries
    ]
    assert [(byte % 128 // 2 * 64 + byte // 128, value) for byte, value in found] == wanted
    assert weights or blob.streams.tolist() == [0] * 64


def test_bytes_are_what_the_paper_says() -> None:
    """A bit for each place and 16 for each weight, or 16 and a code; what is more than that is filling."""
    n, k = 1024, 4096
    share = {}
    for packing, sparsity in (("bitmap", 0.5), ("delta8", 0.9), ("delta4", 0.5)):
        w = weight("random", n, k, sparsity, dtype=BF16)
        share[packing] = packed(w, packing).nbytes / w.nbytes
    assert 1 / 16 + 0.5 < share["bitmap"] < 0.63
    assert 0.1 * 3 / 2 < share["delta8"] < 0.2
    assert 0.5 * 2.5 / 2 < share["delta4"] < 0.66


def test_other_formats_dtypes_and_names_are_refused() -> None:
    w = torch.ones(16, 16)
    with pytest.raises(
        TypeError, match="values: expected bfloat16 or float16 for packing bitmap on CUDA, got f"
    ):
        cuda_packing.pack(CSR.from_dense(w), "cpu", "bitmap")
    with pytest.raises(TypeError, match="format: expected CSR for packing delta4, got BSR"):
        cuda_packing.pack(BSR.from_dense(w.to(BF16), (16, 16)), "cpu", "delta4")
    with pytest.raises(TypeError, match="format: expected BSR for packing bsr, got CSR"):
        cuda_packing.pack(CSR.from_dense(w), "cpu", "bsr")
    with pytest.raises(
        ValueError, match="packing: expected one of csr, bsr, bitmap, delta4, delta8, got 'sell'"
    ):
        cuda_packing.pack(CSR.from_dense(w), "cpu", "sell")
    with pytest.raises(ValueError, match="packing: expected one of csr, bitmap, delta4, delta8, got 'bsr'"):
        cuda_packing.pack_dense(w, "bsr")
