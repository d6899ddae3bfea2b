"""Ray on loopback, a cluster of two nodes on one machine: Serve under load, under failures, and Ray Data."""

from __future__ import annotations

import concurrent.futures
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from ray_cluster import LocalCluster, mapped_bytes, replicas
from ray_traffic import TIMEOUT_S, Traffic, close
from sentence_encoder import TOLERANCE, Encoder, sentences

from sparseinfer.serve.ray import Offline, application


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as cluster:
        cluster.add_node()
        yield cluster


@pytest.fixture
def run(cluster: LocalCluster) -> Iterator[Callable[..., Any]]:
    """Runs an application with two replicas, one on each node; returns its handle."""
    from ray import serve

    def start(folder: Path, **options: Any) -> Any:
        options = {"num_replicas": 2, "max_replicas_per_node": 1, "timeout_s": TIMEOUT_S, **options}
        return serve.run(application(Encoder, str(folder), **options), name="test", route_prefix="/embed")

    yield start
    serve.delete("test")


def test_a_thousand_answers(run: Any, encoder_folder: Path, expected: np.ndarray, texts: list[str]) -> None:
    handle = run(encoder_folder)

    def ask(i: int) -> bool:
        answer = handle.predict.remote(texts[i % len(texts)]).result(timeout_s=TIMEOUT_S)
        return close(answer, expected[i % len(texts)])

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(ask, range(1000))) == 1000


def test_http(
    run: Any, cluster: LocalCluster, encoder_folder: Path, expected: np.ndarray, texts: list[str]
) -> None:
    run(encoder_folder, max_inputs=64, max_bytes=20_000)
    url = f"{cluster.address}/embed"
    answer = requests.post(url, json={"inputs": texts}, timeout=TIMEOUT_S)
    assert close(answer.json()["outputs"], expected)
    for body, status in [
        (b"{", 400),
        (b"[]", 400),
        (b'{"inputs": []}', 400),
        (b'{"inputs": [1]}', 400),
        (b'{"inputs": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400),
        (b'{"inputs": ["' + b"x" * 20_000 + b'"]}', 413),
        (b'{"inputs": [' + b'"x",' * 64 + b'"x"]}', 400),
    ]:
        answer = requests.post(url, data=body, timeout=TIMEOUT_S)
        assert (answer.status_code, "error" in answer.json()) == (status, True), body[:40]
    assert requests.get(url, timeout=TIMEOUT_S).status_code == 405
    answer = requests.post(url, json={"inputs": texts[:1]}, timeout=TIMEOUT_S)
    assert close(answer.json()["outputs"], expected[:1])


def test_a_wrong_input_fails_alone(
    run: Any, encoder_folder: Path, expected: np.ndarray, texts: list[str]
) -> None:
    handle = run(encoder_folder, batch_wait_timeout_s=0.2)
    given: list[Any] = [7 if i % 4 == 0 else text for i, text in enumerate(texts)]
    answers = [handle.predict.remote(item) for item in given]
    for i, answer in enumerate(answers):
        if i % 4 == 0:
            with pytest.raises(Exception, match="expected strings"):
                answer.result(timeout_s=TIMEOUT_S)
        else:
            assert close(answer.result(timeout_s=TIMEOUT_S), expected[i])


def test_another_model_while_it_serves(
    run: Any, encoder_folder: Path, other_folder: Path, expected: np.ndarray, texts: list[str]
) -> None:
    handle = run(encoder_folder)
    others = np.concatenate([Encoder(str(other_folder))([text]) for text in texts])

    def right(answer: Any, i: int) -> bool:
        return close(answer, expected[i]) or close(answer, others[i])

    with Traffic(handle, texts, right) as traffic:
        time.sleep(1)
        run(other_folder)
        time.sleep(1)
    assert not traffic.errors
    assert traffic.wrong == 0
    assert traffic.right > 0
    assert close(handle.predict.remote(texts[0]).result(timeout_s=TIMEOUT_S), others[0])


def test_a_folder_that_is_replaced(
    run: Any, replaceable_folder: Path, other_folder: Path, expected: np.ndarray, texts: list[str]
) -> None:
    handle = run(replaceable_folder, version="1")
    assert close(handle.predict.remote(texts[0]).result(timeout_s=TIMEOUT_S), expected[0])
    new = replaceable_folder / "new"
    shutil.copy(other_folder / "model.safetensors", new)
    new.replace(replaceable_folder / "model.safetensors")
    other = Encoder(str(other_folder))([texts[0]])[0]
    run(replaceable_folder, version="2")
    assert close(handle.predict.remote(texts[0]).result(timeout_s=TIMEOUT_S), other)


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(
    run: Any, encoder_folder: Path, tmp_path: Path, expected: np.ndarray, texts: list[str]
) -> None:
    handle = run(encoder_folder)
    run(tmp_path)
    assert close(handle.predict.remote(texts[0]).result(timeout_s=TIMEOUT_S), expected[0])


def test_the_first_model_has_to_load(run: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run(tmp_path)


def test_replicas_are_replaced_when_they_are_to_load_otherwise() -> None:
    first, same, other = (
        application(load, path) for load, path in ((Encoder, "a"), (Encoder, "b"), (str, "a"))
    )
    versions = [each._bound_deployment.version for each in (first, same, other)]
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "timeout_s: expected a positive number, got 0"),
        ({"max_batch_size": 1.5}, "max_batch_size: expected int, got 1.5"),
        ({"max_inputs": True}, "max_inputs: expected int, got True"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        application(Encoder, "folder", **options)


def test_a_node_that_dies(
    run: Any, cluster: LocalCluster, encoder_folder: Path, expected: np.ndarray, texts: list[str]
) -> None:
    handle = run(encoder_folder, health_check_period_s=1, health_check_timeout_s=5)
    with Traffic(handle, texts, lambda answer, i: close(answer, expected[i])) as traffic:
        time.sleep(1)
        cluster.kill_node()
        time.sleep(5)
        cluster.add_node()
        cluster.wait_for_replicas("test", 2)
        before = traffic.right
        time.sleep(1)
    assert traffic.wrong == 0
    assert traffic.right > before  # it serves again
    assert traffic.slowest_s < TIMEOUT_S + 1


def test_replicas_share_the_weights(
    run: Any, encoder_folder: Path, expected: np.ndarray, texts: list[str]
) -> None:
    handle = run(encoder_folder, max_replicas_per_node=2, num_replicas=2, ray_actor_options={"num_cpus": 0.5})
    answers = [handle.predict.remote(text) for text in texts * 4]  # some to each
    for i, answer in enumerate(answers):
        assert close(answer.result(timeout_s=TIMEOUT_S), expected[i % len(texts)])
    shared = [mapped_bytes(pid) for pid in replicas("test")]
    weights = sum(t.nbytes for t in _tensors(Encoder(str(encoder_folder)).model))
    assert len(shared) == 2
    # Pages that were read: not embeddings of other words, nor packings for other numbers of tokens.
    assert all(mapped > 0.2 * weights for mapped in shared), (shared, weights)


def _tensors(model: Any) -> list[Any]:
    return [*model.parameters(), *model.buffers()]


def test_a_data_set(cluster: LocalCluster, encoder_folder: Path) -> None:
    import ray

    texts = sentences(500, seed=1)
    data = ray.data.from_items([{"number": i, "input": text} for i, text in enumerate(texts)])
    done = data.map_batches(
        Offline,
        fn_constructor_args=(Encoder, str(encoder_folder)),
        concurrency=2,
        num_cpus=0.5,
        batch_size=32,
    )
    rows = sorted(done.take_all(), key=lambda row: row["number"])
    alone = Encoder(str(encoder_folder))
    expected = np.concatenate([alone(texts[i : i + 32]) for i in range(0, len(texts), 32)])
    assert [row["input"] for row in rows] == texts
    np.testing.assert_allclose(np.stack([row["output"] for row in rows]), expected, rtol=0, atol=TOLERANCE)


def test_the_examples_of_the_page(
    cluster: LocalCluster,
    encoder_folder: Path,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray import serve

    cluster.add_node(num_cpus=12)
    page = Path(__file__).parents[2] / "docs/engines.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    # Relative paths are those of each process; a reader would name a folder that all see.
    sentences_file = tmp_path / "sentences.txt"
    sentences_file.write_text("\n".join(texts))
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        code = block.replace('"folder"', repr(str(encoder_folder)))
        exec(code.replace('"sentences.txt"', repr(str(sentences_file))), names)
    assert sorted(row["text"] for row in names["data"].take_all()) == sorted(texts)
    answer = requests.post(f"{cluster.address}/embed", json={"inputs": texts[:3]}, timeout=TIMEOUT_S)
    assert np.asarray(answer.json()["outputs"]).shape == (3, 384)
    serve.delete("default")
