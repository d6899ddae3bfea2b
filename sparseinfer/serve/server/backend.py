"""The server's side of one worker process."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litserve import LitServer
from litserve.utils import ResponseBufferItem

from sparseinfer.io.summary import summary_of
from sparseinfer.serve.server.messages import Answer, Cancel, Failed, Load, Ready, Refused, Request
from sparseinfer.serve.server.text import Text
from sparseinfer.serve.server.worker import LOAD, PATH, READY, Worker

_ENDED = "the worker ended"
# Seconds between looks at a worker that is not ready yet.
_TICK = 0.5


def new_queue() -> Any:
    """A queue that the processes which LitServe starts can be given."""
    return multiprocessing.get_context("spawn").Queue()


@dataclass(frozen=True)
class Layers:
    """Weight matrices of a folder's files, and how they are stored."""

    sparse: int
    dense: int
    nbytes: int
    dense_nbytes: int


def layers_of(folder: Path) -> Layers | None:
    """None where the files are not of safetensors."""
    try:
        summary = summary_of(folder)
    except (ValueError, OSError):
        return None
    sparse = [t for t in summary.tensors if t.format != "dense"]
    dense = [t for t in summary.tensors if t.format == "dense" and len(t.shape) > 1]
    return Layers(len(sparse), len(dense), summary.nbytes, summary.dense_nbytes)


class BackendError(Exception):
    """No worker can answer."""


class _Channel:
    """What comes from a worker for one address."""

    def __init__(self, buffer: dict[str, ResponseBufferItem], address: str) -> None:
        self._buffer, self._address = buffer, address
        self._item = buffer[address] = ResponseBufferItem(asyncio.Event(), deque())

    async def get(self) -> Any:
        while not self._item.response_queue:
            await self._item.event.wait()
            self._item.event.clear()
        message, _status = self._item.response_queue.popleft()
        return message

    def put(self, message: Any) -> None:
        """As if the worker had sent it."""
        self._item.response_queue.append((message, None))
        self._item.event.set()

    def close(self) -> None:
        del self._buffer[self._address]


class Backend:
    """One worker process, the texts it understands, and the requests that it has."""

    def __init__(self, litserve: LitServer, worker: Worker, name: str) -> None:
        self._litserve, self.name = litserve, name
        self._requests: dict[str, _Channel] = {}
        self._numbers = itertools.count()
        self._queue = new_queue()
        litserve.litapi_request_queues[PATH] = self._queue
        self._first = _Channel(litserve.response_buffer, f"{name}/{READY}")
        self._loads = _Channel(litserve.response_buffer, f"{name}/{LOAD}")
        self._failed = False
        self.load = Load(0, 0, 0)
        self.tokens = 0
        self.layers: Layers | None = None
        self.text: Text
        self.ready: Ready
        self.process: Any = litserve.launch_single_inference_worker(worker, 0)

    async def start(self, folder: Path) -> None:
        """Returns when the worker is ready. BackendError: it cannot load the model."""
        self.text = await asyncio.to_thread(Text, folder)
        self.layers = layers_of(folder)
        waiting = asyncio.create_task(self._first.get())
        while not (await asyncio.wait({waiting}, timeout=_TICK))[0]:
            if not self.process.is_alive():
                waiting.cancel()
                raise BackendError(f"the worker ended with status {self.process.exitcode}")
        first = waiting.result()
        if isinstance(first, Failed):
            raise BackendError(first.text)
        self.ready = first
        self._listening = asyncio.create_task(self._listen())

    @property
    def busy(self) -> int:
        """Requests that are not answered yet."""
        return len(self._requests)

    @asynccontextmanager
    async def ask(self, request: Request) -> AsyncIterator[AsyncIterator[Answer]]:
        """The answers to a request, as they come; leaving the block before the last one cancels it."""
        if self._failed:
            raise BackendError(_ENDED)
        uid = f"{self.name}/{next(self._numbers)}"
        channel = self._requests[uid] = _Channel(self._litserve.response_buffer, uid)
        self._queue.put((uid, request))
        try:
            yield self._answers(channel)
        finally:
            channel.close()
            del self._requests[uid]
            # Of a request that is complete the worker knows nothing any more.
            self._queue.put(Cancel(uid))

    async def _answers(self, channel: _Channel) -> AsyncIterator[Answer]:
        while True:
            message = await channel.get()
            if isinstance(message, BackendError):
                raise message
            yield message
            if isinstance(message, Refused):
                return

    async def _listen(self) -> None:
        while True:
            self.load = await self._loads.get()
            self.tokens += self.load.tokens

    def fail(self) -> None:
        """The worker is gone: so are its requests."""
        self._failed = True
        for channel in self._requests.values():
            channel.put(BackendError(_ENDED))

    async def stop(self) -> None:
        """Ends the process, which may finish the step that it is at, but not loading."""
        if hasattr(self, "_listening"):
            self._listening.cancel()
            self._queue.put(None)
            await asyncio.to_thread(self.process.join, 5)
        if self.process.is_alive():
            self.process.kill()
            await asyncio.to_thread(self.process.join)
        for channel in (self._first, self._loads):
            channel.close()
        self._queue.close()
        # What the process has not read is nobody's any more.
        self._queue.cancel_join_thread()
