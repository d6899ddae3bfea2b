"""The server's life, its page in a browser, drawn requests, and compiled decoding: `make serve-test`.

pytest tests/serve/serve_long.py
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from serve_helpers import Server, decoder, encoder, greedy, left, save, serving

from sparseinfer.hub.folder import load

CHROMIUM = next((p for name in ("chromium", "chromium-browser") if (p := shutil.which(name))), None)


def ask(server: Server, word: int, count: int) -> tuple[int, Any]:
    asked = {"model": server.name, "prompt": f"w{word}", "max_tokens": count, "temperature": 0}
    return server.post("/v1/completions", asked)


def test_a_model_pruned_and_converted_by_the_command_line_is_served_compiled(tmp_path: Path) -> None:
    """prune, convert, serve: and the tokens are those of transformers."""
    save(decoder(), tmp_path / "dense")
    for command in (
        ["prune", "dense", "--out", "pruned", "--sparsity", "0.8", "--method", "magnitude"],
        ["convert", "pruned", "--out", "fast", "--predict", "--memory", "compact"],
    ):
        subprocess.run([sys.executable, "-m", "sparseinfer", *command], cwd=tmp_path, check=True, timeout=300)
    model = load(tmp_path / "fast").model
    with serving(tmp_path / "fast") as server:
        assert "not compiled" not in server.log.read_text()
        assert server.request("/status")[1]["layers"]["sparse"] > 0
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda word: ask(server, word, 20), range(6)))
        assert [body["choices"][0]["text"] for _, body in found] == [greedy(model, [w], 20) for w in range(6)]


def test_without_a_compiler_it_says_so_and_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with serving(save(decoder(), tmp_path / "model")) as server:
        assert "decoding is not compiled, and slower: " in server.log.read_text()
        assert ask(server, 3, 5)[1]["choices"][0]["text"] == greedy(decoder(), [3], 5)


@pytest.mark.parametrize("to", ["server", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_finish_running_requests_and_leave_no_process(
    tmp_path: Path, number: signal.Signals, to: str
) -> None:
    with serving(save(decoder(), tmp_path / "model"), "--eager") as server:
        family = server.family()
        assert len(family) >= 2
        answers: list[tuple[int, Any]] = []

        def ask_on(word: int) -> None:
            with contextlib.suppress(OSError):  # there is no server any more
                while True:
                    answers.append(ask(server, word, 60))

        threads = [threading.Thread(target=ask_on, args=(word,)) for word in range(12)]
        for thread in threads:
            thread.start()
        while server.request("/status")[1]["busy"] < 6:
            time.sleep(0.005)
        before = len(answers)
        (os.killpg if to == "group" else os.kill)(server.process.pid, number)
        assert server.process.wait(60) == 0, server.log.read_text()
        for thread in threads:
            thread.join()
        said = re.search(r"stopping after (\d+) running requests", server.log.read_text())
        assert said is not None
        assert len(answers) - before >= int(said[1]) > 0
        for status, body in answers:  # tokens are counted: some decode to no word
            assert status == 200, body
            assert body["usage"]["completion_tokens"] == 60 or body["choices"][0]["finish_reason"] == "stop"
        assert left(family) == []


def test_a_killed_server_leaves_no_process(tmp_path: Path) -> None:
    with serving(save(encoder(), tmp_path / "model")) as server:
        family = server.family()
        server.stop(signal.SIGKILL)
        assert left(family) == []


def test_without_its_worker_the_server_says_so_and_ends(tmp_path: Path) -> None:
    with serving(save(encoder(), tmp_path / "model")) as server:
        family = server.family()
        max(family[1:], key=lambda process: process.memory_info().rss).kill()
        assert server.process.wait(60) == 1
        assert "the worker ended with status -9" in server.log.read_text()
        assert left(family) == []


def test_a_folder_that_cannot_be_served_is_an_error(tmp_path: Path) -> None:
    folder = save(encoder(), tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    server = Server(folder)
    assert server.process.wait(120) == 1
    assert "error: model: expected a folder that transformers can load" in server.log.read_text()


def test_files_change_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    """By os.replace of the file, then of a link to the folder; a damaged file changes nothing."""
    save(encoder(0), tmp_path / "first")
    save(encoder(1), tmp_path / "second")
    link = tmp_path / "model"
    link.symlink_to("first")

    def vector(model: Any) -> torch.Tensor:
        ids = torch.tensor([[3, 4]])
        with torch.no_grad():
            mean = model(ids)[0][0].mean(0)
        return mean / mean.norm()

    expected = torch.stack([vector(encoder(seed)) for seed in range(3)])
    with serving(link) as server:
        over, counts, bad = threading.Event(), [0, 0, 0], []

        def ask_on() -> None:
            while not over.is_set():
                status, body = server.post("/v1/embeddings", {"model": "model", "input": "w1 w2"})
                if status != 200:
                    bad.append(body)
                    continue
                found = torch.tensor(body["data"][0]["embedding"])
                off = (expected - found).abs().amax(1)
                counts[int(off.argmin())] += 1
                if off.min() > 1e-3:
                    bad.append(found)

        threads = [threading.Thread(target=ask_on) for _ in range(4)]
        for thread in threads:
            thread.start()

        def until(condition: Any) -> None:
            end = time.monotonic() + 120
            while not condition():
                assert time.monotonic() < end, server.log.read_text()
                time.sleep(0.05)

        until(lambda: counts[0] > 20)
        encoder(1).save_pretrained(tmp_path / "new")
        (tmp_path / "new/model.safetensors").replace(tmp_path / "first/model.safetensors")
        until(lambda: counts[1] > 20)
        (tmp_path / "broken").write_bytes(b"no tensors")
        (tmp_path / "broken").replace(tmp_path / "first/model.safetensors")
        until(lambda: "the model before them stays" in server.log.read_text())
        save(encoder(2), tmp_path / "third")
        (tmp_path / "other").symlink_to("third")
        (tmp_path / "other").replace(link)
        until(lambda: counts[2] > 20)
        over.set()
        for thread in threads:
            thread.join()
        assert bad == []
        # Only the last worker is left, beside the server and what multiprocessing has.
        until(lambda: sum(p.memory_info().rss > 100e6 for p in server.family()) == 2)


def test_requests_that_take_too_long_or_are_too_many_are_refused(tmp_path: Path) -> None:
    folder = save(decoder(), tmp_path / "model")
    with serving(folder, "--eager", "--timeout", "0.001") as server:
        status, body = ask(server, 1, 60)
        assert status == 408
        assert "longer --timeout" in body["error"]["message"]
    with serving(folder, "--eager", "--max-waiting", "2") as server, ThreadPoolExecutor(12) as pool:
        # Again and again: on a busy machine twelve requests may come one after another.
        rounds = (pool.map(lambda word: ask(server, word, 60)[0], range(12)) for _ in range(50))
        found: set[int] = set()
        while 429 not in found:
            found.update(next(rounds))
        assert found == {200, 429}


def test_no_drawn_request_is_an_error_of_the_server(
    decoder_server: Server, encoder_server: Server, tmp_path: Path
) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed (make serve-test installs it)")
    for server in (decoder_server, encoder_server):
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        command += ["--checks", "not_a_server_error", "--max-examples", "60", "--seed", "1", "--no-color"]
        if server.key:
            command += ["--header", f"Authorization: Bearer {server.key}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert server.request("/health")[0] == 200


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_the_page_shows_the_model_in_a_browser(
    decoder_server: Server, encoder_server: Server, tmp_path: Path
) -> None:
    for _ in range(3):
        encoder_server.post("/v1/embeddings", {"model": "encoder", "input": "w1 w2"})
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--virtual-time-budget=4000", "--window-size=800,700"]

    def shown(server: Server, *how: str) -> str:
        profile = f"--user-data-dir={tmp_path / server.name}-{len(how)}"
        done = subprocess.run(
            [*command, profile, *how, server.url], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    page = shown(encoder_server, "--dump-dom")
    assert '<h1 id="model">encoder</h1>' in page
    assert "0 weights sparse" in page
    status = encoder_server.request("/status")[1]
    assert f"<dd>{status['requests']}</dd>" in page
    assert " ms</dd>" in page
    # With a key nothing is shown before it is given.
    page = shown(decoder_server, "--dump-dom")
    assert '<h1 id="model">…</h1>' in page
    assert '<form id="key">' in page
    picture = Path(os.environ.get("SERVE_SCREENSHOT", tmp_path / "page.png"))
    shown(encoder_server, f"--screenshot={picture}", "--hide-scrollbars")
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_memory_stays_flat(encoder_server: Server) -> None:
    """After warm-up, 1,500 requests of all sizes and 200 that break off."""
    import socket
    from urllib.parse import urlsplit

    at = urlsplit(encoder_server.url)

    def ask_for(count: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            texts = [" ".join(["w1"] * (1 + i % 50)) for i in range(count)]
            posted = pool.map(
                lambda text: encoder_server.post("/v1/embeddings", {"model": "encoder", "input": [text] * 3})[
                    0
                ],
                texts,
            )
            assert set(posted) == {200}
        body = json.dumps({"model": "encoder", "input": ["w1"] * 100})
        for _ in range(count // 8):
            with socket.create_connection((at.hostname, at.port)) as connection:
                head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
                connection.sendall(f"{head}content-type: application/json\r\n\r\n{body}".encode())

    def resident() -> int:
        return sum(process.memory_info().rss for process in encoder_server.family())

    ask_for(500)
    before = resident()
    ask_for(1500)
    assert resident() - before < 16e6
    assert not [p for p in encoder_server.family() if p.status() == psutil.STATUS_ZOMBIE]
