"""Makes random linear layers to benchmark, and checks candidates' results against fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.bench.candidate import Candidate


class NumericsError(RuntimeError):
    """A candidate's result differs from fp64 by more than rounding can explain."""


def random_layer(
    n: int, k: int, sparsity: float, *, block: tuple[int, int] | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Weight [n, k] with round(sparsity · numel) zeros (or zero blocks) at random places, and bias [n]."""
    generator = torch.Generator().manual_seed(seed)
    r, c = block or (1, 1)
    blocks = (n // r) * (k // c)
    mask = torch.ones(blocks, dtype=torch.bool)
    mask[torch.randperm(blocks, generator=generator)[: round(sparsity * blocks)]] = False
    weight = torch.randn(n, k, generator=generator)
    weight *= mask.view(n // r, k // c).repeat_interleave(r, 0).repeat_interleave(c, 1)
    return weight, torch.randn(n, generator=generator)


class Expected:
    """The result of a layer in fp64 that candidates are held against: x [m, k], weight [n, k], bias [n]."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        self._x, self._weight, self._bias = x, weight, bias
        self._y = x.double() @ weight.double().t() + bias.double()
        terms = (weight != 0).sum(1) + 1
        magnitude = (x.abs().max() * weight.abs().max() + bias.abs()).double()
        self._allowed = 2 * torch.finfo(torch.float32).eps * terms * magnitude

    def check(self, candidate: Candidate, y: Tensor) -> None:
        """Raises NumericsError unless |y − ref| ≤ 2·eps·(nnz_row + 1)·(max|x|·max|w| + |bias|).

        The bound covers any order of summation in fp32, and holds for dense products too: adding a zero is
        exact. For y in 16 bits its rounding is added; torch's own linear rounds twice there. For x in 8 bits,
        half a step of each token, or of all of x, times the sum of |w|.
        """
        shape = self._y.shape
        if y.shape != shape:
            raise NumericsError(f"{candidate.name}: expected a result {list(shape)}, got {list(y.shape)}")
        x, allowed = self._x, self._allowed
        if candidate.dtype != torch.float32:
            allowed = allowed + torch.finfo(candidate.dtype).eps * (self._y.abs() + self._bias.double().abs())
        if candidate.rounded:
            span = x.amax(1, keepdim=True).clamp(min=0) - x.amin(1, keepdim=True).clamp(max=0)
            if candidate.rounded == "tensor":
                span = x.amax().clamp(min=0) - x.amin().clamp(max=0)
            allowed = allowed + 0.501 * span.double() / 255 * self._weight.abs().sum(1).double()
        # Not `> allowed`: a NaN must count as wrong.
        wrong = ~((y.double() - self._y).abs() <= allowed)
        if wrong.any():
            i, j = wrong.nonzero()[0].tolist()
            expected = f"{self._y[i, j]:.6g} ± {allowed.expand(shape)[i, j]:.1g}"
            size = f"n={shape[1]}, k={x.shape[1]}, m={shape[0]}"
            raise NumericsError(
                f"{candidate.name}: expected y[{i}, {j}] = {expected}, got {y[i, j]:.6g} ({size})"
            )


def check(candidate: Candidate, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raises NumericsError if the candidate's result is wrong; see `Expected.check`."""
    Expected(x, weight, bias).check(candidate, candidate.make()(x.to(candidate.dtype)))
