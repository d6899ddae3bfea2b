"""Gives the layer that replaces nn.MultiheadAttention its attributes, such as in_proj_weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.modules._read_only import ReadOnlyTensor
from sparseinfer.modules.parts import dense_bias, dense_weight
from sparseinfer.modules.stand_in import StandIn


class AttentionNames(StandIn):
    """Attributes of nn.MultiheadAttention, made from `in_proj`: one module [3e, e] or three."""

    in_proj: nn.Module
    embed_dim: int
    kdim: int
    vdim: int

    # TransformerEncoderLayer asks this before it takes its fast path, which would read the weights. (An
    # encoder that was built with nn.MultiheadAttention asks whether `in_proj_weight` is a plain tensor.)
    _qkv_same_embed_dim = False

    _derived = frozenset(
        {"in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
    )
    merge_masks = nn.MultiheadAttention.merge_masks

    @property
    def _has_packed_weight(self) -> bool:
        """Whether nn.MultiheadAttention would hold q, k and v as one weight."""
        return self.kdim == self.embed_dim and self.vdim == self.embed_dim

    def _in_parts(self) -> list[nn.Module]:
        return list(self.in_proj) if isinstance(self.in_proj, nn.ModuleList) else [self.in_proj]

    @property
    def in_proj_weight(self) -> Tensor | None:
        """The dense weight [3e, e] of all projections, if kdim and vdim are e; a new read-only tensor."""
        if not self._has_packed_weight:
            return None
        parts = self._in_parts()
        if len(parts) == 1:
            weight: Any = parts[0].weight
            return weight
        return ReadOnlyTensor.of(torch.cat([dense_weight(part) for part in parts]))

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The bias [3e]: the parameter itself of one projection, a read-only copy of three."""
        parts = self._in_parts()
        if len(parts) == 1:
            bias: Any = parts[0].bias
            return bias
        biases = [bias for bias in map(dense_bias, parts) if bias is not None]
        return ReadOnlyTensor.of(torch.cat(biases)) if biases else None

    def _projection(self, index: int) -> Any:
        return None if self._has_packed_weight else self._in_parts()[index].weight

    @property
    def q_proj_weight(self) -> Tensor | None:
        """The weight of the query projection; None if it is part of `in_proj_weight`."""
        return self._projection(0)

    @property
    def k_proj_weight(self) -> Tensor | None:
        return self._projection(1)

    @property
    def v_proj_weight(self) -> Tensor | None:
        return self._projection(2)
