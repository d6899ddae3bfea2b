"""The engines that `sparseinfer bench --peers` knows, and the workers of those that were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sparseinfer.bench.candidate import OTHER, Candidate
from sparseinfer.bench.libraries import LIBRARIES
from sparseinfer.bench.peers.graphs import layer_graphs
from sparseinfer.bench.peers.process import Opened, Worker, interpreter
from sparseinfer.bench.peers.worker import ENGINES

# torch's dense products always take part.
TORCH = "torch"
NAMES = (TORCH, *LIBRARIES, *ENGINES)


@dataclass(frozen=True)
class Peer:
    """A library or engine by name; `environment` has it, a folder or its Python; None: see `interpreter`."""

    name: str
    environment: Path | None = None

    def __str__(self) -> str:
        return self.name if self.environment is None else f"{self.name}={self.environment}"


def read_peers(text: str) -> tuple[Peer, ...]:
    """Of "scipy,deepsparse=.venv-peers-deepsparse". ValueError: an unknown name, a needless environment."""
    peers = []
    for part in filter(None, text.split(",")):
        name, _, environment = part.partition("=")
        if name not in NAMES:
            raise ValueError(f"expected some of {', '.join(NAMES)}, got {name!r}")
        if environment and name not in ENGINES:
            raise ValueError(f"expected no environment for {name}, got {environment!r}")
        peers.append(Peer(name, Path(environment) if environment else None))
    return tuple(peers)


class PeerLayer:
    """A layer in an engine, for one number of rows; called, it compiles and runs it once."""

    def __init__(self, worker: Worker, graph: Path, form: str, precision: str) -> None:
        self._worker, self._graph, self._form, self._precision = worker, graph, form, precision

    def opened(self, x: Tensor) -> Opened:
        """Compiled for torch's present number of threads."""
        x = x.float()
        given = x[:, :, None, None] if self._form == "conv" else x
        return Opened(self._worker, self._graph, (given,), torch.get_num_threads(), self._precision)

    def __call__(self, x: Tensor) -> Tensor:
        opened = self.opened(x)
        opened.close()
        return opened.result.reshape(x.shape[0], -1)


class Peers:
    """The workers of the engines among some peers, started; a context manager, after which they have ended.

    libraries   names of the others, which run in this process
    """

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.libraries = tuple(peer.name for peer in peers if peer.name in LIBRARIES)
        pythons = {p.name: interpreter(p.name, p.environment) for p in peers if p.name in ENGINES}
        with ExitStack() as stack:
            self.workers = [stack.enter_context(Worker(name, python)) for name, python in pythons.items()]
            self._close = stack.pop_all()

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    @property
    def versions(self) -> dict[str, str]:
        """Of each engine."""
        return {worker.name: worker.about["version"] for worker in self.workers}

    def layer_candidates(
        self, weight: Tensor, bias: Tensor, x: Tensor, scales: Tensor | None
    ) -> Iterator[Candidate]:
        """Candidates for a weight [n, k], of int8 with `scales` [n], in every form and engine, for this x.

        The product is computed in float32, by OpenVINO in bfloat16 where the weight has that dtype.
        """
        half = weight.dtype == torch.bfloat16
        stored = weight if scales is not None else weight.float()
        for worker in self.workers:
            graphs = layer_graphs(stored, bias.float(), x.float(), scales, worker.folder)
            precision = "bf16" if half and worker.name == "openvino" else "f32"
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            for form, graph in graphs.items():
                if form == "conv" and worker.name != "deepsparse":
                    continue
                yield Candidate(
                    f"{worker.name} {form}",
                    OTHER,
                    "",
                    dtype,
                    weight.numel(),
                    weight.nbytes,
                    partial(PeerLayer, worker, graph, form, precision),
                    rounded="" if scales is None else "tensor",
                    own_clock=True,
                )
