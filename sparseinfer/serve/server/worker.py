"""The process that holds the model: LitServe starts it, and calls `Worker.setup` and then the loop."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from litserve import LitAPI
from litserve.loops import LitLoop
from litserve.utils import LitAPIStatus, LoopResponseType

from sparseinfer.serve.server.decoder import Decoder, check
from sparseinfer.serve.server.encoder import Encoder, planned_tokens, pooling
from sparseinfer.serve.server.messages import (
    Answer,
    Cancel,
    Embed,
    Failed,
    Generate,
    Load,
    Ready,
    Refused,
)
from sparseinfer.serve.server.options import Options

# The name by which LitServe knows the queue of requests.
PATH = "/model"
# Addresses of what is no answer to a request.
READY, LOAD = "ready", "load"
# Tokens of a text with its answer, where the model allows more and nothing else is asked for.
_MAX_LENGTH = 2048
# Seconds between what it says of itself while it is busy.
_TELL = 0.1
_PR_SET_PDEATHSIG = 1


class Worker(LitAPI):
    """What LitServe runs: the model of `options`. What it says of itself it says under `name`, which tells
    apart the workers before and after a reload.
    """

    def __init__(self, options: Options, name: str) -> None:
        super().__init__(api_path=PATH, stream=True, loop=_Loop(name))
        self.options = options
        self.engine: Encoder | Decoder | None = None
        self.first: Ready | Failed = Failed("")

    def setup(self, device: str) -> None:
        _live_and_die_with(os.getppid())
        try:
            self._load()
        except Exception as error:
            self.first = Failed(str(error) if isinstance(error, (ValueError, RuntimeError)) else _told(error))

    def _load(self) -> None:
        from sparseinfer.hub.folder import load

        options = self.options
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        checkpoint = load(options.model)
        if checkpoint.has_decoder:
            raise ValueError("model: expected an encoder or a decoder, got an encoder-decoder")
        model: Any = checkpoint.model
        max_length = min(options.max_length or _MAX_LENGTH, checkpoint.max_length)
        note = ""
        if checkpoint.is_causal:
            with torch.inference_mode():
                check(model, max_length)
                self.engine, note = _decoder(model, options, max_length)
        else:
            pool = pooling(options.model)
            self.engine = Encoder(model, pool, texts=options.max_batch, tokens=planned_tokens(model))
        self.first = Ready(checkpoint.is_causal, max_length, model.config.vocab_size, note)


def _decoder(model: Any, options: Options, max_length: int) -> tuple[Decoder, str]:
    """Compiled if it can be, and what to tell of it."""
    if not options.eager:
        decoder = Decoder(model, options.max_batch, max_length, compiled=True)
        try:
            decoder.warm_up()
            return decoder, ""
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            hint = "torch.compile needs a C++ compiler"
            note = f"decoding is not compiled, and slower: {type(error).__name__}: {reason} ({hint})"
    else:
        note = "decoding is not compiled, as --eager asks"
    return Decoder(model, options.max_batch, max_length, compiled=False), note


class _Loop(LitLoop):
    """Takes what came, computes a step, sends what is new; LitServe calls `run` again and again."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._told = 0.0
        self._tokens = 0

    def run(self, api: Worker, device: str, worker_id: int, requests: Any, transport: Any, *_: Any) -> None:
        if not self._told:
            self._told = time.monotonic()
            self._tell(transport, READY, api.first)
            if isinstance(api.first, Failed):
                sys.exit(0)
        engine = api.engine
        assert engine is not None
        with torch.inference_mode():
            for message in _received(requests, wait=not sum(engine.load())):
                self._take(engine, message, transport)
            self._tokens += self._step(engine, transport) if sum(engine.load()) else 0
        now = time.monotonic()
        if now - self._told > _TELL or not sum(engine.load()):
            self._tell(transport, LOAD, Load(*engine.load(), self._tokens))
            self._told, self._tokens = now, 0

    def _take(self, engine: Any, message: Any, transport: Any) -> None:
        if message is None:
            sys.exit(0)
        if isinstance(message, Cancel):
            engine.cancel(message.uid)
            return
        uid, request = message
        try:
            if not isinstance(request, Embed if isinstance(engine, Encoder) else Generate):
                raise ValueError(f"request: expected another one of this model, got {type(request).__name__}")
            engine.add(uid, request)
        except ValueError as error:
            self._send(transport, uid, Refused(str(error)))

    def _step(self, engine: Any, transport: Any) -> int:
        try:
            new, tokens = engine.step()
        except Exception as error:  # of the model: nobody's requests can be computed
            for uid in engine.uids():
                engine.cancel(uid)
                self._send(transport, uid, Refused(_told(error)))
            return 0
        for uid, answer in new:
            self._send(transport, uid, answer)
        return int(tokens)

    def _tell(self, transport: Any, address: str, message: Ready | Failed | Load) -> None:
        self._send(transport, f"{self._name}/{address}", message)

    def _send(self, transport: Any, uid: str, message: Answer | Ready | Failed | Load) -> None:
        self.put_response(transport, 0, uid, message, LitAPIStatus.OK, LoopResponseType.STREAMING)


def _received(requests: Any, *, wait: bool) -> Iterator[Any]:
    """All messages there are; if there are none and `wait`, the next one."""
    while True:
        try:
            yield requests.get(block=wait)
        except queue.Empty:
            return
        wait = False


def _live_and_die_with(parent: int) -> None:
    """Signals to all processes of a group or a service are the parent's business; its end is ours."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
