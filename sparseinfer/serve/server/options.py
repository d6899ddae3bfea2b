"""What `sparseinfer serve` is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from sparseinfer._arguments import argument, positive

KEY_VARIABLE = "SPARSEINFER_API_KEY"


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError(f"expected a positive number of seconds, got {text!r}")
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _option(
    help: str, read: Callable[[str], object], metavar: str, flag: str | None = None
) -> dict[str, object]:
    return dict(argument(help, read=read, metavar=metavar, flag=flag))


@dataclass(frozen=True)
class Options:
    """The `help` of each field describes it. ValueError: not a folder, or a value out of range."""

    model: Path = field(
        metadata=argument(
            "folder with config.json, weights and tokenizer, dense or written by `sparseinfer convert`",
            positional=True,
            read=Path,
            metavar="DIR",
        )
    )
    _: KW_ONLY
    host: str = field(default="127.0.0.1", metadata=argument("address to listen on", metavar="ADDRESS"))
    port: int = field(default=8000, metadata=_option("port to listen on; 0: any that is free", _port, "PORT"))
    name: str | None = field(
        default=None, metadata=argument("the model's name in requests; default: the folder's", metavar="NAME")
    )
    threads: int | None = field(
        default=None, metadata=_option("threads that compute; default: torch's own choice", positive, "N")
    )
    max_batch: int = field(
        default=8,
        metadata=_option("texts that are computed at the same time, at most", positive, "N", "max-batch"),
    )
    max_length: int | None = field(
        default=None,
        metadata=_option(
            "tokens of a text with its answer, at most; default: 2048, or what the model allows",
            positive,
            "N",
            "max-length",
        ),
    )
    max_waiting: int = field(
        default=256, metadata=_option("requests at a time; more are refused", positive, "N", "max-waiting")
    )
    max_body: int = field(
        default=1 << 20, metadata=_option("bytes of a request, at most", positive, "BYTES", "max-body")
    )
    timeout: float = field(default=120.0, metadata=_option("time limit of a request", _seconds, "SECONDS"))
    read_timeout: float = field(
        default=10.0,
        metadata=_option("time in which a client has to send a request", _seconds, "SECONDS", "read-timeout"),
    )
    grace: float = field(
        default=30.0, metadata=_option("time for running requests when it stops", _seconds, "SECONDS")
    )
    key_file: Path | None = field(
        default=None,
        metadata=_option(
            f"file that holds the key which requests must carry; default: ${KEY_VARIABLE}, or no key",
            Path,
            "FILE",
            "api-key-file",
        ),
    )
    eager: bool = field(
        default=False, metadata=argument("do not compile decoding: starts sooner, answers more slowly")
    )

    def __post_init__(self) -> None:
        if not (self.model / "config.json").is_file():
            hint = "a folder with config.json"
            raise ValueError(f"model: expected a Hugging Face model folder, got {str(self.model)!r} ({hint})")

    @property
    def model_name(self) -> str:
        """What clients call the model: the name given, or that of its folder."""
        return self.name or self.model.absolute().name

    def read_key(self) -> str | None:
        """The key, or None. ValueError: an empty one. OSError: the file cannot be read."""
        if self.key_file is not None:
            key = self.key_file.read_text(encoding="utf-8").strip()
        elif KEY_VARIABLE in os.environ:
            key = os.environ[KEY_VARIABLE].strip()
        else:
            return None
        if not key:
            raise ValueError(f"key: expected some text in the file or in {KEY_VARIABLE}, got none")
        return key
