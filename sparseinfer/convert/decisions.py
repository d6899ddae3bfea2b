"""Makes a plan for every product of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparseinfer._progress import Progress
from sparseinfer.convert.candidates.choose import candidates_of
from sparseinfer.convert.candidates.linear import LinearCandidates
from sparseinfer.convert.options import ConvertOptions
from sparseinfer.convert.plan import ROUNDING, Plan, dense_plan, plan, single_plan
from sparseinfer.convert.survey.recording import Recording
from sparseinfer.convert.survey.survey import Product, Survey
from sparseinfer.convert.timing.timer import Timer
from sparseinfer.modules.sparse_or_dense import BESIDE
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import PLAIN, PREPACKED


@dataclass(frozen=True, eq=False)
class Decision:
    """The plan of one product.

    plain   if a batch norm is folded into the product: the plan of the layer by itself, for calls that the
            batch norm does not follow
    dense   the best plan without packings, if it is another and holds the weight otherwise than the layer
    """

    product: Product
    plan: Plan
    plain: Plan | None = None
    dense: Plan | None = None


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
    # Layers of several matrices take only what multiplies like one Linear.
    beside = BESIDE if isinstance(candidates.variants[0], LinearCandidates) and not product.name else ()
    alone = product.followers.batch_norm is None
    planned = plan(candidates, tokens, timer, options.memory_limit, beside if alone else ())
    if alone:
        dense = dense_plan(planned.times, planned.reason) if beside else planned
        is_other = planned.is_sparse and dense.dense_way != PLAIN
        return Decision(product, planned, dense=dense if is_other else None)
    if not planned.is_sparse:
        rounds = planned.dense_way in ROUNDING
        return Decision(product, planned, replace(planned, dense_way=PREPACKED) if rounds else None)
    plain = replace(product, weights=product.site_weights[0])
    exact_candidates, _ = candidates_of(plain, recording, options.exact())
    assert not isinstance(exact_candidates, str)
    (exact,) = exact_candidates.variants
    # A region multiplies by the layer without its batch norm, as quickly as by the one that was planned.
    layout = planned.chosen[-1] if planned.chosen else None
    allowed = planned.times and layout in exact.layouts(planned.times[-1].tokens)
    held = layout if isinstance(layout, Layout) and allowed else exact.compact_layout()
    return Decision(product, planned, single_plan(exact, held))
