"""Every module that takes the place of a dense one, beside that one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from generators import values, weight
from torch import Tensor, nn

from sparseinfer.modules import (
    PrepackedLinear,
    SemiStructuredLinear,
    SharedInputLinear,
    SparseConv1d,
    SparseConv2d,
    SparseGRU,
    SparseLinear,
    SparseLSTM,
    SparseMultiheadAttention,
    SparseRNN,
)

RECURRENT = {nn.LSTM: SparseLSTM, nn.GRU: SparseGRU, nn.RNN: SparseRNN}


@dataclass(frozen=True)
class Pair:
    """Of small integers and their halves, so that what a matrix gives is exact."""

    dense: nn.Module
    sparse: nn.Module
    x: Tensor


def _filled(dense: nn.Module) -> nn.Module:
    for seed, parameter in enumerate(dense.parameters()):
        if parameter.dim() > 1:
            rows = weight("random", len(parameter), parameter[0].numel(), 0.7, integer=True, seed=seed)
            parameter.data = (rows / 4).reshape(parameter.shape)
        else:
            parameter.data = values(*parameter.shape, integer=True, seed=seed) / 4
    return dense.eval().requires_grad_(False)


def attention(split: bool = False, **options: Any) -> Pair:
    dense = _filled(nn.MultiheadAttention(8, 2, **options))
    in_proj, out_proj = SparseMultiheadAttention.linears(dense, split=split)
    parts = [SparseLinear.from_linear(linear) for linear in in_proj]
    sparse = SparseMultiheadAttention.from_attention(dense, parts, SparseLinear.from_linear(out_proj))
    return Pair(dense, sparse, values(3, 5, 8, seed=7))


def recurrent(kind: type[nn.RNNBase], **options: Any) -> Pair:
    dense = _filled(kind(6, 4, **options))
    own = RECURRENT[kind]
    parts = [[SparseLinear.from_linear(linear) for linear in cell] for cell in own.linears(dense)]
    return Pair(dense, own.from_rnn(dense, parts), values(3, 5, 6, seed=7))


def linear(make: Any, bias: bool = True) -> Pair:
    dense = _filled(nn.Linear(8, 6, bias=bias))
    return Pair(dense, make.from_linear(dense), values(3, 8, integer=True, seed=7))


def rounded() -> Pair:
    """Whose products are in bfloat16, which holds these integers exactly."""
    pair = linear(PrepackedLinear)
    weight: Any = pair.dense.weight
    layer = PrepackedLinear(weight.bfloat16(), pair.dense.bias, dtype=torch.float32)  # type: ignore[arg-type]
    return Pair(pair.dense, layer, pair.x)


class Beside(nn.Module):
    """Several modules of one input, and their results side by side."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


def shared(bias: bool = True) -> Pair:
    """Two that share a matrix."""
    dense = [_filled(nn.Linear(8, n, bias=bias)) for n in (4, 6)]
    whole = nn.Linear(8, 10, bias=bias)
    whole.weight.data = torch.cat([part.weight for part in dense])
    if bias:
        whole.bias.data = torch.cat([part.bias for part in dense])
    parts = SharedInputLinear.share(SparseLinear.from_linear(whole), [4, 6])
    x = values(3, 8, integer=True, seed=7)
    return Pair(Beside(*dense).eval(), Beside(*parts).eval(), x)


def conv1d(bias: bool = True, **options: Any) -> Pair:
    dense = _filled(nn.Conv1d(4, 6, 3, bias=bias, **options))
    return Pair(dense, SparseConv1d.from_conv(dense), values(3, 4, 9, integer=True, seed=7))


def conv2d(bias: bool = True, **options: Any) -> Pair:
    dense = _filled(nn.Conv2d(4, 6, 3, bias=bias, **options))
    return Pair(dense, SparseConv2d.from_conv(dense), values(2, 4, 7, 8, integer=True, seed=7))


MATRICES: dict[str, Callable[[], Pair]] = {
    "linear": lambda: linear(SparseLinear),
    "linear, no bias": lambda: linear(SparseLinear, bias=False),
    "prepacked": lambda: linear(PrepackedLinear),
    "prepacked, no bias": lambda: linear(PrepackedLinear, bias=False),
    "prepacked, rounded": lambda: rounded(),
    "2:4": lambda: linear(SemiStructuredLinear),
    "2:4, no bias": lambda: linear(SemiStructuredLinear, bias=False),
    "conv1d": lambda: conv1d(padding=1),
    "conv2d": lambda: conv2d(padding=1, groups=2),
    "conv2d, no bias": lambda: conv2d(bias=False, padding="same", dilation=2),
    "conv2d, reflect": lambda: conv2d(padding=(1, 2), padding_mode="reflect", stride=2),
}
COMPOSITES: dict[str, Callable[[], Pair]] = {
    "attention": lambda: attention(batch_first=True),
    "attention of three": lambda: attention(split=True, bias=False),
    "attention, kdim": lambda: attention(kdim=8, vdim=8, add_bias_kv=True, batch_first=True),
    "lstm": lambda: recurrent(nn.LSTM, batch_first=True),
    "lstm, proj": lambda: recurrent(nn.LSTM, proj_size=3, bidirectional=True, num_layers=2),
    "gru": lambda: recurrent(nn.GRU, bidirectional=True, batch_first=True),
    "rnn": lambda: recurrent(nn.RNN, nonlinearity="relu", bias=False),
}
ALL = {**MATRICES, "shared": shared, **COMPOSITES}


def outputs(module: nn.Module, x: Tensor) -> Tensor:
    """What matters of the result."""
    if isinstance(module, (nn.MultiheadAttention, SparseMultiheadAttention)):
        y: Tensor = module(x, x, x)[0]
        return y
    result = module(x)
    return result if isinstance(result, Tensor) else result[0]


def called(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: outputs(module, x)


class Only(nn.Module):
    """A model of one module, which takes and returns one tensor."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return outputs(self.module, x)


# Composites add rounding of their own: 2·eps·(terms + 1)·max|x|·max|w| with a few tens of terms of at most 4.
TOLERANCE = 200 * torch.finfo(torch.float32).eps * 16


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((a - b).abs().max() <= TOLERANCE)
