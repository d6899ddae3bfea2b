"""Convolutions on CUDA: the operator up to its launches, and what of images it copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_native import Native
from generators import tokens, values, weight
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sparseinfer.formats import CSR
from sparseinfer.modules.groups import split_rows
from sparseinfer.ops.cuda import conv as cuda_conv
from sparseinfer.ops.cuda import linear as cuda
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.geometry import Geometry
from sparseinfer.ops.reference import reference_conv
from sparseinfer.ops.schema import conv_fake

PLAN = "4:0:spmm_csr_f32_t4,*:0:spmm_csr_f32_t32"
LAST = torch.channels_last


def packed(w: Tensor, groups: int = 1) -> list[Tensor]:
    return [cuda_packing.pack(part, "cpu") for part in split_rows(CSR.from_dense(w), groups)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_the_product_of_its_windows(
    native: Native, groups: int, memory_format: torch.memory_format
) -> None:
    w, bias = weight("random", 8, 4 // groups * 6, 0.5, integer=True), torch.arange(8.0)
    x = tokens(3, 4 * 7 * 9, integer=True).view(3, 4, 7, 9).to(memory_format=memory_format)
    how: dict[str, Any] = {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2], "groups": groups}
    own, geometry = packed(w, groups), Geometry([2, 3], **how)
    y = cuda_conv.run(x, own, bias, 8, geometry, PLAN, "relu")
    wanted = reference_conv(x, w.view(8, 4 // groups, 2, 3), bias, "relu", **how)
    assert torch.equal(y.double(), wanted)
    assert y.is_contiguous(memory_format=memory_format)
    assert len(native.calls) == groups
    with pytest.raises(ValueError, match="packings: expected at least"):
        cuda_conv.run(x, own[1:], bias, 8, geometry, PLAN, "relu")
    assert len(native.calls) == groups


def test_kernels_of_one_weight_copy_no_image_in_channels_last(
    native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = []

    def run(columns: Tensor, *args: Any) -> Tensor:
        product = original(columns, *args)
        addresses.append((columns.data_ptr(), product.data_ptr()))
        return product

    original = cuda.product
    monkeypatch.setattr(cuda, "product", run)
    w = weight("random", 8, 4, 0.5, integer=True)
    x = values(2, 4, 5, 6, integer=True).to(memory_format=LAST)
    how: dict[str, Any] = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    y = cuda_conv.run(x, packed(w), None, 8, Geometry([1, 1], **how), PLAN, "none")
    assert torch.equal(y.double(), reference_conv(x, w.view(8, 4, 1, 1), None, **how))
    assert addresses == [(x.data_ptr(), y.data_ptr())]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_the_fake_lies_as_the_result_does(native: Native, memory_format: torch.memory_format) -> None:
    w, x = weight("random", 8, 4 * 9, 0.5), values(2, 4, 5, 6).to(memory_format=memory_format)
    arguments: Any = ([], None, 8, Geometry([3, 3], [1, 2], [1, 1], [1, 1], 1), PLAN, "none")
    y = cuda_conv.run(x, packed(w), *arguments[1:])
    with FakeTensorMode():
        fake = torch.empty_strided(x.shape, x.stride(), device="cuda")
        found = conv_fake(fake, *arguments)
        on_cpu = conv_fake(torch.empty_strided(x.shape, x.stride()), *arguments)
    assert (found.shape, found.stride()) == (y.shape, y.stride())
    assert on_cpu.stride() == y.stride()
