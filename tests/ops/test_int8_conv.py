"""Convolutions whose images are rounded to bytes, to the last bit of the reference in integers."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer.formats import CSR
from sparseinfer.ops.cpu import conv as cpu_conv
from sparseinfer.ops.geometry import Geometry

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Of blocks there are integers that need no rounding, in tests/native.
KERNELS = [k for k in ops.kernels() if k.available and k.storage == "i8" and k.conv and k.format == "csr"]

kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)


class Case(NamedTuple):
    """A convolution of x [batch, channels, height, width] by `n` filters."""

    size: tuple[int, int, int, int]
    n: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def x(self) -> Tensor:
        """Images of very different ranges."""
        g = torch.Generator().manual_seed(sum(self.size))
        x = torch.randn(self.size, generator=g)
        return x * 10.0 ** (torch.arange(self.size[0]) % 4)[:, None, None, None] + 0.3

    def weight(self) -> tuple[Tensor, Tensor]:
        """int8 [n, channels / groups, kernel], and scales [n]."""
        g = torch.Generator().manual_seed(self.n)
        shape = (self.n, self.size[1] // self.groups, *self.kernel_size)
        w = torch.randint(-128, 128, shape, generator=g) * (torch.rand(shape, generator=g) < 0.4)
        return w.to(torch.int8), torch.rand(self.n, generator=g) + 0.01

    def geometry(self) -> Geometry:
        return Geometry(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)


CASES = [
    Case((1, 8, 9, 13), 16, (1, 1)),
    Case((2, 6, 20, 30), 17, padding=(1, 1)),
    Case((3, 5, 7, 7), 9, padding=(1, 1)),
    Case((2, 4, 15, 18), 12, stride=(2, 2), padding=(1, 1)),
    Case((1, 3, 40, 41), 8, (7, 7), stride=(2, 2), padding=(3, 3)),
    Case((2, 3, 17, 23), 8, (2, 3), stride=(3, 3)),
    Case((2, 4, 12, 13), 8, (3, 2), stride=(1, 3), padding=(4, 2), dilation=(3, 2)),
    Case((2, 8, 11, 10), 12, padding=(1, 1), groups=2),
    Case((1, 12, 5, 66), 6, (1, 5), padding=(0, 2), groups=3),
    Case((70, 4, 1, 1), 8, padding=(1, 1)),
    Case((1, 2, 3, 2), 8, padding=(5, 6)),
    Case((1, 40, 16, 16), 8, (8, 8)),
]


def run(kernel: ops.KernelInfo, case: Case, x: Tensor, bias: Tensor | None = None, parts: int = 0) -> Tensor:
    w, scales = case.weight()
    rows = case.n // case.groups
    packings = [
        ops.pack(CSR.from_dense(matrix, s), kernel.packing, storage="i8", isa=kernel.isa)
        for matrix, s in zip(w.flatten(1).split(rows), scales.split(rows), strict=True)
    ]
    plan = f"*:0:{kernel.name}"
    return cpu_conv.run(x, packings, bias, case.n, case.geometry(), plan, "none", parts=parts)


def reference(case: Case, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Each image's channels of a group are rounded as one token is, and padded with zeros after that."""
    w, scales = case.weight()
    images = []
    for image in x.float():
        groups = []
        for channels, filters, s in zip(
            image.chunk(case.groups), w.chunk(case.groups), scales.chunk(case.groups), strict=True
        ):
            low, high = min(0.0, channels.min().item()), max(0.0, channels.max().item())
            scale = torch.tensor((high - low) / 255.0)
            zero = int(torch.floor(0.5 - torch.tensor(low) * (1.0 / scale)))
            q = ((channels * (1.0 / scale)).round().long() + zero).clamp(0, 255)
            signed = (q - zero).double()[None]
            sums = F.conv2d(signed, filters.double(), None, case.stride, case.padding, case.dilation)
            assert sums.abs().max() < 2**31
            groups.append(sums[0].float() * s[:, None, None] * scale)
        images.append(torch.cat(groups))
    y = torch.stack(images)
    return y if bias is None else y + bias[:, None, None]


@kernel
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.size}{c[2:]}")
def test_equal_to_the_reference(kernel: ops.KernelInfo, case: Case) -> None:
    x, bias = case.x(), torch.randn(case.n)
    assert torch.equal(run(kernel, case, x, bias), reference(case, x, bias))


@kernel
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_other_dtypes_of_x(kernel: ops.KernelInfo, dtype: torch.dtype) -> None:
    case = CASES[2]
    x = case.x().to(dtype)
    assert torch.equal(run(kernel, case, x), reference(case, x).to(dtype))


@kernel
def test_results_do_not_depend_on_how_work_is_shared(kernel: ops.KernelInfo) -> None:
    for case in (CASES[1], CASES[7]):
        x = case.x()
        whole = run(kernel, case, x, parts=1)
        assert all(torch.equal(run(kernel, case, x, parts=parts), whole) for parts in (2, 7))
        # An image does not depend on those beside it.
        assert torch.equal(run(kernel, case, x[1:]), whole[1:])


@kernel
def test_the_largest_sums_are_exact(kernel: ops.KernelInfo) -> None:
    """Zero points at both ends, where padding is 255 or 0."""
    case = Case((2, 64, 6, 6), 8, padding=(1, 1))
    x = torch.full(case.size, 255.0)
    x[1] = -255.0
    assert torch.equal(run(kernel, case, x), reference(case, x))


@kernel
def test_images_that_are_zero_or_not_finite(kernel: ops.KernelInfo) -> None:
    case, bias = Case((4, 3, 9, 9), 8, padding=(1, 1)), torch.randn(8)
    x = case.x()
    x[1] = 0.0
    x[2, 1, 4, 4] = float("nan")
    x[3, 2, 8, 8] = float("-inf")
    y = run(kernel, case, x, bias)
    assert torch.equal(y[:1], reference(case, x[:1], bias))
    assert torch.equal(y[1], bias[:, None, None].expand(8, 9, 9))
    assert y[2:].isnan().all()


@kernel
def test_images_without_pixels(kernel: ops.KernelInfo) -> None:
    """Only padding is seen of them."""
    case, bias = Case((2, 3, 0, 5), 8, padding=(2, 1)), torch.randn(8)
    y = run(kernel, case, case.x(), bias)
    assert torch.equal(y, bias[:, None, None].expand(2, 8, 2, 5))
