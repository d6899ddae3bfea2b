"""The base of layers that hold their weight in another form than nn.Linear: packings, or a torch layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparseinfer.modules._read_only import ReadOnlyTensor
from sparseinfer.modules._tracing import constant
from sparseinfer.modules.parts import dense_linear
from sparseinfer.modules.stand_in import ORIGIN, StandIn, StateLoad


class HeldWeight(StandIn):
    """A layer whose dense weight, a matrix [n, k], is computed from the form that it holds.

    Subclasses define how this form is made dense, saved and loaded: the methods with NotImplementedError.
    """

    bias: Tensor | None
    activation: str
    dtype: torch.dtype

    # Under these names the weight is in `state_dict()`.
    _weight_keys: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        # A compiled graph is guarded by this count: when another weight is held, its copy is out of date.
        self._times_held = 0

    def dense_matrix(self) -> Tensor:
        """A new dense weight [n, k], in the layer's dtype and on its device."""
        raise NotImplementedError

    def constant_matrix(self) -> Tensor:
        """`dense_matrix` while torch.compile or torch.export traces the layer."""
        raise NotImplementedError

    def _as_weight(self, matrix: Tensor) -> Tensor:
        """The weight of the dense layer, of which the layer's own is [n, k]."""
        return matrix

    @property
    def weight(self) -> Tensor:
        """The dense weight, read-only and computed at every access: for inspection, not for speed.

        In a graph of torch.compile or torch.export it is a constant.
        """
        matrix = constant(self, self._times_held) if torch.compiler.is_compiling() else self.dense_matrix()
        return ReadOnlyTensor.of(self._as_weight(matrix.to(self.dtype)))

    def _check_no_activation(self) -> None:
        if self.activation != "none":
            raise ValueError(f"activation: expected 'none', got {self.activation!r} (a dense layer has none)")

    def _load(self, load: StateLoad) -> None:
        """Makes the layer's form anew. What does not fit becomes an error message and changes nothing."""
        keys = [load.prefix + name for name in self._weight_keys]
        missing = [key for key in keys if key not in load.state_dict]
        unexpected: list[str] = []
        errors: list[str] = []
        form = None
        is_there = not missing
        if is_there:
            try:
                form = self._form_in(load.state_dict, load.prefix)
            except ValueError as error:
                errors.append(str(error))
        if not errors:
            # The form is not the tensor that is given, so the bias shall not be either: it keeps its dtype.
            rest = replace(
                load,
                local_metadata={**load.local_metadata, "assign_to_params_buffers": False},
                missing_keys=missing,
                unexpected_keys=unexpected,
                error_msgs=errors,
            )
            super()._load(rest)
        if is_there and not errors:
            self._take_form(form)
        load.missing_keys.extend(missing)
        load.unexpected_keys.extend(key for key in unexpected if key not in keys)
        load.error_msgs.extend(errors)

    def _form_in(self, state_dict: dict[str, Any], prefix: str) -> Any:
        """What `_take_form` shall hold, of the tensors under `_weight_keys`. ValueError: they do not fit."""
        raise NotImplementedError

    def _take_form(self, form: Any) -> None:
        raise NotImplementedError


class LinearLike(HeldWeight):
    """A replacement for nn.Linear or transformers' Conv1D, which holds its weight as [k, n]."""

    in_features: int
    out_features: int

    def to_linear(self) -> nn.Linear:
        """The dense layer, exact to the bit. ValueError if an activation was fused into this one."""
        self._check_no_activation()
        bias = None if self.bias is None else self.bias.clone()
        return dense_linear(self.dense_matrix(), bias).train(self.training)

    def _as_weight(self, matrix: Tensor) -> Tensor:
        return matrix.t().contiguous() if ORIGIN in self.__dict__ else matrix

    def _of_origin(self, name: str, value: int) -> int:
        if ORIGIN not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return value

    @property
    def nf(self) -> int:
        """out_features under Conv1D's name."""
        return self._of_origin("nf", self.out_features)

    @property
    def nx(self) -> int:
        """in_features under Conv1D's name."""
        return self._of_origin("nx", self.in_features)


def checked_bias(bias: Tensor | None, n: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """A contiguous, detached copy of bias [n]. TypeError, ValueError: another dtype, shape or device."""
    if bias is None:
        return None
    if bias.dtype != dtype:
        raise TypeError(f"bias: expected dtype {dtype}, got {bias.dtype}")
    if bias.shape != (n,) or bias.device != device:
        raise ValueError(f"bias: expected shape ({n},) on {device}, got {tuple(bias.shape)} on {bias.device}")
    return bias.detach().clone(memory_format=torch.contiguous_format)


def destination(module: nn.Module, dtype: torch.dtype, fn: Callable[[Tensor], Tensor]) -> torch.device:
    """Device to which fn (of nn.Module._apply) moves tensors. TypeError: fn changes dtype or device kind."""
    probe = fn(torch.zeros(1, dtype=dtype, device="cpu"))
    if probe.dtype != dtype or probe.device.type not in ("cpu", "cuda"):
        raise TypeError(
            f"{type(module).__name__}: expected to stay {dtype} on cpu or cuda, got a move to "
            f"{probe.dtype} on {probe.device} (move the dense model, then convert it again)"
        )
    return probe.device
