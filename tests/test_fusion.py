"""Activations and batch norms that move into the layer before them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from convert_helpers import K, N, Script, kinds, linear
from generators import tokens, values, weight
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sparseinfer import SparseConv1d, SparseConv2d, SparseLinear, convert, convert_, densify_, ops
from sparseinfer.convert import conversion
from sparseinfer.convert.fusion import activation_of
from sparseinfer.modules import Fused, PrepackedLinear

EPS = torch.finfo(torch.float32).eps


pytestmark = pytest.mark.usefixtures("script")


class Mine(nn.Module):
    """x if x > 0, else 0, by another name."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x))


class Listed(nn.Module):
    """Calls its activation by a plain list too, where convert_ puts nothing in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = linear(), nn.GELU()
        self.steps = [self.act]

    def forward(self, x: Tensor) -> Tensor:
        return self.steps[0](self.first(x))


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's advice to use something else

    @torch.jit.script
    def doubled(x: Tensor) -> Tensor:
        return x + x


class Scripted(nn.Module):
    """A compiled function reads the result too, and nobody sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = linear(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.act(y) + doubled(y)


class Learned(nn.ReLU):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))


class Pair(nn.ReLU):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class TestActivationOf:
    @pytest.mark.parametrize(
        ("module", "name"),
        [
            (nn.ReLU(), "relu"),
            (nn.ReLU(inplace=True), "relu"),
            (nn.Threshold(0.0, 0.0), "relu"),
            (Mine(), "relu"),
            (nn.GELU(), "gelu"),
            (nn.GELU(approximate="tanh"), "gelu_tanh"),
            (nn.SiLU(), "silu"),
        ],
        ids=str,
    )
    def test_by_what_it_computes(self, module: nn.Module, name: str) -> None:
        assert activation_of(module.eval()) == name
        assert activation_of(module.train()) == "none"

    @pytest.mark.parametrize(
        ("key", "name"),
        [
            ("gelu", "gelu"),
            ("gelu_python", "gelu"),
            ("gelu_new", "gelu_tanh"),
            ("gelu_pytorch_tanh", "gelu_tanh"),
            ("gelu_fast", "gelu_tanh"),
            ("silu", "silu"),
            ("swish", "silu"),
            ("relu", "relu"),
            ("quick_gelu", "none"),
            ("gelu_10", "none"),
            ("relu2", "none"),
            ("mish", "none"),
            ("linear", "none"),
        ],
    )
    def test_those_of_transformers(self, key: str, name: str) -> None:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        assert activation_of(transformers.activations.ACT2FN[key].eval()) == name

    @pytest.mark.parametrize(
        "module",
        [
            nn.Sigmoid(),
            nn.Tanh(),
            nn.Identity(),
            nn.Dropout(),
            nn.LayerNorm(4001),
            nn.Softmax(-1),
            nn.Softplus(),
            nn.ReLU6(),
            nn.Hardtanh(0.0, 20.0),
            nn.LeakyReLU(1e-7),
            nn.Hardswish(),
            nn.GLU(),
            nn.Flatten(0),
            nn.PReLU(init=0.0),
            nn.Sequential(nn.ReLU()),
            nn.Linear(3, 3),
            Learned(),
            Pair(),
        ],
        ids=lambda module: type(module).__name__,
    )
    def test_others(self, module: nn.Module) -> None:
        assert activation_of(module.eval()) == "none"

    def test_hooks_want_to_be_called(self) -> None:
        for register in (nn.ReLU.register_forward_hook, nn.ReLU.register_forward_pre_hook):
            module = nn.ReLU().eval()
            register(module, lambda *args: None)
            assert activation_of(module) == "none"


def chain(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(linear(), activation, linear(K, N, seed=3)).eval()


class TestLinear:
    @pytest.mark.parametrize(
        "activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.GELU("tanh"), nn.SiLU()], ids=str
    )
    def test_with_example_inputs(self, activation: nn.Module) -> None:
        dense = chain(activation)
        fast = convert(dense, example_inputs=torch.ones(3, K))
        assert kinds(fast) == [SparseLinear, Fused, SparseLinear]
        assert fast[0].activation == activation_of(activation.eval())
        assert kinds(dense) == [nn.Linear, type(activation), nn.Linear]
        for m in (1, 20):
            x = tokens(m, K, integer=True)
            with torch.no_grad():
                double = copy.deepcopy(dense).double()
                wanted = double(x.double())
                # The sums of integers are exact, the activation is off by 8 eps, then come N products with 4.
                bound = (8 * N + 2 * (N + 1)) * EPS * 4 * double[:2](x.double()).abs().max()
                assert (fast(x) - wanted).abs().max() <= (0 if isinstance(activation, nn.ReLU) else bound)

    def test_not_without_them_and_not_if_not_asked_for(self) -> None:
        for fast in (
            convert(chain(nn.ReLU())),
            convert(chain(nn.ReLU()), example_inputs=torch.ones(3, K), fuse=False),
        ):
            assert kinds(fast) == [SparseLinear, nn.ReLU, SparseLinear]
            assert fast[0].activation == "none"

    def test_into_a_layer_that_stays_dense_only_if_it_is_prepacked(self, script: Script) -> None:
        script.ratio = lambda layout, m: 2.0
        fast = convert(chain(nn.ReLU()), example_inputs=torch.ones(3, K))
        assert kinds(fast) == [nn.Linear, nn.ReLU, nn.Linear]

    def test_into_a_prepacked_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if not ops.dense.prepack_available(torch.ones(1, 1)):
            pytest.skip("this torch has no oneDNN to reorder a weight with")

        class Prepacked(Script):
            def __call__(self, case: object, layouts: object, m: int) -> object:
                times = super().__call__(case, layouts, m)
                return type(times)(m, {"F.linear": 10.0, "onednn-prepacked": 5.0}, times.sparse)

        script = Prepacked()
        script.ratio = lambda layout, m: 2.0
        monkeypatch.setattr(conversion, "Timer", lambda **options: script)
        dense = chain(nn.ReLU())
        fast = convert(dense, example_inputs=torch.ones(3, K))
        assert kinds(fast) == [PrepackedLinear, Fused, PrepackedLinear]
        x = tokens(5, K, integer=True)
        with torch.no_grad():
            assert torch.equal(fast(x), dense(x))
        assert kinds(densify_(fast)) == kinds(dense)
        assert torch.equal(fast(x), dense(x))

    def test_in_training_mode_the_activation_stays(self) -> None:
        fast = convert(chain(nn.ReLU()).train(), example_inputs=torch.ones(3, K))
        assert kinds(fast) == [SparseLinear, nn.ReLU, SparseLinear]

    @pytest.mark.parametrize("dense", [Listed(), Scripted()], ids=["in a list", "in a compiled function"])
    def test_undone_where_results_differ(self, dense: nn.Module) -> None:
        x = tokens(5, K, integer=True)
        with torch.no_grad():
            expected = dense(x)
            fast = convert_(copy.deepcopy(dense), example_inputs=x)
            assert type(fast.first) is SparseLinear
            assert torch.allclose(fast(x), expected, rtol=1e-6)

    def test_an_activation_of_two_layers_stays(self) -> None:
        act = nn.ReLU()
        dense = nn.Sequential(linear(), act, linear(K, N), act).eval()
        fast = convert(dense, example_inputs=torch.ones(3, K))
        assert [type(module) for module in fast] == [SparseLinear, nn.ReLU] * 2

    def test_in_place_and_back(self) -> None:
        dense = chain(nn.GELU())
        fast = convert_(copy.deepcopy(dense), example_inputs=torch.ones(3, K))
        assert kinds(fast) == [SparseLinear, Fused, SparseLinear]
        assert repr(fast[1]) == "Fused(GELU)"
        assert not any(isinstance(module, nn.GELU) for module in fast.modules())
        densify_(fast.train())
        assert kinds(fast) == kinds(dense)
        assert fast[1].training
        x = tokens(5, K, integer=True)
        with torch.no_grad():
            assert torch.equal(fast.eval()(x), dense(x))

    def test_two_models_do_not_share_a_module(self) -> None:
        dense = chain(nn.GELU())
        assert densify_(convert(dense, example_inputs=torch.ones(3, K)))[1] is not dense[1]


def batch_norm(kind: type[nn.Module], n: int, **options: object) -> nn.Module:
    norm = kind(n, **options)
    for i, t in enumerate((*norm.parameters(), *norm.buffers())):
        if t.is_floating_point():
            t.data = values(*t.shape, seed=i).abs() + 0.5
    return norm


def conv_model(dims: int, *, bias: bool = True, act: bool = True, **options: object) -> nn.Sequential:
    conv = (nn.Conv1d, nn.Conv2d)[dims - 1](6, 8, 3, bias=bias)
    conv.weight.data = weight("random", 8, 6 * 3**dims).view(conv.weight.shape)
    norm = batch_norm((nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1], 8, **options)
    return nn.Sequential(conv, norm, *([nn.ReLU()] if act else [])).eval()


def folding_bound(dense: nn.Sequential, x: Tensor) -> float:
    """2·eps·(nnz_row + 3)·max|x|·max|w|: w · scale and the bias are rounded too; times the scale."""
    norm = dense[1]
    scale = (norm.running_var + norm.eps).rsqrt().double()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    nnz = int((dense[0].weight != 0).flatten(1).sum(1).max())
    terms = x.abs().max() * dense[0].weight.abs().max() + norm.running_mean.abs().max()
    shift = 0.0 if norm.bias is None else float(norm.bias.abs().max())
    return float(2 * EPS * (nnz + 3) * (terms * scale.abs().max() + shift))


class TestBatchNorm:
    @pytest.mark.parametrize("dims", [1, 2])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("affine", [True, False])
    def test_folded(self, dims: int, bias: bool, affine: bool) -> None:
        dense = conv_model(dims, bias=bias, affine=affine)
        x = values(2, 6, *[9] * dims)
        fast = convert(dense, example_inputs=x, fold_batch_norm=True)
        assert kinds(fast) == [(SparseConv1d, SparseConv2d)[dims - 1], Fused, Fused]
        with torch.no_grad():
            wanted = copy.deepcopy(dense).double()(x.double())
            bound = folding_bound(dense, x)
            assert bound < 1e-3
            assert (fast(x) - wanted).abs().max() <= bound
            assert kinds(densify_(fast)) == [type(dense[0]), nn.Identity, nn.ReLU]
            assert (fast(x) - wanted).abs().max() <= bound

    def test_folded_into_a_layer_that_stays_dense(self, script: Script) -> None:
        script.ratio = lambda layout, m: 2.0
        dense, x = conv_model(2), values(2, 6, 9, 9)
        before = copy.deepcopy(dense.state_dict())
        fast = convert(dense, example_inputs=x, fold_batch_norm=True)
        assert kinds(fast) == [nn.Conv2d, Fused, nn.ReLU]
        with torch.no_grad():
            wanted = copy.deepcopy(dense).double()(x.double())
            assert (fast(x) - wanted).abs().max() <= folding_bound(dense, x)
        assert all(torch.equal(t, before[name]) for name, t in dense.state_dict().items())

    def test_a_parametrized_layer_that_stays_dense(self, script: Script) -> None:
        script.ratio = lambda layout, m: 2.0
        dense, x = conv_model(2), values(2, 6, 9, 9)
        parametrizations.weight_norm(dense[0])
        fast = convert(dense, example_inputs=x, fold_batch_norm=True)
        assert kinds(fast) == [nn.Conv2d, Fused, nn.ReLU]
        with torch.no_grad():
            wanted = copy.deepcopy(dense).double()(x.double())
            assert (fast(x) - wanted).abs().max() <= 4 * folding_bound(dense, x)

    def test_into_a_linear(self) -> None:
        dense = nn.Sequential(linear(), batch_norm(nn.BatchNorm1d, N), nn.SiLU()).eval()
        x = tokens(5, K)
        fast = convert(dense, example_inputs=x, fold_batch_norm=True)
        assert kinds(fast) == [SparseLinear, Fused, Fused]
        with torch.no_grad():
            wanted = copy.deepcopy(dense).double()(x.double())
            assert (fast(x) - wanted).abs().max() <= 2 * folding_bound(dense, x)

    def test_only_if_asked_for(self) -> None:
        dense, x = conv_model(2), values(2, 6, 9, 9)
        assert kinds(convert(dense, example_inputs=x)) == [SparseConv2d, nn.BatchNorm2d, nn.ReLU]
        fast = convert(dense, example_inputs=x, fuse=False, fold_batch_norm=True)
        assert kinds(fast) == [SparseConv2d, Fused, nn.ReLU]

    def test_left_where_it_computes_statistics(self) -> None:
        x = values(2, 6, 9, 9)
        training = conv_model(2)
        training[1].train()
        without = conv_model(2, track_running_stats=False)
        for dense in (training, without):
            fast = convert(dense, example_inputs=x, fold_batch_norm=True)
            assert kinds(fast)[:2] == [SparseConv2d, nn.BatchNorm2d]

    def test_left_where_another_reads_the_result(self) -> None:
        class Skip(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                y = self[0](x)
                return self[1](y) + y

        dense = Skip(*conv_model(2, act=False)).eval()
        x = values(2, 6, 9, 9)
        fast = convert(dense, example_inputs=x, fold_batch_norm=True)
        assert kinds(fast) == [SparseConv2d, nn.BatchNorm2d]
