"""The paths of the server, and how errors look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict
from importlib import metadata, resources
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from sparseinfer.serve.server import answers
from sparseinfer.serve.server.backend import Backend, BackendError
from sparseinfer.serve.server.guard import Refusal
from sparseinfer.serve.server.messages import Generate
from sparseinfer.serve.server.metrics import Metrics
from sparseinfer.serve.server.schema import Chat, Completions, Embeddings, ErrorBody, Inputs
from sparseinfer.serve.server.served import Served

T = TypeVar("T")

_VERSION = metadata.version("sparseinfer")

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "not as described",
        401: "without the key",
        404: "another model",
        408: "takes too long",
        413: "too large",
        429: "too many requests wait",
        500: "an error of the server",
        503: "the model cannot be reached",
    }.items()
}


class Paths:
    """What answers requests. A request keeps the backend that it began with."""

    def __init__(self, served: Served, metrics: Metrics) -> None:
        self._served, self._metrics = served, metrics
        self._name = served.options.model_name

    async def health(self) -> Response:
        if self._served.failed.is_set():
            return Refusal(503, "the worker ended", kind="server_error").response()
        return JSONResponse({"status": "ok"})

    async def page(self) -> Response:
        page = resources.files("sparseinfer.serve.server") / "status.html"
        return HTMLResponse(page.read_text(encoding="utf-8"))

    async def status(self) -> Response:
        """What the page shows."""
        backend, layers = self._served.backend, self._served.backend.layers
        return JSONResponse(
            {
                "model": self._name,
                "kind": "decoder" if backend.ready.generates else "encoder",
                "max_length": backend.ready.max_length,
                "version": _VERSION,
                "layers": None if layers is None else asdict(layers),
                "running": backend.load.running,
                "waiting": backend.load.waiting,
                "busy": self._served.busy,
                "tokens": backend.tokens,
                **self._metrics.summary(),
            }
        )

    async def metrics(self) -> Response:
        backend, layers = self._served.backend, self._served.backend.layers
        gauges = {
            "running": (backend.load.running, "Requests that generate"),
            "waiting": (backend.load.waiting, "Requests that wait for the model"),
            "unanswered": (self._served.busy, "Requests that are not answered yet"),
            "worker_computed_tokens": (backend.tokens, "Tokens that this worker has computed, with padding"),
        }
        if layers is not None:
            gauges |= {
                "sparse_layers": (layers.sparse, "Weights stored sparse"),
                "dense_layers": (layers.dense, "Weights stored dense"),
            }
        self._metrics.set(gauges)
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, name: str) -> Response:
        self._check_model(name)
        return JSONResponse(self._model())

    async def embeddings(self, body: Embeddings, request: Request) -> Response:
        backend = self._begin(body.model, generates=False)
        texts = await self._ids(backend, body.input, param="input")
        compact = body.encoding_format == "base64"
        vectors = await _while_there(request, answers.embeddings(backend, texts, as_base64=compact))
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        count = self._prompt_tokens(texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse({"object": "list", "data": data, "model": self._name, "usage": usage})

    async def completions(self, body: Completions, request: Request) -> Response:
        backend = self._begin(body.model, generates=True)
        prompts = await self._ids(backend, body.prompt, param="prompt", room=1)
        if len(prompts) > (most := self._served.options.max_waiting):
            raise Refusal(400, f"prompt: expected up to {most} of them, got {len(prompts)}", param="prompt")
        wanted = 16 if body.max_tokens is None else body.max_tokens
        asked = [self._generate(backend, body, ids, wanted) for ids in prompts]
        head = answers.head("text_completion", "cmpl", self._name)

        def choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
            return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

        if body.stream:
            if len(asked) != 1:
                raise Refusal(400, f"prompt: expected one to stream, got {len(asked)}", param="prompt")
            return await self._streamed(
                request, backend, asked[0], body, head, lambda t, f, _: choice(0, t, f)
            )
        done = await _while_there(request, _all([answers.whole(backend, each, body.stops) for each in asked]))
        choices = [choice(i, piece.text, piece.finish) for i, piece in enumerate(done)]
        usage = answers.usage(self._prompt_tokens(prompts), self._generated(sum(p.count for p in done)))
        return JSONResponse({**head, "choices": choices, "usage": usage})

    async def chat(self, body: Chat, request: Request) -> Response:
        backend = self._begin(body.model, generates=True)
        messages = [{"role": message.role, "content": message.text} for message in body.messages]
        try:
            ids = await asyncio.to_thread(backend.text.chat_ids, messages)
        except ValueError as error:
            raise Refusal(400, str(error), param="messages") from None
        self._check_ids(backend, [ids], "messages", room=1)
        wanted = body.max_completion_tokens or body.max_tokens or backend.ready.max_length - len(ids)
        asked = self._generate(backend, body, ids, wanted)
        if body.stream:
            head = answers.head("chat.completion.chunk", "chatcmpl", self._name)

            def delta(text: str, finish: str | None, first: bool) -> dict[str, Any]:
                role = {"role": "assistant"} if first else {}
                return {
                    "index": 0,
                    "delta": {**role, "content": text},
                    "logprobs": None,
                    "finish_reason": finish,
                }

            return await self._streamed(request, backend, asked, body, head, delta)
        done = await _while_there(request, answers.whole(backend, asked, body.stops))
        message = {"role": "assistant", "content": done.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.finish}
        head = answers.head("chat.completion", "chatcmpl", self._name)
        usage = answers.usage(self._prompt_tokens([ids]), self._generated(done.count))
        return JSONResponse({**head, "choices": [choice], "usage": usage})

    async def _streamed(
        self,
        request: Request,
        backend: Backend,
        asked: Generate,
        body: Completions | Chat,
        head: dict[str, Any],
        choice: Callable[[str, str | None, bool], dict[str, Any]],
    ) -> Response:
        """Server-sent events. The first text is awaited here, so that an error still has its status."""
        pieces = answers.pieces(backend, asked, body.stops)
        try:
            piece = await _while_there(request, anext(pieces))
        except BaseException:
            await pieces.aclose()
            raise
        self._prompt_tokens([asked.ids])

        async def events(piece: answers.Piece) -> AsyncIterator[str]:
            async with aclosing(pieces):
                yield answers.event({**head, "choices": [choice(piece.text, piece.finish, True)]})
                async for piece in pieces:
                    yield answers.event({**head, "choices": [choice(piece.text, piece.finish, False)]})
            self._generated(piece.count)
            if body.with_usage:
                usage = answers.usage(len(asked.ids), piece.count)
                yield answers.event({**head, "choices": [], "usage": usage})
            yield answers.END

        return StreamingResponse(events(piece), media_type="text/event-stream")

    def _begin(self, model: str, *, generates: bool) -> Backend:
        """The backend for a new request, if it is for this model and there is room."""
        self._check_model(model)
        backend = self._served.backend
        if backend.ready.generates != generates:
            kind, path = ("decoder", "completions") if backend.ready.generates else ("encoder", "embeddings")
            raise Refusal(400, f"{model}: expected /v1/{path}, which {kind}s have", param="model")
        if self._served.busy >= self._served.options.max_waiting:
            raise Refusal(
                429, f"expected fewer than {self._served.busy} requests at a time", kind="rate_limit_error"
            )
        return backend

    def _check_model(self, name: str) -> None:
        if name != self._name:
            raise Refusal(404, f"model: expected {self._name!r}, got {name!r}", param="model")

    async def _ids(self, backend: Backend, given: Inputs, *, param: str, room: int = 0) -> list[list[int]]:
        """Of each text its ids, of which there are at least one and, with `room` more, not too many."""
        if isinstance(given, str):
            given = [given]
        if isinstance(given[0], int):
            texts: list[Any] = [given]
        elif isinstance(given[0], str):
            texts = await asyncio.to_thread(lambda: [backend.text.ids(text) for text in given])
        else:
            texts = list(given)
        self._check_ids(backend, texts, param, room)
        return texts

    def _check_ids(self, backend: Backend, texts: list[list[int]], param: str, room: int) -> None:
        ready = backend.ready
        for ids in texts:
            if not ids or len(ids) + room > ready.max_length:
                got = f"{param}: expected 1 to {ready.max_length - room} tokens, got {len(ids)}"
                raise Refusal(400, got, param=param)
            if not all(i < ready.vocabulary for i in ids):
                raise Refusal(
                    400, f"{param}: expected ids below {ready.vocabulary}, got {max(ids)}", param=param
                )

    def _generate(self, backend: Backend, body: Completions | Chat, ids: list[int], wanted: int) -> Generate:
        room = backend.ready.max_length - len(ids)
        if wanted > room:
            text = f"max_tokens: expected up to {room} after {len(ids)} tokens, got {wanted}"
            raise Refusal(400, text, param="max_tokens")
        temperature = 1.0 if body.temperature is None else body.temperature
        return Generate(ids, wanted, temperature, body.top_p or 1.0, body.seed)

    def _model(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": 0, "owned_by": "sparseinfer"}

    def _prompt_tokens(self, texts: list[list[int]]) -> int:
        count = sum(map(len, texts))
        self._metrics.tokens("prompt", count)
        return count

    def _generated(self, count: int) -> int:
        self._metrics.tokens("generated", count)
        return count


async def _all(answering: list[Any]) -> list[Any]:
    """Of all; if one fails, the others end first."""
    tasks = [asyncio.ensure_future(each) for each in answering]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _while_there(request: Request, answering: Awaitable[T]) -> T:
    """The answer, unless the client goes away first: then nobody computes it."""
    answer = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise Refusal(408, "the client went away")
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def create_app(served: Served, metrics: Metrics) -> FastAPI:
    """All paths, and answers in OpenAI's form to requests that are not as described."""
    app = FastAPI(title="sparseinfer", version=_VERSION, docs_url=None, redoc_url=None)
    paths = Paths(served, metrics)

    def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: _ERRORS[status] for status in (401, 408, 413, *statuses)}

    answering = errors(400, 404, 429, 500, 503)
    app.get("/", response_class=HTMLResponse, include_in_schema=False)(paths.page)
    app.get("/health", responses={503: _ERRORS[503]})(paths.health)
    app.get("/status", responses=errors())(paths.status)
    app.get("/metrics", response_class=PlainTextResponse, responses=errors())(paths.metrics)
    app.get("/v1/models", responses=errors())(paths.models)
    app.get("/v1/models/{name}", responses=errors(400, 404))(paths.model)
    app.post("/v1/embeddings", responses=answering)(paths.embeddings)
    app.post("/v1/completions", responses=answering)(paths.completions)
    app.post("/v1/chat/completions", responses=answering)(paths.chat)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return refusal.response()

    @app.exception_handler(BackendError)
    async def unreachable(_: Request, error: BackendError) -> Response:
        return Refusal(503, str(error), kind="server_error").response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        # The place in the body; of what is no JSON it is a position in the text.
        place = [str(part) for part in first["loc"][1:]] if first["type"] != "json_invalid" else []
        where, param = ".".join(place), place[0] if place else None
        return Refusal(400, f"{where}: {first['msg']}" if where else first["msg"], param=param).response()

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        response = Refusal(error.status_code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """The OpenAPI description without FastAPI's own form of errors, which this server does not use."""
    description = app.openapi()
    for methods in description["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        description["components"]["schemas"].pop(unused, None)
