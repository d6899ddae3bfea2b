"""vLLM's configuration of method "sparseinfer": which Linears are packed, and how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.platforms import current_platform

from sparseinfer.convert import ConvertOptions
from sparseinfer.io import compressed_tensors, hf
from sparseinfer.io.others import holds_sparse
from sparseinfer.select import matches
from sparseinfer.serve.vllm.linear import Packer, SparseLinearMethod


class SparseInferConfig(QuantizationConfig):
    """What is converted: as `sparseinfer.SparseInferConfig` of transformers says, with the same keywords.

    Names in `targets` and `ignore` are those of vLLM's layers, or of the layers fused in them; a fused layer
    is left out if one of its parts is.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        """config: the folder's `quantization_config`; TypeError, ValueError: unknown or wrong keywords."""
        super().__init__()
        options = dict(hf.SparseInferConfig(**(config or {})).options)
        self._targets, self._ignore = options.pop("targets", None), options.pop("ignore", None)
        for name, patterns in (("targets", self._targets), ("ignore", self._ignore)):
            if patterns is not None:
                matches(nn.Module(), (), name, patterns)  # raises, before anything is loaded
        self._packer = Packer(ConvertOptions(**options))
        self._needs_loader = False

    def get_name(self) -> str:
        return hf.METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SparseInferConfig:
        return cls(config if config.get("quant_method") == hf.METHOD else None)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Takes folders of compressed-tensors that are sparse and not quantized."""
        is_plain = hf_quant_cfg.get("quant_method") == "compressed-tensors" and not hf_quant_cfg.get(
            "config_groups"
        )
        sparsity = hf_quant_cfg.get("sparsity_config") or {}
        return hf.METHOD if is_plain and sparsity.get("format") in compressed_tensors.FORMATS else None

    def maybe_update_config(self, model_name: str, *args: Any, **keywords: Any) -> None:
        folder = Path(model_name)
        self._needs_loader = folder.is_dir() and holds_sparse(folder)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, LinearBase):
            return None
        if not current_platform.is_cpu():
            raise ValueError(f"device: expected vLLM on a CPU, got {current_platform.device_name}")
        got = get_current_vllm_config().load_config.load_format
        if self._needs_loader and got != hf.METHOD:
            hint = "the folder holds sparse weights"
            raise ValueError(f"load_format: expected {hf.METHOD!r}, got {got!r} ({hint})")
        return SparseLinearMethod(self._packer if self._is_selected(layer, prefix) else None)

    def _is_selected(self, layer: nn.Module, prefix: str) -> bool:
        owner, _, name = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(name, ())
        fqns = [prefix, *(f"{owner}.{part}".lstrip(".") for part in parts)]
        targeted = self._targets is None or matches(layer, fqns, "targets", self._targets)
        return targeted and not matches(layer, fqns, "ignore", self._ignore)
