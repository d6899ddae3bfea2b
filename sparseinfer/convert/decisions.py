"""Makes a plan for every product of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparseinfer._progress import Progress
from sparseinfer.convert.candidates.choose import candidates_of
from sparseinfer.convert.options import ConvertOptions
from sparseinfer.convert.plan import Plan, compact_plan, plan
from sparseinfer.convert.survey.recording import Recording
from sparseinfer.convert.survey.survey import Product, Survey
from sparseinfer.convert.timing.timer import Timer
from sparseinfer.ops.dense import DENSE_WAYS, PREPACKED


@dataclass(frozen=True)
class Decision:
    """The plan of one product.

    plain   if a batch norm is folded into the product: the plan of the layer by itself, for calls that the
            batch norm does not follow
    """

    product: Product
    plan: Plan
    plain: Plan | None = None


def decide(
    products: Sequence[Product], survey: Survey, options: ConvertOptions, earlier: Sequence[Decision] = ()
) -> list[Decision]:
    """One decision for each product, in order; reuses `earlier` decisions made with the same options."""
    decisions = []
    with Progress("planning", len(products)) as progress:
        timer = Timer(
            measure=options.measure,
            budget_s=options.budget_s,
            cold=survey.exceeds_cache,
            on_start=progress.describe,
        )
        for product in products:
            known = (decision for decision in earlier if decision.product.is_same_as(product))
            decision = next(known, None) or _decided(product, survey.recording, options, timer)
            decisions.append(replace(decision, product=product))
            progress.advance()
    return decisions


def _decided(product: Product, recording: Recording, options: ConvertOptions, timer: Timer) -> Decision:
    candidates, tokens = candidates_of(product, recording, options)
    if isinstance(candidates, str):
        return Decision(product, Plan(candidates))
    planned = plan(candidates, tokens, timer, options.memory_limit)
    if product.followers.batch_norm is None:
        return Decision(product, planned)
    if not planned.is_sparse:
        rounds = DENSE_WAYS[planned.dense_way].rounds_to is not None
        return Decision(product, planned, replace(planned, dense_way=PREPACKED) if rounds else None)
    alone = replace(product, weights=product.site_weights[0])
    exact_candidates, _ = candidates_of(alone, recording, options.exact())
    assert not isinstance(exact_candidates, str)
    (exact,) = exact_candidates.variants
    return Decision(product, planned, compact_plan(exact))
