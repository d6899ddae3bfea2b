"""Attention, recurrent layers and experts: torch's own functions are the reference."""

from __future__ import annotations

import copy

import pytest
import torch
from generators import values
from masks_helpers import descend
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparseinfer.prune import (
    ERK,
    NM,
    Block,
    Column,
    Gradient,
    Magnitude,
    Random,
    Reconstruct,
    Row,
    SparseGPT,
    Taylor,
    Wanda,
    calibrate,
    correct_bias_,
    finalize_,
    masks_of,
    prunable_layers,
    prune_,
    snip_,
    synflow_,
)

E = 8


class TinyExperts(nn.Module):
    """As transformers writes them: two experts, each [n, k] or, transposed, [k, n]."""

    def __init__(self, transposed: bool, says_so: bool = True) -> None:
        super().__init__()
        up, down = (2, 2 * 6, E), (2, E, 6)
        if transposed:
            up, down = (2, E, 2 * 6), (2, 6, E)
        self.gate_up_proj = nn.Parameter(values(*up))
        self.down_proj = nn.Parameter(values(*down, seed=1))
        self.bias = nn.Parameter(torch.zeros(E))
        if says_so:
            self.is_transposed = transposed


def attention(**how) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(E, 2, batch_first=True, **how)


KINDS = {
    "attention": (attention, ["in_proj_weight", "out_proj"]),
    "attention-kdim": (
        lambda: attention(kdim=4, vdim=6),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"],
    ),
    "lstm": (
        lambda: nn.LSTM(E, 6, 2, bidirectional=True, proj_size=4),
        [
            f"weight_{name}_l{i}{direction}"
            for i in (0, 1)
            for direction in ("", "_reverse")
            for name in ("ih", "hh", "hr")
        ],
    ),
    "gru": (lambda: nn.GRU(E, 6), ["weight_ih_l0", "weight_hh_l0"]),
    "rnn": (lambda: nn.RNN(E, 6, bias=False), ["weight_ih_l0", "weight_hh_l0"]),
    "lstm-cell": (lambda: nn.LSTMCell(E, 6), ["weight_ih", "weight_hh"]),
    "experts": (lambda: TinyExperts(False), ["gate_up_proj", "down_proj"]),
    "experts-transposed": (lambda: TinyExperts(True), ["gate_up_proj", "down_proj"]),
}


def weights_of(net: nn.Module, names: list[str]) -> dict[str, nn.Parameter]:
    parameters = dict(net.named_parameters())
    return {name: parameters[name] if name in parameters else parameters[f"{name}.weight"] for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_magnitude_is_torchs_on_every_weight(kind):
    make, names = KINDS[kind]
    net = make()
    before = copy.deepcopy(net)
    report = prune_(net, Magnitude(0.7))
    assert [layer.fqn for layer in report.layers] == names
    for name, weight in weights_of(net, names).items():
        old = weights_of(before, names)[name]
        kept = torch_prune.L1Unstructured(0.7).compute_mask(old, torch.ones_like(old))
        assert torch.equal(weight, old.detach() * kept)
        assert torch.equal(masks_of(net)[name], kept.bool())
    assert report.sparsity == report.model_sparsity
    assert not report.unlooked


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_weights_is_touched(kind):
    make, names = KINDS[kind]
    net = make()
    before = copy.deepcopy(net)
    prune_(net, Random(0.5))
    weights = {id(weight) for weight in weights_of(net, names).values()}
    for (name, parameter), old in zip(net.named_parameters(), before.parameters(), strict=True):
        if id(parameter) not in weights:
            assert torch.equal(parameter, old), name
    assert all(int((w == 0).sum()) == round(w.numel() / 2) for w in weights_of(net, names).values())


@pytest.mark.parametrize("kind", KINDS)
def test_unmatrix_is_the_way_back(kind):
    for layer in prunable_layers(KINDS[kind][0]()).values():
        groups, n, k = layer.shape
        assert groups * n * k == layer.weight.numel()
        assert torch.equal(layer.unmatrix(layer.matrix()), layer.weight)
        mask = layer.weight > 0
        assert torch.equal(layer.unmatrix(layer.matrix(mask)), mask)


def test_the_projections_are_a_group_each():
    net = attention()
    matrix = prunable_layers(net)["in_proj_weight"].matrix()
    q, k, v = net.in_proj_weight.chunk(3)
    assert torch.equal(matrix, torch.stack([q, k, v]))


@pytest.mark.parametrize("says_so", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_experts_are_a_group_each(transposed, says_so):
    net = TinyExperts(transposed, says_so)
    for layer in prunable_layers(net).values():
        for expert in (0, 1):
            held = layer.weight[expert]
            assert torch.equal(layer.matrix()[expert], held.T if transposed else held)
    assert prunable_layers(net)["down_proj"].shape == (2, E, 6)


def test_patterns_on_experts_are_those_of_each_expert():
    """As on a Linear that holds the same matrix: its row is an output, its column an input."""
    for pattern in (Row(), Column(), Block(2, 2), NM(2, 4)):
        net = TinyExperts(transposed=True)
        alone = nn.Linear(E, 12, bias=False)
        with torch.no_grad():
            net.gate_up_proj[1] = net.gate_up_proj[0]  # so that a count over both is one over each
            alone.weight.copy_(net.gate_up_proj[0].T)
        how = {"threshold": 0.7} if not isinstance(pattern, NM) else {}
        for module in (net, alone):
            prune_(module, Magnitude(pattern=pattern, **how), ignore="down_proj")
        assert 0 < int(alone.weight.count_nonzero()) < alone.weight.numel()
        for expert in net.gate_up_proj:
            assert torch.equal(expert.T, alone.weight)
        assert net.down_proj.all()


def seen_by(net: nn.Module, *args: Tensor, **kwargs: Tensor) -> tuple:
    forward = lambda model, batch: model(*args, **kwargs)  # noqa: E731
    return calibrate(net.eval(), [0], forward=forward), forward


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("how", [{}, {"kdim": 4, "vdim": 6}, {"add_bias_kv": True}, {"bias": False}], ids=str)
def test_attention_sees_its_inputs(how, cross):
    """Gram matrices of what goes into each projection, against their sums in float64."""
    net = attention(**how)
    query = values(3, 5, E)
    other = 5 if not cross else 7
    key = query if not how.get("kdim") and not cross else values(3, other, net.kdim, seed=1)
    value = key if not how.get("vdim") else values(3, other, net.vdim, seed=2)
    stats, _ = seen_by(net, query, key, value=value, need_weights=False)
    given = {"q": query, "k": key, "v": value}
    for name, x in given.items():
        rows = x.reshape(-1, x.shape[-1]).double()
        if how.get("kdim"):
            gram = stats[f"{name}_proj_weight"].gram[0]
        else:
            gram = stats["in_proj_weight"].gram["qkv".index(name)]
        # Sums of at most 21 products of values below 4.5 in magnitude.
        torch.testing.assert_close(gram.double(), rows.T @ rows, rtol=0, atol=2 * 22 * 20 * 1.2e-7)
    inputs = solved_inputs(net, query, key, value)
    expected = inputs.T @ inputs
    # The inputs of out_proj are computed twice: as it is, and here by its inverse, in float64.
    torch.testing.assert_close(stats["out_proj"].gram[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert stats["out_proj"].tokens == 15


def solved_inputs(net: nn.MultiheadAttention, *given: Tensor) -> Tensor:
    """What out_proj was given, from the output of the attention in float64: it is square and regular."""
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        output = exact(*(x.double() for x in given))[0].reshape(-1, E)
        if exact.out_proj.bias is not None:
            output -= exact.out_proj.bias
        return torch.linalg.solve(exact.out_proj.weight, output.T).T


def test_recurrent_layers_show_the_inputs_of_the_first():
    net = nn.LSTM(E, 6, 2, bidirectional=True)
    x = values(5, 3, E)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 2]))
    for given, rows in ((x, x.reshape(-1, E)), (packed, packed.data)):
        stats, _ = seen_by(net, given)
        assert list(stats) == ["weight_ih_l0", "weight_ih_l0_reverse"]
        for each in stats.values():
            torch.testing.assert_close(each.gram[0], rows.T @ rows)
            assert each.tokens == len(rows)


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_show_both(make):
    net, x, h = make(E, 6), values(3, E), values(3, 6, seed=1)
    state = (h, values(3, 6, seed=2)) if make is nn.LSTMCell else h
    for given, hidden in ((state, h), (None, torch.zeros(3, 6))):
        stats, _ = seen_by(net, x, hx=given)
        torch.testing.assert_close(stats["weight_hh"].gram[0], hidden.T @ hidden)
        torch.testing.assert_close(stats["weight_ih"].gram[0], x.T @ x)


class Encoder(nn.Module):
    """Both, in one model: x [batch, tokens, E]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, 2, 16, batch_first=True), 2)
        self.lstm = nn.LSTM(E, 6, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.lstm(self.encoder(x, src_key_padding_mask=padding))[0]


X = values(4, 12, E)


def test_solvers_take_attention_and_make_up_for_it():
    dense = Encoder().encoder.eval()
    stats = calibrate(dense, [X])
    errors = []
    for method in (Magnitude(0.6), Reconstruct(Magnitude(0.6))):
        net = copy.deepcopy(dense)
        report = prune_(net, method, stats=stats)
        assert not report.unlooked
        assert all(layer.sparsity == pytest.approx(0.6, abs=0.01) for layer in report.layers)
        errors.append({layer.fqn: layer.error for layer in report.layers if "self_attn" in layer.fqn})
    before, after = errors
    assert len(before) == 4
    # Least squares of the weights that stay: less than without, for none of the inputs is apart from others.
    assert all(after[name] < before[name] for name in before)
    net = copy.deepcopy(dense)
    assert prune_(net, SparseGPT(0.5), batches=[X], sequential=True).layers[0].fqn.endswith("in_proj_weight")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_padding_that_an_encoder_drops():
    net = Encoder().eval()
    padding = torch.arange(12) >= torch.tensor([12, 3, 5, 12])[:, None]
    stats = calibrate(net.encoder, [{"src": X, "src_key_padding_mask": padding}])
    assert {each.tokens for each in stats.values()} == {12 + 3 + 5 + 12}
    rows = X[~padding]
    gram = stats["layers.0.self_attn.in_proj_weight"].gram
    torch.testing.assert_close(gram, (rows.T @ rows).expand(3, -1, -1))


@pytest.mark.parametrize("method", [Wanda(0.5), SparseGPT(0.5, damping=0.1)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("by", ["stats", "batches"])
def test_what_a_calibration_cannot_see_is_left_and_named(method, by):
    net = Encoder().eval()
    before = net.lstm.weight_hh_l0.clone()
    given = {"stats": calibrate(net, [X])} if by == "stats" else {"batches": [X]}
    report = prune_(net, method, **given)
    (left,) = report.unlooked
    assert (left.name, left.shape, left.why) == (
        "lstm.weight_hh_l0",
        (24, 6),
        "a calibration does not see its inputs",
    )
    assert torch.equal(net.lstm.weight_hh_l0, before)
    assert net.lstm.weight_ih_l0.count_nonzero() == 24 * E / 2
    everything = 2 * (4 * E * E + 32 * E) + 24 * (E + 6)
    assert report.model_sparsity == pytest.approx((everything - 24 * 6) / 2 / everything, abs=0.01)
    assert "not looked at: lstm.weight_hh_l0 24x6; 144 weights" in str(report)


def loss(output: Tensor, batch: Tensor) -> Tensor:
    return output.square().mean()


@pytest.mark.parametrize("method", [Gradient(0.5), Taylor(0.5)], ids=lambda m: type(m).__name__)
def test_gradients_reach_all(method):
    net = Encoder().eval()
    stats = calibrate(net, [X], gram=False, loss_fn=loss)
    exact = copy.deepcopy(net)
    loss(exact(X), X).backward()
    report = prune_(net, method, stats=stats)
    assert not report.unlooked
    gradient, weight = exact.lstm.weight_hh_l0.grad, exact.lstm.weight_hh_l0.detach()
    scores = (gradient if isinstance(method, Gradient) else gradient * weight).abs()
    kept = scores >= scores.flatten().kthvalue(scores.numel() // 2 + 1).values
    assert torch.equal(net.lstm.weight_hh_l0 != 0, kept)
    corrected = correct_bias_(copy.deepcopy(net), exact, stats)
    assert torch.equal(corrected.lstm.bias_hh_l0, net.lstm.bias_hh_l0)
    shift = (exact.lstm.weight_ih_l0 - net.lstm.weight_ih_l0) @ exact.encoder(X).mean((0, 1))
    torch.testing.assert_close(corrected.lstm.bias_ih_l0, net.lstm.bias_ih_l0 + shift)
    assert shift.abs().max() > 1e-3


def test_at_initialisation():
    for prune in (
        lambda net: snip_(net, 0.8, [X], loss),
        lambda net: synflow_(net, 0.8, X, iterations=3),
    ):
        net = Encoder()
        report = prune(net)
        assert report.sparsity == report.model_sparsity == pytest.approx(0.8, abs=1e-3)
        assert {"encoder.layers.1.self_attn.in_proj_weight", "lstm.weight_hh_l0"} <= masks_of(net).keys()


def test_erk_is_of_the_matrices_and_not_of_how_they_are_held():
    report = prune_(attention(), Magnitude(ERK(0.5)))
    assert {layer.sparsity for layer in report.layers} == {0.5}


def test_experts_of_transformers():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": E, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    routing = {"num_local_experts": 3, "num_experts_per_tok": 2}
    ids = torch.arange(6)[None]
    for kind, transposed in (("Mixtral", False), ("GptOss", True)):
        torch.manual_seed(0)
        made = getattr(transformers, f"{kind}Config")(**sizes, **heads, **routing)
        net = getattr(transformers, f"{kind}ForCausalLM")(made).eval()
        (experts,) = (fqn for fqn, module in net.named_modules() if type(module).__name__ == f"{kind}Experts")
        layers = prunable_layers(net)
        up, down = (layers[f"{experts}.{name}"] for name in ("gate_up_proj", "down_proj"))
        assert (up.shape, down.shape) == ((3, 24, E), (3, E, 12))
        assert torch.equal(up.matrix()[1], up.weight[1].T if transposed else up.weight[1])
        report = prune_(net, Magnitude(0.75), ignore="lm_head")
        assert {layer.fqn for layer in report.layers} >= {up.fqn, down.fqn}
        # The router and the embeddings stay as they are, and are told.
        assert {weight.name.rpartition(".")[0].rpartition(".")[2] for weight in report.unlooked} >= {
            "embed_tokens",
            "gate" if kind == "Mixtral" else "router",
        }
        trained(net.train(), lambda model: model(input_ids=ids, labels=ids).loss)
        for name, mask in masks_of(net).items():
            assert not layers[name].weight[~mask].any(), name
        assert finalize_(net).state_dict().keys() == net.state_dict().keys()


def trained(net: nn.Module, loss_of) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(3):
        descend(optimizer, loss_of(net))
