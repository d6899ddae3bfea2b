"""Steps of networks beside sparse convolution: depthwise, activations, padding, squeeze-excite."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from region_models import converted
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer.convert.assembly.joining import region_of
from sparseinfer.formats import CSR
from sparseinfer.modules.regions.captured import Captured
from sparseinfer.modules.regions.lower import Native
from sparseinfer.ops.cpu.kernels import kernel_id
from sparseinfer.ops.cpu.network import Network, Step

EPS = torch.finfo(torch.float32).eps


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def check_depthwise(x: Tensor, w: Tensor, window: Any, after: tuple[int, int], activation: str) -> None:
    """Against float64; each sum of as many products as there are taps, and twice the epilogue."""
    (stride, padding, dilation), n = window, x.shape[1]
    factors, bias = image(n), image(n) + 1
    step = Step(
        "depthwise",
        0,
        activation=activation,
        window=(w.shape[2:], stride, padding, dilation),
        padding_after=after,
        weights=w,
        n=n,
        factors=factors,
        bias=bias,
    )
    (y,) = Network(1, [step], [1]).run([x])
    padded = F.pad(x, (padding[1], after[1], padding[0], after[0])).double()
    sums = F.conv2d(padded, w.double(), None, stride, 0, dilation, n)
    wide = sums * factors.double().view(n, 1, 1) + bias.double().view(n, 1, 1)
    expected = ops.ACTIVATIONS[activation](wide)
    assert y.shape == expected.shape
    taps = w[0].numel()
    scale = F.conv2d(padded.abs(), w.double().abs(), None, stride, 0, dilation, n)
    bound = (
        2
        * EPS
        * (taps + 4)
        * (scale * factors.double().abs().view(n, 1, 1) + bias.double().abs().view(n, 1, 1))
    )
    assert ((y.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("seed", range(60))
def test_depthwise_of_any_window(seed: int) -> None:
    rng = random.Random(seed)
    kernel = [rng.choice((1, 2, 3, 3, 5, 7)) for _ in range(2)]
    stride = [rng.choice((1, 1, 2, 2, 3, 9)) for _ in range(2)]
    dilation = [rng.choice((1, 1, 2, 3)) for _ in range(2)]
    before, after = [[rng.randint(0, 4) for _ in range(2)] for _ in range(2)]
    size = [rng.choice((1, 3, 7, 8, 14, 17, 33, 56, 130)) for _ in range(2)]
    for d in range(2):
        reach = (kernel[d] - 1) * dilation[d] + 1
        size[d] = max(size[d], reach - before[d] - after[d], 1)
    channels = rng.randint(1, 5)
    x, w = image(rng.randint(1, 3), channels, *size), image(channels, 1, *kernel)
    window: Any = (tuple(stride), tuple(before), tuple(dilation))
    check_depthwise(x, w, window, (after[0], after[1]), rng.choice(("none", "relu", "relu6")))


# Heights and widths around those of a vector and of the rows that are computed together.
SIZES = ((1, 1), (3, 4), (6, 5), (7, 7), (8, 16), (14, 15), (15, 33), (13, 70))


def check_square_depthwise() -> None:
    """Windows of 3x3 and 5x5 with their usual strides, and paddings up to beyond the image."""
    for size in SIZES:
        for side in (3, 5):
            for stride in (1, 2):
                for before, after in ((side // 2, side // 2), (0, side - 1), (side + 2, 1)):
                    x, w = image(1, 3, *size), image(3, 1, side, side)
                    window = ((stride, stride), (before, before), (1, 1))
                    check_depthwise(x, w, window, (after, after), "relu6")
    # What lies outside of the image is zeros, and what is no number stays where it is.
    x, w = torch.full((1, 1, 9, 20), torch.inf), torch.ones(1, 1, 3, 3)
    x[0, 0, 4, 7] = torch.nan
    step = Step("depthwise", 0, window=((3, 3), (1, 1), (1, 1), (1, 1)), weights=w, n=1)
    (y,) = Network(1, [step], [1]).run([x])
    assert torch.equal(
        y.isnan().nonzero()[:, 2:], torch.cartesian_prod(torch.arange(3, 6), torch.arange(6, 9))
    )
    assert y[~y.isnan()].isinf().all()


def check_square_pooling() -> None:
    """Windows of 2x2 and 3x3 with their usual strides; NaN and infinities as torch has them."""
    draw = torch.Generator().manual_seed(3)
    for size in SIZES:
        for side in (2, 3):
            for stride in (1, 2):
                for padding in (0, 1):
                    if min(size) + 2 * padding < side:
                        continue
                    x = image(1, 4, *size)
                    some = torch.rand(x.shape, generator=draw)
                    x[some < 0.06], x[some > 0.97] = torch.nan, torch.inf
                    x[:, 1] = -torch.inf
                    x[:, 2] = torch.where(some[:, 2] < 0.5, -torch.inf, torch.nan)
                    window = ((side, side), (stride, stride), (padding, padding), (1, 1))
                    (y,) = Network(1, [Step("max_pool", 0, window=window)], [1]).run([x])
                    expected = F.max_pool2d(x, side, stride, padding)
                    assert torch.equal(y.isnan(), expected.isnan())
                    assert torch.equal(y.nan_to_num(0.0), expected.nan_to_num(0.0))


def test_square_windows() -> None:
    check_square_depthwise()
    check_square_pooling()


# Those whose vectors are of other lengths.
@pytest.mark.parametrize("isa", sorted({"scalar", "avx2"} & set(ops.isa_levels())))
def test_square_windows_of_other_levels(isa: str) -> None:
    code = "import test_region_steps as t; t.check_square_depthwise(); t.check_square_pooling()"
    environment = {**os.environ, "SPARSEINFER_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", f"{code}; assert t.ops.active_isa() == {isa!r}"]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("side", "stride", "kind"), [(3, 1, "depthwise"), (5, 2, "depthwise"), (3, 2, "max_pool")]
)
def test_bits_of_windows_do_not_depend_on_the_split(side: int, stride: int, kind: str) -> None:
    x, w = image(1, 37, 29, 40), image(37, 1, side, side)
    step = Step(kind, 0, window=((side, side), (stride, stride), (1, 1), (1, 1)))
    if kind == "depthwise":
        step.weights, step.n = w, 37
    network = Network(1, [step], [1])
    (once,) = network.run([x], parts=1)
    assert all(torch.equal(once, network.run([x], parts=parts)[0]) for parts in (2, 3, 8))


KERNELS = [
    kernel
    for kernel in ops.kernels()
    if kernel.conv and (kernel.isa, kernel.storage, kernel.format) == (ops.active_isa(), "f32", "csr")
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.packing)
def test_pixels_of_a_convolution_are_shared(kernel: Any) -> None:
    # 1x1, with so few rows that threads take pixels: pieces of them give the bits of the whole.
    for height, width, residual in ((14, 14, True), (9, 15, False), (8, 8, True), (16, 31, True)):
        x, w = image(1, 40, height, width), image(24, 40)
        w[image(24, 40).abs() < 0.9] = 0
        packed = ops.pack(CSR.from_dense(w), kernel.packing, storage=kernel.storage, isa=kernel.isa)
        other = image(1, 24, height, width)
        bias = image(24)
        step = Step("conv", 0, kernel=kernel_id(kernel.name), packings=[packed], n=24, bias=bias)
        step.other, step.activation = (1 if residual else -1), "relu"
        network = Network(2, [step], [2])
        (once,) = network.run([x, other], parts=1)
        expected = F.conv2d(x.double(), w.double()[..., None, None], bias.double())
        expected = torch.relu(expected + other if residual else expected)
        sizes = (
            F.conv2d(x.abs().double(), w.abs().double()[..., None, None], bias.abs().double()) + other.abs()
        )
        assert ((once.double() - expected).abs() <= 2 * EPS * (40 + 4) * sizes).all()
        assert all(torch.equal(once, network.run([x, other], parts=parts)[0]) for parts in (2, 3, 4, 5))


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [
        ((3, 5000), (3, 3), (1, 1)),
        ((40, 40), (13, 11), (1, 2)),
        ((300, 9), (150, 1), (1, 1)),
        ((4, 4096), (1, 1), (1, 1)),
    ],
)
def test_depthwise_that_no_band_holds(size: Any, kernel: Any, stride: Any) -> None:
    check_depthwise(image(1, 2, *size), image(2, 1, *kernel), (stride, (1, 0), (1, 1)), (0, 2), "none")


def test_depthwise_of_integers_is_exact() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (2, 6, 30, 41), generator=draw).float()
    w = torch.randint(-8, 9, (6, 1, 5, 5), generator=draw).float()
    step = Step("depthwise", 0, window=((5, 5), (2, 2), (2, 2), (1, 1)), weights=w, n=6)
    assert torch.equal(Network(1, [step], [1]).run([x])[0], F.conv2d(x, w, None, 2, 2, 1, 6))


@pytest.mark.parametrize("activation", [name for name in ops.ACTIVATIONS if name != "none"])
def test_activations_and_what_is_no_number(activation: str) -> None:
    # Of huge values, torch's silu and gelu may be infinity times zero; those here return their limits.
    limits = [] if activation in ("silu", "gelu", "gelu_tanh") else [torch.inf, -torch.inf, 1e30, -1e30]
    special = [torch.nan, *limits, 0.0, -0.0, 3.0, -3.0, 6.0, 100.0, -100.0]
    x = torch.cat([torch.tensor(special), torch.linspace(-8, 8, 200)]).view(1, 1, 1, -1)
    (y,) = Network(1, [Step("add", 0, activation=activation)], [1]).run([x])
    expected = ops.ACTIVATIONS[activation](x)
    assert torch.equal(y.isnan(), expected.isnan())
    # A few operations on values up to 8, each of EPS.
    assert torch.allclose(y, expected, rtol=1e-6, atol=12 * EPS * 8, equal_nan=True)


def test_scale_matches_torch() -> None:
    for size in ((5, 7), (1, 1), (16, 16)):
        x, s = image(3, 4, *size), image(3, 4, 1, 1)
        (y,) = Network(2, [Step("scale", 0, other=1, activation="relu6")], [2]).run([x, s])
        assert torch.equal(y, F.relu6(x * s))
    with pytest.raises(ValueError, match="one pixel"):
        Network(2, [Step("scale", 0, other=1)], [2]).run([image(1, 3, 4, 4), image(1, 3, 4, 4)])
    with pytest.raises(ValueError, match="another value"):
        Network(1, [Step("scale", 0)], [1])
    with pytest.raises(ValueError, match="padding"):
        Network(1, [Step("max_pool", 0, window=((3, 3), (1, 1), (0, 0), (1, 1)), padding_after=(2, 0))], [1])


class SqueezeExcite(nn.Module):
    """Of MobileNetV3 or EfficientNet, in the ways they write it."""

    def __init__(self, channels: int, form: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.pool, self.form = nn.AdaptiveAvgPool2d(1), form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == 0:
            return x * F.hardsigmoid(self.expand(F.relu(self.reduce(self.pool(x)))))
        if self.form == 1:
            return torch.sigmoid(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, (1, 1)))))) * x
        scale = self.expand(F.hardswish(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        return torch.mul(x, scale)


class Same(nn.Module):
    """A strided convolution padded as TensorFlow pads it."""

    def __init__(self, channels: int, size: int, form: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, size, 2, groups=channels, bias=False)
        total = size - 2
        self.pads = (total // 2, total - total // 2) * 2
        self.pad = nn.ZeroPad2d(self.pads) if form else None

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads) if self.pad is None else self.pad(x))


def small_net(form: int, activation: type[nn.Module], size: int) -> nn.Module:
    return nn.Sequential(
        *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), activation()),
        *(nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), activation()),
        *(Same(24, size, form), nn.BatchNorm2d(24), activation(), SqueezeExcite(24, form)),
        *(nn.Conv2d(24, 16, 1, bias=False), nn.BatchNorm2d(16)),
    )


def native_parts(model: nn.Module) -> list[Any]:
    holder = region_of(model)
    assert holder is not None
    captured = [one for one in holder._captured.values() if isinstance(one, Captured)]
    return [part for one in captured for part in one.parts]


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize(("form", "activation"), [(0, nn.ReLU6), (1, nn.SiLU), (2, nn.Hardswish)])
def test_mobile_networks_are_one_network(form: int, activation: type[nn.Module], size: int) -> None:
    torch.manual_seed(form)
    dense = small_net(form, activation, size)
    fast = converted(dense, image(2, 3, 32, 32))
    assert [type(part) for part in native_parts(fast)] == [Native]
    wide = dense.double()
    threads = torch.get_num_threads()
    for shape in ((2, 3, 32, 32), (1, 3, 17, 40), (5, 3, 9, 8)):
        x = image(*shape)
        with torch.no_grad():
            expected = wide(x.double())
            results = []
            try:
                for count in (1, 2, 3):
                    torch.set_num_threads(count)
                    results.append(fast(x))
            finally:
                torch.set_num_threads(threads)
        assert all(torch.equal(results[0], other) for other in results)
        assert (results[0].double() - expected).norm() <= 1e-5 * expected.norm()


class Padding(nn.Module):
    """Paddings that are not, or not only, those of a convolution."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)
        self.third, self.form = nn.Conv2d(8, 8, 1), form

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.form == "twice":
            y = F.pad(x, (1, 1, 1, 1))
            return self.third(self.second(y)), y
        if self.form == "written":
            y = F.pad(x, (1, 1, 1, 1))
            x = F.relu_(x)
            return self.third(self.second(y)) + x
        value = 0.5 if self.form == "value" else 0.0
        mode = "reflect" if self.form == "reflect" else "constant"
        pads = (-1, 2, 0, 1) if self.form == "negative" else (1, 2, 0, 1)
        y = F.pad(x, pads, mode) if mode == "reflect" else F.pad(x, pads, mode, value)
        return self.third(F.relu6(self.second(y)))


@pytest.mark.parametrize("form", ["plain", "twice", "written", "value", "reflect", "negative"])
def test_other_paddings_stay_as_they_are(form: str) -> None:
    torch.manual_seed(7)
    dense = Padding(form)
    fast = converted(dense, image(1, 8, 9, 9))
    x = image(2, 8, 11, 12)
    with torch.no_grad():
        expected, got = dense.double()(x.double()), fast(x)
    expected, got = (value if isinstance(value, tuple) else (value,) for value in (expected, got))
    for a, b in zip(expected, got, strict=True):
        assert (b.double() - a).norm() <= 1e-5 * a.norm()


def test_products_of_two_images_are_not_scales() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) * torch.sigmoid(self.b(x)))

    torch.manual_seed(8)
    dense = Gated()
    fast = converted(dense, image(1, 8, 6, 6))
    for size in (6, 1):
        x = image(2, 8, size, size)
        with torch.no_grad():
            expected = dense.double()(x.double())
            assert (fast(x).double() - expected).norm() <= 1e-5 * expected.norm()
