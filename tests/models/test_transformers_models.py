"""Models of transformers, built tiny from their configurations, pruned and converted; times are scripted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fusion_helpers import watch
from torch import Tensor, nn

from sparseinfer import Magnitude, SparseConv2d, convert, densify_, explain, prune_
from sparseinfer.modules import FoldedLayer, SharedInputLinear, SparseConv1d

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install 'sparseinfer[demo]')"
)

EPS = torch.finfo(torch.float32).eps
SIZES = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IDS = torch.arange(24).view(2, 12) * 7 % 99


pytestmark = pytest.mark.usefixtures("script", "no_grad")


def bert() -> tuple[nn.Module, dict[str, Tensor]]:
    return transformers.BertModel(transformers.BertConfig(**SIZES)), {
        "input_ids": IDS,
        "attention_mask": (torch.arange(12) < torch.tensor([[12], [7]])).long(),
    }


def llama() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS}


def gpt2() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.GPT2Config(vocab_size=99, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    return transformers.GPT2LMHeadModel(config), {"input_ids": IDS}


def vit() -> tuple[nn.Module, dict[str, Tensor]]:
    sizes = {name: size for name, size in SIZES.items() if name != "vocab_size"}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=4))
    return model, {"pixel_values": torch.randn(2, 3, 16, 16)}


def resnet() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2], layer_type="basic"
    )
    model = transformers.ResNetForImageClassification(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model, {"pixel_values": torch.randn(2, 3, 32, 32)}


def whisper() -> tuple[nn.Module, dict[str, Tensor]]:
    names = ("encoder_layers", "decoder_layers")
    heads = ("encoder_attention_heads", "decoder_attention_heads")
    config = transformers.WhisperConfig(
        **dict.fromkeys(names, 2),
        **dict.fromkeys(heads, 4),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 96),
        vocab_size=99,
        num_mel_bins=8,
        d_model=64,
        max_source_positions=20,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return transformers.WhisperModel(config), {
        "input_features": torch.randn(2, 8, 40),
        "decoder_input_ids": IDS[:, :5],
    }


IGNORE = ["lm_head", "re:.*classifier"]
BUILDERS = {f.__name__: f for f in (bert, llama, gpt2, vit, resnet, whisper)}


def built(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, inputs = BUILDERS[name]()
    prune_(model.eval(), Magnitude(0.8), ignore=IGNORE, keep_masks=False)
    return model, inputs


def results(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    found = model(**inputs)
    return found.logits if "logits" in found else found.last_hidden_state


def assert_close(fast: nn.Module, dense: nn.Module, inputs: dict[str, Tensor]) -> None:
    """As close to float64 as the dense model in float32 is.

    Both round sums of the same products, in another order: over all of the results their errors have the same
    size. Four times it leaves room for chance; an index error is off by 1e5 times it.
    """
    double = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    wanted = results(copy.deepcopy(dense).double(), double)
    got, same = results(fast, inputs), results(dense, inputs)
    assert got.shape == wanted.shape
    assert (got - wanted).norm() <= 4 * (same - wanted).norm() + EPS * wanted.norm()
    assert (same - wanted).norm() <= 1e-5 * wanted.norm()


CASES = [
    *((name, {}) for name in BUILDERS),
    ("bert", {"memory": "compact"}),
    ("gpt2", {"fuse": False}),
    ("resnet", {"memory": "compact"}),
    ("resnet", {"fold_batch_norm": True}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_results(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    dense, inputs = built(name)
    fast = convert(dense, example_inputs=inputs, ignore=IGNORE, **options)
    rows = explain(fast).rows
    assert len(rows) >= 8
    # How a pooling, which has no weights, is faster is a matter of time.
    assert {row.decision for row in rows if row.shape} == {"sparse"}
    assert_close(fast, dense, inputs)
    if "fold_batch_norm" in options:
        # Every norm follows a convolution: each is folded, and stays where it is.
        assert count(fast, FoldedLayer) == count(fast, nn.BatchNorm2d) == count(dense, nn.BatchNorm2d) > 0
        normed: list[Tensor] = []
        with monkeypatch.context() as m:
            m.setattr(torch.nn.functional, "batch_norm", lambda x, *args: normed.append(x))
            fast(**inputs)
        assert normed == []
    densify_(fast)
    state, expected = fast.state_dict(), dense.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], t) for key, t in expected.items())
    assert torch.equal(results(fast, inputs), results(dense, inputs))


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def test_q_k_and_v_are_one_matrix() -> None:
    expected = {"bert": 6, "llama": 10, "vit": 6, "whisper": 3 * 2 + 3 * 2 + 2 * 2}  # llama: gate and up too
    for name, modules in expected.items():
        dense, inputs = built(name)
        fast = convert(dense, example_inputs=inputs, ignore=IGNORE)
        assert count(fast, SharedInputLinear) == modules, name


def test_activations_are_done_by_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        "bert": ["gelu"] * 2,
        "vit": ["gelu"] * 2,
        "gpt2": ["gelu_tanh"] * 2,
        "whisper": [],  # transformers wraps the forwards of its layers, in another function each
    }
    for name, names in expected.items():
        dense, inputs = built(name)
        fast = convert(dense, example_inputs=inputs, ignore=IGNORE)
        with monkeypatch.context() as m:
            done = watch(m, functions=False)
            fast(**inputs)
        assert done == names, name
        # Activations are modules as before, and so are the blocks around them.
        assert classes(fast) == classes(dense)


def classes(model: nn.Module) -> list[str]:
    """Of the modules that are transformers' own, but for its layers."""
    names = [type(m).__name__ for m in model.modules() if type(m).__module__.startswith("transformers")]
    return [name for name in names if name != "Conv1D"]


def test_convolutions() -> None:
    for name, kind, least in (
        ("resnet", SparseConv2d, 10),
        ("whisper", SparseConv1d, 2),
        ("vit", SparseConv2d, 1),
    ):
        dense, inputs = built(name)
        assert count(convert(dense, example_inputs=inputs), kind) >= least, name


@pytest.mark.parametrize("name", ["llama", "gpt2"])
class TestGeneration:
    def greedy(self, model: Any) -> Tensor:
        return model.generate(
            IDS[:, :4],
            attention_mask=torch.ones(2, 4, dtype=torch.long),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
        )

    @pytest.mark.parametrize(
        "example", [lambda ids: {"input_ids": ids}, lambda ids: {"input_ids": ids[:, :1]}]
    )
    def test_the_same_tokens(self, name: str, example: Callable[[Tensor], Any]) -> None:
        dense, inputs = built(name)
        fast = convert(dense, example_inputs=example(inputs["input_ids"]), ignore=IGNORE)
        with torch.inference_mode():
            assert torch.equal(self.greedy(fast), self.greedy(dense))

    def test_the_head_stays_tied(self, name: str) -> None:
        dense, inputs = built(name)
        fast: Any = convert(dense, example_inputs=inputs)
        assert fast.lm_head.weight is fast.get_input_embeddings().weight
        assert fast.lm_head.weight is not dense.lm_head.weight
        (row,) = (row for row in explain(fast).rows if row.layer == "lm_head")
        assert row.reason.startswith("its weight is shared with")
