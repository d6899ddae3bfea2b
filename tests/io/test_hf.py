"""Folders of transformers: written and read by its own calls, in this process and in fresh ones."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import sparseinfer as si
from sparseinfer.convert.record import attach_record, detach_record, recorded
from sparseinfer.quantize import StaticInputs

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1)
    ),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
}


def tokens() -> Tensor:
    return torch.randint(2, 96, (2, 7), generator=torch.Generator().manual_seed(5))


def result(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(tokens())[0]
    return out


@pytest.fixture(params=MODELS)
def pruned(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    # Larger weights than at initialisation, so that what is lost shows.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return pruned_to(model, 0.8)


def converted(model: nn.Module, **keywords: Any) -> Any:
    return si.convert(model, example_inputs=(tokens(),), measure=False, memory="compact", **keywords)


def in_new_process(folder: Path, code: str, *, ours: bool = True) -> Any:
    """What the code, which has the folder as `folder`, prints as JSON."""
    script = f"import json, sys, torch\nfolder = {str(folder)!r}\n"
    script += ("import sparseinfer\n" if ours else "") + code
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


FROM_PRETRAINED = """
from transformers import AutoModel, AutoModelForCausalLM
kind = AutoModel if "bert" in folder else AutoModelForCausalLM
model = kind.from_pretrained(folder)
"""
LOGITS = """
x = torch.randint(2, 96, (2, 7), generator=torch.Generator().manual_seed(5))
with torch.no_grad():
    print(json.dumps(model(x)[0].double().flatten().tolist()))
"""


def test_a_new_process_gives_equal_results(pruned: Any, tmp_path: Path) -> None:
    folder = tmp_path / type(pruned).__name__.lower()
    fast = converted(pruned)
    si.save_pretrained(fast, folder)
    got, _ = in_new_process(folder, FROM_PRETRAINED + LOGITS)
    assert torch.equal(torch.tensor(got).float().view_as(result(fast)), result(fast))


def test_load_is_the_first_that_needs_transformers(pruned: Any, tmp_path: Path) -> None:
    folder = tmp_path / type(pruned).__name__.lower()
    fast = converted(pruned)
    si.save_pretrained(fast, folder)
    got, _ = in_new_process(folder, f"model = sparseinfer.load(folder)\n{LOGITS}")
    assert torch.equal(torch.tensor(got).float().view_as(result(fast)), result(fast))


def test_without_our_import_the_weights_are_random(pruned: Any, tmp_path: Path) -> None:
    """As docs/files.md warns; not ours to change."""
    folder = tmp_path / type(pruned).__name__.lower()
    fast = converted(pruned)
    si.save_pretrained(fast, folder)
    got, log = in_new_process(folder, FROM_PRETRAINED + LOGITS, ours=False)
    assert "Unknown quantization type, got sparseinfer" in log
    assert not torch.allclose(torch.tensor(got).float().view_as(result(fast)), result(fast), atol=0.1)


@pytest.mark.parametrize("keywords", [{}, {"max_shard_size": "40KB"}], ids=["one file", "shards"])
def test_here(pruned: Any, tmp_path: Path, keywords: dict[str, Any]) -> None:
    fast = converted(pruned)
    expected = result(fast)
    si.save_pretrained(fast, tmp_path, **keywords)
    assert "quantization_config" not in fast.config.to_dict()
    assert not hasattr(fast, "hf_quantizer")
    assert ((tmp_path / "model.safetensors.index.json").exists()) == bool(keywords)
    model = type(pruned).from_pretrained(tmp_path)
    assert sparse_layers(model) == sparse_layers(fast) > 0
    assert torch.equal(result(model), expected)
    again = tmp_path / "again"
    model.save_pretrained(again)
    assert torch.equal(result(si.load(again)), expected)
    assert str(si.explain(model)) == str(si.explain(fast))


def test_a_pruned_model_needs_no_conversion(pruned: Any, tmp_path: Path) -> None:
    si.save_pretrained(pruned, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert any(name.endswith(".mask") for name in file.keys())  # noqa: SIM118
    model = type(pruned).from_pretrained(tmp_path)
    assert sparse_layers(model) == 0
    state = model.state_dict()
    assert state.keys() == pruned.state_dict().keys()
    assert all(torch.equal(t, state[name]) for name, t in pruned.state_dict().items())


def test_a_dense_folder_is_converted(pruned: Any, tmp_path: Path) -> None:
    pruned.save_pretrained(tmp_path)
    config = si.SparseInferConfig(memory="compact", measure=False)
    model = type(pruned).from_pretrained(tmp_path, quantization_config=config)
    assert sparse_layers(model) > 0
    torch.testing.assert_close(result(model), result(pruned), rtol=1e-4, atol=1e-3)


def test_layers_that_went_back_to_dense(pruned: Any, tmp_path: Path) -> None:
    """As those that made the whole model slower: they have a plan, but are not replaced."""
    fast = converted(pruned)
    (record,) = recorded(fast)
    (layer, *_) = (fqn for d in record.decisions for fqn in d.layers if len(d.layers) == 1 and d.plan.buckets)
    fast.set_submodule(layer, pruned.get_submodule(layer))
    detach_record(fast)
    attach_record(fast, replace(record, left_dense={**record.left_dense, layer: "slower"}))
    si.save_pretrained(fast, tmp_path)
    model = type(pruned).from_pretrained(tmp_path)
    assert type(model.get_submodule(layer)) is type(pruned.get_submodule(layer))
    assert torch.equal(result(model), result(fast))


def test_generates_the_same_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    fast = converted(pruned_to(model, 0.5))
    si.save_pretrained(fast, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(tokens(), **arguments), fast.generate(tokens(), **arguments))


def test_rounded_weights_stay_short(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS["bert"]().eval().bfloat16()
    fast = converted(pruned_to(model, 0.8))
    si.save_pretrained(fast, tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(result(loaded), result(fast))


def test_registering_again_is_nothing() -> None:
    from sparseinfer.io import hf

    hf.register()
    hf.register()


def test_what_does_not_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = pruned_to(MODELS["bert"]().eval(), 0.8)
    si.save_pretrained(model, tmp_path, max_shard_size="40KB")
    kind = transformers.BertModel
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(Exception, match=shard.name):
        kind.from_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, shard, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{shard.name}: expected a manifest of sparseinfer, got none"):
        kind.from_pretrained(tmp_path)
    shard.write_bytes(content)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["version"] = 99
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"version: expected up to \d+, got 99 \(install a newer sparseinfer\)"
    ):
        kind.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"SparseInferConfig: expected keywords tokens, .* got 'sparsity'"):
        si.SparseInferConfig(sparsity=0.5)
    with pytest.raises(TypeError, match=r"model: expected a model of transformers, got Linear"):
        si.save_pretrained(nn.Linear(2, 2), tmp_path)


def pruned_to(model: nn.Module, sparsity: float) -> Any:
    si.prune_(model, si.Magnitude(sparsity=sparsity), ignore=["lm_head"])
    return si.finalize_(model)


def sparse_layers(model: nn.Module) -> int:
    return sum(isinstance(module, si.SparseLinear) for module in model.modules())


def test_integers_and_their_scales(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = pruned_to(MODELS["llama"]().eval(), 0.8)
    stats = si.calibrate(model, [tokens()], ranges=True, ignore=["lm_head"], progress=False)
    si.quantize_(model, stats=stats, inputs=StaticInputs(), ignore=["lm_head"])
    si.save_pretrained(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_tensor("model.layers.0.mlp.up_proj.weight.values").dtype == torch.int8
    loaded: Any = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    expected, got = dict(model.named_buffers()), dict(loaded.named_buffers())
    assert got.keys() == expected.keys()
    assert len(got) > 3 * 14
    assert all(torch.equal(got[name], t) for name, t in expected.items())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, t in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], t), name
    # Both become the same integers, and the converted model keeps them in its folder.
    fast, again = (converted(m, precision="int8") for m in (model, loaded))
    assert torch.equal(result(fast), result(again))
    si.save_pretrained(fast, tmp_path / "fast")
    assert torch.equal(result(si.load(tmp_path / "fast")), result(fast))
