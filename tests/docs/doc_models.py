"""What the examples of a page use without making it: the reader's own model, inputs and folders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import sparseinfer as si


def _readme() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    return {"model": model, "x": torch.randn(8, 64)}


def _llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


def _files() -> dict[str, Any]:
    torch.manual_seed(0)
    dense = _llama()
    dense.save_pretrained("dense-folder")
    get_peft_model(_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained("adapter")
    si.prune_(dense, si.Magnitude(0.8), ignore="lm_head", keep_masks=False)
    fast = si.convert(dense, tokens=(1, 8), memory="compact", measure=False)
    return {
        "si": si,
        "fast": fast,
        "Net": _llama,
        "AutoModel": AutoModel,
        "AutoModelForCausalLM": AutoModelForCausalLM,
        "PeftConfig": PeftConfig,
        "PeftModel": PeftModel,
    }


# By the name of the page.
FILLED: dict[str, Callable[[], dict[str, Any]]] = {"README": _readme, "files": _files, "index": _readme}
