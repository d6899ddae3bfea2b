"""The life of the server: it listens, answers, and ends after the requests that run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sparseinfer.serve.server.app import create_app
from sparseinfer.serve.server.backend import BackendError
from sparseinfer.serve.server.guard import Guard
from sparseinfer.serve.server.metrics import Metrics
from sparseinfer.serve.server.options import Options
from sparseinfer.serve.server.served import Served

_log = logging.getLogger("sparseinfer")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Bytes of a request's head, at most; usual among servers.
_MAX_HEAD = 64 << 10
# Seconds that a connection may be idle between two requests.
_KEEP_ALIVE = 20
# Connections beside those of requests that may wait: of health checks, and of clients that keep theirs.
_IDLE_CONNECTIONS = 512


def run(options: Options) -> int:
    """See `sparseinfer.serve.serve`."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    _log.setLevel(logging.INFO)
    key = options.read_key()
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listening = socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise OSError(f"host, port: expected an address that is free, got {error}") from None
    with listening:
        return asyncio.run(_Life(options, key, listening).run())


class _Life:
    def __init__(self, options: Options, key: str | None, listening: socket.socket) -> None:
        self._options, self._key, self._listening = options, key, listening
        self._stop = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop.set)
        metrics = Metrics()
        served = Served(self._options, metrics)
        try:
            _log.info("loading %s", self._options.model)
            if not await self._unless_stopped(served.start()):
                return 0
            await self._answer(served, metrics)
        except BackendError as error:
            raise RuntimeError(str(error)) from None
        finally:
            await served.stop()
        return 1 if served.failed.is_set() else 0

    async def _unless_stopped(self, starting: Any) -> bool:
        start, stop = asyncio.ensure_future(starting), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in (start, stop):
            if not task.done():
                task.cancel()
        await asyncio.gather(stop, return_exceptions=True)
        if self._stop.is_set():
            await asyncio.gather(start, return_exceptions=True)
            return False
        start.result()
        return True

    async def _answer(self, served: Served, metrics: Metrics) -> None:
        """Until a signal comes or the worker ends, and then until running requests are answered."""
        options = self._options
        app = create_app(served, metrics)
        config = uvicorn.Config(
            Guard(app, options, self._key, {route.path for route in app.routes}, metrics),
            http=_protocol(options.read_timeout),
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="error",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(options.grace)),
            limit_concurrency=options.max_waiting + _IDLE_CONNECTIONS,
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve([self._listening]))
        host, port = self._listening.getsockname()[:2]
        _log.info(
            "serving %s on http://%s:%d", options.model_name, f"[{host}]" if ":" in host else host, port
        )
        ends = [asyncio.create_task(event.wait()) for event in (self._stop, served.failed)]
        await asyncio.wait({serving, *ends}, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
        _log.info("stopping after %d running requests", served.busy)
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """Signals are ours: uvicorn would end the process by the signal that it got."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _protocol(seconds: float) -> type[HttpToolsProtocol]:
    """HTTP, of which a request's head has to come within so many seconds and to be of limited size."""

    class Limited(HttpToolsProtocol):
        _timer: TimerHandle | None = None
        _head = 0

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # asyncio does so only where the listening socket names TCP. Without it the body of an answer
            # waits until the client, 40 ms later, says that it has the head.
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._begin()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._timer is not None:
                self._head += len(data)
                # Of what comes at once a part can be the body, which has its own limit.
                if self._head > _MAX_HEAD + len(data):
                    self.send_400_response("The head of the request is too large.")
                    return
            super().data_received(data)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._begin()

        def on_headers_complete(self) -> None:
            self._end()
            super().on_headers_complete()

        def _begin(self) -> None:
            if self._timer is None:
                self._head = 0
                self._timer = self.loop.call_later(seconds, self._expire)

        def _end(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _expire(self) -> None:
            self.transport.close()

    return Limited
