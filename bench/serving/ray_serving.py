"""Ray on this machine, a cluster of two nodes on loopback: answers, failures, memory of replicas, a data set.

    python bench/serving/ray_serving.py --json FILE [answers reload node memory offline ...]

Runs in the environment of `make serve-test-ray`. Each part adds its row to those of the file.

answers   1,000 requests of 32 at once to two replicas of all-MiniLM-L6-v2 at 80 %, one on each node
reload    requests while the model is replaced by another, and back
node      requests while the second node is killed, and another one is added
memory    PSS that a second replica on a node adds, of a BERT-base shape at 80 % and of an empty predictor
offline   `map_batches` over 10,000 sentences, against one process
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparseinfer as si

sys.path.append(str(Path(__file__).parents[2] / "tests/serve_engines"))
from ray_cluster import HEAD, LocalCluster, pss_bytes, replicas
from ray_traffic import TIMEOUT_S, Traffic, close
from sentence_encoder import Encoder, save_encoder, sentences

from sparseinfer import ops
from sparseinfer._machine import describe_machine
from sparseinfer.bench.report import write_json
from sparseinfer.serve.ray import Offline, application

Row = dict[str, Any]


class Nothing:
    """A predictor without a model, in a process that has imported what the others have."""

    def __init__(self, path: str) -> None:
        from transformers import BertModel

        import sparseinfer.convert

        self.imported = sparseinfer.convert, BertModel

    def __call__(self, inputs: list[Any]) -> list[Any]:
        return inputs


class Wide:
    """An encoder of the shape of BERT-base, converted, with random weights of which 80 % are zero."""

    def __init__(self, path: str) -> None:
        import transformers

        torch.manual_seed(0)
        config = transformers.BertConfig(vocab_size=512)
        model = transformers.BertModel(config, add_pooling_layer=False).eval()
        si.prune_(model, si.Magnitude(0.8), targets="re:encoder", keep_masks=False)
        self.model: Any = si.convert(model, tokens=(16, 128), measure=False)

    def __call__(self, inputs: list[list[int]]) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.tensor(inputs)).last_hidden_state.mean(1).numpy()


class Bench:
    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder / "encoder"
        self._other = folder / "other"
        save_encoder(self._folder, sparsity=0.8)
        save_encoder(self._other, sparsity=0.9)
        self._texts = sentences(64)
        self._expected, self._others = (
            np.concatenate([Encoder(str(path))([text]) for text in self._texts])
            for path in (self._folder, self._other)
        )

    def _run(self, load: Any, path: Path, **options: Any) -> Any:
        from ray import serve

        options = {"num_replicas": 2, "max_replicas_per_node": 1, "timeout_s": TIMEOUT_S, **options}
        return serve.run(application(load, str(path), **options), name="bench", route_prefix="/bench")

    def answers(self) -> Row:
        handle = self._run(Encoder, self._folder)

        def ask(i: int) -> tuple[bool, float]:
            start = time.perf_counter()
            answer = handle.predict.remote(self._texts[i % 64]).result(timeout_s=TIMEOUT_S)
            return close(answer, self._expected[i % 64]), time.perf_counter() - start

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            list(pool.map(ask, range(64)))
            start = time.perf_counter()
            asked = list(pool.map(ask, range(1000)))
            took = time.perf_counter() - start
        seconds = np.array([second for _, second in asked])
        return {
            "requests": len(asked),
            "right": sum(right for right, _ in asked),
            "per_s": len(asked) / took,
            "p50_ms": float(np.median(seconds) * 1e3),
            "p99_ms": float(np.quantile(seconds, 0.99) * 1e3),
        }

    def reload(self) -> Row:
        handle = self._run(Encoder, self._folder)

        def right(answer: Any, i: int) -> bool:
            return close(answer, self._expected[i]) or close(answer, self._others[i])

        with Traffic(handle, self._texts, right) as traffic:
            for path in (self._other, self._folder):
                time.sleep(2)
                self._run(Encoder, path)
            time.sleep(2)
        return {"reloads": 2, **_counts(traffic)}

    def node(self) -> Row:
        handle = self._run(Encoder, self._folder, health_check_period_s=1, health_check_timeout_s=5)
        with Traffic(handle, self._texts, lambda answer, i: close(answer, self._expected[i])) as traffic:
            time.sleep(2)
            self._cluster.kill_node()
            killed = time.monotonic()
            time.sleep(5)
            self._cluster.add_node()
            self._cluster.wait_for_replicas("bench", 2)
            full_s, before = time.monotonic() - killed, traffic.right
            time.sleep(2)
        after = traffic.right - before
        kinds = sorted({type(error).__name__ for error in traffic.errors})
        return {**_counts(traffic), "kinds": kinds, "full_again_s": full_s, "right_afterwards": after}

    def memory(self) -> Row:
        from ray import serve

        added = {}
        for load in (Nothing, Wide):
            totals = []
            for count in (1, 2):
                serve.delete("bench")
                one_node = {"num_cpus": 0.4, "resources": {HEAD: 1}}
                options = {"num_replicas": count, "max_replicas_per_node": 2, "ray_actor_options": one_node}
                handle = self._run(load, self._folder, **options)
                self._cluster.wait_for_replicas("bench", count)
                asked = [handle.predict.remote([1] * 16) for _ in range(64)]
                assert len([answer.result(timeout_s=TIMEOUT_S) for answer in asked]) == 64
                time.sleep(3)
                totals.append(sum(map(pss_bytes, replicas("bench"))))
            added[load] = totals[1] - totals[0], totals[0]
        model = Wide("").model
        nbytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        second = added[Wide][0] - added[Nothing][0]
        return {
            "model_bytes": nbytes,
            "first_replica_pss": added[Wide][1],
            "second_replica_adds": added[Wide][0],
            "second_empty_replica_adds": added[Nothing][0],
            "model_share": second / nbytes,
        }

    def offline(self) -> Row:
        import ray

        texts = sentences(10_000, seed=1)
        data = ray.data.from_items([{"number": i, "input": text} for i, text in enumerate(texts)])
        arguments = (Encoder, str(self._folder))
        start = time.perf_counter()
        done = data.map_batches(
            Offline, fn_constructor_args=arguments, concurrency=2, num_cpus=0.5, batch_size=64
        ).take_all()
        took = time.perf_counter() - start
        alone = Encoder(str(self._folder))
        expected = np.concatenate([alone(texts[i : i + 64]) for i in range(0, len(texts), 64)])
        rows = sorted(done, key=lambda row: row["number"])
        got = np.stack([row["output"] for row in rows])
        same = sum(row["input"] == text for row, text in zip(rows, texts, strict=True))
        return {
            "sentences": len(texts),
            "in_order": same,
            "max_difference": float(np.abs(got - expected).max()),
            "seconds": took,
        }


def _counts(traffic: Traffic) -> Row:
    return {
        "right": traffic.right,
        "wrong": traffic.wrong,
        "errors": len(traffic.errors),
        "slowest_s": traffic.slowest_s,
    }


PARTS: Mapping[str, Callable[[Bench], Row]] = {
    "answers": Bench.answers,
    "reload": Bench.reload,
    "memory": Bench.memory,
    "offline": Bench.offline,
    "node": Bench.node,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    by_part = {row["part"]: row for row in rows}
    with tempfile.TemporaryDirectory() as folder, LocalCluster() as cluster:
        cluster.add_node()
        bench = Bench(cluster, Path(folder))
        for part in options.part or PARTS:
            by_part[part] = {"part": part, **PARTS[part](bench)}
            sys.stdout.write(json.dumps(by_part[part]) + "\n")
            rows = [by_part[name] for name in PARTS if name in by_part]
            write_json(options.json, {"machine": describe_machine(ops.active_isa()), "rows": rows})


if __name__ == "__main__":
    main()
