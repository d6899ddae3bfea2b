"""Requests to a deployment from several threads, until they are stopped, and what became of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sentence_encoder import TOLERANCE

TIMEOUT_S = 30.0


def close(got: Any, expected: np.ndarray) -> bool:
    return bool(np.abs(np.asarray(got) - expected).max() < TOLERANCE)


class Traffic:
    """Asks from several threads until it is stopped; counts right answers, wrong ones and errors."""

    def __init__(
        self, handle: Any, texts: list[str], right: Callable[[Any, int], bool], threads: int = 8
    ) -> None:
        self._handle, self._texts, self._right, self._stop = handle, texts, right, threading.Event()
        self.right = self.wrong = 0
        self.errors: list[Exception] = []
        self.slowest_s = 0.0
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(threads)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)
            assert not thread.is_alive(), "a request hangs"

    def _ask(self, i: int) -> None:
        while not self._stop.is_set():
            i = (i + 1) % len(self._texts)
            start = time.monotonic()
            try:
                answer = self._handle.predict.remote(self._texts[i]).result(timeout_s=TIMEOUT_S)
            except Exception as error:
                self.errors.append(error)
            else:
                if self._right(answer, i):
                    self.right += 1
                else:
                    self.wrong += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - start)
