"""Dense models for other tools, with their zeros in place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sparseinfer as si
from sparseinfer.io.export import dense_state_dict, export_onnx, export_safetensors


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.q, self.k = nn.Linear(128, 32), nn.Linear(128, 32)
        self.tied = nn.Linear(128, 32)
        self.tied.weight = self.q.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x))).flatten(1)
        return self.q(y) + self.k(y) * self.tied(y)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["pruned", "converted"])
def model(request: pytest.FixtureRequest, x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    si.prune_(net, si.Magnitude(sparsity=0.8))
    if request.param == "pruned":
        return net  # with its masks
    return si.convert(net, example_inputs=(x,), memory="compact", measure=False)


def reference(x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    net = Net().eval()
    si.finalize_(si_pruned(net))
    with torch.no_grad():
        return dict(net.state_dict()), net(x)


def si_pruned(net: nn.Module) -> nn.Module:
    si.prune_(net, si.Magnitude(sparsity=0.8))
    return net


def test_dense_state_dict(model: nn.Module, x: Tensor) -> None:
    expected, _ = reference(x)
    got = dense_state_dict(model)
    assert got.keys() == expected.keys()
    for name, t in expected.items():
        assert torch.equal(got[name], t), name
    assert got["tied.weight"].data_ptr() == got["q.weight"].data_ptr()


def test_safetensors(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    expected, _ = reference(x)
    got = load_file(export_safetensors(model, tmp_path / "dense.safetensors"))
    assert got.keys() == expected.keys() - {"tied.weight"}
    assert all(torch.equal(t, expected[name]) for name, t in got.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own
def test_onnx(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx (the extra `test` installs it)")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra `test` installs it)")
    path = export_onnx(model, tmp_path / "model.onnx", (x,))
    _, expected = reference(x)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [entry.name for entry in session.get_inputs()]
    (got,) = session.run(None, {name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-5)
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    pruned = [w for w in weights if w.ndim > 1]
    assert sum((w == 0).sum() for w in pruned) >= 0.79 * sum(w.size for w in pruned)
