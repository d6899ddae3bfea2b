"""What the worker computes: many texts at once give what each of them gives alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from serve_helpers import SIZES, TOLERANCE, decoder, encoder, sparse, transformers
from torch import Tensor, nn

import sparseinfer as si
from sparseinfer.serve.server.decoder import Decoder, check
from sparseinfer.serve.server.encoder import Encoder, planned_tokens, pooling
from sparseinfer.serve.server.messages import Embed, Generate, Tokens, Vectors

PROMPTS = [[3, 5, 7, 9], [2], [11, 12, 13, 14, 15], list(range(4, 40)), [5, 5, 5], [80, 2]]


@pytest.fixture(autouse=True)
def _inference():  # type: ignore[no-untyped-def]
    with torch.inference_mode():
        yield


def generated(engine: Decoder) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    while sum(engine.load()):
        for uid, answer in engine.step()[0]:
            assert isinstance(answer, Tokens)
            found.setdefault(uid, []).extend(answer.ids)
    return found


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """By transformers itself, one prompt at a time."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    new = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
    tokens: list[int] = new[0, len(prompt) :].tolist()
    end = model.generation_config.eos_token_id
    return tokens[: tokens.index(end)] if end in tokens else tokens


KINDS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {"num_key_value_heads": 2}),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, {}),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, {"num_key_value_heads": 2}),
    "opt": (transformers.OPTForCausalLM, transformers.OPTConfig, {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "gpt_neox": (transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_generations_that_join_and_leave_have_the_tokens_of_each_alone(kind: str) -> None:
    build, config, more = KINDS[kind]
    torch.manual_seed(0)
    model = build(config(**SIZES, **more, eos_token_id=95, bos_token_id=94)).eval()
    check(model, 64)
    counts = [9, 4, 17, 20, 1, 12]
    # Token 9 ends some of them early.
    model.generation_config.eos_token_id = 9
    expected = [greedy(model, p, n) for p, n in zip(PROMPTS, counts, strict=True)]
    engine = Decoder(model, 3, 64, compiled=False)
    for i, (prompt, count) in enumerate(zip(PROMPTS, counts, strict=True)):
        engine.add(str(i), Generate(prompt, count, 0.0, 1.0, None))
    found = generated(engine)
    assert [found.get(str(i), []) for i in range(len(PROMPTS))] == expected


def test_a_sparse_decoder_generates_what_it_generates_in_transformers() -> None:
    fast = sparse(decoder())
    engine = Decoder(fast, 4, 64, compiled=False)
    for i, prompt in enumerate(PROMPTS):
        engine.add(str(i), Generate(prompt, 12, 0.0, 1.0, None))
    found = generated(engine)
    assert [found[str(i)] for i in range(len(PROMPTS))] == [greedy(fast, p, 12) for p in PROMPTS]


def test_a_prompt_longer_than_a_piece_is_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseinfer.serve.server.decoder._PIECE", 5)
    model = decoder()
    engine = Decoder(model, 2, 64, compiled=False)
    engine.add("long", Generate(PROMPTS[3], 8, 0.0, 1.0, None))
    engine.add("short", Generate(PROMPTS[1], 8, 0.0, 1.0, None))
    found = generated(engine)
    assert found == {"long": greedy(model, PROMPTS[3], 8), "short": greedy(model, PROMPTS[1], 8)}


def test_cancelled_generations_leave_the_others_as_they_are() -> None:
    model = decoder()
    engine = Decoder(model, 4, 64, compiled=False)
    for i, prompt in enumerate(PROMPTS):
        engine.add(str(i), Generate(prompt, 10, 0.0, 1.0, None))
    found: dict[str, list[int]] = {}
    for step in range(100):
        if step == 2:
            for uid in ("0", "2", "5"):  # two that run, and one that waits
                engine.cancel(uid)
        for uid, answer in engine.step()[0]:
            found.setdefault(uid, []).extend(answer.ids)  # type: ignore[union-attr]
    assert engine.load() == (0, 0)
    assert "5" not in found
    for i in (1, 3, 4):
        assert found[str(i)] == greedy(model, PROMPTS[i], 10)


def test_seeds_repeat_draws_and_a_small_top_p_is_greedy() -> None:
    model = decoder()

    def drawn(temperature: float, top_p: float, seed: int | None) -> list[int]:
        engine = Decoder(model, 2, 64, compiled=False)
        engine.add("", Generate(PROMPTS[0], 30, temperature, top_p, seed))
        return generated(engine)[""]

    assert drawn(1.0, 1.0, 3) == drawn(1.0, 1.0, 3) != drawn(1.0, 1.0, 4)
    assert drawn(1.0, 1e-9, 3) == drawn(0.0, 1.0, None)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    from sparseinfer.serve.server.decoder import _draw

    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    draws = 4000
    request = Generate([0], 1, 0.5, 1.0, 0)
    counts = torch.bincount(
        torch.tensor([_draw(logits, request, generator) for _ in range(draws)]), minlength=4
    )
    expected = torch.softmax(logits.double() / 0.5, 0)
    # Five standard deviations of a binomial.
    assert ((counts / draws - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt()).all()


@pytest.mark.parametrize("kind", ["bloom", "mamba", "mistral"])
def test_decoders_that_need_another_cache_are_refused(kind: str) -> None:
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
    if kind == "bloom":
        model = transformers.BloomForCausalLM(transformers.BloomConfig(**sizes, n_head=4))
    elif kind == "mamba":
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
    else:
        config = transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=32)
        model = transformers.MistralForCausalLM(config)
        check(model.eval(), 32)
    with pytest.raises(ValueError, match="expected a decoder whose tokens see all before them, got "):
        check(model.eval(), 64)


def test_a_request_that_does_not_fit_is_refused() -> None:
    engine = Decoder(decoder(), 2, 16, compiled=False)
    for ids, count in ([[], 4], [[1] * 10, 7]):
        with pytest.raises(ValueError, match="ids: expected 1 to 16 tokens"):
            engine.add("", Generate(ids, count, 0.0, 1.0, None))  # type: ignore[arg-type]


def vectors(engine: Encoder) -> dict[str, Any]:
    found = {}
    while sum(engine.load()):
        for uid, answer in engine.step()[0]:
            assert isinstance(answer, Vectors)
            found[uid] = answer.values
    return found


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def test_texts_of_many_requests_have_the_vectors_of_each_alone() -> None:
    engine = Encoder(sparse(encoder()), mean, texts=4, tokens=64)
    requests = {"a": PROMPTS[:4], "b": PROMPTS[4:], "c": [list(range(2, 62))] * 2}
    for uid, texts in requests.items():
        engine.add(uid, Embed(texts))
    found = vectors(engine)
    double = encoder()
    si.prune_(double, si.Magnitude(0.8), keep_masks=False)
    double = double.double()
    for uid, texts in requests.items():
        assert found[uid].shape == (len(texts), 64)
        for ids, vector in zip(texts, torch.from_numpy(found[uid]), strict=True):
            given = torch.tensor([ids])
            expected = mean(double(given, torch.ones_like(given))[0], torch.ones_like(given))[0]
            assert (vector - expected).abs().max() <= TOLERANCE


def test_batches_are_as_large_as_plans_have_kernels_for() -> None:
    model: Any = nn.Module()
    assert planned_tokens(model) == 512
    model.layer = nn.Module()
    model.layer.plan = "15:0:spmm_csr_f32_r1,400:0:spmm_rowgroup_f32_r4,*:1:spmm_rowgroup_f32_r4"
    assert planned_tokens(model) == 1600


def test_a_batch_has_the_oldest_text_and_no_more_than_it_may() -> None:
    sizes = []

    class Counting(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
            sizes.append((tuple(input_ids.shape), attention_mask.sum(1).tolist()))
            return (input_ids[:, :, None].float(),)

    engine = Encoder(Counting(), mean, texts=3, tokens=20)
    for uid, length in zip("abcdef", (5, 1, 50, 6, 5, 4), strict=True):
        engine.add(uid, Embed([[7] * length]))
    assert set(vectors(engine)) == set("abcdef")
    # 5 with its nearest, up to 20 tokens; then the next oldest; one of 50 has a batch of its own.
    assert sizes == [((3, 6), [5, 5, 6]), ((2, 4), [1, 4]), ((1, 50), [50])]


def test_pooling_is_read_from_the_folder(tmp_path: Path) -> None:
    hidden = torch.arange(12.0).reshape(1, 3, 4)
    mask = torch.tensor([[1, 1, 0]])
    unit = hidden[0, :2].mean(0)
    assert torch.equal(pooling(tmp_path)(hidden, mask)[0], unit / unit.norm())
    (tmp_path / "1_Pooling").mkdir()
    modules, file = tmp_path / "modules.json", tmp_path / "1_Pooling" / "config.json"
    pool = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    modules.write_text(json.dumps([{"path": "", "type": "sentence_transformers.models.Transformer"}, pool]))
    file.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    assert torch.equal(pooling(tmp_path)(hidden, mask), hidden[:, 0])
    file.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match="expected mean_tokens or cls_token, got pooling_mode_max_tokens"):
        pooling(tmp_path)
    modules.write_text(json.dumps([pool, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ValueError, match="expected Transformer, Pooling and Normalize, got Dense"):
        pooling(tmp_path)
