"""Takes parts of a build back: their layers stay as they are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeAlias

from torch import nn

from sparseinfer.convert.assembly.replacements import Build, off_the_fast_path
from sparseinfer.convert.decisions import Decision
from sparseinfer.convert.survey.survey import Survey

# Modules of the model that are replaced together or not at all.
Part: TypeAlias = "frozenset[nn.Module]"


def parts_of(survey: Survey, decisions: Sequence[Decision], built: Build) -> list[Part]:
    """What can be taken back by itself, in the order of the model: Linears that share a matrix together."""
    together: dict[nn.Module, Part] = {}
    for decision in decisions:
        if decision.plan.is_sparse:
            part = frozenset(site.module for site in decision.product.sites)
            together |= dict.fromkeys(part, part)
    multiplied = {site for site, _ in built.multipliers if site not in built.left_dense}
    sites = (site.module for site in survey.sites if site in multiplied)
    modules = (*sites, *(survey.pools[fqn] for fqn in built.pools))
    return list(dict.fromkeys(together.get(module, frozenset([module])) for module in modules))


def reduced(
    model: nn.Module,
    survey: Survey,
    built: Build,
    parts: Sequence[Part],
    left: Collection[Part],
    reason: str,
    instead: Build | None = None,
) -> Build:
    """The build without those of its parts that are `left`, because of `reason`.

    instead   what replaces their layers then; those that it has not stay as they are
    """
    leaving: set[nn.Module] = set().union(*left)
    kept = set().union(*parts) - leaving
    others, multipliers = ({}, {}) if instead is None else (instead.replacements, instead.multipliers)
    others = {old: new for old, new in others.items() if old in leaving}
    replacements = {**{old: new for old, new in built.replacements.items() if old in kept}, **others}
    stay = leaving.difference(others)
    used = set(replacements.values())
    return replace(
        built,
        replacements={**replacements, **off_the_fast_path(model, replacements)},
        multipliers={
            **built.multipliers,
            **{(site, name): by for (site, name), by in multipliers.items() if site.module in others},
        },
        left_dense={
            **built.left_dense,
            **{site: reason for site in survey.sites if site.module in stay},
        },
        shared=[(fqn, first) for fqn, first in built.shared if first in used],
        pools={fqn: pool for fqn, pool in built.pools.items() if pool.module in used},
    )
