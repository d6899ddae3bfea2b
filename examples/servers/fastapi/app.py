"""A sparse sentence encoder behind FastAPI.

    pip install fastapi uvicorn 'sparseinfer[demo]'
    MODEL=folder uvicorn --app-dir examples/servers/fastapi app:app
    curl localhost:8000/embed -H 'content-type: application/json' -d '{"texts": ["A sentence."]}'

The folder was written by sparseinfer.save_pretrained, and the tokenizer's save_pretrained.

A converted model may be called by any number of threads at once: FastAPI runs plain functions in its own
threads, and kernels release Python's lock. Start one process, not several: packings are memory of a process.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import torch
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from transformers import AutoTokenizer

import sparseinfer as si

Text = Annotated[str, Field(max_length=10_000)]


class Texts(BaseModel):
    texts: list[Text] = Field(min_length=1, max_length=64)


class Embeddings(BaseModel):
    embeddings: list[list[float]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    folder = os.environ["MODEL"]
    app.state.model = si.load(folder)
    app.state.tokenizer = AutoTokenizer.from_pretrained(folder)
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/embed")
def embed(texts: Texts, request: Request) -> Embeddings:
    """The mean of the hidden states of each text's tokens, scaled to length 1."""
    model, tokenizer = request.app.state.model, request.app.state.tokenizer
    batch = tokenizer(texts.texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        means = (hidden * mask).sum(1) / mask.sum(1)
        return Embeddings(embeddings=torch.nn.functional.normalize(means).tolist())
