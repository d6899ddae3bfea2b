"""Dense weights of converted layers are read like any tensor; a write, which would be lost, is an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contract_helpers import ALL, MATRICES, Pair
from copies import by_pickle
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer.formats import CSR
from sparseinfer.modules import SparseLinear, pack_groups
from sparseinfer.modules._read_only import ReadOnlyTensor
from sparseinfer.ops import Layout

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")

every = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


def weights(pair: Pair) -> list[tuple[Any, str]]:
    """Modules of the sparse one and the names of what they hold of the dense weight."""
    names = ("weight", "in_proj_weight", "q_proj_weight", "weight_ih_l0", "weight_hh_l0")
    return [
        (module, name)
        for module in pair.sparse.modules()
        for name in names
        if isinstance(getattr(module, name, None), Tensor)
    ]


def add(w: Tensor) -> None:
    w += 1


def set_item(w: Tensor) -> None:
    w[...] = 1


def set_data(w: Tensor) -> None:
    w.data = torch.ones_like(w)


def merge(w: Tensor) -> None:
    w.data += torch.ones(w.shape)


def first_row(w: Tensor) -> None:
    for row in w:
        row.zero_()


def array(w: Tensor) -> None:
    try:
        np.asarray(w)[0] = 1
    except ValueError as error:
        raise RuntimeError("numpy: expected to be read only") from error


WRITES: dict[str, Callable[[Tensor], object]] = {
    "+=": add,
    "[...] =": set_item,
    ".data =": set_data,
    ".data +=": merge,
    "rows": first_row,
    "numpy": array,
    "add_": lambda w: w.add_(1),
    "copy_": lambda w: w.copy_(torch.ones(w.shape)),
    "mul_ a mask": lambda w: w.mul_(torch.ones(w.shape)),
    "out": lambda w: torch.add(torch.ones(w.shape), 1, out=w),
    "out of a view": lambda w: torch.zeros(w.shape[::-1], out=w.movedim(0, -1).transpose(0, -1)),
    "t": lambda w: w.transpose(0, 1).mul_(2),
    "detach": lambda w: w.detach().zero_(),
    "slice": lambda w: w[1:].zero_(),
    "row": lambda w: w[0].data.fill_(1),
    "chunk": lambda w: w.chunk(2)[0].zero_(),
    "view": lambda w: w.view(-1).zero_(),
    "flatten": lambda w: w.flatten().zero_(),
    "float": lambda w: w.float().zero_(),
    "contiguous": lambda w: w.contiguous().zero_(),
    "set_": lambda w: w.set_(torch.ones(2)),
    "resize_": lambda w: w.resize_(1),
    "index_fill_": lambda w: w.index_fill_(0, torch.tensor([0]), 1),
    "foreach": lambda w: torch._foreach_add_([w], 1.0),
    "relu inplace": lambda w: F.relu(w, inplace=True),
    "dropout inplace": lambda w: F.dropout(w, 0.5, inplace=True),
    "xavier": nn.init.xavier_uniform_,
    "normal": nn.init.normal_,
    "zeros": nn.init.zeros_,
    "kaiming": lambda w: nn.init.kaiming_uniform_(w),
}


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_writes_to_weights_are_refused(make: Callable[[], Pair], mode: Any) -> None:
    pair = make()
    found = weights(pair)
    assert found
    for module, name in found:
        for title, write in WRITES.items():
            with mode():
                w = getattr(module, name)
                kept = w.clone()
                with pytest.raises(RuntimeError, match="expected to be read only"):
                    write(w)
                assert torch.equal(w, kept), title
        for value in (nn.Parameter(torch.ones(2)), torch.ones(2), None):
            with pytest.raises(RuntimeError, match=f"{name}: expected to be read only.*densify_.*adapter"):
                setattr(module, name, value)
        with pytest.raises(RuntimeError, match="expected to be read only"):
            module.register_parameter(name, nn.Parameter(torch.ones(2)))


def test_lora_is_not_merged_silently() -> None:
    pair = MATRICES["linear"]()
    layer: Any = pair.sparse
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match=r"densify_ the model first.*adapter beside"),
    ):
        layer.weight.data += torch.ones(6, 2) @ torch.ones(2, 8)
    assert torch.equal(layer(pair.x), pair.dense(pair.x))
    with pytest.raises(RuntimeError, match="reset_parameters: expected to be read only"):
        layer.reset_parameters()


class TestReads:
    @pytest.fixture
    def w(self) -> Tensor:
        weight: Any = MATRICES["linear"]().sparse.weight
        assert isinstance(weight, ReadOnlyTensor)
        return weight

    def test_are_those_of_a_plain_tensor(self, w: Tensor) -> None:
        pair = MATRICES["linear"]()
        dense: Any = pair.dense
        assert torch.equal(F.linear(pair.x, w, dense.bias), dense(pair.x))
        assert torch.equal(w, dense.weight)
        assert (w.shape, w.dtype, w.device, w.numel()) == (
            dense.weight.shape,
            torch.float32,
            dense.weight.device,
            48,
        )
        assert type(w.double()) is type(w @ w.t()) is type(w.clone()) is type(w * 1) is Tensor
        assert w.tolist() == dense.weight.tolist()
        assert not w.requires_grad
        w.requires_grad_(False)
        assert torch.equal(torch.func.vmap(torch.sum)(w), dense.weight.sum(1))
        x = pair.x.clone().requires_grad_()
        F.linear(x, w).sum().backward()
        assert torch.equal(x.grad, dense.weight.sum(0).expand(3, 8))

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, by_pickle])
    def test_copies_are_plain(self, w: Tensor, duplicate: Callable[[Tensor], Tensor]) -> None:
        twin = duplicate(w)
        assert type(twin) is Tensor
        assert torch.equal(twin, w)
        twin.zero_()

    @pytest.mark.parametrize(
        "give",
        [
            lambda other, w: other.weight.data.copy_(w),
            lambda other, w: setattr(other.weight, "data", w),
            lambda other, w: setattr(other, "weight", nn.Parameter(w)),
            lambda other, w: other.load_state_dict({"weight": w, "bias": other.bias}),
            lambda other, w: other.load_state_dict({"weight": w, "bias": other.bias}, assign=True),
        ],
        ids=["copy", "data", "Parameter", "load", "assign"],
    )
    def test_may_be_given_to_others_to_train(
        self, w: Tensor, give: Callable[[nn.Linear, Tensor], None]
    ) -> None:
        other, layer = nn.Linear(8, 6), MATRICES["linear"]().sparse
        give(other, w)
        assert type(other.weight) is nn.Parameter
        assert torch.equal(other.weight, layer.weight)
        other(torch.ones(1, 8)).sum().backward()
        torch.optim.SGD(other.parameters(), 0.1).step()
        assert not torch.equal(other.weight, layer.weight)

    def test_have_the_dtype_of_the_model(self) -> None:
        """Not that which the weight is rounded to."""
        rounded = CSR.from_dense(torch.eye(8).bfloat16())
        layer = SparseLinear(
            pack_groups(rounded, [Layout("sell", "wbf16")]), torch.ones(8), dtype=torch.float32
        )
        assert layer.weight.dtype == torch.float32
        x = torch.randn(2, 8)
        assert torch.equal(F.linear(x, layer.weight, layer.bias), layer(x))
