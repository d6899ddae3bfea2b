"""Ordinary modules that the models of test_property.py are made of: as people and libraries write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

# By name, as transformers' ACT2FN.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class FATReLU(nn.Module):
    """Zero below a small threshold, where it is no ReLU (MiniCPM-S)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.005, x, torch.zeros_like(x))


class MyReLU(nn.Module):
    """A ReLU by another name."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x))


class InPlaceReLU(nn.Module):
    """Writes to its input, and no attribute says so."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_(min=0)


class SizedReLU(nn.Module):
    """A ReLU for several tokens, something else for one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) if x.shape[0] > 1 else torch.tanh(x)


class Mlp(nn.Module):
    """timm's."""

    def __init__(self, n: int, act: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(n, 2 * n), act(), nn.Dropout(0.0)
        self.norm, self.fc2, self.drop2 = nn.Identity(), nn.Linear(2 * n, n), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.act(x)
        x = self.drop1(x)
        x = self.norm(x)
        x = self.fc2(x)
        return self.drop2(x)


class Attention(nn.Module):
    """timm's: one matrix for q, k and v."""

    def __init__(self, n: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(n, 3 * n), nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        b, t, n = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, n // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, t, n))


class BertBlock(nn.Module):
    """Attention, then feed-forward, each with its norm after the sum."""

    def __init__(self, n: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(n, n) for _ in range(3))
        self.dense, self.norm1, self.norm2 = nn.Linear(n, n), nn.LayerNorm(n), nn.LayerNorm(n)
        self.up, self.down, self.act = nn.Linear(n, 2 * n), nn.Linear(2 * n, n), FUNCTIONS["gelu"]
        self.dropout = nn.Dropout(0.1)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        p = self.dropout((q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))).softmax(-1))
        y = (p @ v).permute(0, 2, 1, 3).contiguous()
        x = self.norm1(self.dropout(self.dense(y.view(*y.shape[:-2], -1))) + x)
        return self.norm2(self.dropout(self.down(self.act(self.up(x)))) + x)


class RMSNorm(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class LlamaBlock(nn.Module):
    """Grouped keys, gate and up, norms before."""

    def __init__(self, n: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, head = heads, n // heads
        self.q_proj, self.o_proj = nn.Linear(n, n, bias=False), nn.Linear(n, n, bias=False)
        self.k_proj, self.v_proj = nn.Linear(n, head, bias=False), nn.Linear(n, head, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(n, 2 * n, bias=False), nn.Linear(n, 2 * n, bias=False)
        self.down_proj, self.act_fn = nn.Linear(2 * n, n, bias=False), nn.SiLU()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(n), RMSNorm(n)

    def forward(self, x: Tensor) -> Tensor:
        y = self.input_layernorm(x)
        shape = (*y.shape[:-1], -1, y.shape[-1] // self.heads)
        q, k, v = (proj(y).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(x.shape))
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(self.act_fn(self.gate_proj(y)) * self.up_proj(y))


class BasicBlock(nn.Module):
    """torchvision's: one ReLU for two places, and a sum in place."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """torchvision's, with a way around of its own."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, n // 2, 1, bias=False), nn.BatchNorm2d(n // 2)
        self.conv2, self.bn2 = nn.Conv2d(n // 2, n // 2, 3, padding=1, bias=False), nn.BatchNorm2d(n // 2)
        self.conv3, self.bn3 = nn.Conv2d(n // 2, n, 1, bias=False), nn.BatchNorm2d(n)
        self.relu, self.downsample = nn.ReLU(), nn.Sequential(nn.Conv2d(n, n, 1), nn.BatchNorm2d(n))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + self.downsample(x)
        return self.relu(out)


class SqueezeExcite(nn.Module):
    """A gate for each channel, by 1x1 convolutions of the mean."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(n, n, 1), nn.Conv2d(n, n, 1)
        self.act, self.gate = nn.Hardswish(inplace=True), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))


@dataclass
class Output:
    """What transformers return."""

    logits: Any
    hidden: Any = None


class Cache:
    """Grows by each call, as the keys of a decoder do."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        self.keys = torch.randn(*shape, generator=torch.Generator().manual_seed(5)).to(dtype)

    def append(self, keys: Tensor, dim: int) -> Tensor:
        self.keys = torch.cat([self.keys, keys], dim)
        return self.keys


class DropConnect(nn.Module):
    """A parametrization that draws."""

    def forward(self, w: Tensor) -> Tensor:
        return F.dropout(w, 0.5, self.training)


class Halved(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w / 2


class Dual(fx.GraphModule):
    """As torchvision's feature extractors: each copy of one starts in training mode."""

    def __init__(self, root: Any, graph: fx.Graph, class_name: str = "Dual") -> None:
        super().__init__(root, graph)
        self.train()

    def _deepcopy_init(self) -> Any:
        return Dual.__init__


def decorate(layer: nn.Module, how: str) -> None:
    """Parametrize a layer's weight, or prune it as torch does."""
    if how == "weight_norm":
        weight = layer.get_parameter("weight")
        weight.data[weight.flatten(1).norm(dim=1) == 0] = 1.0  # its norm would make it NaN
        parametrizations.weight_norm(layer)
    elif how == "spectral_norm":
        parametrizations.spectral_norm(layer)
    elif how == "drop_connect":
        parametrize.register_parametrization(layer, "weight", DropConnect())
    elif how == "halved":
        parametrize.register_parametrization(layer, "weight", Halved())
    elif how == "prune":
        prune.l1_unstructured(layer, "weight", 0.7)
    else:
        raise ValueError(f"how: expected the name of a decoration, got {how!r}")
