"""The example of Triton's Python backend, in the tritonserver that nvidia-pytriton ships."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pytriton
import tritonclient.http as client
from sentence_encoder import TOLERANCE
from tritonclient.utils import InferenceServerException

EXAMPLE = Path(__file__).parents[2] / "examples/servers/triton/models"


@pytest.fixture(scope="module")
def server(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server of the example with its folder set to that of the tests."""
    work = tmp_path_factory.mktemp("triton")
    triton = Path(pytriton.__file__).parent / "tritonserver"
    backends = shutil.copytree(triton / "backends", work / "backends")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(triton / "python_backend_stubs" / python / "triton_python_backend_stub", backends / "python")
    models = shutil.copytree(EXAMPLE, work / "models")
    config = models / "embed/config.pbtxt"
    config.write_text(config.read_text().replace("/models/encoder", str(encoder_folder)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        triton / "bin/tritonserver", "--model-repository", models, "--backend-directory", backends,
        "--http-address", "127.0.0.1", "--http-port", str(port),
        "--allow-grpc", "false", "--allow-metrics", "false",
    ]  # fmt: skip
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # Of the backend, which is found beside the package, and of its stub, the interpreter's.
    libraries = [triton.parents[1] / "nvidia_pytriton.libs", Path(sys.base_prefix) / "lib"]
    env["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries))
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    log = work / "log"
    with log.open("w") as out:
        process = subprocess.Popen(list(map(str, command)), env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait(f"127.0.0.1:{port}", process, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    with client.InferenceServerClient(address) as asked:
        while time.monotonic() < end and process.poll() is None:
            try:
                if asked.is_model_ready("embed"):
                    return
            except OSError:
                pass
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])


def _embeddings(address: str, texts: list[bytes]) -> np.ndarray:
    given = client.InferInput("TEXT", [len(texts), 1], "BYTES")
    given.set_data_from_numpy(np.array(texts, dtype=object).reshape(-1, 1))
    with client.InferenceServerClient(address, network_timeout=60) as asked:
        return asked.infer("embed", [given]).as_numpy("EMBEDDING")


def test_a_batch(server: str, texts: list[str], expected: np.ndarray) -> None:
    got = _embeddings(server, [text.encode() for text in texts[:16]])
    np.testing.assert_allclose(got, expected[:16], rtol=0, atol=TOLERANCE)


def test_requests_that_triton_joins(server: str, texts: list[str], expected: np.ndarray) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda text: _embeddings(server, [text.encode()]), texts))
    np.testing.assert_allclose(np.concatenate(got), expected, rtol=0, atol=TOLERANCE)


def test_a_wrong_text_fails_alone(server: str, texts: list[str], expected: np.ndarray) -> None:
    def ask(text: bytes) -> np.ndarray | str:
        try:
            return _embeddings(server, [text])
        except InferenceServerException as error:
            return str(error)

    given = [b"\xff" if i % 4 == 0 else text.encode() for i, text in enumerate(texts)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        got = list(pool.map(ask, given))
    for i, (answer, right) in enumerate(zip(got, expected, strict=True)):
        if i % 4 == 0:
            assert "expected UTF-8" in answer
        else:
            np.testing.assert_allclose(answer[0], right, rtol=0, atol=TOLERANCE)
