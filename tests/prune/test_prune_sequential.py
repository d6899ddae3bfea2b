"""Pruning block by block: against pruning by hand with hooks, on tiny models of transformers."""

from __future__ import annotations

import copy

import pytest
import torch
from generators import values
from torch import Tensor, nn

from sparseinfer.prune import ERK, Magnitude, Method, Pruned, Wanda, masks_of, prunable_layers, prune_

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install 'sparseinfer[demo]')"
)

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
IDS = torch.arange(24).view(2, 12) * 7 % 99
PADDED = {"input_ids": IDS, "attention_mask": (torch.arange(12) < torch.tensor([[12], [7]])).long()}


def llama() -> tuple[nn.Module, str, list[dict[str, Tensor]]]:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    return (
        transformers.LlamaForCausalLM(config),
        "model.layers",
        [{"input_ids": IDS}, {"input_ids": IDS // 2}],
    )


def gemma() -> tuple[nn.Module, str, list[dict[str, Tensor]]]:
    """Its blocks are called with different masks and positions."""
    config = transformers.Gemma3TextConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, sliding_window=4, layer_types=LAYER_TYPES
    )
    return transformers.Gemma3ForCausalLM(config), "model.layers", [{"input_ids": IDS}]


LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


def bert() -> tuple[nn.Module, str, list[dict[str, Tensor]]]:
    config = transformers.BertConfig(**SIZES)
    return transformers.BertModel(config, add_pooling_layer=False), "encoder.layer", [PADDED]


def gpt2() -> tuple[nn.Module, str, list[dict[str, Tensor]]]:
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    return transformers.GPT2LMHeadModel(config), "transformer.h", [PADDED]


MODELS = [llama, gemma, bert, gpt2]


def built(make) -> tuple[nn.Module, str, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    model, blocks, batches = make()
    return model.eval(), blocks, batches


def by_hand(model: nn.Module, blocks: str, batches: list[dict[str, Tensor]], sparsity: float) -> None:
    """Wanda, with the whole model run anew before each block is pruned, and inputs caught by hooks."""
    for block in model.get_submodule(blocks):
        layers = list(prunable_layers(block).values())
        caught: dict[nn.Module, list[Tensor]] = {layer.module: [] for layer in layers}
        handles = [
            module.register_forward_pre_hook(
                lambda module, args, caught=caught: caught[module].append(args[0].detach())
            )
            for module in caught
        ]
        with torch.no_grad():
            for batch in batches:
                model(**batch)
        for handle in handles:
            handle.remove()
        for layer in layers:
            rows = torch.cat([x.flatten(0, -2) for x in caught[layer.module]]).double()
            scores = layer.matrix()[0].double().abs() * rows.norm(dim=0)
            pruned = scores.argsort(dim=1, stable=True)[:, : round(sparsity * scores.shape[1])]
            mask = torch.ones_like(scores, dtype=torch.bool).scatter(1, pruned, False)
            layer.weight.data.masked_fill_(~layer.unmatrix(mask[None]), 0)


@pytest.mark.parametrize("make", MODELS)
def test_blocks_are_calibrated_by_the_pruned_ones_before(make):
    model, blocks, batches = built(make)
    expected = copy.deepcopy(model)
    by_hand(expected, blocks, batches, 0.5)
    report = prune_(model, Wanda(0.5), batches=batches, sequential=True, ignore=["lm_head"], progress=False)
    for layer in report.layers:
        ours, theirs = (net.get_submodule(layer.fqn).weight for net in (model, expected))
        assert torch.equal(ours, theirs), layer.fqn
        assert 0 < layer.error < 1
    at_once = built(make)[0]
    prune_(at_once, Wanda(0.5), batches=batches, ignore=["lm_head"])
    assert not all(
        torch.equal(model.get_submodule(layer.fqn).weight, at_once.get_submodule(layer.fqn).weight)
        for layer in report.layers
    )
    assert set(masks_of(model)) == {layer.fqn for layer in report.layers}
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_named_list_and_a_budget():
    model, blocks, batches = built(llama)
    method = Wanda(ERK(0.5), scope="layer")
    report = prune_(model, method, batches=batches, sequential=blocks, ignore=["lm_head"], keep_masks=False)
    at_once = built(llama)[0]
    other = prune_(at_once, method, batches=batches, ignore=["lm_head"])
    assert [layer.nnz for layer in report.layers] == [layer.nnz for layer in other.layers]
    assert masks_of(model) == {}


def test_masks_that_were_held_give_way_to_the_new_ones():
    model, _, batches = built(llama)
    prune_(model, Magnitude(0.5), ignore=["lm_head"])
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(OverflowError):
        prune_(model, Fails(0.75, at="model.layers.2"), batches=batches, sequential=True, ignore=["lm_head"])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    report = prune_(model, Wanda(0.75), batches=batches, sequential=True, ignore=["lm_head"])
    assert report.sparsity == 0.75
    assert {fqn: int(mask.sum()) for fqn, mask in masks_of(model).items()} == {
        layer.fqn: layer.nnz for layer in report.layers
    }


class Fails(Wanda):
    """Wanda up to a block."""

    def __init__(self, sparsity: float, at: str) -> None:
        super().__init__(sparsity)
        object.__setattr__(self, "at", at)

    def scores(self, layer, stats):
        if layer.fqn.startswith(self.at):
            raise OverflowError(layer.fqn)
        return super().scores(layer, stats)


class GivesNaN(Method):
    def prune(self, layers, stats):
        return {
            fqn: Pruned(torch.ones_like(layer.weight, dtype=torch.bool), layer.weight.detach() * float("nan"))
            for fqn, layer in layers.items()
        }


class Strange(nn.Module):
    """Its blocks do what is asked for."""

    def __init__(self, *, order=(0, 1), outside: bool = False, width: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, width)])
        self.order = order
        if outside:
            self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for i in self.order:
            x = self.blocks[i](x)
        return x


@pytest.mark.parametrize(
    ("model", "how", "message"),
    [
        (
            Strange(outside=True),
            {},
            r"sequential: expected layers inside 'blocks', got 'head' \(ignore=\['head'\]",
        ),
        (
            Strange(order=(1, 0)),
            {},
            "sequential: expected blocks to be called once, in order, got block 1 ins",
        ),
        (Strange(order=(0,)), {}, "sequential: expected all 2 blocks to be called, got 1"),
        (Strange(width=3), {}, r"sequential: expected hidden states of shape \(5, 4\), got \(5, 3\)"),
        (
            Strange(),
            {"sequential": "layers"},
            "sequential: expected the name of an nn.ModuleList, got 'layers'",
        ),
        (nn.Linear(4, 4), {}, "sequential: expected a model with an nn.ModuleList of blocks, got none"),
        (Strange(), {"batches": None}, "batches: expected some to calibrate each block with, got None"),
        (Strange(), {"batches": []}, "batches: expected at least one, got none"),
        (Strange(), {"batches": [values(5, 4) / 0]}, "blocks.0: expected finite inputs, got 20 NaN or inf"),
        (
            Strange(),
            {"method": Wanda(0.5, "global")},
            "scope: expected 'layer' or 'row' with sequential, got",
        ),
        (Strange(), {"method": GivesNaN()}, "blocks.0.weight: expected finite weights of GivesNaN, got NaN"),
    ],
)
def test_bad_input_leaves_the_model_untouched(model, how, message):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = {"method": Wanda(0.5), "batches": [values(5, 4)], "sequential": True} | how
    with pytest.raises(ValueError, match=message):
        prune_(model, **arguments)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
