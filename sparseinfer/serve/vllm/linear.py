"""Linears of vLLM whose weight is packed after loading, where that makes them faster."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)

from sparseinfer import ops
from sparseinfer.convert import ConvertOptions
from sparseinfer.convert.one_by_one import OneByOne
from sparseinfer.modules import SparseLinear
from sparseinfer.serve.vllm.operator import Held, handle_of, held_linear

logger = init_logger("vllm.sparseinfer")


class Packer:
    """Packs the weights of one model, one after another, after all have been created."""

    def __init__(self, options: ConvertOptions) -> None:
        self._options, self._nbytes = options, 0
        self._one_by_one: OneByOne | None = None

    def expect(self, weight: Tensor) -> None:
        """The model has this weight, too."""
        self._nbytes += weight.nbytes

    def packed(self, weight: Tensor, name: str) -> SparseLinear | None:
        """The weight [n, k] as a sparse layer without bias; None: it is faster dense."""
        self._one_by_one = self._one_by_one or OneByOne(self._options, self._nbytes)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        made = self._one_by_one.sparse(linear)
        logger.debug("%s: %s", name, made or "dense")
        return made


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
            self._packer.expect(layer.weight)

    def process_weights_after_loading(self, layer: Any) -> None:
        weight = layer.weight
        if weight.ndim != 2 or weight.is_meta or getattr(layer, "_cpu_skip_gemm_dispatch", False):
            # No Linear, no weight, or one that others read: decided by the model's class alone, so that
            # graphs of the same model are the same.
            layer.quant_method = self._dense
            self._dense.process_weights_after_loading(layer)
            return
        n = weight.shape[0]
        sparse = None if self._packer is None else self._packer.packed(weight.data, layer.prefix)
        if sparse is None:
            self._dense.process_weights_after_loading(layer)
            held = Held(lambda x, bias: layer.cpu_linear(x, layer.weight, bias))
        else:
            packings, plan = list(sparse.buffers()), sparse.plan
            held = Held(lambda x, bias: ops.linear(x, packings, bias, n, plan, "none"))
            # As vLLM does for weights that it packs itself.
            layer.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
        layer.sparseinfer_held, layer.sparseinfer_n = held, n
        layer.register_buffer("sparseinfer_handle", handle_of(held), persistent=False)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return held_linear(x, layer.sparseinfer_handle, bias, layer.sparseinfer_n)
