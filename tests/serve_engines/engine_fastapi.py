"""The example of FastAPI: right answers to many clients at once, clear errors to wrong ones."""

from __future__ import annotations

import concurrent.futures
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sentence_encoder import TOLERANCE

EXAMPLE = Path(__file__).parents[2] / "examples/servers/fastapi/app.py"


@pytest.fixture
def client(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("MODEL", str(encoder_folder))
    spec = importlib.util.spec_from_file_location("app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with TestClient(module.app) as client:
        yield client


def test_many_requests_at_once(client: TestClient, texts: list[str], expected: np.ndarray) -> None:
    def ask(text: str) -> list[float]:
        answer = client.post("/embed", json={"texts": [text]})
        assert answer.status_code == 200
        return answer.json()["embeddings"][0]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(ask, texts))
    np.testing.assert_allclose(np.array(got), expected, rtol=0, atol=TOLERANCE)


def test_a_batch(client: TestClient, texts: list[str], expected: np.ndarray) -> None:
    answer = client.post("/embed", json={"texts": texts})
    np.testing.assert_allclose(np.array(answer.json()["embeddings"]), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "body", [{}, {"texts": []}, {"texts": [1]}, {"texts": ["x"] * 65}, {"texts": ["x" * 10_001]}]
)
def test_wrong_requests(client: TestClient, body: object) -> None:
    assert client.post("/embed", json=body).status_code == 422
    assert client.get("/health").json() == {"status": "ok"}
