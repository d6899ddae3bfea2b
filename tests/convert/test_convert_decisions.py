"""Which layers stay dense, where token counts come from, what explain says; times are scripted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from convert_helpers import K, N, Script, assert_unchanged, kinds, linear, model
from generators import values, weight
from torch import Tensor, nn

from sparseinfer import SparseLinear, SparseMultiheadAttention, convert, convert_, explain
from sparseinfer.convert import decisions
from sparseinfer.convert.candidates.linear import LinearCandidates
from sparseinfer.convert.plan import Plan
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.convert.timing import ranking, timer
from sparseinfer.modules import PrepackedLinear
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import PLAIN, PREPACKED, SEMI_STRUCTURED

pytestmark = pytest.mark.usefixtures("script")


class TestExampleInputs:
    @pytest.mark.parametrize("wrap", [lambda x: (x,), lambda x: [x], lambda x: {"input": x}, lambda x: x])
    def test_token_counts_are_learned(self, script: Script, wrap: Callable[[Tensor], object]) -> None:
        dense = nn.Sequential(linear()).eval()
        row = explain(convert(dense, example_inputs=wrap(torch.ones(2, 3, K)))).rows[0]
        assert row.tokens == (6,)
        assert not dense[0]._forward_pre_hooks

    def test_tokens_add_to_what_the_run_brings(self) -> None:
        class Partial(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused = linear(), linear()

            def forward(self, x: Tensor) -> Tensor:
                return self.used(self.used(x)[..., :1].expand(-1, K))

        given = {"example_inputs": torch.ones(9, K), "tokens": (2,)}
        used, unused = explain(convert(Partial(), **given)).rows
        assert used.tokens == (2, 9)
        assert (unused.decision, unused.tokens) == ("dense", ())
        assert unused.reason.startswith("no example input reached it")
        rows = explain(convert(Partial(), targets="Linear", **given)).rows
        assert [(row.decision, row.tokens) for row in rows] == [("sparse", (2, 9)), ("sparse", (2,))]

    def test_many_counts_are_thinned_out(self) -> None:
        class Decode(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                for count in range(1, 41):
                    self[0](x[:count])
                return x

        row = explain(convert(Decode(linear()), example_inputs=torch.ones(40, K))).rows[0]
        assert row.tokens == (1, 14, 27, 40)

    def test_empty_examples_say_nothing(self) -> None:
        row = explain(convert(model(), example_inputs=torch.ones(0, K))).rows[0]
        assert row.tokens == (1, 16, 128)

    @pytest.mark.parametrize("function", [convert, convert_])
    def test_inputs_that_do_not_fit(self, function: Callable[..., nn.Module]) -> None:
        dense = nn.Sequential(model(), nn.BatchNorm1d(8)).train()
        before = copy.deepcopy(dense)
        with pytest.raises(
            ValueError, match=r"example_inputs: expected inputs that the model accepts, got Runtime"
        ):
            function(dense, example_inputs=(torch.ones(2, K + 1),))
        assert_unchanged(dense, before)
        assert all(module.training for module in dense)
        assert not any(module._forward_pre_hooks for module in dense.modules())

    def test_the_run_leaves_no_trace(self) -> None:
        dense = nn.Sequential(linear(), nn.BatchNorm1d(N), nn.Dropout()).train()
        before, state = copy.deepcopy(dense), torch.get_rng_state()
        convert(dense, example_inputs=torch.ones(3, K))
        assert_unchanged(dense, before)
        assert torch.equal(torch.get_rng_state(), state)


class TestStaysDense:
    """Layers that must not be replaced, each with its reason."""

    def reason(self, dense: nn.Module, fqn: str = "0") -> str:
        fast = convert(dense)
        assert type(fast.get_submodule(fqn)) is type(dense.get_submodule(fqn))
        (row,) = (row for row in explain(fast).rows if row.layer == fqn)
        assert row.decision == "dense"
        return row.reason

    def test_attention(self) -> None:
        dense = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
        for parameter in dense.parameters():
            nn.init.zeros_(parameter) if parameter.ndim > 1 else None
        fast = convert(dense, ignore=["self_attn"])
        (row,) = (row for row in explain(fast).rows if row.layer == "self_attn.out_proj")
        assert "NonDynamicallyQuantizableLinear is a subclass" in row.reason
        assert type(fast.self_attn) is SparseMultiheadAttention
        x = torch.randn(2, 5, 32)
        with torch.no_grad():
            assert torch.allclose(fast(x), dense(x), atol=1e-6)

    def test_tied_weights(self) -> None:
        dense = nn.Sequential(nn.Embedding(N, K), linear())
        dense[0].weight = dense[1].weight
        assert self.reason(dense, "1") == "its weight is shared with '0'"
        fast = convert(dense)
        assert fast[0].weight is fast[1].weight
        dense[0].weight = nn.Parameter(dense[1].weight.data)
        assert self.reason(dense, "1") == "its weight is shared with '0'"

    def test_subclasses(self) -> None:
        class Scaled(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        layer = Scaled(K, N)
        nn.init.zeros_(layer.weight)
        assert "Scaled is a subclass" in self.reason(nn.Sequential(layer))

    def test_hooks_and_replaced_forwards(self) -> None:
        hooked = nn.Sequential(linear())
        hooked[0].register_forward_hook(lambda module, args, y: y + 1)
        assert "hooks" in self.reason(hooked)
        replaced = nn.Sequential(linear())
        replaced[0].forward = lambda x: x
        assert "forward has been replaced" in self.reason(replaced)

    def test_other_dtypes(self) -> None:
        assert "its dtype is torch.float64" in self.reason(nn.Sequential(linear()).double())
        mixed = nn.Sequential(linear())
        mixed[0].bias.data = mixed[0].bias.data.bfloat16()
        assert "its weight is torch.float32 and its bias torch.bfloat16" in self.reason(mixed)

    def test_other_tensors(self) -> None:
        dense = nn.Sequential(linear())
        dense[0].weight = nn.Parameter(dense[0].weight.detach().to_sparse_csr(), requires_grad=False)
        (row,) = explain(convert_(dense)).rows
        assert "layout torch.sparse_csr, not a plain tensor" in row.reason

    def test_odd_shapes(self) -> None:
        dense = nn.Sequential(linear())
        dense[0].bias = nn.Parameter(torch.ones(1))
        assert "are not [n, k] and [n]" in self.reason(dense)
        dense = nn.Sequential(linear())
        dense[0].weight = nn.Parameter(torch.zeros(N, 0))
        assert "no elements" in self.reason(dense)


class TestExplain:
    def test_rows(self) -> None:
        fast = convert(model())
        explained = explain(fast)
        assert [row.layer for row in explained.rows] == ["0", "2", "3"]
        assert [row.decision for row in explained.rows] == ["sparse", "sparse", "dense"]
        first, _, last = explained.rows
        assert first.shape == (N, K)
        assert first.sparsity == pytest.approx(fast[0].sparsity)
        assert first.reason == "2.0x / 2.0x / 2.0x dense, with relu"
        assert (first.dense_nbytes, first.nbytes) == ((N * K + N) * 4, fast[0].nbytes)
        assert last.nbytes == last.dense_nbytes == (8 * K + 8) * 4
        assert explained.nbytes == sum(row.nbytes for row in explained.rows)

    def test_table_and_json(self) -> None:
        dense = nn.ModuleDict({"[red]": nn.Sequential(linear())})
        explained = explain(convert(dense, memory="speed"))
        text = str(explained)
        assert "1 of 1 layers sparse" in text
        assert "[red].0" in text
        assert "spmm_sell_f32" in text
        parsed = json.loads(explained.to_json())
        assert parsed["nbytes"] == explained.nbytes
        assert parsed["layers"][0]["layer"] == "[red].0"
        assert parsed["layers"][0]["kernels"][0][0] == 4

    def test_a_model_without_a_record(self) -> None:
        layer = convert(nn.Sequential(linear()))[0]
        (row,) = explain(nn.Sequential(nn.ReLU(), layer)).rows
        assert (row.layer, row.decision, row.tokens) == ("1", "sparse", ())
        assert row.nbytes == layer.nbytes
        assert row.dense_nbytes == (N * K + N) * 4
        assert explain(nn.ReLU()).rows == ()


class TestMeasurement:
    def test_times_every_way_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ranking, "_is_sure", lambda logs: True)  # remembered, however busy the machine
        weights = Weights(weight("random", 64, 64), values(64))
        candidates = LinearCandidates(weights, weights, torch.float32)
        layouts = (Layout("sell"), Layout("rowlist", panel=384))
        first = timer.Timer()(candidates, layouts, 4)
        assert (first.tokens, first.source) == (4, "measured")
        assert "F.linear" in first.dense
        assert set(first.sparse) == set(layouts)
        assert all(us > 0 for us in (*first.dense.values(), *first.sparse.values()))
        assert first.dense_us == min(first.dense.values())
        assert timer.Timer()(candidates, layouts, 4) == replace(first, source="remembered")

    @pytest.mark.slow
    def test_a_large_sparse_layer_wins_and_a_dense_one_does_not(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decisions, "Timer", timer.Timer)
        dense = nn.Sequential(linear(1024, 512, 0.98), linear(512, 1024, 0.0)).eval()
        fast = convert(dense, tokens=(64,))
        assert kinds(fast)[0] is SparseLinear
        assert kinds(fast)[1] in (nn.Linear, PrepackedLinear)
        row = explain(fast).rows[0]
        assert row.sparse_us[0] < row.dense_us[0]


@pytest.mark.parametrize(
    ("way", "kind"), [(PLAIN, "dense"), (PREPACKED, "prepacked"), (SEMI_STRUCTURED, "2:4")]
)
def test_what_a_dense_way_is_called(way: str, kind: str) -> None:
    assert Plan("", dense_way=way).dense_kind == kind
