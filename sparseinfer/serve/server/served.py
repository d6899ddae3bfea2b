"""The model that is served: its worker, and the change to a new one when the folder changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, TypeAlias

from litserve import LitServer
from litserve.server import response_queue_to_buffer
from litserve.transport.process_transport import MPQueueTransport

from sparseinfer.serve.server.backend import Backend, new_queue
from sparseinfer.serve.server.metrics import Metrics
from sparseinfer.serve.server.options import Options
from sparseinfer.serve.server.worker import Worker

_log = logging.getLogger("sparseinfer")
# Seconds between looks at the folder and at the worker.
_TICK = 0.5

_Print: TypeAlias = "tuple[tuple[str, int, int, int], ...]"


class Served:
    """`backend` answers new requests; one that was before finishes its own. For use in one event loop."""

    def __init__(self, options: Options, metrics: Metrics) -> None:
        self.options = options
        self.failed = asyncio.Event()
        self._metrics, self._number = metrics, 0
        worker = Worker(options, self._name())
        self._litserve = LitServer(worker, accelerator="cpu", devices=1, timeout=False)
        # Queues of this process's own: LitServe's are in a third process, which a signal to all ends first.
        self._litserve.workers_setup_status = {}
        self._litserve._transport = MPQueueTransport(None, [new_queue()])
        self._old: set[Backend] = set()
        self._tasks: list[asyncio.Task[Any]] = []
        self._seen: _Print = ()

    async def start(self) -> None:
        """Returns when requests can come. BackendError, ValueError: the model cannot be loaded."""
        lit = self._litserve
        receive = response_queue_to_buffer(lit._transport, lit.response_buffer, 0, lit.litapi_connector)
        self._tasks.append(asyncio.create_task(receive))
        self._seen = _print(self.options.model)
        self.backend = await self._started()
        self._tasks.append(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        current = {self.backend} if hasattr(self, "backend") else set()
        await asyncio.gather(*(backend.stop() for backend in self._old | current))

    @property
    def busy(self) -> int:
        """Requests that are not answered."""
        return self.backend.busy + sum(backend.busy for backend in self._old)

    def _name(self) -> str:
        self._number += 1
        return f"worker-{self._number}"

    async def _started(self) -> Backend:
        name = self._name()
        backend = Backend(self._litserve, Worker(self.options, name), name)
        try:
            await backend.start(self.options.model)
        except BaseException:
            await backend.stop()
            raise
        if backend.ready.note:
            _log.warning("%s", backend.ready.note)
        return backend

    async def _watch(self) -> None:
        """Looks at the worker and at the folder until it is stopped."""
        before = self._seen
        while True:
            await asyncio.sleep(_TICK)
            for backend in {self.backend, *self._old}:
                if not backend.process.is_alive():
                    backend.fail()
            if not self.backend.process.is_alive() or self._tasks[0].done():
                _log.error("the worker ended with status %s", self.backend.process.exitcode)
                self.failed.set()
                return
            for backend in [old for old in self._old if not old.busy]:
                self._old.remove(backend)
                await backend.stop()
            now = _print(self.options.model)
            # Not while files are still being written.
            if now != self._seen and now == before:
                self._seen = now
                await self._reload()
            before = now

    async def _reload(self) -> None:
        _log.info("the model's files have changed: loading them")
        try:
            backend = await self._started()
        except Exception as error:  # whatever they are, the old ones are there
            self._metrics.reloaded("failed")
            _log.error("the changed files cannot be served, the model before them stays: %s", error)
            return
        self._old.add(self.backend)
        self.backend = backend
        self._metrics.reloaded("done")
        _log.info("the changed files are served")


def _print(folder: Path) -> _Print:
    """What changes when a file of the folder, or the folder behind a link, is exchanged."""
    found = []
    for path in sorted(folder.glob("*")):
        try:
            at = path.stat()
        except OSError:  # it went away meanwhile
            continue
        found.append((path.name, at.st_ino, at.st_mtime_ns, at.st_size))
    return tuple(found)
