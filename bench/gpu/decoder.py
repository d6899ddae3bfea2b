"""A decoder of the Llama family that makes one token per call, for CUDA graphs: its memory stays where it is.

q, k and v are one matrix, and so are gate and up, for dense and sparse models alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Config:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    rope_base: float = 10000.0
    eps: float = 1e-5

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """[n, k] of a layer's matrices."""
        return {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head, self.hidden),
            "out": (self.hidden, self.hidden),
            "gate_up": (2 * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }


class DecoderLayer(nn.Module):
    """x [b, hidden], the position of these tokens int64 [1], and what of the past they see, bool [length]."""

    def __init__(self, config: Config, batch: int, length: int) -> None:
        super().__init__()
        self.config = config
        for name, (n, k) in config.shapes.items():
            self.add_module(name, nn.Linear(k, n, bias=False))
        self.norm_in, self.norm_ffn = (nn.RMSNorm(config.hidden, eps=config.eps) for _ in range(2))
        for name in ("keys", "values"):
            cache = torch.zeros(batch, config.kv_heads, length, config.head)
            self.register_buffer(name, cache, persistent=False)

    def forward(self, x: Tensor, position: Tensor, seen: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c, batch = self.config, x.shape[0]
        sizes = [count * c.head for count in (c.heads, c.kv_heads, c.kv_heads)]
        q, k, v = (t.view(batch, -1, 1, c.head) for t in self.qkv(self.norm_in(x)).split(sizes, dim=-1))
        self.keys.index_copy_(2, position, _rotated(k, cos, sin))
        self.values.index_copy_(2, position, v)
        q = _rotated(q, cos, sin)
        attended = F.scaled_dot_product_attention(
            q, self.keys, self.values, seen.view(1, 1, 1, -1), enable_gqa=True
        )
        x = x + self.out(attended.reshape(batch, -1))
        gate, up = self.gate_up(self.norm_ffn(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """Token ids [b] and their position int64 [1], the same for all -> logits [b, vocabulary]."""

    def __init__(self, config: Config, batch: int, length: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(DecoderLayer(config, batch, length) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.eps)
        steps = torch.arange(0, config.head, 2) / config.head
        angles = torch.arange(length)[:, None] / config.rope_base**steps
        angles = torch.cat((angles, angles), dim=1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, position: Tensor) -> Tensor:
        x = self.embedding(ids)
        cos, sin = (table.index_select(0, position) for table in (self.cos, self.sin))
        seen = torch.arange(self.cos.shape[0], device=ids.device) <= position
        for layer in self.layers:
            x = layer(x, position, seen, cos, sin)
        return F.linear(self.norm(x), self.embedding.weight)


def _rotated(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = t.chunk(2, dim=-1)
    return t * cos + torch.cat((-high, low), dim=-1) * sin


def loaded(model: Any, batch: int, length: int) -> Decoder:
    """From a LlamaForCausalLM of transformers with tied embeddings, in its dtype."""
    c = model.config
    config = Config(
        c.num_hidden_layers,
        c.hidden_size,
        c.num_attention_heads,
        c.num_key_value_heads,
        c.intermediate_size,
        c.vocab_size,
        c.rope_parameters["rope_theta"],
        c.rms_norm_eps,
    )
    decoder = Decoder(config, batch, length).to(model.dtype)
    with torch.no_grad():
        decoder.embedding.weight.copy_(model.model.embed_tokens.weight)
        decoder.norm.weight.copy_(model.model.norm.weight)
        for ours, theirs in zip(decoder.layers, model.model.layers, strict=True):
            attention, mlp = theirs.self_attn, theirs.mlp
            parts = {
                "qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
                "out": (attention.o_proj,),
                "gate_up": (mlp.gate_proj, mlp.up_proj),
                "down": (mlp.down_proj,),
            }
            for name, linears in parts.items():
                ours.get_submodule(name).weight.copy_(torch.cat([linear.weight for linear in linears]))
            ours.norm_in.weight.copy_(theirs.input_layernorm.weight)
            ours.norm_ffn.weight.copy_(theirs.post_attention_layernorm.weight)
    return decoder.eval()


class Stepper:
    """Greedy decoding of a batch. `step` makes one token for each, on a GPU by replaying a CUDA graph.

    ids [b] and position [1] are where the graph reads and writes them; `logits` [b, vocabulary] are the last.
    """

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        self._model = model
        self.ids, self.position = ids.clone(), torch.zeros(1, dtype=torch.int64, device=ids.device)
        self.logits: Tensor
        self._call: Callable[[], None] = self._step
        if ids.is_cuda:
            self._call = self._captured()

    def step(self) -> Tensor:
        """The logits of the tokens so far; `ids` are then the next ones."""
        self._call()
        return self.logits

    def restart(self, ids: Tensor) -> None:
        self.ids.copy_(ids)
        self.position.zero_()

    @torch.inference_mode()
    def _step(self) -> None:
        self.logits = self._model(self.ids, self.position)
        self.ids.copy_(self.logits.argmax(-1))
        self.position += 1

    def _captured(self) -> Callable[[], None]:
        ids, stream = self.ids.clone(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.restart(ids)
        return graph.replay
