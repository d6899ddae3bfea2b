"""What the tests of quantization share: every kind of layer, and plain transcriptions in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from generators import values
from prune_helpers import KINDS, layer_of_kind, transposed
from torch import Tensor, nn

from sparseinfer.prune import Magnitude, prune_


def other_kinds() -> dict[str, Callable[[], nn.Module]]:
    return {
        "transposed": lambda: transposed(6, 8),
        "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        "attention-sizes": lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
        "lstm": lambda: nn.LSTM(8, 6, num_layers=2, bidirectional=True),
        "gru-cell": lambda: nn.GRUCell(8, 6),
    }


ALL_KINDS = (*KINDS, *other_kinds())


def layer_of(kind: str) -> nn.Module:
    """A seeded layer, half of whose weights are zero; float32."""
    torch.manual_seed(0)
    layer = layer_of_kind(kind, torch.float32)[0] if kind in KINDS else other_kinds()[kind]()
    prune_(layer, Magnitude(0.5), keep_masks=False)
    return layer


def pruned_linear(n: int, k: int, dtype: torch.dtype = torch.float64) -> nn.Linear:
    layer = nn.Linear(k, n, dtype=dtype)
    layer.weight.data.copy_(values(n, k, seed=n + k, dtype=dtype))
    prune_(layer, Magnitude(0.6), keep_masks=False)
    return layer


def inputs(tokens: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Correlated, and of uneven size: what makes GPTQ differ from rounding to nearest."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, k, generator=generator, dtype=torch.float64)
    mix = torch.randn(k, k, generator=generator, dtype=torch.float64) / k**0.5 + torch.eye(k)
    return (x @ (mix * torch.rand(k, generator=generator).exp())).to(dtype)


def numpy_scales(rows: np.ndarray) -> np.ndarray:
    """The largest magnitude of each row [n, k] over 127, rounded to 8 significant bits."""
    exact = (np.abs(rows).max(1) / 127).astype(np.float32)
    fraction, exponent = np.frexp(exact)
    short = np.ldexp(np.rint(fraction * 2**8) / 2**8, exponent).astype(np.float32)
    return np.where(exact == 0, np.float32(1), short)


def numpy_nearest(rows: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(rows / scales[:, None]), -127, 127)


def numpy_gptq(w: np.ndarray, gram: np.ndarray, scales: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Column by column with H⁻¹ of the columns that are left, by its definition: no factor, no blocks.

    After each column, the others that are left move by the best answer to its error; then that column is
    eliminated from H⁻¹.
    """
    w, zero, integers = w.copy(), w == 0, np.zeros_like(w)
    inverse = np.linalg.inv(gram + 0.01 * np.diag(gram).mean() * np.eye(len(gram)))
    for i in order:
        q = np.where(zero[:, i], 0, np.clip(np.rint(w[:, i] / scales), -127, 127))
        error = (w[:, i] - q * scales.astype(np.float64)) / inverse[i, i]
        w -= np.outer(error, inverse[i])
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        # Exactly zero, so that no later column moves this one again.
        inverse[i], inverse[:, i], inverse[i, i] = 0, 0, 1
        integers[:, i] = q
    return integers
