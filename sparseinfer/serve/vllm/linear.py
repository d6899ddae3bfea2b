"""Linears of vLLM whose weight is packed after loading, where that makes them faster."""

from __future__ import annotations

import hashlib
import math
import operator
import sys
from collections.abc import Callable
from functools import reduce
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

logger = init_logger("vllm.sparseinfer")

# Compiled graphs are kept on disk, but packings and kernels depend on measurements and may be others in the
# next process. So a graph gets only a handle, a tensor of one number, and equal layers share one graph.
_HELD: Any = ops.held_operator()


class Packer:
    """Packs the weights of one model, one after another, after all have been created.

    vLLM keeps compiled graphs on disk under a key of its configuration. Which layers are sparse depends on
    measurements, and may be others in the next process: it is written there before anything is compiled.
    """

    def __init__(self, options: ConvertOptions) -> None:
        """RuntimeError: this torch cannot call packed layers without Python."""
        if _HELD is None:
            raise RuntimeError(
                f"torch: expected the C functions that torch has from 2.11, got {torch.__version__}"
            )
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
            self._sparse.append(f"{name} {own_ranges(made)}")
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
        layer.sparseinfer_own_ranges = own_ranges(sparse)
        layer.sparseinfer_held = ops.held_linear(list(sparse.layer.buffers()), sparse.layer.plan)
        handle = torch.tensor(layer.sparseinfer_held.number, dtype=torch.int64, device="cpu")
        layer.register_buffer("sparseinfer_handle", handle, persistent=False)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        def packed(x: Tensor) -> Tensor:
            return _HELD(x, layer.sparseinfer_handle, bias, layer.sparseinfer_n)

        def own(x: Tensor) -> Tensor:
            return layer.cpu_linear(x, layer.weight, bias)

        if not layer.sparseinfer_own_ranges:
            return packed(x)
        tokens = math.prod(x.shape[:-1])
        is_own = reduce(
            operator.or_, [(tokens > low) & (tokens <= high) for low, high in layer.sparseinfer_own_ranges]
        )
        if not torch.compiler.is_compiling():
            return own(x) if is_own else packed(x)
        return torch.cond(is_own, own, packed, (x,))  # one graph for any number of tokens


def own_ranges(sparse: SparseOrOwn) -> tuple[tuple[int, int], ...]:
    """(more than, at most) tokens for which vLLM's own product is faster."""
    limits = [bucket.max_tokens or sys.maxsize for bucket in ops.parse_plan(sparse.layer.plan)]
    return tuple((limits[i - 1] if i else -1, limits[i]) for i in sparse.own_at)


def _own_product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """As vLLM multiplies by a dense weight [n, k]."""
    layer: Any = nn.Module()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    return lambda x: layer.cpu_linear(x, layer.weight, None)


# Torch's product takes 1.5 in a loop of its own, ours 2.3; the choice of a compiled graph 2.4.
_OWN = OwnProduct("vllm", _own_product, call_us=1.0, choice_us=2.4)
