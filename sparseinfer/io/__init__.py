"""Models in files: safetensors with sparse weights, and with what `convert` decided."""

from __future__ import annotations

import importlib
import os
from typing import Any

from torch import nn

from sparseinfer import _packages
from sparseinfer._on_import import when_imported
from sparseinfer.io.load import load
from sparseinfer.io.reader import File
from sparseinfer.io.save import save

__all__ = ["File", "load", "save", "save_pretrained"]


def save_pretrained(model: nn.Module, folder: str | os.PathLike[str], **keywords: Any) -> None:
    """Write a model of transformers, converted or only pruned, as a folder for `from_pretrained`.

    Weights are stored as by `save`. keywords: those of the model's own save_pretrained, such as
    max_shard_size. A model that `from_pretrained` made sparse can also be saved by its own method. Whoever
    loads the folder has to import sparseinfer: without it, transformers warns and runs random weights.

    TypeError: not a model of transformers. RuntimeError: transformers is missing.
    """
    _packages.transformers("save_pretrained", "demo")
    from sparseinfer.io import hf

    hf.save_pretrained(model, folder, **keywords)


def _register() -> None:
    # It may be its own import that imports transformers.quantizers.
    importlib.import_module("sparseinfer.io.hf")


when_imported("transformers.quantizers.auto", _register)
