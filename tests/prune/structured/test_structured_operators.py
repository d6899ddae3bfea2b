"""Operators beyond those of the families: small modules whose units go without a trace, or stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_structured_exact import close_units
from torch import Tensor, nn

from sparseinfer._running import run
from sparseinfer.prune.structured import prune_structured_
from sparseinfer.prune.structured.importance import RandomUnits


class Net(nn.Module):
    """Layers by name, and a function of them and x."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def shuffled(net: Net, x: Tensor) -> Tensor:
    """ShuffleNet's channels, with sizes taken from x."""
    x = net.first(x)
    n, c, h, w = x.shape
    x = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
    return net.last(net.grouped(x))


def fused_qkv(net: Net, x: Tensor) -> Tensor:
    """timm's attention, unfused: one matrix for q, k and v."""
    b, n, _ = x.shape
    q, k, v = net.qkv(x).reshape(b, n, 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q @ k.transpose(-2, -1) / 2).softmax(-1)
    return net.proj((scores @ v).transpose(1, 2).reshape(b, n, -1))


def chunked_gate(net: Net, x: Tensor) -> Tensor:
    gate, up = net.both(x).chunk(2, -1)
    return net.down(F.silu(gate) * up)


def squeezed(net: Net, x: Tensor) -> Tensor:
    x = net.first(x)
    return net.last(x * torch.sigmoid(net.gate(x.mean((2, 3))))[:, :, None, None])


def padded(net: Net, x: Tensor) -> Tensor:
    """Shortcut of ResNet, option A: zeros for the channels that the shortcut lacks."""
    return net.last(F.relu(F.pad(net.small(x), (0, 0, 0, 0, 2, 2)) + net.large(x)))


def upscaled(net: Net, x: Tensor) -> Tensor:
    return net.last(F.pixel_shuffle(net.first(x), 2))


def halved(net: Net, x: Tensor) -> Tensor:
    x = net.first(x)
    half = x.shape[-1] // 2
    return net.last(torch.cat([x[..., half:], x[..., :half]], -1).roll(1, 1) * x)


def numbered(net: Net, x: Tensor) -> Tensor:
    x = net.first(x)
    return net.last(torch.cat([x[..., 4:], x[..., :4]], -1))


def stacked(net: Net, x: Tensor) -> Tensor:
    return net.last(torch.stack([net.first(x), net.second(x)], 1).sum(1))


def einsum(net: Net, x: Tensor) -> Tensor:
    return net.last(torch.einsum("bnk,hk->bnh", net.first(x), net.second.weight))


def in_place(net: Net, x: Tensor) -> Tensor:
    x = net.first(x)
    x += net.second(net.x)
    return net.last(x.relu_().mul_(2))


def conv1d(a: int, b: int, **options: int) -> nn.Conv1d:
    return nn.Conv1d(a, b, 3, padding=1, **options)


def conv(a: int, b: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 1, **options)


class PreNorm(nn.Module):
    """Stays: a norm without weights is of a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.layer_norm(self.first(x), (12,)))


IMAGE, ROWS = (2, 3, 6, 6), (2, 5, 8)
MOVED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "channel shuffle": (
        lambda: Net(shuffled, first=conv(3, 24), grouped=conv(24, 16, groups=4), last=conv(16, 2)),
        IMAGE,
    ),
    "one matrix for q, k and v": (
        lambda: Net(fused_qkv, qkv=nn.Linear(8, 48), proj=nn.Linear(16, 8)),
        ROWS,
    ),
    "gate and up in one matrix": (
        lambda: Net(chunked_gate, both=nn.Linear(8, 32), down=nn.Linear(16, 8)),
        ROWS,
    ),
    "glu": (
        lambda: Net(lambda n, x: n.down(F.glu(n.both(x))), both=nn.Linear(8, 32), down=nn.Linear(16, 8)),
        ROWS,
    ),
    "squeeze and excitation": (
        lambda: Net(squeezed, first=conv(3, 12), gate=nn.Linear(12, 12), last=conv(12, 2)),
        IMAGE,
    ),
    "padded channels": (
        lambda: Net(padded, small=conv(3, 8), large=conv(3, 12), last=conv(12, 2)),
        IMAGE,
    ),
    "pixel shuffle": (lambda: Net(upscaled, first=conv(3, 32), last=conv(8, 2)), IMAGE),
    "slices": (lambda: Net(halved, first=nn.Linear(8, 12), last=nn.Linear(12, 4)), ROWS),
    "stack": (
        lambda: Net(stacked, first=nn.Linear(8, 12), second=nn.Linear(8, 12), last=nn.Linear(12, 4)),
        ROWS,
    ),
    "einsum": (
        lambda: Net(
            einsum, first=nn.Linear(8, 12), second=nn.Linear(12, 20, bias=False), last=nn.Linear(20, 4)
        ),
        ROWS,
    ),
    "depthwise with a multiplier": (
        lambda: nn.Sequential(conv(3, 8), conv(8, 16, groups=8), nn.PReLU(16), conv(16, 2)),
        IMAGE,
    ),
    "one-dimensional and flattened": (
        lambda: nn.Sequential(conv1d(5, 12), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(48, 4)),
        ROWS,
    ),
    "transposed in groups": (
        lambda: nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 12, 2, 2, groups=2), conv(12, 2)),
        IMAGE,
    ),
    "weight norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(8, 12)), nn.Tanh(), nn.Linear(12, 4)
        ),
        ROWS,
    ),
    "a layer called twice": (
        lambda: Net(
            lambda n, x: n.last(n.inner(n.inner(n.first(x)))),
            first=nn.Linear(8, 12),
            inner=nn.Linear(12, 12),
            last=nn.Linear(12, 4),
        ),
        ROWS,
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_units_go_without_a_trace(name: str) -> None:
    make, shape = MOVED[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    importance = RandomUnits(1)
    assert close_units(model, x, 0.34, importance) > 0
    expected = run(model, x)
    report = prune_structured_(model, x, importance, ratio=0.34, round_to=1)
    assert report.parameters[1] < report.parameters[0]
    assert torch.allclose(run(model, x), expected, rtol=0, atol=1e-12)
    # Of other batches, too.
    twice = torch.cat([x, x])
    assert torch.allclose(run(model, twice)[: len(expected)], expected, rtol=0, atol=1e-12)


STAY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "a norm without weights": (PreNorm, ROWS, "norm without weights"),
    "softmax": (
        lambda: nn.Sequential(nn.Linear(8, 12), nn.Softmax(-1), nn.Linear(12, 4)),
        ROWS,
        "_softmax is over it",
    ),
    "something of a fixed size": (
        lambda: Net(lambda n, x: n.b(n.a(x) + torch.ones(12)), a=nn.Linear(8, 12), b=nn.Linear(12, 4)),
        ROWS,
        "fixed size",
    ),
    "an unknown operator": (
        lambda: Net(lambda n, x: n.b(n.a(x).cummax(-1)[0]), a=nn.Linear(8, 12), b=nn.Linear(12, 4)),
        ROWS,
        "cummax",
    ),
    "sorted channels": (
        lambda: Net(lambda n, x: n.b(n.a(x).sort(-1)[0]), a=nn.Linear(8, 12), b=nn.Linear(12, 4)),
        ROWS,
        "sort",
    ),
    "selected channels": (
        lambda: Net(lambda n, x: n.b(n.a(x)) + n.a(x)[..., :1], a=nn.Linear(8, 12), b=nn.Linear(12, 4)),
        ROWS,
        "",
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_what_cannot_go_stays(name: str) -> None:
    make, shape, reason = STAY[name]
    model, x = make().eval(), torch.randn(shape)
    expected = run(model, x)
    report = prune_structured_(model, x, ratio=0.34, round_to=1)
    if reason:
        assert not any(group.after < group.before for group in report.groups)
        assert any(reason in each.reason for each in report.refused)
        assert torch.equal(run(model, x), expected)
    else:
        assert run(model, x).shape == expected.shape


def test_numbers_in_a_forward_that_happen_to_fit_are_noticed() -> None:
    model, x = Net(numbered, first=nn.Linear(8, 12), last=nn.Linear(12, 4)).eval(), torch.randn(ROWS)
    expected = run(model, x)
    with pytest.raises(RuntimeError, match="first: expected units that go without a trace, got others"):
        prune_structured_(model, x, "random", ratio=0.5, round_to=1)
    assert torch.equal(run(model, x), expected)
    normed = nn.Sequential(model, nn.LayerNorm(4), nn.Linear(4, 2))
    normed[0].last = nn.LayerNorm(12)
    normed[1] = nn.Linear(12, 4)
    report = prune_structured_(normed, x, ratio=0.5, round_to=1, units=("width", "neurons"))
    assert "by numbers" in {each.name: each.reason for each in report.refused}["0.first.weight"]


def test_group_norms_keep_their_groups() -> None:
    model = nn.Sequential(conv(3, 16), nn.GroupNorm(4, 16), nn.ReLU(), conv(16, 2)).eval()
    x = torch.randn(IMAGE)
    report = prune_structured_(model, x, ratio=0.25, round_to=1)
    assert report.groups[0].after == 3  # of four channels in each of four groups
    assert (model[1].num_channels, model[1].num_groups) == (12, 4)
    assert run(model, x).shape == (2, 2, 6, 6)
