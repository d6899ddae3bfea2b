"""Sustained load on `sparseinfer serve`, from a process of its own: latencies, throughput and memory.

    python bench/serving/load.py DIR --label sparse --json bench/results/serve_zen5.json

starts a server for the folder on a free port of 127.0.0.1, warms it up, sends requests for --seconds from
--clients connections, each of which waits for its answer before it asks again, and stops the server. The
result is put under its label and the kind of the model into the JSON file; where both labels "dense" and
"sparse" are there, their ratios too. Decoders generate 64 tokens after prompts of 8 to 24 words, greedily;
encoders get one sentence of 8 to 40 words.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from sparseinfer._machine import describe_machine
from sparseinfer.ops import active_isa

_TOKENS = 64
_WORDS = ("the", "of", "and", "to", "in", "he", "that", "was", "it", "with", "as", "had", "for", "she")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--label", required=True, help="dense or sparse")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, nargs="+", default=[4], help="one load after the other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "sparseinfer", "serve", str(given.folder), "--port", "0"]
        process = subprocess.Popen([*command, "--threads", str(given.threads)], stderr=log)
        try:
            address = _address(process, log)
            kind = json.loads(_get(address, "/status"))["kind"]
            measured = [
                _load(address, process.pid, given.folder.name, kind, clients, given.seconds)
                for clients in given.clients
            ]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    _write(given.json, kind, given.label, given.threads, measured)
    return 0


def _address(process: subprocess.Popen[bytes], log: Any) -> str:
    while True:
        log.seek(0)
        text = log.read()
        if found := re.search(r"http://(\S+)", text):
            return found[1]
        if process.poll() is not None:
            raise RuntimeError(f"expected a server, got {text}")
        time.sleep(0.1)


def _get(address: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", path)
    return connection.getresponse().read()


def _load(address: str, pid: int, name: str, kind: str, clients: int, seconds: float) -> dict[str, Any]:
    """Also how much the memory of all of its processes has grown since a tenth of the time was over."""
    latencies: list[float] = []
    tokens: list[int] = []
    begun = threading.Barrier(clients + 1)
    end = [0.0]

    def client(seed: int) -> None:
        drawn, connection = random.Random(seed), http.client.HTTPConnection(address, timeout=120)
        _ask(connection, name, kind, drawn)  # warms it up
        begun.wait()
        while time.perf_counter() < end[0]:
            start = time.perf_counter()
            count = _ask(connection, name, kind, drawn)
            latencies.append(time.perf_counter() - start)
            tokens.append(count)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    end[0] = float("inf")
    begun.wait()
    start = time.perf_counter()
    end[0] = start + seconds
    memory = []
    while time.perf_counter() < end[0]:
        time.sleep(1)
        memory.append(_resident(pid))
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - start
    first = memory[len(memory) // 10]
    return {
        "clients": clients,
        "seconds": round(taken, 1),
        "requests": len(latencies),
        "requests_per_s": len(latencies) / taken,
        "tokens_per_s": sum(tokens) / taken,
        "p50_ms": 1e3 * _percentile(latencies, 0.50),
        "p99_ms": 1e3 * _percentile(latencies, 0.99),
        "resident_mb": memory[-1] / 1e6,
        "growth_mb": (memory[-1] - first) / 1e6,
    }


def _ask(connection: http.client.HTTPConnection, name: str, kind: str, drawn: random.Random) -> int:
    """Tokens of the answer, or of the text of an encoder. RuntimeError: an answer that is none."""
    words = " ".join(drawn.choices(_WORDS, k=drawn.randint(8, 24 if kind == "decoder" else 40)))
    if kind == "decoder":
        path = "/v1/completions"
        asked: dict[str, Any] = {"prompt": words, "max_tokens": _TOKENS, "temperature": 0}
    else:
        path, asked = "/v1/embeddings", {"input": words, "encoding_format": "base64"}
    body = json.dumps({"model": name, **asked})
    connection.request("POST", path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    if answer.status != 200:
        raise RuntimeError(f"expected status 200, got {answer.status}: {content}")
    return int(content["usage"]["completion_tokens" if kind == "decoder" else "total_tokens"])


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _resident(pid: int) -> int:
    own = psutil.Process(pid)
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)))


def _write(path: Path, kind: str, label: str, threads: int, measured: list[dict[str, Any]]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content["machine"] = describe_machine(active_isa())
    of_kind = content.setdefault(kind, {"threads": threads})
    of_kind[label] = measured
    if "dense" in of_kind and "sparse" in of_kind:
        of_kind["sparse_over_dense"] = [
            {"clients": s["clients"], "requests_per_s": s["requests_per_s"] / d["requests_per_s"]}
            | {name: d[name] / s[name] for name in ("p50_ms", "p99_ms")}
            for s, d in zip(of_kind["sparse"], of_kind["dense"], strict=True)
        ]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
