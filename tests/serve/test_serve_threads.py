"""What a server asks of converted models: many threads, no lock held in a call, no hang after fork."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from serve_helpers import decoder, encoder, sparse
from torch import nn

import sparseinfer as si


def test_threads_that_share_a_model_get_what_one_gets() -> None:
    model = sparse(encoder())
    drawn = torch.Generator().manual_seed(0)
    inputs = [torch.randint(96, (1 + i % 4, 5 + i), generator=drawn) for i in range(8)]

    def results(ids: torch.Tensor, times: int) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [model(ids)[0].clone() for _ in range(times)]

    alone = [results(ids, 1)[0] for ids in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda ids: results(ids, 25), inputs))
    for expected, found in zip(alone, together, strict=True):
        assert all(torch.equal(expected, each) for each in found)


def test_threads_generate_with_one_model() -> None:
    model = sparse(decoder())
    ids = torch.tensor([[3, 5, 7]])

    def generate(_: int) -> list[int]:
        mask = torch.ones_like(ids)
        new = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        tokens: list[int] = new[0].tolist()
        return tokens

    expected = generate(0)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(generate, range(16))) == [expected] * 16


def test_other_threads_run_during_a_sparse_call() -> None:
    """A call of at least a tenth of a second, and the gaps that another thread of Python sees meanwhile."""
    layer = nn.Linear(2048, 2048)
    si.prune_(layer, si.Magnitude(0.8), keep_masks=False)
    call = si.SparseLinear.from_linear(layer)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a core is left for the other thread
    try:
        x = torch.randn(64, 2048)
        with torch.inference_mode():
            call(x)
            taken = 0.0
            while taken < 0.1:
                begun = time.perf_counter()
                call(x)
                taken = time.perf_counter() - begun
                x = x.repeat(2, 1)
            gaps, over = [], threading.Event()

            def beat() -> None:
                last = time.perf_counter()
                while not over.is_set():
                    time.sleep(0.001)
                    now = time.perf_counter()
                    gaps.append(now - last)
                    last = now

            thread = threading.Thread(target=beat)
            thread.start()
            begun = time.perf_counter()
            for _ in range(5):
                call(x)
            taken = (time.perf_counter() - begun) / 5
            over.set()
            thread.join()
    finally:
        torch.set_num_threads(before)
    # With the lock held each gap would be as long as a call.
    assert np.median(gaps) < taken / 10


FORK = """
    import os, signal, sys, torch, sparseinfer as si
    torch.set_num_threads(int(sys.argv[1]))
    layer = torch.nn.Linear(512, 512)
    si.prune_(layer, si.Magnitude(0.8), keep_masks=False)
    sparse, x = si.SparseLinear.from_linear(layer), torch.randn(64, 512)
    with torch.inference_mode():
        if sys.argv[2] == "used":
            expected = sparse(x)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a hang ends the child by a signal
            if sys.argv[3] == "alone":
                torch.set_num_threads(1)
            try:
                sparse(x)
            except RuntimeError as error:
                print(error, flush=True)
                os._exit(3)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert sys.argv[2] != "used" or torch.equal(sparse(x), expected)  # the parent goes on
    sys.exit(status if status >= 0 else 99)
"""


def forked(threads: int, used: str, child: str) -> tuple[int, str]:
    command = [sys.executable, "-c", textwrap.dedent(FORK), str(threads), used, child]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_a_forked_process_says_what_is_wrong_instead_of_waiting_for_ever() -> None:
    status, text = forked(2, "used", "as it is")
    assert status == 3, text
    assert "threads: expected a process that has torch's threads, got one made by fork" in text
    assert "spawn" in text


def test_a_forked_process_computes_with_one_thread() -> None:
    assert forked(2, "used", "alone")[0] == 0
    assert forked(1, "used", "as it is")[0] == 0
