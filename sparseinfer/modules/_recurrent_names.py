"""Gives the replacements of torch's recurrent layers their attributes, such as weight_ih_l0."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparseinfer.modules.parts import dense_bias, dtype_of
from sparseinfer.modules.stand_in import StandIn

_NAME = re.compile(r"(weight|bias)_(ih|hh|hr)_l(\d+)(_reverse)?")
# Matrices of one step, as torch's parameters call them: the attributes of a RecurrentCell.
PARTS = {"ih": "input", "hh": "hidden", "hr": "projection"}


class RecurrentNames(StandIn):
    """Attributes and methods of nn.RNNBase except forward, computed from the parts of `cells`."""

    dense: ClassVar[type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]]
    cells: nn.ModuleList
    num_layers: int
    bidirectional: bool
    proj_size: int
    input_size: int

    _derived = frozenset({"all_weights", "_flat_weights"})

    def _is_derived(self, name: str) -> bool:
        return name in self._derived or _NAME.fullmatch(name) is not None

    def __getattr__(self, name: str) -> Any:
        match = _NAME.fullmatch(name)
        if match is None or name not in self._flat_weights_names:
            return super().__getattr__(name)
        kind, part, layer, reverse = match.groups()
        cell = self.cells[int(layer) * (2 if self.bidirectional else 1) + (reverse is not None)]
        return getattr(getattr(cell, PARTS[part]), kind)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._flat_weights_names]

    @property
    def mode(self) -> str:
        """ "LSTM", "GRU", "RNN_TANH" or "RNN_RELU"."""
        name = self.dense.__name__
        return f"RNN_{self.nonlinearity.upper()}" if name == "RNN" else name

    @property
    def bias(self) -> bool:
        """Whether the matrices have a bias."""
        cells: Any = self.cells
        return all(dense_bias(part) is not None for cell in cells for part in (cell.input, cell.hidden))

    @property
    def _all_weights(self) -> list[list[str]]:
        names = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if self.bias else [])
        names += ["weight_hr"] if self.proj_size else []
        endings = suffixes(self.num_layers, self.bidirectional)
        return [[f"{name}_{ending}" for name in names] for ending in endings]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The matrices and biases of each cell, dense."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [weight for weights in self.all_weights for weight in weights]

    def flatten_parameters(self) -> None:
        """Does nothing: there are no dense weights to arrange for cuDNN."""

    def _weights_have_changed(self) -> bool:
        return False

    def _dtype(self) -> torch.dtype:
        cell: Any = self.cells[0]
        return dtype_of(cell.input)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Checks an input like nn.RNNBase.check_input."""
        if input.dtype != self._dtype() and not torch._C._is_any_autocast_enabled():
            raise ValueError(f"input: expected dtype {self._dtype()}, got {input.dtype}")
        expected = 2 if batch_sizes is not None else 3
        if input.dim() != expected:
            raise RuntimeError(f"input: expected {expected} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(f"input: expected {self.input_size} features, got {input.size(-1)}")

    # These ask for nothing but sizes.
    get_expected_hidden_size = nn.RNNBase.get_expected_hidden_size
    check_hidden_size = nn.RNNBase.check_hidden_size
    check_forward_args = nn.RNNBase.check_forward_args
    permute_hidden = nn.RNNBase.permute_hidden


def matrix_names(layer: Any) -> list[str]:
    """Of one step of a recurrent layer: input to hidden, hidden to hidden, hidden to its projection."""
    return ["ih", "hh", *(["hr"] if layer.proj_size else [])]


def suffixes(layers: int, bidirectional: bool) -> list[str]:
    """The suffixes of torch's parameter names, in the order of the cells."""
    endings = ("", "_reverse") if bidirectional else ("",)
    return [f"l{layer}{ending}" for layer in range(layers) for ending in endings]
