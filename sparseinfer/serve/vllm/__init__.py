"""vLLM on CPUs: Linears with zeros run on sparse kernels. vLLM finds this package by itself, once installed.

    vllm serve DENSE_FOLDER --quantization sparseinfer      # packs a pruned model while loading
    vllm serve SPARSE_FOLDER --load-format sparseinfer      # a folder of `save_pretrained`

docs/engines.md has the settings. Nothing is pruned: a folder of a model without zeros runs as ever.
"""

from __future__ import annotations

__all__ = ["register"]


def register() -> None:
    """Make method and load format "sparseinfer" known to vLLM; any number of times.

    The entry point `sparseinfer` of `vllm.general_plugins`: vLLM calls it in each of its processes.
    """
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader

    from sparseinfer.io.hf import METHOD
    from sparseinfer.serve.vllm.config import SparseInferConfig
    from sparseinfer.serve.vllm.loader import SparseInferLoader

    register_quantization_config(METHOD)(SparseInferConfig)
    if METHOD not in _LOAD_FORMAT_TO_MODEL_LOADER:  # vLLM warns of a second time
        register_model_loader(METHOD)(SparseInferLoader)
