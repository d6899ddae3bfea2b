"""Planning for a GPU, on paper. Weights lie on the CPU and are packed as they would be on a GPU."""

from __future__ import annotations

import pytest
import torch
from generators import block_weight, values, weight
from torch import Tensor

from sparseinfer.convert.cuda_case import CudaLinearCase
from sparseinfer.convert.measure import Timer
from sparseinfer.convert.planner import Plan, plan
from sparseinfer.convert.weights import Weights, read
from sparseinfer.formats import BSR
from sparseinfer.ops import Layout, cuda_packing
from sparseinfer.ops.cuda_registry import CudaKernel
from sparseinfer.ops.dense import is_semi_structured, semi_structured_available

F32, BF16 = torch.float32, torch.bfloat16


def planned(w: Tensor, *tokens: int) -> Plan:
    weights = Weights(w, None)
    return plan(CudaLinearCase(weights, weights, w.dtype), tokens, Timer(measure=False), 1.0)


def kernels(found: Plan) -> list[tuple[int | None, str]]:
    return [(bucket.max_tokens, bucket.kernel) for bucket in found.buckets]


def test_scattered_zeros_take_lists_for_any_number_of_tokens() -> None:
    found = planned(weight("random", 4096, 4096, 0.95), 1, 64)
    assert kernels(found) == [(4, "spmm_csr_f32_t4"), (None, "spmm_csr_f32_t32")]
    assert len(found.packings) == 1


def test_few_zeros_stay_dense() -> None:
    for sparsity, reason in (
        (0.2, "too dense to win"),
        (0.4, "no layout takes at most 1"),
    ):
        found = planned(weight("random", 512, 512, sparsity, dtype=BF16), 1, 64)
        assert not found.is_sparse
        assert found.reason.startswith(reason)


def test_many_tokens_on_tensor_cores_stay_dense() -> None:
    found = planned(weight("random", 1024, 1024, 0.9, dtype=BF16), 1024)
    assert not found.is_sparse
    assert found.reason.startswith("dense is faster")


@pytest.mark.parametrize("block", cuda_packing.BLOCKS)
def test_zeros_in_blocks_take_blocks(block: int) -> None:
    w = block_weight(2048, 2048, (block, block), 0.9, dtype=BF16)
    weights = Weights(w, None)
    case = CudaLinearCase(weights, weights, BF16)
    layout = Layout("bsr", "bf16", block, "cuda")
    assert case.layouts(512) == (Layout("csr", "bf16", device="cuda"), layout)
    assert torch.equal(case.packed(layout)[0], cuda_packing.pack(BSR.from_dense(w, (block, block)), "cpu"))
    assert kernels(planned(w, 4096)) == [(None, f"spmm_bsr_bf16_b{block}")]


def test_blocks_that_are_half_empty_are_not_tried() -> None:
    w = weight("random", 256, 256, 0.9, dtype=BF16)
    assert CudaLinearCase(Weights(w, None), Weights(w, None), BF16).layouts(64) == (
        Layout("csr", "bf16", device="cuda"),
    )


def test_a_plan_for_any_number_of_tokens() -> None:
    names = [(b.max_tokens, b.kernel) for b in Layout("csr", "f16", device="cuda").buckets(0)]
    assert names == [(4, "spmm_csr_f16_t4"), (255, "spmm_csr_f16_t64"), (None, "decompress_csr_f16_p480")]
    assert [b.kernel for b in Layout("bsr", "f16", 32, "cuda").buckets(0)] == ["spmm_bsr_f16_b32"]


def test_every_kernel_that_a_plan_names_exists() -> None:
    from cuda_helpers import built_module

    built = {CudaKernel(**row).base_name for row in built_module().kernels()}
    layouts = [Layout("csr", storage, device="cuda") for storage in ("f32", "bf16", "f16")]
    layouts += [Layout("bsr", s, block, "cuda") for s in ("bf16", "f16") for block in cuda_packing.BLOCKS]
    planned_for = {bucket.kernel for layout in layouts for bucket in layout.buckets(0)}
    assert planned_for == built - {"decompress_csr_f32_p480"}  # float32 is never faster through a dense copy


def test_other_devices_are_named() -> None:
    reason = read(torch.nn.Linear(4, 4, device="meta"))
    assert reason == "it is on meta: the kernels run on cpu and cuda"


def test_two_of_four() -> None:
    w = values(64, 128, dtype=BF16) * torch.tensor([1, 0, 0, 1]).repeat(32)
    assert is_semi_structured(w)
    assert not is_semi_structured(w.float())
    assert not is_semi_structured(w[:63])
    w[5, 9] = 1
    assert not is_semi_structured(w)
    assert not semi_structured_available(values(64, 128, dtype=BF16))  # not on a GPU
