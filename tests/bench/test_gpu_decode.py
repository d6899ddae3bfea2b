"""gpu_decode.py and decoder.py of bench/gpu without a GPU: steps of small models, as a graph replays them."""

from __future__ import annotations

import subprocess
import sys

import decoder
import gpu_decode
import pytest
import torch
from cuda_helpers import ROOT

import sparseinfer as si

LENGTH = 12
CONFIG = decoder.Config(2, 32, 4, 2, 48, 50)


def small(batch: int) -> decoder.Decoder:
    torch.manual_seed(0)
    return decoder.Decoder(CONFIG, batch, LENGTH).eval()


def test_logits_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=True,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    ours = decoder.loaded(theirs, 2, LENGTH)
    ids = torch.randint(0, 50, (2, LENGTH))
    with torch.inference_mode():
        expected = theirs(ids).logits
        for position in range(LENGTH):
            got = ours(ids[:, position], torch.tensor([position]))
            torch.testing.assert_close(got, expected[:, position], rtol=1e-4, atol=1e-5)


def test_steps_decode_greedily() -> None:
    model, ids = small(3), torch.tensor([1, 2, 3])
    stepper = decoder.Stepper(model, ids)
    said = [ids]
    for position in range(LENGTH):
        with torch.inference_mode():
            expected = model(said[-1], torch.tensor([position]))
        assert torch.equal(stepper.step(), expected)
        said.append(expected.argmax(-1))
        assert torch.equal(stepper.ids, said[-1])
    stepper.restart(ids)
    assert torch.equal(stepper.step().argmax(-1), said[1])


def test_a_converted_model_steps_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decode, "COMPARED", 8)
    model, ids = gpu_decode.pruned(small(2), 0.8), torch.tensor([5, 6])
    fast = gpu_decode.converted(model, ids, memory="compact")
    assert {row.decision for row in si.explain(fast).rows} == {"sparse"}
    largest, relative = gpu_decode.compared(fast, model, ids)
    assert 0 < relative < 1e-5
    assert largest < 1e-4
    assert gpu_decode.linear_nbytes(fast) < 0.5 * gpu_decode.linear_nbytes(model)
    weights = sum(2 * n * k * 4 for n, k in CONFIG.shapes.values())
    assert gpu_decode.linear_nbytes(model) == weights


@pytest.mark.parametrize("how", gpu_decode.DENSE_WAYS)
def test_dense_layouts_agree(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decode, "COMPARED", 4)
    model = small(2)
    other = gpu_decode.multiplying(model, how)
    assert gpu_decode.compared(other, model, torch.tensor([5, 6]))[1] < 1e-5
    assert other.embedding.weight is model.embedding.weight


def test_dry_run_predicts_every_model() -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "bench/gpu/gpu_decode.py"), "--dry-run", "--batch", "1"],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = ran.stdout.splitlines()
    assert [line.split(",")[0] for line in lines if "batch 1" in line] == ["smollm2", "layers-8b"]
    times = [float(line.split("us, ")[2].split(" times")[0]) for line in lines if "times" in line]
    assert len(times) == 8
    assert times[:4] == sorted(times[:4])
    assert times[4:] == sorted(times[4:])
    assert min(times) >= 1
