"""The deployment of Ray Serve: batches, replaces its model while it serves, and says how it is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any

from ray import cloudpickle, serve
from ray.serve import Application
from ray.util.metrics import Counter, Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from sparseinfer.serve.ray.shared import Load, Predictor, shared

logger = logging.getLogger("ray.serve")

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# What a predictor raises for a wrong input.
_WRONG_INPUT = (ValueError, TypeError)


@dataclass(frozen=True)
class Settings:
    """The `user_config` of a deployment; a change takes effect while it serves.

    path                  of the model; the model is read again if what lies there was replaced
    version               any text: another one makes the replicas look whether that is so
    max_batch_size        inputs that the predictor is given at once, at most
    batch_wait_timeout_s  seconds that an input waits for others
    timeout_s             seconds after which a request fails; a batch that takes longer makes the replica
                          unhealthy, and Ray replaces it
    max_inputs            of one HTTP request
    max_bytes             of one HTTP request's body
    """

    path: str
    version: str = ""
    max_batch_size: int = 16
    batch_wait_timeout_s: float = 0.005
    timeout_s: float = 30.0
    max_inputs: int = 256
    max_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            allowed = {"str": (str,), "int": (int,), "float": (int, float)}[str(field.type)]
            if type(value) not in allowed:
                raise TypeError(f"{field.name}: expected {field.type}, got {value!r}")
            if str not in allowed and not value > 0:
                raise ValueError(f"{field.name}: expected a positive number, got {value!r}")

    @classmethod
    def names(cls) -> frozenset[str]:
        return frozenset(field.name for field in fields(cls))

    @classmethod
    def of(cls, config: object) -> Settings:
        """TypeError, ValueError: not a mapping of these settings."""
        if not isinstance(config, Mapping) or not {"path"} <= config.keys() <= cls.names():
            expected = f"path and any of {', '.join(sorted(cls.names()))}"
            raise ValueError(f"user_config: expected {expected}, got {config!r}")
        return cls(**config)


def application(load: Load, path: str, *, name: str = "sparseinfer", **options: Any) -> Application:
    """An application for `serve.run`, of replicas that answer with the predictor load(path).

    name     of the deployment
    options  of Settings, and of `serve.deployment`: num_replicas, ray_actor_options (num_cpus says how many
             threads a replica computes with), max_ongoing_requests, autoscaling_config, ...

    To replace the model, run the application again with another path or version: replicas load it while they
    serve the old one. Another `load` replaces the replicas, one after another. That the code of the same one
    changed in its module is not seen: delete the application before.
    """
    config = {"path": str(path), **{key: options.pop(key) for key in Settings.names() & options.keys()}}
    settings = Settings.of(config)
    # Two batches: one that is computed, and the next.
    options.setdefault("max_ongoing_requests", 2 * settings.max_batch_size)
    options.setdefault("health_check_period_s", 5)
    # Ray draws one for each run, as if all code were new, and would then replace the replicas.
    code = hashlib.sha256(cloudpickle.dumps((version("sparseinfer"), load))).hexdigest()
    made = serve.deployment(Replica).options(
        name=name, version=code, user_config=config, _internal=True, **options
    )
    return made.bind(load)


class Replica:
    """One process that answers: `handle.predict.remote(input)`, or HTTP POST of {"inputs": [...]}."""

    def __init__(self, load: Load) -> None:
        self._load = load
        # One thread computes; the event loop stays free for requests and health checks.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._settings: Settings
        self._predictor: Predictor | None = None
        self._busy_since: float | None = None
        self._requests = Counter("sparseinfer_requests", "Inputs, by how they ended.", tag_keys=("outcome",))
        self._failed_loads = Counter("sparseinfer_failed_loads", "Models that could not be loaded.")
        self._seconds = Histogram("sparseinfer_batch_seconds", "Of computing a batch.", boundaries=_SECONDS)

    async def reconfigure(self, user_config: object) -> None:
        """Load the model of `Settings`; requests are answered by the old one until it is there.

        If it cannot be loaded, the old one stays, if there is one: Ray would end a replica that raises here.
        """
        settings = Settings.of(user_config)
        context = serve.get_replica_context()
        name = f"{context.app_name}:{context.deployment}"
        try:
            self._predictor = await asyncio.to_thread(shared, self._load, settings.path, name)
        except Exception:
            if self._predictor is None:
                raise
            self._failed_loads.inc()
            logger.exception("%s: expected a model, got an error (the old one stays)", settings.path)
            return
        self._settings = settings
        self._batched.set_max_batch_size(settings.max_batch_size)
        self._batched.set_batch_wait_timeout_s(settings.batch_wait_timeout_s)

    def check_health(self) -> None:
        """RuntimeError: a batch hangs."""
        since = self._busy_since
        if since is not None and (took := time.monotonic() - since) > self._settings.timeout_s:
            raise RuntimeError(
                f"batch: expected an end within {self._settings.timeout_s} s, got none in {took:.0f} s"
            )

    async def predict(self, input: Any) -> Any:
        """The output for one input. ValueError, TypeError: a wrong input. TimeoutError: after `timeout_s`."""
        outcome = "error"
        try:
            output = await asyncio.wait_for(self._batched(input), self._settings.timeout_s)
            if isinstance(output, _Failed):
                outcome = "wrong input" if isinstance(output.error, _WRONG_INPUT) else outcome
                raise output.error
            outcome = "ok"
            return output
        except asyncio.TimeoutError:
            outcome = "timeout"
            raise TimeoutError(
                f"request: expected an answer within {self._settings.timeout_s} s, got none"
            ) from None
        finally:
            self._requests.inc(tags={"outcome": outcome})

    async def __call__(self, request: Request) -> Response:
        """POST {"inputs": [...]} -> {"outputs": [...]}, else {"error": text} with status 4xx, 500 or 504."""
        try:
            inputs = await self._inputs(request)
            outputs = await asyncio.gather(*map(self.predict, inputs))
        except _Refused as refused:
            return JSONResponse({"error": refused.args[1]}, refused.args[0])
        except ClientDisconnect:
            return Response(status_code=499)
        except _WRONG_INPUT as error:
            return JSONResponse({"error": f"inputs: {error}"}, 400)
        except TimeoutError as error:
            return JSONResponse({"error": str(error)}, 504)
        return JSONResponse({"outputs": [o.tolist() if hasattr(o, "tolist") else o for o in outputs]})

    async def _inputs(self, request: Request) -> list[Any]:
        if request.method != "POST":
            raise _Refused(405, f"method: expected POST, got {request.method}")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._settings.max_bytes:
                raise _Refused(413, f"body: expected at most {self._settings.max_bytes} bytes, got more")
        try:
            inputs = json.loads(body)["inputs"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _Refused(400, 'body: expected JSON {"inputs": [...]}, got other text') from None
        if not isinstance(inputs, list) or not 0 < len(inputs) <= self._settings.max_inputs:
            raise _Refused(400, f"inputs: expected a list of 1 to {self._settings.max_inputs}, got another")
        return inputs

    @serve.batch
    async def _batched(self, inputs: list[Any]) -> list[Any]:
        assert self._predictor is not None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._outputs, self._predictor, inputs)

    def _outputs(self, predictor: Predictor, inputs: list[Any]) -> list[Any]:
        """One for each input: an error is that of one input, not of those that were in its batch."""
        start = self._busy_since = time.monotonic()
        try:
            outputs = list(predictor(inputs))
            if len(outputs) != len(inputs):
                raise RuntimeError(f"outputs: expected {len(inputs)}, got {len(outputs)}")
            return outputs
        except Exception as error:
            if len(inputs) == 1:
                return [_Failed(error)]
        finally:
            self._busy_since = None
            self._seconds.observe(time.monotonic() - start)
        return [output for input in inputs for output in self._outputs(predictor, [input])]


@dataclass(frozen=True)
class _Failed:
    error: Exception


class _Refused(Exception):
    """status, text"""
