"""Two servers, started once, at the same time."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serve_helpers import Server


@pytest.fixture(scope="session")
def _servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    # Here: it skips where transformers is missing, which a conftest must not.
    from serve_helpers import KEY, Server, decoder, encoder, save

    pytest.importorskip("litserve", reason="litserve is not installed (pip install '.[serve]')")
    folder = tmp_path_factory.mktemp("served")
    limits = ("--read-timeout", "1", "--max-body", "20000", "--grace", "5")
    servers = {
        "decoder": Server(save(decoder(), folder / "decoder"), "--eager", *limits, key=KEY),
        "encoder": Server(save(encoder(), folder / "encoder"), *limits),
    }
    try:
        for server in servers.values():
            server.wait()
        yield servers
    finally:
        for server in servers.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()


@pytest.fixture
def decoder_server(_servers: dict[str, Server]) -> Server:
    """Not compiled, with a key, a body of 20,000 bytes, and a second to send it."""
    return _servers["decoder"]


@pytest.fixture
def encoder_server(_servers: dict[str, Server]) -> Server:
    """With the same limits and no key."""
    return _servers["encoder"]
