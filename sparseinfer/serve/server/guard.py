"""What stands before the paths: no request without its key, too large, or too slow gets further."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from starlette.responses import JSONResponse

from sparseinfer.serve.server.metrics import Metrics
from sparseinfer.serve.server.options import Options

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("sparseinfer")
# Open to all: whether it lives, and a page without data.
_OPEN = ("/health", "/")


class Refusal(Exception):
    """A request that is answered with an error, in OpenAI's form."""

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param

    def response(self) -> JSONResponse:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": None}
        headers = {"retry-after": "1"} if self.status == 429 else {}
        if self.status in (408, 413):  # what it still sends is not read
            headers["connection"] = "close"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse({"error": error}, self.status, headers)


class _Gone(Exception):
    """The client closed the connection before it had sent its request."""


class Guard:
    """An ASGI application around another; it also counts, and turns errors into answers."""

    def __init__(
        self, app: App, options: Options, key: str | None, paths: set[str], metrics: Metrics
    ) -> None:
        self._app, self._options, self._paths, self._metrics = app, options, paths, metrics
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
            await self._limited(self._app(scope, _after(body, receive), counted))
        except Refusal as refusal:
            if status:  # the answer is cut off, which closes the connection
                raise
            await refusal.response()(scope, receive, counted)
        except _Gone:
            status = 499
        except Exception:
            _log.exception("%s %s", scope["method"], scope["path"])
            if not status:
                await Refusal(500, "an error of the server, see its log", kind="server_error").response()(
                    scope, receive, counted
                )
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, status, time.perf_counter() - started)

    async def _limited(self, answering: Awaitable[None]) -> None:
        """Also a client that does not read its answer ends here."""
        try:
            await asyncio.wait_for(answering, self._options.timeout)
        except asyncio.TimeoutError:
            hint = "fewer tokens, or a server with a longer --timeout"
            raise Refusal(
                408, f"expected an answer within {self._options.timeout:g} seconds ({hint})"
            ) from None

    def _check_key(self, scope: Scope) -> None:
        if self._key is None or scope["path"] in _OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        # In a time that does not depend on where they differ.
        if not hmac.compare_digest(given, b"Bearer " + self._key):
            raise Refusal(401, "expected the key as Authorization: Bearer KEY", kind="authentication_error")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of the body, so that no path waits for a client."""
        limit = self._options.max_body
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > limit:
            raise Refusal(413, f"expected a body of up to {limit} bytes")
        try:
            return await asyncio.wait_for(_read(receive, limit), self._options.read_timeout)
        except asyncio.TimeoutError:
            raise Refusal(408, f"expected the body within {self._options.read_timeout:g} seconds") from None


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part = message.get("body", b"")
        total += len(part)
        if total > limit:
            raise Refusal(413, f"expected a body of up to {limit} bytes")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _after(body: bytes, receive: Receive) -> Receive:
    """`receive` for the paths: the body at once, and then what comes."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return left.pop() if left else await receive()

    return replay
