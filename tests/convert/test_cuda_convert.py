"""Planning for a GPU, on paper. Weights lie on the CPU and are packed as they would be on a GPU."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from generators import block_weight, values, weight
from torch import Tensor

from sparseinfer.convert.candidates import cuda_model
from sparseinfer.convert.candidates.cuda_linear import CudaLinearCandidates
from sparseinfer.convert.options import COMPACT
from sparseinfer.convert.plan import Plan, plan
from sparseinfer.convert.survey.weights import Weights, read
from sparseinfer.convert.timing.timer import Timer
from sparseinfer.formats import BSR
from sparseinfer.ops import Layout
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.kernels import CudaKernel
from sparseinfer.ops.cuda.tiles import TILED
from sparseinfer.ops.dense import is_semi_structured, semi_structured_available

F32, BF16 = torch.float32, torch.bfloat16


def candidates_of(w: Tensor) -> CudaLinearCandidates:
    return CudaLinearCandidates(Weights(w, None), Weights(w, None), w.dtype)


def planned(w: Tensor, *tokens: int, memory: float = 1.0) -> Plan:
    return plan(candidates_of(w), tokens, Timer(measure=False), memory)


def kernels(found: Plan) -> list[tuple[int | None, str]]:
    return [(bucket.max_tokens, bucket.kernel) for bucket in found.buckets]


def test_scattered_zeros_take_lists_for_any_number_of_tokens() -> None:
    found = planned(weight("random", 4096, 4096, 0.95), 1, 64)
    assert kernels(found) == [(4, "spmm_csr_f32_t4"), (None, "spmm_csr_f32_t32")]
    assert len(found.packings) == 1


@pytest.mark.parametrize(
    ("sparsity", "packing"), [(0.25, "bitmap"), (0.5, "bitmap"), (0.85, "delta[48]"), (0.93, "delta8")]
)
@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_few_tokens_take_tiles(sparsity: float, packing: str, dtype: torch.dtype) -> None:
    storage = {BF16: "bf16", torch.float16: "f16"}[dtype]
    found = planned(weight("random", 2048, 2048, sparsity, dtype=dtype), 8, 16)
    (few, first), (rest, second) = kernels(found)
    assert (few, rest) == (8, None)
    assert re.fullmatch(f"spmm_{packing}_{storage}_t8", first)
    assert second == first.replace("_t8", "_t16")
    assert len(found.packings) == 1


def test_the_smallest_packing_serves_any_number_of_tokens() -> None:
    for sparsity, packing in ((0.1, "bitmap"), (0.5, "bitmap"), (0.85, "delta4"), (0.95, "delta8")):
        w = weight("random", 512, 512, sparsity, dtype=BF16)
        layout = candidates_of(w).compact_layout()
        assert layout == Layout(packing, "bf16", device="cuda")
        found = planned(w, 1, memory=COMPACT)
        # A bit for each weight, and what pads the values, take more than those zeros would.
        assert found.is_sparse == (sparsity > 0.1)
        if found.is_sparse:
            assert found.buckets == layout.buckets(0)
    assert candidates_of(weight("random", 512, 512, 0.5)).compact_layout() == Layout(
        "csr", "f32", device="cuda"
    )


def test_few_zeros_stay_dense() -> None:
    for dtype, sparsity in ((BF16, 0.1), (torch.float32, 0.2)):
        found = planned(weight("random", 512, 512, sparsity, dtype=dtype), 1, 64)
        assert not found.is_sparse
        assert found.reason.startswith("too dense to win")


def test_many_tokens_on_tensor_cores_stay_dense() -> None:
    found = planned(weight("random", 1024, 1024, 0.9, dtype=BF16), 1024)
    assert not found.is_sparse
    assert found.reason.startswith("dense is faster")


@pytest.mark.parametrize("block", cuda_packing.BLOCKS)
def test_zeros_in_blocks_take_blocks(block: int) -> None:
    w = block_weight(2048, 2048, (block, block), 0.9, dtype=BF16)
    candidates = candidates_of(w)
    layout = Layout("bsr", "bf16", block, "cuda")
    assert candidates.layouts(512)[-1] == layout
    assert {other.packing for other in candidates.layouts(512)[:-1]} <= {"delta4", "delta8"}
    assert torch.equal(
        candidates.packed(layout)[0], cuda_packing.pack(BSR.from_dense(w, (block, block)), "cpu")
    )
    assert kernels(planned(w, 4096)) == [(None, f"spmm_bsr_bf16_b{block}")]


def test_blocks_that_are_half_empty_are_not_tried() -> None:
    w = weight("random", 256, 256, 0.97, dtype=BF16)
    layouts = tuple(Layout(packing, "bf16", device="cuda") for packing in ("delta8", "csr"))
    assert candidates_of(w).layouts(64) == layouts


def test_a_plan_for_any_number_of_tokens() -> None:
    names = [(b.max_tokens, b.kernel) for b in Layout("csr", "f16", device="cuda").buckets(0)]
    assert names == [(4, "spmm_csr_f16_t4"), (255, "spmm_csr_f16_t64"), (None, "decompress_csr_f16_p480")]
    assert [b.kernel for b in Layout("bsr", "f16", 32, "cuda").buckets(0)] == ["spmm_bsr_f16_b32"]


def test_every_kernel_that_a_plan_names_exists() -> None:
    from cuda_helpers import built_module

    built = {CudaKernel(**row).base_name for row in built_module().kernels()}
    layouts = [Layout("csr", storage, device="cuda") for storage in ("f32", "bf16", "f16")]
    for storage in ("bf16", "f16"):
        layouts += [Layout(packing, storage, device="cuda") for packing in TILED]
        layouts += [Layout("bsr", storage, block, "cuda") for block in cuda_packing.BLOCKS]
    planned_for = {bucket.kernel for layout in layouts for bucket in layout.buckets(0)}
    assert planned_for == built - {"decompress_csr_f32_p480"}  # float32 is never faster through a dense copy


def test_other_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.Linear(4, 4)
    monkeypatch.setattr(torch.Tensor, "device", property(lambda self: torch.device("xpu")))
    assert read(linear) == "it is on xpu: the kernels run on cpu and cuda"


def test_two_of_four() -> None:
    w = values(64, 128, dtype=BF16) * torch.tensor([1, 0, 0, 1]).repeat(32)
    assert is_semi_structured(w)
    assert not is_semi_structured(w.float())
    assert not is_semi_structured(w[:63])
    w[5, 9] = 1
    assert not is_semi_structured(w)
    assert not semi_structured_available(values(64, 128, dtype=BF16))  # not on a GPU


def test_a_gpu_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(name: str) -> cuda_model.Gpu:
        properties = SimpleNamespace(name=name, multi_processor_count=54)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        return cuda_model.gpu_of(torch.device("cuda", 0))

    assert on("NVIDIA H100 80GB HBM3") is cuda_model.H100
    assert on("NVIDIA A100-SXM4-80GB") is cuda_model.A100
    half = on("NVIDIA A30")
    assert (half.multiprocessors, half.clock) == (54, cuda_model.A100.clock)
    assert half.hbm == pytest.approx(cuda_model.A100.hbm / 2)


# A matrix of 64 x 128 tiles; on the GPU below a multiprocessor runs exactly one block of each row of tiles.
_GPU = cuda_model.Gpu("paper", 256, 1000.0, 2e6, 4e6, 500e6, 40e6, 300e6, clusters=True)
_N, _K = 4096, 8192


def test_terms_of_a_tiled_product() -> None:
    """By hand, for 16 tokens of which 10 exist."""
    tiles, nbytes = 64 * 128, 40_000_000
    asked = (_GPU, "bitmap", 16, _N, _K, 10, nbytes)
    terms = cuda_model.tiled_terms(*asked, cuda_model.Instructions(1000.0, 300.0))
    per_multiprocessor = tiles / 256 / 1000.0
    assert terms == pytest.approx(
        {
            "HBM": (nbytes + 2 * 10 * (_N + _K)) / 2e6,
            "L2": (nbytes + 2 * 10 * _K * 64 / 2) / 4e6,  # two rows of tiles read x together
            "issue": per_multiprocessor * 1000 / 4,
            "ALU": per_multiprocessor * 300 / 2,
            # The stream comes, a load for each of a lane's 128 weights, 16 tokens of 64 columns.
            "shared": per_multiprocessor * (nbytes / tiles / 128 + 128 + 16),
            "tensor cores": 2 * 16 * _N * _K / 300e6,
        }
    )


@pytest.mark.parametrize(("pairs", "clearing"), [(20, 64), (6, 6 * (1 + 2 * 1.9))])
def test_delta_scatters_and_clears(pairs: int, clearing: float) -> None:
    """As a whole where there are many pairs: 64 stores of 128 bytes. Else once more through the codes."""
    tiles = 64 * 128
    nbytes = tiles * (65 + pairs * 160)
    assert cuda_model.pairs_per_tile("delta4", nbytes, tiles) == pytest.approx(pairs)
    terms = cuda_model.tiled_terms(_GPU, "delta4", 8, _N, _K, 8, nbytes)
    accesses = nbytes / tiles / 128 + pairs * (2 + 2 * 1.9) + 64 + clearing + 8
    assert terms["shared"] == pytest.approx(tiles / 256 / 1000.0 * accesses)


@pytest.mark.parametrize(("sparsity", "most"), [(0.6, 15), (0.8, 15), (0.9, 64), (0.95, 64)])
def test_lanes_meet_in_a_bank_as_often_as_the_model_says(sparsity: float, most: int) -> None:
    """A transcription of how entries are dealt and stored, csrc/include/sparseinfer/gpu_tiles.h."""
    generator = np.random.default_rng(0)
    passes = []
    for _ in range(20):
        places = np.flatnonzero(generator.random(4096) >= sparsity)
        fillers = [np.arange(a + most, b, most) for a, b in itertools.pairwise(places)]
        places = np.sort(np.concatenate((places, *fillers)))
        per_lane = 2 * -(-len(places) // 64)
        dealt = np.full(32 * per_lane, places[-1])
        dealt[: len(places)] = places
        for stored in dealt.reshape(32, per_lane).T:
            words = {(place // 128, place % 64) for place in stored}  # bank and row
            passes.append(max(Counter(bank for bank, _ in words).values()))
    assert np.mean(passes) == pytest.approx(1.9, abs=0.15)


def test_more_tokens_than_a_tile_read_the_weight_again() -> None:
    one, three = (cuda_model.tiled_terms(_GPU, "bitmap", 64, _N, _K, m, 40_000_000) for m in (64, 130))
    assert three["issue"] == pytest.approx(3 * one["issue"])
    assert three["HBM"] > 2.9 * one["HBM"]


def test_blocks_that_do_not_fill_the_multiprocessors() -> None:
    single = cuda_model.Gpu("single", 100, 1000.0, 2e6, 4e6, 500e6, 40e6, 300e6)
    wide, narrow = (cuda_model.tiled_terms(single, "bitmap", 8, n, _K, 8, n * 10_000) for n in (6400, 3200))
    assert wide["issue"] == pytest.approx(narrow["issue"])  # 50 blocks leave half of 100 idle
