"""Starts a worker in the interpreter that has its engine, and asks it over the pipe."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORKER = Path(__file__).with_name("worker.py")
# To compile a large model may take minutes; an engine that takes longer hangs. Chosen, not measured.
_ANSWER_S = 600.0
# Untimed runs before a sample, and a pause after it: threads of torch and of engines keep spinning for some
# milliseconds after their work, on the cores that the next candidate needs. Chosen, not measured.
_WARM_S, _PAUSE_S = 5e-3, 5e-3
# A sample is the fastest run of so many seconds: one run of slow models. Chosen, not measured.
_SAMPLE_S = 2e-3


class PeerError(RuntimeError):
    """An engine cannot be started, or cannot run a model."""


def interpreter(engine: str, given: Path | None = None) -> Path:
    """The Python that has an engine: `given`, or this one, or that of .venv-peers-ENGINE in this folder.

    ValueError: there is none.
    """
    if given is not None:
        python = given / "bin" / "python" if given.is_dir() else given
        if not os.access(python, os.X_OK):
            raise ValueError(f"peers: expected an environment or its Python for {engine}, got {str(given)!r}")
        return python
    if importlib.util.find_spec(engine) is not None:
        return Path(sys.executable)
    python = Path.cwd() / f".venv-peers-{engine}" / "bin" / "python"
    if not python.exists():
        hint = f"pip install {engine}, here or in .venv-peers-{engine}, or {engine}=ENVIRONMENT"
        raise ValueError(f"peers: expected {engine} to be installed, got none ({hint})")
    return python


class Worker:
    """A running worker; a context manager, after which it has ended.

    about   engine, its version, and the version of its Python
    """

    def __init__(self, engine: str, python: Path) -> None:
        self._close = ExitStack()
        self.folder = Path(self._close.enter_context(tempfile.TemporaryDirectory(prefix="sparseinfer-")))
        self._log = self._close.enter_context((self.folder / "log").open("w+b"))
        # It shall find the packages of its own environment only.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self._process = subprocess.Popen(
            [str(python), str(WORKER), engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self.name, self._waiting = engine, b""
        try:
            self.about = self._answer()
        except PeerError:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._close.close()

    def ask(self, **request: object) -> dict[str, Any]:
        """The answer to a request (see `worker`). PeerError: it failed, or the worker has ended."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        end = time.monotonic() + _ANSWER_S
        while b"\n" not in self._waiting:
            ready, _, _ = select.select([stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self._process.kill()
                raise PeerError(f"{self.name}: expected an answer within {_ANSWER_S:.0f} s, got none")
            part = os.read(stdout.fileno(), 1 << 16)
            if not part:
                raise self._ended()
            self._waiting += part
        line, _, self._waiting = self._waiting.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.name}: {answer['error']}")
        return answer

    def _ended(self) -> PeerError:
        self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()[-3:]
        return PeerError(f"{self.name}: it ended with status {self._process.returncode}: {' / '.join(said)}")


class Opened:
    """A model that a worker has compiled for `threads` threads, and run once: `result` is its first output.

    It is a `SelfTimed` of `_timing`. `inputs` are those of each run; their first axis is the batch.
    """

    def __init__(
        self,
        worker: Worker,
        model: Path,
        inputs: Sequence[Tensor],
        threads: int,
        precision: str = "f32",
    ) -> None:
        self._worker = worker
        self._number = worker.ask(
            do="open", model=str(model), batch=inputs[0].shape[0], threads=threads, precision=precision
        )["opened"]
        given, output = worker.folder / "inputs.npz", worker.folder / "output.npy"
        np.savez(given, *(x.numpy() for x in inputs))
        worker.ask(do="run", opened=self._number, inputs=str(given), output=str(output))
        self.result = torch.from_numpy(np.load(output))
        self.estimate_s = self.sample()

    def sample(self) -> float:
        """Seconds of the fastest of some runs, by the worker's own clock."""
        answer: Mapping[str, list[float]] = self._worker.ask(
            do="time", opened=self._number, warm_s=_WARM_S, least_s=_SAMPLE_S
        )
        time.sleep(_PAUSE_S)
        return min(answer["seconds"])

    def close(self) -> None:
        """Free the compiled model."""
        self._worker.ask(do="close", opened=self._number)
