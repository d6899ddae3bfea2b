"""SparseLSTM, SparseGRU, SparseRNN: torch's recurrent layers whose matrices are modules, sparse or dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.modules._recurrent import Recurrent
from sparseinfer.modules._recurrent_names import matrix_names, suffixes
from sparseinfer.modules._recurrent_steps import RecurrentCell

__all__ = ["RecurrentCell", "SparseGRU", "SparseLSTM", "SparseRNN", "matrix_names", "suffixes"]


class SparseLSTM(Recurrent):
    """nn.LSTM whose matrices are modules: same arguments and results, for inference only.

    The input matrix multiplies all steps in one call; the hidden matrix is called once per step.
    """

    dense = nn.LSTM
    gates = 4
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def _given(self, hx: Any) -> list[Tensor] | None:
        if hx is None:
            return None
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise TypeError(f"hx: expected a pair of tensors (h_0, c_0), got {type(hx).__name__}")
        return list(hx)

    def _returned(self, states: list[Tensor]) -> Any:
        return tuple(states)

    def _widths(self) -> tuple[int, ...]:
        return (self.output_size, self.hidden_size)

    def _empty_rnn(self, bias: bool, **options: Any) -> nn.RNNBase:
        return super()._empty_rnn(bias, proj_size=self.proj_size, **options)

    def _steps(
        self, cell: RecurrentCell, inputs: Sequence[Tensor], outs: Sequence[Tensor], states: list[Tensor]
    ) -> None:
        h, c = states
        hidden, projection, size = cell.hidden, cell.projection, self.hidden_size
        gates = c.new_empty(len(c), 4 * size)
        in_forget, candidate, output = gates.split((2 * size, size, size), dim=1)
        take, keep = in_forget.chunk(2, dim=1)
        for x, out in zip(inputs, outs, strict=True):
            torch.add(x, hidden(h), out=gates)
            in_forget.sigmoid_()
            candidate.tanh_()
            output.sigmoid_()
            c.mul_(keep).addcmul_(take, candidate)
            if projection is None:
                h = torch.mul(output, torch.tanh(c), out=out)
            else:
                h = out.copy_(projection(torch.tanh(c).mul_(output)))
        states[0].copy_(h)

    def _step(self, cell: RecurrentCell, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        (h, c), size = states, self.hidden_size
        in_forget, candidate, output = (x + cell.hidden(h)).split((2 * size, size, size), dim=1)
        take, keep = in_forget.sigmoid().chunk(2, dim=1)
        c = torch.addcmul(c * keep, take, candidate.tanh())
        h = output.sigmoid() * torch.tanh(c)
        if cell.projection is not None:
            h = cell.projection(h)
        return h, [h, c]


class SparseGRU(Recurrent):
    """nn.GRU whose matrices are modules; otherwise like `SparseLSTM`."""

    dense = nn.GRU
    gates = 3
    _lowers = False

    def _steps(
        self, cell: RecurrentCell, inputs: Sequence[Tensor], outs: Sequence[Tensor], states: list[Tensor]
    ) -> None:
        (h,) = states
        hidden, widths = cell.hidden, (2 * self.hidden_size, self.hidden_size)
        gates = h.new_empty(len(h), 2 * self.hidden_size)
        reset, update = gates.chunk(2, dim=1)
        for x, out in zip(inputs, outs, strict=True):
            x_gates, x_candidate = x.split(widths, dim=1)
            h_gates, h_candidate = hidden(h).split(widths, dim=1)
            torch.add(x_gates, h_gates, out=gates).sigmoid_()
            candidate = torch.addcmul(x_candidate, reset, h_candidate).tanh_()
            h = torch.lerp(candidate, h, update, out=out)
        states[0].copy_(h)

    def _step(self, cell: RecurrentCell, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        (h,), widths = states, (2 * self.hidden_size, self.hidden_size)
        x_gates, x_candidate = x.split(widths, dim=1)
        h_gates, h_candidate = cell.hidden(h).split(widths, dim=1)
        reset, update = (x_gates + h_gates).sigmoid().chunk(2, dim=1)
        h = torch.lerp(torch.addcmul(x_candidate, reset, h_candidate).tanh(), h, update)
        return h, [h]


class SparseRNN(Recurrent):
    """nn.RNN, tanh or relu, whose matrices are modules; otherwise like `SparseLSTM`."""

    dense = nn.RNN
    gates = 1

    def __init__(self, cells: Sequence[RecurrentCell], *, nonlinearity: str = "tanh", **options: Any) -> None:
        """As `SparseLSTM`, and the nonlinearity, "tanh" or "relu"."""
        super().__init__(cells, **options)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = nonlinearity

    @classmethod
    def _options(cls, rnn: nn.RNNBase) -> dict[str, Any]:
        return {**super()._options(rnn), "nonlinearity": rnn.nonlinearity}

    def _empty_rnn(self, bias: bool, **options: Any) -> nn.RNNBase:
        return super()._empty_rnn(bias, nonlinearity=self.nonlinearity, **options)

    def _steps(
        self, cell: RecurrentCell, inputs: Sequence[Tensor], outs: Sequence[Tensor], states: list[Tensor]
    ) -> None:
        (h,) = states
        hidden, activate_ = cell.hidden, torch.tanh_ if self.nonlinearity == "tanh" else torch.relu_
        for x, out in zip(inputs, outs, strict=True):
            h = activate_(torch.add(x, hidden(h), out=out))
        states[0].copy_(h)

    def _step(self, cell: RecurrentCell, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h = (torch.tanh if self.nonlinearity == "tanh" else torch.relu)(x + cell.hidden(states[0]))
        return h, [h]
