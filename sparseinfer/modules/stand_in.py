"""The base of every replacement of a torch module: keeps the original's attributes and methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from sparseinfer.modules._read_only import refuse_write

_PLACEHOLDER = "_placeholder"


# Set by convert on what takes the place of transformers' Conv1D: its class.
ORIGIN = "_sparseinfer_origin"


@dataclass(frozen=True)
class StateLoad:
    """The arguments of one call of torch's `_load_from_state_dict`.

    The lists are torch's own; errors and missing or unexpected keys are appended to them.
    """

    state_dict: dict[str, Any]
    prefix: str
    local_metadata: dict[str, Any]
    strict: bool
    missing_keys: list[str]
    unexpected_keys: list[str]
    error_msgs: list[str]


class StandIn(nn.Module):
    """A module whose dense weights are computed when they are read.

    It has at least one parameter, its own or in its parts; parameters are made without gradients.
    """

    # Attributes that are made at every access: what is set there would be lost.
    _derived: ClassVar[frozenset[str]] = frozenset({"weight"})

    def _is_derived(self, name: str) -> bool:
        return name in self._derived

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_derived(name):
            refuse_write(name)
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if self._is_derived(name):
            refuse_write(name)
        super().register_parameter(name, param)

    def reset_parameters(self) -> NoReturn:
        """Not supported: raises RuntimeError."""
        refuse_write("reset_parameters")

    def _register_bias(self, bias: Tensor | None, dtype: torch.dtype, device: torch.device) -> None:
        """The bias as a parameter that wants no gradient; without one, an empty parameter.

        A model is asked by `next(model.parameters())` what its dtype and device are. The empty parameter is
        not in `state_dict()`.
        """
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self._register_placeholder(dtype, device, needed=bias is None)

    def _register_placeholder(self, dtype: torch.dtype, device: torch.device, *, needed: bool = True) -> None:
        if needed:
            nothing = torch.empty(0, dtype=dtype, device=device)
            self.register_parameter(_PLACEHOLDER, nn.Parameter(nothing, requires_grad=False))

    def _move_parameters(self, fn: Callable[[Tensor], Tensor]) -> None:
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = nn.Parameter(fn(parameter.detach()), parameter.requires_grad)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + _PLACEHOLDER, None)

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
        """Torch calls this; subclasses override `_load` instead."""
        self._load(
            StateLoad(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        )

    def _load(self, load: StateLoad) -> None:
        """Parameters and buffers as torch loads them; nobody misses the empty parameter."""
        missing: list[str] = []
        super()._load_from_state_dict(**vars(replace(load, missing_keys=missing)))
        load.missing_keys.extend(key for key in missing if key != load.prefix + _PLACEHOLDER)
