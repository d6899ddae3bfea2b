"""Calibration: sums against float64 ones, what layers share, files, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from generators import values
from prune_helpers import KINDS, layer_of_kind, linears, snapshot
from torch import Tensor, nn

from sparseinfer.prune import CalibrationStats, Magnitude, Wanda, calibrate, prunable_layers, prune_
from sparseinfer.prune.calibration import sums


class QKV(nn.Module):
    """q, k and v read the same tensor, o another one; k is given a copy when `apart`."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = linears((4, 8), (4, 8), (4, 8), (4, 4))

    def forward(self, x: Tensor, apart: bool = False) -> Tensor:
        return self.o(self.q(x) + self.k(2 * x if apart else x) + self.v(x))


def gram_of(*batches: Tensor) -> Tensor:
    rows = torch.cat([batch.reshape(-1, batch.shape[-1]) for batch in batches]).double()
    return rows.T @ rows


def close(sums: Tensor, expected: Tensor) -> None:
    """Sums of fewer than 64 float32 products of values below 8 in magnitude."""
    torch.testing.assert_close(sums.double(), expected, rtol=0, atol=64 * 64 * 64 * 1.2e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [1, 2**24])
def test_the_gram_matrix_gives_the_squared_output_of_any_weight(kind, piece, monkeypatch):
    monkeypatch.setattr(sums, "_PIECE", piece)
    module, x = layer_of_kind(kind)
    stats = calibrate(module, [x, 2 * x], progress=False)[""]
    module.bias = None
    layer = prunable_layers(module)[""]
    with torch.no_grad():
        energy = float((module(x) ** 2).sum() + (module(2 * x) ** 2).sum())
    w = layer.matrix()
    assert float((w @ stats.gram * w).sum()) == pytest.approx(energy, rel=1e-12)
    torch.testing.assert_close(stats.gram, stats.gram.mT, rtol=0, atol=1e-11)
    torch.testing.assert_close(stats.gram.diagonal(dim1=-2, dim2=-1), stats.sq, rtol=1e-12, atol=0)
    unfolded = layer.unfold(x)
    torch.testing.assert_close(stats.sum_x, 3 * unfolded.sum(1), rtol=0, atol=1e-11)
    assert stats.tokens == 2 * unfolded.shape[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_halves_are_summed_in_float32(dtype):
    net = nn.Linear(8, 4, dtype=dtype)
    x = values(16, 8, dtype=dtype)
    stats = calibrate(net, [x])[""]
    assert stats.gram.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(stats.gram[0], gram_of(x))
    close(stats.sum_x[0], x.double().sum(0))


def test_batches_are_arguments():
    net = QKV()
    x = values(5, 8)
    plain = calibrate(net, [x, x])
    for batches in ([(x,), [x]], iter([x, x]), [{"x": x}, {"x": x, "apart": False}]):
        stats = calibrate(net, batches)
        assert all(torch.equal(stats[fqn].gram, plain[fqn].gram) for fqn in "qkvo")
    through = calibrate(net, ["once", "twice"], forward=lambda model, batch: model(x))
    assert torch.equal(through["o"].gram, plain["o"].gram)


def test_layers_that_read_the_same_tensor_share_its_gram_matrix():
    net, (a, b) = QKV(), (values(5, 8), values(6, 8, seed=1))
    stats = calibrate(net, [a, b])
    assert stats["q"].gram is stats["k"].gram is stats["v"].gram
    close(stats["q"].gram[0], gram_of(a, b))
    assert stats["q"].tokens == 11
    assert stats.nbytes == 4 * (8 * 8 + 4 * 4) + 16 * (8 + 4)


def test_layers_that_get_different_tensors_later_have_their_own_sums():
    net, (a, b, c) = QKV(), (values(5, 8), values(6, 8, seed=1), values(7, 8, seed=2))
    stats = calibrate(net, [(a,), (b, True), (c,)])
    assert stats["k"].gram is not stats["q"].gram
    for fqn in "qv":
        close(stats[fqn].gram[0], gram_of(a, b, c))
    close(stats["k"].gram[0], gram_of(a, 2 * b, c))
    assert {stats[fqn].tokens for fqn in "qkvo"} == {18}


def test_a_reader_that_is_left_out_of_a_run():
    net, (a, b) = QKV(), (values(5, 8), values(6, 8, seed=1))
    stats = calibrate(net, [a, b], forward=lambda model, x: model(x) if len(x) == 5 else model.q(x))
    close(stats["q"].gram[0], gram_of(a, b))
    close(stats["k"].gram[0], gram_of(a))
    assert stats["k"].gram is stats["v"].gram


def test_a_tensor_written_in_place_is_another_one():
    net, a = QKV(), values(5, 8)

    def forward(model, x):
        x = x.clone()
        model.q(x)
        model.k(x.mul_(2))
        model.v(x)
        model.o(x[:, :4])

    stats = calibrate(net, [a], forward=forward)
    close(stats["q"].gram[0], gram_of(a))
    close(stats["k"].gram[0], gram_of(2 * a))
    assert stats["k"].gram is stats["v"].gram


def test_a_module_that_is_called_twice_a_run():
    net = nn.Linear(4, 4)
    a = values(5, 4)
    stats = calibrate(net, [a], forward=lambda model, x: model(model(x)))
    close(stats[""].gram[0], gram_of(a, net(a).detach()))


def test_a_layer_without_inputs():
    model = nn.Sequential(nn.Linear(0, 4), nn.ReLU(), nn.Linear(4, 3))
    stats = calibrate(model, [torch.zeros(2, 5, 0)])
    assert stats["0"].tokens == stats["2"].tokens == 10
    assert stats["0"].sum_x.shape == (1, 0)
    prune_(model, Wanda(0.5), stats=stats)
    assert int((model[2].weight == 0).sum()) == 6


def test_without_gram_matrices():
    stats = calibrate(QKV(), [values(5, 8)], gram=False)
    assert all(layer.gram is None for layer in stats.values())
    net = QKV()
    assert prune_(net, Wanda(0.5), stats=stats).layers[0].error is None
    with pytest.raises(
        ValueError, match=r"gram: expected a Gram matrix, got None \(calibrate with gram=True\)"
    ):
        stats["q"].relative_error(torch.ones(1, 4, 8), torch.ones(1, 4, 8))


def test_gradients_are_summed_over_batches():
    net, batches = QKV(), [values(5, 8), values(6, 8, seed=1)]
    net.q.weight.requires_grad_(False)
    stats = calibrate(net, batches, loss_fn=lambda y, x: (y**2).mean() * len(x))
    assert not net.q.weight.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    reference = copy.deepcopy(net).requires_grad_(True).double()
    for x in batches:
        ((reference(x.double()) ** 2).mean() * len(x)).backward()
    for fqn in "qkvo":
        expected = reference.get_submodule(fqn).weight.grad
        torch.testing.assert_close(stats[fqn].grad.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2))
    net[1].eval()
    before, modes = snapshot(net), [module.training for module in net.modules()]
    calibrate(net, [values(2, 3, 4, 4)], loss_fn=lambda y, x: y.sum())
    with pytest.raises(ValueError, match="0: expected finite inputs"):
        calibrate(net, [torch.full((2, 3, 4, 4), float("nan"))])
    assert snapshot(net) == before
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_hooks for module in net.modules())


def test_a_round_trip_through_a_file(tmp_path):
    stats = calibrate(QKV(), [values(5, 8)], loss_fn=lambda y, x: y.sum())
    stats.save(tmp_path / "stats.pt")
    loaded = CalibrationStats.load(tmp_path / "stats.pt")
    assert list(loaded) == list(stats)
    for fqn in stats:
        assert loaded[fqn].tokens == stats[fqn].tokens
        for name in ("sum_x", "sq", "gram", "grad"):
            assert torch.equal(getattr(loaded[fqn], name), getattr(stats[fqn], name))
    assert loaded["q"].gram is loaded["k"].gram
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"path: expected a file written by CalibrationStats.save, got"):
        CalibrationStats.load(tmp_path / "other.pt")


def test_the_error_of_a_layer_in_the_report():
    net, x = linears((6, 8)), values(20, 8, seed=3)
    before = net[0].weight.detach().double()
    report = prune_(net, Magnitude(0.5), batches=[x])
    change = before - net[0].weight.detach().double()
    expected = float((x.double() @ change.T).square().sum() / (x.double() @ before.T).square().sum())
    assert report.layers[0].error == pytest.approx(expected, rel=1e-5)
    assert report.mean_error == report.layers[0].error
    assert str(report).splitlines()[0].endswith(f"error {expected:.4f}")


@pytest.mark.parametrize(
    ("batches", "how", "error", "message"),
    [
        ([], {}, ValueError, "batches: expected at least one, got none"),
        (values(5, 8), {}, TypeError, "batches: expected an iterable of batches, got Tensor (a single batch"),
        ({"x": values(5, 8)}, {}, TypeError, "batches: expected an iterable of batches, got dict"),
        (None, {}, TypeError, "batches: expected an iterable of batches, got NoneType"),
        ([torch.full((2, 8), float("nan"))], {}, ValueError, "q: expected finite inputs, got 16 NaN or inf"),
        (
            [values(2, 8), torch.full((2, 8), float("inf"))],
            {},
            ValueError,
            "expected finite inputs, got 16 NaN",
        ),
        ([values(2, 8)], {"loss_fn": lambda y, x: y}, TypeError, "loss_fn: expected a scalar tensor that"),
        ([values(2, 8)], {"loss_fn": lambda y, x: 1.0}, TypeError, "depends on the weights, got float"),
        (
            [values(2, 8)],
            {"loss_fn": lambda y, x: y.sum() / 0},
            ValueError,
            "loss_fn: expected a finite loss",
        ),
        (
            [values(2, 8)],
            {"forward": lambda model, x: model.q(x)},
            ValueError,
            "batches: expected to reach every layer, got no input of 'k', 'v', 'o' (name them in ignore=",
        ),
    ],
)
def test_bad_input(batches, how, error, message):
    net = QKV()
    before = snapshot(net)
    with pytest.raises(error) as raised:
        calibrate(net, batches, **how)
    assert message in str(raised.value)
    if "loss_fn" not in how:
        with pytest.raises(error):
            prune_(net, Wanda(0.5), batches=batches if batches is not None else 1, **how)
    assert snapshot(net) == before
    assert net.training


def test_statistics_of_another_model():
    stats = calibrate(QKV(), [values(5, 8)], loss_fn=lambda y, x: y.sum())
    other = nn.ModuleDict({"q": nn.Linear(6, 4)})
    more = nn.ModuleDict({"q": nn.Linear(8, 4), "gate": nn.Linear(8, 4)})
    taller = nn.ModuleDict({"q": nn.Linear(8, 5)})
    for net, message in (
        (
            other,
            r"stats: expected norms of 'q' of shape \(1, 6\), got \(1, 8\) \(they are of another model\)",
        ),
        (more, "stats: expected statistics of 'gate', got none"),
        (taller, r"stats: expected gradients of 'q' of shape \(5, 8\), got \(4, 8\)"),
    ):
        before = snapshot(net)
        for method in (Wanda(0.5), Magnitude(0.5)):
            with pytest.raises(ValueError, match=message):
                prune_(net, method, stats=stats)
        assert snapshot(net) == before
    with pytest.raises(ValueError, match="batches: expected None beside stats, got both"):
        prune_(QKV(), Wanda(0.5), stats=stats, batches=[values(5, 8)])
