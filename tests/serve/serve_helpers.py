"""What the tests of the server share: tiny models in folders, and servers in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hub_helpers import tokenizer
from torch import nn

import sparseinfer as si

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install '.[serve]')"
)

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
# Of an encoder's vectors: two blocks of sums of up to 128 products, each of which amplifies errors by less
# than 16, and layer norms that keep values near 1.
TOLERANCE = 2 * 16**2 * 2 * torch.finfo(torch.float32).eps * 129
KEY = "a key of the tests"
_TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}w0"


def save(model: Any, folder: Path) -> Path:
    """With the tokenizer and, if it generates, a chat template that ends with w0."""
    made = tokenizer(SIZES["max_position_embeddings"])
    if type(model).__name__.endswith("ForCausalLM"):
        made.chat_template = _TEMPLATE
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def decoder(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, eos_token_id=95, bos_token_id=94)
    return transformers.LlamaForCausalLM(config).eval()


def encoder(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return transformers.BertModel(transformers.BertConfig(**SIZES)).eval()


def greedy(model: Any, words: Sequence[int], count: int) -> str:
    """The text that the model's own `generate` adds to these words."""
    ids = torch.tensor([[word + 2 for word in words]])
    mask = torch.ones_like(ids)
    new = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return str(tokenizer().decode(new[0, ids.shape[1] :], skip_special_tokens=True))


def sparse(model: Any) -> Any:
    """The same model, 80 % of its Linears' weights removed, and all of them sparse."""
    si.prune_(model, si.Magnitude(0.8), ignore=["lm_head"], keep_masks=False)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and name != "lm_head":
                setattr(module, name, si.SparseLinear.from_linear(child))
    return model


class Server:
    """A server's process. url: where it listens."""

    def __init__(self, folder: Path, *options: str, key: str | None = None) -> None:
        command = [sys.executable, "-m", "sparseinfer", "serve", str(folder), "--port", "0", "--threads", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if key is not None:
            environment["SPARSEINFER_API_KEY"] = key
        self.key, self.name = key, folder.name
        self.log = folder.parent / f"{folder.name}.log"
        # A group of its own, to which signals can be sent.
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *options], stderr=log, stdout=log, env=environment, start_new_session=True
            )
        self.url = ""

    def wait(self, seconds: float = 120) -> Server:
        """Until it serves."""
        end = time.monotonic() + seconds
        while not (found := re.search(r"http://\S+", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        self.url = found[0]
        return self

    def post(self, path: str, content: Any, timeout: float = 60) -> tuple[int, Any]:
        """Status and JSON of the answer. content: bytes, or what JSON is made of."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.request(path, data, timeout)

    def request(self, path: str, data: bytes | None = None, timeout: float = 60) -> tuple[int, Any]:
        headers = {"content-type": "application/json"}
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode()

    def family(self) -> list[psutil.Process]:
        """Its processes, itself first."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


def left(family: list[psutil.Process], seconds: float = 10) -> list[psutil.Process]:
    """Those that still run after so many seconds."""
    _, alive = psutil.wait_procs(family, timeout=seconds)
    return alive


@contextlib.contextmanager
def serving(folder: Path, *options: str, key: str | None = None) -> Iterator[Server]:
    """A server that is gone afterwards, whatever happens."""
    server = Server(folder, *options, key=key)
    try:
        yield server.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
