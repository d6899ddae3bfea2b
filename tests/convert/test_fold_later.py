"""A folded batch norm that becomes another one after conversion: results are the dense model's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convert_helpers import K, N, Script, linear
from fold_helpers import X, assert_close, conv_model, fold, folds
from fusion_helpers import EPS, batch_norm
from generators import tokens, values
from torch import Tensor, nn

from sparseinfer.modules import FoldedLayer

pytestmark = pytest.mark.usefixtures("script")


def both(dense: Any, fast: Any, change: Callable[[Any], object]) -> None:
    for module in (dense, fast):
        change(module)


def fed(module: Any) -> None:
    """Statistics of other data, by momentum."""
    module[1].train()
    with torch.no_grad():
        module(X * 3 + 1)
    module[1].eval()


def loaded(module: Any) -> None:
    module[1].load_state_dict(
        batch_norm(nn.BatchNorm2d, 8).apply(lambda m: m.weight.data.mul_(3)).state_dict()
    )


def assigned(module: Any) -> None:
    module[1].load_state_dict({k: v * 2 for k, v in module[1].state_dict().items()}, assign=True)


def in_inference_mode(module: Any) -> None:
    with torch.inference_mode():
        module[1].running_mean = torch.full((8,), 2.5)


def without_statistics(module: Any) -> None:
    """As test-time adaptation does it: those of each batch are taken."""
    module[1].track_running_stats = False
    module[1].running_mean = module[1].running_var = None


CHANGES: dict[str, Callable[[Any], object]] = {
    "trained": fed,
    "loaded": loaded,
    "assigned": assigned,
    "written to": lambda m: m[1].running_mean.add_(1),
    "written to as data": lambda m: m[1].weight.data.mul_(2),
    "written through a view": lambda m: m[1].running_var[2:].mul_(4),
    "of numpy": lambda m: m[1].running_mean.numpy().__iadd__(1),
    "another tensor": lambda m: setattr(m[1], "running_var", torch.full((8,), 2.0)),
    "another parameter": lambda m: setattr(m[1], "weight", nn.Parameter(torch.full((8,), 2.0))),
    "a tensor of inference mode": in_inference_mode,
    "eps": lambda m: setattr(m[1], "eps", 0.5),
    "no bias": lambda m: setattr(m[1], "bias", None),
    "no weight": lambda m: setattr(m[1], "weight", None),
    "reset": lambda m: m[1].reset_parameters(),
    "no statistics": without_statistics,
    "training": lambda m: m[1].train(),
    "another norm": lambda m: m.__setitem__(1, batch_norm(nn.BatchNorm2d, 8, affine=False)),
    "no norm": lambda m: m.__setitem__(1, nn.Identity()),
    "removed": lambda m: m.__delitem__(1),
    "a forward of its own": lambda m: setattr(m[1], "forward", lambda input: input * 2),
    "a hook": lambda m: m[1].register_forward_hook(lambda module, args, y: y + 1),
    "a hook before": lambda m: m[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    "a hook on the layer": lambda m: m[0].register_forward_hook(lambda module, args, y: y + 1),
    "a hook before the layer": lambda m: m[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_norm_changes(change: str) -> None:
    dense = conv_model()
    fast = fold(dense)
    assert type(fast[0]) is FoldedLayer
    fast(X)  # what was found then does not hold for ever
    torch.manual_seed(0)
    norm = copy.deepcopy(dense[1])
    both(dense, fast, CHANGES[change])
    # Sums of what the layer returns are divided by their own size, no larger than the statistics were.
    assert_close(fast, dense, X, times=8, norm=norm)
    assert_close(fast, dense, values(3, 6, 7, 7), times=8, norm=norm)


def test_the_norm_becomes_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = fold(conv_model())
    eps = fast[1].eps
    assert folds(fast, X, monkeypatch)
    fast[1].eps = 1.0
    assert not folds(fast, X, monkeypatch)
    fast[1].eps = eps
    assert folds(fast, X, monkeypatch)
    fast[1].train()
    assert not folds(copy.deepcopy(fast), X, monkeypatch)
    fast[1].eval()
    assert folds(fast, X, monkeypatch)
    # Written to, but the same: it is looked at once, and holds.
    fast[1].running_mean.add_(0)
    assert folds(fast, X, monkeypatch)


def test_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = conv_model()
    fast = fold(dense)
    with torch.inference_mode():
        assert folds(fast, X, monkeypatch)
        assert_close(fast, dense, X)
        made = copy.deepcopy(dense)  # its tensors do not count what is written to them
        again = fold(made)
        assert_close(again, made, X)
        both(made, again, lambda m: m[1].running_mean.add_(1))
        assert_close(again, made, X)


@pytest.mark.parametrize("when", ["at conversion", "without statistics", "hooked"])
def test_left_where_it_is_no_fixed_product(when: str) -> None:
    dense = conv_model(track_running_stats=when != "without statistics")
    if when == "at conversion":
        dense[1].train()
    if when == "hooked":
        dense[1].register_forward_hook(lambda module, args, y: y + 1)
    fast = fold(copy.deepcopy(dense))
    assert type(fast[0]) is not FoldedLayer
    assert_close(copy.deepcopy(fast), dense, X, times=8, norm=batch_norm(nn.BatchNorm2d, 8))
    for module in (fast, dense):
        module.eval()
    assert_close(fast, dense, X, times=8, norm=batch_norm(nn.BatchNorm2d, 8))


def test_training_the_model_on() -> None:
    """In training mode the norm takes statistics, and both models keep the same ones."""
    dense = conv_model()
    fast = fold(dense)
    both(dense, fast, lambda m: m.train())
    with torch.no_grad():
        for seed in range(3):
            both(dense, fast, lambda m, seed=seed: m(values(4, 6, 9, 9, seed=seed)))
    both(dense, fast, lambda m: m.eval())
    for got, wanted in zip(fast[1].buffers(), dense[1].buffers(), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-5)
    fast[1].load_state_dict(dense[1].state_dict())
    assert_close(fast, dense, X)


class TestState:
    def test_round_trip(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense, other = conv_model(), conv_model()
        with torch.no_grad():
            other[0].weight.mul_(-1)
            other[1].running_mean.add_(2)
        fast, twin = fold(dense), fold(other)
        assert twin.load_state_dict(fast.state_dict()) == torch.nn.modules.module._IncompatibleKeys([], [])
        assert_close(twin, dense, X)
        assert folds(twin, X, monkeypatch)
        assert all(
            torch.equal(a, b)
            for a, b in zip(twin.state_dict().values(), fast.state_dict().values(), strict=True)
        )

    def test_what_was_folded_is_saved_beside_the_norm(self) -> None:
        names = list(fold(conv_model()).state_dict())
        assert [name for name in names if name.endswith("running_mean")] == [
            "0.norm_running_mean",
            "1.running_mean",
        ]
        assert not [name for name in names if "batch_norm" in name]

    @pytest.mark.parametrize("part", ["plain", "folded"])
    def test_a_part_alone_is_no_product(self, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Strictly it is an error; otherwise the layer is what was loaded, and the norm is called."""
        dense, other = conv_model(), conv_model()
        with torch.no_grad():
            other[0].weight.mul_(-1)
        state = {k: v for k, v in fold(other).state_dict().items() if not k.startswith(f"0.{part}.")}
        for strict in (True, False):
            fast = fold(dense)
            if strict:
                with pytest.raises(RuntimeError, match="Missing key"):
                    fast.load_state_dict(state)
            else:
                fast.load_state_dict(state, strict=False)
            assert not folds(fast, X, monkeypatch)
            assert_close(fast, dense if part == "plain" else other, X)

    def test_only_the_norm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = conv_model()
        fast = fold(dense)
        state = {f"1.{k}": v * 2 for k, v in dense[1].state_dict().items()}
        both(dense, fast, lambda m: m.load_state_dict(state, strict=False))
        assert_close(fast, dense, X)
        assert not folds(fast, X, monkeypatch)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_another_dtype_is_refused_or_right(self, dtype: torch.dtype, script: Script) -> None:
        dense = conv_model()
        with pytest.raises(TypeError, match="expected to stay"):
            fold(dense).to(dtype)
        script.ratio = lambda layout, m: 2.0
        fast = fold(dense).to(dtype)
        moved = copy.deepcopy(dense).to(dtype)
        with torch.no_grad():
            got, same = fast(X.to(dtype)), moved(X.to(dtype))
            wanted = copy.deepcopy(moved).double()(X.to(dtype).double())
        assert got.dtype == dtype
        # A product that was folded in float32 stays as exact as that.
        eps = max(torch.finfo(dtype).eps, EPS)
        assert (got - wanted).norm() <= 4 * (same - wanted).norm() + 4 * eps * wanted.norm()


class TestTheLayer:
    def test_is_the_plain_one_for_everybody_else(self) -> None:
        dense = conv_model()
        fast = fold(dense)
        with torch.no_grad():
            assert torch.equal(fast[0](X), fast[0].plain(X))
            assert torch.allclose(fast[0](X), dense[0](X), atol=1e-4)
        assert torch.equal(fast[0].weight, dense[0].weight)
        assert torch.equal(fast[0].bias, dense[0].bias)
        assert fast[0].kernel_size == (3, 3)
        with pytest.raises(AttributeError, match="nothing_like_it"):
            _ = fast[0].nothing_like_it

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m[0].weight.data.mul_(2),
            lambda m: m[0].bias.data.add_(3),
            lambda m: setattr(m[0], "bias", None),
            lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach() * 2)),
            lambda m: setattr(m[0], "padding", (1, 1)),
        ],
        ids=["weight", "bias", "no bias", "another weight", "padding"],
    )
    def test_that_stays_dense_may_be_changed(self, change: Any, script: Script) -> None:
        """Its weight can still be written to, as that of a layer that was not folded."""
        script.ratio = lambda layout, m: 2.0
        dense = conv_model()
        fast = fold(dense)
        fast(X)
        both(dense, fast, change)
        assert_close(fast, dense, X, times=2)

    def test_that_stays_dense_trains(self, script: Script) -> None:
        script.ratio = lambda layout, m: 2.0
        dense = conv_model()
        fast = fold(dense)
        grads = []
        for module in (dense, fast):
            module.zero_grad()
            module(X).square().mean().backward()
            grads.append(module[0].weight.grad)
        assert grads[1] is not None
        assert torch.allclose(grads[1], grads[0], rtol=1e-3, atol=1e-4)

    def test_shared_by_two_norms(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc, self.a, self.b = (
                    linear(),
                    batch_norm(nn.BatchNorm1d, N),
                    batch_norm(nn.BatchNorm1d, N),
                )
                self.b.running_mean.add_(1)

            def forward(self, x: Tensor) -> Tensor:
                return self.a(self.fc(x)) - self.b(self.fc(x))

            def __getitem__(self, i: int) -> Any:
                return (self.fc, self.b)[i]

        dense = Two().eval()
        x = tokens(5, K)
        assert_close(fold(dense, x), dense, x, times=2)


class TestGraphs:
    def test_compile_and_export(self) -> None:
        torch._dynamo.reset()
        dense = conv_model()
        fast = fold(dense)
        compiled = torch.compile(fast, fullgraph=True, backend="eager")
        assert_close(compiled, dense, X)
        exported = torch.export.export(fast, (X,)).module()
        assert_close(exported, dense, X)
        both(dense, fast, lambda m: m[1].running_mean.add_(1))
        assert_close(compiled, dense, X)

    @pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
    def test_trace(self) -> None:
        dense = conv_model()
        traced = torch.jit.trace(fold(dense), (X,))
        assert_close(traced, dense, values(3, 6, 8, 8))

    @pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
    def test_a_first_call_under_a_transform(self) -> None:
        """What the layer keeps of its batch norm outlives the transform."""
        dense = conv_model()
        fast = fold(dense)
        for _ in range(2):
            got = torch.func.jvp(fast, (X,), (X,))
            expected = torch.func.jvp(dense, (X,), (X,))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b)
            assert_close(fast, dense, X)
