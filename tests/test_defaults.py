"""torch's default device and dtype are other people's: nothing here depends on them."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_helpers import ALL, Pair, outputs
from generators import block_weight, values, weight
from torch import Tensor, nn
from torch.utils._device import _device_constructors

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.formats.checks import address
from sparseinfer.modules import PrepackedLinear, SparseConv2d, SparseLinear
from sparseinfer.ops.cuda import packing as cuda_packing

PACKAGE = Path(__file__).parents[1] / "sparseinfer"

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS: dict[str, Callable[[], Any]] = {
    "device meta": lambda: default_device("meta"),
    "with meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}
under = pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, (CSR, BSR)):
        return [value.values, value.crow_indices, value.col_indices]
    return [t for each in value for t in tensors(each)]


def assert_same_bits(got: Any, want: Any) -> None:
    mine, theirs = tensors(got), tensors(want)
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        assert (a.device, a.dtype, a.shape) == (b.device, b.dtype, b.shape)
        bits = [t.detach().clone().flatten().view(torch.uint8) for t in (a, b)]
        assert torch.equal(*bits)


def lives(pair: Pair) -> list[Any]:
    """What a module goes through."""
    module: Any = pair.sparse
    pickled = pickle.dumps(module)
    twin = copy.deepcopy(module)
    twin.load_state_dict(module.state_dict())
    again = pickle.loads(pickled)
    found = [
        outputs(module, pair.x),
        outputs(twin, pair.x),
        outputs(again, pair.x),
        module.state_dict(),
        tensors(again),
        tensors(module.to("cpu")),
        [t for name, t in weights(module)],
        torch.func.vmap(lambda x: outputs(module, x))(pair.x[None]),
    ]
    assert repr(module)
    for back in ("to_linear", "to_conv", "to_rnn", "to_attention"):
        if hasattr(module, back):
            found.append(getattr(module, back)())
    return found


def weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    names = ("weight", "in_proj_weight", "weight_ih_l0")
    found = [(n, getattr(m, n, None)) for m in module.modules() for n in names]
    return [(name, t.clone()) for name, t in found if isinstance(t, Tensor)]


@under
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_modules(make: Callable[[], Pair], default: Callable[[], Any]) -> None:
    pair = make()
    want = lives(pair)
    with default():
        got = lives(pair)
    for mine, theirs in zip(got, want, strict=True):
        assert_same_bits(mine, theirs)


@under
def test_made_from_dense_modules(default: Callable[[], Any]) -> None:
    dense = nn.Linear(8, 6)
    conv = nn.Conv2d(4, 6, 3)

    def made() -> list[nn.Module]:
        return [
            SparseLinear.from_linear(dense),
            PrepackedLinear.from_linear(dense),
            SparseConv2d.from_conv(conv),
            SparseLinear.from_linear(nn.Linear(8, 6, bias=False, device="cpu", dtype=torch.float32)),
        ]

    want = made()
    with default():
        got = made()
    assert_same_bits(got[:3], want[:3])
    assert [t.shape for t in tensors(got[3:])] == [t.shape for t in tensors(want[3:])]
    assert {t.device.type for t in tensors(got)} == {"cpu"}


@under
def test_formats_and_packings(default: Callable[[], Any]) -> None:
    w, blocks = weight("random", 24, 40), block_weight(32, 48, (16, 16)).bfloat16()
    x = values(5, 40)

    def made() -> list[Any]:
        csr, bsr = CSR.from_dense(w), BSR.from_dense(blocks, (16, 16))
        found: list[Any] = [csr, bsr, csr.to_dense(), bsr.to_dense()]
        found += [CSR.from_torch(csr.to_torch_sparse()), BSR.from_torch(bsr.to_torch_sparse())]
        for name in ("csr", "sell", "bitmap", "rowgroup", "rowlist"):
            packed = ops.pack(csr, name)
            assert ops.describe(packed).n == 24
            plan = f"*:0:{ops.default_kernel(packed, 5)}"
            found += [packed, ops.unpack(packed), ops.linear(x, [packed], None, 24, plan, "gelu")]
            found += [torch.ops.sparseinfer.linear(x, [packed], None, 24, plan, "gelu")]
        half = CSR.from_dense(w.bfloat16())
        for name in ("csr", "bitmap", "delta4", "delta8"):
            packed = cuda_packing.pack(half, "cpu", name)
            found += [packed, cuda_packing.unpack(packed)]
        found += [cuda_packing.pack(bsr, "cpu"), cuda_packing.pack_dense(w, "csr")]
        return found

    want = made()
    with default():
        got = made()
    assert_same_bits(got, want)


def test_native_code_gets_no_address_that_is_not_in_cpu_memory() -> None:
    w = weight("random", 24, 40)
    packed = ops.pack(CSR.from_dense(w), "csr")
    plan = f"*:0:{ops.default_kernel(packed)}"
    x, bias = values(3, 40), values(24)
    meta = {"device": "meta"}
    with pytest.raises(ValueError, match=r"t: expected a contiguous tensor on the CPU, got .* on meta"):
        address("t", torch.empty(3, **meta))
    with pytest.raises(ValueError, match=r"t: expected a contiguous tensor on the CPU, got .*stride \(2,\)"):
        address("t", torch.empty(6, device="cpu")[::2])
    with pytest.raises(ValueError, match="packed: expected a contiguous uint8 tensor on the CPU"):
        ops.linear(x, [packed.to("meta")], bias, 24, plan, "none")
    with pytest.raises(ValueError, match="bias: expected a tensor on the CPU"):
        ops.linear(x, [packed], bias.to("meta"), 24, plan, "none")
    with pytest.raises((ValueError, RuntimeError), match=r"packed|meta"):
        ops.describe(packed.to("meta"))
    fmt = CSR.from_dense(w)
    for name in ("values", "crow_indices", "col_indices"):
        spoiled = copy.copy(fmt)
        object.__setattr__(spoiled, name, getattr(fmt, name).to("meta"))
        with pytest.raises(ValueError, match=f"{name}: expected a contiguous tensor on the CPU"):
            ops.pack(spoiled, "csr")


def test_a_subclass_that_makes_its_own_tensors() -> None:
    class Elsewhere(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.new_empty:
                return torch.empty(*args[1:], device="meta")
            return super().__torch_function__(func, types, args, kwargs or {})

    pair = ALL["linear"]()
    y = pair.sparse(pair.x.as_subclass(Elsewhere))
    assert torch.equal(y.as_subclass(Tensor), pair.dense(pair.x))


FACTORIES = {name for f in _device_constructors() if (name := getattr(f, "__name__", ""))} - {
    "as_tensor",
    "asarray",
}
# Their dtype follows from what they are given.
TYPED = {"arange", "tensor", "full", "randint"}


@pytest.mark.parametrize("folder", ["formats", "ops", "modules"])
def test_every_tensor_is_made_with_a_device_and_a_dtype(folder: str) -> None:
    found = 0
    for path in (PACKAGE / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if of_torch and node.func.attr in FACTORIES | {"Generator"}:
                found += 1
                given = {keyword.arg for keyword in node.keywords}
                wanted = {"device"} if node.func.attr in TYPED | {"Generator"} else {"device", "dtype"}
                assert wanted <= given, (
                    f"{path.name}:{node.lineno}: {node.func.attr} without {wanted - given}"
                )
    assert found > (0 if folder == "modules" else 4)
