"""SparseLinear: nn.Linear with the weight held as packings, for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.packing import DTYPES

_PARTS = ("values", "crow_indices", "col_indices")


class SparseLinear(nn.Module):
    """y = x · Wᵀ + bias with a sparse W [n, k]; x [..., k] -> y [..., n]; n = out_features, k = in_features.

    The weight lives only in its packings, uint8 buffers `packing_0`, ... that `state_dict()` leaves out:
    there the layer is `values`, `crow_indices`, `col_indices` and `bias`, exact to the bit. `plan` says which
    packing and kernel serve how many tokens. float32, bfloat16 or float16 on the CPU, never trainable. One
    instance may serve several threads at once.
    """

    bias: Tensor | None

    def __init__(
        self,
        packings: Sequence[Tensor],
        bias: Tensor | None = None,
        *,
        buckets: Sequence[ops.Bucket] | None = None,
        activation: str = "none",
    ) -> None:
        """Keep packings of one weight, made by `ops.pack`, and a copy of bias [n].

        buckets      which packing and kernel serve up to how many tokens; default: the first packing for all
        activation   applied to y: "none", "relu", "gelu", "gelu_tanh" or "silu"

        ValueError: no packings, packings of different matrices, a bucket without a packing, a bias of another
        shape. TypeError: a bias of another dtype.
        """
        super().__init__()
        if not packings:
            raise ValueError("packings: expected at least one, got none")
        infos = [ops.describe(packed) for packed in packings]
        if len({(info.n, info.k, info.nnz, info.dtype) for info in infos}) != 1:
            raise ValueError(f"packings: expected packings of one matrix, got {infos}")
        if buckets is None:
            buckets = ops.Layout.of(infos[0]).buckets(0)
        for bucket in buckets:
            if not 0 <= bucket.packing < len(packings):
                raise ValueError(f"buckets: expected packing < {len(packings)}, got {bucket}")
        self.out_features, self.in_features = infos[0].n, infos[0].k
        self.plan = ops.format_plan(tuple(buckets))
        self.activation = activation
        self.register_buffer("bias", _checked_bias(bias, self.out_features, DTYPES[infos[0].dtype]))
        self._packing_names = tuple(f"packing_{i}" for i in range(len(packings)))
        for name, packed in zip(self._packing_names, packings, strict=True):
            self.register_buffer(name, packed, persistent=False)

    @classmethod
    def from_format(
        cls,
        fmt: CSR | BSR,
        bias: Tensor | None = None,
        *,
        packings: Sequence[str | ops.Layout] | None = None,
        buckets: Sequence[ops.Bucket] | None = None,
        activation: str = "none",
    ) -> SparseLinear:
        """Pack fmt [n, k] in each layout, a name meaning fp32; default: "rowgroup", "bsr" for BSR."""
        if packings is None:
            packings = ["bsr" if isinstance(fmt, BSR) else "rowgroup"]
        wanted = [name if isinstance(name, ops.Layout) else ops.Layout(name) for name in packings]
        return cls([layout.pack(fmt) for layout in wanted], bias, buckets=buckets, activation=activation)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        packings: Sequence[str | ops.Layout] | None = None,
        buckets: Sequence[ops.Bucket] | None = None,
    ) -> SparseLinear:
        """The same layer as `linear`, whose weight's zeros are dropped; arguments as in `from_format`."""
        return cls.from_format(CSR.from_dense(linear.weight), linear.bias, packings=packings, buckets=buckets)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                "x: expected an input without gradients, got requires_grad=True "
                "(sparse layers are for inference: run under torch.no_grad() or torch.inference_mode())"
            )
        # Straight from the dict: nn.Module.__getattr__ costs 0.7 us a buffer, a tenth of a small call.
        buffers = self._buffers
        packings = [buffers[name] for name in self._packing_names]
        return ops.linear(x, packings, buffers["bias"], self.out_features, self.plan, self.activation)

    def to_format(self) -> CSR | BSR:
        """The weight in its portable format, made anew from the first packing."""
        return ops.unpack(self._packings()[0])

    def to_linear(self) -> nn.Linear:
        """The dense layer, exact to the bit. ValueError if an activation was fused into this one."""
        if self.activation != "none":
            raise ValueError(f"activation: expected 'none', got {self.activation!r} (nn.Linear has none)")
        # Built tiny and without data: nothing to initialise, no random numbers drawn, no warning if k = 0.
        linear = nn.Linear(1, 1, bias=self.bias is not None, device="meta")
        linear.in_features, linear.out_features = self.in_features, self.out_features
        linear.weight = nn.Parameter(self.weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        return linear.train(self.training)

    @property
    def weight(self) -> Tensor:
        """The dense weight [n, k], made anew at every access: for inspection, not for speed."""
        return self.to_format().to_dense()

    @property
    def nnz(self) -> int:
        """Stored values."""
        return ops.describe(self._packings()[0]).nnz

    @property
    def sparsity(self) -> float:
        """1 - nnz / (out_features * in_features); 0.0 for a weight without elements."""
        numel = self.out_features * self.in_features
        return 1.0 - self.nnz / numel if numel else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of everything the layer holds: its packings and the bias."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def dense_nbytes(self) -> int:
        """Bytes of weight and bias if the layer were dense."""
        itemsize = DTYPES[ops.describe(self._packings()[0]).dtype].itemsize
        return self.out_features * (self.in_features + (self.bias is not None)) * itemsize

    def extra_repr(self) -> str:
        packings = ", ".join(map(str, self._layouts()))
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, sparsity={self.sparsity:.3f}, packings=[{packings}]"
        )

    def _packings(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._packing_names]

    def _layouts(self) -> list[ops.Layout]:
        return [ops.Layout.of(ops.describe(packed)) for packed in self._packings()]

    def _repack(self, fmt: CSR | BSR) -> list[Tensor]:
        return [layout.pack(fmt) for layout in self._layouts()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        dtype = DTYPES[ops.describe(self._packings()[0]).dtype]
        probe = fn(torch.zeros(1, dtype=dtype))
        if probe.dtype != dtype or probe.device.type != "cpu":
            raise TypeError(
                f"SparseLinear: expected to stay {dtype} on cpu, got a move to {probe.dtype} on "
                f"{probe.device} (move the dense model, then convert it again)"
            )
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        fmt = self.to_format()
        for part in _PARTS:
            destination[prefix + part] = getattr(fmt, part)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Packs again. A weight or bias that does not fit becomes an error message and changes nothing."""
        keys = [prefix + part for part in _PARTS]
        missing = [key for key in keys if key not in state_dict]
        repacked: list[Tensor] = []
        errors: list[str] = []
        if not missing:
            try:
                repacked = self._repack(self._fitting_format(*(state_dict[key] for key in keys)))
            except (TypeError, ValueError, RuntimeError) as error:
                errors.append(f"While loading {prefix}values and its indices: {error}")
        base_unexpected: list[str] = []
        if not errors:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing, base_unexpected, errors
            )
        if repacked and not errors:
            for name, packed in zip(self._packing_names, repacked, strict=True):
                setattr(self, name, packed)
        missing_keys.extend(missing)
        unexpected_keys.extend(key for key in base_unexpected if key not in keys)
        error_msgs.extend(errors)

    def _fitting_format(self, values: Tensor, crow: Tensor, col: Tensor) -> CSR | BSR:
        """The format that these tensors are, if it is a weight of this layer: same kind, shape and dtype."""
        own = ops.describe(self._packings()[0])
        kind = BSR if own.packing == "bsr" else CSR
        fmt = kind(values, crow, col, (self.out_features, self.in_features))
        if fmt.dtype != DTYPES[own.dtype]:
            raise TypeError(f"values: expected dtype {DTYPES[own.dtype]}, got {fmt.dtype}")
        return fmt

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLinear:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: the format and the packings' layouts, because a packing belongs to one machine."""
        state = self.__dict__.copy()
        own = set(self._packing_names)
        state["_buffers"] = {name: buffer for name, buffer in self._buffers.items() if name not in own}
        state["format"] = self.to_format()
        state["layouts"] = self._layouts()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        fmt, layouts = state.pop("format"), state.pop("layouts")
        super().__setstate__(state)
        for name, layout in zip(self._packing_names, layouts, strict=True):
            self._buffers[name] = layout.pack(fmt)


def _checked_bias(bias: Tensor | None, n: int, dtype: torch.dtype) -> Tensor | None:
    """A contiguous, detached copy of bias [n]."""
    if bias is None:
        return None
    if bias.dtype != dtype:
        raise TypeError(f"bias: expected dtype {dtype}, got {bias.dtype}")
    if bias.shape != (n,) or bias.device.type != "cpu":
        raise ValueError(f"bias: expected shape ({n},) on cpu, got {tuple(bias.shape)} on {bias.device}")
    return bias.detach().clone(memory_format=torch.contiguous_format)
