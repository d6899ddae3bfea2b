"""Runs ONNX models in one engine, as its caller asks over a pipe: `python worker.py ENGINE`.

This file is run by the interpreter of another environment, which has the engine but not sparseinfer. It needs
only Python 3.8, numpy and the engine. Requests are read from stdin and answered on stdout, one JSON object a
line; what an engine prints goes to stderr. The first line, before any request, says {"engine", "version",
"python"}. Requests, and what the answer holds:

    {"do": "open", "model": PATH, "batch": B, "threads": T, "precision": P}
        compiles a file, for a first axis of B and T threads; P is "f32" or "bf16"          {"opened": NUMBER}
    {"do": "run", "opened": NUMBER, "inputs": PATH, "output": PATH}
        runs it with the arrays arr_0, arr_1, ... of a .npz file, which it keeps for `time`, and writes the
        first result, in float32, as .npy                                                   {}
    {"do": "time", "opened": NUMBER, "warm_s": W, "least_s": L}
        runs it untimed for W seconds, then timed, at least once, for L          {"seconds": [of each run]}
    {"do": "close", "opened": NUMBER}
        forgets it                                                                          {}

What fails is answered by {"error": TEXT}, and the worker goes on; it ends at the end of stdin.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from typing import Any, Callable, Dict, List

import numpy as np

# One run of a compiled model: its input arrays in, the first of its results out.
Run = Callable[[List[Any]], Any]
Answer = Dict[str, Any]


class Engine:
    """What is asked of an engine. `version` is its own."""

    version: str

    def open(self, path: str, batch: int, threads: int, precision: str) -> Run:
        raise NotImplementedError


class Onnxruntime(Engine):
    """Microsoft's ONNX Runtime, on its CPU provider."""

    def __init__(self) -> None:
        import onnxruntime

        self._module, self.version = onnxruntime, onnxruntime.__version__

    def open(self, path: str, batch: int, threads: int, precision: str) -> Run:
        if precision != "f32":
            raise ValueError(f"precision: expected f32, got {precision} (the file says it)")
        options = self._module.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = self._module.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        return lambda inputs: session.run(None, dict(zip(names, inputs)))[0]


class Openvino(Engine):
    """Intel's OpenVINO, told to minimise latency; sparse weights are decompressed where it can."""

    def __init__(self) -> None:
        import openvino

        self._module, self.version = openvino, openvino.__version__

    def open(self, path: str, batch: int, threads: int, precision: str) -> Run:
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        request = self._module.Core().compile_model(path, "CPU", options).create_infer_request()
        return lambda inputs: request.infer(inputs, share_inputs=True, share_outputs=True)[0]


class Deepsparse(Engine):
    """Neural Magic's DeepSparse, whose last release is 1.8.0: Python 3.8 to 3.11."""

    def __init__(self) -> None:
        os.environ["NM_DISABLE_ANALYTICS"] = "True"
        import deepsparse

        self._module, self.version = deepsparse, deepsparse.__version__

    def open(self, path: str, batch: int, threads: int, precision: str) -> Run:
        if precision != "f32":
            raise ValueError(f"precision: expected f32, got {precision} (the file says it)")
        engine = self._module.compile_model(path, batch_size=batch, num_cores=threads)
        return lambda inputs: engine.run(inputs)[0]


ENGINES: Dict[str, Callable[[], Engine]] = {
    "onnxruntime": Onnxruntime,
    "openvino": Openvino,
    "deepsparse": Deepsparse,
}


class Worker:
    """Answers requests; `opened` holds [run, inputs] of each model by its number."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._next = engine, 0
        self._opened: Dict[int, List[Any]] = {}

    def open(self, model: str, batch: int, threads: int, precision: str) -> Answer:
        run = self._engine.open(model, batch, threads, precision)
        self._next += 1
        self._opened[self._next] = [run, None]
        return {"opened": self._next}

    def run(self, opened: int, inputs: str, output: str) -> Answer:
        with np.load(inputs) as file:
            arrays = [np.ascontiguousarray(file[f"arr_{i}"]) for i in range(len(file.files))]
        self._opened[opened][1] = arrays
        np.save(output, np.asarray(self._opened[opened][0](arrays), np.float32))
        return {}

    def time(self, opened: int, warm_s: float, least_s: float) -> Answer:
        run, inputs = self._opened[opened]
        if inputs is None:
            raise ValueError("time: expected a model that has been run, got one without inputs")
        end = time.perf_counter() + warm_s
        while True:
            run(inputs)
            if time.perf_counter() >= end:
                break
        seconds: List[float] = []
        end = time.perf_counter() + least_s
        while True:
            start = time.perf_counter()
            run(inputs)
            seconds.append(time.perf_counter() - start)
            if time.perf_counter() >= end:
                return {"seconds": seconds}

    def close(self, opened: int) -> Answer:
        del self._opened[opened]
        return {}

    def answer(self, line: str) -> Answer:
        try:
            request = json.loads(line)
            do = request.pop("do")
            if do not in ("open", "run", "time", "close"):
                raise ValueError(f"do: expected open, run, time or close, got {do!r}")
            answer: Answer = getattr(self, do)(**request)
            return answer
        except Exception as error:  # whatever an engine raises is the caller's to judge
            return {"error": f"{type(error).__name__}: {error}"}


def main(name: str) -> int:
    # Engines print on file descriptor 1 from C++, too.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(answer: Answer) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    try:
        engine = ENGINES[name]()
    except Exception as error:
        tell({"error": f"{type(error).__name__}: {error}"})
        return 1
    tell({"engine": name, "version": engine.version, "python": platform.python_version()})
    worker = Worker(engine)
    for line in sys.stdin:
        tell(worker.answer(line))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
