"""Makes the replacement modules from the decisions, without changing the model."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparseinfer.convert.assembly.assemble import assemble
from sparseinfer.convert.assembly.multiply import multipliers
from sparseinfer.convert.assembly.pooling import FasterPool, faster_pool
from sparseinfer.convert.decisions import Decision
from sparseinfer.convert.options import COMPACT, ConvertOptions
from sparseinfer.convert.survey.survey import Site, Survey
from sparseinfer.convert.timing.whole_layers import slower_than_torch
from sparseinfer.modules import (
    ChannelsLastMaxPool2d,
    FoldedLayer,
    SharedInputLinear,
    SparseMultiheadAttention,
)
from sparseinfer.modules.parts import dense_linear

# By site and name of its matrix; those that stay as they are have none.
Multipliers = Mapping["tuple[Site, str]", nn.Module]


@dataclass(frozen=True)
class Build:
    """Which module replaces which.

    replacements   module of the model -> its replacement
    multipliers    the module that multiplies by each matrix
    left_dense     why a site stays unchanged although all its matrices have a multiplier
    shared         the first of the Linears that share one matrix, and the fqn of the module whose forward
                   calls them
    pools          fqn -> a max pooling that is faster in another layout
    norms          the batch norm of the model that each layer has folded in
    """

    replacements: Mapping[nn.Module, nn.Module]
    multipliers: Multipliers
    left_dense: Mapping[Site, str]
    shared: Sequence[tuple[str, SharedInputLinear]]
    pools: Mapping[str, FasterPool]
    norms: Mapping[FoldedLayer, nn.Module]

    def point_to_norms(self, copies: Mapping[int, nn.Module]) -> None:
        """Let layers know their batch norms in another model: copies, by the id of the original, or these."""
        for layer, norm in self.norms.items():
            object.__setattr__(layer, "batch_norm", copies.get(id(norm), norm))

    @property
    def folds(self) -> bool:
        return any(isinstance(module, FoldedLayer) for module in self.replacements.values())


@dataclass(frozen=True)
class Known:
    """What an earlier conversion of the same model measured.

    left_dense   fqn of a layer that stays as it is, whatever its products' plans -> why
    pools        fqn of a max pooling that is faster in another layout -> microseconds before and after
    """

    left_dense: Mapping[str, str]
    pools: Mapping[str, tuple[float, float]]


def build(
    model: nn.Module,
    survey: Survey,
    decisions: Iterable[Decision],
    options: ConvertOptions,
    known: Known | None = None,
) -> Build:
    """Makes all replacement modules, product by product; what is `known` is not measured."""
    by_matrix: dict[tuple[Site, str], nn.Module] = {}
    shared: list[tuple[str, SharedInputLinear]] = []
    for decision in decisions:
        product, modules = decision.product, multipliers(decision)
        first = modules[0]
        if isinstance(first, SharedInputLinear):
            shared.append((_common_parent([site.fqn for site in product.sites]), first))
        for site, module in zip(product.sites, modules, strict=True):
            if module is not None:
                by_matrix[site, product.name] = module
    layers = {site: _layer(site, by_matrix) for site in survey.sites}
    left_dense = {
        site: reason
        for site, layer in layers.items()
        if layer is not None and (reason := _torch_wins(site, layer, survey, options, known))
    }
    replacements = {
        site.module: layer for site, layer in layers.items() if layer is not None and site not in left_dense
    }
    pools = _pools(survey, options) if known is None else _known_pools(survey, known)
    used = set(replacements.values())
    return Build(
        {
            **replacements,
            **off_the_fast_path(model, replacements),
            **{survey.pools[fqn]: pool.module for fqn, pool in pools.items()},
        },
        by_matrix,
        left_dense,
        [(fqn, first) for fqn, first in shared if first in used],
        pools,
        {layer: layer.batch_norm for layer in replacements.values() if isinstance(layer, FoldedLayer)},
    )


def _layer(site: Site, by_matrix: Multipliers) -> nn.Module | None:
    """What takes the site's place; None if all its matrices stay as they are."""
    given = {name: by_matrix.get((site, name)) for name in site.matrices}
    if all(multiplier is None for multiplier in given.values()):
        return None
    complete = {name: multiplier or _dense_copy(site, name) for name, multiplier in given.items()}
    return assemble(site.module, complete).train(site.module.training)


def _dense_copy(site: Site, name: str) -> nn.Linear:
    copied = site.matrices[name].weights.copied()
    return dense_linear(copied.weight, copied.bias)


def _common_parent(fqns: Sequence[str]) -> str:
    """The innermost module that holds all of these."""
    paths = [fqn.split(".")[:-1] for fqn in fqns]
    levels = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return ".".join(names[0] for names in levels)


def _torch_wins(
    site: Site, layer: nn.Module, survey: Survey, options: ConvertOptions, known: Known | None
) -> str | None:
    """Why a layer of several products stays torch's own, though its products are faster one by one."""
    if known is not None:
        return known.left_dense.get(site.fqn)
    dense = site.module
    if not isinstance(dense, (nn.RNNBase, nn.MultiheadAttention)) or options.memory_limit == COMPACT:
        return None
    on_gpu = any(matrix.weights.on_gpu for matrix in site.matrices.values())
    if isinstance(dense, nn.MultiheadAttention) and (on_gpu or not dense._qkv_same_embed_dim):
        return None
    if not options.measure:
        return "cuDNN's layer is compared by measuring only" if on_gpu else None
    return slower_than_torch(dense, layer, survey.recording, on_gpu=on_gpu)


def off_the_fast_path(
    model: nn.Module, replacements: Mapping[nn.Module, nn.Module]
) -> dict[nn.Module, nn.Module]:
    """Attentions to replace too, because torch's TransformerEncoderLayer would call none of its modules.

    While its attention is torch's, it reads the weights of its Linears, of which a sparse one has none.
    """
    attentions: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoderLayer) or module.self_attn in replacements:
            continue
        if module.linear1 in replacements or module.linear2 in replacements:
            dense = SparseMultiheadAttention.from_attention(copy.deepcopy(module.self_attn))
            attentions[module.self_attn] = dense.train(module.self_attn.training)
    return attentions


def _pools(survey: Survey, options: ConvertOptions) -> dict[str, FasterPool]:
    on_gpu = any(t.is_cuda for t in survey.recording.result)
    if not options.measure or on_gpu:
        return {}
    pools = {fqn: faster_pool(pool, survey.recording) for fqn, pool in survey.pools.items()}
    return {fqn: pool for fqn, pool in pools.items() if pool is not None}


def _known_pools(survey: Survey, known: Known) -> dict[str, FasterPool]:
    pools: Mapping[str, Any] = survey.pools
    return {
        fqn: FasterPool(ChannelsLastMaxPool2d(pool).train(pool.training), *known.pools[fqn])
        for fqn, pool in pools.items()
    }
