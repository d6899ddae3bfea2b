"""What requests may hold: OpenAI's fields that this server knows, with their limits.

Fields that it does not know are ignored, as OpenAI's own servers and clients expect; known ones whose values
would change the answer in a way that this server cannot are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr

_INT64 = 2**63 - 1


def _encodable(text: str) -> str:
    """JSON can spell halves of characters, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("expected text, got a part of a surrogate pair") from error
    return text


String = Annotated[StrictStr, AfterValidator(_encodable)]
Ids = Annotated[list[Annotated[StrictInt, Field(ge=0, le=2**31)]], Field(min_length=1)]
# At most as many texts as OpenAI takes.
Inputs = (
    String
    | Ids
    | Annotated[list[String], Field(min_length=1, max_length=2048)]
    | Annotated[list[Ids], Field(min_length=1, max_length=2048)]
)
_Stop = Annotated[String, Field(min_length=1, max_length=256)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: Annotated[String, Field(description="its name, which /v1/models tells")]


class Embeddings(_Request):
    input: Annotated[Inputs, Field(description="a text or several, or their ids")]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[None, Field(description="the model's own")] = None


class StreamOptions(BaseModel):
    include_usage: bool | None = False


class _Generation(_Request):
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = 1.0
    seed: Annotated[StrictInt, Field(ge=-_INT64, le=_INT64)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    frequency_penalty: Literal[0] | None = 0
    presence_penalty: Literal[0] | None = 0
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


_MaxTokens = Annotated[StrictInt, Field(ge=1, le=1 << 20)]


class Completions(_Generation):
    prompt: Annotated[Inputs, Field(description="a text or several, or their ids")]
    max_tokens: _MaxTokens | None = 16
    echo: Literal[False] | None = False
    suffix: None = None
    best_of: Literal[1] | None = 1
    logprobs: None = None


class Part(BaseModel):
    type: Literal["text"]
    text: String


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: String | Annotated[list[Part], Field(min_length=1, max_length=1024)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Chat(_Generation):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_tokens: _MaxTokens | None = None
    max_completion_tokens: _MaxTokens | None = None
    logprobs: Literal[False] | None = False
    tools: Annotated[list[Any], Field(max_length=0)] | None = None


class Error(BaseModel):
    """OpenAI's form of errors."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    error: Error
