"""Converted models compute torch's attention natively where that is the same, and only there."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseinfer import Magnitude, convert, densify_, ops, prune_
from sparseinfer.modules import attended as attended_module
from sparseinfer.modules.attended import attended

HAS_NATIVE = ops.active_isa() in attended_module._LEVELS


class Direct(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(32, 96), nn.Linear(32, 32), False

    def forward(self, x, mask=None):
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


def interface(module, q, k, v, mask, factor=None):
    if mask is not None and mask.dtype == torch.uint8:
        mask = mask.bool()
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=factor).transpose(1, 2)


class Indirect(Direct):
    def forward(self, x, mask=None):
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        function = interface
        y = function(self, q, k, v, mask, factor=0.5)
        return self.out(y.flatten(2))


@pytest.fixture
def calls():
    with mock.patch.object(ops, "attention", wraps=ops.attention) as native:
        yield native


def converted(kind):
    torch.manual_seed(0)
    model = kind().eval()
    prune_(model, Magnitude(0.8), keep_masks=False, progress=False)
    x = torch.randn(2, 20, 32)
    return model, convert(model, example_inputs=(x,), measure=False), x


@pytest.mark.parametrize("kind", [Direct, Indirect])
def test_converted_models_attend_natively(kind, calls):
    model, fast, x = converted(kind)
    mask = torch.rand(2, 1, 20, 20) > 0.3
    with torch.inference_mode():
        for arguments in [(x,), (x, mask), (x, mask.float()), (x[:, :9],)]:
            calls.reset_mock()
            assert torch.allclose(fast(*arguments), model(*arguments), atol=1e-5)
            assert calls.call_count == HAS_NATIVE
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        calls.reset_mock()
        with torch.inference_mode():
            assert torch.equal(other(x), fast(x))
        assert calls.call_count == 2 * HAS_NATIVE


@pytest.mark.parametrize("kind", [Direct, Indirect])
def test_densified_models_call_torch(kind, calls):
    _, fast, x = converted(kind)
    dense = densify_(fast)
    calls.reset_mock()
    with torch.inference_mode():
        dense(x)
    assert not calls.called


def test_what_torch_has_to_see_is_torchs(calls):
    _, fast, x = converted(Direct)
    q = torch.randn(1, 2, 16, 8)
    sdpa = F.scaled_dot_product_attention
    cases = [
        ((q.requires_grad_(), q, q), {}),
        ((q.detach().double(),) * 3, {}),
        ((q.detach().bfloat16(),) * 3, {}),
        ((q.detach(),) * 3, {"is_causal": True}),
        ((q.detach()[:, :, :2], q.detach(), q.detach()), {}),
        ((q.detach()[0],) * 3, {}),
        ((q.detach(), q.detach()[:, :1], q.detach()[:, :1]), {}),
        ((q.detach(),) * 3, {"dropout_p": 0.5}),
    ]
    calls.reset_mock()
    for arguments, named in cases:
        torch.manual_seed(0)
        y = attended(sdpa, *arguments, **named)
        torch.manual_seed(0)
        assert torch.equal(y, sdpa(*arguments, **named))
    assert not calls.called
    fast.causal = True
    with torch.inference_mode():
        fast(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast(x)
    with torch.profiler.profile():
        fast(x)
    assert not calls.called


def test_a_function_put_in_torchs_place_is_called():
    _, fast, x = converted(Direct)
    with mock.patch.object(F, "scaled_dot_product_attention", side_effect=lambda q, *a, **k: q) as own:
        fast(x)
    assert own.called


def test_errors_are_torchs():
    q = torch.randn(1, 2, 16, 8)
    for arguments in [(q, q), (q, q, q[..., :4], torch.ones(3, 5)), (q, q, q, torch.ones(3, 5))]:
        with pytest.raises((RuntimeError, TypeError)):
            attended(F.scaled_dot_product_attention, *arguments)


def test_compiled_and_exported():
    model, fast, x = converted(Indirect)
    with torch.inference_mode():
        compiled = torch.compile(fast, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
    exported = torch.export.export(fast, (x,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(x), model(x), atol=1e-5)


def test_bert_of_transformers_attends_natively(calls):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 99}
    model = transformers.BertModel(
        transformers.BertConfig(**sizes, num_hidden_layers=2, attn_implementation="sdpa")
    ).eval()
    prune_(model, Magnitude(0.8), keep_masks=False, progress=False)
    ids = torch.randint(0, 99, (2, 24))
    kept = torch.ones_like(ids)
    kept[1, 15:] = 0
    fast = convert(model, example_inputs={"input_ids": ids}, measure=False)
    with torch.inference_mode():
        for given in ({}, {"attention_mask": kept}):
            calls.reset_mock()
            y = fast(input_ids=ids, **given).last_hidden_state
            assert torch.allclose(y, model(input_ids=ids, **given).last_hidden_state, atol=2e-5)
            assert calls.call_count == 2 * HAS_NATIVE
    # Its own way, where it has to return the weights.
    fast.set_attn_implementation("eager")
    calls.reset_mock()
    with torch.inference_mode():
        assert len(fast(input_ids=ids, output_attentions=True).attentions) == 2
    assert not calls.called
