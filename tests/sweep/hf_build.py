"""Tiny models of transformers: any configuration, made small by the names of its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from case import Case, noise, randomise
from transformers.models.auto import modeling_auto

VOCAB = 99
IMAGE = 32
PROMPT = {"1": 1, "16": 16}

_HIDDEN = (
    "hidden_size d_model n_embd embed_dim dim hidden_dim embedding_size projection_dim decoder_hidden_size "
    "encoder_hidden_size model_dim decoder_embed_dim d_embed lru_width hidden_channels embed_proj_dim "
    "fusion_hidden_size conv_pos_hidden audio_embed_dim vision_embed_dim word_embed_proj_dim n_embed"
)
_INNER = (
    "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner dim_feedforward ffn_hidden_size "
    "ffn_intermediate_size feed_forward_size d_inner hidden_dim_ff shared_expert_intermediate_size "
    "dense_intermediate_size mlp_hidden_size feed_forward_proj_dim intermediate_size_mlp"
)
_LAYERS = (
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
    "num_encoder_layers depth num_blocks n_encoder_layers decoder_num_hidden_layers "
    "encoder_num_hidden_layers num_hidden_groups"
)
_HEADS = (
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "decoder_num_attention_heads encoder_num_attention_heads attention_heads"
)
_KV_HEADS = (
    "num_key_value_heads num_kv_heads encoder_num_key_value_heads decoder_num_key_value_heads n_head_kv"
)
_HEAD_DIM = "head_dim d_kv attention_head_dim v_head_dim qk_nope_head_dim kv_channels mamba_d_head"

SIZES: dict[str, Any] = {
    **dict.fromkeys(_HIDDEN.split(), 32),
    **dict.fromkeys(_INNER.split(), 48),
    **dict.fromkeys(_LAYERS.split(), 2),
    **dict.fromkeys(_HEADS.split(), 4),
    **dict.fromkeys(_KV_HEADS.split(), 2),
    **dict.fromkeys(_HEAD_DIM.split(), 8),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k"), 2),
    **dict.fromkeys(
        ("n_group", "topk_group", "num_expert_groups", "n_shared_experts", "num_shared_experts"), 1
    ),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "num_mem_blocks"), 16),
    **dict.fromkeys(
        ("linear_key_head_dim", "linear_value_head_dim", "qk_rope_head_dim", "index_head_dim"), 8
    ),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads"), 2),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_ssm", "d_state"), 16),
    **dict.fromkeys(
        ("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input", "tgt_vocab_size"), VOCAB
    ),
    "src_vocab_size": VOCAB,
    "first_k_dense_replace": 1,
    "image_size": IMAGE,
    "patch_size": 8,
    "time_step_rank": 8,
    "sliding_window": 8,
    "max_position_embeddings": 64,
}
# Of no use with a vocabulary this small, or not of interest.
_DROPPED = {
    "transformers_version",
    "model_type",
    "architectures",
    "layer_types",
    "mlp_layer_types",
    "torch_dtype",
    "dtype",
}


def tiny_config(model_type: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """`overrides` with "a.b" are of the configuration `a` within; a value of ... leaves the default."""
    return _shrunk(transformers.CONFIG_MAPPING[model_type], dict(overrides or {}))


def _shrunk(config_class: Any, overrides: dict[str, Any]) -> Any:
    default = config_class()
    arguments: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        if name in _DROPPED or name in overrides:
            continue
        part = getattr(default, name, None)
        if isinstance(part, transformers.PreTrainedConfig):
            inner = {k.split(".", 1)[1]: v for k, v in overrides.items() if k.startswith(name + ".")}
            arguments[name] = _shrunk(type(part), inner).to_dict()
        elif name.endswith(("_token_id", "_token_index", "_token_ids")):
            arguments[name] = _token(name, value)
        elif name in SIZES and _countable(value):
            arguments[name] = SIZES[name]
    arguments.update({k: v for k, v in overrides.items() if "." not in k and v is not ...})
    return config_class(**arguments)


def _countable(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def _token(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [2]
    if value is None and name != "pad_token_id":
        return None
    return _SPECIAL.get(name, 3)


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * batch + length + seed)
    return torch.randint(5, VOCAB, (batch, length), generator=generator)


def padding(batch: int, length: int, left: bool) -> torch.Tensor:
    """Ones, but for a few zeros in all rows but the first."""
    lengths = torch.tensor([length - min(2 * row, length - 1) for row in range(batch)]).unsqueeze(1)
    places = torch.arange(length)
    return (places >= length - lengths if left else places < lengths).long()


def _prompts(left: bool, masked: bool = True) -> dict[str, dict[str, Any]]:
    return {
        f"{b}x{n}": {
            "input_ids": ids(b, n),
            **({"attention_mask": padding(b, n, left)} if masked else {}),
            "output_hidden_states": True,
        }
        for b in (1, 2, 3)
        for n in (16, 1)
    }


def _generation(prompts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, beams in (("1x1", 1), ("3x16", 1), ("1x16", 2), ("2x16", 2)):
        given = {
            k: v
            for k, v in prompts[name].items()
            if k != "output_hidden_states" and not k.startswith("decoder_")
        }
        found[f"{name} beams {beams}"] = {**given, "num_beams": beams}
    return found


def decoder(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = _prompts(left=True)
    # The state of this one cannot be put into another order.
    beams = config.model_type != "rwkv"
    return inputs, {
        name: given for name, given in _generation(inputs).items() if beams or given["num_beams"] == 1
    }


def encoder(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return _prompts(left=False), {}


def seq2seq(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = _prompts(left=False)
    for name, given in inputs.items():
        batch, length = map(int, name.split("x"))
        given["decoder_input_ids"] = ids(batch, 7 if length > 1 else 1, seed=1)
    return inputs, _generation(inputs)


def image(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    size = getattr(config, "image_size", None) or IMAGE
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(config, "num_channels", 3)
    inputs: dict[str, Any] = {
        f"{b}": {"pixel_values": noise(b, channels, height, width), "output_hidden_states": True}
        for b in (1, 2, 3)
    }
    inputs["2 channels_last"] = {
        **inputs["2"],
        "pixel_values": inputs["2"]["pixel_values"].to(memory_format=torch.channels_last),
    }
    return inputs, {}


def video(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    frames: int = getattr(config, "num_frames", None) or config.frames_per_clip
    size: int = getattr(config, "image_size", None) or config.crop_size
    name = "pixel_values_videos" if config.model_type == "vjepa2" else "pixel_values"
    return {f"{b}": {name: noise(b, frames, 3, size, size)} for b in (1, 2, 3)}, {}


def _lengths(name: str, lengths: Sequence[int], *sizes: int, last: bool = False) -> dict[str, dict[str, Any]]:
    """Inputs of one name [batch, *sizes, length], or with the sizes last."""
    return {
        f"{b}x{n}": {name: noise(b, n, *sizes) if last else noise(b, *sizes, n)}
        for b in (1, 2, 3)
        for n in lengths
    }


def waveform(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = _lengths("input_values", (2000, 800))
    return {name: {**given, "output_hidden_states": True} for name, given in inputs.items()}, {}


def features(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Frames of speech."""
    part = getattr(config, "encoder_config", config)
    size: int = getattr(part, "num_mel_bins", None) or part.feature_projection_input_dim
    return _lengths("input_features", (64, 32), size, last=True), {}


def spectrogram(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return _lengths("input_values", (config.max_length,), config.num_mel_bins, last=True), {}


def speech(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """From sound to text."""
    if config.model_type == "moonshine":
        inputs = _lengths("input_values", (2000, 1600))
    elif config.model_type == "whisper":
        inputs = _lengths("input_features", (2 * config.max_source_positions,), config.num_mel_bins)
    else:
        inputs = _lengths("input_features", (32, 16), config.input_feat_per_channel, last=True)
    first = next(iter(inputs)).split("x")[1]
    generate = {
        f"{b}x{first} beams {beams}": {**inputs[f"{b}x{first}"], "num_beams": beams}
        for b, beams in ((3, 1), (2, 2))
    }
    for name, given in inputs.items():
        given["decoder_input_ids"] = ids(int(name.split("x")[0]), 7)
    return inputs, generate


def codec(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """From sound to sound."""
    return _lengths("input_values", (3200, 1920), 1), {}


def series(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return _lengths("past_values", (config.context_length,), config.num_input_channels, last=True), {}


def image_text(config: Any, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encoders of two kinds, as CLIP."""
    inputs, _ = encoder(config, overrides)
    images, _ = image(config.vision_config, overrides)
    found = {}
    for name, given in inputs.items():
        found[name] = {**given, "pixel_values": images[name.split("x")[0]]["pixel_values"]}
        del found[name]["output_hidden_states"]
    return found, {}


KINDS: dict[str, Callable[[Any, Mapping[str, Any]], tuple[dict[str, Any], dict[str, Any]]]] = {
    f.__name__: f
    for f in (
        decoder,
        encoder,
        seq2seq,
        image,
        image_text,
        video,
        waveform,
        features,
        spectrogram,
        speech,
        codec,
        series,
    )
}


def class_for(model_type: str, head: str) -> Any:
    name = getattr(modeling_auto, f"MODEL_{head}MAPPING_NAMES")[model_type]
    return getattr(transformers, name if isinstance(name, str) else name[0])


def build(model_type: str, head: str, kind: str, overrides: Mapping[str, Any]) -> Case:
    torch.manual_seed(0)
    config = tiny_config(model_type, overrides)
    model = class_for(model_type, head)(config).float().eval()
    inputs, generate = KINDS[kind](config, overrides)
    randomise(model, seed=0)
    examples = tuple(name for name in inputs if name.split("x")[0] == "1")
    return Case(model, inputs, examples, generate)
