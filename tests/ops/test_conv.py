"""The operator conv: every kernel that takes a convolution, forced by name and compared with fp64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from generators import values, weight
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import _core, ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cpu import conv as cpu_conv
from sparseinfer.ops.geometry import Geometry

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Weight and activation dtypes that each storage takes.
DTYPES = {
    "f32": [(F32, F32), (BF16, BF16), (F16, F16), (BF16, F32)],
    "bf16": [(BF16, F32), (BF16, BF16)],
    "wbf16": [(BF16, F32), (BF16, BF16)],
    "wf16": [(F16, F32), (F16, F16)],
}
# Those of int8 are in test_int8_kernels.py.
KERNELS = [k for k in ops.kernels() if k.available and k.conv and k.storage in DTYPES]

kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)


@dataclass(frozen=True)
class Case:
    b: int = 2
    c: int = 4
    size: tuple[int, int] = (9, 11)
    n: int = 12
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def geometry(self) -> dict[str, object]:
        names = ("stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    def x(self, *, integer: bool = True) -> Tensor:
        return values(self.b, self.c, *self.size, integer=integer, seed=7)

    def w(self, *, integer: bool = True, sparsity: float = 0.6) -> Tensor:
        k = self.c // self.groups * self.kernel[0] * self.kernel[1]
        flat = weight("random", self.n, k, sparsity, integer=integer)
        return flat.reshape(self.n, self.c // self.groups, *self.kernel)


CASES = [
    Case(kernel=(1, 1), padding=(0, 0)),
    Case(kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    Case(kernel=(1, 1), padding=(2, 1)),
    Case(),
    Case(padding=(0, 0)),
    Case(padding=(2, 2)),
    Case(stride=(2, 2)),
    Case(stride=(1, 2)),
    Case(stride=(2, 1)),
    Case(stride=(3, 2), padding=(0, 2)),
    Case(dilation=(2, 2), padding=(2, 2)),
    Case(dilation=(1, 3), padding=(0, 1)),
    Case(kernel=(5, 5), padding=(2, 2)),
    Case(kernel=(7, 7), padding=(3, 3), stride=(2, 2), size=(20, 23)),
    Case(kernel=(1, 7), padding=(0, 3)),
    Case(kernel=(7, 1), padding=(3, 0)),
    Case(kernel=(2, 4), padding=(1, 2)),
    Case(kernel=(9, 11), padding=(0, 0)),
    Case(size=(1, 1), b=70),
    Case(size=(1, 1), b=3, kernel=(1, 1), padding=(0, 0)),
    Case(size=(7, 7), b=5),
    Case(size=(1, 200), kernel=(1, 3), padding=(0, 1)),
    Case(size=(200, 1), kernel=(3, 1), padding=(1, 0)),
    Case(size=(3, 2), padding=(6, 5)),
    Case(size=(16, 64), b=1),
    Case(size=(33, 65), b=1, c=3, n=5),
    Case(groups=2),
    Case(groups=4, stride=(2, 2)),
    Case(groups=4, n=4, b=3),
    Case(c=40, kernel=(3, 3), size=(6, 6), b=3),
    Case(b=0),
]
cases = pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))


def packed(kernel: ops.KernelInfo, w: Tensor, groups: int = 1) -> list[Tensor]:
    matrix = w.flatten(1)
    step = matrix.shape[0] // groups
    found = []
    for group in range(groups):
        part = matrix[group * step : (group + 1) * step]
        fmt: CSR | BSR = CSR.from_dense(part)
        if kernel.format == "bsr":
            r, c = (max(d for d in (1, 2, 3, 4) if size % d == 0) for size in part.shape)
            fmt = BSR.from_dense(part, (max(r, kernel.block_rows), c))
        found.append(ops.pack(fmt, kernel.packing, storage=kernel.storage, isa=kernel.isa))
    return found


def forced(
    kernel: ops.KernelInfo,
    case: Case,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    parts: int = 0,
) -> Tensor:
    """Run exactly this kernel; a plan with the full name cannot run another one."""
    return cpu_conv.run(
        x,
        packed(kernel, w, case.groups),
        bias,
        w.shape[0],
        Geometry(w.shape[2:], case.stride, case.padding, case.dilation, case.groups),
        f"*:0:{kernel.name}",
        activation,
        parts=parts,
    )


def assert_close(y: Tensor, case: Case, x: Tensor, w: Tensor, bias: Tensor) -> None:
    """|y - ref| <= 2 eps (nnz_row + 2) (|x| * |w| + |bias|), a sum in any order, and y's own rounding."""
    wanted = ops.reference_conv(x, w, bias, **case.geometry)
    magnitude = ops.reference_conv(x.abs(), w.abs(), bias.abs(), **case.geometry)
    terms = (w != 0).flatten(1).sum(1)[:, None, None] + 2
    rounding = torch.finfo(x.dtype).eps / 2 if x.dtype != F32 else 0.0
    smallest = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
    allowed = 2 * torch.finfo(F32).eps * terms * magnitude + rounding * wanted.abs() + smallest
    error = (y.double() - wanted).abs()
    assert (error <= allowed).all(), f"largest error {error.max():.3g}"


def test_the_registry_has_convolutions_at_every_level() -> None:
    levels = {k.isa for k in ops.kernels()} - {"amx"}
    for packing in ("bitmap", "rowgroup", "rowlist", "bsr", "grouplist"):
        assert {k.isa for k in ops.kernels() if k.packing == packing and k.conv} == levels
    assert {k.storage for k in ops.kernels() if k.conv} == {*DTYPES, "wi8", "i8"}


@kernel
@cases
def test_integers_are_exact(kernel: ops.KernelInfo, case: Case) -> None:
    bias = values(case.n, integer=True)
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    y = forced(kernel, case, case.x().to(x_dtype), case.w().to(w_dtype), bias)
    wanted = ops.reference_conv(case.x(), case.w(), bias, **case.geometry)
    assert y.dtype == x_dtype
    assert y.is_contiguous()
    assert torch.equal(y.double(), wanted)


@kernel
@pytest.mark.parametrize(
    "case", [CASES[3], CASES[6], CASES[20], CASES[27]], ids=["same", "s2", "7", "groups"]
)
def test_every_dtype(kernel: ops.KernelInfo, case: Case) -> None:
    bias = values(case.n, integer=True)
    wanted = ops.reference_conv(case.x(), case.w(), bias, **case.geometry)
    for w_dtype, x_dtype in DTYPES[kernel.storage]:
        for bias_dtype in (F32, x_dtype):
            y = forced(kernel, case, case.x().to(x_dtype), case.w().to(w_dtype), bias.to(bias_dtype))
            assert y.dtype == x_dtype
            assert torch.equal(y, wanted.to(x_dtype))


@kernel
@pytest.mark.parametrize("sparsity", [0.0, 0.8, 1.0])
def test_close_to_fp64(kernel: ops.KernelInfo, sparsity: float) -> None:
    case = Case(b=2, c=24, size=(14, 13), n=40)
    bias = values(case.n)
    for w_dtype, x_dtype in DTYPES[kernel.storage]:
        x = case.x(integer=False).to(BF16 if kernel.storage == "bf16" else x_dtype).to(x_dtype)
        w = case.w(integer=False, sparsity=sparsity).to(w_dtype)
        assert_close(forced(kernel, case, x, w, bias), case, x, w, bias)


@kernel
@pytest.mark.parametrize("activation", [name for name in ops.ACTIVATIONS if name != "none"])
def test_activations(kernel: ops.KernelInfo, activation: str) -> None:
    case = Case()
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    x, w, bias = case.x(), case.w().to(w_dtype), values(case.n)
    y = forced(kernel, case, x.to(x_dtype), w, bias, activation)
    wanted = ops.reference_conv(x, w, bias, activation, **case.geometry)
    torch.testing.assert_close(y.double(), wanted, rtol=2e-6, atol=2e-6)


@kernel
@pytest.mark.parametrize(
    "case",
    [
        Case(b=4, c=8, size=(30, 31), n=30),
        Case(b=1, c=8, size=(12, 13), n=200),
        Case(b=3, c=8, size=(40, 40), n=20, groups=2, stride=(2, 2)),
    ],
    ids=["tiles", "rows", "groups"],
)
def test_results_do_not_depend_on_threads(kernel: ops.KernelInfo, case: Case) -> None:
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    x, w = case.x(integer=False).to(x_dtype), case.w(integer=False).to(w_dtype)
    whole = forced(kernel, case, x, w, parts=1)
    for parts in (2, 3, 7, 50):
        assert torch.equal(forced(kernel, case, x, w, parts=parts), whole)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(forced(kernel, case, x, w), whole)
    finally:
        torch.set_num_threads(before)


@kernel
def test_nan_reaches_only_what_the_kernel_covers(kernel: ops.KernelInfo) -> None:
    if kernel.format == "bsr":
        pytest.skip("a block holds zeros, and zero times NaN is NaN")
    case = Case(b=2, c=2, size=(9, 11), n=4)
    w = torch.zeros(case.n, case.c, 3, 3)
    w[0, 0, 0, 0], w[1, 1, 2, 2], w[2, 0, 1, 1] = 1.0, 2.0, 3.0
    x = torch.ones(case.b, case.c, 9, 11)
    x[0, 0, 4, 5], x[1, 1, 0, 0], x[1, 0, 8, 10] = float("nan"), float("inf"), float("nan")
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    y = forced(kernel, case, x.to(x_dtype), w.to(w_dtype))
    # Where a non-zero weight meets a number that is not finite, found by counting those meetings.
    met = ops.reference_conv((~x.isfinite()).double(), (w != 0).double(), **case.geometry) > 0
    assert torch.equal(~y.isfinite(), met)
    assert int(met.sum()) == 3


def test_any_strides_of_x() -> None:
    case = Case(b=3, c=4, size=(6, 7))
    x, w = case.x(), case.w()
    wanted = ops.reference_conv(x, w, **case.geometry)
    wide = torch.full((3, 8, 6, 14), float("nan"))
    wide[:, ::2, :, ::2] = x
    for strided in (
        x.contiguous(memory_format=torch.channels_last),
        wide[:, ::2, :, ::2],
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        y = forced(KERNELS[0], case, strided, w)
        assert torch.equal(y.double(), wanted)
        assert y.stride() == F.conv2d(strided, w, **case.geometry).stride()


def test_a_plan_picks_by_pixels() -> None:
    case = Case(b=1, c=4, n=8, groups=2)
    kernels = [next(k for k in KERNELS if k.packing == name) for name in ("rowgroup", "rowlist")]
    w = case.w()
    packings = [blob for k in kernels for blob in packed(k, w, 2)]
    plan = f"40:0:{kernels[0].base_name},*:1:{kernels[1].base_name}"
    for size in ((5, 8), (5, 9)):
        x = replace(case, size=size).x()
        y = ops.conv(
            x,
            packings,
            None,
            8,
            kernel_size=[3, 3],
            stride=[1, 1],
            padding=[1, 1],
            dilation=[1, 1],
            groups=2,
            plan=plan,
            activation="none",
        )
        assert torch.equal(y.double(), ops.reference_conv(x, w, **case.geometry))


PLAN = "*:0:spmm_rowgroup_f32_r4"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(4, 9, 11)}, ValueError, r"x: expected 4 dimensions .* got shape \(4, 9, 11\)"),
        ({"x": torch.ones(2, 5, 9, 11)}, ValueError, "x: expected 36 weights a row .* got 45"),
        ({"x": torch.ones(2, 4, 9, 11).double()}, TypeError, "x: expected dtype torch.float32"),
        ({"x": torch.ones(2, 4, 1, 0)}, ValueError, r"x: expected images of at least \[3, 3\].*got \[3, 2\]"),
        ({"n": 13}, ValueError, "n: expected 12 out_features as packed, got 13"),
        ({"n": -12}, ValueError, "groups: expected a divisor"),
        ({"bias": torch.ones(11)}, ValueError, r"bias: expected shape \(12,\)"),
        ({"bias": torch.ones(12).double()}, TypeError, "bias: expected dtype"),
        ({"kernel_size": [3]}, ValueError, "kernel_size: expected 2 numbers of at least 1"),
        ({"kernel_size": [2, 3]}, ValueError, "x: expected 36 weights a row as packed"),
        ({"stride": [0, 1]}, ValueError, "stride: expected 2 numbers of at least 1"),
        ({"padding": [-1, 1]}, ValueError, "padding: expected 2 numbers of at least 0"),
        ({"dilation": [1, 0]}, ValueError, "dilation: expected 2 numbers"),
        ({"dilation": [1, 1 << 40]}, ValueError, "x: expected images of at least"),
        ({"stride": [1 << 40, 1]}, ValueError, "stride: expected a size from 1 to 2147483647"),
        ({"groups": 3}, ValueError, "groups: expected a divisor of 4 channels and of 12 out_channels, got 3"),
        ({"groups": 0}, ValueError, "groups: expected a divisor"),
        ({"groups": 2}, ValueError, "packings: expected at least 2"),
        ({"activation": "tanh"}, ValueError, "activation: expected one of none, relu"),
        ({"plan": "*:0:spmm_csr_f32_r1"}, ValueError, "kernel: expected one that takes a convolution"),
        ({"plan": "*:0:spmm_rowlist_f32_r1"}, ValueError, "kernel: expected a rowlist packing"),
        ({"plan": "*:1:spmm_rowgroup_f32_r4"}, ValueError, "packings: expected at least 2"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    case = Case()
    arguments: dict[str, object] = {
        "x": case.x(),
        "packings": [ops.pack(CSR.from_dense(case.w().flatten(1)), "rowgroup")],
        "bias": None,
        "n": case.n,
        "kernel_size": [3, 3],
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "plan": PLAN,
        "activation": "none",
    }
    with pytest.raises(error, match=message):
        ops.conv(**{**arguments, **change})


def test_kernels_for_few_tokens_refuse_a_convolution() -> None:
    case = Case(n=16)
    for other in [k for k in ops.kernels() if k.available and not k.conv and k.storage not in ("i8", "wi8")]:
        dtype = F32 if other.storage == "f32" else F16 if other.storage == "wf16" else BF16
        with pytest.raises(ValueError, match=f"expected one that takes a convolution, got {other.name}"):
            forced(other, case, case.x().to(dtype), case.w().to(dtype))


def native_conv(arguments: dict[str, object]) -> None:
    """The native call, from its fields by name."""
    names = {
        "images": ("x", "y", "dtype", "x_shape", "y_shape"),
        "epilogue": ("bias", "bias_dtype", "activation"),
        "window": ("kernel_size", "stride", "padding", "dilation"),
    }
    structs = {struct: tuple(arguments[name] for name in fields) for struct, fields in names.items()}
    _core.conv(arguments["kernel"], packed=arguments["packed"], **structs)


def test_sizes_are_not_trusted() -> None:
    """The native call refuses what the operator would never pass, before it reads or writes."""
    case = Case()
    blob = ops.pack(CSR.from_dense(case.w().flatten(1)), "rowgroup")
    identity = next(i for i, k in enumerate(ops.kernels()) if k.available and k.packing == "rowgroup")
    arguments: dict[str, object] = {
        "kernel": identity,
        "x": 0,
        "dtype": 0,
        "x_shape": [2, 4, 9, 11],
        "packed": [blob.data_ptr()],
        "bias": 0,
        "bias_dtype": 0,
        "y": 0,
        "y_shape": [2, 12, 9, 11],
        "kernel_size": [3, 3],
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "activation": 0,
    }
    big = (1 << 31) - 1
    for name, value in [
        ("x_shape", [3, 4, 9, 11]),
        ("x_shape", [2, 4, -9, 11]),
        ("x_shape", [2, 4, big, big]),
        ("y_shape", [2, 12, big, big]),
        ("y_shape", [2, 12, 1 << 40, 1]),
        ("y_shape", [-2, 12, 9, 11]),
        ("kernel_size", [1 << 62, 4]),
        ("kernel_size", [3, -3]),
        ("stride", [0, 1]),
        ("stride", [big, 1]),
        ("padding", [-1, 0]),
        ("dilation", [big, 1]),
        ("packed", []),
        ("packed", [blob.data_ptr()] * 3),
        ("activation", 99),
        ("dtype", 7),
        ("bias_dtype", 2),
    ]:
        with pytest.raises(ValueError, match="expected"):
            native_conv(arguments | {name: value})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "case", [Case(), Case(groups=2, stride=(2, 1)), Case(b=0)], ids=["one", "groups", "b0"]
)
def test_opcheck(case: Case, bias: bool) -> None:
    blobs = packed(next(k for k in KERNELS if k.packing == "rowgroup"), case.w(), case.groups)
    geometry = [list(case.kernel), list(case.stride), list(case.padding), list(case.dilation), case.groups]
    args = (case.x(), blobs, values(case.n) if bias else None, case.n, *geometry, PLAN, "none")
    torch.library.opcheck(torch.ops.sparseinfer.conv.default, args)
