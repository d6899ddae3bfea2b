"""A save that is killed, and a full disk: the old file stays whole."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparseinfer as si
from sparseinfer.io import atomic

# Its children begin with everything imported, and are no copies of a process with threads.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["sparseinfer"])


def build() -> nn.Module:
    return nn.Sequential(*[nn.Linear(512, 512) for _ in range(8)])


def filled(value: float) -> nn.Module:
    model = build()
    for parameter in model.parameters():
        parameter.data.fill_(value)
    return model


def save_for_ever(file: Path, ready: Any) -> None:
    models = [filled(2.0), filled(3.0)]
    ready.set()
    while True:
        for model in models:
            si.save(model, file, progress=False)


@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, times: int) -> None:
    file = si.save(filled(1.0), tmp_path / "model.safetensors")
    chance, unfinished = random.Random(times), 0
    for _ in range(times):
        ready = SERVER.Event()
        process = SERVER.Process(target=save_for_ever, args=(file, ready))
        process.start()
        assert ready.wait(60)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.join()
        process.close()
        loaded = si.load(file, build)
        ends = {float(end) for t in loaded.state_dict().values() for end in t.aminmax()}
        assert len(ends) == 1, "expected one of the models, whole"
        for left in tmp_path.glob(".*.tmp"):
            unfinished += 1
            left.unlink()
    assert unfinished, "expected at least one kill in the middle of a file"


def test_a_full_disk(tmp_path: Path) -> None:
    model, other = nn.Linear(1024, 1024), nn.Linear(1024, 1024)
    file = si.save(model, tmp_path / "model.safetensors")
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match=r"the file that was there is unchanged") as raised:
            si.save(other, file)
        with pytest.raises(OSError, match=r"there is no file"):
            si.save(other, tmp_path / "new.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    assert str(file) in str(raised.value)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_end(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = si.save(nn.Linear(4, 4), tmp_path / "model.safetensors")
    before = file.read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((atomic.os, "fsync") if step == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match=r"No space left on device \(the file that was there is unchanged\)"):
        si.save(nn.Linear(4, 4), file)
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_mode_and_links_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "model.safetensors", tmp_path / "link"
    si.save(nn.Linear(4, 4), file)
    file.chmod(0o640)
    link.symlink_to(file)
    other = nn.Linear(4, 4)
    si.save(other, link)
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert torch.equal(si.load(file, nn.Linear(4, 4)).weight, other.weight)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"expected to write it, got: No such file"):
        si.save(nn.Linear(4, 4), tmp_path / "no" / "model.safetensors")
