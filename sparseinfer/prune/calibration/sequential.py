"""Prunes block by block: each block is calibrated with the outputs of the pruned blocks before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._progress import Progress
from sparseinfer._running import call, evaluating
from sparseinfer.prune.calibration.batches import Forward, checked_batches, every_batch
from sparseinfer.prune.calibration.collect import Collector
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.layers.layer import Layer

PruneBlock = Callable[[Mapping[str, Layer], CalibrationStats], None]


def find_blocks(model: nn.Module, layers: Mapping[str, Layer], sequential: bool | str) -> list[nn.Module]:
    """The blocks to prune in sequence.

    sequential  the name of their nn.ModuleList; True: the list that holds most of the layers

    ValueError: there is none, or a selected layer is outside of it; the message names it.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential))}
    if isinstance(sequential, str):
        if sequential not in lists:
            raise ValueError(f"sequential: expected the name of an nn.ModuleList, got {sequential!r}")
        name = sequential
    else:
        lists = {name: m for name, m in lists.items() if isinstance(m, nn.ModuleList)}
        if not lists:
            raise ValueError("sequential: expected a model with an nn.ModuleList of blocks, got none")
        name = max(lists, key=lambda name: len(_inside(lists[name], layers)))
    inside = _inside(lists[name], layers)
    for fqn in layers:
        if fqn not in inside:
            hint = f"ignore={[fqn]!r} leaves it dense"
            raise ValueError(f"sequential: expected layers inside {name!r}, got {fqn!r} ({hint})")
    return list(lists[name])


def prune_blocks(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    layers: Mapping[str, Layer],
    batches: Iterable[Any],
    prune_block: PruneBlock,
    *,
    forward: Forward | None = None,
    progress: bool = True,
) -> None:
    """Call `prune_block` for the layers of each block in turn, with their statistics; it writes the weights.

    The model runs once over all batches up to the blocks, to record the arguments of each. The hidden states
    of a block, its output or the first of several, are passed to the next one as the first argument or as
    `hidden_states`; its other arguments, such as masks and positions, come from that run. Key-value caches
    are left out.

    Memory holds the statistics of one block (see `calibrate`), the hidden states of all batches and the
    other arguments of the blocks.

    ValueError: bad batches, as in `calibrate`, or a model that does not call its blocks like that.
    """
    with evaluating(model), torch.no_grad():
        runs = [
            _record(model, blocks, batch, forward or call) for batch in every_batch(checked_batches(batches))
        ]
        hidden, calls_of = map(list, zip(*runs, strict=True))
        with Progress("pruning blocks", len(blocks), shown=progress) as bar:
            for i, block in enumerate(blocks):
                if block_layers := _inside(block, layers):
                    with Collector(block_layers, gram=True) as collector:
                        for calls, x in zip(calls_of, hidden, strict=True):
                            calls[i].run(block, x)
                            collector.end_of_run()
                    prune_block(block_layers, collector.stats())
                if i + 1 < len(blocks):
                    hidden = [calls[i].run(block, x) for calls, x in zip(calls_of, hidden, strict=True)]
                bar.advance()


@dataclass(frozen=True)
class _Call:
    """What a block is called with besides hidden states, which come first or by name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_name: bool

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden states that the block returns."""
        output = self.output(block, hidden)
        states = output[0] if isinstance(output, tuple) else output
        if not isinstance(states, Tensor) or states.shape != hidden.shape:
            got = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise ValueError(f"sequential: expected hidden states of shape {tuple(hidden.shape)}, got {got}")
        return states

    def output(self, block: Callable[..., Any], hidden: Tensor) -> Any:
        if self.by_name:
            return block(*self.args, hidden_states=hidden, **self.kwargs)
        return block(hidden, *self.args, **self.kwargs)


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, _Call]:
    """The hidden states of a call, None if it has none, and the rest of its arguments without caches."""
    rest = {name: _without_cache(value) for name, value in kwargs.items()}
    if args:
        return args[0], _Call(tuple(map(_without_cache, args[1:])), rest, by_name=False)
    return rest.pop("hidden_states", None), _Call((), rest, by_name=True)


class _AllCalled(Exception):
    """The last block has been called; the rest of the model need not run."""


def _record(
    model: nn.Module, blocks: Sequence[nn.Module], batch: Any, forward: Forward
) -> tuple[Tensor, list[_Call]]:
    """The hidden states that the first block is given, and how the model calls each block.

    Only the first one computes. The others return what it returned.
    """
    calls: list[_Call] = []
    first: Any = None
    returned: Any = None

    def recording(i: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            nonlocal first, returned
            if i != len(calls):
                got = f"block {i} instead of {len(calls)}"
                raise ValueError(f"sequential: expected blocks to be called once, in order, got {got}")
            hidden, call = _split(args, kwargs)
            if not isinstance(hidden, Tensor):
                got = type(hidden).__name__
                raise ValueError(f"sequential: expected blocks that are given hidden states first, got {got}")
            calls.append(call)
            if i == 0:
                first, returned = hidden, call.output(original, hidden)
            if len(calls) == len(blocks):
                raise _AllCalled
            return returned

        return recorded

    with _replaced_forwards(blocks, recording):
        try:
            forward(model, batch)
        except _AllCalled:
            return first, calls
    raise ValueError(f"sequential: expected all {len(blocks)} blocks to be called, got {len(calls)}")


@contextmanager
def _replaced_forwards(
    blocks: Sequence[nn.Module], replacement: Callable[[int, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    # A forward of the instance, such as a hook's of accelerate, hides that of the class.
    forwards = [vars(block).get("forward") for block in blocks]
    for i, block in enumerate(blocks):
        block.forward = replacement(i, block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, forwards, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _without_cache(value: Any) -> Any:
    """None in place of a key-value cache of transformers, which would remember every run of a block."""
    return None if hasattr(value, "get_seq_length") else value


def _inside(module: nn.Module, layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Those of the layers that the module holds, at any depth."""
    modules = set(module.modules())
    return {fqn: layer for fqn, layer in layers.items() if layer.module in modules}
