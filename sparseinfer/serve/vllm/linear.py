"""Linears of vLLM whose weight is packed after loading, where that makes them faster."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

from sparseinfer import ops
from sparseinfer.convert import ConvertOptions
from sparseinfer.convert.candidates.beside_own import OwnProduct
from sparseinfer.convert.one_by_one import OneByOne, SparseOrOwn
from sparseinfer.serve.vllm.operator import Held, handle_of, held_call

logger = init_logger("vllm.sparseinfer")

_NATIVE: Any = ops.held_operator()


class Packer:
    """Packs the weights of one model, one after another, after all have been created.

    vLLM keeps compiled graphs on disk under a key of its configuration. Which layers are sparse depends on
    measurements, and may be others in the next process: it is written there before anything is compiled.
    """

    def __init__(self, options: ConvertOptions) -> None:
        self._options, self._nbytes = options, 0
        self._one_by_one: OneByOne | None = None
        self._sparse: list[str] = []
        self._config: VllmConfig | None = None

    def expect(self, weight: Tensor, config: VllmConfig) -> None:
        """The model of this configuration has this weight, too."""
        self._nbytes += weight.nbytes
        self._config = config

    def packed(self, weight: Tensor, name: str) -> SparseOrOwn | None:
        """The weight [n, k] as a sparse layer without bias; None: vLLM's own is faster."""
        self._one_by_one = self._one_by_one or OneByOne(self._options, self._nbytes, _OWN)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        made = self._one_by_one.sparse(linear)
        logger.debug("%s: %s", name, made or "as vLLM has it")
        if made is not None:
            self._sparse.append(f"{name} {made.own_at}")
            self._tell()
        return made

    def _tell(self) -> None:
        assert self._config is not None
        others = self._config.additional_config
        if not isinstance(others, dict):
            raise TypeError(f"additional_config: expected a dict, got {type(others).__name__}")
        names = hashlib.sha256("\n".join(self._sparse).encode()).hexdigest()
        self._config.additional_config = {**others, "sparseinfer": names}


@register_weight_loader_v2_supported_method
class SparseLinearMethod(LinearMethodBase):
    """Creates and loads weights as vLLM's own dense method does, fused and split over ranks; packs them then.

    packer   None: the layer stays dense
    """

    def __init__(self, packer: Packer | None) -> None:
        self._dense = UnquantizedLinearMethod()
        self._packer = packer

    def create_weights(self, layer: Any, *args: Any, **keywords: Any) -> None:
        self._dense.create_weights(layer, *args, **keywords)
        if self._packer is not None:
            self._packer.expect(layer.weight, get_current_vllm_config())

    def process_weights_after_loading(self, layer: Any) -> None:
        weight = layer.weight
        # No Linear, no weight, or one that others read.
        is_other = weight.ndim != 2 or weight.is_meta or getattr(layer, "_cpu_skip_gemm_dispatch", False)
        packer = None if is_other else self._packer
        sparse = None if packer is None else packer.packed(weight.data, layer.prefix)
        if sparse is None or sparse.own_at:
            self._dense.process_weights_after_loading(layer)
        else:  # as vLLM does for weights that it packs itself
            layer.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
        if sparse is None:
            layer.quant_method = self._dense
            return
        layer.sparseinfer_n = weight.shape[0]
        layer.sparseinfer_is_native = _NATIVE is not None and not sparse.own_at
        if layer.sparseinfer_is_native:
            layer.sparseinfer_held = ops.held_linear(list(sparse.layer.buffers()), sparse.layer.plan)
            handle = torch.tensor(layer.sparseinfer_held.number, dtype=torch.int64, device="cpu")
        else:
            layer.sparseinfer_held = held_of(sparse, layer)
            handle = handle_of(layer.sparseinfer_held)
        layer.register_buffer("sparseinfer_handle", handle, persistent=False)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        operator = _NATIVE if layer.sparseinfer_is_native else held_call
        return operator(x, layer.sparseinfer_handle, bias, layer.sparseinfer_n)


def _own_product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """As vLLM multiplies by a dense weight [n, k]."""
    layer: Any = nn.Module()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    return lambda x: layer.cpu_linear(x, layer.weight, None)


# An operator that is Python took 11 to 16, as steps of SmolLM2-135M with all layers sparse and with none,
# less what the kernels saved: graphs call it with code and data that have left the caches. One without Python
# takes 2.3 in a loop of its own, torch's product 1.5.
_PYTHON_US = 16.0
_OWN = OwnProduct("vllm", _own_product, _PYTHON_US if _NATIVE is None else 1.0, _PYTHON_US)


def held_of(sparse: SparseOrOwn, layer: Any) -> Held:
    """What computes the layer: packings, or vLLM's own product where that is faster."""
    packings, plan, n = list(sparse.layer.buffers()), sparse.layer.plan, sparse.layer.out_features

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        return ops.linear(x, packings, bias, n, plan, "none")

    if not sparse.own_at:
        return Held(run)
    limits = [bucket.max_tokens for bucket in ops.parse_plan(plan)]
    ranges = [(limit or math.inf, i in sparse.own_at) for i, limit in enumerate(limits)]

    def run_either(x: Tensor, bias: Tensor | None) -> Tensor:
        tokens = math.prod(x.shape[:-1])
        is_own = next(own for limit, own in ranges if tokens <= limit)
        return layer.cpu_linear(x, layer.weight, bias) if is_own else run(x, bias)

    return Held(run_either)
