"""SparseMultiheadAttention in torch's own Transformer layers, which have a fast path that calls no module."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attention_helpers import EPS, HEADS, E, L, N, S, sparse
from generators import values, weight
from torch import Tensor, nn

from sparseinfer.modules import SparseLinear


def replace_attention(model: nn.Module) -> None:
    """Every nn.MultiheadAttention, and the linears beside it, by sparse ones."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, sparse(child))
            elif name in ("linear1", "linear2"):
                setattr(module, name, SparseLinear.from_linear(child))


def pruned(model: nn.Module) -> nn.Module:
    for seed, parameter in enumerate(model.parameters()):
        if parameter.dim() == 2:
            parameter.data = weight("random", *parameter.shape, 0.7, seed=seed) / 4
    return model.eval()


def assert_same_model(model: nn.Module, reference: nn.Module, *given: Tensor, **options: Any) -> None:
    """Layer norms give values of the size of 1, a layer amplifies errors by less than 16.

    That is the L1 norm of a row of its matrices, and rounding adds 2·eps·(terms + 1) to each of them.
    """
    with torch.no_grad():
        got = model(*given, **options)
        double = {
            n: o.double() if isinstance(o, Tensor) and o.is_floating_point() else o
            for n, o in options.items()
        }
        wanted = copy.deepcopy(reference).double()(*(x.double() for x in given), **double)
    assert got.shape == wanted.shape
    padding = options.get("src_key_padding_mask")
    off = (got - wanted).abs()
    if padding is not None:
        off = off[~padding]
    assert off.max() <= 2 * 16**2 * 2 * EPS * (E + 1)


def layer(kind: type[nn.Module], **options: Any) -> nn.Module:
    return pruned(kind(E, HEADS, 32, dropout=0.1, **options))


class TestInTransformers:
    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("norm_first", [True, False])
    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    def test_encoder_layer(self, batch_first: bool, norm_first: bool, activation: str) -> None:
        reference = layer(
            nn.TransformerEncoderLayer, batch_first=batch_first, norm_first=norm_first, activation=activation
        )
        model = copy.deepcopy(reference)
        replace_attention(model)
        x = values(N, L, E)
        assert_same_model(model, reference, x)
        assert_same_model(model, reference, x[0])
        length = L if batch_first else N
        mask = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        assert_same_model(model, reference, x, src_mask=mask, is_causal=True)
        with torch.inference_mode():
            assert model(x).shape == x.shape

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    @pytest.mark.parametrize("replaced_first", [True, False])
    @pytest.mark.parametrize("grad", [True, False])
    def test_encoder_with_padding(self, replaced_first: bool, grad: bool) -> None:
        """The dense encoder makes nested tensors of such an input; the sparse one must not."""
        reference_layer = layer(nn.TransformerEncoderLayer, batch_first=True)
        reference = nn.TransformerEncoder(reference_layer, 2).eval()
        assert reference.use_nested_tensor
        if replaced_first:
            sparse_layer = copy.deepcopy(reference_layer)
            replace_attention(sparse_layer)
            model = nn.TransformerEncoder(sparse_layer, 2, enable_nested_tensor=False).eval()
        else:
            model = copy.deepcopy(reference)
            replace_attention(model)
            assert model.use_nested_tensor
        model.requires_grad_(False)
        padding = torch.arange(L) >= torch.tensor([[L], [2], [3]])
        with torch.set_grad_enabled(grad):
            assert model(values(N, L, E), src_key_padding_mask=padding).isfinite().all()
        assert_same_model(model, reference, values(N, L, E), src_key_padding_mask=padding)
        assert_same_model(model, reference, values(N, L, E))

    def test_the_modules_are_called(self) -> None:
        model = nn.TransformerEncoder(layer(nn.TransformerEncoderLayer, batch_first=True), 2).eval()
        replace_attention(model)
        called = []
        for name, module in model.named_modules():
            if isinstance(module, SparseLinear):
                forward = module.forward
                module.forward = lambda x, name=name, forward=forward: (called.append(name), forward(x))[1]
        with torch.no_grad():
            model(values(N, L, E))
        parts = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
        assert called == [f"layers.{i}.{part}" for i in range(2) for part in parts]

    @pytest.mark.parametrize("batch_first", [True, False])
    def test_decoder(self, batch_first: bool) -> None:
        reference = nn.TransformerDecoder(
            layer(nn.TransformerDecoderLayer, batch_first=batch_first), 2
        ).eval()
        model = copy.deepcopy(reference)
        replace_attention(model)
        target, memory = (values(N, length, E, seed=length) for length in (L, S))
        if not batch_first:
            target, memory = target.transpose(0, 1), memory.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(L)
        assert_same_model(model, reference, target, memory, tgt_mask=mask, tgt_is_causal=True)
        assert_same_model(model, reference, target, memory)


def test_compile() -> None:
    torch._dynamo.reset()
    model = nn.TransformerEncoder(layer(nn.TransformerEncoderLayer, batch_first=True), 2).eval()
    replace_attention(model)
    x = values(N, L, E)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
