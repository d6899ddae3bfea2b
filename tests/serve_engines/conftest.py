"""The sentence encoder that the servers are tested with, and what it returns."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_encoder import Encoder, save_encoder, sentences


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 at 80 %, converted, with its tokenizer."""
    folder = tmp_path_factory.mktemp("encoder") / "minilm"
    save_encoder(folder, sparsity=0.8)
    return folder


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same encoder at 90 %, which gives other embeddings."""
    folder = tmp_path_factory.mktemp("encoder") / "other"
    save_encoder(folder, sparsity=0.9)
    return folder


@pytest.fixture
def replaceable_folder(encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may replace."""
    return Path(shutil.copytree(encoder_folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return sentences(64)


@pytest.fixture(scope="session")
def expected(encoder_folder: Path, texts: list[str]) -> np.ndarray:
    """Embeddings [texts, hidden] of one process without a server, sentence by sentence."""
    encoder = Encoder(str(encoder_folder))
    return np.concatenate([np.asarray(encoder([text])) for text in texts])
