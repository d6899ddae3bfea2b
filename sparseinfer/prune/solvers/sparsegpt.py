"""SparseGPT: a solver that prunes column by column and adjusts later columns to compensate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from sparseinfer.prune.checks import check_int
from sparseinfer.prune.patterns import NM, Column, Unstructured
from sparseinfer.prune.solvers.columns import settle_columns
from sparseinfer.prune.solvers.hessian import filled, inverse_factor
from sparseinfer.prune.solvers.solver import Solution, Solver


@dataclass(frozen=True)
class SparseGPT(Solver):
    """Prune the weights whose removal costs least after later columns compensate: w² / [H⁻¹].

    Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot".

    sparsity, scope, pattern, damping  see SparseMethod and Solver
    block_size       number of columns whose mask is chosen together, all blocks with the same sparsity, and
                     after which all other columns are updated; 128 as in the paper. Column() is chosen at
                     once, from the initial H⁻¹
    reference_exact  like the published code: also prune weights that equal the threshold of a block, and all
                     weights of an input that was always zero

    ValueError: reference_exact with scope="row" or a pattern that the published code does not know.
    """

    name = "sparsegpt"
    _: KW_ONLY
    block_size: int = 128
    reference_exact: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("block_size", self.block_size, 1)
        published = isinstance(self.pattern, (Unstructured, NM)) and self.scope == "layer"
        if self.reference_exact and not published:
            got = f"{self.pattern!r} and {self.scope!r}"
            raise ValueError(f"reference_exact: expected Unstructured() or NM(n, m) and 'layer', got {got}")

    def solve(self, weight: Tensor, gram: Tensor, unit: tuple[int, int], sparsity: float) -> Solution:
        factor, damping = inverse_factor(gram, self.damping)
        factor = factor.to(weight.dtype)
        dead = gram.diagonal(dim1=-2, dim2=-1)[:, None] == 0
        if self.reference_exact:
            weight = weight.masked_fill(dead, 0)
        step = self.pattern.m if isinstance(self.pattern, NM) else unit[1]
        block_size = max(self.block_size // step, 1) * step

        def adaptive(scores: Tensor, start: int) -> Tensor:
            if self.reference_exact and isinstance(self.pattern, Unstructured):
                return _above_threshold(scores, sparsity)
            end = start + scores.shape[2]
            scores = scores.masked_fill(dead[..., start:end], 0)
            # The exact count of the layer, spread over blocks: each prunes what is due by its end.
            height = scores.shape[:2].numel() // unit[0] if self.scope == "layer" else 1
            before, after = height * (start // unit[1]), height * (end // unit[1])
            due = round(sparsity * after) - round(sparsity * before)
            return self.choose(scores, unit, due / max(after - before, 1))

        choose = adaptive
        if isinstance(self.pattern, Column):
            scores = weight.abs() / factor.square().sum(-2).sqrt()[:, None]
            kept = self.choose(scores.masked_fill(dead, 0), unit, sparsity)

            def choose(scores: Tensor, start: int) -> Tensor:
                return kept[..., start : start + scores.shape[2]]

        width = step if isinstance(self.pattern, NM) else block_size
        return Solution(*sparsegpt(weight, factor, choose, width=width, block_size=block_size), damping)


def sparsegpt(
    weight: Tensor,
    factor: Tensor,
    choose: Callable[[Tensor, int], Tensor],
    *,
    width: int,
    block_size: int,
) -> tuple[Tensor, Tensor]:
    """The adjusted weight and the mask, each [groups, n, k].

    weight      [groups, n, k], float32 or float64
    factor      [groups, k, k], same dtype: U of `hessian.inverse_factor`
    choose      (scores [groups, n, width] of these columns, the first one) -> their mask, True = kept
    width       columns chosen together, as the updates so far have left them; fewer at the end
    block_size  number of columns after which all others are updated; a multiple of width
    """
    k = weight.shape[2]
    may_fill = filled(weight).mT.contiguous()
    mask = torch.empty_like(may_fill)
    scale = factor.diagonal(dim1=-2, dim2=-1)[..., None]

    def settle(w: Tensor, i: int) -> Tensor:
        start = i - i % block_size
        if (i - start) % width == 0:
            chosen = slice(i, min(i + width, start + block_size, k))
            scores = (w[:, chosen].abs() / scale[:, chosen]).masked_fill_(~may_fill[:, chosen], 0)
            mask[:, chosen] = choose(scores.mT, i).mT
        return w[:, i].masked_fill(~(mask[:, i] & may_fill[:, i]), 0)

    return settle_columns(weight, factor, settle, block_size=block_size), mask.mT


def _above_threshold(scores: Tensor, sparsity: float) -> Tensor:
    """The mask of each group [n, width] that the published code makes: what equals the threshold goes too."""
    flat = scores.flatten(1)
    rank = int(sparsity * flat.shape[1])
    return scores > flat.sort(dim=1).values[:, rank, None, None]
