"""Answers in the form of OpenAI's: of the worker's vectors and tokens, whole or as they come."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from sparseinfer.serve.server.backend import Backend
from sparseinfer.serve.server.messages import Answer, Embed, Generate, Refused, Tokens, Vectors
from sparseinfer.serve.server.text import Spelling


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer. finish: None, there is more; count: tokens so far."""

    text: str
    finish: str | None
    count: int


async def embeddings(backend: Backend, texts: list[list[int]], *, as_base64: bool) -> list[Any]:
    """For each text its vector, as floats or as base64 of little-endian float32."""
    async with backend.ask(Embed(texts)) as answers:
        answer = checked(await anext(answers))
    assert isinstance(answer, Vectors)
    values = answer.values.astype("<f4")
    if as_base64:
        return [base64.b64encode(row.tobytes()).decode() for row in values]
    return [row.tolist() for row in values]


async def pieces(backend: Backend, request: Generate, stops: Sequence[str]) -> AsyncGenerator[Piece, None]:
    """The text that is generated, as it comes; closing this ends the generation."""
    spelling, count = Spelling(backend.text, stops), 0
    async with backend.ask(request) as answers:
        async for each in answers:
            answer = checked(each)
            assert isinstance(answer, Tokens)
            count += len(answer.ids)
            text = spelling.add(answer.ids, last=answer.finish is not None)
            finish = "stop" if spelling.stopped else answer.finish
            if text or finish:
                yield Piece(text, finish, count)
            if finish:
                return


async def whole(backend: Backend, request: Generate, stops: Sequence[str]) -> Piece:
    """All of the text at once."""
    text = ""
    async with aclosing(pieces(backend, request, stops)) as found:
        async for piece in found:
            text += piece.text
    return Piece(text, piece.finish, piece.count)


def checked(answer: Answer) -> Vectors | Tokens:
    """RuntimeError: the worker could not compute it."""
    if isinstance(answer, Refused):
        raise RuntimeError(answer.text)
    return answer


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """The fields that all parts of an answer begin with."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def event(content: dict[str, Any]) -> str:
    """One of a stream of server-sent events."""
    return f"data: {json.dumps(content)}\n\n"


END = "data: [DONE]\n\n"
