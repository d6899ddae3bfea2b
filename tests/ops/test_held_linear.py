"""The operator of handles, which is called without Python, against dense products of integers."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer._native import core
from sparseinfer.formats import CSR

N, K = 40, 70
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

held_linear = ops.held_operator()
pytestmark = pytest.mark.skipif(held_linear is None, reason="torch lacks the C functions (torch >= 2.10)")


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(9)).to(dtype)


def layer(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[core.HeldLinear, Tensor]:
    """Two buckets with a packing each, and the dense weight."""
    weight = torch.randint(-3, 4, (N, K), generator=torch.Generator().manual_seed(seed)).to(dtype)
    weight[weight.abs() < 2] = 0
    fmt = CSR.from_dense(weight)
    packings = [ops.pack(fmt, "bitmap"), ops.pack(fmt, "rowgroup")]
    return ops.held_linear(packings, "4:0:spmm_bitmap_f32_r1,*:1:spmm_rowgroup_f32_r4"), weight


def handle_of(held: core.HeldLinear) -> Tensor:
    return torch.tensor(held.number)


def inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    x = integers(6, 5, K, dtype=dtype)
    return {
        "vector": x[0, 0],
        "rows": x[0],
        "rows apart": x[:, 0],
        "columns apart": integers(K, 7, dtype=dtype).T,
        "batches": x,
        "batches swapped": x.transpose(0, 1),
        "sliced columns": integers(3, 2, 2 * K, dtype=dtype)[..., ::2],
        "one token repeated": x[:1, :1].expand(3, 4, K),
        "no tokens": x[:0],
        "one of many dimensions": x[:1, :1, None],
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", list(inputs(torch.float32)))
@torch.inference_mode()
def test_every_layout_of_x(kind: str, dtype: torch.dtype) -> None:
    held, weight = layer(dtype)
    x, bias = inputs(dtype)[kind], integers(N, dtype=dtype)
    expected = (x.double() @ weight.double().T).to(dtype)
    y = held_linear(x, handle_of(held), None, N)
    assert y.is_contiguous()
    assert torch.equal(y, expected)
    assert y.dtype == dtype
    expected = (x.double() @ weight.double().T + bias.double()).to(dtype)
    for each in (bias, bias.float()):
        assert torch.equal(held_linear(x, handle_of(held), each, N), expected)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("x", integers(3, K + 1), ValueError, "x: expected 70 in_features in the last dimension, got 71"),
        ("x", torch.tensor(1.0), ValueError, "x: expected at least 1 dimension"),
        ("x", integers(3, K).double(), TypeError, "x: expected dtype float32, bfloat16 or float16"),
        ("handle", torch.tensor(1 << 40), ValueError, "handle: expected one of a layer of this process"),
        ("handle", torch.tensor(1.0), ValueError, "handle: expected an int64 tensor of no dimensions"),
        ("handle", torch.tensor([1]), ValueError, "handle: expected an int64 tensor of no dimensions"),
        ("bias", integers(N + 1), ValueError, "bias: expected a contiguous vector of 40"),
        ("bias", integers(2 * N)[::2], ValueError, "bias: expected a contiguous vector of 40"),
        ("bias", integers(N).double(), TypeError, "bias: expected dtype float32, bfloat16 or float16"),
        ("bias", integers(N).half(), ValueError, "bias: expected fp32 or the dtype of x"),
        ("n", N + 1, ValueError, "n: expected 40 out_features as packed, got 41"),
    ],
)
@torch.inference_mode()
def test_what_does_not_fit(name: str, value: object, error: type[Exception], message: str) -> None:
    held, _ = layer()
    arguments = {"x": integers(3, K), "handle": handle_of(held), "bias": None, "n": N, name: value}
    with pytest.raises(error, match=message):
        held_linear(*arguments.values())


@torch.inference_mode()
def test_a_handle_is_valid_as_long_as_its_layer() -> None:
    held, weight = layer()
    handle = handle_of(held)
    x = integers(2, K)
    assert torch.equal(held_linear(x, handle, None, N), x @ weight.T)
    del held
    with pytest.raises(ValueError, match="handle: expected one of a layer of this process"):
        held_linear(x, handle, None, N)


def test_buckets_that_do_not_fit() -> None:
    fmt = CSR.from_dense(torch.eye(4))
    with pytest.raises(ValueError, match="packings: expected at least 2"):
        ops.held_linear([ops.pack(fmt, "bitmap")], "*:1:spmm_bitmap_f32_r1")
    with pytest.raises(ValueError, match="kernel: expected a rowgroup packing"):
        ops.held_linear([ops.pack(fmt, "bitmap")], "*:0:spmm_rowgroup_f32_r4")
    with pytest.raises(ValueError, match="buckets: expected some"):
        core.HeldLinear([], None)


def test_opcheck() -> None:
    held, _ = layer()
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(held_linear, (integers(3, K), handle_of(held), None, N), test_utils=tests)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@torch.inference_mode()
def test_compiled() -> None:
    (first, weight), (second, other) = layer(), layer(seed=1)
    handle, x = handle_of(first), integers(4, K)
    compiled = torch.compile(lambda x, handle: held_linear(x + 1, handle, None, N) * 2, fullgraph=True)
    assert torch.equal(compiled(x, handle), (x + 1) @ weight.T * 2)
    handle.copy_(handle_of(second))
    assert torch.equal(compiled(x, handle), (x + 1) @ other.T * 2)


@torch.inference_mode()
def test_layers_that_go_while_others_call() -> None:
    x = integers(8, K)
    failed: list[BaseException] = []

    def call() -> None:
        try:
            for seed in range(60):
                held, weight = layer(seed=seed)
                assert torch.equal(held_linear(x, handle_of(held), None, N), x @ weight.T)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
