"""SmoothQuant: folds where nothing but linear layers can read the norm; before rounding nothing changes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from generators import values
from torch import Tensor, nn

from sparseinfer._int8 import integers_of
from sparseinfer.prune import calibrate, prunable_layers
from sparseinfer.quantize import GPTQ, SmoothQuant, quantize_, simulated
from sparseinfer.quantize.folding import folds

OUTLIERS = torch.ones(16).index_fill(0, torch.tensor([3, 11]), 100.0)


def sequence() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.RMSNorm(24), nn.Linear(24, 8)
    ).eval()
    model[0].weight.data.copy_(OUTLIERS)
    model[0].bias.data.copy_(values(16, seed=3))
    return model


def encoder(norm_first: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=norm_first, batch_first=True)
    return layer.eval()


def of_transformers(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")
    if name == "GPT2":
        return transformers.GPT2Model(config(vocab_size=32, n_embd=16, n_layer=2, n_head=2)).eval()
    more = {} if name == "Bert" else {"num_key_value_heads": 2}
    return getattr(transformers, f"{name}Model")(config(**sizes, **more, intermediate_size=32)).eval()


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(24).reshape(2, 12)}


def output(model: nn.Module, batch: object) -> Tensor:
    with torch.no_grad():
        found = model(**batch) if isinstance(batch, dict) else model(batch)
    return found if isinstance(found, Tensor) else found.last_hidden_state


CASES: dict[str, tuple[Callable[[], nn.Module], object, int]] = {
    "sequence": (sequence, values(40, 16), 2),
    "encoder": (encoder, values(4, 10, 16), 2),
    "llama": (lambda: of_transformers("Llama"), tokens(), 4),
    "qwen3": (lambda: of_transformers("Qwen3"), tokens(), 4),
    "gpt2": (lambda: of_transformers("GPT2"), tokens(), 4),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_before_rounding(case: str) -> None:
    """Factors are powers of two: folded into norm and weights they change no product by a bit."""
    make, batch, count = CASES[case]
    model = make()
    expected = output(model, batch)
    layers = prunable_layers(model)
    stats = calibrate(model, [batch], ranges=True, progress=False)
    prepared = SmoothQuant(strength=0.7).prepare(model, layers, stats)
    changed = [fqn for fqn in layers if prepared.layers[fqn] is not layers[fqn]]
    assert len({fold.fqn for fold in folds(model, layers)[0]}) == count
    assert set(prepared.unprepared) == set(layers) - set(changed)
    with torch.no_grad():
        for parameter, new in prepared.parameters.values():
            parameter.copy_(new)
        assert not torch.equal(output(model, batch), expected)
        for fqn in changed:
            layers[fqn].weight.copy_(prepared.layers[fqn].weight)
    assert torch.equal(output(model, batch), expected)


def test_statistics_are_those_of_the_new_inputs() -> None:
    model, x = sequence().double(), values(50, 16, dtype=torch.float64)
    layers = prunable_layers(model)
    prepared = SmoothQuant().prepare(model, layers, calibrate(model, [x], ranges=True, progress=False))
    with torch.no_grad():
        for parameter, new in prepared.parameters.values():
            parameter.copy_(new)
        for fqn, layer in layers.items():
            layer.weight.copy_(prepared.layers[fqn].weight)
    again = calibrate(model, [x], ranges=True, progress=False)
    assert prepared.stats is not None
    for fqn, stats in again.items():
        for name in ("sum_x", "sq", "gram", "low", "high"):
            assert torch.allclose(getattr(prepared.stats[fqn], name), getattr(stats, name), rtol=1e-12), name


@pytest.mark.parametrize("method", [SmoothQuant(), SmoothQuant(rounding=GPTQ())])
def test_outliers_cost_less(method: SmoothQuant) -> None:
    plain, x = sequence(), values(60, 16)
    smooth = copy.deepcopy(plain)
    stats = calibrate(plain, [x], ranges=True, progress=False)
    expected = output(plain, x)
    quantize_(plain, stats=stats)
    report = quantize_(smooth, method, stats=stats)
    assert report.unprepared == {}
    assert all(integers_of(model) is not None for model in (smooth[1], smooth[4]))
    with simulated(plain, signed=True), simulated(smooth, signed=True):
        errors = [(output(model, x) - expected).norm() for model in (smooth, plain)]
    assert errors[0] < 0.8 * errors[1]


def refusals() -> dict[str, tuple[nn.Module, str]]:
    post = encoder(norm_first=False)
    hooked, shared, twice, bare = sequence(), sequence(), sequence(), sequence()
    hooked[0].register_forward_hook(lambda *args: None)
    shared[4] = nn.Linear(24, 16)
    shared[1].weight = nn.Parameter(shared[1].weight.detach()[:, :16].clone())
    other = nn.Linear(16, 24)
    other.weight = shared[1].weight
    twice = nn.ModuleList([twice, twice[0]])
    bare[0] = nn.LayerNorm(16, elementwise_affine=False)
    return {
        "residual": (post, "nothing proves that only linear layers read its inputs"),
        "own class": (nn.ModuleList([nn.LayerNorm(16), nn.Linear(16, 4)]), "nothing proves"),
        "hooked": (hooked, "a hook or a forward of its own in the model may read 0"),
        "shared": (nn.ModuleList([shared, other]), "0.0 or a layer that reads it shares a parameter"),
        "twice": (twice, "0.0 or a layer that reads it is in the model twice"),
        "bare": (bare, "nothing proves"),
        "bert": (of_transformers("Bert"), "nothing proves"),
    }


@pytest.mark.parametrize("case", ["residual", "own class", "hooked", "shared", "twice", "bare", "bert"])
def test_what_it_refuses(case: str) -> None:
    model, why = refusals()[case]
    found, refused = folds(model, prunable_layers(model))
    readers = {layer.fqn for fold in found for layer in fold.layers}
    assert next(iter(refused.values())).startswith(why)
    assert readers.isdisjoint(refused)


def test_all_readers_have_to_be_selected() -> None:
    model = of_transformers("Llama")
    layers = prunable_layers(model, ignore="re:.*q_proj")
    _, refused = folds(model, layers)
    why = "others that are not quantized read layers.0.input_layernorm too"
    assert refused["layers.0.self_attn.k_proj"] == why


def test_it_says_why_nothing_can_be_folded() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    stats = calibrate(model, [values(8, 4)], ranges=True, progress=False)
    message = "method: expected a norm to fold scales into, got none: '0': nothing proves"
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize_(model, SmoothQuant(), stats=stats)
    assert not hasattr(model[0], "weight_scale")
