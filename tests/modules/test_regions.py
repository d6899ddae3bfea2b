"""Regions: native networks in place of the forward of modules, against the dense model in float64."""

from __future__ import annotations

import copy
import io
import pickle
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from region_models import Bottleneck, ResNet, converted, mobile_net
from torch import Tensor, nn

import sparseinfer as si
from sparseinfer.convert.assembly.joining import region_of
from sparseinfer.modules import SparseConv2d
from sparseinfer.modules.regions import Captured, Holder, Refused, is_layer
from sparseinfer.modules.regions.lower import Native
from sparseinfer.ops.cpu.network import Network, Step


def regions(model: nn.Module) -> dict[str, Any]:
    return {name: holder for name, m in model.named_modules() if (holder := region_of(m)) is not None}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Captured]:
    """Counts the calls that regions computed."""
    calls: list[Captured] = []
    run = Captured.run

    def counted(self: Captured, x: Tensor) -> Any:
        result = run(self, x)
        calls.append(self)
        return result

    monkeypatch.setattr(Captured, "run", counted)
    return calls


def check(dense: nn.Module, fast: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = copy.deepcopy(dense).double()(x.double())
        got = fast(x)
    assert got.shape == expected.shape
    assert (got.double() - expected).norm() <= 1e-5 * expected.norm()


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense = ResNet()
    return dense, converted(dense, image(2, 3, 64, 64))


@pytest.mark.parametrize(
    "shape", [(1, 3, 64, 64), (2, 3, 64, 64), (5, 3, 33, 47), (3, 3, 7, 9), (1, 3, 1, 1), (2, 3, 130, 17)]
)
def test_a_network_is_one_region_for_every_shape(
    resnet: tuple[nn.Module, nn.Module], runs: list[Captured], shape: tuple[int, ...]
) -> None:
    dense, fast = resnet
    assert list(regions(fast)) == [""]
    check(dense, fast, image(*shape))
    assert len(runs) == 1
    native = [part for part in runs[0].parts if isinstance(part, Native)]
    assert [step.kind for step in native[0].network.steps].count("add") == 0


def test_a_network_with_depthwise_convolutions(runs: list[Captured]) -> None:
    torch.manual_seed(1)
    dense = mobile_net()
    fast = converted(dense, image(2, 3, 32, 32))
    runs.clear()
    for shape in ((2, 3, 32, 32), (1, 3, 29, 31), (3, 3, 8, 5)):
        check(dense, fast, image(*shape))
    assert len(runs) == 3
    kinds = {step.kind for part in runs[0].parts if isinstance(part, Native) for step in part.network.steps}
    assert {"conv", "depthwise", "mean"} <= kinds


def test_memory_formats_and_strides_of_the_input(
    resnet: tuple[nn.Module, nn.Module], runs: list[Captured]
) -> None:
    dense, fast = resnet
    wide = image(2, 3, 40, 80)
    check(dense, fast, wide[..., ::2])
    assert len(runs) == 1
    block = Bottleneck(16, 8, 16)
    fast_block = converted(block, image(1, 16, 8, 8))
    x = image(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    check(block, fast_block, x)
    with torch.no_grad():
        assert fast_block(x).stride() == block(x).stride()


def test_explain_names_the_kernels_of_a_network(resnet: tuple[nn.Module, nn.Module]) -> None:
    (holder,) = regions(resnet[1]).values()
    reasons = {row.layer: row.reason for row in si.explain(resnet[1]).rows}
    steps = {step.kernel for _, step in holder.layers() if step is not None}
    told = [
        name for name, reason in reasons.items() if "runs in a region that is the whole model by" in reason
    ]
    assert {*told} == {name for name, m in resnet[0].named_modules() if isinstance(m, nn.Conv2d)}
    assert (
        "by spmm_bitmap_f32_t64, packing bitmap" in reasons["layer1.0.conv2"]
    )  # the plan's, of little memory
    assert "packing rowgroup, panels of" in reasons["conv1"]  # the dense stem, which has no plan
    assert len(steps) == 2


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_bits_do_not_depend_on_threads_or_batch(resnet: tuple[nn.Module, nn.Module], batch: int) -> None:
    x, fast = image(batch, 3, 64, 64), resnet[1]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.no_grad():
                results.append(fast(x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results)
    with torch.no_grad():
        alone = torch.cat([fast(x[i : i + 1]) for i in range(batch)])
    # But for the Linear, which is torch's.
    assert torch.allclose(results[0], alone, rtol=1e-5, atol=1e-6)


def _hook(model: nn.Module) -> None:
    model.layer1[0].conv2.register_forward_hook(lambda m, args, y: y * 2)  # type: ignore[union-attr, index]


def _own_forward(model: nn.Module) -> None:
    relu: Any = model.relu
    relu.forward = lambda x: x * 0.5


def _training(model: nn.Module) -> None:
    model.layer2[0].bn1.train()  # type: ignore[union-attr, index]


def _norm(model: nn.Module) -> None:
    model.layer2[0].bn1.running_mean.add_(1)  # type: ignore[union-attr, index]


def _norm_by_data(model: nn.Module) -> None:
    model.bn1.weight.data.mul_(3)  # type: ignore[union-attr]


def _stem(model: nn.Module) -> None:
    model.conv1.weight.data.mul_(2)  # type: ignore[union-attr, operator]


def _other_layer(model: nn.Module) -> None:
    model.relu = nn.LeakyReLU()


def _eps(model: nn.Module) -> None:
    model.layer1[0].bn1.eps = 0.5  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    "change", [_hook, _own_forward, _training, _norm, _norm_by_data, _stem, _other_layer, _eps]
)
def test_what_is_changed_afterwards_counts(change: Callable[[nn.Module], None]) -> None:
    torch.manual_seed(2)
    dense = ResNet()
    fast = converted(dense, image(2, 3, 40, 40))
    check(dense, fast, image(2, 3, 40, 40))
    with torch.no_grad():
        change(dense)
        change(fast)
        before = fast(image(2, 3, 40, 40))
    expected = dense.double()(image(2, 3, 40, 40).double())
    assert (before.double() - expected).norm() <= 1e-5 * expected.norm()


def test_gradients_are_refused_as_before(resnet: tuple[nn.Module, nn.Module]) -> None:
    x = image(1, 3, 32, 32).requires_grad_()
    with pytest.raises(RuntimeError, match="gradient"):
        resnet[1](x)


def test_wrong_inputs_give_the_errors_of_the_modules(resnet: tuple[nn.Module, nn.Module]) -> None:
    fast = resnet[1]
    for x in (image(1, 4, 32, 32), image(3, 32), image(1, 3, 0, 5)):
        with torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
            fast(x)
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError, TypeError)):
        fast(image(1, 3, 32, 32).double())


def test_copies_pickles_and_files_have_regions_of_their_own(
    resnet: tuple[nn.Module, nn.Module], runs: list[Captured], tmp_path: Any
) -> None:
    fast = resnet[1]
    x = image(2, 3, 32, 32)
    with torch.no_grad():
        expected = fast(x)
        twin, loaded = copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))
        for other in (twin, loaded):
            assert type(other).__name__ == "ResNet"
            assert isinstance(other, ResNet)
            assert torch.equal(other(x), expected)
            assert regions(other)[""] is not regions(fast)[""]
        twin.bn1.weight.mul_(2)
        assert not torch.equal(twin(x), expected)
        assert torch.equal(fast(x), expected)
        si.save(fast, tmp_path / "model.safetensors")
        again = si.load(tmp_path / "model.safetensors", ResNet().eval())
        assert torch.equal(again(x), expected)
        assert regions(again)
        other = copy.deepcopy(fast)
        other.load_state_dict(fast.state_dict())
        assert torch.equal(other(x), expected)
        buffer = io.BytesIO()
        torch.save(fast.state_dict(), buffer)
    assert len(runs) >= 6


def test_densify_leaves_nothing(resnet: tuple[nn.Module, nn.Module]) -> None:
    dense, fast = resnet
    plain = si.densify_(copy.deepcopy(fast))
    assert not regions(plain)
    assert type(plain) is ResNet
    assert vars(plain).keys() == vars(dense).keys()
    x = image(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(plain(x), dense(x))


def test_export_sees_the_layers(resnet: tuple[nn.Module, nn.Module]) -> None:
    fast = resnet[1]
    x = image(2, 3, 32, 32)
    with torch.no_grad():
        program = torch.export.export(copy.deepcopy(fast), (x,)).module()
        assert torch.allclose(program(x), fast(x), rtol=1e-4, atol=1e-5)
        vmapped = torch.func.vmap(fast)(image(2, 1, 3, 32, 32))
    assert vmapped.shape == (2, 1, 10)


def test_a_forward_that_cannot_be_followed_is_left_to_its_layers() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Bottleneck(16, 8, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if float(x.sum()) > 0 else self.body(-x)

    torch.manual_seed(3)
    dense = Odd()
    fast = converted(dense, image(1, 16, 8, 8))
    assert list(regions(fast)) == ["body"]
    for sign in (1, -1):
        check(dense, fast, sign * image(2, 16, 8, 8))


def test_a_value_that_is_written_to_is_not_shared() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
            self.identity, self.relu = nn.Identity(), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = self.identity(y)
            z = self.relu(z)
            return self.b(y) + z + y

    torch.manual_seed(4)
    dense = InPlace()
    check(dense, converted(dense, image(1, 8, 6, 6)), image(2, 8, 6, 6))


def test_values_that_are_not_numbers_go_where_torch_lets_them_go() -> None:
    torch.manual_seed(5)
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 1, bias=False)
    )
    dense[0].weight.data.fill_(1.0)
    dense[2].weight.data.copy_(torch.eye(8).view(8, 8, 1, 1))
    fast = converted(dense, image(1, 3, 8, 8), sparsity=0.0)
    x = image(1, 3, 9, 9)
    x[0, 1, 4, 4] = torch.nan
    with torch.no_grad():
        expected, got = dense[:2](x), fast(x)
    assert torch.equal(got.isnan(), expected.isnan())


def test_warm_regions_fault_no_pages() -> None:
    torch.manual_seed(6)
    dense = Bottleneck(64, 64, 64)
    fast = converted(dense, image(2, 64, 56, 56))
    with torch.no_grad():
        x, pooled = image(2, 64, 56, 56), nn.Sequential(fast, nn.AdaptiveAvgPool2d(1))
        for _ in range(5):
            pooled(x)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            pooled(x)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    # A result of 1.6 MB may be new memory, 392 pages; those inside would be as many again.
    assert faults <= 5 * 400


BAD_STEPS: list[tuple[list[Step], list[int]]] = [
    ([Step("add", 1)], [1]),
    ([Step("add", -1)], [1]),
    ([Step("add", 0, other=1)], [1]),
    ([Step("add", 0, other=-2)], [1]),
    ([Step("mean", 0, other=0)], [1]),
    ([Step("max_pool", 0, window=((0, 1), (1, 1), (0, 0), (1, 1)))], [1]),
    ([Step("max_pool", 0, window=((3, 3), (1, 1), (2, 0), (1, 1)))], [1]),
    ([Step("max_pool", 0, window=((3, 3), (1, 0), (1, 1), (1, 1)))], [1]),
    ([Step("max_pool", 0, window=((1 << 40, 1), (1, 1), (0, 0), (1, 1)))], [1]),
    ([Step("max_pool", 0, window=((3, 3), (1, 1), (0, -1), (1, 1)))], [1]),
    ([Step("max_pool", 0, window=((3, 3), (1, 1), ((1 << 63) - 1, 0), (1, 1)))], [1]),
    ([Step("depthwise", 0, n=3)], [1]),
    ([Step("conv", 0, n=3)], [1]),
    ([Step("unknown", 0)], [1]),
    ([Step("add", 0)], [0]),
    ([Step("add", 0)], [2]),
    ([Step("add", 0)], [1, 1]),
    ([Step("add", 0)], []),
]


@pytest.mark.parametrize(("steps", "outputs"), BAD_STEPS)
def test_bad_networks_are_refused(steps: list[Step], outputs: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Network(1, steps, outputs)


def test_shapes_that_do_not_fit_are_refused() -> None:
    add = Network(2, [Step("add", 0, other=1)], [2])
    with pytest.raises(ValueError, match="one shape"):
        add.run([image(1, 3, 4, 4), image(1, 3, 4, 5)])
    with pytest.raises(ValueError, match="contiguous"):
        add.run([image(1, 3, 4, 4), image(2, 3, 4, 4)])
    affine = Network(1, [Step("add", 0, n=4, bias=torch.ones(4))], [1])
    with pytest.raises(ValueError, match="channels"):
        affine.run([image(1, 3, 4, 4)])
    pool = Network(1, [Step("max_pool", 0, window=((3, 3), (1, 1), (0, 0), (1, 1)))], [1])
    with pytest.raises(ValueError, match="not larger"):
        pool.run([image(1, 3, 2, 4)])
    sparse = SparseConv2d.from_conv(nn.Conv2d(4, 6, 3))
    assert is_layer(sparse)
    packed = sparse._packings()
    from sparseinfer.ops.cpu.kernels import kernel_id
    from sparseinfer.ops.plan import parse_plan

    kernel = kernel_id(parse_plan(sparse.plan)[-1].kernel)
    window = ((3, 3), (1, 1), (0, 0), (1, 1))
    with pytest.raises(ValueError, match="groups"):
        Network(1, [Step("conv", 0, window=window, kernel=kernel, packings=packed, n=7)], [1])
    network = Network(1, [Step("conv", 0, window=window, kernel=kernel, packings=packed, n=6)], [1])
    with pytest.raises(ValueError, match="packed"):
        network.run([image(1, 5, 9, 9)])


def test_pooling_and_addition_match_torch() -> None:
    for size, window in (
        ((9, 21), ((3, 2), (2, 1), (1, 0), (1, 2))),
        ((17, 40), ((5, 3), (1, 3), (2, 1), (2, 1))),
    ):
        x = image(2, 5, *size)
        network = Network(1, [Step("max_pool", 0, window=window)], [1])
        assert torch.equal(network.run([x])[0], nn.functional.max_pool2d(x, *window))
    x, y = image(3, 4, 5, 7), image(3, 4, 5, 8)[..., :7].contiguous()
    f, b = image(4), image(4) + 1
    steps = [Step("add", 0, other=1, n=4, factors=f, bias=b, activation="relu"), Step("mean", 2)]
    total, mean = Network(2, steps, [2, 3]).run([x, y])
    expected = torch.relu(x * f.view(4, 1, 1) + b.view(4, 1, 1) + y)
    assert torch.allclose(total, expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(mean, expected.mean((2, 3), keepdim=True), rtol=1e-6, atol=1e-7)


def test_layers_alone_are_no_region() -> None:
    with pytest.raises(Refused, match="native"):
        Holder().capture(nn.Sequential(nn.ReLU()), 3)
