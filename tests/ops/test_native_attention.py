"""Native attention against the formula in fp64, at every level that this machine has."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sparseinfer import ops

EPS = torch.finfo(torch.float32).eps


def heads(generator, batch, heads, tokens, dim, *, joined=False):
    """[batch, heads, tokens, dim] as a view of projections; `joined`: of q, k and v in one."""
    width = 3 * heads * dim if joined else heads * dim
    x = torch.randn(batch, tokens, width, generator=generator)
    return x[..., : heads * dim].view(batch, tokens, heads, dim).transpose(1, 2)


def reference(q, k, v, mask, scale):
    scores = scale * q.double() @ k.double().transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.double()
    largest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - largest.masked_fill(largest == -math.inf, 0.0))
    return weights / weights.sum(-1, keepdim=True).masked_fill(largest == -math.inf, 1.0) @ v.double()


def tolerance(q, k, v, scale):
    """Scores are off by (dim + 3) eps of their terms, exponentials by 4 eps more, sums by eps a key."""
    terms = (abs(scale) * q.abs().double() @ k.abs().double().transpose(-1, -2)).amax().item()
    return EPS * (2 * (q.shape[-1] + 3) * (terms + 8) + 2 * k.shape[2] + 8) * v.abs().amax().item()


def masks(generator, batch, heads, queries, keys):
    yield None
    yield torch.rand(batch, 1, 1, keys, generator=generator) > 0.3
    yield torch.rand(queries, keys, generator=generator) > 0.5
    yield torch.randn(batch, heads, queries, keys, generator=generator)
    yield torch.randn(1, heads, queries, 1, generator=generator)
    yield (torch.rand(batch, 1, queries, keys, generator=generator) > 0.5).float() * torch.finfo(
        torch.float32
    ).min


SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 7, 9),
    (1, 2, 13, 128, 64),
    (1, 2, 6, 129, 80),
    (3, 1, 17, 300, 5),
    (1, 1, 97, 33, 200),
]


@pytest.mark.parametrize("sizes", SIZES)
def test_matches_the_formula_for_any_mask_and_split(sizes):
    generator = torch.Generator().manual_seed(0)
    batch, n, queries, keys, dim = sizes
    q = heads(generator, batch, n, queries, dim, joined=True)
    k, v = heads(generator, batch, n, keys, dim), heads(generator, batch, n, keys, dim, joined=True)
    for mask in masks(generator, batch, n, queries, keys):
        y = ops.attention(q, k, v, mask, dim**-0.5)
        assert (y - reference(q, k, v, mask, dim**-0.5)).abs().max() <= tolerance(q, k, v, dim**-0.5)
        for parts in (1, 2, 3, 7):
            assert torch.equal(y, ops.attention(q, k, v, mask, dim**-0.5, parts=parts))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*(st.integers(1, most) for most in (3, 3, 20, 150, 40))),
    st.sampled_from([0.0, 0.125, -1.5, 30.0]),
    st.integers(0, 5),
    st.integers(0, 2**32),
)
def test_any_sizes_and_scales(sizes, scale, which, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, n, queries, keys, dim = sizes
    q = heads(generator, batch, n, queries, dim)
    k, v = (torch.randn(batch, n, keys, dim, generator=generator) for _ in range(2))
    mask = next(itertools.islice(masks(generator, batch, n, queries, keys), which, None))
    y = ops.attention(q, k, v, mask, scale)
    assert (y - reference(q, k, v, mask, scale)).abs().max() <= tolerance(q, k, v, scale)


def test_keys_that_a_mask_leaves_out_change_no_bit():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (heads(generator, 2, 2, 40, 24) for _ in range(3))
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    mask[..., 30:] = False
    y = ops.attention(q, k, v, mask, 0.2)
    k[:, :, 30:], v[:, :, 30:] = 1e4, -1e30
    assert torch.equal(ops.attention(q, k, v, mask, 0.2), y)
    added = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    assert torch.equal(ops.attention(q, k, v, added, 0.2), y)


def test_weights_of_equal_scores_are_equal_to_the_bit():
    v = torch.arange(64.0).view(1, 1, 64, 1).expand(1, 1, 64, 4).contiguous()
    q = torch.zeros(1, 1, 8, 4)
    assert torch.equal(ops.attention(q, torch.ones_like(v), v, None, 1.0), torch.full((1, 1, 8, 4), 31.5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "mask"])
def test_nan_and_infinity_go_where_torch_has_them(value, where):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: heads(generator, 1, 2, 20, 16) for name in ("q", "k", "v")}
    tensors["mask"] = torch.zeros(1, 2, 20, 20)
    tensors[where][0, 1, 3, 2] = value
    with torch.inference_mode():
        y = ops.attention(*tensors.values(), 0.25)
        expected = F.scaled_dot_product_attention(*tensors.values(), scale=0.25)
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.allclose(y, expected, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_a_query_without_keys_gets_zeros_and_stays_nan_with_nan(kind):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (heads(generator, 1, 2, 20, 16) for _ in range(3))
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[3] = False
    given = mask if kind is torch.bool else torch.zeros(20, 20).masked_fill(~mask, -math.inf)
    with torch.inference_mode():
        y = ops.attention(q, k, v, given, 0.25)
        assert torch.equal(y[:, :, 3], torch.zeros(1, 2, 16))
        v[0, 0, 5, 1] = math.nan
        y = ops.attention(q, k, v, given, 0.25)
        expected = F.scaled_dot_product_attention(q, k, v, given, scale=0.25)
    assert torch.equal(y.isnan(), expected.isnan())


def test_strides_are_those_of_torch():
    q, k, v = (heads(torch.Generator(), 2, 3, 9, 16) for _ in range(3))
    with torch.inference_mode():
        assert ops.attention(q, k, v, None, 0.25).stride() == F.scaled_dot_product_attention(q, k, v).stride()


def test_bad_input_is_named():
    q = torch.randn(1, 2, 5, 4)
    for arguments, name in [
        ((q, q[..., :3], q, None), "k, v"),
        ((q, q[:, :1], q[:, :1], None), "k"),
        ((q, q[:, :, :0], q[:, :, :0], None), "k"),
        ((q.double(), q, q, None), "q"),
        ((q, q, q.half(), None), "v"),
        ((q, q, q, torch.ones(5, 5, dtype=torch.int32)), "mask"),
    ]:
        with pytest.raises(ValueError, match=f"{name}: expected"):
            ops.attention(*arguments, 0.5)
    with pytest.raises(RuntimeError):
        ops.attention(q, q, q, torch.ones(4, 5), 0.5)
