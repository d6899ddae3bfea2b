"""Regions of dense convolutions, which oneDNN fuses with what follows them, against the layers one by one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from region_models import Bottleneck, ResNet, randomize_norms
from torch import Tensor, nn
from torch.nn import functional as F

import sparseinfer as si
from sparseinfer.convert.assembly.joining import region_of
from sparseinfer.convert.assembly.regions import capture_all_
from sparseinfer.modules.regions import Holder, Refused
from sparseinfer.modules.regions.captured import CapturedDense
from sparseinfer.modules.regions.fused import Fused


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[CapturedDense]:
    """Counts the calls that regions computed."""
    calls: list[CapturedDense] = []
    run = CapturedDense.run

    def counted(self: CapturedDense, x: Tensor) -> Any:
        result = run(self, x)
        calls.append(self)
        return result

    monkeypatch.setattr(CapturedDense, "run", counted)
    return calls


def fused(dense: nn.Module) -> nn.Module:
    randomize_norms(dense.eval())
    model = copy.deepcopy(dense)
    capture_all_(model, dense=True)
    return model


def check(dense: nn.Module, fast: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected, got = copy.deepcopy(dense).double()(x.double()), fast(x)
        plain = dense(x)
    for memory_format in (torch.contiguous_format, torch.channels_last)[: got.dim() // 2]:
        assert got.is_contiguous(memory_format=memory_format) == plain.is_contiguous(
            memory_format=memory_format
        )
    assert (got.double() - expected).norm() <= 1e-5 * expected.norm()


def test_a_network_is_one_region(runs: list[CapturedDense]) -> None:
    torch.manual_seed(0)
    dense = ResNet()
    fast = fused(dense)
    for shape in ((2, 3, 64, 64), (2, 3, 64, 64), (1, 3, 33, 47), (2, 3, 64, 64)):
        check(dense, fast, image(*shape))
    # Another shape is left to the layers.
    assert len(runs) == 3
    calls = [part for _, part in runs[0]._parts if not isinstance(part, Fused)]
    assert not any(isinstance(call.function, (nn.BatchNorm2d, nn.ReLU)) for call in calls)


@pytest.mark.parametrize("seed", range(12))
def test_blocks_of_any_size(seed: int, runs: list[CapturedDense]) -> None:
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    channels, width, out, stride, batch, height, wide = (
        int(torch.randint(low, high, (1,), generator=draw))
        for low, high in ((1, 40), (1, 40), (1, 40), (1, 4), (1, 5), (1, 40), (1, 40))
    )
    dense = Bottleneck(channels, width, out, stride)
    fast = fused(dense)
    check(dense, fast, image(batch, channels, height, wide))
    assert len(runs) == 1


def test_memory_formats(runs: list[CapturedDense]) -> None:
    torch.manual_seed(1)
    x = image(2, 16, 9, 8)
    for dense in (Bottleneck(16, 8, 16), Bottleneck(16, 8, 16).to(memory_format=torch.channels_last)):
        for given in (x, x.contiguous(memory_format=torch.channels_last), image(2, 16, 9, 16)[..., ::2]):
            check(dense, fused(dense), given)
    assert len(runs) == 6


class Forms(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1, groups=2)
        self.norm, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.pool, self.form = nn.AdaptiveAvgPool2d(1), form

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        match self.form:
            case "broadcast":
                return F.relu(self.b(y) + self.pool(y))
            case "itself":
                y = self.b(y)
                return y + y
            case "two norms":
                return self.norm2(self.norm(self.b(y)))
            case "norm after sum":
                return self.norm(self.b(y) + y)
            case "after activation":
                return self.norm(F.relu(self.b(y)))
            case "other activations":
                return self.norm(F.silu(self.b(F.relu6(y)))) + x
            case "written":
                z = self.b(y)
                y.add_(1 * z)
                return y + z
            case "view":
                z = torch.flatten(y, 1)
                F.relu_(z)
                return self.b(y) + y
            case "returned":
                return F.relu(y) + self.b(F.relu_(y))
        raise ValueError(self.form)


@pytest.mark.parametrize(
    "form",
    [
        *("broadcast", "itself", "two norms", "norm after sum", "after activation", "other activations"),
        *("written", "view", "returned"),
    ],
)
def test_forms_that_may_and_that_may_not(form: str) -> None:
    torch.manual_seed(2)
    dense = Forms(form)
    check(dense, fused(dense), image(2, 8, 7, 6))


def test_a_single_pixel_is_no_broadcast() -> None:
    torch.manual_seed(3)
    dense = Forms("broadcast")
    check(dense, fused(dense), image(2, 8, 1, 1))


def test_values_that_are_not_numbers() -> None:
    torch.manual_seed(4)
    dense = Bottleneck(8, 8, 8)
    fast = fused(dense)
    x = image(2, 8, 5, 5)
    x[0, 1, 2, 2], x[1, 0, 4, 4] = torch.nan, torch.inf
    with torch.no_grad():
        assert torch.equal(fast(x).isnan(), dense(x).isnan())


def _by_data(model: nn.Module) -> None:
    model.conv1.weight.data.mul_(2)  # type: ignore[union-attr, operator]


def _in_place(model: nn.Module) -> None:
    model.conv3.weight[-1, -1] += 1  # type: ignore[union-attr, index, operator]


def _replaced(model: nn.Module) -> None:
    model.conv2.weight.data = model.conv2.weight.data + 1  # type: ignore[union-attr, operator, assignment]


def _statistics(model: nn.Module) -> None:
    model.bn2.running_mean.data[3] += 1  # type: ignore[union-attr, index, operator]


def _bias(model: nn.Module) -> None:
    model.conv3.bias.data[0] += 1  # type: ignore[union-attr, index, operator]


def _training(model: nn.Module) -> None:
    model.bn1.eval().eps = 0.1  # type: ignore[union-attr, assignment]


def _hook(model: nn.Module) -> None:
    model.bn1.register_forward_hook(lambda m, args, y: y * 2)  # type: ignore[union-attr]


@pytest.mark.parametrize("change", [_by_data, _in_place, _replaced, _statistics, _bias, _training, _hook])
def test_what_is_changed_afterwards_counts(change: Callable[[nn.Module], None]) -> None:
    torch.manual_seed(5)
    dense = Bottleneck(16, 8, 16)
    fast = fused(dense)
    x = image(2, 16, 8, 8)
    check(dense, fast, x)
    with torch.no_grad():
        before = fast(x)
        change(dense)
        change(fast)
        assert not torch.equal(fast(x), before)
    check(dense, fast, x)


def test_gradients_copies_and_export() -> None:
    torch.manual_seed(6)
    dense = Bottleneck(16, 8, 16)
    fast = fused(dense)
    x = image(2, 16, 8, 8)
    with torch.no_grad():
        expected = fast(x)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert region_of(other) is not region_of(fast)
            assert torch.equal(other(x), expected)
        program = torch.export.export(copy.deepcopy(fast), (x,)).module()
        assert torch.allclose(program(x), expected, rtol=1e-4, atol=1e-5)
    fast(x.clone().requires_grad_()).sum().backward()
    assert fast.conv1.weight.grad is not None  # type: ignore[union-attr]
    plain = si.densify_(fast)
    assert type(plain) is Bottleneck
    assert region_of(plain) is None
    assert torch.equal(plain.conv1.weight, dense.conv1.weight)  # type: ignore[union-attr, arg-type]


def test_wrong_inputs_give_the_errors_of_the_layers() -> None:
    torch.manual_seed(7)
    dense = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    fast = fused(dense)
    for x in (image(1, 5, 9, 9), image(1, 4, 2, 2), image(1, 4, 4, 4), image(7)):
        with torch.no_grad(), pytest.raises(RuntimeError) as expected:
            dense(x)
        with torch.no_grad(), pytest.raises(RuntimeError) as got:
            fast(x)
        assert str(got.value) == str(expected.value)


def test_few_convolutions_are_no_region() -> None:
    with pytest.raises(Refused, match="few"):
        Holder(dense=True).capture(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), 3)


def test_convert_keeps_what_is_faster(monkeypatch: pytest.MonkeyPatch, runs: list[CapturedDense]) -> None:
    from sparseinfer.convert.timing.whole_model import Comparison

    torch.manual_seed(8)
    dense = ResNet().eval()
    randomize_norms(dense)
    x = image(2, 3, 32, 32)
    for is_faster in (True, False):
        monkeypatch.setattr(Comparison, "is_clearly_faster", lambda self, made, answer=is_faster: answer)
        with torch.inference_mode():
            fast = si.convert(dense, example_inputs=(x,), fold_batch_norm=True, budget_s=1)
        assert (region_of(fast) is not None) == is_faster
        runs.clear()
        check(dense, fast, x)
        assert len(runs) == is_faster
    for options in ({"fold_batch_norm": False}, {"measure": False}, {"regions": False}):
        fast = si.convert(dense, example_inputs=(x,), **{"fold_batch_norm": True, "budget_s": 1, **options})
        assert region_of(fast) is None
    assert region_of(si.convert(dense, fold_batch_norm=True, budget_s=1)) is None
