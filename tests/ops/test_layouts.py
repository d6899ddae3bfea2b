"""Layouts, plans and candidates follow from the rows of kernels, for both devices; no GPU is needed."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch

from sparseinfer import ops
from sparseinfer.formats import CSR
from sparseinfer.ops import Layout
from sparseinfer.ops.names import STORAGES

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DEVICES = ("cpu", "cuda")
TOKENS = (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 33, 47, 48, 64, 255, 256, 1000)
SPARSITIES = (0.0, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

on_every_device = pytest.mark.parametrize("device", DEVICES)


def test_token_limits_and_least_sparsities_are_those_that_plans_are_known_by() -> None:
    assert ops.token_limits("cpu") == (4, ops.FEW_TOKENS, 47, None) == (4, 15, 47, None)
    assert ops.token_limits("cuda") == ops.CUDA_LIMITS == (4, 8, 16, 32, 255, None)
    assert {ops.min_sparsity("cpu", dtype) for dtype in (F32, BF16, F16)} == {0.3}
    assert [ops.min_sparsity("cuda", dtype) for dtype in (F32, BF16, F16)] == [0.3, 0.2, 0.2]


def test_every_kernel_of_the_active_level_is_listed_for_some_dtypes() -> None:
    listed = {
        row.name
        for w, x in product((F32, BF16, F16, torch.int8), (F32, BF16, F16, torch.uint8))
        for row in ops.kernels_for("cpu", w, x)
    }
    assert listed == {kernel.name for kernel in ops.kernels_at(ops.active_isa())}
    packings = [row.base_name for row in ops.kernels_for("cpu", F32, F32)]
    assert {"spmm_csr_f32_r1", "spmm_bitmap_f32_r1", "spmm_bitmap_f32_t64"} < set(packings)


def test_storages_hold_what_native_code_packs() -> None:
    """The table in names.py says of each storage what packing would otherwise refuse."""
    for storage, dtype in product(STORAGES, (F32, BF16, F16)):
        fmt = CSR.from_dense(torch.eye(8, dtype=dtype))
        if dtype in STORAGES[storage].holds:
            assert ops.describe(ops.pack(fmt, "bitmap", storage=storage)).storage == storage
        else:
            with pytest.raises(ValueError, match="storage"):
                ops.pack(fmt, "bitmap", storage=storage)


@on_every_device
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_candidates_have_a_kernel_that_is_meant_for_the_call(device: str, dtype: torch.dtype) -> None:
    every = ops.all_layouts(device, dtype, dtype)
    for tokens, sparsity in product(TOKENS, SPARSITIES):
        candidates = ops.candidate_layouts(device, dtype, dtype, tokens, sparsity)
        assert candidates
        assert set(candidates) <= set(every)
        for layout in candidates:
            row = layout.row(tokens)
            assert row.is_planned
            assert row.serves(tokens)
            assert row.suits(max(sparsity, ops.min_sparsity(device, dtype)))


@pytest.mark.parametrize(("w_dtype", "x_dtype"), [*product((F32, BF16, F16), repeat=2)])
def test_cpu_candidates_are_layouts_that_may_win(w_dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    for tokens, sparsity in product(TOKENS, SPARSITIES):
        layouts = ops.layouts(w_dtype, x_dtype, tokens)
        may_win = tuple(layout for layout in layouts if ops.may_win(layout, sparsity))
        assert ops.candidate_layouts("cpu", w_dtype, x_dtype, tokens, sparsity) == may_win


def test_convolutions_are_offered_what_reads_windows() -> None:
    for dtype, storages in ((F32, ["f32"]), (BF16, ["f32", "wbf16"]), (F16, ["f32", "wf16"])):
        on_tiles = [Layout("tilemap", "bf16")] if dtype == BF16 and ops.active_isa() == "amx" else []
        narrow = [Layout(packing, s) for packing in ("rowgroup", "rowlist") for s in storages]
        wide = [Layout(packing, s, 384) for packing in ("rowgroup", "rowlist") for s in storages]
        few = ops.candidate_layouts("cpu", dtype, dtype, 1, 0.8, conv=True)
        # Where a kernel is meant for a single pixel, the others are not tried.
        assert set(few) == set(on_tiles or [*narrow, *wide])
        many = ops.candidate_layouts("cpu", dtype, dtype, 100, 0.8, conv=True)
        assert set(many) == {*narrow, *on_tiles}
    assert Layout("bitmap").conv_kernel() == "spmm_bitmap_f32_t64"
    assert Layout("bitmap").conv_buckets(1) == (ops.Bucket(None, 1, "spmm_bitmap_f32_t64"),)
    assert Layout("bitmap").buckets(1)[0] == ops.Bucket(15, 1, "spmm_bitmap_f32_r1")


@pytest.mark.skipif("amx" not in {row.isa for row in ops.kernels()}, reason="not a build for x86-64")
def test_kernels_on_tiles_name_their_unit_and_the_blocks_they_take() -> None:
    rows = {(row.packing, row.storage): row for row in ops.kernels() if row.isa == "amx"}
    for packing in ("tilemap", "bsr", "grouptile"):
        assert rows[packing, "bf16"].unit == "tile_bf16"
        assert rows[packing, "i8"].unit == "tile_int8"
    assert rows["tilemap", "wi8"].unit == "tile_bf16"  # integers that become bf16
    for storage in ("bf16", "i8"):
        blocks = [
            block
            for block in ((16, 1), (32, 5), (8, 1), (1, 4))
            if rows["grouptile", storage].takes_block(block)
        ]
        assert blocks == [(16, 1), (32, 5)]


@on_every_device
def test_a_plan_of_one_layout_names_its_kernel_everywhere(device: str) -> None:
    for dtype in (F32, BF16, F16):
        for layout in ops.all_layouts(device, dtype, dtype):
            buckets = layout.buckets(0)
            assert all(a.kernel != b.kernel for a, b in pairwise(buckets))
            for tokens in TOKENS:
                bucket = next(b for b in buckets if b.max_tokens is None or tokens <= b.max_tokens)
                assert bucket.kernel == layout.kernel(tokens)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (Layout("csr", "f32", device="cuda"), {4: "spmm_csr_f32_t4", None: "spmm_csr_f32_t32"}),
        (
            Layout("csr", "bf16", device="cuda"),
            {4: "spmm_csr_bf16_t4", 255: "spmm_csr_bf16_t64", None: "decompress_csr_bf16_p480"},
        ),
        (
            Layout("delta4", "f16", device="cuda"),
            {8: "spmm_delta4_f16_t8", 16: "spmm_delta4_f16_t16", 32: "spmm_delta4_f16_t32"}
            | {255: "spmm_delta4_f16_t64", None: "decompress_delta4_f16_p64"},
        ),
        (Layout("bsr", "bf16", 64, "cuda"), {None: "spmm_bsr_bf16_b64"}),
    ],
    ids=str,
)
def test_plans_for_a_gpu(layout: Layout, expected: dict[int | None, str]) -> None:
    assert {bucket.max_tokens: bucket.kernel for bucket in layout.buckets(0)} == expected


def test_a_layout_without_a_kernel_says_so() -> None:
    for layout in (Layout("sell", "bf17"), Layout("bsr", "bf16", 24, "cuda")):
        with pytest.raises(ValueError, match=f"layout: expected one with a kernel, got {layout}"):
            layout.kernel()


@pytest.mark.parametrize("packing", ["csr", "sell", "bitmap"])
def test_a_packing_of_one_panel_refuses_another(packing: str) -> None:
    fmt = CSR.from_dense(torch.ones(8, 100))
    with pytest.raises(ValueError, match=f"panel: expected 0 for packing {packing}, .* got 60"):
        ops.pack(fmt, packing, panel=60)
    assert torch.equal(ops.unpack(ops.pack(fmt, packing, panel=100)).to_dense(), torch.ones(8, 100))
