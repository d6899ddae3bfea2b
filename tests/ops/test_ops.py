"""The operator and the packings from outside: what they take, what they refuse, that nothing crashes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops import eager

PLAN = "*:0:spmm_rowgroup_f32_r4"


def csr(n: int = 24, k: int = 40) -> CSR:
    g = torch.Generator().manual_seed(0)
    return CSR.from_dense(torch.randn(n, k, generator=g) * (torch.rand(n, k, generator=g) > 0.6))


def linear(x: Tensor, packed: Tensor, bias: Tensor | None = None, n: int = 24, plan: str = PLAN) -> Tensor:
    return torch.ops.sparseinfer.linear(x, [packed], bias, n, plan, "none")


def test_any_strides_and_leading_dimensions() -> None:
    fmt = csr()
    packed = ops.pack(fmt, "rowgroup")
    wide = torch.randn(6, 100)
    for x in (
        torch.randn(40),
        torch.randn(2, 3, 40),
        wide[:, 7:47],
        wide[:, ::2][:, :40],
        torch.randn(40, 9).T,
        torch.randn(1, 40).expand(5, 40),
        torch.randn(3, 40, 2).transpose(1, 2),
    ):
        y = linear(x, packed)
        assert y.shape == (*x.shape[:-1], 24)
        assert torch.allclose(y.double(), ops.reference_linear(x, fmt), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.randn(3, 41)}, ValueError, "x: expected 40 in_features"),
        (
            {"x": torch.randn(3, 40).double()},
            TypeError,
            "x: expected dtype torch.float32, .* got torch.float64",
        ),
        ({"x": torch.tensor(1.0)}, ValueError, "x: expected at least 1 dimension"),
        ({"bias": torch.randn(23)}, ValueError, r"bias: expected shape \(24,\)"),
        ({"bias": torch.randn(24).double()}, TypeError, "bias: expected dtype torch.float32"),
        ({"n": 25}, ValueError, "n: expected 24 out_features"),
        ({"plan": "rubbish"}, ValueError, "plan: expected"),
        ({"plan": "*:1:spmm_rowgroup_f32_r4"}, ValueError, "packings: expected at least 2"),
        ({"plan": "*:0:spmm_nothing_f32_r4"}, ValueError, "kernel: expected one of"),
        ({"plan": "15:0:spmm_rowgroup_f32_r4"}, ValueError, "plan: expected ascending"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"x": torch.randn(3, 40), "packed": ops.pack(csr(), "rowgroup")}
    with pytest.raises(error, match=message):
        linear(**{**arguments, **change})  # type: ignore[arg-type]


def test_bad_activation() -> None:
    with pytest.raises(ValueError, match="activation: expected one of none, relu"):
        torch.ops.sparseinfer.linear(
            torch.randn(3, 40), [ops.pack(csr(), "csr")], None, 24, "*:0:spmm_csr_f32_r1", "tanh"
        )


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(0, dtype=torch.uint8),
        torch.zeros(64, dtype=torch.uint8),
        torch.zeros(4096, dtype=torch.uint8),
    ],
)
def test_other_bytes_are_not_a_packing(packed: Tensor) -> None:
    with pytest.raises(ValueError, match="packed: expected"):
        linear(torch.randn(3, 40), packed)


def test_a_packing_of_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a contiguous uint8 tensor"):
        linear(torch.randn(3, 40), ops.pack(csr(), "rowgroup").float())


LAYOUTS = sorted({(row.packing, row.storage, row.format) for row in ops.kernels_at(ops.active_isa())})


@pytest.mark.parametrize(("packing", "storage", "made_from"), LAYOUTS)
def test_damaged_packings_are_refused_or_harmless(packing: str, storage: str, made_from: str) -> None:
    """Any byte may be wrong: the call raises, or computes something inside its memory."""
    int8 = storage in ("i8", "wi8")
    bf16 = torch.bfloat16
    dtype = {"wbf16": bf16, "bf16": bf16, "wf16": torch.float16}.get(storage, torch.float32)
    w = (csr().to_dense() * 20).to(torch.int8) if int8 else csr().to_dense().to(dtype)
    scales = torch.rand(w.shape[0]) if int8 else None
    fmt = BSR.from_dense(w, (4, 4), scales) if made_from == "bsr" else CSR.from_dense(w, scales)
    whole = ops.pack(fmt, packing, storage=storage)
    plans = [f"*:0:{ops.default_kernel(whole, m)}" for m in (1, 100)]
    g = torch.Generator().manual_seed(0)
    refused = 0
    for trial in range(1500):
        packed = whole.clone()
        # Half of the damage goes to the header and the splits, where it is worst.
        at = int(torch.randint(0, packed.numel() if trial % 2 else 320, (1,), generator=g))
        packed[at] = int(torch.randint(0, 256, (1,), generator=g))
        try:
            for plan in plans:
                linear(torch.randn(3, 40).to(dtype), packed, plan=plan)
            ops.unpack(packed)
        except (ValueError, TypeError, RuntimeError, MemoryError):
            refused += 1
    assert refused > 50


def test_a_packing_changed_after_its_first_use_is_checked_again() -> None:
    packed = ops.pack(csr(), "rowgroup")
    linear(torch.randn(3, 40), packed)
    packed.zero_()
    with pytest.raises(ValueError, match="packed: expected"):
        linear(torch.randn(3, 40), packed)


def test_recycled_memory_is_checked_again() -> None:
    for seed in range(20):
        fmt = CSR.from_dense(torch.randn(24, 40, generator=torch.Generator().manual_seed(seed)))
        x = torch.randn(3, 40)
        assert torch.allclose(
            linear(x, ops.pack(fmt, "rowgroup")).double(), ops.reference_linear(x, fmt), atol=1e-4
        )


def test_plans_round_trip() -> None:
    plan = (ops.Bucket(15, 0, "spmm_csr_f32_r1"), ops.Bucket(None, 1, "spmm_rowlist_f32_r1"))
    assert ops.parse_plan(ops.format_plan(plan)) == plan


def test_a_plan_picks_by_token_count() -> None:
    fmt = csr()
    packings = [ops.pack(fmt, "csr"), ops.pack(fmt, "rowlist")]
    plan = "3:0:spmm_csr_f32_r1,*:1:spmm_rowlist_f32_r1"
    for m in (1, 3, 4, 40):
        x = torch.randn(m, 40)
        y = torch.ops.sparseinfer.linear(x, packings, None, 24, plan, "none")
        assert torch.allclose(y.double(), ops.reference_linear(x, fmt), atol=1e-5)


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    code = "from sparseinfer import ops; print(ops.active_isa())"
    environment = {**os.environ, "SPARSEINFER_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_the_environment_forces_a_level() -> None:
    for isa in ops.isa_levels():
        assert run_with_isa(isa).stdout.strip() == isa


def test_an_unknown_level_is_an_error_that_lists_the_valid_ones() -> None:
    error = run_with_isa("avx9000").stderr
    assert "SPARSEINFER_ISA: expected one of scalar" in error
    assert "avx9000" in error


class TestEager:
    """`ops.linear` calls past the dispatcher, unless something there wants to see the operator."""

    PACKED: ClassVar[Tensor] = ops.pack(csr(), "rowgroup")

    def call(self, x: Tensor | None = None) -> Tensor:
        return ops.linear(torch.ones(2, 40) if x is None else x, [self.PACKED], None, 24, PLAN, "none")

    def test_the_same_result(self) -> None:
        x = torch.randn(5, 40)
        assert torch.equal(self.call(x), linear(x, self.PACKED))

    def test_nothing_is_dispatched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: object) -> Tensor:
            raise AssertionError("dispatched")

        y = eager.eager_linear(refuse)(torch.ones(2, 40), [self.PACKED], None, 24, PLAN, "none")
        assert torch.equal(y, self.call())

    def test_dispatch_modes_see_it(self) -> None:
        class Seen(TorchDispatchMode):
            names: ClassVar[list[str]] = []

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                self.names.append(str(func))
                return func(*args, **(kwargs or {}))

        with Seen():
            self.call()
        assert "sparseinfer.linear.default" in Seen.names

    def test_the_profiler_sees_it(self) -> None:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self.call()
        assert "sparseinfer::linear" in {event.key for event in profile.key_averages()}

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_a_trace_contains_it(self) -> None:
        graph = torch.jit.trace(self.call, torch.ones(2, 40)).graph
        assert "sparseinfer::linear" in str(graph)

    def test_functorch_goes_the_long_way(self) -> None:
        x = torch.randn(3, 2, 40)
        assert torch.equal(torch.func.vmap(self.call)(x), self.call(x))
