"""Modules in the place of dense ones: the same attributes, parameters and results."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract_helpers import (
    ALL,
    MATRICES,
    Only,
    Pair,
    attention,
    called,
    close,
    conv2d,
    linear,
    outputs,
    recurrent,
)
from copies import by_file, by_pickle
from torch import Tensor, nn

from sparseinfer.modules import ChannelsLastMaxPool2d, PrepackedLinear, SparseConv2d, SparseLinear

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*enable_nested_tensor is True:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]

every = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
pooling = {
    "pooling": lambda: Pair(nn.MaxPool2d(3, 2), ChannelsLastMaxPool2d(nn.MaxPool2d(3, 2)), torch.ones(1))
}
walked = {name: make for name, make in {**ALL, **pooling}.items() if name != "shared"}

# What dense modules have besides: how they are written down, and how cuDNN's weights are kept together.
OWN = {"__constants__", "__jit_unused_properties__", "_flat_weight_refs", "_init_flat_weights"}
OWN |= {"_update_flat_weights", "_reset_parameters"}
# By this torch's Transformer layers are told that their fast path does not apply.
OWN |= {"_qkv_same_embed_dim"}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, nn.Module):
        return equal(a.weight, b.weight)
    return callable(b) if callable(a) else type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("make", walked.values(), ids=walked)
def test_attributes(make: Callable[[], Pair]) -> None:
    pair = make()
    names = set(dir(pair.dense)) - set(dir(nn.Module())) - OWN
    assert len(names) > 4
    for name in sorted(names):
        assert hasattr(pair.sparse, name), name
        assert equal(getattr(pair.dense, name), getattr(pair.sparse, name)), name


def duplicates() -> dict[str, Callable[[nn.Module], nn.Module]]:
    return {"deepcopy": copy.deepcopy, "pickle": by_pickle, "saved": by_file}


@every
@pytest.mark.parametrize("duplicate", duplicates().values(), ids=duplicates())
def test_copies(make: Callable[[], Pair], duplicate: Callable[[nn.Module], nn.Module]) -> None:
    pair = make()
    for training in (True, False):
        twin = duplicate(pair.sparse.train(training))
        assert all(module.training is training for module in twin.modules())
    assert torch.equal(outputs(twin, pair.x), outputs(pair.sparse, pair.x))
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in pair.sparse.named_parameters()]
    assert list(twin.state_dict()) == list(pair.sparse.state_dict())


def test_the_training_flag_goes_both_ways() -> None:
    for training in (True, False):
        dense = nn.Linear(8, 6).train(training)
        assert SparseLinear.from_linear(dense).training is training
        assert PrepackedLinear.from_linear(dense).to_linear().training is training
        conv = nn.Conv2d(4, 6, 3).train(training)
        assert SparseConv2d.from_conv(conv).training is training
        assert SparseConv2d.from_conv(conv).to_conv().training is training
        pool = nn.MaxPool2d(2).train(training)
        assert ChannelsLastMaxPool2d(pool).training is training
        assert ChannelsLastMaxPool2d(pool).to_pool().training is training


@every
class TestParameters:
    def test_say_where_and_of_which_dtype(self, make: Callable[[], Pair]) -> None:
        pair = make()
        for module in (Only(pair.sparse), Only(pair.sparse).to("cpu", torch.float32).share_memory()):
            first = next(module.parameters())
            assert (first.dtype, first.device.type) == (torch.float32, "cpu")
            assert not any(parameter.requires_grad for parameter in module.parameters())
            assert not any("placeholder" in key for key in module.state_dict())
            result = module.load_state_dict(module.state_dict())
            assert not result.missing_keys
            assert not result.unexpected_keys
            assert torch.equal(module(pair.x), outputs(pair.sparse, pair.x))

    def test_every_layer_has_one(self, make: Callable[[], Pair]) -> None:
        for module in make().sparse.modules():
            assert isinstance(next(module.parameters()), nn.Parameter)

    def test_biases_are_live(self, make: Callable[[], Pair]) -> None:
        pair = make()
        biases = [p for name, p in pair.sparse.named_parameters() if name.endswith("bias")]
        before = outputs(pair.sparse, pair.x)
        with torch.no_grad():
            for parameter in biases:
                parameter.add_(1)
            for name, parameter in pair.dense.named_parameters():
                if "bias" in name and "bias_k" not in name and "bias_v" not in name:
                    parameter.add_(1)
        assert close(outputs(pair.sparse, pair.x), outputs(pair.dense, pair.x))
        assert torch.equal(outputs(pair.sparse, pair.x), before) == (not biases)


@pytest.mark.parametrize("masked", [True, False])
def test_transformer_layers_do_not_take_their_fast_path(masked: bool) -> None:
    pair = attention(batch_first=True)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval().requires_grad_(False)
    layer.self_attn = pair.dense
    encoder = nn.TransformerEncoder(layer, 1).eval()
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3:] = masked
    want = encoder(pair.x, src_key_padding_mask=mask)
    calls: list[int] = []
    pair.sparse.register_forward_hook(lambda *_: calls.append(1))
    encoder.layers[0].self_attn = pair.sparse
    got = encoder(pair.x, src_key_padding_mask=mask)
    assert calls == [1]
    assert close(got[~mask], want[~mask])


def test_a_recurrent_layer_in_a_model_that_flattens() -> None:
    pair = recurrent(nn.LSTM, batch_first=True)
    sparse: Any = pair.sparse
    sparse.flatten_parameters()
    assert sparse.bias is True
    assert "weight_ih_l0" in dir(sparse)
    assert not hasattr(sparse, "weight_ih_l1")
    sparse.check_forward_args(pair.x, (torch.ones(1, 3, 4),) * 2, None)
    with pytest.raises(RuntimeError, match="Expected hidden"):
        sparse.check_forward_args(pair.x, (torch.ones(1, 2, 4),) * 2, None)
    with pytest.raises(RuntimeError, match="input: expected 6 features, got 5"):
        sparse.check_input(pair.x[..., :5], None)
    with pytest.raises(ValueError, match="dtype"):
        sparse(pair.x.double())


def strided(x: Tensor) -> dict[str, Tensor]:
    wide = torch.cat([x, x], -1)
    return {
        "contiguous": x,
        "none": x[:0],
        "expanded": x[:1].expand(5, *x.shape[1:]),
        "turned": x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "sliced": wide[..., : x.shape[-1]],
        "every other": wide.repeat_interleave(2, -1)[..., : 2 * x.shape[-1] : 2],
        "batch last": x.movedim(0, -1).contiguous().movedim(-1, 0),
        "one": x[:1],
        "unbatched": x[0],
    }


@pytest.mark.parametrize("make", MATRICES.values(), ids=MATRICES)
def test_strides_of_results(make: Callable[[], Pair]) -> None:
    pair = make()
    given = strided(pair.x)
    if pair.x.dim() == 4:
        lying = pair.x.contiguous(memory_format=torch.channels_last)
        channels = torch.cat([pair.x, pair.x], 1).contiguous(memory_format=torch.channels_last)
        given |= {"channels_last": lying, "of channels_last": channels[:, :4], "no images": lying[:0]}
        given |= {"one row": lying[0], "sliced rows": torch.cat([lying, lying], 3)[..., ::2]}
    for title, x in given.items():
        got, want = called(pair.sparse)(x), called(pair.dense)(x)
        assert got.stride() == want.stride(), title
        assert close(got, want) if want.numel() else got.shape == want.shape, title


def test_a_weight_in_channels_last_makes_results_so() -> None:
    dense = conv2d(padding=1).dense.to(memory_format=torch.channels_last)
    sparse = SparseConv2d.from_conv(dense)
    late = conv2d(padding=1).sparse.to(memory_format=torch.channels_last)
    assert sparse.weight.stride() == sparse.to_conv().weight.stride() == dense.weight.stride()
    for x in (torch.randn(2, 4, 7, 8), torch.randn(4, 7, 8), torch.randn(0, 4, 7, 8)):
        want = dense(x)
        for module in (sparse, copy.deepcopy(late)):
            assert module(x).shape == want.shape
            assert not want.numel() or module(x).stride() == want.stride()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_strides_of_recurrent_results(kind: type[nn.RNNBase], batch_first: bool) -> None:
    pair = recurrent(kind, batch_first=batch_first, num_layers=2)
    for x in (pair.x, pair.x.transpose(0, 1), pair.x[:, :1], pair.x[0]):
        (y, state), (want, wanted) = pair.sparse(x), pair.dense(x)
        assert y.stride() == want.stride()
        pairs = zip(state, wanted, strict=True) if isinstance(state, tuple) else [(state, wanted)]
        assert all(mine.stride() == theirs.stride() for mine, theirs in pairs)


@every
def test_bad_input_raises_what_code_expects(make: Callable[[], Pair]) -> None:
    pair = make()
    given = (pair.x[..., :1, :1], pair.x.double(), pair.x.int(), pair.x[None, None, None], torch.ones(()))
    refused = 0
    for x in given:
        try:
            want = outputs(pair.dense, x)
        except (RuntimeError, ValueError, AssertionError, IndexError):
            refused += 1
            with pytest.raises((RuntimeError, ValueError)):
                outputs(pair.sparse, x)
        else:
            assert close(outputs(pair.sparse, x), want)
    assert refused >= 3


def test_linear_is_not_conv1d() -> None:
    pair = linear(SparseLinear)
    assert not hasattr(pair.sparse, "nf")
    assert not hasattr(pair.sparse, "nx")
