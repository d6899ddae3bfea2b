"""Runs the time steps of recurrent layers, for all layers and directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer.modules._recurrent_names import RecurrentNames
from sparseinfer.modules._tracing import is_observed
from sparseinfer.ops.transforms import refuse_gradients


class RecurrentCell(nn.Module):
    """The matrices of one layer in one direction, modules like nn.Linear that hold the biases too.

    input       [gates * hidden_size, features of the input]
    hidden      [gates * hidden_size, features of the output]
    projection  [proj_size, hidden_size] or None: maps an LSTM's state to its output
    """

    def __init__(self, input: nn.Module, hidden: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.input = input
        self.hidden = hidden
        self.projection = projection


# (index of the cell, cell, x [rows, features], whether in reverse) -> its outputs [rows, output_size]
Scan: TypeAlias = Callable[[int, RecurrentCell, Tensor, bool], Tensor]


class RecurrentSteps(RecurrentNames):
    """Runs `cells` over sequences; a subclass defines one step: `_steps` in place, `_step` out of place.

    Sequences are laid out as in a PackedSequence: step after step, each with a row for every sequence that
    is long enough; in a plain batch all are.
    """

    output_size: int
    dropout: float

    def _cells(self) -> list[RecurrentCell]:
        return cast("list[RecurrentCell]", list(self.cells))

    def _widths(self) -> tuple[int, ...]:
        """Features of each state; the first one is the output."""
        return (self.output_size,)

    def _run(self, x: Tensor, sizes: list[int], states: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """x [sum of sizes, input_size] through all layers; the states [cells, n, width] before and after."""
        if x.shape[-1] != self.input_size:
            raise ValueError(f"input: expected {self.input_size} features, got {x.shape[-1]}")
        if x.dtype != self._dtype():
            raise ValueError(f"input: expected dtype {self._dtype()}, got {x.dtype}")
        if not sizes:
            raise ValueError("input: expected at least one step, got none")
        shapes = [(len(self.cells), sizes[0], width) for width in self._widths()]
        if states is None:
            states = [x.new_zeros(shape) for shape in shapes]
        for state, shape in zip(states, shapes, strict=True):
            if state.shape != shape:
                raise ValueError(f"hx: expected shape {shape}, got {tuple(state.shape)}")
        for cell in self.cells if torch.is_grad_enabled() else ():
            for part in cell.children():
                refuse_gradients(**dict(part.named_parameters()))
        refuse_gradients(input=x, **{f"hx[{i}]": state for i, state in enumerate(states)})

        run = self._run_unwritten if is_observed() else self._run_in_place
        with torch.no_grad():
            return run(x, sizes, states)

    def _run_in_place(self, x: Tensor, sizes: list[int], states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Steps write to memory that was made here, which is faster."""
        finals = [state.clone(memory_format=torch.contiguous_format) for state in states]

        def scan(i: int, cell: RecurrentCell, x: Tensor, reverse: bool) -> Tensor:
            return self._scan(cell, x, sizes, [state[i] for state in finals], reverse)

        return self._through_layers(x, scan), finals

    def _run_unwritten(
        self, x: Tensor, sizes: list[int], states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The same without writing into memory, for those who look on: torch's transforms and compilers."""
        finals: list[list[Tensor]] = []

        def scan(i: int, cell: RecurrentCell, x: Tensor, reverse: bool) -> Tensor:
            outs: list[Any] = [None] * len(sizes)
            inputs, last = cell.input(x).split(sizes), [state[i] for state in states]
            for step in range(len(sizes))[:: -1 if reverse else 1]:
                outs[step], last = self._stepped(cell, inputs[step], last)
            finals.append(last)
            return torch.cat(outs)

        out = self._through_layers(x, scan)
        return out, [torch.stack(cells) for cells in zip(*finals, strict=True)]

    def _through_layers(
        self, x: Tensor, scan: Callable[[int, RecurrentCell, Tensor, bool], Tensor]
    ) -> Tensor:
        """x [rows, features] through all layers; scan(i, cell, x, reverse) is what cell i makes of it."""
        cells, directions = self._cells(), 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            first = layer * directions
            outs = [scan(first + d, cells[first + d], x, d == 1) for d in range(directions)]
            x = outs[0] if directions == 1 else torch.cat(outs, dim=1)
        return x

    def _stepped(self, cell: RecurrentCell, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One step of the first rows: x [n, gates * hidden_size] -> y [n, output_size], and all states."""
        n = x.shape[0]
        if n == states[0].shape[0]:
            return self._step(cell, x, states)
        y, first = self._step(cell, x, [state[:n] for state in states])
        return y, [torch.cat((new, old[n:])) for new, old in zip(first, states, strict=True)]

    def _step(self, cell: RecurrentCell, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One of `_steps`, out of place."""
        raise NotImplementedError

    def _scan(
        self, cell: RecurrentCell, x: Tensor, sizes: list[int], states: list[Tensor], reverse: bool
    ) -> Tensor:
        """Outputs of one cell for all steps; its states [n, width] are changed in place.

        Sequences that have ended keep their last state, and those that a reverse scan has not reached yet
        their first one, because a step changes only the rows that it has.
        """
        out = x.new_empty(len(x), self.output_size)
        inputs, outs = cell.input(x).split(sizes), out.split(sizes)
        for start, stop in _equal_runs(sizes, reverse):
            rows = [state[: sizes[start]] for state in states]
            turn = -1 if reverse else 1
            self._steps(cell, inputs[start:stop][::turn], outs[start:stop][::turn], rows)
        return out

    def _steps(
        self, cell: RecurrentCell, inputs: Sequence[Tensor], outs: Sequence[Tensor], states: list[Tensor]
    ) -> None:
        """Steps of n rows each: inputs [n, gates * hidden_size] -> outs [n, output_size], states in place."""
        raise NotImplementedError


def _equal_runs(sizes: list[int], reverse: bool) -> Iterator[tuple[int, int]]:
    """(start, stop) of the runs of equal sizes, the last one first if `reverse`."""
    runs, start = [], 0
    for _, run in groupby(sizes):
        stop = start + len(list(run))
        runs.append((start, stop))
        start = stop
    return iter(runs[::-1] if reverse else runs)
