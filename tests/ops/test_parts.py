"""`ops.linear_parts`: the rows of one matrix as tensors of their own, with the bits of `ops.linear`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_kernels import AVAILABLE, BF16, DTYPES, F16, F32, formats_for, weight_for
from torch import Tensor

from sparseinfer import _core, ops
from sparseinfer.formats import BSR, CSR

kernel = pytest.mark.parametrize("kernel", AVAILABLE, ids=lambda k: k.name)

TOKENS = (0, 1, 2, 5, 16, 33, 64, 65, 200)
# Parts of one row, of some, of a whole split and of several; splits of 64 rows end at multiples of 16 or so.
SIZES = {
    "one": [64],
    "halves": [32, 32],
    "a row": [1, 63],
    "last row": [63, 1],
    "odd": [3, 5, 17, 39],
    "each in a split": [1, 3, 5, 7, 16, 32],
    "rows": [1] * 64,
    "quarters": [16] * 4,
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def packed_for(kernel: ops.KernelInfo, fmt: CSR | BSR) -> Tensor:
    return ops.pack(fmt, kernel.packing, storage=kernel.storage, isa=kernel.isa)


def plan_of(kernel: ops.KernelInfo) -> str:
    """A plan with the full name cannot run another kernel."""
    return f"*:0:{kernel.name}"


def assert_parts(
    kernel: ops.KernelInfo,
    packed: Tensor,
    x: Tensor,
    bias: Tensor | None,
    sizes: list[int],
    wanted: list[bool],
) -> None:
    plan, n = plan_of(kernel), sum(sizes)
    whole = ops.linear(x, [packed], bias, n, plan, "none")
    parts = ops.linear_parts(x, [packed], bias, sizes, wanted, plan)
    assert len(parts) == len(sizes)
    for part, expected, want in zip(parts, whole.split(sizes, -1), wanted, strict=True):
        if not want:
            assert part is None
            continue
        assert part is not None
        assert part.dtype == whole.dtype
        assert part.shape == expected.shape
        assert part.is_contiguous()
        assert part.storage_offset() == 0
        assert part.untyped_storage().nbytes() == part.nbytes
        bits = torch.int32 if part.dtype == F32 else torch.int16
        assert torch.equal(part.view(bits), expected.contiguous().view(bits))


@kernel
@pytest.mark.parametrize("sizes", SIZES)
def test_every_kernel(kernel: ops.KernelInfo, sizes: str) -> None:
    w, cut = weight_for(kernel, 64, 96, 0.7), SIZES[sizes]
    bias = torch.randn(64)
    turn = 0
    for w_dtype, x_dtype in DTYPES[kernel.storage]:
        for fmt in formats_for(kernel, w.to(w_dtype))[:2]:
            packed = packed_for(kernel, fmt)
            for m in TOKENS:
                turn += 1
                torch.set_num_threads(1 + turn % 2)
                x = torch.randn(m, 96).to(x_dtype)
                wanted = [(i + turn) % 3 != 0 for i in range(len(cut))] if turn % 4 else [True] * len(cut)
                assert_parts(kernel, packed, x, [None, bias, bias.to(x_dtype)][turn % 3], cut, wanted)


@kernel
def test_passes_and_tokens_of_a_thread_s_own(kernel: ops.KernelInfo) -> None:
    """1100 tokens: several passes, and each thread from x to y; many rows: splits of every length."""
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    w = weight_for(kernel, 704, 48, 0.9)
    cut = [1, 191, 320, 3, 5, 120, 64]
    fmt = formats_for(kernel, w.to(w_dtype))[0]
    packed, bias = packed_for(kernel, fmt), torch.randn(704)
    for m in (1100, 1024, 513):
        x = torch.randn(m, 48).to(x_dtype)
        for count in (1, 2):
            torch.set_num_threads(count)
            for wanted in ([True] * 7, [False, True, False, True, True, False, True]):
                assert_parts(kernel, packed, x, bias, cut, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, 17, 33, 100, 257])
def test_every_cut_in_two(n: int) -> None:
    for kernel in AVAILABLE:
        w_dtype, x_dtype = DTYPES[kernel.storage][0]
        fmt = formats_for(kernel, weight_for(kernel, n, 40, 0.6).to(w_dtype))[0]
        packed, x = packed_for(kernel, fmt), torch.randn(5, 40).to(x_dtype)
        for cut in range(1, n):
            assert_parts(kernel, packed, x, None, [cut, n - cut], [cut % 2 == 0, cut % 3 != 0])


K, N = 24, 12
CUT = [5, 7]


def case(w_dtype: torch.dtype = F32) -> tuple[Any, Tensor, str]:
    fmt = CSR.from_dense((torch.randn(N, K) * (torch.rand(N, K) > 0.6)).to(w_dtype))
    packed = ops.pack(fmt, "rowgroup")
    return fmt, packed, f"*:0:{ops.default_kernel(packed, 4)}"


def test_nothing_is_written_besides() -> None:
    """Parts that nobody wants are computed with nobody's memory."""
    _, packed, plan = case()
    x = torch.randn(9, K)
    for wanted in ([False, False], [True, False], [False, True]):
        before = x.clone()
        assert [part is not None for part in ops.linear_parts(x, [packed], None, CUT, wanted, plan)] == wanted
        assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(K,), (1, K), (2, 3, K), (0, K), (2, 0, K), (3, 1, 1, K)])
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    fmt, packed, plan = case()
    x = torch.randn(shape)
    bias = torch.randn(N)
    parts = ops.linear_parts(x, [packed], bias, CUT, [True, True], plan)
    whole = ops.linear(x, [packed], bias, N, plan, "none")
    for part, expected in zip(parts, whole.split(CUT, -1), strict=True):
        assert part is not None
        assert torch.equal(part, expected)
        assert part.stride() == torch.empty(part.shape).stride()
    assert torch.allclose(whole.double(), ops.reference_linear(x, fmt, bias), atol=1e-4)


def test_strides_of_x() -> None:
    _, packed, plan = case()
    wide = torch.randn(7, 2 * K + 3)
    for x in (wide[:, :K], wide[:, 3 : K + 3], wide[::2, :K], wide[:, : 2 * K : 2], torch.randn(K, 7).T):
        parts = ops.linear_parts(x, [packed], None, CUT, [True, True], plan)
        whole = ops.linear(x.contiguous(), [packed], None, N, plan, "none")
        assert torch.equal(torch.cat(parts, -1), whole)  # type: ignore[arg-type]
    x = torch.randn(1, K).expand(6, K)
    parts = ops.linear_parts(x, [packed], None, CUT, [True, True], plan)
    assert torch.equal(torch.cat(parts, -1), ops.linear(x, [packed], None, N, plan, "none"))  # type: ignore[arg-type]


def test_the_plan_says_which_packing() -> None:
    fmt, packed, _ = case()
    other = ops.pack(fmt, "sell")
    first, second = ops.default_kernel(other, 1), ops.default_kernel(packed, 8)
    plan = f"4:1:{first},*:0:{second}"
    for m in (1, 4, 5, 9):
        x = torch.randn(m, K)
        parts = ops.linear_parts(x, [packed, other], None, CUT, [True, True], plan)
        whole = ops.linear(x, [packed, other], None, N, plan, "none")
        assert torch.equal(torch.cat(parts, -1), whole)  # type: ignore[arg-type]


def test_bias_dtypes() -> None:
    _, packed, plan = case()
    bias = torch.randint(-3, 4, (N,)).float()
    x = torch.randn(3, K)
    wanted = ops.linear(x, [packed], bias, N, plan, "none")
    strided = torch.stack([bias, bias], 1)[:, 0]
    for given in (bias.to(BF16), bias.to(F16), strided):
        parts = ops.linear_parts(x, [packed], given, CUT, [True, True], plan)
        assert torch.equal(torch.cat(parts, -1), wanted)  # type: ignore[arg-type]


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            ({"x": torch.ones(())}, ValueError, "x: expected at least 1 dimension"),
            ({"x": torch.ones(3, K + 1)}, ValueError, f"x: expected {K} in_features"),
            ({"x": torch.ones(3, 0)}, ValueError, f"x: expected {K} in_features"),
            ({"x": torch.ones(3, K, dtype=torch.float64)}, TypeError, "x: expected dtype torch.float32"),
            ({"x": torch.ones(3, K, dtype=torch.int32)}, TypeError, "x: expected dtype torch.float32"),
            ({"sizes": [5, 8]}, ValueError, "out_features"),
            ({"sizes": [5, 6]}, ValueError, "out_features"),
            ({"sizes": []}, ValueError, "wanted|sizes|out_features"),
            ({"sizes": [0, 12]}, ValueError, "expected"),
            ({"sizes": [-1, 13]}, (ValueError, RuntimeError), "expected|negative"),
            ({"sizes": [12]}, ValueError, "wanted|sizes"),
            ({"wanted": [True]}, ValueError, "wanted|sizes"),
            ({"wanted": [True] * 3}, ValueError, "wanted|sizes"),
            ({"packings": []}, ValueError, "packings: expected at least 1"),
            ({"packings": [torch.zeros(64, dtype=torch.uint8)]}, ValueError, "packed|packing"),
            ({"bias": torch.ones(N + 1)}, ValueError, r"bias: expected shape \(12,\)"),
            ({"bias": torch.ones(N, dtype=torch.int32)}, TypeError, "bias: expected dtype"),
            ({"bias": torch.ones(N, device="meta")}, ValueError, "bias: expected a tensor on the CPU"),
            ({"plan": "*:0:spmm_nothing"}, ValueError, "kernel"),
            ({"plan": "*:1:spmm_rowgroup_f32_r4"}, ValueError, "packings: expected at least 2|kernel"),
            ({"plan": "nonsense"}, ValueError, "plan: expected"),
        ],
        ids=range(21),
    )
    def test_are_named(self, change: dict[str, Any], error: Any, match: str) -> None:
        _, packed, plan = case()
        good = {
            "x": torch.ones(3, K),
            "packings": [packed],
            "bias": None,
            "sizes": CUT,
            "wanted": [True, True],
            "plan": plan,
        }
        ops.linear_parts(**good)
        with pytest.raises(error, match=match) as e:
            ops.linear_parts(**{**good, **change})
        assert ": expected " in str(e.value)

    def test_another_packing(self) -> None:
        fmt, _, plan = case()
        with pytest.raises(ValueError, match="kernel: expected a rowgroup packing"):
            ops.linear_parts(torch.ones(3, K), [ops.pack(fmt, "sell")], None, CUT, [True, True], plan)

    def test_a_damaged_packing(self) -> None:
        _, packed, plan = case()
        packed[: packed.numel() // 2] = 0
        with pytest.raises(ValueError, match="expected"):
            ops.linear_parts(torch.ones(3, K), [packed], None, CUT, [True, True], plan)

    def test_the_native_call(self) -> None:
        _, packed, plan = case()
        x, y = torch.ones(3, K), torch.empty(3, N)
        kernel = next(i for i, k in enumerate(ops.kernels()) if k.available and k.name.startswith(plan[4:]))
        args = (kernel, (x.data_ptr(), 0, 3, K, K), packed.data_ptr(), (0, 0))
        for ys, match in (
            ([(y.data_ptr(), 0), (y.data_ptr(), N)], "ys: expected rows in each, got 0"),
            ([(y.data_ptr(), -3), (y.data_ptr(), N + 3)], "ys: expected rows in each, got -3"),
            ([(y.data_ptr(), N - 1)], "out_features"),
            ([], "out_features"),
            ([(0, 1 << 62), (0, 1 << 62), (0, 1 << 62), (0, 1 << 62), (0, N)], "out_features|rows"),
        ):
            with pytest.raises(ValueError, match=match):
                _core.spmm_parts(*args, ys)

    def test_x_elsewhere_ends_no_process(self) -> None:
        """A tensor without memory is an error, not a step to address 0."""
        code = (
            "import torch\nfrom sparseinfer import ops\nfrom sparseinfer.formats import CSR\n"
            "packed = ops.pack(CSR.from_dense(torch.eye(24)[:12]), 'rowgroup')\n"
            "plan = '*:0:' + ops.default_kernel(packed, 4)\n"
            "x = torch.ones(3, 24, device='meta')\n"
            "try:\n    ops.linear_parts(x, [packed], None, [5, 7], [True, True], plan)\n"
            "except (ValueError, TypeError, RuntimeError) as error:\n    print('refused:', error)\n"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("refused: x: expected")
