"""Small models to save and load."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sparseinfer as si


class Everything(nn.Module):
    """Layers of all kinds, Linears that get one input, a batch norm, a pooling, and buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.conv2, self.act, self.pool = nn.Conv2d(32, 64, 3, groups=2), nn.ReLU(), nn.MaxPool2d(2)
        self.q, self.k, self.v = nn.Linear(64, 128), nn.Linear(64, 128, bias=False), nn.Linear(64, 128)
        self.attention = nn.MultiheadAttention(128, 4, batch_first=True)
        self.lstm, self.out = nn.LSTM(128, 96, batch_first=True), nn.Linear(96, 10)
        self.register_buffer("factor", torch.tensor([1.0, 0.5]), persistent=False)
        self.register_buffer("shift", torch.tensor(0.25))

    def forward(self, x: Tensor) -> Any:
        x = self.pool(self.act(self.bn(self.conv(x))))
        x = self.act(self.conv2(x)).flatten(2).transpose(1, 2)
        x = self.q(x) * self.k(x) + self.v(x)
        x, _ = self.attention(x, x, x)
        y, _ = self.lstm(x)
        return self.out(y[:, -1]) * self.factor[1] + self.shift


class Tied(nn.Module):
    """A head that shares its weight with an embedding, and a module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(50, 64), nn.Linear(64, 64)
        self.again = self.inner
        self.head = nn.Linear(64, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.again(self.inner(self.embedding(ids))))


def everything(sparsity: float = 0.9) -> tuple[Everything, tuple[Tensor]]:
    torch.manual_seed(0)
    model = Everything().eval()
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 2)
    si.prune_(model, si.Magnitude(sparsity), keep_masks=False)
    return model, (torch.randn(2, 3, 16, 16),)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    """Bit for bit, and buffers that state_dict leaves out as well."""
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    for name, t in (*one.items(), *a.named_buffers()):
        there = other.get(name, dict(b.named_buffers()).get(name))
        assert there is not None
        assert there.dtype == t.dtype
        assert torch.equal(there, t), name
        assert there.stride() == t.stride(), name
