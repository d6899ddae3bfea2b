"""The base of SparseLSTM, SparseGRU and SparseRNN: construction, conversion back to dense, and the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sparseinfer.modules._recurrent_names import PARTS, matrix_names, suffixes
from sparseinfer.modules._recurrent_steps import RecurrentCell, RecurrentSteps
from sparseinfer.modules.parts import checked_part, dense_bias, dense_linear, dense_weight, features

if TYPE_CHECKING:
    from typing_extensions import Self


class Recurrent(RecurrentSteps):
    """A recurrent layer whose matrices are modules; subclasses define what one step computes."""

    gates: ClassVar[int]
    # Whether autocast rounds the layer's inputs; what torch's nn.GRU computes keeps their dtype.
    _lowers: ClassVar[bool] = True

    def __init__(
        self,
        cells: Sequence[RecurrentCell],
        *,
        bidirectional: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Hold, and freeze, the cells of layer 0 forward, layer 0 reverse if bidirectional, layer 1...

        batch_first, dropout   as in torch's layer; dropout acts in training mode only

        TypeError: a part that is not like nn.Linear. ValueError: no cells, or shapes that do not fit.
        """
        super().__init__()
        directions = 2 if bidirectional else 1
        if not cells or len(cells) % directions:
            raise ValueError(f"cells: expected a positive multiple of {directions}, got {len(cells)}")
        rows, self.output_size = features("cells[0].hidden", cells[0].hidden)
        if rows % self.gates:
            raise ValueError(f"cells[0].hidden: expected {self.gates} gates, got out_features = {rows}")
        self.hidden_size = rows // self.gates
        self.input_size = features("cells[0].input", cells[0].input)[1]
        self.proj_size = 0 if cells[0].projection is None else self.output_size
        for i, cell in enumerate(cells):
            width = self.input_size if i < directions else directions * self.output_size
            checked_part(f"cells[{i}].input", cell.input, rows, width)
            checked_part(f"cells[{i}].hidden", cell.hidden, rows, self.output_size)
            if self.proj_size:
                name = f"cells[{i}].projection"
                part = checked_part(name, cell.projection, self.output_size, self.hidden_size)
                if dense_bias(part) is not None:
                    raise ValueError(f"{name}: expected no bias, got one (nn.LSTM has none there)")
        if not self.proj_size and self.output_size != self.hidden_size:
            got = f"{self.output_size} without a projection"
            raise ValueError(f"cells[0].hidden: expected in_features = {self.hidden_size}, got {got}")
        self.cells = nn.ModuleList(cells)
        self.num_layers = len(cells) // directions
        self.bidirectional = bidirectional
        self.batch_first = batch_first
        self.dropout = dropout
        self.requires_grad_(False)

    @classmethod
    def from_rnn(cls, rnn: nn.RNNBase, parts: Sequence[Sequence[nn.Module]] | None = None) -> Self:
        """The layer `rnn` with other matrices: (input, hidden) or (input, hidden, projection) per cell.

        parts   in the order of the constructor; default: `linears(rnn)`, which share the weights of `rnn`
        """
        linears = cls.linears(rnn)
        cells = [RecurrentCell(*cell) for cell in (linears if parts is None else parts)]
        if len(cells) != len(linears):
            raise ValueError(f"parts: expected {len(linears)} cells, got {len(cells)}")
        return cls(cells, **cls._options(rnn)).train(rnn.training)

    @classmethod
    def _options(cls, rnn: nn.RNNBase) -> dict[str, Any]:
        return {
            "bidirectional": rnn.bidirectional,
            "batch_first": rnn.batch_first,
            "dropout": rnn.dropout,
        }

    @classmethod
    def linears(cls, rnn: nn.RNNBase) -> list[tuple[nn.Linear, ...]]:
        """The matrices of a dense layer, a tuple for each cell, as nn.Linears that share its memory.

        TypeError: not the kind of layer that this one replaces.
        """
        if not isinstance(rnn, cls.dense):
            raise TypeError(f"rnn: expected nn.{cls.dense.__name__}, got {type(rnn).__name__}")
        cells = []
        for suffix in suffixes(rnn.num_layers, rnn.bidirectional):
            cells.append(
                tuple(
                    dense_linear(
                        getattr(rnn, f"weight_{name}_{suffix}"),
                        getattr(rnn, f"bias_{name}_{suffix}") if rnn.bias and name != "hr" else None,
                    )
                    for name in matrix_names(rnn)
                )
            )
        return cells

    def to_rnn(self) -> nn.RNNBase:
        """The dense layer, exact to the bit. ValueError: some parts have a bias and others have none."""
        cells = self._cells()
        biases = {dense_bias(part) is not None for cell in cells for part in (cell.input, cell.hidden)}
        if len(biases) != 1:
            raise ValueError("cells: expected biases in all inputs and hiddens or in none, got some of them")
        rnn = self._empty_rnn(bias=biases == {True})
        rnn.dropout = self.dropout  # given to the constructor, it would warn if there is but one layer
        for suffix, cell in zip(suffixes(self.num_layers, self.bidirectional), cells, strict=True):
            for name, attribute in PARTS.items():
                part = getattr(cell, attribute)
                if part is not None:
                    setattr(rnn, f"weight_{name}_{suffix}", nn.Parameter(dense_weight(part)))
                    bias = dense_bias(part)
                    if bias is not None:
                        setattr(rnn, f"bias_{name}_{suffix}", nn.Parameter(bias))
        return rnn.train(self.training)

    def _empty_rnn(self, bias: bool, **options: Any) -> nn.RNNBase:
        """Without data: nothing to initialise, no random numbers drawn."""
        return self.dense(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            device="meta",
            **options,
        )

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Outputs of the last layer for every step, and the states after the last one; for inference.

        input   [t, n, input_size]; n first if `batch_first`, without n if unbatched; or a PackedSequence
        hx      [layers * directions, n, output_size], zeros by default, without n if unbatched; an LSTM's is
                a pair, the second one [layers * directions, n, hidden_size]

        Returns outputs [t, n, directions * output_size] in the form of the input, and states like hx.

        ValueError: shapes or a dtype that do not fit, no steps. TypeError: an LSTM's hx that is not a pair.
        RuntimeError: gradients are enabled and an input requires one.
        """
        device = (input.data if isinstance(input, PackedSequence) else input).device.type
        if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(device):
            return self._autocast(device, input, hx)
        states = self._given(hx)
        if isinstance(input, PackedSequence):
            x, batch_sizes, order, back = input
            sizes = batch_sizes.tolist()
            if states is not None and order is not None:
                states = [state.index_select(1, order) for state in states]
            out, finals = self._run(x, sizes, states)
            if back is not None:
                finals = [state.index_select(1, back) for state in finals]
            return PackedSequence(out, batch_sizes, order, back), self._returned(finals)

        if input.dim() not in (2, 3):
            raise ValueError(f"input: expected 2 or 3 dimensions, got {input.dim()}")
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        if not batched and states is not None:
            states = [state.unsqueeze(1) for state in states]
        steps, n = x.shape[:2]
        out, finals = self._run(x.flatten(0, 1), [n] * steps, states)
        out = out.unflatten(0, (steps, n))
        if not batched:
            return out.squeeze(1), self._returned([state.squeeze(1) for state in finals])
        return out.transpose(0, 1) if self.batch_first else out, self._returned(finals)

    def _autocast(self, device: str, input: Any, hx: Any) -> tuple[Any, Any]:
        """Inputs are rounded as autocast rounds those of torch's layer, and so are its results."""
        lower = torch.get_autocast_dtype(device)

        def to(dtype: torch.dtype, value: Any) -> Any:
            if isinstance(value, (tuple, list)) and not isinstance(value, PackedSequence):
                return tuple(to(dtype, state) for state in value)
            return value.to(dtype) if isinstance(value, (Tensor, PackedSequence)) else value

        x = input.data if isinstance(input, PackedSequence) else input
        result = lower if self._lowers and x.dtype != torch.float64 else x.dtype
        with torch.autocast(device, enabled=False):
            inputs = to(self._dtype(), to(result, input)), to(self._dtype(), to(result, hx))
            return cast("tuple[Any, Any]", to(result, self.forward(*inputs)))

    def _given(self, hx: Any) -> list[Tensor] | None:
        return None if hx is None else [hx]

    def _returned(self, states: list[Tensor]) -> Any:
        return states[0]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, " + (
            f"batch_first={self.batch_first}, bidirectional={self.bidirectional}, proj_size={self.proj_size}"
        )
