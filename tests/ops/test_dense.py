"""The dense competitors compute the same thing."""

from __future__ import annotations

import pytest
import torch
from generators import noncontiguous, tokens, values
from torch.nn import functional as F

from sparseinfer.ops.dense import dense_candidates, prepack, prepack_available


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40,), (0, 40), (1, 40), (17, 40), (2, 3, 40)])
def test_all_equal_on_integers(shape: tuple[int, ...], bias: bool) -> None:
    w, b = values(24, 40, integer=True), values(24, integer=True) if bias else None
    x = values(*shape, integer=True)
    for name, linear in dense_candidates(noncontiguous(w), b, tokens=16).items():
        assert torch.equal(linear(x), F.linear(x, w, b)), name


def test_prepacked_is_among_them_where_torch_has_it() -> None:
    w = values(8, 8)
    assert ("onednn-prepacked" in dense_candidates(w)) == prepack_available(w)
    assert prepack_available(w) == torch.backends.mkldnn.is_available()


@pytest.mark.parametrize("w", [torch.zeros(0, 8), torch.zeros(8, 0), torch.zeros(8, 8, dtype=torch.float64)])
def test_what_cannot_be_prepacked_is_still_multiplied(w: torch.Tensor) -> None:
    assert not prepack_available(w)
    with pytest.raises(RuntimeError, match="weight: expected a non-empty float32 or bfloat16 tensor"):
        prepack(w)
    assert list(dense_candidates(w)) == ["F.linear"]
    x = tokens(3, w.shape[1]).to(w.dtype)
    assert torch.equal(dense_candidates(w)["F.linear"](x), F.linear(x, w))
