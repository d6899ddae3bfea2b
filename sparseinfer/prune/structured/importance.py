"""How much a unit matters: a score of each of its weights, summed over the unit and averaged over the layers
that have a part of it.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparseinfer.prune.calibration.statistics import CalibrationStats, LayerStats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.named import Named
from sparseinfer.prune.structured.groups import Group, Member
from sparseinfer.prune.structured.kinds import input_axis


@dataclass(frozen=True)
class Context:
    """What importance may read.

    layers  prunable layers by the names of their weights
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    layers: Mapping[str, Layer]
    stats: CalibrationStats | None

    def module_of(self, weight: str) -> tuple[nn.Module, str]:
        owner, _, name = weight.rpartition(".")
        return self.model.get_submodule(owner), name

    def stats_of(self, weight: str) -> LayerStats | None:
        layer = self.layers.get(weight)
        return None if layer is None or self.stats is None else self.stats.get(layer.fqn)


class Importance(Named, ABC):
    """Scores the units of a group. A new one is a subclass with `part`.

    needs  of "norms", "gradients" and "gram": what it reads of the statistics
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def part(self, member: Member, context: Context) -> Tensor | None:
        """Scores [units] of each unit's part of one weight, at least 0; None: this weight does not count."""

    def scores(self, group: Group, context: Context) -> Tensor | None:
        """Scores [units], float64 on the CPU, with mean 1 so that groups compare; None: nothing to score by.

        The mean of the scores of all weights that have a part of the unit.
        """
        parts = [self.part(member, context) for member in group.members]
        counted = [part.double().cpu() for part in parts if part is not None]
        if not counted:
            return None
        mean = torch.stack(counted).mean(0)
        whole = mean.mean()
        return mean / whole if whole > 0 else mean


def unit_sums(values: Tensor, member: Member) -> Tensor:
    """[units]: values of a weight's shape, summed over each unit's indices of the member's axis."""
    sums = values.movedim(member.axis, 0).flatten(1).sum(1) if values.dim() > 1 else values
    return sums[torch.from_numpy(member.indices).to(sums.device)].sum(1)


def _is_scored(member: Member, context: Context) -> bool:
    """Weights of products and of norms; no biases and statistics."""
    return member.weight.endswith("weight") and context.weights[member.weight].is_floating_point()


@dataclass(frozen=True)
class MagnitudeOfUnits(Importance):
    """Σ |w|^p: Li et al. 2017, "Pruning Filters for Efficient ConvNets", over all layers of a group, as in
    Fang et al. 2023, "DepGraph".
    """

    name = "magnitude"
    p: int = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"p: expected 1 or 2, got {self.p!r}")

    def part(self, member: Member, context: Context) -> Tensor | None:
        if not _is_scored(member, context):
            return None
        return unit_sums(context.weights[member.weight].detach().float().abs() ** self.p, member)


@dataclass(frozen=True)
class TaylorOfUnits(Importance):
    """|Σ w · ∂L/∂w|, what the loss changes by to the first order if the unit goes: Molchanov et al. 2019,
    "Importance Estimation for Neural Network Pruning". Statistics of `calibrate` with a loss_fn.
    """

    name = "taylor"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    def part(self, member: Member, context: Context) -> Tensor | None:
        stats = context.stats_of(member.weight)
        if stats is None or stats.grad is None:
            return None
        return unit_sums(context.weights[member.weight].detach().float() * stats.grad, member).abs()


@dataclass(frozen=True)
class WandaOfUnits(Importance):
    """Σ |w| · ‖x‖₂, after Sun et al. 2024, "Wanda", summed over the unit. Statistics of `calibrate`."""

    name = "wanda"
    needs: ClassVar[frozenset[str]] = frozenset({"norms"})

    def part(self, member: Member, context: Context) -> Tensor | None:
        stats, layer = context.stats_of(member.weight), context.layers.get(member.weight)
        if stats is None or layer is None:
            return None
        scores = layer.matrix().abs() * stats.sq.sqrt()[:, None].to(layer.weight.device)
        return unit_sums(layer.unmatrix(scores.float()), member)


@dataclass(frozen=True)
class ActivationVariance(Importance):
    """The variance of what the unit puts out, times the squared weights that read it: what is lost if it is
    replaced by its mean. An et al. 2024, "Fluctuation-based Adaptive Structured Pruning for LLMs" (FLAP).
    """

    name = "variance"
    needs: ClassVar[frozenset[str]] = frozenset({"norms"})

    def part(self, member: Member, context: Context) -> Tensor | None:
        stats, layer = context.stats_of(member.weight), context.layers.get(member.weight)
        if stats is None or layer is None or not _reads(member, context):
            return None
        mean = stats.sum_x / stats.tokens
        variance = (stats.sq / stats.tokens - mean**2).clamp_min(0)
        scores = layer.matrix().double() ** 2 * variance[:, None].to(layer.weight.device)
        return unit_sums(layer.unmatrix(scores), member)


@dataclass(frozen=True)
class Reconstruction(Importance):
    """The squared error of the layers that read the unit, if all weights that are left make up for it: the
    optimal brain surgeon for units, Kurtić et al. 2023, "ZipLM"; Meng et al. 2024, "OSSCAR". Gram matrices
    of `calibrate`. With `update=True` the weights do make up for it.

    damping  added to the Gram matrix, of its mean diagonal
    """

    name = "reconstruction"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    damping: float = 0.01

    def part(self, member: Member, context: Context) -> Tensor | None:
        stats, layer = context.stats_of(member.weight), context.layers.get(member.weight)
        if stats is None or stats.gram is None or layer is None or layer.groups > 1:
            return None
        if not _reads(member, context):
            return None
        inverse = inverse_gram(stats.gram[0], self.damping)
        weight = layer.matrix()[0].double()
        errors = []
        for unit in member.indices:
            columns = columns_of(layer, unit)
            w, h = weight[:, columns], inverse[columns][:, columns]
            errors.append(torch.linalg.solve(h, w.T).mul(w.T).sum())
        return torch.stack(errors)


def _reads(member: Member, context: Context) -> bool:
    return input_axis(*context.module_of(member.weight)) == member.axis


def columns_of(layer: Layer, channels: object) -> Tensor:
    """The columns of a layer's matrix that read these input channels."""
    first = torch.as_tensor(channels) * layer.positions
    return (first[:, None] + torch.arange(layer.positions)).reshape(-1)


def inverse_gram(gram: Tensor, damping: float) -> Tensor:
    """Float64, on the CPU; damped by a part of the mean diagonal."""
    whole = gram.double().cpu()
    diagonal = whole.diagonal().mean()
    whole = whole + torch.eye(len(whole), dtype=torch.float64) * (damping * diagonal).clamp_min(1e-12)
    return torch.cholesky_inverse(torch.linalg.cholesky(whole))


@dataclass(frozen=True)
class BatchNormScale(Importance):
    """The |weight| of the batch norms of a unit: Liu et al. 2017, "Learning Efficient Convolutional Networks
    through Network Slimming". Groups without a batch norm are not pruned.
    """

    name = "batch_norm"

    def part(self, member: Member, context: Context) -> Tensor | None:
        module, name = context.module_of(member.weight)
        if name != "weight" or not isinstance(module, nn.modules.batchnorm._BatchNorm):
            return None
        return unit_sums(context.weights[member.weight].detach().float().abs(), member)


@dataclass(frozen=True)
class RandomUnits(Importance):
    """Units at random: the baseline for others. Scores depend only on the seed and the group's name."""

    name = "random"
    seed: int = 0

    def part(self, member: Member, context: Context) -> Tensor | None:
        return None

    def scores(self, group: Group, context: Context) -> Tensor | None:
        seed = zlib.crc32(f"{self.seed}:{group.name}".encode())
        return torch.rand(group.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def importance_of(given: object) -> Importance:
    """An Importance, or the one of this name. TypeError, ValueError: neither."""
    if isinstance(given, Importance):
        return given
    names: Mapping[str, Callable[[], Importance]] = Importance.by_name()
    if not isinstance(given, str):
        raise TypeError(f"importance: expected a name or an Importance, got {type(given).__name__}")
    if given not in names:
        raise ValueError(f"importance: expected one of {', '.join(names)}, got {given!r}")
    return names[given]()
