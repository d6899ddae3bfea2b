"""Load format "sparseinfer" of vLLM: reads what `sparseinfer.load` reads, and gives vLLM dense weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import DefaultModelLoader

from sparseinfer.io.others import contents_of


class SparseInferLoader(DefaultModelLoader):
    """Weights in any format that `sparseinfer.load` reads, one after another.

    vLLM joins and splits them for its layers, so each is dense for a moment.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(replace(load_config, load_format="safetensors"))

    def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, Tensor]]:
        """Each tensor of the state_dict, by the file's name for it. ValueError: a damaged file."""
        folder, *_ = self._prepare_weights(
            source.model_or_path,
            source.subfolder,
            source.revision,
            source.fall_back_to_pt,
            source.allow_patterns_overrides,
        )
        contents = contents_of(Path(folder))
        for name in sorted(contents.names.difference(contents.manifest.derived)):
            stored = contents.stored_name(name)
            yield source.prefix + name, contents.tensor(stored)
            if stored in contents.sparse:
                contents.forget(stored)
