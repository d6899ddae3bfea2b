"""convert, convert_ and explain. Times are scripted, except where a test is about the measurement itself."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convert_helpers import K, N, Script, assert_unchanged, kinds, linear, model, outputs_equal
from copies import by_pickle
from generators import tokens, values
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import parametrizations, prune

from sparseinfer import SparseLinear, convert, convert_, explain
from sparseinfer.convert import decisions
from sparseinfer.convert.candidates.choose import MAX_TOKENS
from sparseinfer.convert.plan import Plan, plan
from sparseinfer.convert.timing import timer

pytestmark = pytest.mark.usefixtures("script")


class TestConvert:
    def test_a_copy_that_computes_the_same(self) -> None:
        dense = model()
        before = copy.deepcopy(dense)
        fast = convert(dense)
        assert kinds(fast) == [SparseLinear, nn.ReLU, SparseLinear, nn.Linear]
        assert all(outputs_equal(fast, dense, m) for m in (1, 15, 16, 40))
        assert_unchanged(dense, before)
        assert fast[3].weight.data_ptr() != dense[3].weight.data_ptr()
        assert not hasattr(dense, "_sparseinfer_report")

    def test_in_place(self) -> None:
        dense = model()
        fast = copy.deepcopy(dense)
        kept = fast[3]
        assert convert_(fast) is fast
        assert kinds(fast) == [SparseLinear, nn.ReLU, SparseLinear, nn.Linear]
        assert fast[3] is kept
        assert outputs_equal(fast, dense)

    def test_a_model_that_is_one_linear(self) -> None:
        dense = linear()
        fast = convert(dense)
        assert type(fast) is SparseLinear
        assert outputs_equal(fast, dense)
        assert explain(fast).rows[0].layer == ""
        with pytest.raises(ValueError, match="model: expected a module that holds layers, got Linear itself"):
            convert_(dense)

    def test_a_module_used_twice_stays_one_module(self) -> None:
        shared = linear(K, K)
        dense = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared)).eval()
        for fast in (convert(dense), convert_(copy.deepcopy(dense))):
            assert type(fast[0]) is SparseLinear
            assert fast[0] is fast[2][0]
            assert len(explain(fast).rows) == 1

    def test_weights_that_became_sparse_are_held_only_packed(self) -> None:
        fast = convert(nn.Sequential(linear()), tokens=(32,))
        assert [name for name, _ in fast.named_parameters()] == ["0.bias"]
        assert [name for name, _ in fast.named_buffers()] == ["0.packing_0"]

    def test_training_flags_are_kept(self) -> None:
        dense = model().train()
        dense[2].eval()
        fast = convert(dense, example_inputs=tokens(4, K))
        assert [child.training for child in fast] == [True, True, False, True]
        assert [child.training for child in dense] == [True, True, False, True]

    def test_random_numbers_of_the_caller_are_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decisions, "Timer", timer.Timer)
        dense, state = model(), torch.get_rng_state()
        convert(dense, tokens=(3,))
        assert torch.equal(torch.get_rng_state(), state)

    def test_twice(self) -> None:
        fast = convert(model())
        again = convert(fast)
        assert kinds(again) == kinds(fast)
        assert [row.layer for row in explain(again).rows] == ["3"]

    def test_state_dict_round_trip(self) -> None:
        dense = model()
        state = convert(dense).state_dict()
        other = nn.Sequential(
            linear(seed=7), nn.ReLU(), linear(K, N, seed=8), linear(8, K, 0.0, seed=9)
        ).eval()
        fast = convert(other)
        fast.load_state_dict(state)
        assert outputs_equal(fast, dense)

    def test_deepcopy_and_pickle_keep_the_record(self) -> None:
        fast = convert(model())
        for twin in (copy.deepcopy(fast), by_pickle(fast)):
            assert explain(twin) == explain(fast)
            assert outputs_equal(twin, fast)


class TestSelection:
    def test_targets_ignore_and_filter(self) -> None:
        assert kinds(convert(model(), targets=["0"])) == [SparseLinear, nn.ReLU, nn.Linear, nn.Linear]
        assert kinds(convert(model(), ignore=["re:[03]$"])) == [nn.Linear, nn.ReLU, SparseLinear, nn.Linear]
        fast = convert(model(), filter_fn=lambda module, fqn: module.in_features == K)
        assert kinds(fast) == [SparseLinear, nn.ReLU, nn.Linear, nn.Linear]

    @pytest.mark.parametrize("function", [convert, convert_])
    def test_a_filter_that_selects_nothing_warns_here(self, function: Callable[..., nn.Module]) -> None:
        with pytest.warns(UserWarning, match="got none of 3") as caught:
            function(model(), filter_fn=lambda module, fqn: False)
        assert caught[0].filename == __file__


class TestZeros:
    """Zeros that torch's own pruning made, in both of its ways."""

    def pruned(self) -> nn.Sequential:
        dense = model()
        for layer in (dense[0], dense[2]):
            layer.weight.data.copy_(values(*layer.weight.shape, integer=True))
            prune.random_unstructured(layer, "weight", amount=0.8)
        return dense

    def parametrized(self) -> nn.Sequential:
        dense = model()
        for layer in (dense[0], dense[2]):
            layer.weight.data.copy_(values(*layer.weight.shape, integer=True))
        sparsifier = WeightNormSparsifier(sparsity_level=0.8, sparse_block_shape=(1, 1), zeros_per_block=1)
        sparsifier.prepare(dense, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])
        sparsifier.step()
        return dense

    @pytest.mark.parametrize("make", ["pruned", "parametrized"])
    def test_are_read(self, make: str) -> None:
        dense = getattr(self, make)()
        for fast in (convert(dense), convert_(copy.deepcopy(dense) if make == "parametrized" else dense)):
            reference = getattr(self, make)() if fast is dense else dense
            assert kinds(fast)[:3] == [SparseLinear, nn.ReLU, SparseLinear]
            assert not any("weight_orig" in name or "parametrizations" in name for name in fast.state_dict())
            assert fast is dense or outputs_equal(fast, reference)
        assert explain(fast).rows[0].sparsity == pytest.approx(0.8, abs=0.01)

    def test_masks_changed_since_the_last_forward_count(self) -> None:
        dense = self.pruned()
        dense[0].weight_mask.zero_()
        fast = convert(dense)
        assert fast[0].nnz == 0
        assert outputs_equal(fast, dense)

    def test_a_pruned_bias(self) -> None:
        dense = self.pruned()
        prune.random_unstructured(dense[0], "bias", amount=0.5)
        assert outputs_equal(convert(dense), dense)

    def test_several_prunings_of_one_weight(self) -> None:
        dense = self.pruned()
        prune.random_unstructured(dense[0], "weight", amount=0.5)
        fast = convert(dense)
        assert fast[0].sparsity > 0.85
        assert outputs_equal(fast, dense)

    def test_pruned_layers_that_stay_dense_are_copied_whole(self, script: Script) -> None:
        script.ratio = lambda packing, m: 2.0
        dense = self.pruned()
        fast = convert(dense)
        assert kinds(fast) == kinds(dense)
        assert outputs_equal(fast, dense)
        dense[0].weight_mask.zero_()
        assert not outputs_equal(fast, dense)

    def test_other_parametrizations(self) -> None:
        dense = nn.Sequential(parametrizations.weight_norm(linear())).eval()
        fast = convert(dense)
        assert type(fast[0]) is SparseLinear
        x = tokens(4, K)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), dense(x))


class TestPlan:
    def test_every_bucket_takes_its_best_layout(self, script: Script) -> None:
        script.ratio = lambda layout, m: {"sell": 0.6, "rowlist": 0.4}.get(layout.packing, 0.7)
        fast = convert(nn.Sequential(linear()), tokens=(1, 2, 16, 128), memory="speed")
        row = explain(fast).rows[0]
        assert [(limit, kernel.split("_")[1]) for limit, kernel in row.kernels] == [
            (4, "sell"),
            (47, "rowlist"),
            (None, "rowlist"),
        ]
        assert (row.tokens, row.sparse_us) == ((1, 2, 16, 128), (6.0, 6.0, 4.0, 4.0))

    @pytest.mark.parametrize(("counts", "packing"), [((1, 4), "sell_f32"), ((128,), "rowgroup_f32")])
    def test_one_packing_where_one_is_enough(
        self, script: Script, counts: tuple[int, ...], packing: str
    ) -> None:
        script.ratio = lambda layout, m: 0.9 if layout.packing == "rowlist" else 0.5
        fast = convert(nn.Sequential(linear()), tokens=counts, memory="speed")
        assert [name for name, _ in fast.named_buffers()] == ["0.packing_0"]
        assert f"packings=[{packing}]" in re.sub(r"_p\d+", "", repr(fast))
        assert all(outputs_equal(fast, nn.Sequential(linear()), m) for m in (1, 40))

    def test_what_is_measured_depends_on_sparsity_and_tokens(self, script: Script) -> None:
        dense = nn.Sequential(*(linear(100, K, s) for s in (0.2, 0.5, 0.8, 0.95)))
        convert(dense, tokens=(1, 128), memory="speed")
        assert [(m, [layout.packing for layout in layouts]) for layouts, m in script.calls] == [
            (1, []),
            (128, []),
            (1, ["sell", "bitmap"]),
            (128, ["rowgroup"]),
            (1, ["sell"]),
            (128, ["rowgroup", "rowlist"]),
            (1, ["sell"]),
            (128, ["rowlist"]),
        ]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_dtypes_keep_their_results(self, script: Script, dtype: torch.dtype) -> None:
        dense = nn.Sequential(linear()).to(dtype)
        fast = convert(dense)
        assert kinds(fast) == [SparseLinear]
        for m in (1, 5, 20, 200):
            x = tokens(m, K, integer=True, dtype=dtype)
            with torch.no_grad():
                assert fast(x).dtype == dtype
                assert torch.equal(fast(x), dense(x))
        assert torch.equal(fast[0].weight, dense[0].weight)
        assert fast.state_dict()["0.values"].dtype == dtype

    def test_dense_where_dense_is_faster(self, script: Script) -> None:
        script.ratio = lambda layout, m: 3.0 if m == 128 else 0.9
        fast = convert(nn.Sequential(linear()), tokens=(1, 128))
        assert kinds(fast) == [nn.Linear]
        row = explain(fast).rows[0]
        assert row.decision == "dense"
        reason, both, size = row.reason.split("; ")
        assert reason.startswith("dense is faster: 10.0 us against 30.0 us")
        assert reason.endswith(" at m=128")
        assert both.startswith("1.1x at m=1 with memory=1.")
        assert size.startswith("its 3 KiB fit in L2")
        assert row.kernels == ()
        assert row.nbytes == row.dense_nbytes

    def test_a_loss_at_one_token_count_is_not_made_up_for_at_another(self, script: Script) -> None:
        script.ratio = lambda layout, m: 1.5 if m == 1 else 0.4
        assert kinds(convert(nn.Sequential(linear()), tokens=(1, 16))) == [nn.Linear]
        assert kinds(convert(nn.Sequential(linear()), tokens=(16,))) == [SparseLinear]

    def test_a_tie_stays_dense(self, script: Script) -> None:
        script.ratio = lambda layout, m: 1.0
        assert kinds(convert(nn.Sequential(linear()))) == [nn.Linear]

    def test_too_dense_is_measured_densely_only(self, script: Script) -> None:
        row = explain(convert(nn.Sequential(linear(sparsity=0.1)))).rows[0]
        assert row.reason.startswith("too dense to win")
        assert script.calls == [((), 1), ((), 16), ((), 128)]

    def test_many_tokens_are_measured_as_fewer(self, script: Script) -> None:
        convert(nn.Sequential(linear()), tokens=(300, 5000))
        assert [m for _, m in script.calls] == [MAX_TOKENS]


class TestCompact:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_one_packing_of_fewer_bytes_for_any_number_of_tokens(
        self, script: Script, dtype: torch.dtype
    ) -> None:
        script.ratio = lambda layout, m: 3.0  # slower than dense: it was not asked for speed
        dense = nn.Sequential(linear(256, 512, 0.6)).to(dtype)
        fast = convert(dense, memory="compact")
        assert [name for name, _ in fast.named_buffers()] == ["0.packing_0"]
        row = explain(fast).rows[0]
        assert row.decision == "sparse"
        assert [limit for limit, _ in row.kernels] == [15, None]
        assert row.nbytes == fast[0].nbytes < 0.75 * row.dense_nbytes
        for m in (1, 15, 16, 200):
            x = tokens(m, 512, integer=True, dtype=dtype)
            with torch.no_grad():
                assert torch.equal(fast(x), dense(x))

    def test_dense_where_dense_is_smaller(self, script: Script) -> None:
        row = explain(convert(nn.Sequential(linear(sparsity=0.0)), memory="compact")).rows[0]
        assert row.decision == "dense"
        assert row.reason.startswith("dense is smaller: 3,840 bytes against")


class TestBadInput:
    @pytest.mark.parametrize("function", [convert, convert_])
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"tokens": ()}, ValueError, "tokens: expected positive integers"),
            ({"tokens": (0,)}, ValueError, "tokens: expected positive integers"),
            ({"tokens": (1.5,)}, TypeError, "tokens: expected a sequence of integers"),
            (
                {"memory": "small"},
                ValueError,
                "memory: expected 'speed', 'compact' or a positive number, got",
            ),
            ({"tokens": 16}, TypeError, "tokens: expected a sequence of integers"),
            ({"targets": 3}, TypeError, "targets"),
            ({"targets": "re:("}, ValueError, "targets"),
            ({"filter_fn": 3}, TypeError, "filter_fn"),
        ],
    )
    def test_arguments(
        self,
        function: Callable[..., nn.Module],
        arguments: dict[str, object],
        error: type[Exception],
        message: str,
    ) -> None:
        dense = model()
        before = copy.deepcopy(dense)
        with pytest.raises(error, match=message):
            function(dense, **arguments)
        assert_unchanged(dense, before)

    @pytest.mark.parametrize("function", [convert, convert_, explain])
    def test_not_a_module(self, function: Callable[..., object]) -> None:
        with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
            function(3)

    def test_no_data(self) -> None:
        with pytest.raises(ValueError, match=r"0.weight: expected a parameter with data, got a meta tensor"):
            convert(nn.Sequential(nn.Linear(4, 4, device="meta")))
        with pytest.raises(ValueError, match=r"0.weight: expected an initialised parameter, got a lazy one"):
            convert(nn.Sequential(nn.LazyLinear(4)))

    def test_in_the_middle_of_training(self) -> None:
        dense = model().train()
        dense(tokens(3, K)).sum().backward()
        with pytest.raises(ValueError, match=r"0.weight: expected no gradient.*model.eval\(\)"):
            convert_(dense)
        assert kinds(convert_(dense.eval()))[0] is SparseLinear

    def test_a_failure_while_packing_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = model()
        before = copy.deepcopy(dense)
        calls: list[Any] = []

        def fail_at_the_second(*args: Any) -> Plan:
            calls.append(args)
            if len(calls) == 2:
                raise MemoryError
            return plan(*args)

        monkeypatch.setattr(decisions, "plan", fail_at_the_second)
        with pytest.raises(MemoryError):
            convert_(dense)
        assert_unchanged(dense, before)
