"""Reads and writes Hugging Face model folders: config.json, weights and tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import _packages, io
from sparseinfer.io import File

# The file of a model's weights, as transformers names it.
WEIGHTS = "model.safetensors"
# What sentence-transformers adds: how hidden states become a vector, as a list of folders, and settings.
MODULES = "modules.json"
_SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json")


@dataclass(frozen=True)
class Checkpoint:
    """The model and tokenizer of a folder.

    model      in eval mode and float32, whatever dtype the weights are stored in
    tokenizer  of transformers
    dtype      of the stored weights
    is_causal  the model predicts the next token
    is_seq2seq the model is an encoder-decoder that predicts text. A model that is neither returns
               hidden states
    """

    model: nn.Module
    tokenizer: Any
    dtype: torch.dtype
    is_causal: bool
    is_seq2seq: bool = False

    @property
    def has_decoder(self) -> bool:
        """Whether the model is an encoder-decoder, with or without a head."""
        model: Any = self.model
        return bool(getattr(model.config, "is_encoder_decoder", False))

    @property
    def predicts(self) -> bool:
        """Whether it predicts tokens, so that a text has a loss."""
        return self.is_causal or self.is_seq2seq

    def start_of_labels(self, labels: Tensor) -> int | None:
        """The decoder's start token; None if the model derives the decoder's inputs from labels itself."""
        model: Any = self.model
        try:
            model.prepare_decoder_input_ids_from_labels(labels=labels)
            return None
        except (AttributeError, ValueError):  # a T5 whose config does not say it
            tokens = (self.tokenizer.pad_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            return next((token for token in tokens if token is not None), 0)

    @property
    def max_length(self) -> int:
        """The maximum number of tokens of one input."""
        config: Any = self.model.config
        limits = (getattr(config, "max_position_embeddings", None), self.tokenizer.model_max_length)
        return min(limit for limit in limits if limit and limit > 0)

    @property
    def head(self) -> str | None:
        """Name of the layer that computes logits from hidden states."""
        model: Any = self.model
        head = model.get_output_embeddings()
        return next((fqn for fqn, module in model.named_modules() if module is head), None)


def load(folder: Path) -> Checkpoint:
    """The model, of the class that its config names, and its tokenizer.

    ValueError: not a folder, one that transformers cannot load a model and a tokenizer from, or one that
    lacks weights. RuntimeError: transformers is missing.
    """
    transformers = _packages.transformers("prune", "demo")
    from sparseinfer.io import hf

    if not folder.is_dir():
        raise ValueError(f"model: expected a folder, got {str(folder)!r} (there is none)")
    if not (folder / "config.json").is_file():
        hint = "it holds no config.json"
        raise ValueError(f"model: expected a Hugging Face model folder, got {str(folder)!r} ({hint})")
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        kind = hf.class_of(config)
        model, loading = _model(kind, config, folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise ValueError(f"model: expected a folder that transformers can load, got {got}") from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"model: expected all weights of {kind.__name__}, got no {missing[0]!r}")
    auto, architecture = transformers.models.auto.modeling_auto, kind.__name__
    causal = architecture in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    # The other list holds models that read sound as well.
    seq2seq = config.is_encoder_decoder and (
        architecture in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
    )
    return Checkpoint(model.eval(), tokenizer, config.dtype or torch.float32, causal, seq2seq)


def _model(kind: Any, config: Any, folder: Path) -> tuple[nn.Module, Any]:
    """The model of a folder, written by transformers or by `save_sparse`, and what transformers tells of
    it.
    """
    file = folder / WEIGHTS
    stored = File(file) if file.is_file() else None
    if stored is None or not stored.is_ours:
        loaded: tuple[nn.Module, Any] = kind.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        return loaded

    dtypes = [stored.spec(name)[0] for name in (*stored.sparse, *stored.dense)]
    dtype = next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)

    def build() -> nn.Module:
        made: nn.Module = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
        return made.to(dtype)

    model = io.load(file, build)
    return model if dtype == torch.float32 else model.float(), {"missing_keys": ()}


def check_out(folder: Path) -> None:
    """ValueError unless the folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"out: expected a new or an empty folder, got {str(folder)!r} (it is not empty)")


def copy_modules(source: Path, folder: Path) -> None:
    """Copies what sentence-transformers has in a folder beside the model, if anything; `folder` exists."""
    if not (source / MODULES).is_file():
        return
    listed = json.loads((source / MODULES).read_text(encoding="utf-8"))
    for name in (MODULES, *_SETTINGS):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    for path in filter(None, (module.get("path", "") for module in listed)):
        # A name alone: nothing outside of the folder is read or written.
        if Path(path).name == path and (source / path).is_dir():
            shutil.copytree(source / path, folder / path, dirs_exist_ok=True)


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes config, safetensors in the original dtype, and tokenizer; loads like the original folder."""
    model: Any = checkpoint.model
    model.to(checkpoint.dtype).save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)


def save_sparse(checkpoint: Checkpoint, model: nn.Module, folder: Path) -> None:
    """Writes a folder of `si.save_pretrained`, with tokenizer; `load` and `from_pretrained` read it. In the
    original dtype, if the model is the checkpoint's own, and in float32 if it was converted from it.
    """
    if model is checkpoint.model:
        model.to(checkpoint.dtype)
    io.save_pretrained(model, folder)
    checkpoint.tokenizer.save_pretrained(folder)
