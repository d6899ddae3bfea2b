"""SparseLSTM, SparseGRU and SparseRNN compute what nn.LSTM, nn.GRU and nn.RNN compute."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from copies import by_pickle
from generators import values, weight
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from sparseinfer.formats import CSR
from sparseinfer.modules import RecurrentCell, SparseGRU, SparseLinear, SparseLSTM, SparseRNN

# nn.LSTM says this once when it is given proj_size.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")

K, H, T, N = 10, 8, 6, 3
EPS = torch.finfo(torch.float32).eps
SPARSE = {nn.LSTM: SparseLSTM, nn.GRU: SparseGRU, nn.RNN: SparseRNN}


def dense(kind: type[nn.RNNBase], **options: Any) -> nn.RNNBase:
    """Pruned; recurrent weights so small that errors grow slowly from step to step."""
    rnn = kind(K, H, **options).eval()
    for seed, (name, parameter) in enumerate(rnn.named_parameters()):
        if parameter.dim() == 2:
            scale = 32 if "_hh_" in name else 16
            parameter.data = weight("random", *parameter.shape, 0.7, seed=seed) / scale
        else:
            parameter.data = values(*parameter.shape, seed=seed) / 16
    return rnn


def inputs(*shape: int) -> Tensor:
    return values(*shape, seed=1000) / 4


def sparse(rnn: nn.RNNBase) -> nn.Module:
    kind = SPARSE[type(rnn)]
    parts = [[SparseLinear.from_linear(linear) for linear in cell] for cell in kind.linears(rnn)]
    return kind.from_rnn(rnn, parts)


@torch.no_grad()
def bound(rnn: nn.RNNBase, x: Tensor, hx: Any) -> float:
    """How far the results in float32 may be from those in float64.

    The argument of a gate, at most a, is off by d: 2·eps·(k + 1)·max|x|·max|w| for each of its two products,
    and the errors of x and of the last state times the rows of the matrices. Sigmoids, at most s, pass on a
    quarter of d, tanh all of it. One of them keeps that part of the last state, so that its error is at most
    s times the last one and (s + (2 + max(a, c)) / 4)·d, with c the largest state of an LSTM.
    """
    states = [] if hx is None else tensors(hx)
    biases = [float(p.detach().abs().max()) for p in rnn.parameters() if p.dim() == 1]
    largest, off = float(x.abs().max()), 0.0
    for layer in range(rnn.num_layers):
        after, following = [], []
        for ending in ("", "_reverse") if rnn.bidirectional else ("",):
            names = ("ih", "hh", "hr") if rnn.proj_size else ("ih", "hh")
            weights = {name: getattr(rnn, f"weight_{name}_l{layer}{ending}").abs() for name in names}
            rows = {name: float(w.sum(1).max()) for name, w in weights.items()}
            outside = rows["ih"] * largest + 2 * max(biases, default=0.0)
            h = max(1.0, rows.get("hr", 0.0), *(float(state.abs().max()) for state in states))
            if rnn.mode == "RNN_RELU":
                h = max(h, outside / (1 - rows["hh"]))
            a = outside + rows["hh"] * h
            s = 1 / (1 + math.exp(-a))
            c = max(h, s * math.tanh(a) / (1 - s))
            rounding = 2 * EPS * (len(weights["ih"][0]) + 1) * largest * float(weights["ih"].max())
            rounding += 2 * EPS * (H + 1) * h * float(weights["hh"].max()) + 2 * EPS * a
            state = out = 0.0
            for _ in range(T):
                d = rounding + rows["ih"] * off + rows["hh"] * out
                state = s * state + (s + (2 + max(a, c)) / 4) * d + 4 * EPS * (1 + c)
                out = state
                if rnn.proj_size:
                    out = rows["hr"] * (state + 2 * EPS * (H + 1))
            after.append(max(state, out))
            following.append(h)
        off, largest = max(after), max(following)
    return off


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    parts = [result.data] if isinstance(result, PackedSequence) else result
    return [t for part in parts for t in ([part] if isinstance(part, Tensor) else tensors(part))]


def double(value: Any) -> Any:
    if isinstance(value, (Tensor, PackedSequence)):
        return value.double()
    return None if value is None else tuple(map(double, value))


def assert_same(module: nn.Module, rnn: nn.RNNBase, x: Any, hx: Any = None) -> None:
    given = tensors([x] if hx is None else [x, hx])
    before = [t.clone() for t in given]
    with torch.no_grad():
        got = module(x, hx)
        wanted = copy.deepcopy(rnn).double()(double(x), double(hx))
    assert all(map(torch.equal, given, before))
    tolerance = bound(rnn, x.data, hx)
    assert tolerance < 2e-4
    assert [type(part) for part in got] == [type(part) for part in wanted]
    for mine, theirs in zip(tensors(got), tensors(wanted), strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() <= tolerance
    if isinstance(x, PackedSequence):
        for mine, theirs in zip(got[0][1:], wanted[0][1:], strict=True):
            assert mine is theirs or torch.equal(mine, theirs)


def state(rnn: nn.RNNBase, *batch: int) -> Any:
    cells = rnn.num_layers * (2 if rnn.bidirectional else 1)
    h = values(cells, *batch, rnn.proj_size or H, seed=5) / 4
    return (h, values(cells, *batch, H, seed=6) / 4) if isinstance(rnn, nn.LSTM) else h


KINDS = [
    (nn.LSTM, {}),
    (nn.LSTM, {"proj_size": 5}),
    (nn.GRU, {}),
    (nn.RNN, {"nonlinearity": "tanh"}),
    (nn.RNN, {"nonlinearity": "relu"}),
]
SHAPES = [
    {},
    {"bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 2},
]


@pytest.mark.parametrize("options", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "own"), KINDS, ids=str)
class TestForward:
    @pytest.mark.parametrize("given", [True, False])
    def test_batched_and_not(
        self, kind: type[nn.RNNBase], own: dict[str, Any], options: dict[str, Any], given: bool
    ) -> None:
        rnn = dense(kind, **own, **options)
        x = inputs(N, T, K) if rnn.batch_first else inputs(T, N, K)
        module = sparse(rnn)
        assert_same(module, rnn, x, state(rnn, N) if given else None)
        assert_same(module, rnn, inputs(T, K), state(rnn) if given else None)
        assert_same(with_dense_parts(rnn), rnn, x, state(rnn, N) if given else None)

    @pytest.mark.parametrize("lengths", [[6, 4, 1], [2, 6, 6]])
    def test_packed(
        self, kind: type[nn.RNNBase], own: dict[str, Any], options: dict[str, Any], lengths: list[int]
    ) -> None:
        rnn = dense(kind, **own, **options)
        x = pack_padded_sequence(inputs(T, N, K), lengths, enforce_sorted=False)
        module = sparse(rnn)
        assert_same(module, rnn, x)
        assert_same(module, rnn, x, state(rnn, N))

    def test_to_rnn_is_exact(
        self, kind: type[nn.RNNBase], own: dict[str, Any], options: dict[str, Any]
    ) -> None:
        rnn = dense(kind, **own, **options)
        rnn.dropout = 0.25
        before = torch.get_rng_state()
        back = sparse(rnn).to_rnn()
        assert torch.equal(torch.get_rng_state(), before)
        assert type(back) is kind
        assert repr(back) == repr(rnn)
        assert not back.training
        pairs = zip(back.state_dict().items(), rnn.state_dict().items(), strict=True)
        assert all(mine == theirs and torch.equal(w, v) for (mine, w), (theirs, v) in pairs)
        x = inputs(T, N, K) if not rnn.batch_first else inputs(N, T, K)
        with torch.no_grad():
            assert torch.equal(back(x)[0], rnn(x)[0])


def with_dense_parts(rnn: nn.RNNBase) -> nn.Module:
    return SPARSE[type(rnn)].from_rnn(rnn)


def test_the_order_of_packed_sequences_is_kept() -> None:
    rnn = dense(nn.GRU)
    sequences = [inputs(length, K) for length in (5, 3, 1)]
    assert_same(sparse(rnn), rnn, pack_sequence(sequences), state(rnn, 3))


def test_no_sequences() -> None:
    for rnn in (dense(nn.LSTM, bidirectional=True), dense(nn.GRU)):
        out, final = sparse(rnn)(torch.zeros(T, 0, K))
        assert out.shape[:2] == (T, 0)
        assert tensors(final)[0].shape[1] == 0


def test_calls_of_the_matrices() -> None:
    module = sparse(dense(nn.LSTM))
    calls: list[tuple[str, int]] = []
    for name in ("input", "hidden"):
        part = getattr(module.cells[0], name)
        part.register_forward_hook(lambda _, args, __, name=name: calls.append((name, len(args[0]))))
    module(inputs(T, N, K))
    assert calls == [("input", T * N)] + [("hidden", N)] * T


def test_dropout_between_layers_in_training_only() -> None:
    rnn = dense(nn.GRU, num_layers=2)
    rnn.dropout = 0.5
    module = sparse(rnn)
    x = inputs(T, N, K)
    assert_same(module, rnn, x)
    module.train()
    assert not torch.equal(module(x)[0], module(x)[0])


@pytest.mark.parametrize("kind", SPARSE)
def test_inference_only(kind: type[nn.RNNBase]) -> None:
    for module in (sparse(dense(kind)), with_dense_parts(dense(kind))):
        x = inputs(T, N, K)
        assert not module(x)[0].requires_grad
        with torch.inference_mode():
            assert module(x)[0].is_inference()
        x.requires_grad_()
        with pytest.raises(RuntimeError, match="input: expected an input without gradients"):
            module(x)
        with torch.no_grad():
            module(x)
        hx = state(dense(kind), N)
        tensors(hx)[-1].requires_grad_()
        with pytest.raises(RuntimeError, match=r"hx\[.\]: expected an input without gradients"):
            module(x.detach(), hx)


@pytest.mark.parametrize("kind", SPARSE)
class TestCopies:
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
    def test_deepcopy_and_pickle(
        self, kind: type[nn.RNNBase], duplicate: Callable[[nn.Module], nn.Module]
    ) -> None:
        module = sparse(dense(kind, num_layers=2, bidirectional=True))
        twin = duplicate(module)
        x = inputs(T, N, K)
        assert torch.equal(twin(x)[0], module(x)[0])
        assert twin.cells[0].input is not module.cells[0].input

    def test_state_dict(self, kind: type[nn.RNNBase]) -> None:
        source, rnn = sparse(dense(kind, num_layers=2)), dense(kind, num_layers=2)
        for parameter in rnn.parameters():
            parameter.data.zero_()
        target = sparse(rnn)
        state_dict = source.state_dict()
        assert {"cells.1.input.values", "cells.0.hidden.bias"} <= set(state_dict)
        target.load_state_dict(state_dict)
        x = inputs(T, N, K)
        assert torch.equal(target(x)[0], source(x)[0])


class TestBadInput:
    @pytest.mark.parametrize(
        ("x", "hx", "error", "message"),
        [
            (torch.ones(K), None, ValueError, "input: expected 2 or 3 dimensions, got 1"),
            (torch.ones(T, N, 4), None, ValueError, "input: expected 10 features, got 4"),
            (torch.ones(0, N, K), None, ValueError, "input: expected at least one step, got none"),
            (torch.ones(T, N, K), torch.ones(1, N, H), TypeError, "hx: expected a pair of tensors"),
            (torch.ones(T, N, K), (torch.ones(1, 2, H),) * 2, ValueError, r"hx: expected shape \(1, 3, 8\)"),
            (torch.ones(T, K), (torch.ones(2, H),) * 2, ValueError, r"hx: expected shape \(1, 1, 8\)"),
        ],
    )
    def test_forward(self, x: Tensor, hx: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            sparse(dense(nn.LSTM))(x, hx)

    def test_construction(self) -> None:
        def cell(rows: int = 4 * H, width: int = K, out: int = H) -> RecurrentCell:
            return RecurrentCell(nn.Linear(width, rows), nn.Linear(out, rows))

        with pytest.raises(ValueError, match="cells: expected a positive multiple of 1, got 0"):
            SparseLSTM([])
        with pytest.raises(ValueError, match="cells: expected a positive multiple of 2, got 1"):
            SparseLSTM([cell()], bidirectional=True)
        with pytest.raises(ValueError, match=r"cells\[0\].hidden: expected 3 gates, got out_features = 32"):
            SparseGRU([cell()])
        with pytest.raises(ValueError, match=r"cells\[1\].input: expected .* = \(32, 8\), got \(32, 10\)"):
            SparseLSTM([cell(), cell()])
        with pytest.raises(ValueError, match=r"cells\[0\].hidden: expected in_features = 8, got 5 without"):
            SparseLSTM([cell(out=5)])
        with pytest.raises(TypeError, match=r"cells\[0\].input: expected a module like nn.Linear, got ReLU"):
            SparseLSTM([RecurrentCell(nn.ReLU(), nn.Linear(H, 4 * H))])
        fused = SparseLinear.from_format(CSR.from_dense(torch.ones(H, H)), activation="relu")
        with pytest.raises(ValueError, match=r"cells\[0\].hidden: expected no activation, got 'relu'"):
            SparseRNN([RecurrentCell(nn.Linear(K, H), fused)])
        with pytest.raises(ValueError, match="nonlinearity: expected 'tanh' or 'relu', got 'gelu'"):
            SparseRNN([cell(rows=H)], nonlinearity="gelu")

    def test_from_rnn(self) -> None:
        rnn = dense(nn.LSTM)
        with pytest.raises(TypeError, match=r"rnn: expected nn.GRU, got LSTM"):
            SparseGRU.from_rnn(rnn)
        with pytest.raises(ValueError, match="parts: expected 1 cells, got 2"):
            SparseLSTM.from_rnn(rnn, SparseLSTM.linears(rnn) * 2)

    def test_to_rnn_wants_all_biases_or_none(self) -> None:
        mixed = RecurrentCell(nn.Linear(K, H), nn.Linear(H, H, bias=False))
        with pytest.raises(ValueError, match="cells: expected biases in all inputs and hiddens or in none"):
            SparseRNN([mixed]).to_rnn()


def test_compile() -> None:
    torch._dynamo.reset()
    module = sparse(dense(nn.LSTM, num_layers=2, bidirectional=True))
    x = inputs(T, N, K)
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x)[0], module(x)[0])
