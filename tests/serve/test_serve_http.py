"""The server's answers: to OpenAI's client, and to clients that do what they should not."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from serve_helpers import KEY, TOLERANCE, Server, decoder, encoder, greedy

openai = pytest.importorskip("openai", reason="openai is not installed (pip install '.[test]')")


_OPEN: list[Any] = []


@pytest.fixture(autouse=True)
def _close_clients() -> Iterator[None]:
    yield
    while _OPEN:
        _OPEN.pop().close()


def client(server: Server) -> Any:
    """OpenAI's, closed at the end of the test."""
    made = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key or "none", max_retries=0, timeout=60)
    _OPEN.append(made)
    return made


class TestCompletions:
    def test_as_a_whole_and_as_a_stream(self, decoder_server: Server) -> None:
        asked = {"model": "decoder", "prompt": "w1 w2 w3", "max_tokens": 8, "temperature": 0}
        whole = client(decoder_server).completions.create(**asked)
        assert whole.choices[0].text == greedy(decoder(), [1, 2, 3], 8)
        assert whole.choices[0].finish_reason == "length"
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 8)
        with client(decoder_server).completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        ) as stream:
            parts = list(stream)
        assert "".join(p.choices[0].text for p in parts if p.choices) == whole.choices[0].text
        assert parts[-1].usage == whole.usage
        assert len(parts) > 3

    def test_several_prompts_and_ids(self, decoder_server: Server) -> None:
        create = client(decoder_server).completions.create
        asked = {"model": "decoder", "max_tokens": 5, "temperature": 0}
        found = create(prompt=["w1 w2", "w7", "w30 w31 w32"], **asked)
        texts = [greedy(decoder(), [1, 2], 5), greedy(decoder(), [7], 5), greedy(decoder(), [30, 31, 32], 5)]
        assert [choice.text for choice in found.choices] == texts
        assert [c.text for c in create(prompt=[[3, 4], [9]], **asked).choices] == texts[:2]
        assert create(prompt=[3, 4], **asked).choices[0].text == texts[0]

    def test_many_at_the_same_time(self, decoder_server: Server) -> None:
        def ask(word: int) -> str:
            answer = client(decoder_server).completions.create(
                model="decoder", prompt=f"w{word}", max_tokens=4 + word, temperature=0
            )
            return str(answer.choices[0].text)

        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(ask, range(12)))
        assert found == [greedy(decoder(), [word], 4 + word) for word in range(12)]

    def test_a_stop_ends_it(self, decoder_server: Server) -> None:
        words = greedy(decoder(), [1, 2, 3], 8).split()
        asked = {"model": "decoder", "prompt": "w1 w2 w3", "max_tokens": 8, "temperature": 0}
        answer = client(decoder_server).completions.create(**asked, stop=[f" {words[4]}", "never"])
        assert answer.choices[0].text == " ".join(words[: words.index(words[4])])
        assert answer.choices[0].finish_reason == "stop"

    def test_a_seed_repeats_it(self, decoder_server: Server) -> None:
        asked = {"model": "decoder", "prompt": "w1", "max_tokens": 20, "temperature": 1}
        texts = [
            client(decoder_server).completions.create(**asked, seed=s).choices[0].text for s in (1, 1, 2)
        ]
        assert texts[0] == texts[1] != texts[2]

    def test_chat(self, decoder_server: Server) -> None:
        asked = {
            "model": "decoder",
            "messages": [
                {"role": "system", "content": "w5"},
                {"role": "user", "content": [{"type": "text", "text": "w6"}]},
            ],
            "max_tokens": 6,
            "temperature": 0,
        }
        whole = client(decoder_server).chat.completions.create(**asked)
        # The template adds w0.
        assert whole.choices[0].message.content == greedy(decoder(), [5, 6, 0], 6)
        with client(decoder_server).chat.completions.create(**asked, stream=True) as stream:
            parts = list(stream)
        assert "".join(p.choices[0].delta.content for p in parts) == whole.choices[0].message.content
        assert parts[0].choices[0].delta.role == "assistant"

    def test_the_example_of_the_page(
        self, decoder_server: Server, capsys: pytest.CaptureFixture[str]
    ) -> None:
        page = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
        (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        here = {"http://127.0.0.1:8000": decoder_server.url, "none": KEY, "smollm2-fast": "decoder"}
        for there, value in {**here, "In the beginning": "w1 w2"}.items():
            assert there in example
            example = example.replace(there, value)
        exec(compile(example, "docs/serving.md", "exec"), {})
        assert len(capsys.readouterr().out.split()) > 3


class TestEmbeddings:
    def test_floats_and_base64(self, encoder_server: Server) -> None:
        texts = ["w1 w2 w3", "w4", "w5 w6"]
        status, answer = encoder_server.post("/v1/embeddings", {"model": "encoder", "input": texts})
        assert status == 200
        assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
        vectors = np.array([entry["embedding"] for entry in answer["data"]])
        model = encoder().double()
        for words, vector in zip(([1, 2, 3], [4], [5, 6]), vectors, strict=True):
            ids = torch.tensor([[w + 2 for w in words]])
            with torch.no_grad():
                mean = model(ids, torch.ones_like(ids))[0][0].mean(0)
            expected = (mean / mean.norm()).numpy()
            assert np.abs(vector - expected).max() <= TOLERANCE
        found = client(encoder_server).embeddings.create(model="encoder", input=texts)  # asks for base64
        assert np.array_equal(np.float32([d.embedding for d in found.data]), np.float32(vectors))
        asked = {"model": "encoder", "input": "w4", "encoding_format": "base64"}
        text = encoder_server.post("/v1/embeddings", asked)[1]["data"][0]["embedding"]
        alone = np.frombuffer(base64.b64decode(text), "<f4")
        assert np.abs(alone - vectors[1]).max() <= TOLERANCE

    def test_many_at_the_same_time(self, encoder_server: Server) -> None:
        def ask(word: int) -> list[float]:
            asked = {"model": "encoder", "input": " ".join(f"w{w}" for w in range(word, word + 1 + word % 5))}
            vector: list[float] = encoder_server.post("/v1/embeddings", asked)[1]["data"][0]["embedding"]
            return vector

        with ThreadPoolExecutor(16) as pool:
            together = np.array(list(pool.map(ask, range(40))))
        alone = np.array([ask(word) for word in range(40)])
        assert np.abs(together - alone).max() <= TOLERANCE


class TestPages:
    def test_models_and_health(self, decoder_server: Server) -> None:
        assert [model.id for model in client(decoder_server).models.list()] == ["decoder"]
        assert client(decoder_server).models.retrieve("decoder").id == "decoder"
        assert decoder_server.request("/health") == (200, {"status": "ok"})

    def test_metrics_and_status(self, encoder_server: Server) -> None:
        def count() -> float:
            text = encoder_server.request("/metrics")[1]
            name = 'sparseinfer_requests_total{path="/v1/embeddings",status="200"} '
            return float(next((line for line in text.splitlines() if line.startswith(name)), "0").split()[-1])

        before = count(), encoder_server.request("/status")[1]["requests"]
        for _ in range(3):
            encoder_server.post("/v1/embeddings", {"model": "encoder", "input": "w1"})
        status = encoder_server.request("/status")[1]
        assert (count(), status["requests"]) == (before[0] + 3, before[1] + 3)
        assert 0 < status["p50_ms"] <= status["p99_ms"]
        assert status["kind"] == "encoder"
        assert status["layers"]["dense"] > 0

    def test_the_page_holds_all_it_needs(self, decoder_server: Server) -> None:
        status, page = decoder_server.request("/")
        assert status == 200
        assert "<title>sparseinfer</title>" in page
        assert "src=" not in page.replace("sparse=", "")
        assert "http://" not in page
        assert "https://" not in page


BAD = [
    (b"{", 400),
    (b"[1]", 400),
    (b"\xff\xfe", 400),
    (b"[" * 5000, 400),
    ({"model": "decoder"}, 400),
    ({"model": "other", "prompt": "w1"}, 404),
    ({"model": "decoder", "prompt": ""}, 400),
    ({"model": "decoder", "prompt": []}, 400),
    ({"model": "decoder", "prompt": "w1 " * 100}, 400),
    ({"model": "decoder", "prompt": [96]}, 400),
    ({"model": "decoder", "prompt": [-1]}, 400),
    ({"model": "decoder", "prompt": [True]}, 400),
    ({"model": "decoder", "prompt": [1.5]}, 400),
    ({"model": "decoder", "prompt": "\ud800"}, 400),
    ({"model": "decoder", "prompt": "w1", "max_tokens": 0}, 400),
    ({"model": "decoder", "prompt": "w1", "max_tokens": 64}, 400),
    ({"model": "decoder", "prompt": "w1", "max_tokens": 10**40}, 400),
    ({"model": "decoder", "prompt": "w1", "temperature": -1}, 400),
    ({"model": "decoder", "prompt": "w1", "temperature": float("nan")}, 400),
    ({"model": "decoder", "prompt": "w1", "top_p": 0}, 400),
    ({"model": "decoder", "prompt": "w1", "seed": 2**70}, 400),
    ({"model": "decoder", "prompt": "w1", "n": 2}, 400),
    ({"model": "decoder", "prompt": "w1", "logprobs": 3}, 400),
    ({"model": "decoder", "prompt": "w1", "stop": [""]}, 400),
    ({"model": "decoder", "prompt": ["w1", "w2"], "stream": True}, 400),
]


class TestBadClients:
    @pytest.mark.parametrize(("content", "expected"), BAD)
    def test_malformed_requests_get_errors_in_the_form_of_openai(
        self, decoder_server: Server, content: Any, expected: int
    ) -> None:
        status, answer = decoder_server.post("/v1/completions", content)
        assert status == expected
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["message"]

    def test_a_kind_of_model_has_its_paths(self, decoder_server: Server, encoder_server: Server) -> None:
        assert decoder_server.post("/v1/embeddings", {"model": "decoder", "input": "w1"})[0] == 400
        assert encoder_server.post("/v1/completions", {"model": "encoder", "prompt": "w1"})[0] == 400
        message = {"model": "encoder", "messages": [{"role": "user", "content": "w1"}]}
        assert encoder_server.post("/v1/chat/completions", message)[0] == 400
        assert decoder_server.request("/nowhere")[0] == 404
        assert decoder_server.post("/v1/models", {})[0] == 405

    @pytest.mark.parametrize("key", ["", "wrong", KEY[:-1], KEY + "x", "ä"])
    def test_other_keys_are_refused(self, decoder_server: Server, key: str) -> None:
        connection = http.client.HTTPConnection(urlsplit(decoder_server.url).netloc, timeout=20)
        header = f"Bearer {key}".encode()
        for path in ("/v1/models", "/metrics", "/status", "/openapi.json", "/nowhere"):
            connection.request("GET", path, headers={"authorization": header} if key else {})
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["error"]["type"]) == (
                401,
                "authentication_error",
            )
        connection.close()

    def test_large_bodies_are_refused_whether_they_tell_their_size_or_not(
        self, encoder_server: Server
    ) -> None:
        text = json.dumps({"model": "encoder", "input": "w1 " * 7000}).encode()
        assert encoder_server.post("/v1/embeddings", text)[0] == 413
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        for start, parts in (
            (b"content-length: 99999999999999\r\n\r\n", ()),
            (b"content-length: " + b"9" * 40 + b"\r\n\r\n", ()),
            (b"transfer-encoding: chunked\r\n\r\n", (chunk,) * 6),
        ):
            with raw(encoder_server) as connection:
                connection.sendall(head + start + b"".join(parts))
                assert answer_of(connection)[:12] in (b"HTTP/1.1 413", b"HTTP/1.1 400")

    def test_slow_senders_are_dropped_while_others_are_served(self, encoder_server: Server) -> None:
        begun = time.monotonic()
        slow = [raw(encoder_server) for _ in range(30)]
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
        for i, connection in enumerate(slow):
            connection.sendall(head[: 20 + i] if i % 2 else head + b"\r\n{")
        asked = {"model": "encoder", "input": "w1"}
        assert encoder_server.post("/v1/embeddings", asked)[0] == 200
        for i, connection in enumerate(slow):
            with connection:
                got = answer_of(connection)
                assert got == b"" if i % 2 else got.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begun < 15  # a second each, at the same time
        assert encoder_server.post("/v1/embeddings", asked)[0] == 200

    def test_a_head_without_end_is_cut_off(self, encoder_server: Server) -> None:
        with raw(encoder_server) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\n")
            lines = (b"x: " + b"y" * 1000 + b"\r\n") * 4000
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                connection.sendall(lines)

    def test_no_http_at_all(self, encoder_server: Server) -> None:
        with raw(encoder_server) as connection:
            connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
            assert answer_of(connection).startswith(b"HTTP/1.1 400")

    def test_clients_that_go_away_free_their_places(self, decoder_server: Server) -> None:
        path = "/v1/completions"
        asked = {"model": "decoder", "prompt": "w1", "max_tokens": 60, "temperature": 0, "stream": True}
        body = json.dumps(asked).encode()
        lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json"]
        lines += [f"authorization: Bearer {KEY}", f"content-length: {len(body)}", "", ""]
        for _ in range(20):
            with raw(decoder_server) as connection:
                connection.sendall("\r\n".join(lines).encode() + body)
        end = time.monotonic() + 20
        while (busy := decoder_server.request("/status")[1]["busy"]) and time.monotonic() < end:
            time.sleep(0.05)
        assert busy == 0
        assert decoder_server.post(path, {**asked, "stream": False, "max_tokens": 3})[0] == 200


def raw(server: Server) -> socket.socket:
    at = urlsplit(server.url)
    return socket.create_connection((at.hostname, at.port), timeout=20)


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes, or says nothing more."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_answers_do_not_wait_for_the_client_to_acknowledge_their_head(encoder_server: Server) -> None:
    """Which takes a client 40 ms, but for the first answers of a connection."""
    connection = http.client.HTTPConnection(urlsplit(encoder_server.url).netloc, timeout=60)
    try:
        fastest = []
        for _ in range(3):  # others may keep the machine busy
            seconds = []
            for _ in range(40):
                start = time.perf_counter()
                connection.request("GET", "/health")
                connection.getresponse().read()
                seconds.append(time.perf_counter() - start)
            fastest.append(sorted(seconds)[20])
        assert min(fastest) < 0.03
    finally:
        connection.close()
