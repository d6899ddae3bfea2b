"""The kernels on a GPU: every one of them against fp64, layers moved there and back, CUDA graphs, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from cuda_helpers import needs_gpu
from generators import block_weight, tokens, values, weight
from torch import Tensor, nn

from sparseinfer import SparseConv2d, SparseLinear, convert, densify_, explain, ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cuda import linear as cuda
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.kernels import cuda_kernel_id
from sparseinfer.ops.cuda.tiles import TILED
from sparseinfer.ops.names import ACTIVATIONS, DTYPES

pytestmark = [
    needs_gpu,
    pytest.mark.skipif(not ops.cuda_kernels(), reason="this build has no CUDA kernels"),
]

SPMM = [kernel for kernel in ops.cuda_kernels() if kernel.op == "spmm"]
every_kernel = pytest.mark.parametrize("kernel", SPMM, ids=lambda kernel: kernel.name)


def runs(name: str) -> bool:
    try:
        cuda_kernel_id(name, torch.cuda.current_device())
    except RuntimeError:
        return False
    return True


def formats(kernel: ops.CudaKernel, integer: bool) -> list[CSR | BSR]:
    dtype, block = DTYPES[kernel.dtype], kernel.block
    if kernel.packing != "bsr":
        shapes = ((1, 1), (65, 481), (300, 1000))
        return [CSR.from_dense(weight("random", n, k, 0.8, integer=integer, dtype=dtype)) for n, k in shapes]
    size = (block, block)
    shapes = [(r * block, c * block) for r, c in ((1, 1), (3, 5), (9, 7))]
    weights = [block_weight(n, k, size, 0.6, integer=integer, dtype=dtype) for n, k in shapes]
    return [BSR.from_dense(w, size) for w in weights]


def forced(
    name: str, fmt: CSR | BSR, x: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    packed = cuda_packing.pack(fmt, packing=name.split("_")[1])
    plan = ops.format_plan((ops.Bucket(None, 0, name),))
    on_gpu = None if bias is None else bias.cuda()
    return cuda.run(x.cuda(), [packed], on_gpu, fmt.shape[0], plan, activation).cpu()


@every_kernel
def test_integers_are_exact(kernel: ops.CudaKernel) -> None:
    if not runs(kernel.name):
        pytest.skip(f"{kernel.arch} is not this device")
    for fmt in formats(kernel, integer=True):
        bias = torch.arange(fmt.shape[0]).float() % 7
        for m in (1, 3, 4, 7, 8, 16, 30, 64, 129, 300):
            if kernel.most_tokens and m > kernel.most_tokens:
                break
            x = tokens(m, fmt.shape[1], integer=True, dtype=fmt.dtype)
            wanted = ops.reference_linear(x, fmt, bias).to(fmt.dtype)
            assert torch.equal(forced(kernel.name, fmt, x, bias), wanted)


@every_kernel
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_reals(kernel: ops.CudaKernel, activation: str) -> None:
    if not runs(kernel.name):
        pytest.skip(f"{kernel.arch} is not this device")
    fmt = formats(kernel, integer=False)[-1]
    x = tokens(3, fmt.shape[1], dtype=fmt.dtype)
    y, wanted = forced(kernel.name, fmt, x, None, activation), ops.reference_linear(x, fmt, None, activation)
    # Activations are at most 1.13 times as steep as their input.
    largest = x.double().abs().max() * fmt.values.double().abs().max()
    sums = 2.3 * torch.finfo(torch.float32).eps * (fmt.shape[1] + 1) * largest
    rounding = torch.finfo(fmt.dtype).eps * wanted.abs()
    assert ((y.double() - wanted).abs() <= sums + rounding).all()


def test_nan_reaches_only_its_own_outputs() -> None:
    w = torch.zeros(64, 500)
    w[3, 5], w[20, 499] = 1.0, 3.0
    x = torch.ones(40, 500)
    x[4, 5], x[10, 499], x[8, 11] = float("nan"), float("inf"), float("nan")
    for name in ("spmm_csr_f32_t4", "spmm_csr_f32_t32"):
        rows = x[4:8] if name.endswith("t4") else x
        y = forced(name, CSR.from_dense(w), rows)
        assert y[4 if len(rows) == 40 else 0, 3].isnan()
        assert y.isfinite().sum() == y.numel() - (2 if len(rows) == 40 else 1)


@pytest.mark.parametrize("packing", ["csr", *TILED])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decompression_is_exact(dtype: torch.dtype, packing: str) -> None:
    w = weight("random", 130, 971, 0.7, dtype=dtype)
    assert torch.equal(cuda.decompress(cuda_packing.pack(CSR.from_dense(w), packing=packing)).cpu(), w)


def test_decompression_of_float32_is_exact() -> None:
    w = weight("random", 130, 971, 0.7)
    assert torch.equal(cuda.decompress(cuda_packing.pack(CSR.from_dense(w))).cpu(), w)


@pytest.mark.parametrize("packing", ["csr", *TILED])
def test_packing_on_the_gpu_gives_the_same_bytes(packing: str) -> None:
    fmt = CSR.from_dense(weight("random", 130, 971, 0.7, dtype=torch.bfloat16))
    packed = cuda_packing.pack(fmt, packing=packing)
    assert torch.equal(packed.cpu(), cuda_packing.pack(fmt, "cpu", packing))


def test_packing_blocks_on_the_gpu_gives_the_same_bytes() -> None:
    blocks = BSR.from_dense(block_weight(96, 160, (32, 32), 0.5, dtype=torch.bfloat16), (32, 32))
    assert torch.equal(cuda_packing.pack(blocks).cpu(), cuda_packing.pack(blocks, "cpu"))


def linear(n: int = 96, k: int = 200) -> nn.Linear:
    layer = nn.Linear(k, n)
    layer.weight.data = weight("random", n, k, 0.9)
    return layer


def test_there_and_back() -> None:
    dense = linear()
    layer = SparseLinear.from_linear(dense)
    before, plan = copy.deepcopy(layer.state_dict()), layer.plan
    x = tokens(9, 200)
    with torch.no_grad():
        wanted = layer(x)
        layer.to("cuda")
        assert layer.bias is not None
        assert layer.bias.is_cuda
        assert torch.allclose(layer(x.cuda()).cpu(), wanted, atol=1e-5)
        for key, value in layer.state_dict().items():
            assert torch.equal(value.cpu(), before[key])
        layer.to("cpu")
        assert layer.plan == plan
        assert torch.equal(layer(x), wanted)


def test_cuda_graph_on_another_stream() -> None:
    layer = SparseLinear.from_linear(linear()).to("cuda")
    x = tokens(9, 200).cuda()
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        wanted = layer(x)
        graph = torch.cuda.CUDAGraph()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            y = layer(x)
        y.fill_(float("nan"))
        graph.replay()
        stream.synchronize()
    assert torch.equal(y, wanted)


def test_a_new_packing_in_a_graph_is_refused() -> None:
    packed = cuda_packing.pack(CSR.from_dense(weight("random", 8, 8, 0.5))).clone()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="packed: expected one used before"), torch.cuda.graph(graph):
        cuda_packing.resident(packed)


def test_convert_on_the_gpu() -> None:
    model = nn.Sequential(linear(1024, 1024), nn.ReLU(), linear(1024, 1024)).eval().cuda()
    x = tokens(32, 1024).cuda()
    fast = convert(model, example_inputs=(x,))
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-4)
    assert len(explain(fast).rows) == 2
    assert next(densify_(fast).parameters()).is_cuda


@pytest.mark.parametrize("last", [False, True])
def test_convert_convolutions_on_the_gpu(last: bool) -> None:
    layers = [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 1), nn.MaxPool2d(2)]
    for conv in (layers[0], layers[2]):
        n, k = len(conv.weight), conv.weight[0].numel()
        conv.weight.data = weight("random", n, k, 0.95).view(conv.weight.shape)
    model = nn.Sequential(*layers).eval().cuda()
    x = values(2, 64, 14, 14).cuda()
    x = x.to(memory_format=torch.channels_last) if last else x
    fast = convert(model, example_inputs=(x,), memory="compact")
    sparse = SparseConv2d.from_conv(model[0].cpu()).cuda()
    model[0].cuda()
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        wanted = model(x)
        assert torch.allclose(fast(x), wanted, atol=1e-3)
        assert torch.allclose(sparse(x), model[0](x), atol=1e-3)
        assert sparse(x).stride() == model[0](x).stride()
    assert [row.shape for row in explain(fast).rows] == [(64, 576), (128, 64)]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_convert_recurrent_layers_on_the_gpu(kind: type[nn.RNNBase]) -> None:
    model = nn.Sequential(kind(256, 256, batch_first=True)).eval().cuda()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= (weight("random", *parameter.shape, 0.95) != 0).cuda()
    x = tokens(24, 256).view(4, 6, 256).cuda()
    fast = convert(model, example_inputs=(x,), memory="compact")
    with torch.no_grad():
        assert torch.allclose(fast(x)[0], model(x)[0], atol=1e-3)


def test_convert_attention_on_the_gpu() -> None:
    model = nn.TransformerEncoderLayer(256, 4, batch_first=True).eval().cuda()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= (weight("random", *parameter.shape, 0.95) != 0).cuda()
    x = tokens(24, 256).view(2, 12, 256).cuda()
    fast = convert(model, example_inputs=(x,), memory="compact")
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-3)


def test_wrong_devices_are_named() -> None:
    layer = SparseLinear.from_linear(linear())
    with pytest.raises(ValueError, match="packings: expected a tensor on cuda:0, where x is, got one on cpu"):
        cuda.run(tokens(2, 200).cuda(), layer._packings(), None, 96, "*:0:spmm_csr_f32_t32", "none")


def test_out_of_memory_is_an_exception_and_the_gpu_goes_on() -> None:
    n, m = 1 << 20, 1 << 18  # y would have 1 TB
    fmt = CSR.from_dense(torch.eye(n, 8))
    packed, plan = cuda_packing.pack(fmt), "4:0:spmm_csr_f32_t4,*:0:spmm_csr_f32_t32"
    x = torch.ones(m, 8, device="cuda")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        cuda.run(x, [packed], None, n, plan, "none")
    y = cuda.run(x[:5], [packed], None, n, plan, "none")
    torch.cuda.synchronize()
    assert torch.equal(y.cpu().double(), ops.reference_linear(x[:5].cpu(), fmt))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two GPUs")
def test_a_layer_on_another_gpu() -> None:
    fmt = CSR.from_dense(weight("random", 96, 200, 0.9, integer=True))
    packed, x = cuda_packing.pack(fmt, "cuda:1"), tokens(9, 200, integer=True)
    y = cuda.run(x.to("cuda:1"), [packed], None, 96, "*:0:spmm_csr_f32_t32", "none")
    assert torch.equal(y.cpu().double(), ops.reference_linear(x, fmt))
    assert torch.cuda.current_device() == 0
    for device in ("cuda:0", "cuda:1"):  # torch's own launches still go where they should
        assert float(torch.ones(3, device=device).sum()) == 3
    with pytest.raises(
        ValueError, match="packings: expected a tensor on cuda:0, where x is, got one on cuda:1"
    ):
        cuda.run(x.to("cuda:0"), [packed], None, 96, "*:0:spmm_csr_f32_t32", "none")
