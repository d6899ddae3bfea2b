"""Surveys a model: the layers that can be replaced, one recorded run, and the products to plan.

Nothing in the model changes, and nothing is timed or packed here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sparseinfer._machine import last_level_cache_bytes
from sparseinfer._running import evaluating, preserved
from sparseinfer.convert.survey.followers import NOBODY, Followers, folded, followers
from sparseinfer.convert.survey.kinds import Kind, Matrices, kind_of
from sparseinfer.convert.survey.recording import Recording, record
from sparseinfer.convert.survey.refusals import refusals, require_inference
from sparseinfer.convert.survey.weights import Weights


@dataclass(frozen=True, eq=False)
class Site:
    """A module of the model that may be replaced, and the matrices that it multiplies by."""

    fqn: str
    module: nn.Module
    kind: Kind
    matrices: Matrices


@dataclass(frozen=True)
class Survey:
    """What is known of a model before planning.

    modules    the selected modules by name, without poolings; each is a site or refused, except the output
               projection of an attention, which is a matrix of the attention
    pools      the selected max poolings, by name
    sites      modules that may be replaced
    refused    name -> why the module has to stay unchanged
    recording  one run with the example inputs; empty without these
    """

    modules: Mapping[str, nn.Module]
    pools: Mapping[str, nn.Module]
    sites: Sequence[Site]
    refused: Mapping[str, str]
    recording: Recording

    @property
    def exceeds_cache(self) -> bool:
        """Whether the weights exceed the last-level cache, so that a run reads them from memory."""
        matrices = (matrix for site in self.sites for matrix in site.matrices.values())
        return sum(matrix.weights.nbytes for matrix in matrices) > last_level_cache_bytes()


@dataclass(frozen=True, eq=False)
class Product:
    """A product x · Wᵀ + bias that is planned as one matrix.

    sites      the site it belongs to; or several Linears that get the same input, whose matrices are
               stacked
    name       of the site's matrix; "" if it has only one
    weights    as planned: stacked, or with the following batch norm folded in
    followers  what the product's result goes straight into
    """

    sites: tuple[Site, ...]
    name: str
    weights: Weights
    followers: Followers = NOBODY

    @property
    def site_weights(self) -> list[Weights]:
        """The original weights of each site."""
        return [site.matrices[self.name].weights for site in self.sites]

    @property
    def sizes(self) -> list[int]:
        """Number of rows of each site."""
        return [len(weights.weight) for weights in self.site_weights]

    def is_same_as(self, other: Product) -> bool:
        """Whether both have the same weights, so that one plan does for both."""
        norms = self.followers.batch_norm, other.followers.batch_norm
        return (self.sites, self.name) == (other.sites, other.name) and norms[0] is norms[1]


def survey_of(
    model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: Any, *, named: bool
) -> Survey:
    """Surveys the modules, by fqn, and runs the model once. ValueError: it is not ready for inference.

    named   the modules were selected by name: include those that the run does not call
    """
    pools = {fqn: module for fqn, module in modules.items() if isinstance(module, nn.MaxPool2d)}
    modules = {fqn: module for fqn, module in modules.items() if fqn not in pools}
    require_inference(modules)
    # A parametrization may compute another weight in training mode, and write to buffers of its own.
    with evaluating(model), preserved(model):
        sites, refused = sites_of(modules, refusals(model, modules))
    if example_inputs is None:
        return Survey(modules, pools, sites, refused, Recording())
    every_pool = [module for module in model.modules() if isinstance(module, nn.MaxPool2d)]
    recording = record(model, [*(site.module for site in sites), *every_pool], example_inputs)
    if not named:
        # The weight of a layer that is not called may be read and multiplied by somebody else.
        hint = "name it in targets to convert it all the same"
        for site in sites:
            if site.module not in recording.called:
                refused[site.fqn] = f"no example input reached it ({hint})"
        sites = [site for site in sites if site.fqn not in refused]
    return Survey(modules, pools, sites, refused, recording)


def sites_of(
    modules: Mapping[str, nn.Module], refused: Mapping[str, str]
) -> tuple[list[Site], dict[str, str]]:
    """What may be replaced, and why the rest may not."""
    sites, reasons = [], dict(refused)
    projections = {id(m.out_proj) for m in modules.values() if isinstance(m, nn.MultiheadAttention)}
    for fqn, module in modules.items():
        if fqn in reasons or id(module) in projections:
            continue
        kind = kind_of(module)
        if kind is None:
            reasons[fqn] = f"{type(module).__name__} is a subclass that may compute something else"
            continue
        matrices = kind.matrices(module)
        if isinstance(matrices, str):
            reasons[fqn] = matrices
        else:
            sites.append(Site(fqn, module, kind, matrices))
    return sites, reasons


def products_of(model: nn.Module, survey: Survey, *, fuse: bool, fold: bool) -> list[Product]:
    """The products to plan.

    fuse   Linears that get the same input become one product
    fold   a batch norm that alone reads a layer's result is folded into its weights
    """
    recording = survey.recording
    following = followers(model, recording, fold=fold, fuse=fuse)
    groups: defaultdict[object, list[Site]] = defaultdict(list)
    for site in survey.sites:
        marks = recording.shared.get(site.module)
        together = fuse and marks and site.kind.shares_input
        groups[(marks, site.matrices[""].weights.weight.dtype) if together else site].append(site)
    products = []
    for sites in groups.values():
        if len(sites) > 1:
            stacked = _stacked([site.matrices[""].weights for site in sites])
            products.append(Product(tuple(sites), "", stacked))
            continue
        (site,) = sites
        after = following.get(site.module, NOBODY) if site.kind.fuses else NOBODY
        for name, matrix in site.matrices.items():
            products.append(Product((site,), name, _of_one(matrix.weights, after), after))
    return products


def with_weights_of_now(product: Product) -> Product:
    """The same product, of the weights that its modules have by now; its sites' matrices are replaced."""
    for site in product.sites:
        matrices = site.kind.matrices(site.module)
        assert not isinstance(matrices, str)
        assert isinstance(site.matrices, dict)
        site.matrices.update(matrices)
    weights = product.site_weights
    stacked = _stacked(weights) if len(weights) > 1 else _of_one(weights[0], product.followers)
    return replace(product, weights=stacked)


def _of_one(weights: Weights, after: Followers) -> Weights:
    # Of weights that are still in a file only shapes and dtypes are known.
    if after.batch_norm is None or weights.weight.is_meta:
        return weights
    return folded(weights, after.batch_norm)


def _stacked(parts: Sequence[Weights]) -> Weights:
    weight = torch.cat([part.weight for part in parts])
    found = [part.scales for part in parts if part.scales is not None]
    scales = torch.cat(found) if len(found) == len(parts) else None
    if all(part.bias is None for part in parts):
        return Weights(weight, None, scales)
    like = next(part.bias for part in parts if part.bias is not None)
    biases = [like.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in parts]
    return Weights(weight, torch.cat(biases), scales)
