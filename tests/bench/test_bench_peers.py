"""Other engines run in processes of their own; what they answer is checked, and their faults are errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparseinfer._timing import SelfTimed, interleave
from sparseinfer.bench import layer
from sparseinfer.bench.peers import process
from sparseinfer.bench.peers.graphs import layer_graphs, model_graph
from sparseinfer.bench.peers.process import WORKER, Opened, PeerError, Worker, interpreter
from sparseinfer.bench.peers.registry import NAMES, Peer, Peers, read_peers
from sparseinfer.bench.peers.worker import ENGINES
from sparseinfer.bench.problem import NumericsError, random_layer
from sparseinfer.bench.settings import Settings

pytest.importorskip("onnx", reason="onnx is not installed (pip install 'sparseinfer[test]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'sparseinfer[test]')")

TINY = Settings(shapes=((32, 48),), sparsities=(0.75,), tokens=(5,), budget_s=1e-3)


def engines_here() -> list[str]:
    """Those that are installed here, or beside in the environments of `make bench-peers`."""
    found = []
    for name in ENGINES:
        try:
            interpreter(name)
        except ValueError:
            continue
        found.append(name)
    return found


@pytest.fixture(scope="module")
def onnxruntime():
    with Worker("onnxruntime", Path(sys.executable)) as worker:
        yield worker


def test_peers_are_read_as_they_are_typed() -> None:
    assert read_peers("torch,scipy,deepsparse=/a/b") == (
        Peer("torch"),
        Peer("scipy"),
        Peer("deepsparse", Path("/a/b")),
    )
    assert {"torch", "torch-csr", "scipy", "onnxruntime", "openvino", "deepsparse"} == set(NAMES)
    with pytest.raises(ValueError, match="expected some of torch, torch-csr"):
        read_peers("scippy")
    with pytest.raises(ValueError, match="expected no environment for scipy"):
        read_peers("scipy=/a")


def test_an_engine_is_looked_for_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"peers: expected deepsparse to be installed, got none .*venv-peers"
    ):
        interpreter("deepsparse")
    python = tmp_path / ".venv-peers-deepsparse/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert interpreter("deepsparse") == python
    assert interpreter("deepsparse", python.parents[1]) == python
    with pytest.raises(ValueError, match="peers: expected an environment or its Python for deepsparse"):
        interpreter("deepsparse", tmp_path)


@pytest.mark.parametrize("engine", engines_here())
@pytest.mark.parametrize("dtype", ["f32", "bf16", "i8"])
def test_engines_take_part_in_every_cell_with_results_that_were_checked(
    engine: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer, "last_level_cache_bytes", lambda: 1 << 18)  # few copies
    settings = Settings(
        TINY.shapes, (), TINY.sparsities, TINY.tokens, (dtype,), (1, 2), ("warm", "cold"), budget_s=1e-3,
        peers=(Peer(engine),),
    )  # fmt: skip
    rows = [row for row in layer.run(settings) if row.name.startswith(engine)]
    forms = 2 if engine == "deepsparse" and dtype != "i8" else 1
    # Weights that are read from memory are copies, which another process has not.
    assert [(row.threads, row.weights) for row in rows] == [(t, "warm") for t in (1, 2) for _ in range(forms)]
    assert {row.kind for row in rows} == {"other"}
    assert all(row.us > 0 for row in rows)


def test_libraries_are_those_that_were_asked_for() -> None:
    names = {row.name for row in layer.run(Settings(TINY.shapes, (), (0.75,), (5,), budget_s=1e-3, peers=()))}
    assert not {"torch csr", "scipy csr"} & names


def test_a_wrong_result_of_an_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = layer_graphs

    def wrong(weight, bias, *rest):
        return original(weight, bias + 1, *rest)

    monkeypatch.setattr("sparseinfer.bench.peers.registry.layer_graphs", wrong)
    with pytest.raises(NumericsError, match=r"onnxruntime matmul: expected y\[0, 0\]"):
        layer.run(Settings(TINY.shapes, (), (0.75,), (5,), budget_s=1e-3, peers=(Peer("onnxruntime"),)))


def test_graphs_compute_the_layer(onnxruntime: Worker, tmp_path: Path) -> None:
    weight, bias = random_layer(6, 8, 0.5)
    x = torch.randn(3, 8)
    expected = x @ weight.t() + bias
    for form, graph in layer_graphs(weight, bias, x, None, tmp_path).items():
        given = x[:, :, None, None] if form == "conv" else x
        got = Opened(onnxruntime, graph, (given,), 1).result
        torch.testing.assert_close(got.reshape(3, 6), expected)
    # Integers that x is rounded to exactly: its range is 255 steps of 1.
    integers = torch.randint(-127, 128, (6, 8)).to(torch.int8)
    x = torch.randint(0, 256, (3, 8)).float()
    x[0, 0], x[0, 1] = 0.0, 255.0
    scales = torch.full((6,), 0.5)
    (graph,) = layer_graphs(integers, torch.zeros(6), x, scales, tmp_path).values()
    got = Opened(onnxruntime, graph, (x,), 1).result
    assert torch.equal(got, x @ integers.float().t() * 0.5)


def test_a_model_is_exported_with_all_that_it_takes(onnxruntime: Worker, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(10, 4), nn.Linear(4, 3)

        def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.fc(self.table(ids)) * scale}

    model = Net().eval()
    inputs = {"ids": torch.tensor([[1, 2, 3]]), "scale": torch.tensor([2.0])}
    graph, tensors = model_graph(model, lambda net, given: net(**given)["y"], inputs, tmp_path / "m.onnx")
    with torch.no_grad():
        torch.testing.assert_close(Opened(onnxruntime, graph, tensors, 1).result, model(**inputs)["y"])


def test_what_an_engine_refuses_is_told_and_the_worker_goes_on(onnxruntime: Worker, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(PeerError, match=r"onnxruntime: .*bad.onnx"):
        Opened(onnxruntime, tmp_path / "bad.onnx", (torch.ones(1, 4),), 1)
    weight, bias = random_layer(4, 4, 0.5)
    graph = layer_graphs(weight, bias, torch.ones(1, 4), None, tmp_path)["matmul"]
    with pytest.raises(PeerError, match="precision: expected f32, got bf16"):
        Opened(onnxruntime, graph, (torch.ones(1, 4),), 1, "bf16")
    for request, message in (
        ({"do": "dance"}, "do: expected open, run, time or close, got 'dance'"),
        ({"do": "time", "opened": 99, "warm_s": 0, "least_s": 0}, "KeyError: 99"),
        ({"do": "close"}, "missing 1 required positional argument"),
    ):
        with pytest.raises(PeerError, match=message):
            onnxruntime.ask(**request)
    opened = Opened(onnxruntime, graph, (torch.ones(1, 4),), 1)
    assert opened.sample() > 0
    opened.close()
    with pytest.raises(PeerError, match="KeyError"):
        opened.sample()


def test_a_worker_that_ends_is_an_error_that_says_what_it_printed(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such engine >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(PeerError, match="openvino: it ended with status 3: no such engine"):
        Worker("openvino", python)


def test_an_engine_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """The interpreter is there, the package is not."""
    with pytest.raises(PeerError, match="nothing: KeyError"):
        Worker("nothing", Path(sys.executable))


def test_workers_end_with_the_run() -> None:
    with Peers((Peer("onnxruntime"),)) as peers:
        (worker,) = peers.workers
        assert set(peers.versions) == {"onnxruntime"}
        folder = worker.folder
        assert folder.exists()
    assert worker._process.poll() == 0
    assert not folder.exists()


def test_the_worker_speaks_its_protocol_without_this_package(tmp_path: Path) -> None:
    weight, bias = random_layer(4, 6, 0.5)
    x = torch.randn(2, 6)
    graph = layer_graphs(weight, bias, x, None, tmp_path)["matmul"]
    np.savez(tmp_path / "in.npz", x.numpy())
    requests = [
        {"do": "open", "model": str(graph), "batch": 2, "threads": 1, "precision": "f32"},
        {"do": "run", "opened": 1, "inputs": str(tmp_path / "in.npz"), "output": str(tmp_path / "out.npy")},
        {"do": "time", "opened": 1, "warm_s": 0.0, "least_s": 0.0},
        {"do": "close", "opened": 1},
    ]
    done = subprocess.run(
        [sys.executable, "-S", "-c", _WITHOUT_US, str(WORKER), "onnxruntime"],
        input="".join(json.dumps(one) + "\n" for one in requests),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    hello, *answers = map(json.loads, done.stdout.splitlines())
    assert hello["engine"] == "onnxruntime"
    assert answers[0] == {"opened": 1}
    assert len(answers[2]["seconds"]) == 1
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "out.npy")), x @ weight.t() + bias)


_WITHOUT_US = f"""
import runpy, sys
sys.path[:0] = {[path for path in sys.path if path.endswith("site-packages")]!r}
sys.modules["sparseinfer"] = sys.modules["torch"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_one_with_a_clock_of_its_own_takes_its_turns() -> None:
    class Clock:
        estimate_s = 1e-9

        def __init__(self) -> None:
            self.asked = 0

        def sample(self) -> float:
            self.asked += 1
            return self.asked * 1e-3

    clock = Clock()
    assert isinstance(clock, SelfTimed)
    times = interleave({"here": [lambda: None], "there": clock}, budget_s=0.0, min_rounds=5)
    assert clock.asked == times["there"].samples == 5
    assert times["there"].min_us == pytest.approx(1000)
    assert times["there"].median_us == pytest.approx(3000)
    assert times["there"].spread == pytest.approx(0.5)  # quartiles of 1 to 5 are 1.5 and 4.5
