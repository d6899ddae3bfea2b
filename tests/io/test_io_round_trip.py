"""A saved model is the same when it is loaded: state, sharing, decisions of convert and results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from file_models import Everything, Tied, assert_same_state, everything
from torch import nn

import sparseinfer as si
from sparseinfer._int8 import integers_of
from sparseinfer.io import File
from sparseinfer.quantize import StaticInputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CONVERSIONS: dict[str, dict[str, Any]] = {
    "measured": {"measure": True},
    "folded": {"fold_batch_norm": True},
    "rounded": {"weights": torch.bfloat16},
    "activations": {"weights": torch.bfloat16, "activations": torch.bfloat16},
    "compact": {"memory": "compact", "fold_batch_norm": True},
    "any memory": {"memory": "speed"},
    "not fused": {"fuse": False},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_state_is_exact_and_smaller(tmp_path: Path, dtype: torch.dtype, sparsity: float) -> None:
    model, _ = everything(sparsity)
    model = model.to(dtype)
    file = si.save(model, tmp_path / "model.safetensors")
    loaded = si.load(file, lambda: Everything().to(dtype))
    assert_same_state(model, loaded)
    assert not loaded.training
    kept = 1 - sparsity + 1 / (8 * dtype.itemsize)
    dense = sum(t.nbytes for name, t in model.state_dict().items() if t.dim() > 1)
    stored = sum(File(file).stored_bytes(name) for name in File(file).sparse)
    assert stored <= 1.02 * kept * dense if sparsity else stored == 0


@pytest.mark.parametrize("name", CONVERSIONS)
def test_converted_models_give_equal_results(tmp_path: Path, name: str) -> None:
    model, x = everything()
    converted = si.convert(model, example_inputs=x, **{"measure": False, **CONVERSIONS[name]})
    file = si.save(converted, tmp_path / "model.safetensors")
    with torch.no_grad():
        expected = converted(*x)
        filled = Everything()
        for loaded in (si.load(file, Everything), si.load(file, filled)):
            assert torch.equal(loaded(*x), expected)
            assert [type(m).__name__ for m in loaded.modules()] == [
                type(m).__name__ for m in converted.modules()
            ]
            assert si.explain(loaded).rows == si.explain(converted).rows
            assert not [n for n, t in (*loaded.named_parameters(), *loaded.named_buffers()) if t.is_meta]
        assert loaded is filled
        # What is saved again is the same file.
        again = si.save(loaded, tmp_path / "again.safetensors")
        assert again.read_bytes() == file.read_bytes()
        for plan in ("predict", "measure") if name == "measured" else ("predict",):
            planned = si.load(file, Everything, plan)
            torch.testing.assert_close(planned(*x), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_language_models(tmp_path: Path, kind: str) -> None:
    """One has projections that become one matrix, the other weights that are held as [k, n], some square."""
    transformers = pytest.importorskip("transformers")
    if kind == "llama":
        sizes = {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        config = transformers.LlamaConfig(**sizes, vocab_size=100)
        made = transformers.LlamaForCausalLM
    else:
        config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=32, vocab_size=100)
        made = transformers.GPT2LMHeadModel
    torch.manual_seed(0)
    model = made(config).eval()
    si.prune_(model, si.Magnitude(0.8), ignore=["lm_head"], keep_masks=False)
    ids = {"input_ids": torch.tensor([[1, 5, 7]])}
    converted = si.convert(model, example_inputs=ids, tokens=(1, 64), memory="compact", measure=False)
    fused = any("one matrix with" in row.reason for row in si.explain(converted).rows)
    assert fused == (kind == "llama")
    file = si.save(converted, tmp_path / "model.safetensors")
    loaded = si.load(file, lambda: made(config))
    with torch.no_grad():
        assert torch.equal(loaded(**ids).logits, converted(**ids).logits)
    assert_same_state(si.densify_(loaded), si.densify_(converted))


@pytest.mark.parametrize("isa", ["scalar", pytest.param("avx2", marks=pytest.mark.slow)])
def test_in_another_process_at_another_level(tmp_path: Path, isa: str) -> None:
    if isa not in si.ops.isa_levels():
        pytest.skip(f"no {isa} here")
    model, x = everything()
    converted = si.convert(model, example_inputs=x, measure=False)
    file = si.save(converted, tmp_path / "model.safetensors")
    torch.save({"x": x[0], "state": si.densify_(converted).state_dict()}, tmp_path / "expected.pt")
    script = f"""
import os, sys; os.environ["SPARSEINFER_ISA"] = {isa!r}
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, sparseinfer as si
from file_models import Everything
expected = torch.load({str(tmp_path / "expected.pt")!r})
torch.set_grad_enabled(False)
loaded = si.load({str(file)!r}, Everything)
torch.save(loaded(expected["x"]), {str(tmp_path / "y.pt")!r})
state = si.densify_(loaded).state_dict()
assert all(torch.equal(t, state[name]) for name, t in expected["state"].items())
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), converted(*x), rtol=1e-4, atol=1e-5)


def test_shared_tensors_are_stored_once_and_stay_shared(tmp_path: Path) -> None:
    model = Tied().eval()
    file = si.save(model, tmp_path / "model.safetensors")
    assert File(file).manifest.aliases["head.weight"] == "embedding.weight"
    loaded = si.load(file, Tied)
    assert loaded.head.weight is loaded.embedding.weight
    assert loaded.again is loaded.inner
    assert_same_state(model, loaded)
    si.prune_(model, si.Magnitude(0.9), targets=["inner"], keep_masks=False)
    converted = si.convert(model, example_inputs=torch.tensor([[1, 2]]), memory="compact", measure=False)
    loaded = si.load(si.save(converted, file), Tied)
    assert loaded.head.weight is loaded.embedding.weight
    assert loaded.again is loaded.inner
    assert isinstance(loaded.inner, si.SparseLinear)


def test_integers_with_scales(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(128, 256))
    scale = torch.rand(256) + 0.1
    integers = torch.randint(-127, 128, (256, 128)) * (torch.rand(256, 128) > 0.8)
    model[0].weight = nn.Parameter(integers.to(torch.int8).float() * scale[:, None])
    model[0].register_buffer("weight_scale", scale)
    file = si.save(model, tmp_path / "model.safetensors")
    stored = File(file)
    assert stored.format("0.weight").dtype == torch.int8
    assert stored.stored_bytes("0.weight") < 0.09 * model[0].weight.nbytes

    def build() -> nn.Module:
        made = nn.Sequential(nn.Linear(128, 256))
        made[0].register_buffer("weight_scale", torch.zeros(256))
        return made

    assert_same_state(model, si.load(file, build))


@pytest.mark.parametrize("kind", ["held", "torch"])
def test_masks_are_applied(tmp_path: Path, kind: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    if kind == "held":
        si.prune_(model, si.Magnitude(0.9))
    else:
        torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.9)
    x = torch.randn(3, 64)
    file = si.save(model, tmp_path / "model.safetensors")
    assert "0.weight" in File(file).sparse
    with torch.no_grad():
        assert torch.equal(si.load(file, lambda: nn.Sequential(nn.Linear(64, 64)))(x), model(x))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.state = nn.Linear(4, 4), {"steps": [1, 2], "name": "a"}

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


def test_extra_states(tmp_path: Path) -> None:
    model = Counter()
    model.state = {"steps": [3], "name": "b"}
    file = si.save(model, tmp_path / "model.safetensors")
    assert si.load(file, Counter).state == model.state
    model.state = {1: object()}
    with pytest.raises(TypeError, match="_extra_state: expected an extra state of plain JSON"):
        si.save(model, file)
    assert si.load(file, Counter).state == {"steps": [3], "name": "b"}


class NeedsData(nn.Module):
    """Its constructor computes from its weights, and keeps a tensor that is no buffer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.kept = float(torch.linspace(0, 1, 4).sum()) if how == "number" else torch.arange(3.0)


@pytest.mark.parametrize("how", ["number", "attribute"])
def test_a_model_that_cannot_be_made_without_data(tmp_path: Path, how: str) -> None:
    model = NeedsData(how)
    file = si.save(model, tmp_path / "model.safetensors")
    loaded = si.load(file, lambda: NeedsData(how))
    assert torch.equal(torch.as_tensor(loaded.kept), torch.as_tensor(model.kept))
    assert_same_state(model, loaded)


def test_a_factory_that_loads_weights(tmp_path: Path) -> None:
    """Its own weights are of no use, and torch's warning that meta cannot take them is not for the caller."""
    model = nn.Linear(8, 4)
    path = si.save(model, tmp_path / "model.safetensors")

    def factory() -> nn.Module:
        made = nn.Linear(8, 4)
        made.load_state_dict({"weight": torch.zeros(4, 8), "bias": torch.zeros(4)})
        return made

    loaded = si.load(path, factory)
    assert torch.equal(loaded.weight, model.weight)


def test_channels_last_stays(tmp_path: Path) -> None:
    model, x = everything()
    model = model.to(memory_format=torch.channels_last)
    converted = si.convert(model, example_inputs=x, memory="compact", measure=False)
    loaded = si.load(si.save(converted, tmp_path / "model.safetensors"), Everything)
    with torch.no_grad():
        assert torch.equal(loaded(*x), converted(*x))
    assert_same_state(si.densify_(converted), si.densify_(loaded))


def test_files_of_others_and_tensors_in_the_map(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = Tied()
    file = tmp_path / "model.safetensors"
    safetensors.save_file({n: t.clone() for n, t in model.state_dict().items() if n != "head.weight"}, file)
    loaded = si.load(file, Tied)
    assert_same_state(model, loaded)
    assert loaded.head.weight is loaded.embedding.weight
    ours = si.save(model, tmp_path / "ours.safetensors")
    read = safetensors.load_file(ours)
    assert torch.equal(read["embedding.weight"], model.embedding.weight)
    # Writing to a loaded tensor changes neither the file nor another model.
    first, second = si.load(ours, Tied), si.load(ours, Tied)
    with torch.no_grad():
        first.embedding.weight.zero_()
    assert torch.equal(second.embedding.weight, model.embedding.weight)
    assert all(t.data_ptr() % 64 == 0 for t in second.parameters())


def test_parts_that_were_converted(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 64)))

    model = build()
    si.prune_(model, si.Magnitude(0.9), keep_masks=False)
    model[1] = si.convert(model[1], memory="compact", measure=False)
    loaded = si.load(si.save(model, tmp_path / "m.safetensors"), build)
    assert isinstance(loaded[1][1], si.SparseLinear)
    x = torch.randn(2, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_buffers_of_a_model_that_was_cast(tmp_path: Path) -> None:
    made = []

    def build() -> nn.Module:
        made.append(Everything())
        for parameter in made[-1].parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        made[-1].bn.to(torch.bfloat16)
        made[-1].shift = made[-1].shift.to(torch.bfloat16)
        return made[-1]

    model = Everything().to(torch.bfloat16)
    loaded = si.load(si.save(model, tmp_path / "m.safetensors"), build)
    assert len(made) == 1, "expected a model that was made without data"
    assert loaded.factor.dtype == torch.bfloat16
    assert_same_state(model, loaded)


def test_a_model_that_was_converted_in_two_steps(tmp_path: Path) -> None:
    model, x = everything()
    first = si.convert(model, example_inputs=x, targets=["q", "k", "v"], measure=False)
    converted = si.convert(first, example_inputs=x, memory="compact", measure=False)
    loaded = si.load(si.save(converted, tmp_path / "m.safetensors"), Everything)
    assert [type(m).__name__ for m in loaded.modules()] == [type(m).__name__ for m in converted.modules()]
    with torch.no_grad():
        assert torch.equal(loaded(*x), converted(*x))


def test_a_model_that_is_a_layer(tmp_path: Path) -> None:
    layer = nn.Linear(128, 128)
    si.prune_(layer, si.Magnitude(0.9), keep_masks=False)
    converted = si.convert(layer, memory="compact", measure=False)
    loaded = si.load(si.save(converted, tmp_path / "m.safetensors"), lambda: nn.Linear(128, 128))
    assert isinstance(loaded, si.SparseLinear)
    assert torch.equal(loaded.weight, converted.weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_quantize_left_is_there_again(tmp_path: Path, dtype: torch.dtype) -> None:
    """Integers with scales in the file; small weights are stored as they are, and their scales too."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 8), nn.Conv1d(8, 128, 5)).to(dtype)

    torch.manual_seed(0)
    model = build().eval()
    batches = [torch.randn(16, 128, dtype=dtype) for _ in range(2)]
    inputs = si.calibrate(model[:3], batches, ranges=True, progress=False)
    si.prune_(model, si.Magnitude(0.8), keep_masks=False)
    si.quantize_(model[:3], stats=inputs, inputs=StaticInputs())
    si.quantize_(model[3:])
    file = si.save(model, tmp_path / "model.safetensors")
    stored = File(file)
    assert [name for name in stored.sparse if stored.sparse[name].scales] == ["0.weight", "3.weight"]
    assert "0.weight_scale" not in stored.names
    assert "2.weight_scale" in stored.names
    made = build()
    for loaded in (si.load(file, build), si.load(file, made)):
        assert_same_state(model, loaded)
        there = {name for name, _ in loaded.named_buffers()}
        assert there == {name for name, _ in model.named_buffers()}
        assert len(there) == 7
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for i in (0, 2, 3):
            expected, got = (integers_of(m.get_submodule(str(i))) for m in (model, loaded))
            assert expected is not None
            assert got is not None
            assert all(map(torch.equal, expected, got))
    # Again the same file, and a model that is not loaded is as it was.
    assert si.save(made, tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    other = nn.Sequential(nn.Linear(128, 96)).to(dtype)
    with pytest.raises(ValueError, match="expected a tensor of the model, got another"):
        si.load(file, other)
    assert dict(other.named_buffers()) == {}


def test_a_quantized_model_that_was_cast(tmp_path: Path) -> None:
    """Its scales were cast as well, which in bfloat16 changes none."""
    model = nn.Sequential(nn.Linear(128, 96)).eval()
    si.prune_(model, si.Magnitude(0.8), keep_masks=False)
    si.quantize_(model)
    expected = integers_of(model[0])
    file = si.save(model.to(torch.bfloat16), tmp_path / "model.safetensors")
    assert File(file).sparse["0.weight"].scales
    loaded = si.load(file, lambda: nn.Sequential(nn.Linear(128, 96)).to(torch.bfloat16))
    got = integers_of(loaded.get_submodule("0"))
    assert expected is not None
    assert got is not None
    assert all(map(torch.equal, got, expected))
