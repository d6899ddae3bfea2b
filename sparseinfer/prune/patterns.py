"""Patterns: which weights of the matrix [n, k] are pruned together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from sparseinfer.prune.checks import check_int
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.named import Named


class Pattern(Named, ABC):
    """Divides the matrix [groups, n, k] of a layer into units of r × c weights, kept or pruned as a whole.

    name  the form of its text, in which each capital letter stands for an integer argument: "RxC" for
          Block, so that "16x4" is Block(16, 4)
    """

    @abstractmethod
    def unit(self, layer: Layer) -> tuple[int, int]:
        """r and c, which divide n and k. ValueError names the layer if they do not."""


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Every weight by itself."""

    name = "unstructured"

    def unit(self, layer: Layer) -> tuple[int, int]:
        return 1, 1


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of r rows × c columns of the matrix, from its first weight on. r divides n, and c divides k."""

    name = "RxC"

    r: int
    c: int

    def __post_init__(self) -> None:
        check_int("r", self.r, 1)
        check_int("c", self.c, 1)

    def unit(self, layer: Layer) -> tuple[int, int]:
        _check_divides(layer, f"a multiple of {self.r} rows and {self.c} columns", self.r, self.c)
        return self.r, self.c


@dataclass(frozen=True)
class NM(Pattern):
    """n of each m neighbouring weights in a row are kept, those with the highest scores; m divides k.

    NM(2, 4) keeps two of four, the 2:4 pattern of sparse tensor cores. Sparsity is 1 - n / m in every group,
    row and layer, so no `sparsity` is given and every scope means the same.
    """

    name = "N:M"

    n: int
    m: int

    def __post_init__(self) -> None:
        check_int("n", self.n, 1)
        check_int("m", self.m, self.n)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros that the pattern makes."""
        return 1 - self.n / self.m

    def unit(self, layer: Layer) -> tuple[int, int]:
        _check_divides(layer, f"a multiple of {self.m} columns", 1, self.m)
        return 1, 1


@dataclass(frozen=True)
class Row(Pattern):
    """Whole rows: an output of a linear layer, an output channel of a convolution."""

    name = "row"

    def unit(self, layer: Layer) -> tuple[int, int]:
        return 1, layer.shape[2]


@dataclass(frozen=True)
class Column(Pattern):
    """Whole columns: an input of a linear layer; an input channel of a convolution, with its kernel."""

    name = "column"

    def unit(self, layer: Layer) -> tuple[int, int]:
        return layer.shape[1], layer.positions


def units(matrix: Tensor, unit: tuple[int, int]) -> Tensor:
    """[groups, n, k] as [groups, n / r, k / c, r·c]: the weights of each unit side by side."""
    r, c = unit
    groups, n, k = matrix.shape
    return matrix.reshape(groups, n // r, r, k // c, c).transpose(2, 3).flatten(3)


def expand(kept: Tensor, unit: tuple[int, int]) -> Tensor:
    """A mask of units [groups, n / r, k / c] as one of weights [groups, n, k]."""
    r, c = unit
    return kept.repeat_interleave(r, dim=1).repeat_interleave(c, dim=2) if unit != (1, 1) else kept


def _check_divides(layer: Layer, expected: str, r: int, c: int) -> None:
    _, n, k = layer.shape
    if n % r or k % c:
        hint = f"ignore={[layer.fqn]!r} leaves it dense"
        raise ValueError(f"{layer.name}: expected {expected}, got a matrix of {n}x{k} ({hint})")
