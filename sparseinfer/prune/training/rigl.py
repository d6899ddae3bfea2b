"""RigL: changes masks during training at a constant number of kept weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparseinfer.prune.checks import check_int
from sparseinfer.prune.masks.held import HeldMask, all_held_masks


class RigL:
    """Moves a model's masks to large gradients. Call `step()` after each `optimizer.step()`.

        prune_(model, Random(ERK(0.9)))              # sparse from the start
        rigl = RigL(model, end=75_000)
        for x, y in data:
            ...
            optimizer.step()
            rigl.step()

    end            the last step after which masks may change; three quarters of the training in the paper
    every          steps between two moves; 100 as in the paper
    drop_fraction  part of each layer's kept weights that the first move replaces, 0.3 as in the paper; it
                   decays along a cosine

    A move prunes the kept weights of smallest magnitude and restores as many pruned ones with the largest
    gradient in the last step's backward; restored weights start at zero. Each layer keeps its number
    of weights. Between processes of torch.distributed the gradients are summed. Evci et al., "Rigging the
    Lottery: Making All Tickets Winners" (2020).

    TypeError or ValueError: an argument out of its range, or a model that holds no masks.
    """

    def __init__(self, model: nn.Module, *, end: int, every: int = 100, drop_fraction: float = 0.3) -> None:
        self._held = all_held_masks(model)
        if not self._held:
            hint = "call prune_(model, Random(ERK(0.9))) first"
            raise ValueError(f"model: expected one that holds masks, got none ({hint})")
        for name, value in (("end", end), ("every", every)):
            check_int(name, value, 1)
        if not 0 < drop_fraction <= 1:
            raise ValueError(f"drop_fraction: expected a number in (0, 1], got {drop_fraction}")
        self._end = end
        self._every = every
        self._drop_fraction = drop_fraction
        self._step = 0
        self._watch()

    def step(self) -> bool:
        """Count one training step; returns whether masks changed."""
        self._step += 1
        moves = self._is_move(self._step)
        if moves:
            fraction = self._drop_fraction / 2 * (1 + math.cos(math.pi * self._step / self._end))
            for held in self._held:
                _move(held, fraction)
        self._watch()
        return moves

    def state_dict(self) -> dict[str, Any]:
        """The step. Masks are in the model's state_dict."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the state was saved."""
        self._step = int(state["step"])
        self._watch()

    def _is_move(self, step: int) -> bool:
        return step % self._every == 0 and step < self._end

    def _watch(self) -> None:
        """Keep the gradients of pruned weights only during the step before a move."""
        for held in self._held:
            held.keeps_dense_gradient = self._is_move(self._step + 1)
            held.dense_gradient = None


@torch.no_grad()
def _move(held: HeldMask, fraction: float) -> None:
    weight, gradient, mask = held.weight, held.dense_gradient, held.mask
    if weight is None or gradient is None:
        raise RuntimeError("step: expected a backward before it that reaches every masked layer, got none")
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gradient)
    kept = int(mask.sum())
    count = round(fraction * kept)
    moved = _largest(weight.abs(), mask, kept - count)
    # What has just been dropped may grow again, and then keeps its value.
    moved |= _largest(gradient.abs(), ~moved, count)
    mask.copy_(moved)
    held.enforce()


def _largest(scores: Tensor, candidates: Tensor, count: int) -> Tensor:
    """A mask of the largest scores among the candidates; of equal ones the first."""
    order = scores.masked_fill(~candidates, -1).flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask.view(scores.shape)
