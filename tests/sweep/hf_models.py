"""The architectures of transformers that are swept, by what they are given, and what their sizes need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from case import Case
from hf_build import build

_CAUSAL = (
    "afmoe apertus arcee aria_text axk1 axk2 bamba bart beam bert bert-generation big_bird "
    "bigbird_pegasus biogpt bitnet blenderbot blenderbot-small bloom camembert codegen cohere cohere2 "
    "cohere2_moe cpmant ctrl cwm deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge dots1 "
    "electra ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint "
    "gemma gemma2 gemma3_text gemma3n_text gemma4_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2 "
    "gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe "
    "granitemoe_swa granitemoehybrid granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe "
    "hy_v3 hy_v4 hyperclovax inkling2_text inkling_text internlm3 iquestcoder jais2 jamba jetmoe "
    "kolibri1 laguna lfm2 lfm2_moe lfm3 llama llama4_text longcat_flash mamba mamba2 marian "
    "mbart megatron-bert mellum mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral "
    "ministral3 mistral mixtral modernbert-decoder moshi mpt mvp nanochat nemotron nemotron_h olmo olmo2 "
    "olmo3 olmo_hybrid olmoe openai-gpt opt pegasus persimmon phi phi3 phimoe plbart prophetnet qwen2 "
    "qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next recurrent_gemma "
    "rembert roberta roberta-prelayernorm roc_bert roformer rwkv seed_oss smollm3 solar_open "
    "stablelm starcoder2 trocr vaultgemma whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xmod "
    "youtu zamba2 zaya"
)
_MASKED = (
    "albert bart bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra "
    "ernie esm esmc eurobert flaubert fnet gte ibert jina_embeddings_v3 layoutlm longformer luke "
    "mbart megatron-bert mobilebert modernbert modernvbert mpnet mra mvp nomic_bert nystromformer "
    "reformer rembert roberta roberta-prelayernorm roc_bert roformer squeezebert tapas ultrabert "
    "ultravbert xlm xlm-roberta xlm-roberta-xl xmod yoso"
)
_SEQ2SEQ = (
    "bart bigbird_pegasus blenderbot blenderbot-small fsmt led longt5 m2m_100 marian mbart mt5 mvp "
    "nllb-moe pegasus pegasus_x plbart prophetnet qwen3_asr seamless_m4t seamless_m4t_v2 "
    "switch_transformers t5 t5gemma t5gemma2 umt5"
)
_IMAGES = (
    "beit bit clip convnext convnextv2 cvt data2vec-vision deit dinov2 dinov2_with_registers donut-swin "
    "efficientnet focalnet hgnet_v2 hiera ijepa levit metaclip_2 mobilenet_v1 mobilenet_v2 mobilevit "
    "mobilevitv2 poolformer pp_lcnet pvt pvt_v2 regnet resnet segformer siglip swiftformer swin swinv2 "
    "textnet vit vit_msn"
)
_VISION = (
    "aimv2_vision_model clip_vision_model dinov3_convnext dinov3_vit maskformer-swin mlcd_vision_model "
    "pixio siglip_vision_model swin2sr tipsv2_vision_model vit_mae vitdet yolos"
)
_VIDEO = "timesformer videomae vivit vjepa2"
_WAVEFORMS = "data2vec-audio hubert sew sew-d unispeech unispeech-sat wav2vec2 wav2vec2-conformer wavlm"
_SPEECH_FEATURES = "lasr_ctc parakeet_ctc wav2vec2-bert"
_SPEECH = "moonshine speech_to_text whisper"
_CODECS = "dac encodec"
_IMAGE_TEXT = "aimv2 altclip blip chinese_clip clip clipseg metaclip_2 owlv2 owlvit siglip"
_ENCODERS = "dpr splinter"
_SERIES = "patchtsmixer patchtst"

# Heads and inputs, and the model types.
GROUPS: tuple[tuple[str, str, str], ...] = (
    ("FOR_CAUSAL_LM_", "decoder", _CAUSAL),
    ("FOR_MASKED_LM_", "encoder", _MASKED),
    ("", "encoder", _ENCODERS),
    ("FOR_SEQ_TO_SEQ_CAUSAL_LM_", "seq2seq", _SEQ2SEQ),
    ("FOR_IMAGE_CLASSIFICATION_", "image", _IMAGES),
    ("", "image", _VISION),
    ("FOR_SEMANTIC_SEGMENTATION_", "image", "dpt mobilenet_v2 mobilevit segformer"),
    ("FOR_DEPTH_ESTIMATION_", "image", "glpn"),
    ("", "video", _VIDEO),
    ("", "image_text", _IMAGE_TEXT),
    ("FOR_CTC_", "waveform", _WAVEFORMS),
    ("FOR_CTC_", "features", _SPEECH_FEATURES),
    ("FOR_AUDIO_CLASSIFICATION_", "spectrogram", "audio-spectrogram-transformer"),
    ("FOR_SPEECH_SEQ_2_SEQ_", "speech", _SPEECH),
    ("", "codec", _CODECS),
    ("", "series", _SERIES),
)

_MLA = {"num_key_value_heads": 4}
_MLA_TYPES = (
    "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 esmc glm4_moe_lite glm_moe_dsa longcat_flash "
    "minicpm3 youtu"
)
_HYBRID_TYPES = "qwen3_5_text qwen3_5_moe_text qwen3_next lfm3"
_HYBRID = {"num_hidden_layers": 4}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
_WAVE = {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_SEW = {"conv_dim": (16,) * 13, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_T5 = {"decoder_start_token_id": 0}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 48]}
_HEADED = {**_STAGES, "num_attention_heads": [1, 2, 4, 4]}
_SWIN = {
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 2,
    "patch_size": 4,
    "num_layers": 2,
}

# What the fields common to all do not say. "name kind" where a type is in two groups.
OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(_MLA_TYPES.split(), _MLA),
    **dict.fromkeys(_HYBRID_TYPES.split(), _HYBRID),
    "bamba": {**_MAMBA, "mamba_expand": 2, "attn_layer_indices": [1]},
    "granitemoehybrid": {**_MAMBA, "mamba_expand": 2, "layer_types": ["linear_attention", "full_attention"]},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "n_mamba_heads": 8,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "rwkv": {"attention_hidden_size": 32},
    "xlm": {"emb_dim": 32, "n_words": 99},
    "flaubert": {"emb_dim": 32, "n_words": 99},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "roc_bert": {"pronunciation_vocab_size": 99, "shape_vocab_size": 99},
    "luke": {"entity_vocab_size": 99, "entity_emb_size": 16},
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "num_buckets": 4,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
    },
    "gemma4_text": {"head_dim": ..., "global_head_dim": ...},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    **dict.fromkeys(("t5", "longt5", "switch_transformers"), _T5),
    "dpr": {"projection_dim": 0},
    # images
    "bit": {**_STAGES, "embedding_size": 16, "num_groups": 4},
    "resnet": {**_STAGES, "embedding_size": 16},
    "regnet": {**_STAGES, "embedding_size": 16, "groups_width": 8},
    "convnext": {**_STAGES, "patch_size": 4, "image_size": 64},
    "convnextv2": {**_STAGES, "patch_size": 4, "image_size": 64},
    "dinov3_convnext": {**_STAGES, "image_size": 64},
    "cvt": {
        "embed_dim": [16, 24, 32],
        "depth": [1, 2, 3],
        "num_heads": [1, 2, 4],
        "drop_path_rate": [0.0, 0.0, 0.0],
    },
    "donut-swin": _SWIN,
    "swin": _SWIN,
    "swinv2": _SWIN,
    "maskformer-swin": _SWIN,
    "swin2sr": {**_SWIN, "patch_size": 1, "num_heads": [2, 2]},
    "efficientnet": {"width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 256},
    "focalnet": {"embed_dim": 16, "hidden_sizes": [32, 48, 64, 64], "depths": [1, 1, 1, 1], "patch_size": 4},
    "hgnet_v2": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [32, 48, 64, 96],
        "stem_channels": [3, 16, 24],
        "stage_in_channels": [24, 32, 48, 64],
        "stage_mid_channels": [16, 16, 24, 32],
        "stage_out_channels": [32, 48, 64, 96],
        "stage_numb_of_layers": [2, 2, 2, 2],
    },
    "hiera": {
        "embed_dim": 16,
        "depths": [1, 1, 2, 1],
        "image_size": [64, 64],
        "patch_size": [7, 7],
        "masked_unit_size": [8, 8],
    },
    "levit": {"image_size": 64, "patch_size": ..., "num_attention_heads": [2, 2, 4], "depths": [1, 1, 1]},
    "mobilevit": {
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 48],
        "patch_size": 2,
    },
    "mobilevitv2": {"image_size": 64, "patch_size": 2, "n_attn_blocks": [1, 1, 1], "width_multiplier": 0.5},
    "poolformer": {**_STAGES},
    "pvt": _HEADED,
    "pvt_v2": _HEADED,
    "segformer": _HEADED,
    "glpn": _HEADED,
    "textnet": {"hidden_sizes": [16, 16, 24, 32, 48], "stem_out_channels": 16, "image_size": [64, 64]},
    "dpt": {
        "num_hidden_layers": 4,
        "neck_hidden_sizes": [16, 24, 32, 32],
        "backbone_out_indices": [0, 1, 2, 3],
    },
    "yolos": {"image_size": [32, 32], "num_detection_tokens": 5},
    "vjepa2": {
        "crop_size": 32,
        "frames_per_clip": 2,
        "pred_hidden_size": 32,
        "pred_num_attention_heads": 4,
        "pred_num_hidden_layers": 1,
    },
    "vitdet": {"pretrain_image_size": 32, "patch_size": 8},
    # sound
    **dict.fromkeys(_WAVEFORMS.split(), _WAVE),
    **dict.fromkeys(("sew", "sew-d"), _SEW),
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "speech_to_text": {"conv_channels": 32, "max_source_positions": 64, "input_feat_per_channel": 16},
    "whisper speech": {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32},
    "audio-spectrogram-transformer": {"max_length": 32, "num_mel_bins": 16},
    "encodec": {"num_filters": 8, "hidden_size": 32, "codebook_dim": 32, "codebook_size": 64},
    "dac": {"encoder_hidden_size": 16, "decoder_hidden_size": 128, "hidden_size": 256},
    # series
    "patchtst": {"context_length": 32, "patch_length": 8, "patch_stride": 8},
    "patchtsmixer": {"context_length": 32, "patch_length": 8, "patch_stride": 8},
}


# Whose linear layers are of a class of their own, which convert leaves as they are.
DENSE: Mapping[str, str] = {"falcon": "FalconLinear", "bit": "WeightStandardizedConv2d"}


def builders() -> dict[str, Callable[[], Case]]:
    """By name: the model type, and what it is given where a type is listed twice."""
    found: dict[str, Callable[[], Case]] = {}
    for head, kind, types in GROUPS:
        for model_type in types.split():
            overrides = {**OVERRIDES.get(model_type, {}), **OVERRIDES.get(f"{model_type} {kind}", {})}
            name = model_type if model_type not in found else f"{model_type} {kind}"
            name = name if name not in found else f"{name} {head.lower().strip('_')}"
            found[name] = partial(build, model_type, head, kind, overrides)
    return found
