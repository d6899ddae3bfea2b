"""SparseMultiheadAttention: nn.MultiheadAttention whose projections are modules, sparse or dense."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer.modules._attention_mask import combined_mask
from sparseinfer.modules._attention_names import AttentionNames
from sparseinfer.modules.attended import attended
from sparseinfer.modules.parts import checked_part, dense_bias, dense_linear, dense_weight, features


class SparseMultiheadAttention(AttentionNames):
    """softmax(q · kᵀ / √d) · v for each head, between projections that are modules; for inference.

    in_proj     one module [3e, e] for q, k and v, or an nn.ModuleList of three [e, e], [e, kdim], [e, vdim]
    out_proj    one module [e, e]

    Arguments and results are those of nn.MultiheadAttention, which it can replace in torch's Transformer
    layers: their fast path, which reads weights and calls no module, is then disabled. (At padded positions
    a TransformerEncoder on the fast path returns zeros; here it returns what the layers computed.)

    One module [3e, e] is called once for each distinct tensor among query, key and value, and the unused
    parts of its result are dropped: one call in self-attention; twice the work of three modules where key is
    value but not query.
    """

    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(
        self,
        in_proj: nn.Module | Sequence[nn.Module],
        out_proj: nn.Module,
        num_heads: int,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bias_k: Tensor | None = None,
        bias_v: Tensor | None = None,
        add_zero_attn: bool = False,
    ) -> None:
        """Hold the projections, modules with in_features, out_features, weight and bias, and no activation.

        in_proj          one module or three, as above; a sequence of one or three is taken as well
        num_heads        divides e = out_proj.out_features
        batch_first, dropout, add_zero_attn    as in nn.MultiheadAttention; dropout acts in training mode only
        bias_k, bias_v   [1, 1, e], both or neither: a key and a value for every query to attend to

        TypeError: a projection that is not like nn.Linear. ValueError: shapes that do not fit, a fused
        activation, some of three projections with a bias and others without.
        """
        super().__init__()
        parts = list(in_proj) if isinstance(in_proj, (Sequence, nn.ModuleList)) else [in_proj]
        if len(parts) not in (1, 3):
            raise ValueError(f"in_proj: expected one module or three, got {len(parts)}")
        e = self.embed_dim = features("out_proj", out_proj)[0]
        if num_heads < 1 or e % num_heads:
            raise ValueError(f"num_heads: expected a divisor of embed_dim = {e}, got {num_heads}")
        self.kdim = features("in_proj", parts[1])[1] if len(parts) == 3 else e
        self.vdim = features("in_proj", parts[2])[1] if len(parts) == 3 else e
        shapes = [(e, e), (e, self.kdim), (e, self.vdim)] if len(parts) == 3 else [(3 * e, e)]
        for part, (n, k) in zip(parts, shapes, strict=True):
            checked_part("in_proj", part, n, k)
        if len({dense_bias(part) is None for part in parts}) != 1:
            raise ValueError("in_proj: expected a bias in all three modules or in none, got some of them")
        if (bias_k is None) != (bias_v is None):
            raise ValueError("bias_k: expected both bias_k and bias_v or neither, got one of them")
        for name, bias in (("bias_k", bias_k), ("bias_v", bias_v)):
            if bias is not None and bias.shape != (1, 1, e):
                raise ValueError(f"{name}: expected shape {(1, 1, e)}, got {tuple(bias.shape)}")
            self.register_buffer(name, None if bias is None else bias.detach().clone())
        self.in_proj = parts[0] if len(parts) == 1 else nn.ModuleList(parts)
        self.out_proj = checked_part("out_proj", out_proj, e, e)
        self.num_heads = num_heads
        self.head_dim = e // num_heads
        self.batch_first = batch_first
        self.dropout = dropout
        self.add_zero_attn = add_zero_attn

    @classmethod
    def from_attention(
        cls,
        mha: nn.MultiheadAttention,
        in_proj: nn.Module | Sequence[nn.Module] | None = None,
        out_proj: nn.Module | None = None,
    ) -> SparseMultiheadAttention:
        """`mha` with these projections; default: `linears(mha)`, which share its weights."""
        own_in, own_out = cls.linears(mha)
        attention = cls(
            own_in if in_proj is None else in_proj,
            own_out if out_proj is None else out_proj,
            mha.num_heads,
            batch_first=mha.batch_first,
            dropout=mha.dropout,
            bias_k=mha.bias_k,
            bias_v=mha.bias_v,
            add_zero_attn=mha.add_zero_attn,
        )
        got, expected = ((m.embed_dim, m.kdim, m.vdim) for m in (attention, mha))
        if got != expected:
            raise ValueError(f"in_proj: expected embed_dim, kdim, vdim = {expected} like mha, got {got}")
        return attention.train(mha.training)

    @staticmethod
    def linears(mha: nn.MultiheadAttention, *, split: bool = False) -> tuple[list[nn.Linear], nn.Linear]:
        """in_proj and out_proj of a dense layer as nn.Linears that share its memory.

        in_proj is one [3e, e], or three if `split` or if kdim or vdim is not e. TypeError: another module.
        """
        if not isinstance(mha, nn.MultiheadAttention):
            raise TypeError(f"mha: expected nn.MultiheadAttention, got {type(mha).__name__}")
        out = dense_linear(mha.out_proj.weight, mha.out_proj.bias)
        weight, bias = mha.in_proj_weight, mha.in_proj_bias
        if weight is not None and not split:
            return [dense_linear(weight, bias)], out
        three = (mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight)
        weights = list(three if weight is None else weight.chunk(3))
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return [dense_linear(w, b) for w, b in zip(weights, biases, strict=True)], out

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention and, if `need_weights`, its weights [n, l, s], or [n, heads, l, s] if not averaged.

        query [l, n, e], key [s, n, kdim], value [s, n, vdim] -> [l, n, e]; n first if `batch_first`, without
        n if unbatched.

        key_padding_mask   [n, s]; bool, True = ignored, or floats that are added to the scores
        attn_mask          [l, s] or [n * heads, l, s], likewise
        is_causal          says that attn_mask is the causal mask; it has to be given all the same

        ValueError: shapes that do not fit each other. TypeError: a mask of another dtype.
        """
        batched, n = self._checked(query, key, value)
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask: expected the causal mask with is_causal=True, got None")
        batch_first = self.batch_first or not batched
        heads = []
        for projected in self._project(query, key, value):
            x = projected if batched else projected.unsqueeze(0)
            x = x.unflatten(-1, (self.num_heads, self.head_dim))
            heads.append(x.permute(0, 2, 1, 3) if batch_first else x.permute(1, 2, 0, 3))
        q, k, v = heads  # [n, heads, l or s, head_dim]

        # Without padding the hint stands for the mask, which need not be read then.
        is_causal = is_causal and key_padding_mask is None and not need_weights
        attn_mask = None if is_causal else attn_mask
        sizes = n, self.num_heads, q.shape[2], k.shape[2]
        mask = combined_mask(attn_mask, key_padding_mask, sizes, q.dtype)
        k, v, mask = self._extended(k, v, mask)
        attended, weights = self._attend(q, k, v, mask, need_weights, is_causal)

        # As torch's layer in training mode, where a dropout draws for [l, n, e]; its fast path keeps n first.
        steps_first = self.training or not batch_first
        y = attended.permute(2, 0, 1, 3) if steps_first else attended.permute(0, 2, 1, 3)
        y = self.out_proj(y.flatten(2))
        if steps_first and batch_first:
            y = y.transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if batched:
            return y, weights
        return y.squeeze(0), None if weights is None else weights.squeeze(0)

    def _checked(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[bool, int]:
        """Whether the inputs are batched, and n."""
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.is_nested:
                raise TypeError(f"{name}: expected a plain tensor, got a nested one (pass key_padding_mask)")
        if query.dim() not in (2, 3):
            raise ValueError(f"query: expected 2 or 3 dimensions, got {query.dim()}")
        batch_dim = 0 if self.batch_first else 1
        batched = query.dim() == 3
        n = query.shape[batch_dim] if batched else 1
        inputs = (("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim))
        for name, x, width in inputs:
            if x.dim() != query.dim():
                raise ValueError(f"{name}: expected {query.dim()} dimensions like query, got {x.dim()}")
            if x.shape[-1] != width:
                raise ValueError(f"{name}: expected {width} features, got {x.shape[-1]}")
            if batched and x.shape[batch_dim] != n:
                raise ValueError(f"{name}: expected batch size {n} like query, got {x.shape[batch_dim]}")
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"value: expected the length of key, {tuple(key.shape)}, got {tuple(value.shape)}"
            )
        return batched, n

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v [..., e]."""
        if isinstance(self.in_proj, nn.ModuleList):
            q_proj, k_proj, v_proj = self.in_proj
            return q_proj(query), k_proj(key), v_proj(value)
        e = self.embed_dim
        q = self.in_proj(query)
        k = q if key is query else self.in_proj(key)
        v = k if value is key else q if value is query else self.in_proj(value)
        return q[..., :e], k[..., e : 2 * e], v[..., 2 * e :]

    def _extended(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """k, v [n, heads, s, head_dim] and the mask, with the positions that every query may attend to."""
        added = 0
        if self.bias_k is not None and self.bias_v is not None:
            one = (1, self.num_heads, 1, self.head_dim)
            k = torch.cat([k, self.bias_k.view(one).expand(k.shape[0], -1, -1, -1)], dim=2)
            v = torch.cat([v, self.bias_v.view(one).expand(v.shape[0], -1, -1, -1)], dim=2)
            added += 1
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            added += 1
        return k, v, F.pad(mask, (0, added)) if mask is not None and added else mask

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool, is_causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attention [n, heads, l, head_dim] and, if needed, its weights [n, heads, l, s]."""
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return attended(F.scaled_dot_product_attention, q, k, v, mask, dropout, is_causal), None
        scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
        weights = F.dropout(F.softmax(scores if mask is None else scores + mask, dim=-1), dropout)
        return weights @ v, weights

    def to_attention(self) -> nn.MultiheadAttention:
        """The dense layer, exact to the bit."""
        parts = self._in_parts()
        # Built without data: nothing to initialise, no random numbers drawn.
        mha = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            add_zero_attn=self.add_zero_attn,
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
            device="meta",
        )
        weights = [dense_weight(part) for part in parts]
        if self._has_packed_weight:
            mha.in_proj_weight = nn.Parameter(torch.cat(weights))
        else:
            mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight = map(nn.Parameter, weights)
        biases = [bias for bias in map(dense_bias, parts) if bias is not None]
        mha.register_parameter("in_proj_bias", nn.Parameter(torch.cat(biases)) if biases else None)
        mha.out_proj.weight = nn.Parameter(dense_weight(self.out_proj))
        out_bias = dense_bias(self.out_proj)
        mha.out_proj.register_parameter("bias", None if out_bias is None else nn.Parameter(out_bias))
        if self.bias_k is not None and self.bias_v is not None:
            mha.bias_k, mha.bias_v = nn.Parameter(self.bias_k.clone()), nn.Parameter(self.bias_v.clone())
        return mha.train(self.training)

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"
